"""What a teacher is to us: a chat that takes messages and returns text, or fails in one of a few typed ways.

Everything above this file (rubricator, verifier, references) speaks ``ChatRequest`` and ``ChatReply``; everything
below it (gemini, openai, scripted) turns them into one provider's wire format. A failure is a type with a short
``cause``, never a number: the caller makes the rollouts concerned *unscored* and counts them by cause.

``ConfigurationError`` is the only failure that no later request can escape (key, model, address); it stops the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import logging
import math
import os
import re
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, Protocol

from ropd_jax.types import Message, UserError

log = logging.getLogger(__name__)
Purpose = Literal["reference", "rubric", "verify", "score", "judge"]


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """One call to a chat model.

    Attributes:
        purpose: which role asks; for counters and priorities only, it is not on the wire.
        messages: the conversation; the last one is the user's.
        model: the provider's model name.
        temperature: None sends none, so that the provider's own default holds.
        max_output_tokens: upper bound of the reply, thinking included.
        json_schema: JSON Schema that the reply must satisfy, or None for free text.
        sample_index: which of several samples of the same conversation this is; sent as the seed.
    """

    purpose: Purpose
    messages: tuple[Message, ...]
    model: str
    temperature: float | None = None
    max_output_tokens: int = 4096
    json_schema: dict | None = None
    sample_index: int = 0


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of one call; None where the provider did not say.

    ``output_tokens`` is all that was generated, ``thought_tokens`` the part of it that was thinking;
    ``cached_tokens`` is the part of ``input_tokens`` that a prompt cache served.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    thought_tokens: int | None = None
    cached_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class ChatReply:
    """What came back: the text, why it ended (``stop``, else an error was raised), tokens, the model that answered.

    ``source`` says whether tokens were spent: ``live``; ``shared`` with an identical request in flight, whose asker
    counts them; ``tape``, a recorded reply.
    """

    text: str
    finish_reason: str = "stop"
    usage: Usage = Usage()
    model: str = ""
    latency_s: float | None = None  # the provider's own time, without waiting in our queue; None where not measured
    source: Literal["live", "shared", "tape"] = "live"


class ChatClient(Protocol):
    """Anything that can chat. ``chat`` raises a ``TeacherError``; ``close`` runs on the loop that used the client."""

    async def chat(self, request: ChatRequest) -> ChatReply: ...

    async def close(self) -> None: ...


class TeacherError(Exception):
    """A call that gave nothing usable. ``cause`` is short snake_case, for counters and for ``Judgement.causes``.

    ``usage`` is what the provider bills all the same (a truncated reply, a refusal); None where it did not say.
    """

    default_cause = "teacher"

    def __init__(self, message: str, *, cause: str | None = None, usage: Usage | None = None):
        super().__init__(message)
        self.cause = cause or self.default_cause
        self.usage = usage


class ConfigurationError(TeacherError, UserError):
    """Key missing or refused, unknown model, wrong address, unsupported parameter: stop the run and say so."""

    default_cause = "configuration"


class BudgetError(ConfigurationError):
    """A cap of ``teacher.budget`` is reached: the run saves a checkpoint and ends with exit code 4."""

    default_cause = "budget"


class TransientError(TeacherError):
    """408, 429, 5xx, connection, timeout: worth another try. ``retry_after`` is the server's wish in seconds."""

    default_cause = "transient"

    def __init__(self, message: str, *, cause: str | None = None, retry_after: float | None = None, **more):
        super().__init__(message, cause=cause, **more)
        self.retry_after = retry_after


class RequestError(TeacherError):
    """The server refused this one request (400, 413, 422) for no reason that we know; others may still pass."""

    default_cause = "bad_request"


class MalformedError(TeacherError):
    """The reply is not what was asked for; the message says what was wrong and is sent back in the one re-ask."""

    default_cause = "malformed"


class TruncatedError(TeacherError):
    """The reply ended at the token limit (``finish_reason`` length)."""

    default_cause = "truncated"


class BlockedError(TeacherError):
    """A safety filter or a refusal; asking again would not help."""

    default_cause = "blocked"


class ContextError(TeacherError):
    """The request is longer than the model's context."""

    default_cause = "context"


STRUCTURES = ("json_schema", "json_object", "text")  # what a server may be asked to bind its reply to, the best first
_STRUCTURE_TEXT = re.compile(
    r"response_?format|json_?(schema|object|mode)|response_?mime|schema|structured|guided|grammar", re.IGNORECASE
)


class Structures:
    """How each model is asked for JSON: by schema, and where its server refuses that, by less, for the whole run."""

    def __init__(self):
        self._known: dict[str, str] = {}

    def of(self, request: ChatRequest) -> str:
        """The best of ``STRUCTURES`` that the model's server has not refused; ``text`` for a request without schema."""
        return "text" if request.json_schema is None else self._known.get(request.model, STRUCTURES[0])

    async def chat(self, request: ChatRequest, ask: Callable[[ChatRequest, str], Awaitable[ChatReply]]) -> ChatReply:
        """The reply to ``ask(request, structure)``, with less structure while the server refuses it."""
        while True:
            structure = self.of(request)
            try:
                return await ask(request, structure)
            except TeacherError as e:
                if not self._refused(request, structure, e):
                    raise

    def _refused(self, request: ChatRequest, structure: str, error: TeacherError) -> bool:
        """Whether the error refuses ``structure``; if so it is not asked for again."""
        refusal = isinstance(error, RequestError) or error.cause == "unsupported"
        if structure == STRUCTURES[-1] or not refusal or not _STRUCTURE_TEXT.search(str(error)):
            return False
        less = STRUCTURES[STRUCTURES.index(structure) + 1]
        if STRUCTURES.index(self.of(request)) < STRUCTURES.index(less):
            self._known[request.model] = less
            log.warning("teacher: %r refuses %s; it is asked for %s from now on", request.model, structure, less)
        return True


_TRANSIENT_CAUSES = {408: "timeout", 409: "conflict", 429: "rate_limited", 503: "unavailable", 529: "overloaded"}
_CONTEXT_TEXT = re.compile(
    r"context[ _]length|context window|maximum context|input token count.*exceeds|prompt is too long|too many tokens",
    re.IGNORECASE | re.DOTALL,
)
_CONFIG_CODES = {
    "model_not_found", "invalid_model", "invalid_api_key", "api_key_invalid", "insufficient_quota",
    "unsupported_parameter", "unsupported_value", "billing_not_active",
}  # fmt: skip
_BLOCKED_CODES = {"content_filter", "content_policy_violation", "safety"}


def error_for_status(
    status: int, message: str, *, provider: str, model: str, code: str = "", retry_after: float | None = None
) -> TeacherError:
    """The typed failure for an HTTP answer that is not 2xx.

    Args:
        status: HTTP status code.
        message: the server's own words, already free of keys.
        provider, model: named in the message, so that a user knows which role to mend.
        code: the server's error code (OpenAI ``error.code``, Gemini ``ErrorInfo.reason``), "" if none.
        retry_after: seconds, where the server said so.
    """
    code = (code or "").lower()
    said = " ".join(message.split())[:500] or "no message"
    head = f"{provider} answered {status} for model {model!r}: {said}"
    if code in _BLOCKED_CODES:
        return BlockedError(head)
    if code == "context_length_exceeded" or (status in (400, 413, 422) and _CONTEXT_TEXT.search(message)):
        return ContextError(head)
    if status in (401, 403) or code in ("invalid_api_key", "api_key_invalid"):
        return ConfigurationError(f"{head}. Check the API key and its rights.", cause="unauthorized")
    if status == 404 or code in ("model_not_found", "invalid_model"):
        return ConfigurationError(f"{head}. Check the model name and teacher.base_url.", cause="not_found")
    if status == 402 or code in ("insufficient_quota", "billing_not_active"):
        return ConfigurationError(f"{head}. Check the account's credit.", cause="insufficient_quota")
    if code == "unknown_question":
        return ConfigurationError(head, cause=code)
    if code in _CONFIG_CODES:
        return ConfigurationError(f"{head}. Change this parameter of the role in the config.", cause="unsupported")
    if status in _TRANSIENT_CAUSES or status >= 500:
        cause = _TRANSIENT_CAUSES.get(status, "server_error")
        return TransientError(head, cause=cause, retry_after=retry_after)
    return RequestError(head)


def parse_retry_after(value: str | None, *, now: float | None = None) -> float | None:
    """Seconds to wait, from a ``Retry-After`` header (seconds or HTTP date) or Gemini's ``"12s"``; None if unreadable.

    >>> parse_retry_after("1.5"), parse_retry_after("12s"), parse_retry_after("soon")
    (1.5, 12.0, None)
    """
    text = (value or "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?s?", text):
        seconds = float(text.removesuffix("s"))
        return seconds if math.isfinite(seconds) else None
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        when = email.utils.parsedate_to_datetime(text)
        return max(0.0, when.timestamp() - (time.time() if now is None else now))
    return None


def is_loopback(base_url: str) -> bool:
    """Whether the address is this machine, so that no key is needed."""
    return (urllib.parse.urlsplit(base_url).hostname or "") in ("localhost", "127.0.0.1", "::1")


def api_key(provider: str, names: Sequence[str], *, named: str = "", base_url: str = "") -> str:
    """The key from the environment: from ``named`` if the config names a variable, else from the first of ``names``.

    A server on loopback needs none: "local" is sent where no variable is named and none of ``names`` is set.

    Raises:
        ConfigurationError: no such variable is set; the message names it and the remedy, and holds no key.
    """
    if named and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", named):
        raise ConfigurationError(
            "teacher.api_key_env is not the name of an environment variable (its value is not shown, in case it is "
            f"the key itself); expected a name such as {names[0]}. Keys belong in the environment, never in a config.",
            cause="missing_key",
        )
    tried = (named,) if named else tuple(names)
    for name in tried:
        if key := os.environ.get(name, "").strip():
            return key
    if not named and is_loopback(base_url):
        return "local"
    raise ConfigurationError(
        f"no API key for the {provider} teacher: the environment variable {' or '.join(tried)} is not set. Set it "
        f"(export {tried[0]}=...), name another one with teacher.api_key_env, or use teacher.provider='scripted'.",
        cause="missing_key",
    )


def redact(text: str, key: str) -> str:
    """The text without the key."""
    return text.replace(key, "<api key>") if key and key != "local" else text
