"""docs/data.md: each example is a row that loads, and each cause is one that the package counts."""

from __future__ import annotations

import json
import pathlib
import re

import pytest

from ropd_jax.data.grader import grade
from ropd_jax.data.load import load_prompts
from ropd_jax.data.rubrics import published_rubric

ROOT = pathlib.Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
TASKS = {"IFEval": "ifeval", "reasoning-gym": "reasoning_gym:fraction_simplification"}
GOLDS = {
    "A question and its answer": ["4"],
    "GSM8K": ["4"],
    "MATH": [r"\frac{3}{4}"],
    "verl": ["4"],
    "TRL": [r"$\frac{3}{4}$", "4", "4"],
    "IFEval": [None],
    "reasoning-gym": ["23/131"],
    "A rubric of your own": [None],
    "RaR": ["Because air scatters short waves more."],
}


def examples():
    part = DOCS.partition("## Rows of JSONL")[2].partition("\n## ")[0]
    for section in re.split(r"(?m)^### ", part)[1:]:
        yield section.partition("\n")[0], re.findall(r"```json\n(.*?)\n```", section, re.DOTALL)


def test_every_form_has_an_example():
    assert {name: len(rows) for name, rows in examples()} == {name: len(golds) for name, golds in GOLDS.items()}


@pytest.mark.parametrize(("name", "rows"), list(examples()))
def test_the_examples_load_with_their_gold_answers(tmp_path, name, rows):
    for row, gold in zip(rows, GOLDS[name], strict=True):
        (tmp_path / "a.jsonl").write_text(row + "\n", encoding="utf-8")
        (prompt,) = load_prompts(source="jsonl", path=str(tmp_path / "a.jsonl"), task=TASKS.get(name, ""))
        assert prompt.answer == gold
        if gold is not None and name != "RaR":
            assert grade(prompt, f"Answer: {gold}") is True and grade(prompt, "Answer: 17") is False
        if name == "IFEval":
            assert grade(prompt, "Red") is True and grade(prompt, "Red, blue") is False
        if "rubric" in json.loads(row):
            assert len(published_rubric(prompt).criteria) == len(json.loads(row)["rubric"])


def test_the_table_has_every_cause_that_is_counted():
    table = DOCS.partition("## What is left out")[2]
    listed = set(re.findall(r"(?m)^\| `(\w+)` \|", table))
    text = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "ropd_jax" / "data").glob("*.py"))
    counted = set(re.findall(r'dropped\["(\w+)"\]', text)) | {"over_size", "in_held_out"}
    assert listed == counted
