"""The rubricator: turns question, references and rollouts into 4..12 weighted yes/no criteria (Eq. 3).

It sees which answers are references and which are the student's, because criteria are induced from their contrast. A
template with ``{{n_distinct}}`` shows equal references once, with their count. A template with ``{{reply}}`` gets an
example of the reply with the minimum number of criteria, and a schema that binds their number, ids and points. Older
templates still send the same bytes and schema as before, so that older tapes replay.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ropd_jax.teacher.clients.chat import ChatRequest
from ropd_jax.teacher.clients.errors import ConfigurationError, MalformedError
from ropd_jax.teacher.roles import fences, templates
from ropd_jax.teacher.roles.json_reply import find_list, list_schema, only_keys, to_int, with_token
from ropd_jax.types import Criterion, Message, Rubric

TEMPLATE = "rubricator.v4"
REFERENCES_TEMPLATE = "rubricator_references.v3"  # does not show the student's answers
SCHEMA_VERSION = "ropd.rubric.v1"
MIN_CRITERIA, MAX_CRITERIA, MAX_POINTS = 4, 12, 5

RUBRIC_SCHEMA = list_schema(
    SCHEMA_VERSION,
    "rubrics",
    {
        "criterion_id": {"type": "string", "description": "c1, c2, c3, ..."},
        "category": {"type": "string"},
        "criterion": {"type": "string"},
        "points": {"type": "integer", "description": "1 to 5"},
    },
    maximum_score={"type": "integer", "description": "sum of all points"},
)
_TIMES = "The writer gave this reference {} times:\n"


def bound_schema(size: tuple[int, int]) -> dict:
    """``RUBRIC_SCHEMA`` for ``size`` criteria, with ids c1, c2, ... and points from 1 to 5."""
    properties: dict[str, dict] = {
        "criterion_id": {"type": "string", "pattern": "^c[0-9]+$"},
        "category": {"type": "string"},
        "criterion": {"type": "string"},
        "points": {"type": "integer", "minimum": 1, "maximum": MAX_POINTS},
    }
    highest = {"type": "integer", "minimum": size[0], "maximum": MAX_POINTS * size[1]}
    return list_schema(SCHEMA_VERSION, "rubrics", properties, size=size, maximum_score=highest)


def example(n: int, token: str) -> str:
    """A reply with ``n`` criteria, for the prompt."""
    points = [(5, 3, 2, 1)[i] if i < 4 else 2 for i in range(n)]
    rows = [
        {"criterion_id": f"c{i}", "category": "...", "criterion": "...", "points": p} for i, p in enumerate(points, 1)
    ]
    reply = {"schema_version": SCHEMA_VERSION, "rubrics": rows, "maximum_score": sum(points), "token": token}
    return json.dumps(reply)


def show_references(references: Sequence[str], token: str) -> str:
    """The distinct references, each in its fence, numbered from 1; a repeated one is preceded by its count.

    >>> print(show_references(["4", "5", "4"], "3fd1c09a77e2"))
    The writer gave this reference 2 times:
    =====[ begin reference 1 | 3fd1c09a77e2 ]=====
    4
    =====[ end reference 1 | 3fd1c09a77e2 ]=====
    <BLANKLINE>
    =====[ begin reference 2 | 3fd1c09a77e2 ]=====
    5
    =====[ end reference 2 | 3fd1c09a77e2 ]=====
    """
    return "\n\n".join(
        (_TIMES.format(times) if times > 1 else "") + fences.block(f"reference {n}", text, token)
        for n, (text, times) in enumerate(Counter(references).items(), 1)
    )


def read_references(prompt: str) -> list[str]:
    """The references shown in a prompt, each as often as it was given."""
    marker = rf"=====\[ begin (reference [0-9]+) \| {fences.token_in(prompt)} \]====="
    pattern = re.compile("^" + _TIMES.format("([0-9]{1,6})") + marker, re.MULTILINE)
    times = {label: int(n) for n, label in pattern.findall(prompt)}
    blocks = ((label, text) for label, text in fences.parse_blocks(prompt) if label.startswith("reference "))
    return [text for label, text in blocks for _ in range(times.get(label, 1))]


def rubric_request(
    question: str,
    references: Sequence[str],
    answers: Sequence[str],
    *,
    model: str,
    temperature: float | None,
    max_output_tokens: int,
    seed: int = 0,
    template: str = "",
    size: tuple[int, int] = (MIN_CRITERIA, MAX_CRITERIA),
) -> ChatRequest:
    """The request for one rubric with ``size`` criteria. ``answers`` are the student's rollouts as strings, or empty.

    It is one user message: the instructions, which are the same for every question; the question; the references and
    the answers; and at the end the size and the form of the reply again.

    Raises:
        ConfigurationError: the size is not 4 to 12, and the template has no placeholders for it.
    """
    template = template or (TEMPLATE if answers else REFERENCES_TEMPLATE)
    if size != (MIN_CRITERIA, MAX_CRITERIA) and "{{most}}" not in templates.load(template):
        raise ConfigurationError(
            f"prompt template {template!r} has a fixed number of criteria; for {size[0]} to {size[1]} use "
            "{{least}} and {{most}} there",
            cause="bad_template",
        )
    bound, counted = (name in templates.load(template) for name in ("{{reply}}", "{{n_distinct}}"))
    shown = [*references, *answers]
    if bound:  # only from the question, so that two requests about it start with the same bytes for a prompt cache
        token = fences.make_token(seed, [question], avoid=shown)
    else:
        token = fences.make_token(seed, [question, *shown])
    text = templates.fill(
        template,
        token=token,
        reply_token=token,
        reply=example(size[0], token),
        n_references=str(len(references)),
        n_distinct=str(len(set(references))),
        least=str(size[0]),
        most=str(size[1]),
        question=fences.block("question", question, token),
        references=show_references(references, token) if counted else fences.render(references, token, "reference"),
        students=fences.render(answers, token, "student"),
    )
    reply_token = token if bound else templates.reply_token(template, token)
    schema = with_token(bound_schema(size) if bound else RUBRIC_SCHEMA, reply_token)
    return ChatRequest("rubric", (Message("user", text),), model, temperature, max_output_tokens, schema)


def parse_rubric(text: str, size: tuple[int, int] = (MIN_CRITERIA, MAX_CRITERIA), token: str | None = None) -> Rubric:
    """The rubric in a rubricator's reply.

    ``maximum_score`` is computed, not read. Ids are lowercased and stripped before they are compared.

    Args:
        token: the token that the object must have, see `json_reply.find_object`. None if ``text`` is not the reply to a
            request.

    Raises:
        MalformedError: the reply is not exactly one object of the schema with ``size`` criteria, unique ids
            c<digits>, non-blank texts and integer points 1..5. The message describes the problem.
    """
    items = find_list(
        text,
        "rubrics",
        SCHEMA_VERSION,
        token=token,
        where="the rubric",
        of=" of criteria",
        also=frozenset({"maximum_score"}),
    )
    return rubric_of(items, size, _criterion)


def rubric_of(items: list, size: tuple[int, int], read: Callable[[Any, str], Criterion]) -> Rubric:
    """The rubric in a reply's list. ``read(item, where)`` returns each criterion; their number and ids are checked.

    Raises:
        MalformedError: the number of criteria is not in ``size``, an id is repeated, or ``read`` raised the error.
    """
    if not size[0] <= len(items) <= size[1]:
        raise MalformedError(f"{len(items)} criteria; expected {size[0]} to {size[1]}")
    criteria = tuple(read(item, f"criterion number {n}") for n, item in enumerate(items, 1))
    ids = [c.id for c in criteria]
    if repeated := sorted({i for i in ids if ids.count(i) > 1}):
        raise MalformedError(f"criterion ids must be unique; repeated: {', '.join(repeated)}")
    return Rubric(criteria)


def criterion_texts(item: Any, where: str, also: frozenset[str] = frozenset()) -> tuple[str, str, str]:
    """(id, category, text) of one criterion; ``also`` are other keys that it must have.

    Raises:
        MalformedError: it is not an object, has other keys or a blank text, or its id is not c<digits>.
    """
    if not isinstance(item, dict):
        raise MalformedError(f"{where} is a {type(item).__name__}; expected an object")
    texts = {}
    keys = {"criterion_id", "category", "criterion", *also}
    only_keys(item, keys, keys, where)
    for key in ("criterion_id", "category", "criterion"):
        value = item[key]
        if not isinstance(value, str) or not value.strip():
            raise MalformedError(f"{where}: {key} is {value!r:.60}; expected a text that is not blank")
        texts[key] = fences.without_surrogates(value.strip())
    name = texts["criterion_id"].lower()
    if not re.fullmatch(r"c[0-9]+", name, re.ASCII):
        raise MalformedError(f"{where}: criterion_id is {name[:40]!r}; expected c1, c2, ...")
    return name, texts["category"], texts["criterion"]


def _criterion(item: Any, where: str) -> Criterion:
    name, category, text = criterion_texts(item, where, also=frozenset({"points"}))
    points = to_int(item["points"])
    if points is None or not 1 <= points <= MAX_POINTS:
        raise MalformedError(f"{where}: points is {item['points']!r:.60}; expected an integer 1 to {MAX_POINTS}")
    return Criterion(name, text, points, category)
