"""Rubrics from the data instead of the teacher's: rar and ropd with fixed rubrics, and rubrics exported from a run."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging

import pytest

from ropd_jax.cli.main import main
from ropd_jax.data.load import load_prompts
from ropd_jax.data.rubrics import RarCriterion, own_rubric, published_rubric, usable
from ropd_jax.methods import load_method
from ropd_jax.teacher import Teacher
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.types import Message, Prompt, UserError
from ropd_jax.workdir.groups import GroupsLog, read_groups
from tests.methods.test_rivals import config, group

LAST = 'The last line is "Answer: 16", and no other line starts with "Answer:".'
STEP = "A line before the last is a correct equation whose result is 13."
ROWS = [{"criterion": LAST, "points": 3}, {"criterion": STEP, "points": 1}]


class Counting(ScriptedClient):
    def __init__(self):
        super().__init__()
        self.asked = []

    async def chat(self, request):
        self.asked.append(request.purpose)
        return await super().chat(request)


def ruled(rows):
    """The group of test_rivals, whose prompt has its own rubric."""
    plain = group()
    return dataclasses.replace(
        plain, prompt=dataclasses.replace(plain.prompt, metadata={"criteria": own_rubric(rows, "f:1")})
    )


def judged(name, rows=ROWS, **changes):
    method, client = load_method(name, config(**changes)), Counting()
    return method, asyncio.run(method.judge(Teacher(client, references_m=2), ruled(rows))), client.asked


def test_rar_with_published_rubrics_asks_for_verdicts_only():
    method, j, asked = judged("rar", rar__rubrics="published")
    assert set(asked) == {"verify"} and method.asks == {"verify": 1}
    assert j.rewards == (1.0, 0.75, 0.0, 0.0)
    assert [(c.text, c.points) for c in j.rubric.criteria] == [(LAST, 3), (STEP, 1)]
    method, j, asked = judged("rar", rar__rubrics="published", rar__mode="implicit")
    assert set(asked) == {"score"} and method.asks == {"score": 1} and len(j.scores) == 4


def test_ropd_with_a_fixed_rubric_skips_the_rubricator_and_keeps_the_references():
    method, j, asked = judged("ropd", ropd__rubrics="published")
    assert set(asked) == {"reference", "verify"} and method.asks == {"reference": 1, "verify": 1}
    assert j.rewards == (1.0, 0.75, 0.0, 0.0) and len(j.reference_passed) == 2
    method, j, asked = judged("ropd", ropd__rubrics="published", ropd__pool_references=False)
    assert set(asked) == {"verify"} and method.asks == {"verify": 1} and j.rewards == (1.0, 0.75, 0.0, 0.0)
    assert "rubric" in judged("ropd")[2]  # the default induces one


def test_a_fault_is_asked_for_as_avoided_and_an_unknown_polarity_not_at_all():
    rows = [{"title": "Essential", "description": "Names it.", "weight": 5},
            {"title": "Pitfall", "description": "Incorrectly states a gain.", "weight": -2},
            {"title": "Pitfall", "description": "Suggests a gain.", "weight": -1}]  # fmt: skip
    prompt = Prompt("a", (Message("user", "q"),), metadata={"criteria": own_rubric(rows, "f:1")})
    assert [(c.text, c.points, c.category) for c in published_rubric(prompt).criteria] == [
        ("Names it.", 5, "Essential"),
        ("The answer avoids this fault: Incorrectly states a gain.", 2, "Pitfall"),
    ]
    assert all(c.met_is_good for c in usable(prompt))
    assert own_rubric([{"criterion": "Is rude.", "points": -3}], "f:1") == (RarCriterion("", "Is rude.", 3, False),)
    _, j, asked = judged("rar", rows[2:], rar__rubrics="published")
    assert (j.rewards, j.causes, asked) == ((None,) * 4, ("no_criteria",) * 4, [])


@pytest.mark.parametrize("key", ["rar", "ropd"])
def test_prompts_without_a_rubric_are_refused_before_the_run(key, caplog):
    caplog.set_level(logging.WARNING)
    method = load_method(key, config(**{f"{key}__rubrics": "published"}))
    with_rubric, without = ruled(ROWS).prompt, Prompt("bare", (Message("user", "q"),))
    method.check_prompts([with_rubric])
    with pytest.raises(UserError, match=rf"{key}.rubrics='published', but 1 of 2 prompts .* \(the first: bare\)"):
        method.check_prompts([with_rubric, without])
    load_method("ropd", config()).check_prompts([with_rubric])
    assert "1 prompts have their own rubric, which is ignored" in caplog.text


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("rar", {"rar__rubrics": "x"}, "rar.rubrics='x'; expected 'teacher' or 'published'"),
        ("ropd", {"ropd__rubrics": "x"}, "ropd.rubrics='x'; expected 'teacher' or 'published'"),
        ("ropd", {"ropd__rubrics": "published", "ropd__rubric_per": "pair"}, "one rubric per prompt"),
    ],
)
def test_settings_that_cannot_work_are_refused(name, changes, message):
    with pytest.raises(UserError, match=message):
        load_method(name, config(**changes))


@pytest.mark.parametrize(
    "rubric",
    [[], "Be kind.", [{"criterion": "a"}], [{"criterion": "a", "points": 0}], [{"criterion": " ", "points": 1}],
     [{"criterion": "a", "points": 1.5}], [{"criterion": "a", "points": True}], ["a"]],
)  # fmt: skip
def test_a_rubric_of_another_form_is_refused_with_its_row(tmp_path, rubric):
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "q", "rubric": rubric}) + "\n")
    with pytest.raises(UserError, match=r"a.jsonl:1: .*expected .*criterion: a text, points: a whole number"):
        load_prompts(source="jsonl", path=str(tmp_path / "a.jsonl"))


def test_exported_rubrics_carry_their_lineage_and_can_be_trained_on(tmp_path, capsys):
    run = tmp_path / "run"
    method, one = load_method("ropd", config()), group()
    judgement = asyncio.run(method.judge(Teacher(ScriptedClient(), references_m=2), one))
    for step in (0, 1):
        GroupsLog(run).write(step, [dataclasses.replace(one, step=step)], [judgement], [(0.0,) * 4])
    assert main(["rubrics", "export", str(run)]) == 0
    assert "1 rubrics of" in capsys.readouterr().out
    (row,) = [json.loads(line) for line in (run / "rubrics.jsonl").read_text().splitlines()]
    assert (row["id"], row["answer"], row["steps"], row["sha"]) == ("q", "16", [0, 1], judgement.rubric.sha)
    assert row["lineage"]["model"] == judgement.lineage.model and len(row["lineage"]["answers"]) == 4
    (again,) = load_prompts(source="jsonl", path=str(run / "rubrics.jsonl"))
    assert [(c.text, c.points) for c in published_rubric(again).criteria] == [
        (c.text, c.points) for c in judgement.rubric.criteria
    ]
    if (run / "rubrics.parquet").exists():
        parquet = pytest.importorskip("pyarrow.parquet")
        assert parquet.read_table(run / "rubrics.parquet").to_pylist()[0]["rubric"] == row["rubric"]
    assert main(["rubrics", "export", str(run), str(tmp_path / "a.csv")]) == 2
    assert main(["rubrics", "exprt", str(run)]) == 2
    assert "did you mean export?" in capsys.readouterr().err


def test_rubrics_of_pairs_are_exported_with_their_own_lineage(tmp_path):
    run = tmp_path / "run"
    method, one = load_method("ropd", config(ropd__rubric_per="pair")), group()
    judgement = asyncio.run(method.judge(Teacher(ScriptedClient(), references_m=2), one))
    GroupsLog(run).write(0, [one], [judgement], [(0.0,) * 4])
    (back,) = read_groups(run)
    for part, own in zip(back.judgement.parts, judgement.parts, strict=True):
        assert (part.rubric, part.passed, part.rewards, part.lineage) == (
            own.rubric, own.passed, own.rewards, own.lineage,
        )  # fmt: skip
    assert main(["rubrics", "export", str(run), str(tmp_path / "out.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {row["sha"] for row in rows} == {part.rubric.sha for part in judgement.parts}
    assert all(len(row["lineage"]["answers"]) == 1 and row["reward_mean"] is not None for row in rows)
