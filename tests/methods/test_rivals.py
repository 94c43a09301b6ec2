"""The baselines that train no second network: their rewards, and what a failure becomes in each."""

from __future__ import annotations

import asyncio
import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import quickstart
from ropd_jax.core.advantages import Advantages
from ropd_jax.core.batches import TokenSequence
from ropd_jax.methods import Tokens, load_method
from ropd_jax.methods.base import without_overlong
from ropd_jax.teacher import ConfigurationError, Teacher, TransientError
from ropd_jax.teacher.roles.kinds import kind_of
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.types import Message, Prompt, Rollout, RolloutGroup, UserError
from tests.helpers import FailsAt, IdTokenizer
from tests.methods import test_methods

QUESTION = "State the final answer to the following arithmetic problem: 9 + 5 - 1 + 3 ="
FULL = "9 + 5 = 14\n14 - 1 = 13\n13 + 3 = 16\nAnswer: 16"
ANSWERS = (FULL, "9 + 5 = 14\nAnswer: 16", "<think>Answer: 16</think>Answer: 17", "9 + 5 = 15\nAnswer: 18")


def config(**changes):
    cfg = quickstart.get_config()
    cfg.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return cfg.lock()


def group(answers=ANSWERS, gold="16", finish=None):
    finish = finish or ["stop"] * len(answers)
    rollouts = tuple(
        Rollout(np.array([2] * n, np.int32), np.zeros(n, np.float32), a, f)
        for n, (a, f) in enumerate(zip(answers, finish, strict=True), 1)
    )
    prompt = Prompt("q", (Message("user", QUESTION),), answer=gold, task="chain_sum")
    return RolloutGroup(prompt, np.array([5], np.int32), rollouts, step=0, index=0)


def judged(name, *, client=None, of=None, **changes):
    method = load_method(name, config(**changes))
    return method, asyncio.run(method.judge(Teacher(client or ScriptedClient(), references_m=2), of or group()))


def test_rlvr_is_the_exact_answer_and_asks_nobody():
    method, j = judged("rlvr", client=FailsAt("reference", AssertionError))
    assert j.rewards == (1.0, 1.0, 0.0, 0.0) and j.causes == (None,) * 4 and method.asks == {}
    assert judged("rlvr", of=group(gold=None))[1].causes == ("ungraded",) * 4


@pytest.mark.parametrize("references", [True, False])
def test_t_judge_brings_its_grade_to_the_unit_interval(references):
    method, j = judged("t_judge", t_judge__references=references)
    assert j.scores == (10, 8, 1, 1) and j.rewards == (1.0, 7 / 9, 0.0, 0.0)
    assert bool(j.references) is references and ("reference" in method.asks) is references


def test_ovd_reward_is_the_digit_over_nine():
    _, j = judged("ovd")
    assert j.scores == (9, 7, 0, 0) and j.rewards == (1.0, 7 / 9, 0.0, 0.0) and j.references == ()


class Chars(IdTokenizer):
    def encode(self, text):
        return [ord(c) for c in text]


def test_ovd_filter_replaces_the_rejected_and_pays_the_outcome():
    method, j = judged("ovd", ovd__mode="filter", ovd__threshold=8)
    assert method.shown(j) == [None, j.references[0], j.references[1], j.references[0]]
    assert j.rewards == (1.0, 1.0, 1.0, 1.0)  # three demonstrations, all right
    rows = method.sequences(group(), j, Chars())
    assert rows[0].completion_T.tolist() == [2] and rows[0].old_logp_T.tolist() == [0.0]
    assert rows[1].completion_T.tolist() == [*map(ord, FULL), 1] and np.isnan(rows[1].old_logp_T).all()
    method, j = judged("ovd", ovd__mode="filter", ovd__threshold=5)
    assert j.rewards == (1.0, 1.0, 1.0, 1.0) and method.shown(j)[1] is None  # no contrast is left
    method, j = judged("ovd", ovd__mode="filter", ovd__threshold=0)  # no rollout is rejected
    assert j.rewards == (1.0, 1.0, 0.0, 0.0) and method.shown(j) == [None] * 4


def test_a_demonstration_has_ratio_one_whatever_the_clip():
    """A demonstration with advantage A gives the gradient of A times cross-entropy."""
    import jax

    method = load_method("ovd", config(ovd__mode="filter"))
    logp = jnp.float32([[-3.0, -0.1]])

    def total(logp, old):
        from ropd_jax.core.batches import TokenSequence, make_batch

        rows = [TokenSequence(np.array([3], np.int32), np.array([4, 1], np.int32), np.asarray(old, np.float32))]
        batch = make_batch(rows, np.float32([2.0]), np.array([True]), np.array([True]), 3)
        loss, _ = method.loss(Tokens(batch, logp, jnp.zeros_like(logp)))
        return loss.sum()

    np.testing.assert_allclose(jax.grad(total)(logp, [np.nan, np.nan]), [[-2.0, -2.0]])
    np.testing.assert_allclose(jax.grad(total)(logp, [-4.0, -0.1]), [[0.0, -2.0]])  # sampled: ratio e, clipped


@pytest.mark.parametrize("mode", ["explicit", "implicit"])
def test_rar_makes_one_rubric_a_prompt(mode):
    method = load_method("rar", config(rar__mode=mode))
    asked = []

    class Counting(ScriptedClient):
        async def chat(self, request):
            asked.append(request.purpose)
            return await super().chat(request)

    async def twice():
        teacher = Teacher(Counting(), references_m=2)
        return await method.judge(teacher, group()), await method.judge(teacher, group(ANSWERS[::-1]))

    first, second = asyncio.run(twice())
    assert asked.count("rubric") == 1 and asked.count("reference") == 2 and first.rubric == second.rubric
    assert first.rewards == second.rewards[::-1] and first.rewards[0] == 1.0
    if mode == "explicit":
        weights = {"Essential": 1.0, "Important": 0.7, "Optional": 0.3, "Pitfall": 0.8}
        w = np.array([weights[c.category] for c in first.rubric.criteria])
        np.testing.assert_allclose(first.rewards, [w @ np.array(v) / w.sum() for v in first.passed])
    else:
        assert first.rewards == tuple((s - 1) / 9 for s in first.scores)


@pytest.mark.parametrize(
    ("name", "purpose", "changes"),
    [
        ("t_judge", "reference", {}),
        ("t_judge", "score", {}),
        ("ovd", "score", {}),
        ("ovd", "reference", {"ovd__mode": "filter"}),
        ("rar", "rubric", {}),
        ("rar", "verify", {}),
        ("rar", "score", {"rar__mode": "implicit"}),
        ("ropd", "rubric", {"ropd__rubric_per": "pair"}),
        ("ropd", "reference", {"ropd__rubric_per": "pair"}),
    ],
)
def test_a_failure_is_unscored_with_its_cause_and_a_wrong_key_stops_the_run(name, purpose, changes):
    _, j = judged(name, client=FailsAt(purpose, TransientError("503", cause="server_error")), **changes)
    assert j.rewards == (None,) * 4 and j.causes == ("server_error",) * 4
    with pytest.raises(ConfigurationError):
        judged(name, client=FailsAt(purpose, ConfigurationError("401")), **changes)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("ovd", {"ovd__mode": "both"}, "ovd.mode='both'.*'reward' or 'filter'"),
        ("ovd", {"ovd__threshold": 10}, "ovd.threshold=10.*0 to 9"),
        ("ovd", {"ovd__mode": "filter", "loss__overlong": "shape"}, "set loss.overlong='mask' or 'keep'"),
        ("rar", {"rar__mode": "x"}, "rar.mode='x'"),
        ("ropd", {"ropd__rubric_per": "x"}, "ropd.rubric_per='x'"),
        (
            "ropd",
            {"ropd__rubric_per": "pair", "teacher__rubric_reuse": "per_epoch"},
            "set teacher.rubric_reuse='fresh'",
        ),
        ("ropd", {"ropd__least_criteria": 9, "ropd__most_criteria": 8}, "least_criteria=9"),
        ("ropd", {"ropd__references_pass": 0.5, "ropd__pool_references": False}, "set ropd.pool_references=True"),
        ("ropd", {"ropd__reliability_weights": True}, "teacher.calibration is empty; expected the report.json"),
        ("ropd", {"ropd__reliability_weights": True, "teacher__calibration": "/no"}, "no file '/no'"),
    ],
)
def test_a_switch_that_cannot_work_is_named(name, changes, said):
    with pytest.raises(UserError, match=said):
        load_method(name, config(**changes))


# ------------------------------------------------------------------------------------------------------ ROPD's own


def test_variance_weights_change_rewards_and_are_kept_beside_the_points():
    _, plain = judged("ropd")
    _, scaled = judged("ropd", ropd__variance_weights=True)
    assert plain.weights == () and len(scaled.weights) == len(scaled.rubric.criteria)
    assert sum(scaled.weights) == pytest.approx(scaled.rubric.total)
    w = np.array(scaled.weights)
    np.testing.assert_allclose(scaled.rewards, [w @ np.array(v) / w.sum() for v in scaled.passed])
    assert scaled.rewards != plain.rewards and scaled.passed == plain.passed


def report(path, **reliability):
    """A calibration's report, reduced to what a run reads."""
    kinds = {kind: {"reliability": value} for kind, value in reliability.items()}
    path.write_text(json.dumps({"schema_version": "ropd.calibration.v1", "kinds": kinds}))
    return str(path)


def test_reliability_weights_scale_points_by_the_kind_of_criterion(tmp_path):
    file = report(tmp_path / "report.json", final_result=1.0, intermediate_fact=0.5, form=0.0, no_error=None)
    _, plain = judged("ropd")
    _, scaled = judged("ropd", ropd__reliability_weights=True, teacher__calibration=file)
    criteria = scaled.rubric.criteria
    known = {"final_result": 1.0, "intermediate_fact": 0.5, "form": 0.0}
    kinds = [kind_of(c.category, c.text) for c in criteria]
    assert {"final_result", "intermediate_fact"} <= set(kinds)
    mean = np.mean([known[k] for k in kinds if k in known])
    want = np.array([c.points * known.get(k, mean) for c, k in zip(criteria, kinds, strict=True)])
    np.testing.assert_allclose(scaled.weights, want)
    np.testing.assert_allclose(scaled.rewards, [want @ np.array(v) / want.sum() for v in scaled.passed])
    assert scaled.rewards != plain.rewards and scaled.passed == plain.passed


def test_a_judge_that_is_reliable_in_nothing_leaves_the_group_unscored(tmp_path):
    kinds = ("final_result", "intermediate_fact", "method", "form", "constraint", "no_error")
    file = report(tmp_path / "report.json", **dict.fromkeys(kinds, 0.0))
    _, j = judged("ropd", ropd__reliability_weights=True, teacher__calibration=file)
    assert j.rewards == (None,) * 4 and j.causes == ("no_criteria",) * 4


def test_criteria_that_the_references_fail_are_dropped():
    """Slips differ between the references: a criterion that one of them fails is dropped if all must pass."""
    client = ScriptedClient(slip_rate=1.0)
    _, j = judged("ropd", client=client, ropd__references_pass=1.0)
    failed = [not all(row[k] for row in j.reference_passed) for k in range(len(j.rubric.criteria))]
    assert any(failed) and [w == 0 for w in j.weights] == failed
    _, kept = judged("ropd", client=client)
    assert kept.weights == () and kept.reference_passed == j.reference_passed


def test_no_criterion_left_is_unscored_not_zero():
    import dataclasses

    method, j = judged("ropd", ropd__references_pass=0.5)
    failing = dataclasses.replace(j, reference_passed=((False,) * len(j.rubric.criteria),))
    assert method.reweighted(failing, test_methods.group()).causes == ("no_criteria",) * 4
    assert method.reweighted(failing, test_methods.group()).rewards == (None,) * 4


# ---------------------------------------------------------------------------------------------------- every method


def test_overlong_answers_are_punished_or_masked_and_stay_in_the_baseline():
    g = group(finish=["stop", "stop", "stop", "length"])  # 1, 2, 3, 4 tokens
    shape = config(loss__overlong="shape", loss__overlong_buffer=2, sampling__max_tokens=4)
    method = load_method("rlvr", shape)
    reward_PG, valid_PG = method.rewards([g], [asyncio.run(method.judge(None, g))])
    np.testing.assert_allclose(reward_PG, [[1.0, 1.0, -0.5, -1.0]])
    assert valid_PG.all()
    adv = method.advantages(reward_PG, valid_PG, 0)
    rows = method.sequences(g, None, Chars())
    masked = without_overlong(adv, [g], rows)
    np.testing.assert_allclose(masked.advantage_PG, [[*np.asarray(adv.advantage_PG)[0, :3], 0.0]])
    np.testing.assert_array_equal(masked.valid_PG, [[True, True, True, False]])
    shown = [*rows[:3], TokenSequence(g.prompt_tokens_T, np.array([7, 1], np.int32), np.full(2, np.nan, np.float32))]
    assert np.asarray(without_overlong(adv, [g], shown).valid_PG).all()  # a demonstration in its place was not cut
    other = Advantages(*(np.ones((1, 2)) > 0,) * 3)
    assert np.asarray(without_overlong(other, [g], shown[-1:] * 2).valid_PG).all()  # only references


def test_an_unscored_rollout_gets_no_punishment_that_would_score_it():
    g = group(gold=None, finish=["length"] * 4)
    method = load_method("rlvr", config(loss__overlong="shape", loss__overlong_buffer=2))
    reward_PG, valid_PG = method.rewards([g], [asyncio.run(method.judge(None, g))])
    assert np.isnan(reward_PG).all() and not valid_PG.any()
