"""The independent judge of held-out answers: separate from the teacher, counted, and without any effect on a run."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from ropd_jax.plan import preflight
from ropd_jax.teacher import Teacher
from ropd_jax.train import train
from ropd_jax.training.drift import alarms
from ropd_jax.training.heldout import held_out_judge
from ropd_jax.training.setup import check_config
from ropd_jax.types import Message, Prompt, Rollout, RolloutGroup, UserError
from ropd_jax.workdir.metrics import read_metrics
from tests.helpers import serving, trees_max_diff
from tests.runs.test_train import finished_params, tiny_config
from tests.teacher.conftest import Saying


@pytest.fixture(scope="module")
def judged_run(tmp_path_factory):
    """Two steps without gold answers, an evaluation after each; the judge is behind HTTP, the teacher is not."""
    workdir = tmp_path_factory.mktemp("judged")
    ask = "State the final answer to the following arithmetic problem: {} + {} - 2 + 4 ="
    rows = [{"id": f"{a}-{b}", "problem": ask.format(a, b)} for a in range(1, 7) for b in range(3, 9)]
    for name, part in (("train", rows[:24]), ("held", rows[24:])):
        (workdir / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    with serving() as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "unused")
        cfg = tiny_config(
            data__source="jsonl", data__path=str(workdir / "train.jsonl"), data__task="",
            data__heldout_path=str(workdir / "held.jsonl"), eval__every=1, eval__judged=5,
            teacher__judge__provider="openai", teacher__judge__base_url=f"{address}/v1", teacher__judge__model="other",
        )  # fmt: skip
        train(cfg, workdir / "run")
    return workdir, cfg


def test_the_same_slice_is_judged_at_each_evaluation_and_counted(judged_run):
    series = read_metrics(judged_run[0] / "run")
    assert series["eval/accuracy"][1] == [None] * 3  # no gold answers
    assert series["eval/judge_n"] == ([0, 1, 2], [5, 5, 5]) and series["eval/judge_ungraded"][1] == [0, 0, 0]
    assert all(0 <= grade <= 1 for grade in series["eval/judge"][1])
    assert all(error >= 0 for error in series["eval/judge_error"][1])
    asked = [series.get(f"teacher/{what}_judge", ([], [0]))[1][-1] for what in ("calls", "taped")]
    assert asked[0] >= 5 and sum(asked) == 10  # before and after the first step; a repeated answer is on the tape
    result = json.loads((judged_run[0] / "run" / "result.json").read_text())
    assert result["drift_alarms"] == alarms(series) == []


def test_no_reward_comes_of_it(judged_run, tmp_path):
    workdir, cfg = judged_run
    alone = cfg.copy_and_resolve_references()
    with alone.unlocked():
        alone.teacher.judge.model = ""
    train(alone.lock(), tmp_path / "run")
    both = [finished_params(run, 2) for run in (workdir / "run", tmp_path / "run")]
    assert trees_max_diff(*(state["params"] for state in both)) == 0.0
    assert "eval/judge" not in read_metrics(tmp_path / "run")


def test_who_gives_rewards_is_no_held_out_judge():
    check_config(tiny_config(teacher__judge__model="another"))
    for role in ("verifier", "scorer"):
        both = {"teacher__judge__model": "m", f"teacher__{role}__model": "m"}
        with pytest.raises(UserError, match=f"teacher.judge is the same model as teacher.{role}"):
            check_config(tiny_config(**both))
        check_config(tiny_config(**both, teacher__judge__provider="openai"))
    with pytest.raises(UserError, match=r"eval\.judged=1; expected at least 2"):
        check_config(tiny_config(teacher__judge__model="another", eval__judged=1))


def test_its_calls_are_in_the_plan_of_the_costs():
    prompts = [Prompt("p", (Message("user", "What is 1 + 2 ="),))]
    judge = {"teacher__judge__model": "gpt-4.1", "teacher__judge__provider": "openai"}
    cfg = tiny_config(steps=5, eval__every=2, eval__judged=7, **judge)
    rows = {r.role: r for r in preflight.plan(cfg, prompts, asks={"rubric": 1}, tape=None)}
    assert rows["judge"].calls == 7 * 4  # before, after steps 2 and 4, and at the end
    assert rows["judge"].usd_max == pytest.approx(
        (rows["judge"].input_tokens_max * 2 + rows["judge"].output_tokens_max * 8) / 1e6
    )
    assert rows["judge"].input_tokens_max < 7 * 4 * 1000  # one answer, and no references


FREE = "Because the concentration of the acid doubles, the rate doubles too."


def test_free_text_golds_without_a_judge_are_refused_before_the_first_step(tmp_path):
    rows = [{"id": str(n), "problem": f"Why {n}?", "answer": FREE} for n in range(24)]
    for name, part in (("train", rows[:16]), ("held", rows[16:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    data = dict(
        data__source="jsonl", data__path=str(tmp_path / "train.jsonl"), data__heldout_path=str(tmp_path / "held.jsonl")
    )
    for changes, message in (
        ({}, "gold answers are free text .* name a judge with --config.teacher.judge.model"),
        ({"method": "rlvr"}, "method=rlvr rewards by exact comparison"),
    ):
        with pytest.raises(UserError, match=message):
            train(tiny_config(**data, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


def test_the_judge_sees_a_free_text_gold_as_a_reference_and_no_other():
    client = Saying(*['{"answers": []}'] * 8)
    for answer, shown in ((FREE, True), ("656 nm", False)):
        prompt = Prompt("p", (Message("user", "Why?"),), answer=answer)
        group = RolloutGroup(prompt, np.zeros(1, np.int32), (Rollout(np.zeros(1), np.zeros(1), "So.", "stop"),), 0, 0)
        asyncio.run(held_out_judge(Teacher(client), group))
        assert (answer in str(client.requests[-1])) is shown
