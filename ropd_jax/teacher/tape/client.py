"""A client that answers from a tape and records to it.

record    the default: answers from the tape, and requests and records the rest. A request with a transient failure
          (429, timeout, ...) is repeated. A truncated, blocked or over-long request is not: it would fail and cost
          the same again. A reply that its role cannot use, such as a reference with only thinking, is also such a
          failure.
replay    answers only from the tape, opens no socket and needs no key. A request that is not on the tape stops the
          run, and the error describes how it differs from the nearest entry.
refresh   requests everything once more and overwrites
off       no tape
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from ropd_jax.teacher.clients.chat import ChatClient, ChatReply, ChatRequest
from ropd_jax.teacher.clients.errors import (
    BlockedError,
    ConfigurationError,
    ContextError,
    MalformedError,
    TeacherError,
    TruncatedError,
)
from ropd_jax.teacher.recorded import note
from ropd_jax.teacher.roles import references
from ropd_jax.teacher.step import STEP
from ropd_jax.teacher.tape.inspect import explain_miss
from ropd_jax.teacher.tape.store import TAPE_NAME, Failure, Tape, body_key, request_body
from ropd_jax.utils.paths import is_url, local_file

log = logging.getLogger(__name__)
MODES = ("record", "replay", "refresh", "off")
LASTING = (TruncatedError, BlockedError, ContextError)  # would fail in the same way if repeated
CHECKS: dict[str, Callable[[ChatRequest, str], None]] = {  # by purpose: raises MalformedError for an unusable reply
    "reference": references.check_reply,
}


def is_lasting(failure: Failure) -> bool:
    """True if the request is not sent again: it would fail in the same way, or was sent again with another seed."""
    unusable = failure.type == MalformedError.__name__ and failure.cause in references.UNUSABLE
    return unusable or isinstance(failure.error(), LASTING)


def refused(request: ChatRequest, reply: ChatReply) -> MalformedError | None:
    """The reason why the reply must not be recorded as an answer, or None."""
    check = CHECKS.get(request.purpose)
    try:
        if check is not None:
            check(request, reply.text)
    except MalformedError as error:
        error.usage = reply.usage
        return error
    return None


class TapedClient:
    """A ``ChatClient`` that answers from a tape and records to it.

    It is the outermost client, so a recorded answer does not wait for limits.

    Args:
        make: creates the inner client; called now, except in mode ``replay``, which does not need one.
        tape: the tape, shared by all roles of a teacher.
        mode: ``record``, ``replay`` or ``refresh``.
        provider: part of each key.
        address: the address of the provider's server, without secrets; "" means the provider's own. It is stored with
            each reply and is not part of the key. An answer from another address is used, with one warning per address.
        prompts: content hash of each prompt template, stored with each entry.
        on_answer: called with the purpose of each request answered from the tape.

    Raises:
        ConfigurationError: the mode is unknown, or ``make`` raised the error.
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
        on_answer: Callable[[str], None] | None = None,
    ):
        if mode not in MODES[:3]:
            raise ConfigurationError(f"teacher.tape.mode is {mode!r}; expected one of {', '.join(MODES)}")
        self.inner = None if mode == "replay" else make()
        self.tape, self.mode = tape, mode
        self._provider, self._address, self._prompts = provider, address, dict(prompts or {})
        self._warned: set[str] = set()  # other addresses that recorded answers came from
        self._on_answer = on_answer or (lambda purpose: None)
        self._fresh: set[str] = set()  # mode refresh: keys that this process has already requested

    async def chat(self, request: ChatRequest) -> ChatReply:
        """The reply on the tape, or the inner client's reply, which is recorded before it is returned.

        Raises:
            ConfigurationError: in mode ``replay``, the request is not on the tape.
            TeacherError: a recorded failure, or a new one from the client.
        """
        step = STEP.get()
        key = body_key(request_body(self._provider, request))
        note(request.purpose, key)
        found = await asyncio.to_thread(self._find, key, request, step)  # SQLite blocks, and the loop must not
        if found is not None:
            self._on_answer(request.purpose)
            if isinstance(found, ChatReply):
                return dataclasses.replace(found, source="tape")
            raise found
        assert self.inner is not None
        where: dict[str, Any] = {"step": step, "prompts": self._prompts}
        try:
            reply = await self.inner.chat(request)
            if error := refused(request, reply):
                raise error
        except ConfigurationError:
            raise  # stops the run, and is not about this request
        except TeacherError as e:
            await asyncio.to_thread(self.tape.put_failure, self._provider, request, e, **where)
            raise
        # Mode refresh overwrites the reply of an earlier run but not of this one: two identical requests in flight must
        # get the same reply.
        overwrite = self.mode == "refresh" and key not in self._fresh
        self._fresh.add(key)
        recorded = await asyncio.to_thread(
            self.tape.put, self._provider, request, reply, **where, overwrite=overwrite, address=self._address
        )
        return dataclasses.replace(recorded, source=reply.source)

    async def close(self) -> None:
        """Closes the client and the tape."""
        if self.inner is not None:
            await self.inner.close()
        await asyncio.to_thread(self.tape.close)

    def _find(self, key: str, request: ChatRequest, step: int) -> ChatReply | TeacherError | None:
        if self.mode == "refresh" and key not in self._fresh:
            return None
        reply = self.tape.get(key)
        if self.mode == "replay":
            # A request can have both: a failure in step 3 and an answer in step 5. Each step replays its own result.
            failed = self.tape.failures(key)
            here = next((f for f in failed if f.step == step), None)
            if here is not None or (reply is None and failed):
                return (here or failed[-1]).error()
            if reply is None:
                raise ConfigurationError(explain_miss(self.tape, self._provider, request), cause="tape_miss")
        elif reply is None:
            lasting = [f for f in self.tape.failures(key) if is_lasting(f)]
            if lasting:
                error = lasting[-1].error()
                if all(f.step != step for f in lasting):  # a replay of this step must fail as well
                    self.tape.put_failure(self._provider, request, error, step=step, prompts=self._prompts)
                return error
        if reply is not None and self.mode == "record":
            self._compare_address(key)
        return reply

    def _compare_address(self, key: str) -> None:
        there = self.tape.address(key)
        if there is None or there == self._address or there in self._warned:
            return
        self._warned.add(there)
        log.warning(
            "teacher: answers on the tape %s came from %s, but the config names %s; if that is another model with the "
            "same name, use another teacher.tape.path or teacher.tape.mode=refresh",
            self.tape.path, *(where or f"{self._provider}'s own address" for where in (there, self._address)),
        )  # fmt: skip


def open_tape(mode: str, path: str, workdir: str | os.PathLike[str] | None, *, host: int = 0) -> Tape | None:
    """The tape of ``teacher.tape``; None in mode ``off``, and in mode ``record`` without a path or a workdir.

    With several hosts, each writes its own tape: host 0 ``tape.sqlite``, host 1 ``tape.1.sqlite``.

    Raises:
        ConfigurationError: the mode is unknown, or it needs a tape and there is none.
    """
    if mode not in MODES:
        raise ConfigurationError(f"teacher.tape.mode is {mode!r}; expected one of {', '.join(MODES)}")
    if mode == "off":
        return None
    if path:
        if mode == "replay":
            file = local_file(path, "teacher.tape.path")
        elif is_url(path):
            raise ConfigurationError(
                f"teacher.tape.path={path}: a tape in a bucket can only be replayed; leave it empty to record to the "
                "workdir's tape, which is uploaded, or name a local file"
            )
        else:
            file = pathlib.Path(path).expanduser()
    elif workdir is not None:
        file = pathlib.Path(workdir) / TAPE_NAME
    elif mode == "record":
        return None
    else:
        raise ConfigurationError(f"teacher.tape.mode is {mode!r}; expected a tape: name it with teacher.tape.path")
    if host and mode != "replay":
        file = file.with_name(f"{file.stem}.{host}{file.suffix}")
    return Tape(file, read_only=mode == "replay")
