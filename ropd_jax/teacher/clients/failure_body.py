"""Reads the body of a failed call, in any server's form.

{"error": {"message": "...", "code": 429}}      OpenAI, Gemini, vLLM, OpenRouter, DeepSeek
{"error": "..."}                                Ollama, LM Studio, TGI
{"message": "...", "code": "..."}               DashScope, early vLLM
{"detail": [{"loc": [...], "msg": "..."}]}      FastAPI
[{"error": {...}}]                              Gemini behind its OpenAI address
{"error": {"message": "{\\"error\\": ...}"}}      a gateway quoting another server
a web page, plain text, nothing                  a proxy
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ropd_jax.teacher.clients.endpoint import redact

MAX_TEXT = 4_000  # characters of a message that are examined
_DEPTH = 5  # nesting of bodies quoted in bodies
_MESSAGES = ("message", "msg", "error_msg", "errorMessage", "detail", "title", "status_msg")
_CODES = ("code", "type", "status", "reason", "error_type", "error_code", "quotaId")
_STATUS = ("code", "status", "status_code", "statusCode")
_WAITS = ("retryDelay", "retry_after", "estimated_time")
# "try again in 1m9.696s", "retry after 45 seconds", "Please retry in 38.5s", "try again in 579ms"
_WAIT_TEXT = re.compile(
    r"(?:try again|retry|retrying|wait)(?: your request)? (?:in|after|for)\s+((?:[0-9]+(?:\.[0-9]+)?\s*[a-z]+[\s,]*)+)",
    re.IGNORECASE,
)
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)", re.IGNORECASE)
_UNITS = (("ms", 1e-3), ("mil", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0))


@dataclasses.dataclass(frozen=True)
class Said:
    """A server's report of a failure.

    Attributes:
        message: its message on one line, "" if there is none.
        codes: its codes, types and reasons, in lowercase.
        status: the HTTP status named in the body, or None.
        wait: the seconds that it asks to wait, or None.
        counts: numbers by name, such as llama.cpp's ``n_ctx``.
    """

    message: str = ""
    codes: frozenset[str] = frozenset()
    status: int | None = None
    wait: float | None = None
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)


def read_failure(body: bytes | str | Any, key: str = "") -> Said:
    """Reads a body, or an object decoded from one. Accepts any form, and never executes anything.

    Args:
        key: the API key; it must not get into a message if the server sends it back.
    """
    if isinstance(body, bytes):
        body = body.decode("utf-8", "replace")
    if isinstance(body, str):
        text = body.strip().removeprefix("\ufeff")
        decoded = _decoded(redact(text, key))
        if not isinstance(decoded, dict | list):
            message = _flat(redact(_without_markup(text), key))
            return Said(message=message, wait=_wait_in(message))
        body = decoded
    messages: list[str] = []
    codes: set[str] = set()
    statuses: list[int] = []
    waits: list[float] = []
    counts: dict[str, int] = {}
    for level in _levels(body, _DEPTH):
        texts = [_flat(v) for k in _MESSAGES if isinstance(v := level.get(k), str)]
        if texts and isinstance(loc := level.get("loc"), list):  # FastAPI: the parameter that the message is about
            texts[0] = f"{'.'.join(str(part)[:60] for part in loc[:6])}: {texts[0]}"
        messages += [t for t in texts[:1] if t and not isinstance(_decoded(t), dict | list)]
        for name in _CODES:
            value = level.get(name)
            if isinstance(value, str | int) and not isinstance(value, bool):
                codes.add(str(value).lower()[:100])
        for name in _STATUS:
            if (number := _whole(level.get(name))) is not None and 400 <= number <= 599:
                statuses.append(number)
        waits += [w for name in _WAITS if (w := _seconds(level.get(name))) is not None]
        counts |= {k: n for k, v in level.items() if k.startswith("n_") and (n := _whole(v)) is not None}
    message = _flat(redact(": ".join(dict.fromkeys(messages)), key))
    wait = waits[0] if waits else _wait_in(message)
    return Said(message, frozenset(codes), statuses[0] if statuses else None, wait, counts)


def _levels(body: Any, depth: int) -> Iterator[dict]:
    """The objects in a body that can carry information, innermost ``error`` first."""
    if depth < 0:
        return
    if isinstance(body, str):
        yield from _levels(_decoded(body), depth - 1) if body.lstrip()[:1] in ("{", "[") else ()
        return
    if isinstance(body, list):
        for item in body[:3]:
            yield from _levels(item, depth) if isinstance(item, dict) else ()
        return
    if not isinstance(body, dict):
        return
    error = body.get("error")
    if isinstance(error, str) and not isinstance(_decoded(error), dict | list):
        yield {"message": error}
    else:
        yield from _levels(error, depth - 1)
    yield from _levels(body.get("errors"), depth - 1)
    yield body
    # A body inside a message, Google's details, Azure's inner error, MiniMax's answer.
    for name in ("message", "detail", "details", "violations", "innererror", "base_resp"):
        yield from _levels(body.get(name), depth - 1)
    metadata = body.get("metadata")
    if isinstance(metadata, dict):  # OpenRouter: the message of the server behind it, its moderation reasons
        raw = metadata.get("raw")
        yield {"message": raw} if isinstance(raw, str) and raw.lstrip()[:1] not in ("{", "[") else {}
        yield from _levels(raw, depth - 1)
        if metadata.get("reasons") and "flagged_input" in metadata:
            yield {"code": "moderation"}


def _decoded(text: str) -> Any:
    """The value of a JSON text; None for any other text."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _without_markup(text: str) -> str:
    """The text of a web page, without its tags, scripts and styles."""
    if not text.startswith("<"):
        return text
    text = re.sub(r"<(script|style)\b.*?</\1\s*>", " ", text[:50_000], flags=re.IGNORECASE | re.DOTALL)
    return re.sub(r"<[^<>]*>", " ", text)


def _flat(text: str) -> str:
    return " ".join(text[: 4 * MAX_TEXT].split())[:MAX_TEXT]


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12 else None


def _seconds(value: Any) -> float | None:
    """Seconds from 20, "26s" or "1m9s"."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if 0 <= value < 1e6 else None
    if not isinstance(value, str):
        return None
    return float(value) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,9})?", value) else _duration(value)


def _wait_in(message: str) -> float | None:
    """The wait that a message asks for, in seconds.

    >>> _wait_in("Please try again in 1m9.5s."), _wait_in("Please retry after 45 seconds."), _wait_in("try again later")
    (69.5, 45.0, None)
    """
    found = _WAIT_TEXT.search(message)
    return _duration(found[1]) if found else None


def _duration(text: str) -> float | None:
    total, seen = 0.0, False
    for number, unit in _PART.findall(text[:60]):
        scale = next((scale for start, scale in _UNITS if unit.lower().startswith(start)), None)
        if scale is None or len(number) > 12:
            break
        total, seen = total + float(number) * scale, True
    return total if seen else None
