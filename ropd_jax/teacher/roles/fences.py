"""Fences: how texts of other authors are enclosed in a prompt of ours.

Each text is enclosed by two marker lines that carry a token of this request::

    =====[ begin answer 2 | 3fd1c09a77e2 ]=====
    (the text, verbatim)
    =====[ end answer 2 | 3fd1c09a77e2 ]=====

The token is a hash of the seed and of all texts, and is hashed until it occurs in none of them. So even a hostile text
cannot close its fence or open another one, and a resumed run sends the same bytes. ``parse_blocks`` reads back
exactly what ``render`` wrote.

Some characters cannot be sent as JSON or UTF-8, or cannot be seen: lone surrogates, control characters except tab and
line breaks, bidirectional overrides. They are written as ``[[U+D800 3fd1c09a77e2]]``, which the verifier can see. It
is reversible, because no text contains the token.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

TOKEN_LENGTH = 12
MIN_CUT = 100  # characters; less of an answer is of no use to a verifier
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_FIRST_MARKER = re.compile(rf"=====\[ begin [a-z]+(?: [0-9]+)? \| ([0-9a-f]{{{TOKEN_LENGTH}}}) \]=====\n")


def make_token(seed: int | str, texts: Iterable[str]) -> str:
    """12 hex digits that occur in none of ``texts``. The same arguments give the same token."""
    texts = list(texts)
    digest = hashlib.sha256(f"fence:{seed}".encode())
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)  # the length keeps ["ab", "c"] and ["a", "bc"] apart
    while True:
        token = digest.hexdigest()[:TOKEN_LENGTH]
        if not any(token in text for text in texts):
            return token
        digest = hashlib.sha256(digest.digest())


def block(label: str, text: str, token: str) -> str:
    """One fenced text. ``label`` is a lower-case word with or without a number, e.g. ``answer 2``."""
    safe = _UNSAFE.sub(lambda m: f"[[U+{ord(m.group()):04X} {token}]]", text)
    return f"=====[ begin {label} | {token} ]=====\n{safe}\n=====[ end {label} | {token} ]====="


def render(answers: Sequence[str], token: str, label: str = "answer") -> str:
    """All texts, each in its fence, numbered from 1."""
    return "\n\n".join(block(f"{label} {i}", text, token) for i, text in enumerate(answers, 1))


def parse_blocks(text: str) -> list[tuple[str, str]]:
    """(label, text) of every fenced block, in order. The first marker decides which token is the real one."""
    first = _FIRST_MARKER.search(text)
    if not first:
        return []
    token = first.group(1)
    pattern = re.compile(
        rf"=====\[ begin ([a-z]+(?: [0-9]+)?) \| {token} \]=====\n(.*?)\n=====\[ end \1 \| {token} \]=====", re.DOTALL
    )
    escaped = re.compile(rf"\[\[U\+([0-9A-F]{{4}}) {token}\]\]")
    return [
        (label, escaped.sub(lambda m: chr(int(m.group(1), 16)), body))
        for label, body in pattern.findall(text, first.start())
    ]


def cut_middle(text: str, limit: int) -> str:
    """The text, or its start and end around a line with the number of missing characters, at most ``limit`` characters.

    >>> cut_middle("a" * 150 + "b" * 150, 100)[33:67]
    'aa\\n[... 230 characters cut ...]\\nbb'
    """
    if len(text) <= limit:
        return text
    mark = "\n[... {} characters cut ...]\n"
    kept = limit - len(mark.format(len(text)))
    head, tail = kept - kept // 2, kept // 2
    return text[:head] + mark.format(len(text) - kept) + text[len(text) - tail :]


def without_surrogates(text: str) -> str:
    """The text with each lone surrogate replaced by U+FFFD, so that it can be written as UTF-8."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)
