"""The streamed update, overlapping steps, slow groups: what they can change, and what not."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import math
import time

import jax
import numpy as np
import optax
import pytest

from ropd_jax.core.batches import make_batch, split_parts
from ropd_jax.core.losses import AGGREGATIONS, token_numerators, token_weights
from ropd_jax.methods import load_method
from ropd_jax.models import transformer
from ropd_jax.parallel import hosts
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.train import train
from ropd_jax.training.accumulate import StreamedUpdate, why_not_streaming
from ropd_jax.training.carryover import restored, stored
from ropd_jax.training.collect import PendingStep, judge_step
from ropd_jax.training.setup import read_config, update_config
from ropd_jax.training.update import State, make_portions, make_update
from ropd_jax.types import Judgement, Message, Prompt, Rollout, RolloutGroup, UserError
from ropd_jax.utils.interrupt import Interrupt
from tests.helpers import TINY, IdTokenizer, trees_max_diff
from tests.runs.test_train import LENGTH, tiny_config

G = 4


def group(index, step=0, seed=0):
    rng = np.random.default_rng([seed, step, index])
    rollouts = tuple(
        Rollout((t := rng.integers(2, 64, rng.integers(3, 13)).astype(np.int32)),
                rng.normal(-4, 0.1, t.shape).astype(np.float32), f"text {index}", "stop")
        for _ in range(G)
    )  # fmt: skip
    prompt = Prompt(f"p{index}", (Message("user", "q"),))
    return RolloutGroup(prompt, rng.integers(2, 64, rng.integers(2, 7)).astype(np.int32), rollouts, step, index)


def judgement(index, seed=0):
    """Group 1's rewards are all equal, group 2's third answer is unscored, group 3 failed."""
    rewards = np.random.default_rng([seed, index, 7]).random(G).tolist()
    if index == 1:
        rewards = [0.5] * G
    causes = [None] * G
    if index == 2:
        rewards[2], causes[2] = None, "missing"
    if index == 3:
        rewards, causes = [None] * G, ["timeout"] * G
    return Judgement(tuple(rewards), tuple(causes))


def summing(tx, mesh, **changes):
    """(a step's update, the state before it)."""
    cfg = tiny_config(**{"stream__groups": 3} | changes)
    method, params = load_method("ropd", cfg), transformer.init_params(TINY, 0)
    params = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
    state = State(params, jax.jit(tx.init)(params))
    how = dict(ref_params=None, base=None, method=method, mesh=mesh, step=0, length=LENGTH)
    how |= dict(cfg=update_config(cfg), overlap=read_config(cfg).overlap)
    return StreamedUpdate(
        make_portions(update_config(cfg), TINY, method, tx), state, **how, tokenizer=IdTokenizer()
    ), state


def streamed(order, n=7, *, mesh=None, **changes):
    """(parameters after one SGD step, metrics): n groups that arrive in the order given."""
    mesh = mesh or mesh_lib.make_mesh(1, 1)
    with jax.set_mesh(mesh):
        summed, _ = summing(optax.sgd(1.0), mesh, **changes)
        for index in order:
            summed.add(group(index), judgement(index))
            while summed.due(n):
                summed.work(n)
        state, metrics = summed.finish()
    return jax.device_get(state.params), metrics


def whole(n=7, **changes):
    cfg = tiny_config(**changes)
    tx, method = optax.sgd(1.0), load_method("ropd", cfg)
    groups, judgements = [group(i) for i in range(n)], [judgement(i) for i in range(n)]
    flat = [np.asarray(x).reshape(-1) for x in method.advantages(*method.rewards(groups, judgements), 0)]
    rows = [s for g, j in zip(groups, judgements, strict=True) for s in method.sequences(g, j, IdTokenizer())]
    params = transformer.init_params(TINY, 0)
    update = make_update(update_config(cfg), TINY, method, tx)
    state, metrics = update(State(params, tx.init(params)), None, split_parts(make_batch(rows, *flat, LENGTH), 0))
    return jax.device_get(state.params), {k: float(v) for k, v in metrics.items()}


# ------------------------------------------------------------------------------------------------------ the sum


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_numerators_and_weights_of_portions_make_the_weights_of_the_whole(aggregation):
    mask = np.random.default_rng(0).random((6, 9)) < 0.6
    parts = [token_numerators(mask[i : i + 2], aggregation, max_tokens=9) for i in (0, 2, 4)]
    got = np.concatenate([n for n, _ in parts]) / sum(float(w) for _, w in parts)
    np.testing.assert_allclose(got, token_weights(mask, aggregation, max_tokens=9), rtol=1e-6)


@pytest.mark.parametrize(
    "changes", [dict(loss__aggregation="token_mean"), dict(loss__aggregation="seq_mean", loss__entropy_coef=0.1)]
)
def test_the_streamed_update_is_the_whole_one(changes):
    params, metrics = whole(**changes)
    got, streamed_metrics = streamed(range(7), **changes)
    assert trees_max_diff(params, got) < 1e-6
    assert trees_max_diff(got, jax.device_get(transformer.init_params(TINY, 0))) > 1e-4
    assert {k: streamed_metrics[k] for k in metrics} == {k: pytest.approx(v, abs=1e-5) for k, v in metrics.items()}


def test_packed_and_sharded_portions_give_the_same():
    params, _ = whole()
    packed, _ = streamed(range(7), optim__row_len=40, optim__microbatch=2)
    sharded, _ = streamed(range(7), mesh=mesh_lib.make_mesh(2, 2), stream__groups=2)
    assert trees_max_diff(params, packed) < 1e-6 and trees_max_diff(params, sharded) < 1e-6


def test_the_order_of_arrival_changes_no_bit_when_deterministic_and_only_rounding_when_not():
    first, _ = streamed(range(7))
    for order in ([6, 5, 4, 3, 2, 1, 0], [3, 0, 6, 2, 5, 1, 4]):
        assert trees_max_diff(first, streamed(order)[0]) == 0.0
        assert 0.0 < trees_max_diff(first, streamed(order, stream__deterministic=False)[0]) < 1e-6


def test_portions_begin_before_the_last_group_is_judged():
    mesh = mesh_lib.make_mesh(1, 1)
    with jax.set_mesh(mesh):
        summed, _ = summing(optax.sgd(1.0), mesh, stream__groups=2)
    due = []
    for index in (1, 2, 0, 3):
        summed.add(group(index), judgement(index))
        due.append(summed.due(5))
    assert due == [False, False, True, True]  # in prompt order: 0 and 1 are complete with the third arrival


def test_a_step_without_any_gradient_changes_nothing():
    mesh = mesh_lib.make_mesh(1, 1)
    with jax.set_mesh(mesh):
        summed, state = summing(optax.adamw(1.0), mesh)
        summed.add(group(0), judgement(1))
        summed.add(group(1), judgement(3))
        summed.work(2)
        after, metrics = summed.finish()
    assert after is state and metrics == {"update/count": 0}


def test_what_depends_on_the_whole_step_waits_for_it():
    for method, waits in dict(ropd=False, sft=False, t_judge=False, permuted=True, gad=True).items():
        cfg = tiny_config(method=method, stream__groups=2)
        assert ("depend on all groups" in why_not_streaming(read_config(cfg), load_method(method, cfg))) == waits
    cfg = tiny_config(stream__groups=2, optim__minibatches=2)
    assert "optim.minibatches=2" in why_not_streaming(read_config(cfg), load_method("ropd", cfg))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(stream__staleness=2), r"stream.staleness=2; .* from 0 to 1"),
        (dict(stream__straggler_timeout_s=1.0, stream__groups=2), r"straggler_timeout_s=1.*deterministic=False"),
        (dict(stream__straggler_timeout_s=1.0, stream__deterministic=False), r"stream.groups above 0"),
        (dict(stream__staleness=1, sampling__resample=1), r"staleness=1 cannot be combined with sampling.resample"),
        (dict(stream__staleness=1, loss__ratio="sequence"), r"importance weights per token"),
        (dict(stream__staleness=1, stream__cap=0.5), r"stream.cap=0.5"),
        (dict(stream__groups=-1), r"stream.groups=-1"),
    ],
)
def test_a_stream_that_cannot_work_is_refused(changes, words, tmp_path):
    with pytest.raises(UserError, match=words):
        train(tiny_config(**changes), tmp_path / "run")


def test_groups_go_through_json_unchanged():
    groups = [group(i, step=3) for i in range(3)]
    cut = tuple(dataclasses.replace(r, drawn_logp_T=r.logp_T + np.float32(0.1)) for r in groups[1].rollouts)
    groups[1] = dataclasses.replace(groups[1], rollouts=cut)
    rows = json.loads(json.dumps(stored(groups)))
    back = restored(rows, {g.prompt.id: g.prompt for g in groups}, {g.prompt.id: g.prompt_tokens_T for g in groups})
    for a, b in zip(groups, back, strict=True):
        assert (a.prompt, a.step, a.index) == (b.prompt, b.step, b.index)
        assert np.array_equal(a.prompt_tokens_T, b.prompt_tokens_T)
        for x, y in zip(a.rollouts, b.rollouts, strict=True):
            assert x.tokens_T.tobytes() == y.tokens_T.tobytes() and x.logp_T.tobytes() == y.logp_T.tobytes()
            assert (x.text, x.finish_reason) == (y.text, y.finish_reason)
            assert np.array_equal(x.drawn_logp_T, y.drawn_logp_T) and (y.drawn_logp_T is None) == (a.index != 1)


# --------------------------------------------------------------------------------------------------- who goes first


class Update:
    """Records its groups, and when it runs."""

    def __init__(self, did, size=1):
        self.did, self.size, self.taken, self.added = did, size, [], 0

    def add(self, group, judgement):
        self.taken.append(group.index)

    def due(self, expected):
        return self.added < min(len(self.taken), expected)

    def work(self, expected):
        self.did.append(f"sum {self.taken[self.added]}")
        self.added += 1


def pending(step, n, did, latency=lambda i: 0.0):
    """A step of n groups whose teacher answers group i after ``latency(i)`` seconds, each in a separate thread."""
    pool = concurrent.futures.ThreadPoolExecutor(n)

    def sampler():
        for i in range(n):
            did.append(f"sample {step}.{i}")
            yield group(i, step)

    def send(g):
        return pool.submit(lambda: (time.sleep(latency(g.index)), judgement(g.index))[1])

    return PendingStep(step, sampler(), send)


def test_sampling_goes_first_then_the_sum_then_the_next_step():
    did = []
    one, two = pending(0, 3, did, lambda i: 0.3 * (i == 2)), pending(1, 2, did)
    judge_step(one, Interrupt(), lambda text: None, lookahead=two, update=Update(did))
    assert did[:3] == ["sample 0.0", "sample 0.1", "sample 0.2"]
    assert did.index("sum 0") < did.index("sum 2") and did.index("sample 1.0") < did.index("sum 2")
    assert not one.pending and len(two.groups) == 2  # sampled ahead, and judged in its own turn
    groups, judgements, _ = judge_step(two, Interrupt(), lambda text: None)
    assert [g.step for g in groups] == [1, 1] and len(judgements) == 2


def test_groups_come_back_in_prompt_order_whatever_the_order_of_the_answers():
    groups, judgements, times = judge_step(
        pending(0, 4, [], lambda i: 0.05 * (4 - i)), Interrupt(), lambda text: None, update=Update([])
    )
    assert [g.index for g in groups] == [0, 1, 2, 3]
    assert judgements == [judgement(i) for i in range(4)]
    assert times["time/teacher_wait_s"] > 0.05


def test_a_slow_group_is_deferred_to_the_next_step_and_is_waited_for_there():
    did: list[str] = []
    one = pending(0, 4, did, lambda i: 0.8 * (i == 1))
    start = time.monotonic()
    groups, _, _ = judge_step(one, Interrupt(), lambda text: None, update=Update(did), patience_s=0.1)
    assert time.monotonic() - start < 0.7
    assert [g.index for g in groups] == [0, 2, 3] and sorted(did[-3:]) == ["sum 0", "sum 2", "sum 3"]
    late = one.defer()
    assert [g.index for g in late.groups] == [1]
    two = pending(1, 2, did)
    two.receive(late)
    update = Update(did)
    groups, judgements, _ = judge_step(two, Interrupt(), lambda text: None, update=update, patience_s=0.1)
    assert [(g.step, g.index) for g in groups] == [(0, 1), (1, 0), (1, 1)]  # waited for: it was deferred once
    assert judgements[0] == judgement(1) and len(update.taken) == update.added == 3


def test_no_step_ends_before_half_of_it_is_judged():
    one = pending(0, 4, [], lambda i: 0.4 * (i != 1))
    groups, _, _ = judge_step(one, Interrupt(), lambda text: None, patience_s=0.05)
    assert len(groups) >= 2


def test_patience_is_not_asked_where_there_is_none(monkeypatch):
    monkeypatch.setattr(hosts, "any_host", lambda flag: pytest.fail("all is waited for, so no host is asked"))
    judge_step(pending(0, 2, []), Interrupt(lambda flag: flag), lambda text: None, patience_s=math.inf)


def test_the_time_of_an_outage_does_not_count_for_the_patience():
    down = time.monotonic() + 0.7
    one, seen = pending(0, 4, [], lambda i: 0.8 * (i == 1)), []
    groups, _, _ = judge_step(
        one, Interrupt(), seen.append, patience_s=0.5, outage=lambda: "waiting" if time.monotonic() < down else ""
    )
    assert [g.index for g in groups] == [0, 1, 2, 3]
    assert "judged 3/4 groups, waiting" in seen and seen[-1] == "judged 4/4 groups"


def test_an_error_of_the_teacher_is_raised_and_what_is_in_flight_cancelled():
    one, two = pending(0, 3, [], lambda i: 5.0 * (i == 0)), pending(1, 1, [])
    one._send = (lambda send: lambda g: send(g) if g.index != 1 else _failed(UserError("no such model")))(one._send)
    with pytest.raises(UserError, match="no such model"):
        judge_step(one, Interrupt(), lambda text: None, lookahead=two)


def _failed(error):
    future = concurrent.futures.Future()
    future.set_exception(error)
    return future
