"""Whether an answer is right, from the gold answer: exact, without a model.

``grade`` reads the final answer out of the text (the last of: a line ``Answer: ...``, ``#### ...``, ``\\boxed{...}``,
``answer is NUMBER``) and compares it with the gold answer::

    no reasoning-gym item, or a task in NUMBER_TASKS    as numbers (1,000 is 1000.0), or else as texts
    a task in EQUAL_TEXT                                as texts
    any other task of reasoning-gym                     by the task's own scorer, in a child process

reasoning-gym's scorers know the form of their answers (fractions in lowest terms, sorted lists, ...). Only a full 1.0
counts: their partial scores reward any text that contains the gold answer.

An answer is foreign text. Our process only compares texts and numbers; whatever parses more runs in a sandboxed child
(``utils.sandbox``, ``data.grader_worker``), which stays up for the next answer. What the child does not decide, such as
``9**9**9**9``, is ungraded.
"""

from __future__ import annotations

import base64
import logging
import pickle
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from ropd_jax.types import Prompt
from ropd_jax.utils.sandbox import Service

log = logging.getLogger(__name__)

LONGEST = 200  # characters of a final answer; longer ones are wrong, and cost no time
CPU_S = 5.0  # of the child, per answer; 60 correct integrals took at most 0.2 s each

# reasoning-gym tasks whose gold answer is one number: compared exactly, without the task's scorer
NUMBER_TASKS = frozenset(
    ("basic_arithmetic", "chain_sum", "count_bits", "count_primes", "gcd", "gsm_symbolic", "lcm", "leg_counting")
    + ("letter_counting", "products", "simple_equations")
)

# Tasks whose scorer gives 1.0 for an equal text only. For the rest of the score (0.1 for a Python list of the right
# numbers, say) it runs the answer by ``eval``, so it is not called.
EQUAL_TEXT: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "binary_matrix": lambda found, entry: found == entry["answer"],
    "spiral_matrix": lambda found, entry: found.strip() == entry["answer"].strip(),
    "string_insertion": lambda found, entry: found == entry["answer"],
    "n_queens": lambda found, entry: found in entry["metadata"]["valid_answers"],
}

_child = Service("ropd_jax.data.grader_worker", cpu_s=CPU_S)

_MARK = re.compile(
    r"(?im)^[ \t>*_#-]*(?:final[ \t]+)?answer[ \t*_]*[:=][ \t*_]*(?P<line>\S[^\n]*)|####[ \t]*(?P<gsm>\S[^\n]*)"
    r"|\banswer is:?[ \t*_$]*(?P<number>[+-]?\d[\d,]*(?:\.\d+)?)"
)
_BRACE = re.compile(r"\\boxed\s*\{|\\[{}\\]|[{}]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
_FRACTION = re.compile(r"([+-]?\d+)/(\d+)")


class BrokenScorer(RuntimeError):
    """A scorer of reasoning-gym that fails on its own gold answer: no answer to that task can be graded."""


def grade(prompt: Prompt, text: str) -> bool | None:
    """True or False; None if it is ungraded: the prompt has no gold answer, or the child did not decide.

    Args:
        text: a rollout's answer, without its thoughts (`Rollout.answer`).

    Raises:
        BrokenScorer: the task's scorer fails on its own gold answer.
        StartError: the child process does not start.
    """
    entry = prompt.metadata.get("reasoning_gym")
    if entry is not None and prompt.task not in NUMBER_TASKS:
        return _scored(prompt.task, entry, final_answer(text))
    if prompt.answer is None:
        return None
    found = final_answer(text)
    return found is not None and same(found, prompt.answer)


def final_answer(text: str) -> str | None:
    """The answer that the text marks, without a box around it; None if it marks none, or one over 200 characters.

    A number in the middle of a sentence is not an answer: the last number of a wrong solution is right too often.
    """
    last = None
    for match in _MARK.finditer(text):
        last = match
    box_at, box = last_box(text)
    if last is None or (box is not None and box_at > last.end()):
        found = box
    else:
        found = last.group("line") or last.group("gsm") or last.group("number")
        _, inner = last_box(found)
        if inner is not None:
            found = inner
    if found is None or len(found) > LONGEST:
        return None
    return found.strip().strip("*_`").strip() or None


def last_box(text: str) -> tuple[int, str | None]:
    r"""Position and content of the last ``\boxed{...}`` that closes; (-1, None) without one.

    Of a box in a box the inner content counts. One pass over the text: a stack matches the braces, and ``\{`` and
    ``\}`` are characters, not braces. ``\boxed5``, ``\fbox{5}`` and a box that never closes do not count.
    """
    opened: list[tuple[int, int] | None] = []  # per open brace None, or (position of the box, start of its content)
    closed: tuple[int, int, int] | None = None
    for match in _BRACE.finditer(text):
        token = match.group()
        if token == "}":
            if opened and (box := opened.pop()) is not None:
                closed = (*box, match.start())
        elif token == "{":
            opened.append(None)
        elif token.endswith("{") and token != "\\{":
            opened.append((match.start(), match.end()))
    if closed is None:
        return -1, None
    at, first, end = closed
    inner = last_box(text[first:end])[1] if end - first <= LONGEST else None
    return at, text[first:end] if inner is None else inner


def same(found: str, gold: str) -> bool:
    """Equal as numbers (``1,000`` is ``1000.0``, ``1/2`` is ``0.5``), or else as texts up to case and spaces."""
    a, b = number(found), number(gold)
    if a is not None and b is not None:
        return a == b
    return _plain(found).casefold() == _plain(gold).casefold()


def number(text: str) -> Fraction | None:
    """The exact value of a plain decimal number or a fraction of integers; None for any other text."""
    text = _plain(text).replace(" ", "")
    if len(text) > LONGEST:
        return None
    text = re.sub(r"(?<=\d),(?=\d{3}(\D|$))", "", text)
    if fraction := _FRACTION.fullmatch(text):
        top, bottom = int(fraction[1]), int(fraction[2])
        return Fraction(top, bottom) if bottom else None
    return Fraction(text) if _NUMBER.fullmatch(text) else None


def _plain(text: str) -> str:
    """The text without dollar signs, final full stop and repeated spaces, and with ASCII minus signs."""
    text = text.replace("\u2212", "-").replace("\\$", "").replace("$", "").replace("\\,", "")
    return " ".join(text.split()).rstrip(".").strip()


def _scored(task: str, entry: Mapping[str, Any], found: str | None) -> bool | None:
    """True if the task's scorer gives full marks; None if the child does not decide."""
    if found is None:
        return False
    if equal := EQUAL_TEXT.get(task):
        return equal(found, entry)
    pickled = base64.b64encode(pickle.dumps(entry)).decode()
    reply = _child.ask({"task": task, "answer": found, "entry": pickled})
    right = reply.get("right")
    if isinstance(right, bool):
        return right
    if reply.get("error") == "broken":
        raise BrokenScorer(f"reasoning-gym's scorer of {task} fails on its own gold answer: {reply.get('message')}")
    log.debug("an answer to %s is ungraded: %s", task, reply.get("error"))
    return None
