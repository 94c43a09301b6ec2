"""Thinking that a model writes into its reply as text, and the answer after it.

A server with a parser for its model's thinking returns only the answer. Without one, or with the wrong one, the reply
is the model's raw output::

    <think>2 + 2 is 4.</think> It is 4.                        a block at the start
    2 + 2 is 4.\\n</think>\\n\\nIt is 4.                          the chat template wrote the block's start
    <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>It is 4.
    analysis2 + 2 is 4.assistantfinalIt is 4.                  the same, with special tokens removed by the server
    <think>2 + 2                                               it ended before an answer: `MalformedError`

An answer can also be about these tags. So a tag does not count in a code block, inside backticks, quotation marks or
brackets, or as a word in a sentence. If the question itself mentions a tag, only a block at the very start counts.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Sequence

from ropd_jax.teacher.clients.errors import MalformedError


@dataclasses.dataclass(frozen=True)
class Kind:
    """How one family of models writes its thinking.

    Attributes:
        start, end: patterns of the two marks.
        name: the text in a question that mentions it, in lowercase.
        prose: the mark can also be part of a format that a question requests.
    """

    start: re.Pattern[str]
    end: re.Pattern[str]
    name: str
    prose: bool = False


def _kind(start: str, end: str, name: str, *, prose: bool = False) -> Kind:
    return Kind(re.compile(start, re.IGNORECASE), re.compile(end, re.IGNORECASE), name, prose)


def _tag(name: str, *, prose: bool = False) -> Kind:
    return _kind(f"<{name}>", f"</{name}>", f"<{name}>", prose=prose)


THINK = _tag("think")  # Qwen, DeepSeek, GLM, Nemotron, Phi, MiniMax, Hunyuan, ERNIE, ...
KINDS = (
    THINK,
    _tag("seed:think"),
    _tag("longcat_think"),
    _kind(r"\[THINK\]", r"\[/THINK\]", "[think]"),  # Magistral
    _kind("◁think▷", "◁/think▷", "◁think▷"),  # Kimi
    _kind(r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>", "<|begin_of_thought|>"),  # Sky-T1, OpenThinker
    _kind(r"<\|START_THINKING\|>", r"<\|END_THINKING\|>", "<|start_thinking|>"),  # Command A
    _kind(r"<\|inner_prefix\|>", r"<\|inner_suffix\|>", "<|inner_prefix|>"),  # Apertus
    _kind(r"<\|channel>thought", r"<channel\|>", "<|channel>"),  # Gemma 4
    _kind("<unused94>", "<unused95>", "<unused94>"),  # MedGemma
    _tag("thinking", prose=True),
    _tag("thought", prose=True),  # EXAONE Deep
    _tag("thoughts", prose=True),
    _tag("reasoning", prose=True),
)

_FINAL = re.compile(r"<\|channel\|>\s*final\b[^<]{0,80}<\|message\|>")  # harmony, the format of gpt-oss
_CHANNEL = re.compile(r"\s*(?:<\|start\|>\s*assistant\s*)?<\|channel\|>")
_CHANNEL_END = re.compile(r"<\|(?:return|end|call)\|>\s*(?:<\|start\|>|\Z)")
_NEXT_TURN = re.compile(r"<\|end\|>\s*<\|start\|>\s*assistant\s*<\|channel\|>")
_BARE_FINAL = re.compile("assistantfinal")
_BARE_START = re.compile(  # not `analysisResult = ...`
    r"\s*analysis(?=(?:We|The|User|I|Let|Need|This|It|Question|Problem|Okay|OK|So|Just|They|Simple|To|First|Given)\b)"
)
_WRAPPED = re.compile(
    r"<(answer|response)>(?P<a>.*)</\1>|<\|(?:begin_of_solution|START_RESPONSE)\|>(?P<b>.*?)"
    r"(?:<\|(?:end_of_solution|END_RESPONSE)\|>)?",
    re.DOTALL | re.IGNORECASE,
)
_QUOTES = frozenset("\"'`“”„‘’«»‹›()[]{}（）「」『』《》\\")
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*\n.*?^[ \t]*\1[`~]*[ \t]*$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"(?<!`)(`+)(?!`)[^\n]*?(?<!`)\1(?!`)")
_MAX_BLOCKS, _MAX_PASSES = 100, 5  # at the start of one reply; a reply with more is not an answer


def answer_of(text: str, question: str = "") -> str:
    """The reply without its thinking, stripped.

    Args:
        question: the question; a tag that it mentions is not thinking inside the answer.

    Raises:
        MalformedError: the thinking has no end, or nothing follows it (cause ``thinking``).
    """
    text, asked = _stripped(text), question.lower()
    kinds = [kind for kind in KINDS if not (kind.prose and _is_asked_for(kind, asked))]
    for _ in range(_MAX_PASSES):  # repeat, because the removed text can hide a mark or a code fence
        before, text = text, _stripped(_without_blocks(text, asked, kinds))
        if text == before:
            return text
        if not text:
            raise _unended("nothing follows the thinking")
    raise _unended("the thinking has no clear end")


def _is_asked_for(kind: Kind, asked: str) -> bool:
    return kind.name in asked or (kind.name.strip("<>") in asked and "tag" in asked)


def _stripped(text: str) -> str:
    while text != (text := text.strip().strip("\ufeff")):
        pass
    return text


def _without_blocks(text: str, asked: str, kinds: Sequence[Kind]) -> str:
    whole, text = text, _after_channels(text, asked)
    for _ in range(_MAX_BLOCKS):
        starts = ((k, k.start.match(text)) for k in kinds)
        kind, opened = next(((k, m) for k, m in starts if m is not None), (None, None))
        if kind is None or opened is None:
            break
        text = text[_end(kind, text, opened.end()) :].strip()
    else:
        raise _unended(f"more than {_MAX_BLOCKS} blocks of thinking")
    for kind in kinds:
        if kind.name not in asked and kind.name.replace("<", "</") not in asked:
            text = _without_later_blocks(kind, text)
    wrapped = _WRAPPED.fullmatch(text) if text != whole else None
    return text if wrapped is None else (wrapped["a"] if wrapped["a"] is not None else wrapped["b"]).strip()


def after_drafts(text: str, *, anywhere: bool, until: int | None = None) -> str:
    """The text after the thinking in a reply that must be one JSON object; unchanged if there is no thinking.

    Text before the last end of a block never counts, because it can contain drafts of the object.

    Args:
        anywhere: also search if the block's start is not in the reply, as with some chat templates.
        until: marks from this position on do not count, because they are inside the object.

    Raises:
        MalformedError: nothing follows the thinking, or its end is ambiguous.
    """
    if _CHANNEL.match(text):
        if (n := len(_FINAL.findall(text[:until]))) > 1:  # one can be a quotation
            raise MalformedError(f"the reply has {n} final channels; expected one")
        after = _after_channels(text, "")
    else:
        kind = next((k for k in KINDS if k.start.match(text)), None)
        ends = kind if kind is not None else THINK if anywhere else None
        last = max((m.end() for m in ends.end.finditer(text[:until])), default=-1) if ends is not None else -1
        if last < 0 and kind is None:
            return text
        after = text[last:].strip() if last >= 0 else ""
    if not after:
        raise MalformedError("the reply ended inside its thinking; expected one JSON object after it")
    return after


def _unended(what: str) -> MalformedError:
    return MalformedError(f"{what}; expected an answer after the thinking", cause="thinking")


def _after_channels(text: str, asked: str) -> str:
    """The final channel of a reply in the harmony format, with or without its special tokens."""
    code = _Code(text)
    turn = None if "<|channel|>" in asked else _NEXT_TURN.search(text)
    if _CHANNEL.match(text) or (turn is not None and not code.holds(turn.start())):
        finals = list(_FINAL.finditer(text))
        if not finals:
            raise _unended("the reply has no final channel")
        answer = text[finals[0].end() :]
        ended = _CHANNEL_END.search(answer)
        answer = (answer[: ended.start()] if ended else answer).strip()
        if not answer:
            raise _unended("the reply's final channel is empty")
        return answer
    if "assistantfinal" in asked:
        return text
    for mark in _BARE_FINAL.finditer(text):
        if not code.holds(mark.start()):
            if not text[mark.end() :].strip():
                raise _unended("the reply's final channel is empty")
            return text[mark.end() :].strip()
    if _BARE_START.match(text):
        raise _unended("the reply has no final channel")
    return text


def _end(kind: Kind, text: str, at: int) -> int:
    """The end of the block whose start mark ends at ``at``.

    Raises:
        MalformedError: the block has no end.
    """
    ends = [m for m in kind.end.finditer(text, at) if not _is_quoted(text, m)]
    clear = (m for m in ends if _is_clear(text, m) or not _line_around(text, m)[1])
    found = next(clear, ends[0] if ends else None)
    if found is None:
        raise _unended("the thinking has no end")
    return found.end()


def _without_later_blocks(kind: Kind, text: str) -> str:
    """The text without blocks after its start, and without the text before an end mark that has no start.

    Raises:
        MalformedError: a start mark on its own line has no end.
    """
    kept, at = [], 0
    for start, end in _blocks(kind, text):
        kept.append(text[at:start].strip())
        at = end
    return "\n".join(part for part in (*kept, text[at:].strip()) if part) if at else text


def _blocks(kind: Kind, text: str) -> list[tuple[int, int]]:
    """The positions of the blocks after the start of a text, in order."""
    found = [m for pattern in (kind.start, kind.end) for m in pattern.finditer(text)]
    code = _Code(text) if found else None
    marks = [m for m in found if code is not None and not code.holds(m.start()) and not _is_quoted(text, m)]
    cuts: list[tuple[int, int]] = []
    opened: re.Match[str] | None = None
    for mark in sorted(marks, key=lambda m: m.start()):
        if mark.re is kind.start:
            if opened is None or _line_around(text, opened)[0]:
                opened = mark
        elif _is_clear(text, mark):
            if opened is None:
                if not kind.prose:
                    cuts = [(0, mark.end())]
            elif not _line_around(text, opened)[0] or "\n" in text[opened.end() : mark.start()]:
                cuts.append((opened.start(), mark.end()))
            opened = None
    if opened is not None and _line_around(text, opened) == ("", ""):
        raise _unended("the thinking has no end")
    return cuts


def _is_quoted(text: str, mark: re.Match[str]) -> bool:
    return text[mark.start() - 1 : mark.start()] in _QUOTES and text[mark.end() : mark.end() + 1] in _QUOTES


def _is_clear(text: str, mark: re.Match[str]) -> bool:
    """True if an end mark is at the start of its line or directly after a character, so not a word in a sentence."""
    before, _ = _line_around(text, mark)
    return not before or not text[mark.start() - 1].isspace()


def _line_around(text: str, mark: re.Match[str]) -> tuple[str, str]:
    """The text before and after the mark on its line, stripped."""
    stop = text.find("\n", mark.end())
    before = text[text.rfind("\n", 0, mark.start()) + 1 : mark.start()]
    return before.strip(), text[mark.end() : stop if stop >= 0 else len(text)].strip()


class _Code:
    """The code blocks and the texts in backticks."""

    def __init__(self, text: str):
        spans: list[tuple[int, int]] = [m.span() for m in _FENCE.finditer(text)]
        spans += [m.span() for m in _INLINE.finditer(text) if not _inside(spans, m.start())]
        self._spans: Sequence[tuple[int, int]] = sorted(spans)

    def holds(self, at: int) -> bool:
        """True if the character at this position is code."""
        return _inside(self._spans, at)


def _inside(spans: Sequence[tuple[int, int]], at: int) -> bool:
    place = bisect.bisect_right(spans, (at, 1 << 60)) - 1
    return place >= 0 and spans[place][0] <= at < spans[place][1]
