"""Records which requests a block of code made, by their keys on the tape, so that they can be looked up later.

    with recording() as calls:
        judgement = await method.judge(teacher, group)
    calls()    -> (Call("reference", "3f2a..."), Call("rubric", ...), Call("verify", ...))

Tasks started in the block share its list. Without a tape nothing is recorded, because there is nothing to look up.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import get_args

from ropd_jax.teacher.clients.chat import Purpose
from ropd_jax.types import Call

_CALLS: contextvars.ContextVar[set[Call] | None] = contextvars.ContextVar("teacher_calls", default=None)
_ROLES = get_args(Purpose)


def note(purpose: str, key: str) -> None:
    """Adds a request to the current recording, if there is one."""
    if (calls := _CALLS.get()) is not None:
        calls.add(Call(purpose, key))


@contextlib.contextmanager
def recording() -> Iterator[Callable[[], tuple[Call, ...]]]:
    """Records the requests of the block. Yields a function that returns them without duplicates, by role and key.

    The order does not depend on which request was answered first, so that a resumed run writes the same files.
    """
    calls: set[Call] = set()
    token = _CALLS.set(calls)
    try:
        yield lambda: tuple(sorted(calls, key=lambda c: (_ROLES.index(c.role), c.key)))
    finally:
        _CALLS.reset(token)
