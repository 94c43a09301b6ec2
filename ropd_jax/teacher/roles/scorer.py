"""The scorer: one score for each answer, an integer on a scale, instead of criteria and verdicts.

The prompts:

    score_judge               a plain judge
    score_judge_references    a plain judge that sees references
    score_verbal              OVD's verbal score
    score_rubric              one score given a rubric, RaR's implicit aggregation
    score_relative            a score of each answer relative to the others, RULER

Answers are shown as to the verifier: numbered, shuffled and unlabelled, in a second message after the stable part. The
reply is a list. If the template has ``{{reply}}``, the schema binds the number of answers and the scale. Without it,
the request is the same, byte for byte, as in earlier versions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ropd_jax.teacher.clients.chat import ChatRequest
from ropd_jax.teacher.roles import fences, templates
from ropd_jax.teacher.roles.json_reply import TOKEN_KEY, list_schema, to_int, with_token
from ropd_jax.teacher.roles.marks import Marks, marks_of
from ropd_jax.types import Rubric

TEMPLATE = "score_judge.v3"
VARIANTS = ("score_judge_references.v3", "score_verbal.v3", "score_rubric.v3", "score_relative.v1")
SCHEMA_VERSION = "ropd.scores.v1"

SCORE_SCHEMA = list_schema(  # for the earlier templates: it binds neither the number of answers nor the scale
    SCHEMA_VERSION, "answers", {"answer_index": {"type": "integer"}, "score": {"type": "integer"}}
)


def bound_schema(n: int, lowest: int, highest: int) -> dict:
    """The schema for exactly ``n`` scores from ``lowest`` to ``highest``, without the token."""
    item = {
        "answer_index": {"type": "integer", "minimum": 1, "maximum": n},
        "score": {"type": "integer", "minimum": lowest, "maximum": highest},
    }
    return list_schema(SCHEMA_VERSION, "answers", item, size=(n, n))


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
    avoid: Sequence[str] = (),
) -> ChatRequest:
    """The request for a score from ``lowest`` to ``highest`` for each answer, numbered from 1 in the given order.

    Args:
        avoid: the other answers of the group, if it is split into several calls (see `fences.make_token`).
    """
    criteria = rubric.criteria if rubric else ()
    shown = json.dumps([{"criterion": c.text, "category": c.category} for c in criteria], ensure_ascii=False)
    template = template or TEMPLATE
    stable, reply = [question, shown, *references], ""
    if templates.has(template, "reply"):
        token = fences.make_token(seed, stable, avoid=[*answers, *avoid])
        schema = with_token(bound_schema(len(answers), lowest, highest), token)
        reply = _example(len(answers), lowest, highest, token)
    else:
        token = fences.make_token(seed, [*stable, *answers])
        schema = with_token(SCORE_SCHEMA, templates.reply_token(template, token))
    messages = templates.messages(
        template,
        reply=reply,
        token=token,
        reply_token=token,
        question=fences.block("question", question, token),
        references=fences.render(references, token, "reference"),
        rubric=fences.block("rubric", shown, token),
        answers=fences.render(answers, token),
        lowest=str(lowest),
        highest=str(highest),
        n_answers=str(len(answers)),
    )
    return ChatRequest("score", messages, model, temperature, max_output_tokens, schema)


def _example(n: int, lowest: int, highest: int, token: str) -> str:
    """The reply on one line, with the scale instead of each score, so that no score is suggested."""
    rows = [{"answer_index": i, "score": None} for i in range(1, n + 1)]
    reply = json.dumps({"schema_version": SCHEMA_VERSION, "answers": rows, TOKEN_KEY: token})
    return reply.replace("null", f"<{lowest} to {highest}>")


def parse_scores(text: str, n_answers: int, lowest: int, highest: int, token: str = "") -> Marks:
    """The scores in a scorer's reply, for answers numbered from 1.

    Only an answer without a readable score is unscored: cause ``missing`` (not in the reply), ``malformed`` (not an
    integer on the scale: 0 on a scale from 1, ``7.5``), ``duplicate`` (two different scores).

    Args:
        token: the token that the object must have, see `json_reply`.

    Raises:
        MalformedError: the whole reply is unusable, for example because of an index outside 1..n_answers.
    """

    def score(item: dict) -> int | None:
        value = to_int(item.get("score"))
        return value if value is not None and lowest <= value <= highest else None

    return marks_of(text, n_answers, SCHEMA_VERSION, score, token)
