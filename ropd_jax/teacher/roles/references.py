"""References: the teacher's own answers to the prompt, m samples.

A model's output is not always an answer. `parse_reference` raises a ``MalformedError`` with one of these causes, and
such a sample is requested again with another seed (`Teacher`):

    thinking    its thinking has no end, or nothing follows it (`thinking`)
    empty       nothing, or whitespace
    junk        only punctuation; one line or short phrase repeated; our own prompt; a plain refusal

One short word or number is an answer.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from ropd_jax.teacher.clients.chat import ChatRequest
from ropd_jax.teacher.clients.errors import MalformedError
from ropd_jax.teacher.roles import fences, templates, thinking
from ropd_jax.types import Message

TEMPLATE = "reference.v1"
PLAIN_TEMPLATE = "reference_plain.v1"  # does not request a form, and so not one step of arithmetic per line
UNUSABLE = ("thinking", "empty", "junk")  # causes for which a sample is requested again
MORE_SEEDS = 2  # how often an unusable sample is requested again
# Sample i is requested again as i + SEED_STRIDE. All other sample indices are far smaller: those of references, those
# of `collect_references` for equal answers, and that of the scripted teacher's own solution.
SEED_STRIDE = 1_000_000

_LOOP_CHARS = 600  # a shorter text is not a loop: an answer can be "ha ha ha"
_LOOP_TIMES, _LOOP_SHARE = 8, 0.5
_LOOP_READ = 20_000  # characters of a text that are examined
_REPEATING = re.compile(
    r"\b(?:times|repeat\w*|lines|copies|mal|wiederhol\w*|fois|répét\w*|veces|repit\w*|repet\w*)\b|[次遍]|重复",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"(?:(?:i['’]m|i am|we['’]re|we are)?\s*(?:very |so |really )?sorry|i apologi[sz]e|my apologies|unfortunately"
    r"|as an ai(?: language model| assistant| model)?)?[\s,.!;:–—-]*(?:but|however)?[\s,]*"
    r"(?:i|we)\s*(?:can(?:['’]t|not| not)|am (?:unable|not able) to|['’]m (?:unable|not able) to|won['’]t|will not"
    r"|are (?:unable|not able) to)\s+"
    r"(?:help(?! but)|assist|comply|fulfil+|engage|participate|discuss|continue with|do that"
    r"|provide (?:that|this|assistance|help)"
    r"|answer (?:that|this)|respond to (?:that|this))\b"
    r"|(?:es tut mir leid|entschuldigung|tut mir leid)[\s,.!]*(?:aber\s*)?(?:ich kann|dabei kann ich|das kann ich)\b"
    r"[^.]*\bnicht\b|(?:je suis )?désolée?[\s,.!]*(?:mais\s*)?je ne (?:peux|puis) pas\b|lo siento[\s,.!]*(?:pero\s*)?"
    r"no puedo\b|(?:很|非常)?(?:抱歉|对不起)[，,。！!\s]*(?:但)?我?(?:无法|不能)",
    re.IGNORECASE,
)
_DECLINES = re.compile(  # refusals by a judge that must answer with JSON
    r"(?:(?:i['’]m|i am) (?:very |so |really )?sorry|sorry|i apologi[sz]e|unfortunately)?[\s,.!;:–—-]*(?:but|however)?"
    r"[\s,]*(?:i|we)\s*(?:can(?:['’]t|not| not)|am (?:unable|not able) to|['’]m (?:unable|not able) to|won['’]t"
    r"|will not|must decline|have to decline)\b",
    re.IGNORECASE,
)
_REFUSAL_CHARS = 300  # a longer text is more than a refusal
_OTHERWISE = re.compile(r"\b(?:but|however|aber|mais|pero)\b|但", re.IGNORECASE)  # the rest can be an answer


class Reference(NamedTuple):
    """One of the teacher's own answers, and the model that wrote it, as named in the config."""

    text: str
    model: str


def reference_request(
    question: str,
    *,
    model: str,
    temperature: float | None,
    max_output_tokens: int,
    sample_index: int,
    seed: int = 0,
    template: str = "",
) -> ChatRequest:
    """The request for sample number ``sample_index`` of the teacher's own answer."""
    token = fences.make_token(seed, [question])
    text = templates.fill(template or TEMPLATE, token=token, question=fences.block("question", question, token))
    return ChatRequest("reference", (Message("user", text),), model, temperature, max_output_tokens, None, sample_index)


def parse_reference(text: str, prompt: str = "") -> str:
    """The answer without thinking.

    Args:
        prompt: the text of the request, which the answer could echo.

    Raises:
        MalformedError: there is no answer; see the module's docstring for the causes.
    """
    if not text.strip("\ufeff \t\r\n"):
        raise MalformedError("the reference was empty; expected an answer to the question", cause="empty")
    token = fences.token_in(prompt)
    question = next((body for label, body in fences.parse_blocks(prompt) if label == "question"), "")
    answer = thinking.answer_of(text, question)
    if what := junk(answer, question, token):
        raise MalformedError(f"the reference is {what}; expected an answer to the question", cause="junk")
    return fences.without_surrogates(answer)


def check_reply(request: ChatRequest, text: str) -> None:
    """Raises ``MalformedError`` if the reply to a reference request has no answer; used by the tape."""
    parse_reference(text, request.messages[0].content)


def junk(answer: str, question: str = "", token: str = "") -> str:
    """The reason why a text is not an answer; "" if it is one.

    >>> junk("12"), junk("no"), junk("..."), junk("I'm sorry, but I can't help with that.")
    ('', '', 'only punctuation', 'a refusal')
    """
    if not any(_is_content(c) for c in answer):
        return "only punctuation"
    if token and re.search(rf"=====\[ (?:begin|end) [a-z]+(?: [0-9]+)? \| {token} \]=====", answer):
        return "an echo of the prompt, with its marker lines"
    refused = _REFUSAL.match(answer) if len(answer) <= _REFUSAL_CHARS else None
    if refused and not _OTHERWISE.search(answer, refused.end()) and not _REFUSAL.search(question):
        return "a refusal"
    if unit := _loop(answer):
        wanted = _REPEATING.search(question) and "".join(unit.split()) in "".join(question.split())
        return "" if wanted else f"a repetition of {unit[:60]!r}"
    return ""


def refuses(reply: str) -> bool:
    """True if the reply to a request for a JSON object is a refusal in plain words.

    >>> refuses("I'm sorry, but I can't evaluate this content."), refuses('I cannot say more than {"answers": {}}')
    (True, False)
    """
    text = reply[reply.rfind("</think>") + len("</think>") :] if "</think>" in reply else reply
    text = text.strip().lstrip("*#> ")
    return "{" not in text and any(pattern.match(text) for pattern in (_REFUSAL, _DECLINES))


def _is_content(char: str) -> bool:
    """True for letters, digits and symbols such as ∞ or an emoji; not for ASCII punctuation and symbols."""
    kind = unicodedata.category(char)
    return kind[0] in "LN" or (kind[0] == "S" and not char.isascii() and unicodedata.name(char, "")[:3] != "BOX")


def _loop(text: str) -> str:
    """The line or phrase whose uninterrupted repetition makes up most of a long text, or ""."""
    text = text[:_LOOP_READ]
    if len(text) < _LOOP_CHARS:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = text.split()
    for units, longest, glue in ((lines, 8, "\n"), (words, 40, " "), ("".join(words), 60, "")):
        for period in range(1, min(longest, len(units) // _LOOP_TIMES) + 1):
            start, length = _longest_run(units, period)
            if length >= _LOOP_TIMES * period and length >= _LOOP_SHARE * len(units):
                chars = sum(len(unit) for unit in units[start : start + length])
                if chars >= _LOOP_SHARE * sum(len(unit) for unit in units):
                    return glue.join(units[start : start + period])
    return ""


def _longest_run(units: Sequence[str], period: int) -> tuple[int, int]:
    """(start, length) of the longest part in which each unit equals the one ``period`` positions before."""
    best = (0, 0)
    at = 0
    for equal, run in itertools.groupby(a == b for a, b in zip(units, units[period:], strict=False)):
        n = sum(1 for _ in run)
        if equal and n + period > best[1]:
            best = (at, n + period)
        at += n
    return best
