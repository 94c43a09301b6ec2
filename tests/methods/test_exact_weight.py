"""``rewards.exact_weight``: the exact grade as a part of a rubric's or judge's reward."""

from __future__ import annotations

import asyncio
import json

import pytest

from ropd_jax.core.rewards import with_exact
from ropd_jax.methods import load_method
from ropd_jax.plan import preflight
from ropd_jax.teacher import Teacher
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.train import train
from ropd_jax.training.collect import judge_by
from ropd_jax.training.metrics import reward_parts
from ropd_jax.training.validate import check_exact, check_gradable
from ropd_jax.types import Judgement, Message, Prompt, UserError
from ropd_jax.workdir.groups import group_from, group_row
from tests.methods.test_rivals import config, group
from tests.runs.test_train import tiny_config

RIGHT = (True, True, False, False)  # of the answers of test_rivals


def judged(name="ropd", of=None, **changes):
    method = load_method(name, config(**changes))
    return method, asyncio.run(judge_by(method, Teacher(ScriptedClient(), references_m=2), of or group()))


def test_the_formula_of_one_group():
    rewards, causes = with_exact((1.0, 0.5, 0.5, None), (None, None, None, "timeout"), (True, False, None, True), 0.25)
    assert rewards == (1.0, 0.375, None, None)
    assert causes == (None, None, "ungraded", "timeout")  # what was unscored keeps its cause


@pytest.mark.parametrize(("name", "more"), [("ropd", {}), ("permuted", {}), ("t_judge", {}), ("ovd", {}),
                                            ("rar", {}), ("ropd", {"ropd__rubric_per": "pair"})])  # fmt: skip
def test_every_method_with_a_judged_reward_mixes_the_grade_in(name, more):
    _, plain = judged(name, **more)
    method, mixed = judged(name, rewards__exact_weight=0.25, **more)
    assert method.takes_exact and mixed.exact == RIGHT and mixed.taught == plain.rewards
    for reward, own, right in zip(mixed.rewards, plain.rewards, RIGHT, strict=True):
        assert reward == pytest.approx(0.75 * own + 0.25 * right)
    reward_PG, valid_PG = method.rewards([group()], [mixed])
    assert valid_PG.all() and reward_PG[0].tolist() == pytest.approx(mixed.rewards)


def test_without_a_gold_answer_the_method_alone_counts_and_nothing_unknown_becomes_a_number():
    none = group(gold=None)
    _, plain = judged(of=none)
    _, mixed = judged(of=none, rewards__exact_weight=0.5)
    assert mixed.rewards == plain.rewards and mixed.exact == (None,) * 4 and mixed.taught == plain.rewards
    parts = reward_parts([mixed, judged(rewards__exact_weight=0.5)[1]])
    assert parts["reward/without_exact_frac"] == 0.5 and parts["reward/exact_mean"] == 0.5
    assert reward_parts([plain]) == {}


def test_an_answer_that_the_grader_does_not_decide_is_unscored(monkeypatch):
    monkeypatch.setattr("ropd_jax.methods.base.grade", lambda prompt, text: None if "18" in text else True)
    _, mixed = judged(rewards__exact_weight=0.5)
    assert mixed.rewards[3] is None and mixed.causes[3] == "ungraded" and None not in mixed.rewards[:3]


def test_what_the_teacher_left_unscored_stays_unscored():
    method = load_method("ropd", config(rewards__exact_weight=0.5))
    lost = Judgement(rewards=(None,) * 4, causes=("timeout",) * 4)
    mixed = method.with_exact(lost, group())
    assert (mixed.rewards, mixed.causes) == (lost.rewards, lost.causes)
    assert not method.rewards([group()], [mixed])[1].any()


@pytest.mark.parametrize(("name", "changes", "why"), [
    ("rlvr", {}, "exact grade already"),
    ("ovd", {"ovd__mode": "filter"}, "exact grade already"),
    ("sft", {}, "no judged reward"),
    ("gad", {}, "no judged reward"),
])  # fmt: skip
def test_a_method_without_room_for_it_is_refused(name, changes, why):
    method = load_method(name, config(**changes))
    check_exact(0.0, method, name)
    with pytest.raises(UserError, match=rf"exact_weight=0.5, but method={name} .*{why}"):
        check_exact(0.5, method, name)


def test_data_without_any_gold_answer_is_refused(tmp_path, caplog):
    bare, gold = (Prompt(a or "b", (Message("user", "q"),), answer=a) for a in (None, "5"))
    check_gradable(0.0, [bare])
    check_gradable(0.5, [bare, gold])
    assert "1 of 2 training prompts have no exact grade" in caplog.text
    with pytest.raises(UserError, match="none of the 1 training prompts has a gold answer"):
        check_gradable(0.5, [bare])
    (tmp_path / "a.jsonl").write_text("".join(f'{{"question": "How is day {i}?"}}\n' for i in range(8)))
    cfg = tiny_config(data__source="jsonl", data__task="", data__path=str(tmp_path / "a.jsonl"),
                      rewards__exact_weight=0.5)  # fmt: skip
    with pytest.raises(UserError, match="none of the 8 training prompts"):
        train(cfg, tmp_path / "run")
    with pytest.raises(UserError, match="none of the 8 training prompts"):
        preflight.run(cfg, calls=False)
    assert not (tmp_path / "run" / "config.json").exists()


def test_both_parts_are_stored_with_each_answer_and_read_back():
    _, mixed = judged(rewards__exact_weight=0.25)
    row = json.loads(json.dumps(group_row(group(), mixed, [0.0] * 4)))
    assert [a["exact"] for a in row["answers"]] == list(RIGHT)
    assert [a["method_reward"] for a in row["answers"]] == list(mixed.taught)
    back = group_from(row).judgement
    assert (back.rewards, back.exact, back.taught) == (mixed.rewards, mixed.exact, mixed.taught)
    plain = group_row(group(), judged()[1], [0.0] * 4)
    assert "exact" not in plain["answers"][0]
    assert group_from(plain).judgement.exact == ()
