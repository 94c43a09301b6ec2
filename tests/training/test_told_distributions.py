"""The divergence from the told policy inside the update: against one dense pass per sequence, packed, sharded, in
portions, under LoRA."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ropd_jax.core.advantages import Advantages
from ropd_jax.methods import load_method
from ropd_jax.models import transformer
from ropd_jax.models.divergence import jensen_shannon
from ropd_jax.models.lora import init_adapters
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.training.scoring import told_of
from ropd_jax.training.setup import update_config
from ropd_jax.training.update import State, make_portions, make_update, on_mesh, step_parts
from tests.core.test_told import sequence
from tests.helpers import TINY, trees_max_diff
from tests.runs.test_train import tiny_config

RUBRIC = [3, 4, 20, 21]
ROWS = [
    sequence([3, 4], [7, 8, 9, 1], rubric=RUBRIC),
    sequence([3, 4], [10, 1], rubric=RUBRIC),
    sequence([3, 4], [11, 12, 1]),  # without a rubric
    sequence([5], [13, 14], rubric=list(range(2, 30))),  # too long
    sequence([5], [], rubric=RUBRIC),
]
LENGTH, CONTEXT = 8, 4
FULL = dict(rgsd__mode="full", rgsd__beta=0.5)


def config(**keys):
    return tiny_config(
        method="rgsd", loss__aggregation="token_mean", context__max_tokens=CONTEXT, optim__logprob_chunk=3,
        sampling__temperature=1.0, **keys,
    )  # fmt: skip


def updated(shape=(1, 1, 1), rows=ROWS, **keys):
    """(change of the parameters by one step of SGD with rate 1, the metrics)."""
    cfg, tx = config(**keys), optax.sgd(1.0)
    how, method = update_config(cfg), load_method("rgsd", cfg)
    mesh = mesh_lib.make_mesh(*shape[:2], jax.devices()[: np.prod(shape)], cp=shape[2])
    with jax.set_mesh(mesh):
        params = transformer.init_params(TINY, 0)
        params = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
        base = None
        if how.lora.rank:
            base, params = params, init_adapters(TINY, how.lora, 0)
            params = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
        before = jax.device_get(params)
        state, inputs, known = inputs_of(rows, how, method, mesh, State(params, tx.init(params)), base)
        state, metrics = make_update(how, TINY, method, tx)(state, None, *inputs, base)
    change = jax.tree.map(lambda old, new: old - new, before, jax.device_get(state.params))
    return change, {k: float(v) for k, v in metrics.items()} | known


def inputs_of(rows, how, method, mesh, state, base):
    yes = np.ones(len(rows), bool)
    advantages = Advantages(yes.astype(np.float32), yes, yes)
    told = told_of(how, TINY, mesh, method, base, LENGTH, CONTEXT)
    notes, known = told(state.params, rows, advantages)
    batch = step_parts(rows, advantages, method, mesh, how.optim, LENGTH)
    return state, on_mesh(batch, method, (), mesh, notes), known


def dense_update(beta=0.5, top_k=0):
    """(gradient, mean divergence) from one pass per sequence and whole logits, without a mask, packing or chunks."""

    def logp(params, prompt_T, completion_T):
        tokens = jnp.asarray([[*prompt_T, *completion_T]], jnp.int32)
        at = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        x_BTD = transformer.hidden(TINY, params, tokens, at, jnp.ones_like(tokens))
        return jax.nn.log_softmax(transformer.logits(TINY, params, x_BTD)[0, len(prompt_T) - 1 : -1])

    def classes(logp_TV, ids_Tk):
        p_Tk = jnp.exp(jnp.take_along_axis(logp_TV, ids_Tk, axis=-1))
        return jnp.log(jnp.concatenate([p_Tk, 1 - p_Tk.sum(-1, keepdims=True)], axis=-1))

    def loss(params):
        total = 0.0
        for row in ROWS[:2]:
            mine = logp(params, row.prompt_T, row.completion_T)
            others = jax.lax.stop_gradient(logp(params, row.told["rubric"], row.completion_T))
            if top_k:
                ids = jax.lax.top_k(others, top_k)[1]
                mine, others = classes(mine, ids), classes(others, ids)
            total += jensen_shannon(mine, others, beta).sum()
        return total / 11  # the tokens of all answers: those without a rubric are in the mean

    value, grads = jax.jit(jax.value_and_grad(loss))(transformer.init_params(TINY, 0))
    return jax.device_get(grads), float(value)


@pytest.fixture(scope="module")
def dense():
    return dense_update()


@pytest.mark.parametrize(("shape", "keys"), [
    ((1, 1, 1), {}),
    ((1, 1, 1), dict(optim__row_len=16, optim__microbatch=1)),
    ((2, 2, 1), dict(optim__row_len=16, optim__microbatch=2)),
    ((4, 2, 1), dict(optim__microbatch=4)),
    ((2, 1, 4), {}),
])  # fmt: skip
def test_an_update_has_the_gradient_of_one_dense_pass_per_sequence(dense, shape, keys):
    grads, divergence = dense
    change, metrics = updated(shape, **FULL, **keys)
    assert metrics["update/divergence"] == pytest.approx(divergence, abs=1e-5)
    assert metrics["update/loss"] == pytest.approx(divergence, abs=1e-5)
    assert trees_max_diff(change, grads) < 1e-5 < 1e-3 < metrics["update/grad_norm"]
    assert metrics["context/rubric_frac"] == 2 / 4 and metrics["context/too_long_frac"] == 1 / 3


def test_likeliest_tokens_and_the_others_as_one_class():
    grads, divergence = dense_update(beta=0.0, top_k=20)
    change, metrics = updated(rgsd__mode="top_k", rgsd__top_k=20, rgsd__beta=0.0)
    assert metrics["update/divergence"] == pytest.approx(divergence, abs=1e-5)
    assert trees_max_diff(change, grads) < 1e-5
    assert updated(rgsd__mode="top_k", rgsd__top_k=2, rgsd__beta=0.0)[1]["update/divergence"] < divergence


def test_rollouts_without_a_rubric_have_no_gradient():
    bare = [dataclasses.replace(row, told={}) for row in ROWS]
    change, metrics = updated(rows=bare, **FULL)
    assert metrics["update/loss"] == metrics["update/grad_norm"] == 0.0
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(change))


def test_portions_add_up_to_the_whole(dense):
    cfg, tx = config(**FULL, stream__groups=1), optax.sgd(1.0)
    how, method, mesh = update_config(cfg), load_method("rgsd", cfg), mesh_lib.make_mesh(1, 1, jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = transformer.init_params(TINY, 0)
        state, portions = State(params, tx.init(params)), make_portions(how, TINY, method, tx)
        total, weight = portions.zeros(params), 0.0
        for rows in (ROWS[1:3], [ROWS[0], ROWS[3]]):
            _, inputs, _ = inputs_of(rows, how, method, mesh, state, None)
            total, counted = portions.add(total, params, None, *inputs)
            weight += float(counted["weight"])
    mean = jax.tree.map(lambda g: np.asarray(g) / weight, total)
    assert weight == 11 and trees_max_diff(mean, dense[0]) < 1e-5


def test_adapters_learn_from_the_same_divergence(dense):
    change, metrics = updated(student__lora__rank=2, **FULL)  # new adapters change nothing yet
    assert metrics["update/divergence"] == pytest.approx(dense[1], abs=1e-5)
    b_RNH = change["layers"]["attn"]["q_DNH"]["b_RNH"]
    assert np.abs(b_RNH).max() > 1e-5
