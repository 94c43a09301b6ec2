"""The verifier: every criterion on every answer, true or false (Eq. 4), blind to who wrote which answer.

It does not see the points. Only booleans are taken from its reply: ``final_score`` is never read, the score is the
weighted pass rate that ``Verdicts.scores`` recomputes (Eq. 5).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ropd_jax.teacher.clients.client import ChatRequest, ConfigurationError, MalformedError, TeacherError
from ropd_jax.teacher.roles import fences, templates
from ropd_jax.teacher.roles.json_reply import find_list, list_schema, to_int
from ropd_jax.types import Message, Rubric, Verdicts

TEMPLATE = "verifier.v1"
TOLD_TEMPLATE = "verifier_told.v1"
SCHEMA_VERSION = "ropd.batch_verifier.v2"

VERDICT_SCHEMA = list_schema(
    SCHEMA_VERSION,
    "answers",
    {"answer_index": {"type": "integer"}, "judgement": {"type": "array", "items": {"type": "boolean"}}},
)

_TRUE = {"true", "yes", "on", "1", "t", "y"}
_FALSE = {"false", "no", "off", "0", "f", "n"}


class Marks(NamedTuple):
    """What a reply says of each answer: a value, or None and the cause."""

    values: tuple[Any, ...]
    causes: tuple[str | None, ...]


def shuffled(texts: Sequence[str], *, seed: int, key: str) -> list[int]:
    """The order in which answers are shown: ``order[place] = index``. By hash, so no place depends on who wrote it."""

    def rank(index: int) -> bytes:
        what = f"order:{seed}:{len(key)}:{key}:{index}:{texts[index]}"
        return hashlib.sha256(what.encode("utf-8", "surrogatepass")).digest()

    return sorted(range(len(texts)), key=rank)


def verify_request(
    question: str,
    rubric: Rubric,
    answers: Sequence[str],
    *,
    model: str,
    temperature: float | None,
    max_output_tokens: int,
    seed: int = 0,
    template: str = "",
    authors: Sequence[str] | None = None,
) -> ChatRequest:
    """The request to judge ``answers``, numbered from 1 in the given order. Points and categories stay with us.

    Args:
        authors: who wrote each answer, for a verifier that is told; None asks blind, as the paper does.
    """
    shown = json.dumps([{"criterion_id": c.id, "criterion": c.text} for c in rubric.criteria], ensure_ascii=False)
    token = fences.make_token(seed, [question, shown, *answers])
    text = templates.fill(
        template or (TEMPLATE if authors is None else TOLD_TEMPLATE),
        token=token,
        authors=_written_by(authors or ()),
        question=fences.block("question", question, token),
        rubric=fences.block("rubric", shown, token),
        answers=fences.render(answers, token),
        n_criteria=str(len(rubric.criteria)),
        n_answers=str(len(answers)),
    )
    return ChatRequest("verify", (Message("user", text),), model, temperature, max_output_tokens, VERDICT_SCHEMA)


def _written_by(authors: Sequence[str]) -> str:
    """Which numbers each author wrote: ``The teacher wrote 2, 3. The student wrote 1, 4.``"""
    numbers: dict[str, list[str]] = {}
    for number, author in enumerate(authors, 1):
        numbers.setdefault(author, []).append(str(number))
    return " ".join(f"The {author} wrote {', '.join(own)}." for author, own in sorted(numbers.items()))


def parse_verdicts(text: str, rubric: Rubric, n_answers: int) -> Verdicts:
    """The verdicts that a verifier's reply means, for ``n_answers`` answers numbered from 1.

    An answer without a readable verdict is unscored, alone: cause ``missing`` (not in the reply), ``malformed`` (wrong
    number of verdicts, or one that is neither true nor false), ``duplicate`` (two different judgements).

    Raises:
        MalformedError: the reply as a whole cannot be used, an index outside 1..n_answers included, since then no
            index can be trusted; the message says what was wrong.
    """
    marks = marks_of(text, n_answers, SCHEMA_VERSION, lambda item: _judgement(item, len(rubric.criteria)))
    return Verdicts(*marks)


def marks_of(text: str, n_answers: int, version: str, read: Callable[[dict], Any]) -> Marks:
    """The marks that a reply's list ``answers`` gives to answers numbered from 1; ``read(item)`` is a mark, or None.

    Raises:
        MalformedError: the reply as a whole cannot be used, an index outside 1..n_answers included.
    """
    values: list[Any] = [None] * n_answers
    causes: list[str | None] = ["missing"] * n_answers
    for item in find_list(text, "answers", version, where="the reply"):
        index = to_int(item.get("answer_index")) if isinstance(item, dict) else None
        if index is None or not 1 <= index <= n_answers:
            seen = item.get("answer_index") if isinstance(item, dict) else item
            raise MalformedError(f"answer_index is {seen!r:.60}; expected 1 to {n_answers}")
        mark, place = read(item), index - 1
        if causes[place] == "missing":
            values[place], causes[place] = mark, None if mark is not None else "malformed"
        elif values[place] != mark:
            values[place], causes[place] = None, "duplicate"
    return Marks(tuple(values), tuple(causes))


def joined(sizes: Sequence[int], parts: Sequence[Marks | BaseException]) -> Marks:
    """The marks of consecutive parts of ``sizes`` answers. A part that failed leaves its answers unscored.

    Raises:
        ConfigurationError, or what is no ``TeacherError``: as it stands among the parts. The first failure, if no part
        succeeded.
    """
    failures = [p for p in parts if isinstance(p, BaseException)]
    for failure in failures:
        if isinstance(failure, ConfigurationError) or not isinstance(failure, TeacherError):
            raise failure
    if len(failures) == len(parts):
        raise failures[0]
    values: list[Any] = []
    causes: list[str | None] = []
    for size, part in zip(sizes, parts, strict=True):
        values += part.values if isinstance(part, Marks) else [None] * size
        causes += part.causes if isinstance(part, Marks) else [getattr(part, "cause", None)] * size
    return Marks(tuple(values), tuple(causes))


def _judgement(item: dict, n_criteria: int) -> tuple[bool, ...] | None:
    judgement = item.get("judgement")
    if not isinstance(judgement, list) or len(judgement) != n_criteria:
        return None
    if item.keys() - {"answer_index", "judgement", "final_score"}:
        return None
    verdicts = tuple(_boolean(v) for v in judgement)
    return None if None in verdicts else verdicts


def _boolean(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return {0: False, 1: True}.get(value)
    if isinstance(value, str):
        word = value.strip().lower()
        return True if word in _TRUE else False if word in _FALSE else None
    return None
