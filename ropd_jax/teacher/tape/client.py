"""A client that answers from a tape and records on it.

record    the default: answers from the tape; what is not there is asked and recorded. What failed for a passing
          cause (429, timeout, ...) is asked again; a truncated, blocked or over-long request is not: it would fail
          again, and cost again
replay    answers from the tape alone, opens no socket and needs no key; what is not there stops the run and says
          what differs from the nearest entry
refresh   asks everything once more and overwrites
off       no tape
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import logging
import pathlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from ropd_jax.teacher.clients.client import (
    BlockedError,
    ChatClient,
    ChatReply,
    ChatRequest,
    ConfigurationError,
    ContextError,
    TeacherError,
    TruncatedError,
)
from ropd_jax.teacher.tape.inspect import explain_miss
from ropd_jax.teacher.tape.store import NO_STEP, Tape, body_key, request_body

log = logging.getLogger(__name__)
T = TypeVar("T")
MODES = ("record", "replay", "refresh", "off")
STEP: contextvars.ContextVar[int] = contextvars.ContextVar("teacher_step", default=NO_STEP)
LASTING = (TruncatedError, BlockedError, ContextError)  # failures that would be the same again


async def at_step(step: int, work: Awaitable[T]) -> T:
    """Await ``work`` as part of a training step, so that tape and budget know which."""
    STEP.set(step)
    return await work


class TapedClient:
    """A ``ChatClient`` that answers from a tape and records on it; outermost, so that a recorded answer waits for
    nothing.

    Args:
        make: makes the client underneath; called now, except in mode ``replay``, which needs none.
        tape: shared by all roles of a teacher.
        mode: ``record``, ``replay`` or ``refresh``.
        provider: part of each key.
        address: of its server, without secrets; kept beside each reply, no part of the key. An answer that another
            address gave is used, and said once. "" is the provider's own address.
        prompts: content hash of each prompt template, stored with each entry.
        noted: called with the purpose of each request that the tape answered.

    Raises:
        ConfigurationError: an unknown mode; whatever ``make`` raises.
    """

    def __init__(
        self,
        make: Callable[[], ChatClient],
        tape: Tape,
        *,
        mode: str,
        provider: str,
        address: str = "",
        prompts: Mapping[str, str] | None = None,
        noted: Callable[[str], None] | None = None,
    ):
        if mode not in MODES[:3]:
            raise ConfigurationError(f"teacher.tape.mode is {mode!r}; expected one of {', '.join(MODES)}")
        self.inner = None if mode == "replay" else make()
        self.tape, self.mode = tape, mode
        self._provider, self._address, self._prompts = provider, address, dict(prompts or {})
        self._said: set[str] = set()  # addresses that other answers came from
        self._noted = noted or (lambda purpose: None)
        self._fresh: set[str] = set()  # mode refresh: what this process has asked already

    async def chat(self, request: ChatRequest) -> ChatReply:
        """The reply on the tape, or the client's, which is on the tape before it is returned.

        Raises:
            ConfigurationError: (replay) nothing is recorded for the request. Recorded and new ``TeacherError``.
        """
        step = STEP.get()
        key = body_key(request_body(self._provider, request))
        found = await asyncio.to_thread(self._find, key, request, step)
        if found is not None:
            self._noted(request.purpose)
            if isinstance(found, ChatReply):
                return dataclasses.replace(found, source="tape")
            raise found
        assert self.inner is not None
        where: dict[str, Any] = {"step": step, "prompts": self._prompts}
        try:
            reply = await self.inner.chat(request)
        except ConfigurationError:
            raise  # stops the run; not an answer to this request
        except TeacherError as e:
            await asyncio.to_thread(self.tape.put_failure, self._provider, request, e, **where)
            raise
        overwrite = self.mode == "refresh" and key not in self._fresh
        self._fresh.add(key)
        stands = await asyncio.to_thread(self.tape.put, self._provider, request, reply, **where, overwrite=overwrite,
                                         address=self._address)  # fmt: skip
        return dataclasses.replace(stands, source=reply.source)

    async def close(self) -> None:
        """Close the client and the tape."""
        if self.inner is not None:
            await self.inner.close()
        await asyncio.to_thread(self.tape.close)

    def _find(self, key: str, request: ChatRequest, step: int) -> ChatReply | TeacherError | None:
        if self.mode == "refresh" and key not in self._fresh:
            return None
        reply = self.tape.get(key)
        if self.mode == "replay":
            failed = self.tape.failures(key)
            here = next((f for f in failed if f.step == step), None)
            if here is not None or (reply is None and failed):
                return (here or failed[-1]).error()
            if reply is None:
                raise ConfigurationError(explain_miss(self.tape, self._provider, request), cause="tape_miss")
        elif reply is None:
            lasting = [f for f in self.tape.failures(key) if isinstance(f.error(), LASTING)]
            if lasting:
                error = lasting[-1].error()
                if all(f.step != step for f in lasting):
                    self.tape.put_failure(self._provider, request, error, step=step, prompts=self._prompts)
                return error
        if reply is not None and self.mode == "record":
            self._compare_address(key)
        return reply

    def _compare_address(self, key: str) -> None:
        there = self.tape.address(key)
        if there is None or there == self._address or there in self._said:
            return
        self._said.add(there)
        log.warning(
            "teacher: the tape %s answers with what %s said, and the config names %s; if that is another model of the "
            "same name, use another teacher.tape.path or teacher.tape.mode=refresh",
            self.tape.path, *(where or f"{self._provider}'s own address" for where in (there, self._address)),
        )  # fmt: skip


def open_tape(mode: str, path: str, workdir: str | pathlib.Path | None, *, host: int = 0) -> Tape | None:
    """The tape of ``teacher.tape``; None with mode ``off``, and without a path and a workdir to put it in.

    Of several hosts each writes a tape of its own: host 1 ``tape.1.sqlite`` where host 0 writes ``tape.sqlite``.

    Raises:
        ConfigurationError: an unknown mode; mode ``replay`` and no tape there.
    """
    if mode not in MODES:
        raise ConfigurationError(f"teacher.tape.mode is {mode!r}; expected one of {', '.join(MODES)}")
    if mode == "off":
        return None
    if not path and workdir is None:
        if mode == "record":
            return None
        raise ConfigurationError(f"teacher.tape.mode is {mode!r}; expected a tape: name it with teacher.tape.path")
    file = pathlib.Path(path or pathlib.Path(workdir) / "tape.sqlite")  # type: ignore[arg-type]
    if host and mode != "replay":
        file = file.with_name(f"{file.stem}.{host}{file.suffix}")
    return Tape(file, read_only=mode == "replay")
