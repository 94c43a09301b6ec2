"""Health of the criteria: numbers worked out by hand; unknown values are None."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from ropd_jax.teacher import Role, Teacher, health
from ropd_jax.teacher.judge_group import judge
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.types import Criterion, Judgement, Repeat, Rollout, RolloutGroup, Rubric, UserError
from ropd_jax.workdir.groups import GroupsLog, read_groups

RUBRIC = Rubric((Criterion("c1", "a", 5), Criterion("c2", "b", 2), Criterion("c3", "c", 1)))


def row(text):
    return tuple(c == "1" for c in text)


def judged(passed, references=(), repeat=None):
    passed, references = tuple(map(row, passed)), tuple(map(row, references))
    return Judgement(
        rewards=tuple(RUBRIC.score(v) for v in passed), causes=(None,) * len(passed), rubric=RUBRIC, passed=passed,
        references=("r",) * len(references), reference_passed=references, repeat=repeat,
    )  # fmt: skip


def test_a_step_worked_out_by_hand():
    # c1 discriminates; a reference fails c1, the criterion with the most points
    a = judged(["110", "010"], ["111", "011"])
    b = judged(["111", "111"], ["100"])  # no criterion discriminates; the reference (5/8) is below the rollouts (1)
    failed = Judgement(rewards=(None, None), causes=("timeout", "timeout"))
    assert health.step_health([a, b, failed]) == {
        "health/criteria_mean": 3.0,
        "health/pass_rate": 9 / 12,
        "health/discriminative_frac": 1 / 6,
        "health/reference_pass_rate": 6 / 9,
        "health/reference_fails_frac": 1 / 3,
        "health/reference_below_frac": 1 / 2,
        "health/unexplored_frac": 1 / 6,  # c3 of the first group
        "health/suppressed_frac": 0.0,
    }


def test_unexplored_is_what_a_reference_passes_and_no_rollout():
    assert health.unexplored(judged(["100", "110"], ["101", "001"])) == [False, False, True]
    assert health.unexplored(judged(["100", "110"], ["110"])) == [False, False, False]  # no reference passes c3 either
    assert health.unexplored(judged(["100"])) == [False, True, True]  # no reference was verified


def test_suppressed_is_what_a_rollout_below_the_mean_does_better_than_another():
    low, high = judged(["001", "110", "110"]), judged(["111", "110", "111"])
    assert RUBRIC.score(row("001")) < RUBRIC.score(row("110"))
    assert health.suppressed(low) == [row("001"), row("000"), row("000")]
    assert health.suppressed(high) == [row("000")] * 3  # the one below the mean passes nothing that another fails
    assert health.suppressed(judged(["110", "110"])) == [row("000")] * 2  # no rollout is below any other
    assert health.step_health([low, high])["health/suppressed_frac"] == 1 / 6


def test_unscored_answers_count_nowhere():
    whole = judged(["110", "010"], ["111"])
    more = Judgement(
        rewards=(*whole.rewards, None), causes=(None, None, "missing"), rubric=RUBRIC, passed=(*whole.passed, None),
        references=("r", "s"), reference_passed=(*whole.reference_passed, None),
    )  # fmt: skip
    assert health.step_health([more]) == health.step_health([whole])


def test_nothing_known_is_none():
    known = health.step_health([Judgement(rewards=(None,), causes=("timeout",))])
    assert set(known.values()) == {None} and "health/flip_frac" not in known
    assert health.discriminative(judged(["110"])) == [] and health.references_below(judged(["110"])) is None


def test_a_second_look_gives_flips_order_bias_and_changed_ranks():
    # scores 5/8, 2/8 | reference 8/8; then 7/8, 7/8 | 8/8: the first gained at its later position (+2/8), the second
    # at its earlier one (-5/8), the reference kept its position
    repeat = Repeat((row("110"), row("110"), row("111")), ((0, 2), (2, 0), (1, 1)))
    j = judged(["100", "010"], ["111"], repeat)
    known = health.step_health([j])
    assert known["health/flip_frac"] == 2 / 9
    assert health.order_gains(j) == pytest.approx([2 / 8, -5 / 8])
    assert known["health/order_bias"] == pytest.approx(-1.5 / 8)
    assert known["health/rank_changed_frac"] == 1.0  # 5/8 > 2/8 became a tie
    same = judged(["100", "010"], ["111"], Repeat((row("100"), row("010"), row("111")), ((0, 2), (2, 0), (1, 1))))
    known = health.step_health([same])
    assert [known[f"health/{k}"] for k in ("flip_frac", "order_bias", "rank_changed_frac")] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "a, b, kappa",
    [
        ("1100", "1100", 1.0), ("1100", "0011", -1.0), ("1100", "1000", 0.5), ("1100", "1010", 0.0),
        ("1111", "1111", None), ("", "", None), ("1111", "1110", 0.0),
    ],
)  # fmt: skip
def test_kappa(a, b, kappa):
    assert health.cohens_kappa(row(a), row(b)) == kappa


def test_kappa_needs_equal_numbers_of_verdicts():
    with pytest.raises(ValueError, match="2 and 1"):
        health.cohens_kappa([True, True], [True])


def scripted(**options):
    return Teacher(ScriptedClient(**options.pop("client", {})), references_m=2, **options)


def test_the_share_of_groups_verified_twice_is_the_configs_and_costs_one_call_each(sum_prompt, sum_answers):
    for frac, calls in ((0.0, 20), (1.0, 40)):
        teacher = scripted(repeat_frac=frac)
        judgements = [asyncio.run(judge(teacher, sum_prompt, sum_answers, step=s)) for s in range(20)]
        assert teacher.stats.calls["verify"] == calls
        assert all((j.repeat is not None) == (frac == 1.0) for j in judgements)
    drawn = [asyncio.run(judge(scripted(repeat_frac=0.5), sum_prompt, sum_answers, step=s)).repeat for s in range(40)]
    assert 10 <= sum(r is not None for r in drawn) <= 30


def test_an_honest_verifier_flips_nothing_at_other_places(sum_prompt, sum_answers):
    j = asyncio.run(judge(scripted(repeat_frac=1.0), sum_prompt, sum_answers, step=0))
    assert health.flips(j) and not any(health.flips(j))
    assert any(a != b for a, b in j.repeat.places)
    for look in (0, 1):
        assert sorted(p[look] for p in j.repeat.places) == list(range(6))


def test_a_second_look_that_fails_costs_the_group_nothing(sum_prompt, sum_answers):
    def fault(request, attempt):
        seen.append(request.purpose)
        return "blocked" if seen.count("verify") > 1 else None

    seen = []
    teacher = scripted(repeat_frac=1.0, client=dict(fault=fault))
    j = asyncio.run(judge(teacher, sum_prompt, sum_answers, step=0))
    assert j.repeat is None and None not in j.rewards
    assert teacher.stats.failures == {"blocked": 1} and teacher.stats.unscored == {}


def test_a_second_look_changes_no_reward(sum_prompt, sum_answers):
    once, twice = (
        asyncio.run(
            judge(scripted(repeat_frac=f, client=dict(wrong_verdict_rate=0.3)), sum_prompt, sum_answers, step=0)
        )
        for f in (0.0, 1.0)
    )
    assert once.rewards == twice.rewards and once.passed == twice.passed


@pytest.mark.parametrize("frac", [0.0, 1.0])
def test_groups_are_read_back_as_they_were_judged(tmp_path, sum_prompt, sum_answers, frac):
    teacher = scripted(repeat_frac=frac, reference=(Role("a"), Role("b")))
    j = asyncio.run(judge(teacher, sum_prompt, sum_answers, step=3))
    assert j.reference_models == ("a", "b") and j.lineage.step == 3 and j.lineage.template.startswith("rubricator.v")
    rollouts = tuple(Rollout(np.zeros(3, np.int32), np.zeros(3, np.float32), t, "stop") for t in sum_answers)
    group = RolloutGroup(sum_prompt, np.zeros(2, np.int32), rollouts, 3, 0)
    failed = Judgement(rewards=(None,) * 4, causes=("timeout",) * 4)
    GroupsLog(tmp_path).write(3, [group, group], [j, failed], [[0.5, 0.0, 0.0, -0.5]] * 2)
    first, second = read_groups(tmp_path)
    assert (first.judgement, second.judgement) == (j, failed)
    assert first.answers == tuple(sum_answers) and first.advantages == (0.5, 0.0, 0.0, -0.5)
    assert second.advantages == (None,) * 4
    assert health.step_health([first.judgement]) == health.step_health([j])


def test_missing_groups_and_steps_are_reported(tmp_path):
    with pytest.raises(UserError, match=r"holds no groups; expected .* log\.groups=True"):
        list(read_groups(tmp_path))
    (tmp_path / "groups").mkdir()
    (tmp_path / "groups" / "step_000004.jsonl").write_text(json.dumps({"step": 4}) + "\n")
    with pytest.raises(UserError, match="no step in 5:9; it has 4 to 4"):
        list(read_groups(tmp_path, steps=(5, 9)))
    with pytest.raises(UserError, match=r"step_000004.jsonl:1 is not a group of a run \(KeyError: 'answers'\)"):
        list(read_groups(tmp_path))
