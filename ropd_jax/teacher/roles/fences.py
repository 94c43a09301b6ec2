"""Fences: how texts by other authors are enclosed in our prompts.

Each text is enclosed by two marker lines that carry a token for this request::

    =====[ begin answer 2 | 3fd1c09a77e2 ]=====
    (the text, verbatim)
    =====[ end answer 2 | 3fd1c09a77e2 ]=====

The token is a hash of the seed and of the *stable* texts (question, rubric). It is rehashed as long as it occurs in any
text of the group, in this call or another. So even a hostile text cannot close its fence or open another one, and a
resumed run sends the same bytes. All calls of a group carry the same token, so the part before the answers is identical
in each call, byte for byte, and can come from a provider's prompt cache. ``parse_blocks`` reads back exactly what
``render`` wrote.

Some characters would not reach the judge as they are. `visible` writes such a character as its number,
``[[U+D800 3fd1c09a77e2]]``:

    cannot be sent              lone surrogates
    cannot be seen              control characters except tab and line breaks, zero-width characters, bidirectional
                                overrides, fillers, tag characters, and also joiners inside an emoji
    start a special token       ``<|im_end|>`` is shown as ``[[U+003C 3fd1c09a77e2]]|im_end|>`` (`special_tokens`)

The number is visible, so an answer about chat templates can still be judged. It is reversible, because no text has the
token: ``parse_blocks`` writes the characters back.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from ropd_jax.teacher.roles import special_tokens

TOKEN_LENGTH = 12
MIN_CUT = 100  # characters; a shorter part of an answer is useless to a verifier
# Unicode's default ignorable code points, the line separators and the interlinear marks. U+FE0F is not included: it
# follows half of all emoji and shows in their colour.
_UNSEEN = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_HIDDEN = re.compile(f"[{_UNSEEN}]|{special_tokens.FIRST}")
_FIRST_MARKER = re.compile(rf"=====\[ begin [a-z]+(?: [0-9]+)? \| ([0-9a-f]{{{TOKEN_LENGTH}}}) \]=====\n")


def make_token(seed: int | str, stable: Iterable[str], avoid: Iterable[str] = ()) -> str:
    """12 hex digits that occur in none of the texts. The same arguments give the same token.

    Args:
        stable: the texts from which the token is made, the same in all calls of a group.
        avoid: every other text of the group. They change the token only if they contain it.
    """
    stable = list(stable)
    texts = [*stable, *avoid]
    digest = hashlib.sha256(f"fence:{seed}".encode())
    for text in stable:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)  # the length keeps ["ab", "c"] and ["a", "bc"] apart
    while True:
        token = digest.hexdigest()[:TOKEN_LENGTH]
        if not any(token in text for text in texts):
            return token
        digest = hashlib.sha256(digest.digest())


def block(label: str, text: str, token: str) -> str:
    """One fenced text. ``label`` is a lower-case word with or without a number, e.g. ``answer 2``."""
    return f"=====[ begin {label} | {token} ]=====\n{visible(text, token)}\n=====[ end {label} | {token} ]====="


def visible(text: str, token: str) -> str:
    """The text, with a number for each character that a judge would not see as it is (see the module's docstring).

    >>> visible("<|im_end|>", "3fd1c09a77e2")
    '[[U+003C 3fd1c09a77e2]]|im_end|>'
    """
    before = ""
    while text != before:  # repeat: a number's brackets can complete a token, as in [e~ and a zero-width space
        before, text = text, _HIDDEN.sub(lambda m: f"[[U+{ord(m.group()):04X} {token}]]", text)
    return text


def render(answers: Sequence[str], token: str, label: str = "answer") -> str:
    """All texts, each in its fence, numbered from 1."""
    return "\n\n".join(block(f"{label} {i}", text, token) for i, text in enumerate(answers, 1))


def token_in(text: str) -> str:
    """The token of the fences in a prompt, or "". The first marker decides which token is the real one."""
    first = _FIRST_MARKER.search(text)
    return first.group(1) if first else ""


def outside(text: str) -> str:
    """The text of a prompt without its fenced blocks: our own text before and after the material."""
    token = token_in(text)
    if not token:
        return text
    blocks = rf"=====\[ begin ([a-z]+(?: [0-9]+)?) \| {token} \]=====\n.*?\n=====\[ end \1 \| {token} \]====="
    return re.sub(blocks, "", text, flags=re.DOTALL)


def parse_blocks(text: str) -> list[tuple[str, str]]:
    """(label, text) of every fenced block, in order."""
    token = token_in(text)
    if not token:
        return []
    pattern = re.compile(
        rf"=====\[ begin ([a-z]+(?: [0-9]+)?) \| {token} \]=====\n(.*?)\n=====\[ end \1 \| {token} \]=====", re.DOTALL
    )
    escaped = re.compile(rf"\[\[U\+([0-9A-F]{{4,6}}) {token}\]\]")
    return [(label, escaped.sub(lambda m: chr(int(m.group(1), 16)), body)) for label, body in pattern.findall(text)]


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
