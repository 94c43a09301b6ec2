"""Whether an answer is right, compared with the gold answer: exact, without a model.

``grade`` extracts the final answer from the text (`ropd_jax.data.final_answer`) and compares it by the kind of the gold
answer (`ropd_jax.data.golds`)::

    math, ifeval                                        by math-verify and IFEval's checks (`ropd_jax.data.named`)
    a task in EQUAL_TEXT                                as texts
    another task of reasoning-gym, not in NUMBER_TASKS  by the task's own scorer, in a child process
    anything else                                       by the kind: number, choice, expression, name; free text is
                                                        ungraded, because a comparison would be meaningless

reasoning-gym's scorers know the format of their answers (fractions in lowest terms, sorted lists, ...). Only a full 1.0
counts, because their partial scores reward any text that contains the gold answer.

An answer is untrusted text. This process compares texts and numbers; algebra runs in a sandboxed child process
(``utils.sandbox``, ``data.grader_worker``), which is kept for the next answer. What the child cannot decide, such as
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

from ropd_jax.data import choices, claims, golds, named
from ropd_jax.data.final_answer import final_answer, last_box
from ropd_jax.data.named import NUMBER_TASKS
from ropd_jax.data.numbers import LONGEST, Quantity, number, quantity
from ropd_jax.data.plain import plain
from ropd_jax.data.units import same_unit
from ropd_jax.types import Prompt, UserError
from ropd_jax.utils.sandbox import Service

log = logging.getLogger(__name__)

CPU_S = 5.0  # of the child, per answer; 60 correct integrals took up to 0.2 s each

# Tasks whose scorer gives 1.0 only for an equal text. For the rest of the score (0.1 for a Python list of the right
# numbers, for example) it runs the answer by ``eval``, so it is not called.
EQUAL_TEXT: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "binary_matrix": lambda found, entry: found == entry["answer"],
    "spiral_matrix": lambda found, entry: found.strip() == entry["answer"].strip(),
    "string_insertion": lambda found, entry: found == entry["answer"],
    "n_queens": lambda found, entry: found in entry["metadata"]["valid_answers"],
}

_child = Service("ropd_jax.data.grader_worker", cpu_s=CPU_S)

__all__ = ["LONGEST", "BrokenScorer", "final_answer", "gradable", "grade", "last_box", "number", "same", "vote_of"]

_BECAUSE = re.compile(r"(?:[.!?;]|,?\s+(?:because|since|as|so|which|where)\b|\s-|\s\()(?:\s|$)|,\s+(?:because|since)\b")
_WORDY = frozenset(("yes", "no", "true", "false"))
_ARTICLE = re.compile(r"^(?:the|an?)\s+(?=\S)")
_HEDGES = re.compile(r"\W*(?:or|but|possibly|perhaps|maybe|probably|unless|if|not?|yes|true|false)\b", re.I)
_EQUAL = re.compile(r"^(?:[A-Za-z]\w{0,20}(?:\([a-z](?:,\s?[a-z])*\))?|\([a-z](?:,\s?[a-z])+\))\s?=\s?")
_SIDE = re.compile(r"\\(?:[dt]?frac|sqrt|pi|cdot|times|left|right)(?![a-zA-Z])")  # can be in a value
_UNIT = re.compile(r"\s*(?:\\[,; ])?\s*\\(?:text|mathrm|mbox)\s*\{\s*([A-Za-z][\w .^/-]*?)\s*\}(?:\^\{?\d\}?)?\W*$")


class BrokenScorer(RuntimeError):
    """A scorer of reasoning-gym that fails on its own gold answer: no answer to that task can be graded."""


def gradable(prompt: Prompt) -> bool:
    """Whether an answer to the prompt has an exact grade: the prompt has a gold answer, or checks, or a scorer."""
    if prompt.metadata.get("reasoning_gym") is not None and prompt.task not in NUMBER_TASKS:
        return True
    if prompt.task == named.IFEVAL and "instructions" in prompt.metadata:
        return True
    return prompt.answer is not None and golds.kind_of(prompt) != golds.FREE_TEXT


def grade(prompt: Prompt, text: str) -> bool | None:
    """True or False; None if ungraded: the prompt has no gold answer, or the child could not decide.

    Args:
        text: a rollout's answer, without its thoughts (`Rollout.answer`).

    Raises:
        BrokenScorer: the task's scorer fails on its own gold answer.
        StartError: the child process does not start.
    """
    entry = prompt.metadata.get("reasoning_gym")
    if entry is not None and prompt.task not in NUMBER_TASKS:
        return _scored(prompt.task, entry, final_answer(text))
    if prompt.task == named.IFEVAL and "instructions" in prompt.metadata:
        return named.follows(prompt, text)
    if prompt.answer is None or not gradable(prompt):
        return None
    kind = golds.kind_of(prompt)
    if kind == golds.CHOICE:
        return choices.last_choice(text) == golds.letter(prompt.answer)
    found = final_answer(text)
    if found is None:  # unmarked: right only if the whole text is the gold answer, and that is more than a bare number
        whole = len(text) <= LONGEST and _words(text) == _words(prompt.answer)
        return whole and number(prompt.answer) is None
    if same(found, prompt.answer):
        return True
    if prompt.task == named.MATH and (kind != golds.NUMBER or number(found) is None):  # two numbers need no algebra
        return len(found) <= LONGEST and _verified(found, prompt.answer)
    return _same_formula(found, prompt.answer) if kind == golds.EXPRESSION else False


def same(found: str, gold: str) -> bool:
    """Equal by the kind of the gold answer: as numbers (``1,000`` is ``1000.0``, ``1/2`` is ``0.5``), as lists item by
    item, or else as texts, ignoring formatting and letter case.

    A unit in ``found`` is ignored if the gold answer has none; if both have one, they must be the same.
    """
    if golds.kind(gold) != golds.EXPRESSION and _words(found) == _words(gold):
        return bool(found.strip())
    if (wanted := quantity(gold)) is not None:
        got = quantity(found)
        if got is None:
            return False
        if got.value != wanted.value:  # 50 % is 0.5
            return _plain_value(got) == _plain_value(wanted) and "%" in (got.unit + wanted.unit)[:1]
        return not got.unit or not wanted.unit or same_unit(got.unit, wanted.unit)
    if golds.kind(gold) == golds.EXPRESSION:
        return _same_expression(found, gold)
    return any(_ARTICLE.sub("", _words(part)) == _ARTICLE.sub("", _words(gold)) for part in _readings(found))


def vote_of(found: str | None) -> str | None:
    """The class of a final answer in a vote: answers of one class are one answer (``1/2`` and ``0.5``)."""
    if found is None:
        return None
    known = quantity(found)
    return _formula(found) if known is None else str(known.value)


def _plain_value(known: Quantity) -> Fraction:
    """The value without a percent sign."""
    return known.value / 100 if known.unit.startswith("%") else known.value


def _words(text: str) -> str:
    return plain(text).rstrip(".").strip().casefold()


def _readings(found: str) -> list[str]:
    """The possible names in a statement: all of it, or the part before an explanation."""
    text = plain(found)
    texts = [text]
    if text.partition("=")[0].strip().casefold() not in _WORDY:  # "no = yes"
        texts.append(_EQUAL.sub("", text))
    if (cut := _BECAUSE.search(text)) and not claims.is_retracted(text[cut.start() :]):
        texts.append(text[: cut.start()])
    head, comma, rest = text.partition(",")
    if comma and head.casefold() in _WORDY and not _HEDGES.match(rest):  # "Yes, it is prime"
        texts.append(head)
    return texts


# ------------------------------------------------------------------------------------------------------- expressions


def _formula(text: str) -> str:
    """The text of a formula without spaces, spacing commands and redundant signs; letter case counts."""
    text = plain(text).rstrip(".").strip()
    return re.sub(r"\s+(?![A-Za-z]{2})|(?<![A-Za-z])\s+", "", text).replace("**", "^").replace("*", "")


def _same_expression(found: str, gold: str) -> bool:
    for text in dict.fromkeys((found, _EQUAL.sub("", plain(found)))):
        if _formula(text) == _formula(gold):
            return True
        ours, theirs = _items(text), _items(gold)
        if theirs is not None and ours is not None and ours[0] == theirs[0] and len(ours[1]) == len(theirs[1]):
            if theirs[0] == "{}":
                return _same_set(ours[1], theirs[1])
            return all(same(a, b) for a, b in zip(ours[1], theirs[1], strict=True))
    return False


def _same_set(found: list[str], gold: list[str]) -> bool:
    """Equal item by item in any order."""
    left = list(gold)
    for item in found:
        match = next((i for i, other in enumerate(left) if same(item, other)), None)
        if match is None:
            return False
        del left[match]
    return True


def _items(text: str) -> tuple[str, list[str]] | None:
    """(brackets, items) of a list, "" for a list without brackets; None if the text is not one."""
    text = plain(text).rstrip(".").replace("\\{", "{").replace("\\}", "}")
    text = re.sub(r",?\s+and\s+", ", ", text)  # "1 and 2"
    pair = text[:1] + text[-1:]
    inside = text[1:-1] if pair in ("()", "[]", "{}", "(]", "[)") else text
    items, depth, begin = [], 0, 0
    for i, char in enumerate(inside):
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return None
        if depth == 0 and (char == ";" or (char == "," and not re.match(r"\d{3}(?!\d)", inside[i + 1 :]))):
            items.append(inside[begin:i])
            begin = i + 1
    items.append(inside[begin:])
    return ("" if inside is text else pair, [i.strip() for i in items]) if len(items) > 1 and depth == 0 else None


def _same_formula(found: str, gold: str) -> bool | None:
    """Compares by algebra, in the child; None if it cannot decide."""
    if _items(gold) is not None or not re.search(r"[A-Za-z\d]", plain(gold)) or "begin" in gold:
        return False
    found = _without_unit(found) if _UNIT.search(gold) is None else found
    reply = _child.ask({"formula": _EQUAL.sub("", plain(found)), "gold": _EQUAL.sub("", plain(gold))})
    right = reply.get("right")
    if not isinstance(right, bool):
        log.debug("a formula is ungraded: %s", reply.get("error"))
        return None
    return right


def _without_unit(found: str) -> str:
    r"""``2\pi \text{ cm}`` without its unit."""
    unit = _UNIT.search(found)
    known = unit and quantity(f"1 {unit[1]}")
    return found[: unit.start()] if unit and known and known.unit else found


def _verified(found: str, gold: str) -> bool | None:
    """Compares by math-verify; None if it cannot decide.

    math-verify finds the gold answer in a text that also denies it or offers another value, and reads only the last
    side of an equation. So the text must claim one value, and each side that is a value must be the gold answer.
    """
    if not claims.is_single(found, gold):
        return False
    right = named.equal(gold, found)
    if right and "=" in found and "=" not in gold:
        sides = [side for side in found.split("=")[:4] if _is_value(side, gold)]
        return all(named.equal(gold, side) is not False for side in sides)
    return right


def _is_value(side: str, gold: str) -> bool:
    """True for a side with the letters of the gold answer that is not a name: ``2x + 3`` for ``3x``, not ``f'(x)``."""
    bare, known = (set(re.findall(r"[A-Za-z\\]", _SIDE.sub("", text))) for text in (side, gold))
    return bool(side.strip(" $")) and bare <= known and _EQUAL.match(f"{plain(side)} =") is None


def check_scorer(prompt: Prompt, where: str) -> None:
    """Rejects a row without the metadata that its task's scorer needs.

    Args:
        where: file and row, for the message.

    Raises:
        UserError: the scorer fails on the row's own gold answer.
    """
    if prompt.task in NUMBER_TASKS or prompt.answer is None:
        return
    try:
        _scored(prompt.task, prompt.metadata["reasoning_gym"], prompt.answer)
    except (BrokenScorer, KeyError) as error:
        raise UserError(
            f"{where}: reasoning-gym's scorer of {prompt.task} needs the metadata of the item ({error}); expected rows "
            "with question, answer and metadata, as reasoning-gym makes them"
        ) from error


def _scored(task: str, entry: Mapping[str, Any], found: str | None) -> bool | None:
    """True if the task's scorer gives full marks; None if the child cannot decide."""
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
