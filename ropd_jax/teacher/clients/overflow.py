"""Requests that are too long: how servers report this, and how many output tokens would have fitted.

A context holds prompt and output together, so a smaller ``max_output_tokens`` can make a request fit::

    context 8,192    prompt 6,000 + max_output_tokens 4,096 = 10,096    refused
    room 2,192       prompt 6,000 + max_output_tokens 2,192 =  8,192    fits
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

_CODES = {
    "context_length_exceeded", "exceed_context_size_error", "context_window_exceeded", "string_above_max_length",
    "1261",  # Zhipu
}  # fmt: skip
_TOO_LONG = re.compile(
    r"context[ _]?(length|window|size|limit)|maximum context|model'?s? (maximum|max) (context|prompt|length|input)"
    r"|maximum (model|prompt|input|sequence|allowed) (length|tokens)|maximum allowed length"
    r"|input token count.*(exceeds|supports up to)|prompt (is|was) too long|prompt too long|input is too long"
    r"|prompt exceeds max|prompt contains [0-9]+ tokens|too many tokens(?!.{0,40}wait)"
    r"|max_model_len|max_seq_len|\bn_ctx\b"
    r"|exceeded model token limit|model max length exceeded|range of input length|`inputs` (tokens|must have)"
    r"|(prompt|input) length \(?[0-9]+.{0,20}exceed|exceeds? the (available )?context|input length.{0,40}exceed"
    r"|(body|request) too large for|request too large for model|max size: [0-9]+ tokens"
    r"|total number of tokens in the prompt|上下文|输入长度|超长",
    re.IGNORECASE | re.DOTALL,
)
# Larger than the per-minute allowance, so it would always be refused (OpenAI, Groq).
_TOO_LARGE_EVER = re.compile(r"(request|body) too large for", re.IGNORECASE)
_N = r"([0-9][0-9,]*)"
# (pattern, True if its second number is prompt and output together); the first number is what fits.
_ROOM = tuple(
    (re.compile(pattern.replace("#", _N), re.IGNORECASE | re.DOTALL), together)
    for pattern, together in (
        (r"context length is # tokens.{0,60}requested (?:about )?[0-9]+ tokens \(# (?:in|of) ", False),
        (r"context length is # tokens.{0,60}request has # input tokens", False),
        (r"context length of # tokens.{0,60}total of [0-9]+ tokens: # tokens from the input", False),
        (r"must be <= #\. Given: # `inputs` tokens and", False),
        (r"token limit: # \(requested: #\)", True),
        (r"Limit:? #, Requested:? #", True),
    )
)
_ANTHROPIC = re.compile(rf"context limit: {_N} \+ {_N} > {_N}", re.IGNORECASE)
_MOST = re.compile(
    rf"supports at most {_N} (?:completion|output) tokens"
    rf"|max_(?:completion_)?tokens`?:? [0-9]+ > {_N}, which is the maximum"
    rf"|range of max_(?:completion_)?tokens (?:should be|is) \[1, ?{_N}\]"
    rf"|max_(?:completion_)?tokens\b.{{0,60}}must be less than or equal to `?{_N}"
    rf"|exceed the model limit of {_N}"
    rf"|maxOutputTokens value of [0-9]+ but the supported range is from 1 \(inclusive\) to {_N} \(exclusive\)",
    re.IGNORECASE,
)


def is_overflow(status: int, message: str, codes: Collection[str] = ()) -> bool:
    """True if a server refuses a request because it is too long.

    Args:
        status: HTTP status. A 429 is about traffic, unless the request is larger than the per-minute allowance; a
            413 is always about the size.
    """
    if status == 429:
        return bool(_TOO_LARGE_EVER.search(message))
    if status in (401, 402, 403, 404, 503, 529):
        return False
    return status == 413 or bool(_CODES.intersection(codes)) or bool(_TOO_LONG.search(message))


def room_for_output(message: str, limit: int, counts: Mapping[str, int] | None = None) -> int | None:
    """The output tokens that fit in addition to the prompt, or None if the server's message does not show it.

    Args:
        message: the server's message.
        limit: ``max_output_tokens`` of the refused request, 0 if unknown.
        counts: the numbers in the server's answer, from which llama.cpp's ``n_ctx`` and ``n_prompt_tokens`` are used.

    >>> room_for_output("maximum context length is 8192 tokens. However, you requested 10096 tokens (6000 in the "
    ...                 "messages, 4096 in the completion)", 4096)
    2192
    """
    counts = counts or {}
    if "n_ctx" in counts and "n_prompt_tokens" in counts:
        return _positive(counts["n_ctx"] - counts["n_prompt_tokens"])
    if found := _ANTHROPIC.search(message):
        return _positive(_number(found[3]) - _number(found[1]))
    for pattern, together in _ROOM:
        if found := pattern.search(message):
            fits, used = _number(found[1]), _number(found[2])
            if together and not 0 < limit < used:
                return None
            room = fits - (used - limit if together else used)
            return _positive(room - room // 50 if "about" in found[0] else room)
    return None


def most_output(message: str) -> int | None:
    """The largest ``max_output_tokens`` that a model allows, if the server's message shows it."""
    found = _MOST.search(message)
    if not found:
        return None
    number = _number(next(group for group in found.groups() if group))
    return _positive(number - 1 if "exclusive" in found[0] else number)


def _number(text: str) -> int:
    return int(text.replace(",", "")[:12] or 0)


def _positive(number: int) -> int | None:
    return number if number > 0 else None
