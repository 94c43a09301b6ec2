"""From a switch of ``cfg.loss`` to the loss: each against its formula in plain Python, sequence by sequence."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ropd_jax.core import losses
from ropd_jax.core.advantages import Advantages
from ropd_jax.core.batches import TokenSequence, make_batch, split_parts
from ropd_jax.core.losses import token_weights
from ropd_jax.core.masked import masked_sum
from ropd_jax.methods import Tokens, load_method
from ropd_jax.methods.base import START
from ropd_jax.models import transformer
from ropd_jax.parallel.mesh import RULES, make_mesh, put
from ropd_jax.training.rescore import start_logprobs
from ropd_jax.training.setup import check_config, update_config
from ropd_jax.training.update import State, make_update, update_step
from ropd_jax.types import UserError
from tests.helpers import TINY
from tests.runs.test_train import tiny_config

NOW = ([-0.5, -1.0, -2.0], [-1.5], [-0.2, -0.1])  # log-probs of three rollouts' tokens
OLD = ([-0.9, -1.0, -1.4], [-1.2], [-2.0, -1.6])
ADVANTAGE = (1.5, -0.5, -1.0)
START_LOGP = ([-0.7, -1.1, -1.8], [-1.3], [-1.4, -0.3])  # before the step's first update
MAX_TOKENS = 10


def clipped(ratio, a, low, high, dual=math.inf):
    loss = -min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a)
    return min(loss, -dual * a) if a < 0 else loss


def ratios(i):
    return [math.exp(n - o) for n, o in zip(NOW[i], OLD[i], strict=True)]


def token_mean(rows):
    return sum(map(sum, rows)) / sum(map(len, rows))


def seq_mean(rows):
    return sum(sum(row) / len(row) for row in rows) / len(rows)


def mean_over_constant(rows):
    return sum(map(sum, rows)) / len(rows) / MAX_TOKENS


def tokenwise(low, high, **dual):
    return [[clipped(r, a, low, high, **dual) for r in ratios(i)] for i, a in enumerate(ADVANTAGE)]


def gspo(low, high):
    s = [math.exp(sum(n - o for n, o in zip(NOW[i], OLD[i], strict=True)) / len(NOW[i])) for i in range(3)]
    return [[clipped(s[i], a, low, high)] * len(NOW[i]) for i, a in enumerate(ADVANTAGE)]


def truncated(cap):
    return [[-min(r, cap) * a * n for r, n in zip(ratios(i), NOW[i], strict=True)] for i, a in enumerate(ADVANTAGE)]


def weighted(cap, low, high, dual):
    """The clip and the truncated weights multiplied, with the log-probs of `START` before the first update."""
    rows = []
    for i, a in enumerate(ADVANTAGE):
        tokens = zip(NOW[i], START_LOGP[i], OLD[i], strict=True)
        rows.append([min(math.exp(s - o), cap) * clipped(math.exp(n - s), a, low, high, dual) for n, s, o in tokens])
    return rows


SWITCHES = {
    "grpo": (dict(aggregation="seq_mean", clip_high=0.2), seq_mean(tokenwise(0.2, 0.2))),
    "dapo": (dict(aggregation="token_mean", clip_high=0.28), token_mean(tokenwise(0.2, 0.28))),
    "dr_grpo": (dict(aggregation="seq_mean_token_sum_norm", clip_high=0.2), mean_over_constant(tokenwise(0.2, 0.2))),
    "dual": (dict(aggregation="token_mean", dual_clip=3.0), token_mean(tokenwise(0.2, 0.28, dual=3.0))),
    "gspo": (dict(aggregation="seq_mean", ratio="sequence", clip_low=0.1, clip_high=0.15), seq_mean(gspo(0.1, 0.15))),
    "tis": (dict(aggregation="token_mean", is_cap=1.5), token_mean(truncated(1.5))),
    "released": (
        dict(aggregation="token_mean", dual_clip=3.0, is_cap=1.5, is_clip=True),
        token_mean(weighted(1.5, 0.2, 0.28, 3.0)),
    ),
}


def batch_of(rows, old, advantage, length):
    rows = [
        TokenSequence(np.array([3, 4], np.int32), np.asarray(row, np.int32), np.float32(o))
        for row, o in zip(rows, old, strict=True)
    ]
    n = len(rows)
    return make_batch(rows, np.float32(advantage), np.ones(n, bool), np.ones(n, bool), length)


@pytest.mark.parametrize("name", SWITCHES)
def test_a_policy_loss_chosen_by_the_config_is_its_formula(name):
    keys, want = SWITCHES[name]
    cfg = tiny_config(sampling__max_tokens=MAX_TOKENS, **{f"loss__{k}": v for k, v in keys.items()})
    batch = batch_of([[5] * len(row) for row in NOW], OLD, ADVANTAGE, 6)
    logp = np.full(batch.mask_BT.shape, -9.0, np.float32)
    logp[batch.mask_BT] = np.concatenate(NOW)
    start = np.full_like(logp, -9.0)
    start[batch.mask_BT] = np.concatenate(START_LOGP)
    tokens = Tokens(batch, jnp.asarray(logp), jnp.zeros_like(logp), extras={START: jnp.asarray(start)})
    loss_BT, _ = load_method("ropd", cfg).loss(tokens)
    weight_BT = token_weights(batch.mask_BT, cfg.loss.aggregation, batch.length_BT, max_tokens=MAX_TOKENS)
    assert float(masked_sum(weight_BT * loss_BT, batch.mask_BT)) == pytest.approx(want, rel=1e-5)
    others = [value for other, (_, value) in SWITCHES.items() if other != name]
    assert min(abs(want - value) for value in others) > 1e-3  # no switch has the effect of another


def test_clip_and_truncated_weights_of_one_token_by_hand():
    """p 0.3 now, 0.2 at the start of the step, 0.1 when sampled: ratio 1.5, weight 2."""
    now, start, sampled = (jnp.log(jnp.float32([[p]])) for p in (0.3, 0.2, 0.1))

    def loss(advantage, cap, dual=0.0):
        loss_BT, clipped_BT, capped_BT = losses.weighted_clip_loss(
            now, start, sampled, jnp.float32([[advantage]]), cap=cap, clip_low=0.2, clip_high=0.28, dual_clip=dual
        )
        return float(loss_BT[0, 0]), bool(clipped_BT[0, 0]), bool(capped_BT[0, 0])

    assert loss(1.0, 1.5) == (pytest.approx(-1.5 * 1.28), True, True)
    assert loss(1.0, 3.0) == (pytest.approx(-2.0 * 1.28), True, False)
    assert loss(-1.0, 3.0) == (pytest.approx(2.0 * 1.5), False, False)
    assert loss(-1.0, 3.0, 1.2) == (pytest.approx(2.0 * 1.2), True, False)


def test_the_weights_have_no_gradient_and_one_update_a_step_is_the_truncated_gradient():
    """Without `START`, ratio 1: the gradient is -weight * A, as of `truncated_is_loss`."""
    batch = batch_of([[5] * len(row) for row in NOW], OLD, ADVANTAGE, 6)
    logp = np.full(batch.mask_BT.shape, -9.0, np.float32)
    logp[batch.mask_BT] = np.concatenate(NOW)

    def gradient(**keys):
        method = load_method("ropd", tiny_config(loss__is_cap=1.5, **keys))
        return jax.grad(lambda x: masked_sum(method.loss(Tokens(batch, x, x))[0], batch.mask_BT))(jnp.asarray(logp))

    both, truncated = gradient(loss__is_clip=True, loss__dual_clip=3.0), gradient()
    np.testing.assert_allclose(both, truncated, rtol=1e-5)
    weights = [[min(r, 1.5) for r in ratios(i)] for i in range(3)]
    want = np.concatenate([-a * np.array(w) for a, w in zip(ADVANTAGE, weights, strict=True)])
    np.testing.assert_allclose(np.asarray(both)[batch.mask_BT], want, rtol=1e-5)


def test_the_second_mini_batch_is_clipped_against_the_policy_before_the_first():
    """Two mini-batches of the same two prompts: the second's weight is as before the first update, and its ratio is
    what that update changed."""
    rows = [[7, 8, 9, 1], [20, 21, 22, 1]]
    params = transformer.init_params(TINY, 0)
    old = [[n for n, _ in plain_tokens(params, row)] for row in rows]
    keys = dict(loss__is_cap=2.0, loss__is_clip=True, optim__minibatches=2, data__prompts_per_step=2)
    cfg = tiny_config(**keys, loss__clip_low=0.9, loss__clip_high=9.0)
    how, mesh, tx = update_config(cfg), make_mesh(1, 1), optax.sgd(2.0)
    update = make_update(how, TINY, load_method("ropd", cfg), tx)
    sequences = [
        TokenSequence(np.array([3, 4], np.int32), np.int32(r), np.float32(o)) for r, o in zip(rows, old, strict=True)
    ]
    sequences += sequences
    advantages = Advantages(np.float32([[1, -1], [1, -1]]), np.ones((2, 2), bool), np.ones((2, 2), bool))
    seen = []

    def spied(state, ref, batch, extras):
        seen.append((np.asarray(batch.mask_BT), np.asarray(extras.tokens[START])))
        return update(state, ref, batch, extras)

    start = functools.partial(start_logprobs, how, TINY, None, mesh)
    with jax.set_mesh(mesh):
        placed = put(params, mesh, RULES.storage(params))
        state = State(placed, tx.init(placed))
        update_step(spied, state, None, sequences, advantages, load_method("ropd", cfg), mesh, how.optim, how.loss, 8,
                    start=start)  # fmt: skip
    for mask, got in seen:
        np.testing.assert_allclose(got[mask], np.concatenate(old), atol=1e-5)
    assert len(seen) == 2


def test_weights_that_are_left_out_cannot_multiply_the_clip():
    with pytest.raises(UserError, match=r"loss.is_clip=True .* set loss.is_cap, 2.0"):
        check_config(tiny_config(loss__is_clip=True))


def plain_tokens(params, row):
    """[(log-prob, entropy)] of each answer token after the prompt [3, 4], from the full softmax in float64."""
    tokens = jnp.asarray([[3, 4, *row]], jnp.int32)
    at = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    x_BTD = transformer.hidden(TINY, params, tokens, at, jnp.ones_like(tokens))
    logits = np.asarray(transformer.logits(TINY, params, x_BTD)[0, 1:-1], np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return [(logp[t, word], -float((np.exp(logp[t]) * logp[t]).sum())) for t, word in enumerate(row)]


KL = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d}


@pytest.mark.parametrize("kind", KL)
def test_kl_and_entropy_bonus_of_an_update_are_their_formulas(kind):
    rows = [[7, 8, 9, 1], [20, 1]]
    params, initial = transformer.init_params(TINY, 0), transformer.init_params(TINY, 1)
    now, ref = ([plain_tokens(p, row) for row in rows] for p in (params, initial))
    tokens = [(n, e, r) for row, other in zip(now, ref, strict=True)
              for (n, e), (r, _) in zip(row, other, strict=True)]  # fmt: skip
    want = np.mean([-0.5 + 0.3 * KL[kind](n - r) - 0.2 * e for n, e, r in tokens])  # ratio 1, advantage 0.5
    cfg = tiny_config(loss__kl_coef=0.3, loss__kl_kind=kind, loss__entropy_coef=0.2)
    tx = optax.sgd(1.0)
    update = make_update(update_config(cfg), TINY, load_method("ropd", cfg), tx)
    batch = batch_of(rows, [[n for n, _ in row] for row in now], [0.5, 0.5], 8)
    state = State(jax.tree.map(jnp.copy, params), tx.init(params))
    _, metrics = update(state, initial, split_parts(batch, 0))
    assert float(metrics["update/loss"]) == pytest.approx(want, rel=1e-5)
    assert float(metrics["update/kl"]) == pytest.approx(np.mean([KL[kind](n - r) for n, _, r in tokens]), rel=1e-4)


@pytest.mark.parametrize(("std", "want"), [(True, [1.1547, -0.57735, -0.57735]), (False, [0.4, -0.2, -0.2])])
def test_the_std_is_divided_by_when_asked(std, want):
    method = load_method("ropd", tiny_config(loss__normalize_std=std))
    got = method.advantages(np.float32([[0.8, 0.2, 0.2]]), np.ones((1, 3), bool), 0)
    np.testing.assert_allclose(got.advantage_PG, [want], atol=1e-4)
