"""RaR's rubric: 7..20 criteria from only the question and its references, each in one of four categories.

Rubrics as Rewards (arXiv 2507.17746, v1): Essential 1.0, Important 0.7, Optional 0.3, Pitfall 0.8. A pitfall is worded
as something that a good answer avoids, so that true is good for every criterion. ``Criterion.points`` holds the weight
in tenths.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ropd_jax.teacher.clients.chat import ChatRequest
from ropd_jax.teacher.clients.errors import MalformedError
from ropd_jax.teacher.roles import fences, templates
from ropd_jax.teacher.roles.json_reply import find_list, list_schema, with_token
from ropd_jax.teacher.roles.rubricator import criterion_texts, rubric_of, show_references
from ropd_jax.types import Criterion, Message, Rubric

TEMPLATE = "rubric_static.v3"
SCHEMA_VERSION = "ropd.static_rubric.v1"
LEAST, MOST = 7, 20
TENTHS = {"Essential": 10, "Important": 7, "Optional": 3, "Pitfall": 8}

SCHEMA = list_schema(
    SCHEMA_VERSION,
    "rubrics",
    {
        "criterion_id": {"type": "string", "description": "c1, c2, c3, ..."},
        "category": {"type": "string", "enum": list(TENTHS)},
        "criterion": {"type": "string"},
    },
)
BOUND_SCHEMA = list_schema(
    SCHEMA_VERSION,
    "rubrics",
    {
        "criterion_id": {"type": "string", "pattern": "^c[0-9]+$"},
        "category": {"type": "string", "enum": list(TENTHS)},
        "criterion": {"type": "string"},
    },
    size=(LEAST, MOST),
)


def example(token: str) -> str:
    """A reply with the minimum number of criteria, for the prompt."""
    rows = [
        {"criterion_id": f"c{n}", "category": list(TENTHS)[(n - 1) % len(TENTHS)], "criterion": "..."}
        for n in range(1, LEAST + 1)
    ]
    return json.dumps({"schema_version": SCHEMA_VERSION, "rubrics": rows, "token": token})


def request(
    question: str,
    references: Sequence[str],
    *,
    model: str,
    temperature: float | None,
    max_output_tokens: int,
    seed: int = 0,
    template: str = "",
) -> ChatRequest:
    """The request for one rubric. The same texts make the same request, so a tape stores it once."""
    template = template or TEMPLATE
    bound, counted = (name in templates.load(template) for name in ("{{reply}}", "{{n_distinct}}"))
    if bound:
        token = fences.make_token(seed, [question], avoid=references)
    else:
        token = fences.make_token(seed, [question, *references])
    text = templates.fill(
        template,
        token=token,
        reply_token=token,
        reply=example(token),
        n_references=str(len(references)),
        n_distinct=str(len(set(references))),
        question=fences.block("question", question, token),
        references=show_references(references, token) if counted else fences.render(references, token, "reference"),
        least=str(LEAST),
        most=str(MOST),
    )
    schema = with_token(BOUND_SCHEMA, token) if bound else with_token(SCHEMA, templates.reply_token(template, token))
    return ChatRequest("rubric", (Message("user", text),), model, temperature, max_output_tokens, schema)


def parse(text: str, token: str = "") -> Rubric:
    """The rubric in a reply.

    Args:
        token: the token that the object must have, see `json_reply`.

    Raises:
        MalformedError: the reply is not exactly one object of the schema with 7..20 criteria. The message describes the
            problem.
    """
    items = find_list(text, "rubrics", SCHEMA_VERSION, token=token, where="the rubric", of=" of criteria")
    return rubric_of(items, (LEAST, MOST), _criterion)


def _criterion(item: Any, where: str) -> Criterion:
    name, category, text = criterion_texts(item, where)
    category = category.capitalize()
    if category not in TENTHS:
        raise MalformedError(f"{where}: category is {category[:40]!r}; expected one of {', '.join(TENTHS)}")
    return Criterion(name, text, TENTHS[category], category)
