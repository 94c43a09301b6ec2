"""The verifier: every criterion on every answer, true or false (Eq. 4), without knowing the authors.

It does not see the points. Only booleans are taken from its reply: ``final_score`` is never read, and
``Verdicts.scores`` recomputes the weighted pass rate (Eq. 5).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ropd_jax.teacher.clients.chat import ChatRequest
from ropd_jax.teacher.roles import fences, templates
from ropd_jax.teacher.roles.json_reply import list_schema, with_token
from ropd_jax.teacher.roles.marks import marks_of
from ropd_jax.types import Message, Rubric, Verdicts

TEMPLATE = "verifier.v2"
LABELLED_TEMPLATE = "verifier_labelled.v2"  # names the author of each answer
SCHEMA_VERSION = "ropd.batch_verifier.v2"

VERDICT_SCHEMA = list_schema(
    SCHEMA_VERSION,
    "answers",
    {"answer_index": {"type": "integer"}, "judgement": {"type": "array", "items": {"type": "boolean"}}},
)

_TRUE = {"true", "yes", "on", "1", "t", "y"}
_FALSE = {"false", "no", "off", "0", "f", "n"}


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
    """The request to verify ``answers``, numbered from 1 in the given order. It holds no points and no categories.

    Args:
        authors: who wrote each answer, shown to the verifier; None shows none, as in the paper.
    """
    shown = json.dumps([{"criterion_id": c.id, "criterion": c.text} for c in rubric.criteria], ensure_ascii=False)
    token = fences.make_token(seed, [question, shown, *answers])
    template = template or (TEMPLATE if authors is None else LABELLED_TEMPLATE)
    text = templates.fill(
        template,
        token=token,
        reply_token=token,
        authors=_written_by(authors or ()),
        question=fences.block("question", question, token),
        rubric=fences.block("rubric", shown, token),
        answers=fences.render(answers, token),
        n_criteria=str(len(rubric.criteria)),
        n_answers=str(len(answers)),
    )
    schema = with_token(VERDICT_SCHEMA, templates.reply_token(template, token))
    return ChatRequest("verify", (Message("user", text),), model, temperature, max_output_tokens, schema)


def _written_by(authors: Sequence[str]) -> str:
    """Which numbers each author wrote: ``The teacher wrote 2, 3. The student wrote 1, 4.``"""
    numbers: dict[str, list[str]] = {}
    for number, author in enumerate(authors, 1):
        numbers.setdefault(author, []).append(str(number))
    return " ".join(f"The {author} wrote {', '.join(own)}." for author, own in sorted(numbers.items()))


def parse_verdicts(text: str, rubric: Rubric, n_answers: int, token: str = "") -> Verdicts:
    """The verdicts in a verifier's reply, for ``n_answers`` answers numbered from 1.

    Only an answer without a readable verdict is unscored: cause ``missing`` (not in the reply), ``malformed`` (wrong
    number of verdicts, or one that is neither true nor false), ``duplicate`` (two different judgements).

    Args:
        token: what the object must carry, see `json_reply`.

    Raises:
        MalformedError: the whole reply cannot be used. An index outside 1..n_answers is such a case, because then no
            index can be trusted. The message describes the problem.
    """
    marks = marks_of(text, n_answers, SCHEMA_VERSION, lambda item: _judgement(item, len(rubric.criteria)), token)
    return Verdicts(*marks)


def _judgement(item: dict, n_criteria: int) -> tuple[bool, ...] | None:
    judgement = item.get("judgement")
    if not isinstance(judgement, list) or len(judgement) != n_criteria:
        return None
    if item.keys() - {"answer_index", "judgement", "final_score"}:
        return None
    verdicts = [_boolean(v) for v in judgement]
    known = tuple(v for v in verdicts if v is not None)
    return known if len(known) == len(verdicts) else None


def _boolean(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return bool(value) if value in (0, 1) else None
    if isinstance(value, str):
        word = value.strip().lower()
        return True if word in _TRUE else False if word in _FALSE else None
    return None
