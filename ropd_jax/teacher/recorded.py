"""Which requests a piece of work made, by their keys on the tape, so that they can be looked up later.

    with recording() as calls:
        judgement = await method.judge(teacher, group)
    calls()    -> (Call("reference", "3f2a..."), Call("rubric", ...), Call("verify", ...))

Tasks that the work starts share its list. Without a tape nothing is noted, because there is nothing to look up.
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
    """Add a request to those of the work that is being recorded, if any is."""
    if (calls := _CALLS.get()) is not None:
        calls.add(Call(purpose, key))


@contextlib.contextmanager
def recording() -> Iterator[Callable[[], tuple[Call, ...]]]:
    """Notes the requests of the block; yields a function that returns them, each once, by role and key.

    The order does not depend on which request was answered first, so that a resumed run writes the same files.
    """
    calls: set[Call] = set()
    token = _CALLS.set(calls)
    try:
        yield lambda: tuple(sorted(calls, key=lambda c: (_ROLES.index(c.role), c.key)))
    finally:
        _CALLS.reset(token)
