"""The rubricator's wire format: every shared vector, and the official release's cases that the vectors lack."""

from __future__ import annotations

import json
import math
import pathlib

import pytest

from ropd_jax.teacher import MalformedError, parse_rubric

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
