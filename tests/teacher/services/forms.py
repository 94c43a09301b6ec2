"""The form of a row: what a server sends, and what the client must return; and bodies in the providers' formats."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from ropd_jax.teacher import (
    TeacherError,
    TransientError,
    Usage,
)

LIMIT = 4096  # max_output_tokens of every request
NO_USAGE = Usage()


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer of a server. ``body`` is JSON unless it is text or bytes; ``cut`` closes the connection within it."""

    body: Any
    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    cut: bool = False

    @property
    def data(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return (self.body if isinstance(self.body, str) else json.dumps(self.body)).encode()


@dataclasses.dataclass(frozen=True)
class Says:
    """A reply with this text and these tokens."""

    text: str = "four"
    usage: Usage | None = None  # None: not checked


@dataclasses.dataclass(frozen=True)
class Fails:
    """A failure of this type and cause.

    Attributes:
        says: a part of the message, so that the server's own message reaches the user.
        wait: ``retry_after`` in seconds.
        room: the ``max_output_tokens`` that would have fitted.
        usage: tokens that are billed anyway; None: not checked.
    """

    type: type[TeacherError]
    cause: str
    says: str = ""
    wait: float | None = None
    room: int | None = None
    usage: Usage | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One behaviour.

    Attributes:
        name: unique.
        service: the service for which it was reported.
        what: the behaviour, in a few words.
        thread: ``owner/repository#number`` of a public report.
        answers: the server's answers, in order; the last one is repeated.
        outcome: the outcome of the first answer.
        limits: ``max_output_tokens`` of each request, if two attempts are allowed; None means one request, or two for a
            transient failure.
        last: the outcome of all attempts; None means that of the first answer.
    """

    name: str
    service: str
    what: str
    thread: str
    answers: Answer | tuple[Answer, ...]
    outcome: Says | Fails
    limits: tuple[int, ...] | None = None
    last: Says | Fails | None = None

    @property
    def sent(self) -> tuple[Answer, ...]:
        return self.answers if isinstance(self.answers, tuple) else (self.answers,)

    @property
    def requests(self) -> tuple[int, ...]:
        """``max_output_tokens`` of each request, with two attempts."""
        if self.limits is not None:
            return self.limits
        again = isinstance(self.outcome, Fails) and self.outcome.type is TransientError
        return (LIMIT,) * (2 if again else 1)


def completion(text: Any = "four", reason: Any = "stop", *, usage: Any = None, **more: Any) -> dict:
    """A chat completion in OpenAI's format; ``more`` has keys of its choice."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return {"id": "1", "object": "chat.completion", "model": "m", "choices": [choice | more], "usage": usage}


def generated(text: str | None = "four", reason: str = "STOP", *, usage: Any = None, **more: Any) -> dict:
    """A reply in Gemini's format; ``more`` has keys of the body."""
    candidate: dict = {"finishReason": reason, "index": 0}
    if text is not None:
        candidate["content"] = {"role": "model", "parts": [{"text": text}]}
    return {"candidates": [candidate], "modelVersion": "m"} | ({} if usage is None else {"usageMetadata": usage}) | more


def failed(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> Answer:
    """``{"error": {"message": ...}}`` with a status."""
    return Answer({"error": {"message": message} | more}, status, headers or {})


def google(status: int, name: str, message: str, *details: dict) -> Answer:
    """Google's form of an error."""
    error = {"code": status, "message": message, "status": name}
    return Answer({"error": error | ({"details": list(details)} if details else {})}, status)


def info(kind: str, **keys: Any) -> dict:
    return {"@type": f"type.googleapis.com/google.rpc.{kind}"} | keys


FINE = Answer(completion())
MADE = Answer(generated())
BUSY = "rate_limited"
NO_KEY = "unauthorized"
NO_CREDIT = "insufficient_quota"
