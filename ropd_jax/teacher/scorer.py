"""The scorer: one grade for each answer, an integer of a scale, in place of criteria and verdicts.

The prompts that ask for it: a plain judge without or with references in view (``score_judge``,
``score_judge_references``), OVD's verbal score (``score_verbal``), and one grade given a rubric (``score_rubric``,
RaR's implicit aggregation). Answers are shown as to the verifier: numbered, shuffled, unlabelled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ropd_jax.teacher import fences, templates
from ropd_jax.teacher.client import ChatRequest, MalformedError
from ropd_jax.teacher.jsonreply import find_object, only_keys, to_int
from ropd_jax.teacher.verifier import Marks
from ropd_jax.types import Message, Rubric

TEMPLATE = "score_judge.v1"
VARIANTS = ("score_judge_references.v1", "score_verbal.v1", "score_rubric.v1")
SCHEMA_VERSION = "ropd.scores.v1"

SCORE_SCHEMA = {
    "type": "object",
    "properties": {
        "schema_version": {"type": "string", "enum": [SCHEMA_VERSION]},
        "answers": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"answer_index": {"type": "integer"}, "score": {"type": "integer"}},
                "required": ["answer_index", "score"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["schema_version", "answers"],
    "additionalProperties": False,
}


def score_request(
    question: str,
    answers: Sequence[str],
    *,
    lowest: int,
    highest: int,
    model: str,
    temperature: float | None,
    max_output_tokens: int,
    references: Sequence[str] = (),
    rubric: Rubric | None = None,
    seed: int = 0,
    template: str = "",
) -> ChatRequest:
    """The request for a grade from ``lowest`` to ``highest`` of each answer, numbered from 1 in the given order."""
    criteria = rubric.criteria if rubric else ()
    shown = json.dumps([{"criterion": c.text, "category": c.category} for c in criteria], ensure_ascii=False)
    token = fences.make_token(seed, [question, shown, *references, *answers])
    text = templates.fill(
        template or TEMPLATE,
        token=token,
        question=fences.block("question", question, token),
        references=fences.render(references, token, "reference"),
        rubric=fences.block("rubric", shown, token),
        answers=fences.render(answers, token),
        lowest=str(lowest),
        highest=str(highest),
        n_answers=str(len(answers)),
    )
    return ChatRequest("score", (Message("user", text),), model, temperature, max_output_tokens, SCORE_SCHEMA)


def parse_scores(text: str, n_answers: int, lowest: int, highest: int) -> Marks:
    """The grades that a scorer's reply means, for answers numbered from 1.

    An answer without a readable grade is unscored, alone: cause ``missing`` (not in the reply), ``malformed`` (no
    integer of the scale: 0 on a scale from 1, ``7.5``), ``duplicate`` (two different grades).

    Raises:
        MalformedError: the reply as a whole cannot be used, an index outside 1..n_answers included.
    """
    reply = find_object(text, "answers")
    only_keys(reply, {"schema_version", "answers"}, {"schema_version", "answers"}, "the reply")
    if reply["schema_version"] != SCHEMA_VERSION:
        raise MalformedError(f"schema_version is {str(reply['schema_version'])[:60]!r}; expected {SCHEMA_VERSION!r}")
    if not isinstance(reply["answers"], list):
        raise MalformedError(f"answers is a {type(reply['answers']).__name__}; expected a list")
    values: list[int | None] = [None] * n_answers
    causes: list[str | None] = ["missing"] * n_answers
    for item in reply["answers"]:
        index = to_int(item.get("answer_index")) if isinstance(item, dict) else None
        if index is None or not 1 <= index <= n_answers:
            seen = item.get("answer_index") if isinstance(item, dict) else item
            raise MalformedError(f"answer_index is {seen!r:.60}; expected 1 to {n_answers}")
        grade, place = to_int(item.get("score")), index - 1
        if grade is not None and not lowest <= grade <= highest:
            grade = None
        if causes[place] == "missing":
            values[place], causes[place] = grade, None if grade is not None else "malformed"
        elif values[place] != grade:
            values[place], causes[place] = None, "duplicate"
    return Marks(tuple(values), tuple(causes))
