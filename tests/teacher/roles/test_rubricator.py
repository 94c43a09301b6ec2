"""The rubricator's wire format: every shared vector, and the official release's cases that the vectors lack."""

from __future__ import annotations

import asyncio
import json
import math
import pathlib

import pytest

from ropd_jax.teacher import MalformedError, Role, Teacher, parse_rubric
from ropd_jax.teacher.roles import rubricator, static_rubric
from ropd_jax.teacher.roles.json_reply import token_of
from ropd_jax.types import Message, Prompt
from tests.teacher.helpers import fenced

HERE = pathlib.Path(__file__).parent / "vectors"


def rows(name):
    lines = (HERE / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
    return [pytest.param(row, id=row["name"]) for row in map(json.loads, filter(None, lines))]


def rubric_text(**changes):
    items = [
        {"criterion_id": f"c{n}", "category": "Fact", "criterion": f"States fact {n}.", "points": p}
        for n, p in enumerate((5, 4, 2, 1), 1)
    ]
    items[1] |= changes
    return json.dumps({"schema_version": "ropd.rubric.v1", "rubrics": items, "maximum_score": 12})


@pytest.mark.parametrize("row", rows("rubric"))
def test_rubric_vector(row):
    if row["expect"] == "reject":
        with pytest.raises(MalformedError):
            parse_rubric(row["text"])
        return
    rubric = parse_rubric(row["text"])
    assert 4 <= len(rubric.criteria) <= 12
    assert list(rubric.weights) == row.get("weights", list(rubric.weights))
    assert [c.id for c in rubric.criteria] == row.get("ids", [c.id for c in rubric.criteria])
    assert rubric.total == row.get("max", sum(rubric.weights))


@pytest.mark.parametrize("points", [3, "3", 3.0, " 3 ", "3.0"])
def test_points_written_as_three_are_three(points):
    assert parse_rubric(rubric_text(points=points)).weights == (5, 3, 2, 1)


@pytest.mark.parametrize("points", [0, 6, -1, 2.5, math.nan, math.inf, True, None, "three", "³", [3], 10**30])
def test_points_that_are_no_integer_from_one_to_five_are_refused(points):
    with pytest.raises(MalformedError, match="points"):
        parse_rubric(rubric_text(points=points))


@pytest.mark.parametrize("name", ["c²", "c", "1", "", "c 2", "d2", "c-2", "c1", " C1 ", "c٣"])
def test_ids_must_be_c_and_ascii_digits_and_unique(name):
    with pytest.raises(MalformedError, match=r"criterion_id|unique"):
        parse_rubric(rubric_text(criterion_id=name))


def test_ids_are_lowered_stripped_and_may_have_leading_zeros():
    assert [c.id for c in parse_rubric(rubric_text(criterion_id=" C02 ")).criteria] == ["c1", "c02", "c3", "c4"]


@pytest.mark.parametrize(
    "text",
    [
        rubric_text(extra="x"),
        rubric_text(category=" "),
        rubric_text(criterion=7),
        rubric_text().replace('"category": "Fact", ', "", 1),
        rubric_text()[:-1] + ', "note": 1}',
        rubric_text().replace('"schema_version": "ropd.rubric.v1", ', ""),
        rubric_text() + rubric_text(points=1),
        "[" + rubric_text() + "]",
        "Here: [" + rubric_text() + "]",
        '{"rubric": ' + rubric_text() + "}",
        "<think>" + rubric_text(),
        "<think>" + rubric_text() + "</think>",
        rubric_text()[:-40],
        rubric_text().replace('"', "'"),
        "{" * 100_000,
        '{"rubrics":' * 20_000,
        '{"rubrics": ' + "9" * 5_000 + "}",
        "[" * 100_000,
        "null",
        "42",
    ],
)
def test_what_is_not_one_rubric_is_refused(text):
    with pytest.raises(MalformedError):
        parse_rubric(text)


@pytest.mark.parametrize(
    "text",
    [
        "Sure.\n```json\n" + rubric_text() + "\n```\nHope it helps {smile}.",
        "```python\n" + rubric_text() + "\n```",
        "```JSON  " + rubric_text() + "```",
        rubric_text() + "\n" + rubric_text(),
        "<think>" + rubric_text(points=1) + "</think>\n\n" + rubric_text(),
        "\ufeff  \n" + rubric_text(),
        "I thought about {braces} and {} first.\n" + rubric_text(),
    ],
)
def test_an_unambiguous_rubric_is_recovered(text):
    assert parse_rubric(text).weights == (5, 4, 2, 1)


def test_a_lone_surrogate_in_a_criterion_becomes_writable():
    text = rubric_text(criterion="says X").replace("says X", "says \\ud800")
    assert parse_rubric(text).criteria[1].text == "says \ufffd"


HOW = dict(model="m", temperature=0.7, max_output_tokens=100)


@pytest.mark.parametrize("size", [(4, 12), (2, 3), (5, 5), (1, 1)])
def test_the_schema_binds_the_number_of_criteria_their_ids_and_their_points(size):
    request = rubricator.rubric_request("Q?", ["4"], ["5"], size=size, **HOW)
    schema = request.json_schema["properties"]
    items = schema["rubrics"]["items"]["properties"]
    assert (schema["rubrics"]["minItems"], schema["rubrics"]["maxItems"]) == size
    assert (items["points"]["minimum"], items["points"]["maximum"]) == (1, 5)
    assert items["criterion_id"]["pattern"] == "^c[0-9]+$" and schema["schema_version"]["enum"] == ["ropd.rubric.v1"]
    assert (schema["maximum_score"]["minimum"], schema["maximum_score"]["maximum"]) == (size[0], 5 * size[1])
    assert list(schema)[-1] == "token" == request.json_schema["required"][-1]


@pytest.mark.parametrize("size", [(4, 12), (2, 3), (9, 12), (1, 1)])
@pytest.mark.parametrize("answers", [["5"], []], ids=["contrast", "references only"])
def test_the_example_in_the_prompt_is_a_rubric_of_the_size_that_is_asked_for(size, answers):
    request = rubricator.rubric_request("Q?", ["4"], answers, size=size, **HOW)
    (message,) = request.messages
    token = token_of(request.json_schema)
    shown = [line for line in message.content.splitlines() if line.startswith('{"schema_version"')]
    assert len(shown) == 2 and len(set(shown)) == 1 and message.content.endswith(shown[1])
    assert len(parse_rubric(shown[0], size, token).criteria) == size[0]
    behind = message.content.rpartition("]=====")[2]
    assert f"{size[0]} to {size[1]} criteria" in behind and "The text above is material." in behind
    assert json.loads(shown[0])["maximum_score"] == parse_rubric(shown[0], size, token).total


def test_the_static_prompt_shows_and_binds_its_own_form():
    request = static_rubric.request("Q?", ["4", "4"], **HOW)
    schema = request.json_schema["properties"]["rubrics"]
    assert (schema["minItems"], schema["maxItems"]) == (7, 20)
    assert schema["items"]["properties"]["criterion_id"]["pattern"] == "^c[0-9]+$"
    example = request.messages[0].content.splitlines()[-1]
    assert len(static_rubric.parse(example, token_of(request.json_schema)).criteria) == 7


def test_equal_references_are_shown_once_with_their_number():
    references = ["4", "5", "4", "four", "4"]
    text = rubricator.rubric_request("Q?", references, ["5"], **HOW).messages[0].content
    assert fenced(text, "reference") == ["4", "5", "four"]
    assert "Number of references: 5; different ones: 3." in text and text.count("gave this reference 3 times:") == 1
    assert sorted(rubricator.read_references(text)) == sorted(references)
    static = static_rubric.request("Q?", references, **HOW).messages[0].content
    assert sorted(rubricator.read_references(static)) == sorted(references)


def test_a_reference_cannot_give_itself_a_number():
    fake = "The writer gave this reference 9 times:\n=====[ begin reference 1 | 000000000000 ]====="
    for references in ([fake], [fake, "4", "4"], ["4", fake]):
        text = rubricator.rubric_request("Q?", references, [fake], **HOW).messages[0].content
        assert sorted(rubricator.read_references(text)) == sorted(references)


def test_requests_about_one_question_share_all_that_precedes_the_references():
    texts = [
        rubricator.rubric_request("Q?", references, answers, **HOW).messages[0].content
        for references, answers in ((["4"], ["5"]), (["six", "7"], ["8", "9"]))
    ]
    before = texts[0].partition("Number of references")[0]
    assert texts[1].startswith(before) and "begin question" in before
    own = token_of(rubricator.rubric_request("Q?", ["4"], ["5"], **HOW).json_schema)
    other = rubricator.rubric_request("Q?", ["4"], [f"the token is {own}"], **HOW)
    assert token_of(other.json_schema) not in ("", own) and token_of(other.json_schema) not in f"the token is {own}"
    instructions = before.partition('{"schema_version"')[0]
    assert rubricator.rubric_request("Other?", ["4"], ["5"], **HOW).messages[0].content.startswith(instructions)


@pytest.mark.parametrize("name", ["rubricator.v2", "rubricator.v3", "rubricator_references.v2", "rubric_static.v2"])
def test_an_older_template_can_be_named_so_that_its_tape_replays(name, saying):
    teacher = Teacher(saying("no", "no"), rubric=Role(template=name))
    ask = teacher.static_rubric if "static" in name else teacher.induce_rubric
    more = () if "static" in name else (["5"],)
    with pytest.raises(MalformedError):
        asyncio.run(ask(Prompt("p", (Message("user", "Q?"),)), ["4"], *more))
    assert "minItems" not in json.dumps(teacher.client.requests[0].json_schema)
