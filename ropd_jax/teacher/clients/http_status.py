"""From an HTTP status, an error code and a ``Retry-After`` header to a typed error."""

from __future__ import annotations

import contextlib
import email.utils
import math
import re
import time

from ropd_jax.teacher.clients.errors import (
    BlockedError,
    ConfigurationError,
    ContextError,
    RequestError,
    TeacherError,
    TransientError,
)

# What the SDKs raise from the body of an error that is not of the form that they expect: a list, 100,000 brackets.
UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
_TRANSIENT_CAUSES = {408: "timeout", 409: "conflict", 429: "rate_limited", 503: "unavailable", 529: "overloaded"}
# A gateway that does not reach the server behind it; 52x are Cloudflare's.
_TRANSIENT_CAUSES |= dict.fromkeys((502, 504, 521, 522, 523, 524), "unavailable")
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
        message: the server's own message, without keys.
        provider, model: named in the error, so that a user knows which role to fix.
        code: the server's error code (OpenAI ``error.code``, Gemini ``ErrorInfo.reason``), "" if none.
        retry_after: seconds, if the server sent a time.
    """
    code = (code or "").lower()
    shown = " ".join(message.split())[:500] or "no message"
    head = f"{provider} answered {status} for model {model!r}: {shown}"
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
