"""Turns a server's answer into a typed error: its HTTP status, its headers and the text of its body.

The same failure has many forms. A rate limit is a 429, a 403 from a proxy, a 400 with "ThrottlingException", or a 200
with ``{"error": {"code": 429}}``. So the text counts more than the status::

    text or code of a content filter         BlockedError          only this prompt
    key, credit, region, unknown model       ConfigurationError    every later call would fail too
    prompt and output over the context       ContextError          ``room``: the output tokens that would have fitted
    408, 429, 5xx, a gateway's own codes     TransientError        ``retry_after``: seconds that the server asks to wait
    another 4xx                              RequestError          only this request
"""

from __future__ import annotations

import contextlib
import email.utils
import math
import re
import time
from collections.abc import Collection, Mapping

from ropd_jax.teacher.clients.errors import (
    BlockedError,
    ConfigurationError,
    ContextError,
    RequestError,
    TeacherError,
    TransientError,
)
from ropd_jax.teacher.clients.failure_body import read_failure
from ropd_jax.teacher.clients.overflow import is_overflow, most_output, room_for_output

# What the SDKs raise if the body of an error has an unexpected form: a list, 100,000 brackets.
UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
_TRANSIENT_CAUSES = {
    408: "timeout", 409: "conflict", 424: "server_error", 425: "server_error", 429: "rate_limited",
    498: "overloaded",  # Groq's flexible tier
    499: "server_error",  # Google: cancelled on its side
    503: "unavailable", 504: "timeout", 524: "timeout", 529: "overloaded",
    521: "unavailable", 522: "unavailable", 523: "unavailable",  # Cloudflare: no server behind it
}  # fmt: skip
_CONFIG_CODES = {"unsupported_parameter", "unsupported_value"}
_KEY_CODES = {"invalid_api_key", "api_key_invalid", "account_deactivated", "account_suspended"}
_MODEL_CODES = {"model_not_found", "invalid_model"}
_QUOTA_CODES = {
    "insufficient_quota", "billing_not_active", "billing_hard_limit_reached", "exceeded_current_quota_error",
    "arrearage", "accountoverdueerror",
    "1113",  # Zhipu
}  # fmt: skip
_BLOCKED_CODES = {
    "content_filter", "content_policy_violation", "safety", "moderation", "invalid_prompt", "datainspectionfailed",
    "data_inspection_failed", "responsibleaipolicyviolation", "1301", "sensitive_words_detected",
}  # fmt: skip
_BUSY_CODES = {"1302", "1303", "1305", "rate_limit_exceeded", "rate_limit_error", "throttlingexception"}

_MODERATION = re.compile(
    r"moderation|\bflagged\b|content[ _-]?(policy|filter|management|inspection|security|violat|risk)"
    r"|(usage|safety|acceptable use) (guidelines|polic)|safety[ _](check|system|filter|setting)|inappropriate content"
    r"|sensitive (content|words?|information)|responsible ?ai|you have been blocked|敏感|不安全",
    re.IGNORECASE,
)
_STRUCTURE = re.compile(r"response_?format|schema|grammar", re.IGNORECASE)  # the server refuses the request's format
_ACCOUNT = re.compile(
    r"(account|access|organi[sz]ation|project|consumer|api.?key)\b.{0,60}(deactivated|terminated|suspended|disabled|banned)",
    re.IGNORECASE,
)
_KEY = re.compile(
    r"api.?key\b.{0,30}(not valid|invalid|expired|not found|missing|leaked|incorrect)|(invalid|incorrect) api.?key"
    r"|renew the api key",
    re.IGNORECASE,
)
_REGION = re.compile(
    r"(user location|country|territor(y|ies))\b.{0,60}(not supported|unsupported|not available|restricted)"
    r"|unsupported_country|not (available|supported) in your (country|region|location)",
    re.IGNORECASE,
)
_QUOTA = re.compile(
    r"insufficient[ _](quota|balance|credit|fund)|exceeded your current quota|billing (hard )?limit|credit balance"
    r"|(run|ran) out of credits|used all (available )?credits|more credits|spending limit|arrear|good standing|overdue"
    r"|欠费|余额不足|models-per-day",
    re.IGNORECASE,
)
_BUSY = re.compile(r"rate.?limit|too many requests|throttl|error code: 1015|concurrency limit", re.IGNORECASE)
_OVERLOADED = re.compile(r"overloaded|temporarily unavailable|server (is )?busy", re.IGNORECASE)
_INTERNAL = re.compile(r"had an error (while )?processing|internal (server )?error", re.IGNORECASE)
_WRONG_PATH = re.compile(r"unexpected endpoint or method|http request (was sent )?to (an )?https", re.IGNORECASE)
# The status implied by a body's text if the body has no status: 200 with {"error": {"type": "overloaded_error"}}.
_NAMED = tuple(
    (re.compile(pattern), status)
    for pattern, status in (
        (r"rate.?limit|too_?many|resource_?exhausted|throttl", 429),
        (r"overload|capacity", 529),
        (r"unavailable", 503),
        (r"timeout|deadline", 504),
        (r"authenticat|unauthori[sz]ed|api_key", 401),
        (r"permission|forbidden", 403),
        (r"not_?found", 404),
        (r"payment|quota", 402),
        (r"invalid|bad_?request|validation|exceed_context", 400),
        (r"internal|server_error|api_error|upstream|bad_gateway", 500),
    )
)
_NAMED_IN_WORDS = ((_KEY, 401), (_QUOTA, 402), (_MODERATION, 400), (_BUSY, 429), (_OVERLOADED, 529))
_BEHIND_GATEWAY = (400, 408, 413, 422, 429, 503, 504, 529)
WITHOUT_STATUS = 502  # for an error without a status


def failure_of(
    status: int,
    headers: Mapping[str, str],
    body: object,
    *,
    provider: str,
    model: str,
    key: str = "",
    limit: int = 0,
) -> TeacherError:
    """The typed failure for a complete answer.

    Args:
        status: HTTP status; 200 for an error inside a reply, whose status is then read from the body.
        headers: headers of the answer, with lowercase names.
        body: bytes, text, or the object decoded from them.
        provider, model: named in the error, so that a user knows which role to fix.
        key: the API key, which never appears in a message.
        limit: ``max_output_tokens`` of the request, 0 if unknown.
    """
    said = read_failure(body, key)
    answered = status
    if status < 400:
        status = said.status or _named_status(said.codes, said.message)
    elif status in (400, 500, 502) and said.status in _BEHIND_GATEWAY:
        status = said.status  # a gateway's status hides that of the server behind it
    wait = wait_of(headers)
    return error_for_status(
        status,
        said.message,
        provider=provider,
        model=model,
        codes=said.codes,
        retry_after=said.wait if wait is None else wait,
        limit=limit,
        counts=said.counts,
        answered=answered,
    )


def error_for_status(
    status: int,
    message: str,
    *,
    provider: str,
    model: str,
    code: str = "",
    codes: Collection[str] = (),
    retry_after: float | None = None,
    limit: int = 0,
    counts: Mapping[str, int] | None = None,
    answered: int | None = None,
) -> TeacherError:
    """The typed failure for an HTTP answer that is not 2xx.

    Args:
        status: HTTP status code, or the status that the answer means.
        message: the server's own message, without keys.
        provider, model: named in the error, so that a user knows which role to fix.
        code, codes: the server's error codes (OpenAI ``error.code``, Gemini ``ErrorInfo.reason``).
        retry_after: seconds to wait, if the server sent them.
        limit, counts: as for `room_for_output`.
        answered: the HTTP status of the answer, if it differs from ``status``.
    """
    known = {c.lower() for c in (code, *codes) if c}
    shown = " ".join(message.split())[:500] or "no message"
    number = f"{status}" if answered in (None, status) else f"{answered} (which means {status})"
    head = f"{provider} answered {number} for model {model!r}: {shown}"
    if known & _BLOCKED_CODES or (status in (400, 403, 422, 451) and _is_moderation(message)):
        return BlockedError(head)
    if wrong := _configuration(status, message, known, retry_after, head):
        return wrong
    if (most := most_output(message)) is not None:
        return RequestError(head, room=most)
    if is_overflow(status, message, known):
        return ContextError(head, room=room_for_output(message, limit, counts))
    if cause := _transient_cause(status, message, known):
        if status == 502 and answered in (None, 502) and cause == "server_error":
            cause = "unavailable"  # from a gateway that cannot reach the server behind it
        return TransientError(head, cause=cause, retry_after=retry_after)
    if known & _CONFIG_CODES:
        return ConfigurationError(
            f"{head.rstrip('.')}. Change this parameter of the role in the config.", cause="unsupported"
        )
    return RequestError(head)


def _is_moderation(message: str) -> bool:
    words = re.split(r"['\"]input['\"]", message)[0][:600]  # a server can quote a prompt that it could not parse
    return bool(_MODERATION.search(words)) and not (_ACCOUNT.search(message) or _STRUCTURE.search(words))


def _configuration(
    status: int, message: str, codes: Collection[str], wait: float | None, head: str
) -> ConfigurationError | None:
    """The error that stops the run, or None."""
    codes = set(codes)
    if "unknown_question" in codes:
        return ConfigurationError(head, cause="unknown_question")
    if status in (400, 403, 451) and (_REGION.search(message) or "unsupported_country_region_territory" in codes):
        return ConfigurationError(
            f"{head.rstrip('.')}. The service is not available in this machine's region.", cause="region"
        )
    if status == 402 or codes & _QUOTA_CODES or (status < 500 and _out_of_credit(message, codes, wait)):
        return ConfigurationError(f"{head.rstrip('.')}. Check the account's credit.", cause="insufficient_quota")
    refused = status in (401, 403) and not _BUSY.search(message)
    if refused or codes & _KEY_CODES or (status == 400 and _KEY.search(message)):
        return ConfigurationError(f"{head.rstrip('.')}. Check the API key and its permissions.", cause="unauthorized")
    if status == 407:
        return ConfigurationError(f"{head.rstrip('.')}. This machine's proxy requires a password.", cause="proxy")
    if status in (404, 405, 410) or codes & _MODEL_CODES or _WRONG_PATH.search(message):
        return ConfigurationError(f"{head.rstrip('.')}. Check the model name and teacher.base_url.", cause="not_found")
    return None


def _out_of_credit(message: str, codes: Collection[str], wait: float | None) -> bool:
    """True if waiting does not help. Gemini reports "exceeded your current quota" also for a per-minute quota."""
    if any("perday" in code for code in codes) or re.search(r"\blimit: 0\b", message):
        return True
    if any("perminute" in code for code in codes):
        return False
    found = _QUOTA.search(message)
    if found is None:
        return False
    return wait is None or "current quota" not in found[0].lower()


def _transient_cause(status: int, message: str, codes: Collection[str]) -> str | None:
    if status in _TRANSIENT_CAUSES:
        return _TRANSIENT_CAUSES[status]
    # A gateway's 500 and 502 can come from the server behind it.
    busy = (status < 500 or status in (500, 502)) and (_BUSY.search(message) or _BUSY_CODES.intersection(codes))
    if busy or any("throttl" in code for code in codes):
        return "rate_limited"
    if status < 500 and _OVERLOADED.search(message):
        return "overloaded"
    return "server_error" if status >= 500 or _INTERNAL.search(message) else None


def _named_status(codes: Collection[str], message: str) -> int:
    """The HTTP status implied by an error's code, type or text, such as 429 for ``rate_limit_exceeded``."""
    text = " ".join(sorted(codes))
    found = [status for pattern, status in _NAMED if pattern.search(text)]
    found += [status for pattern, status in _NAMED_IN_WORDS if pattern.search(message)]
    return found[0] if found else WITHOUT_STATUS


def wait_of(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait according to the headers, ``retry-after-ms`` (Azure) before ``retry-after``, or None."""
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        if (milliseconds := parse_retry_after(headers.get(name))) is not None:
            return milliseconds / 1000
    return parse_retry_after(headers.get("retry-after"))


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
