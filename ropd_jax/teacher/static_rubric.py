"""RaR's rubric: 7..20 criteria from the question and its references alone, each of one of four categories.

Rubrics as Rewards (arXiv 2507.17746, v1): Essential 1.0, Important 0.7, Optional 0.3, Pitfall 0.8. A pitfall is worded
as what a good answer avoids, so that true is good for every criterion. ``Criterion.points`` holds the weight in tenths.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ropd_jax.teacher import fences, templates
from ropd_jax.teacher.client import ChatRequest, MalformedError
from ropd_jax.teacher.jsonreply import find_object, only_keys
from ropd_jax.types import Criterion, Message, Rubric

TEMPLATE = "rubric_static.v1"
SCHEMA_VERSION = "ropd.static_rubric.v1"
LEAST, MOST = 7, 20
TENTHS = {"Essential": 10, "Important": 7, "Optional": 3, "Pitfall": 8}

SCHEMA = {
    "type": "object",
    "properties": {
        "schema_version": {"type": "string", "enum": [SCHEMA_VERSION]},
        "rubrics": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "criterion_id": {"type": "string", "description": "c1, c2, c3, ..."},
                    "category": {"type": "string", "enum": list(TENTHS)},
                    "criterion": {"type": "string"},
                },
                "required": ["criterion_id", "category", "criterion"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["schema_version", "rubrics"],
    "additionalProperties": False,
}


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
    """The request for one rubric; the same texts make the same request, so a tape has it once."""
    token = fences.make_token(seed, [question, *references])
    text = templates.fill(
        template or TEMPLATE,
        token=token,
        question=fences.block("question", question, token),
        references=fences.render(references, token, "reference"),
        least=str(LEAST),
        most=str(MOST),
    )
    return ChatRequest("rubric", (Message("user", text),), model, temperature, max_output_tokens, SCHEMA)


def parse(text: str) -> Rubric:
    """The rubric that a reply means.

    Raises:
        MalformedError: anything but one object of the schema with 7..20 criteria; the message says what was wrong.
    """
    reply = find_object(text, "rubrics")
    only_keys(reply, {"schema_version", "rubrics"}, {"schema_version", "rubrics"}, "the rubric")
    if reply["schema_version"] != SCHEMA_VERSION:
        raise MalformedError(f"schema_version is {str(reply['schema_version'])[:60]!r}; expected {SCHEMA_VERSION!r}")
    items = reply["rubrics"]
    if not isinstance(items, list):
        raise MalformedError(f"rubrics is a {type(items).__name__}; expected a list of criteria")
    if not LEAST <= len(items) <= MOST:
        raise MalformedError(f"{len(items)} criteria; expected {LEAST} to {MOST}")
    criteria = tuple(_criterion(item, f"criterion number {n}") for n, item in enumerate(items, 1))
    ids = [c.id for c in criteria]
    if repeated := sorted({i for i in ids if ids.count(i) > 1}):
        raise MalformedError(f"criterion ids must be unique; repeated: {', '.join(repeated)}")
    return Rubric(criteria)


def _criterion(item: object, where: str) -> Criterion:
    keys = {"criterion_id", "category", "criterion"}
    if not isinstance(item, dict):
        raise MalformedError(f"{where} is a {type(item).__name__}; expected an object")
    only_keys(item, keys, keys, where)
    for key in sorted(keys):
        if not isinstance(item[key], str) or not item[key].strip():
            raise MalformedError(f"{where}: {key} is {item[key]!r:.60}; expected a text that is not blank")
    name, category = item["criterion_id"].strip().lower(), item["category"].strip().capitalize()
    if not re.fullmatch(r"c[0-9]+", name, re.ASCII):
        raise MalformedError(f"{where}: criterion_id is {name[:40]!r}; expected c1, c2, ...")
    if category not in TENTHS:
        raise MalformedError(f"{where}: category is {category[:40]!r}; expected one of {', '.join(TENTHS)}")
    return Criterion(name, fences.without_surrogates(item["criterion"].strip()), TENTHS[category], category)
