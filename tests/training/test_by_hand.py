"""`judge` and `update`: one step of the loop at a time, from a script, a notebook or a coroutine."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import threading

import jax
import numpy as np
import pytest

import ropd_jax as ropd
from ropd_jax.core.batches import TokenSequence, make_batch
from ropd_jax.models import transformer
from ropd_jax.models.logprobs import token_logprobs
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.training.by_hand import judge
from tests.helpers import QUESTION, FailsAt, trees_max_diff


@pytest.fixture(scope="module")
def student():
    return ropd.load_student("tiny")


@pytest.fixture
def teacher():
    made = ropd.make_teacher(ropd.default_config())
    yield made
    made.blocking.close()


@pytest.fixture(scope="module")
def groups(student):
    return ropd.sample(student, [QUESTION, QUESTION.replace("9", "8")], n=6, max_tokens=48)


@pytest.fixture(scope="module")
def judgements(groups):
    made = ropd.make_teacher(ropd.default_config())
    with made.blocking:
        return ropd.judge(made, groups)


def test_judge_in_a_script(teacher, groups, judgements):
    assert [len(j.rewards) for j in judgements] == [6, 6]
    for group, judgement in zip(groups, judgements, strict=True):
        for rollout, reward, passed in zip(group.rollouts, judgement.rewards, judgement.passed, strict=True):
            assert reward == judgement.rubric.score(passed)
            right = "14 - 1 = 13\n13 + 3 = 16\nAnswer: 16" in rollout.text and group.prompt.question == QUESTION
            assert not right or reward == 1.0
    assert ropd.judge(teacher, []) == []


def test_judge_and_a_coroutine_of_the_teacher_in_a_loop_that_runs(teacher, groups, judgements):
    async def main():
        waiting = asyncio.create_task(teacher.references(groups[0].prompt))
        await asyncio.sleep(0)  # the request is out
        found = ropd.judge(teacher, groups)  # a plain call, as in a cell of a notebook
        return found, await waiting, await teacher.references(groups[1].prompt)

    found, first, second = asyncio.run(main())
    assert [j.rewards for j in found] == [j.rewards for j in judgements]
    assert (first, second) == (found[0].references, found[1].references)
    assert teacher.blocking.references(groups[0].prompt) == first  # and in a script again


def test_judge_takes_a_class_and_its_settings(teacher, groups):
    class Share(ropd.Method):
        async def judge(self, teacher, group):
            n = len(group.rollouts)
            return ropd.Judgement((self.cfg.loss.clip_low,) * n, (None,) * n)

    cfg = ropd.default_config()
    cfg.loss.clip_low = 0.125
    assert [j.rewards for j in ropd.judge(teacher, groups, Share, cfg=cfg)] == [(0.125,) * 6] * 2
    assert [j.rewards for j in ropd.judge(teacher, groups, Share(cfg))] == [(0.125,) * 6] * 2
    assert cfg.sampling.rollouts == ropd.default_config().sampling.rollouts  # the config of the caller stays as it is
    with pytest.raises(ropd.UserError, match="method='nope' is not known; expected one of cort"):
        ropd.judge(teacher, groups, "nope")
    short = dataclasses.replace(groups[0], rollouts=groups[0].rollouts[:2])
    with pytest.raises(ropd.UserError, match=r"groups of \[2, 6\] rollouts; expected"):
        ropd.judge(teacher, [short, groups[1]])


def test_a_failure_of_the_teacher_is_unscored_and_a_wrong_set_up_is_raised(groups):
    from ropd_jax.teacher import ConfigurationError, Teacher, TransientError

    silent = Teacher(FailsAt("rubric", TransientError("HTTP 503")))
    with silent.blocking:
        judgement, _ = ropd.judge(silent, groups)
        assert judgement.rewards == (None,) * 6 and judgement.causes == ("transient",) * 6
    broken = Teacher(FailsAt("reference", ConfigurationError("no key")))
    with broken.blocking, pytest.raises(ropd.UserError, match="no key"):
        ropd.judge(broken, groups)


def test_ctrl_c_in_judge_cancels_the_requests(teacher, groups, monkeypatch):
    class Waits(ropd.Method):
        async def judge(self, teacher, group):
            try:
                await asyncio.sleep(60)
            finally:
                ended.release()

    def interrupt(futures):
        started.append(len(futures))
        raise KeyboardInterrupt

    started, ended = [], threading.Semaphore(0)
    monkeypatch.setattr(concurrent.futures, "as_completed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        judge(teacher, groups, Waits)
    assert started == [2]
    teacher.blocking.close()  # ends what is left of them


# ------------------------------------------------------------------------------------------------------- update


def mean_logp(student, group):
    """Mean log-prob per token of each rollout of a group under a student."""
    rows = [TokenSequence(group.prompt_tokens_T, r.tokens_T, r.logp_T) for r in group.rollouts]
    ones = np.ones(len(rows), np.float32)
    batch = make_batch(rows, ones, ones > 0, ones > 0, 64)
    x_BTD = transformer.hidden(student.cfg, student.params, batch.tokens_BT, batch.positions_BT, batch.segments_BT)
    logp_BT = token_logprobs(student.cfg, student.params, x_BTD, batch.targets_BT)[0]
    return np.where(batch.mask_BT, logp_BT, 0).sum(1) / batch.mask_BT.sum(1)


def judged(groups, rewards):
    return [ropd.Judgement(rewards, tuple("malformed" if r is None else None for r in rewards)) for _ in groups]


def test_update_moves_log_probs_as_the_advantages_say(student, groups, judgements):
    rewards = np.array(judgements[0].rewards)
    advantage_G = (rewards - rewards.mean()) / rewards.std(ddof=1)
    before, logp_G = jax.tree.map(np.array, student.params), mean_logp(student, groups[0])
    for sign in (1, -1):
        trained, metrics = ropd.update(student, groups[:1], judged(groups[:1], tuple(sign * rewards)), lr=1e-4)
        change_G = sign * (mean_logp(trained, groups[0]) - logp_G)
        assert change_G @ advantage_G > 0.05
        assert change_G[advantage_G > 0].mean() - change_G[advantage_G < 0].mean() > 0.02
        assert metrics["update/grad_norm"] > 0 and abs(metrics["update/logp_gap"]) < 1e-4
        jax.tree.map(np.testing.assert_array_equal, before, student.params)


@pytest.fixture
def compiled():
    """Names of the functions that jax traces, one for each time."""
    names = []

    def listen(event, seconds, fun_name="", **_):
        if "jaxpr_trace" in event:
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_second_update_compiles_nothing_unless_its_loss_is_another(student, groups, judgements, compiled):
    def updates(**changes):
        compiled.clear()
        cfg = ropd.default_config()
        cfg.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
        trained, _ = ropd.update(student, groups, judgements, cfg=cfg, lr=3e-4)
        return trained, compiled.count("update")

    first, _ = updates()
    second, n = updates()
    assert n == 0 and trees_max_diff(first.params, second.params) == 0.0
    third, n = updates(loss__clip_low=0.1, loss__entropy_coef=0.5)
    assert n == 1 and trees_max_diff(first.params, third.params) > 0.0


def test_the_weights_of_an_updated_student_are_where_those_of_the_given_one_are(student, groups):
    rewards = judged(groups, (1.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    on_host, _ = ropd.update(student, groups, rewards, lr=1e-4)
    mesh = mesh_lib.make_mesh(2, 1, jax.devices()[:2])
    sharded = ropd.load_student("tiny", mesh=mesh)
    before = jax.device_get(sharded.params)
    on_mesh, _ = ropd.update(sharded, groups, rewards, lr=1e-4)
    assert {type(x) for x in jax.tree.leaves(on_host.params)} == {np.ndarray}
    assert [x.sharding for x in jax.tree.leaves(on_mesh.params)] == [
        x.sharding for x in jax.tree.leaves(sharded.params)
    ]
    assert trees_max_diff(on_host.params, jax.device_get(on_mesh.params)) == 0.0
    assert trees_max_diff(before, jax.device_get(sharded.params)) == 0.0  # not given away


def test_update_takes_loss_and_optimizer_from_a_config(student, groups):
    cfg = ropd.default_config()
    cfg.loss.normalize_std, cfg.loss.aggregation, cfg.loss.kl_coef = False, "token_mean", 0.1
    cfg.optim.lr = 0.0
    rewards = (1.0, 0.0, 0.0, 0.0, None, 0.0)
    trained, metrics = ropd.update(student, groups[:1], judged(groups[:1], rewards), cfg=cfg.lock())
    jax.tree.map(np.testing.assert_array_equal, student.params, jax.device_get(trained.params))
    length_G = np.array([len(r.tokens_T) for r in groups[0].rollouts])
    scored_G = np.array([r is not None for r in rewards])
    advantage_G = np.array([0.0 if r is None else r - 0.2 for r in rewards])
    assert metrics["update/tokens"] == length_G[scored_G].sum()
    assert metrics["update/loss"] == pytest.approx(-(advantage_G * length_G).sum() / length_G[scored_G].sum(), abs=1e-5)


def test_update_refuses_what_it_cannot_learn_from(student, groups, judgements):
    with pytest.raises(ropd.UserError, match="2 groups, 1 judgements; expected one judgement for each group"):
        ropd.update(student, groups, judgements[:1])
    for rewards in ((0.5,) * 6, (None,) * 6):
        with pytest.raises(ropd.UserError, match="no group has a gradient"):
            ropd.update(student, groups, judged(groups, rewards))
    with pytest.raises(ropd.UserError, match=r"groups of \[\] rollouts; expected at least one group"):
        ropd.update(student, [], [])
