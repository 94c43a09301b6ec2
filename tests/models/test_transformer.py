"""The student: causality, sharding, every config field used, log-probs in chunks."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ropd_jax.models import linear, transformer
from ropd_jax.models.attention import attention
from ropd_jax.models.config import RopeScaling
from ropd_jax.models.logprobs import token_logprobs
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.types import UserError
from tests.helpers import TINY, trees_max_diff

WINDOWED = dataclasses.replace(TINY, window=6, local_layers=(True, False, True))
TOKENS = np.random.default_rng(0).integers(2, 64, (8, 13)).astype(np.int32)
POSITIONS = np.tile(np.arange(13, dtype=np.int32), (8, 1))
ONES = np.ones_like(TOKENS)


def logp(params, tokens=TOKENS, cfg=TINY, positions=POSITIONS, segments=ONES, **kw):
    x_BTD = transformer.hidden(cfg, params, tokens, positions, segments, **kw)
    return token_logprobs(cfg, params, x_BTD[:, :-1], tokens[:, 1:], chunk=5)


def test_logits_do_not_see_the_future():
    params = transformer.init_params(TINY, 0)

    def out(x_BTD, t):  # gradient of the output at t with respect to every embedding
        return x_BTD[0, t].sum()

    def f(table, t):
        p = params | {"embed": {"table_VD": table}}
        row = jnp.arange(13, dtype=jnp.int32)[None]  # token i is only at position i
        return out(transformer.hidden(TINY, p, row, POSITIONS[:1], ONES[:1]), t)

    seen = np.asarray(jnp.abs(jax.grad(f)(params["embed"]["table_VD"], 6)).sum(1))[:13] > 0
    np.testing.assert_array_equal(seen, np.arange(13) <= 6)


def test_padding_and_neighbouring_segments_change_nothing():
    params = transformer.init_params(TINY, 0)
    alone, _ = logp(params, TOKENS[:1, :6], positions=POSITIONS[:1, :6], segments=ONES[:1, :6])
    row = np.concatenate([TOKENS[1:2, :5], TOKENS[:1, :6], TOKENS[2:3, :2]], 1)
    positions = np.concatenate([np.arange(5), np.arange(6), np.zeros(2)])[None].astype(np.int32)
    segments = np.array([[1] * 5 + [2] * 6 + [0] * 2], np.int32)
    packed, _ = logp(params, row, positions=positions, segments=segments)
    np.testing.assert_allclose(packed[:, 5:10], alone, atol=1e-5)


def test_chunked_logprobs_and_entropy_equal_the_whole_softmax():
    params = transformer.init_params(TINY, 0)
    got, entropy = logp(params)
    x_BTD = transformer.hidden(TINY, params, TOKENS, POSITIONS, ONES)
    full = np.asarray(jax.nn.log_softmax(transformer.logits(TINY, params, x_BTD)[:, :-1]), np.float64)
    np.testing.assert_allclose(got, np.take_along_axis(full, TOKENS[:, 1:, None], -1)[..., 0], atol=1e-5)
    np.testing.assert_allclose(entropy, -(np.exp(full) * full).sum(-1), atol=1e-5)


@pytest.mark.parametrize("shape, remat", [((8, 1), "block"), ((4, 2), "dots")])
def test_sharded_forward_and_gradient_equal_unsharded(shape, remat):
    params = transformer.init_params(TINY, 0)

    def f(params, tokens, positions, segments):
        return logp(params, tokens, positions=positions, segments=segments, remat=remat)[0].mean()

    value, grads = jax.jit(jax.value_and_grad(f))(params, TOKENS, POSITIONS, ONES)
    mesh = mesh_lib.make_mesh(*shape)
    with jax.set_mesh(mesh):
        placed = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
        rows = [
            jax.device_put(x, jax.NamedSharding(mesh, mesh_lib.RULES.spec("BT"))) for x in (TOKENS, POSITIONS, ONES)
        ]
        value_s, grads_s = jax.jit(jax.value_and_grad(f))(placed, *rows)
    assert float(value_s) == pytest.approx(float(value), abs=1e-6)
    assert trees_max_diff(grads, grads_s) < 1e-6


@pytest.mark.parametrize("shape, cfg", [((2, 2, 2), TINY), ((1, 4, 1), WINDOWED)])
def test_rows_that_are_split_over_cp_give_the_log_probs_and_gradients_of_whole_ones(shape, cfg):
    fsdp, cp, tp = shape
    cfg = dataclasses.replace(cfg, num_layers=2, local_layers=cfg.local_layers[:2])
    params, rng = transformer.init_params(cfg, 0), np.random.default_rng(0)
    tokens = rng.integers(2, 64, (4, 32)).astype(np.int32)
    segments = np.sort(rng.integers(1, 4, (4, 32)).astype(np.int32), axis=1)  # sequences that cross from part to part
    positions = np.stack([np.concatenate([np.arange((row == s).sum()) for s in (1, 2, 3)]) for row in segments])

    def loss(params, tokens, positions, segments):
        x = transformer.hidden(cfg, params, tokens, positions, segments, remat="block")
        logp, entropy = token_logprobs(cfg, params, x, tokens, chunk=8, entropy_grad=True)
        return jnp.sum(logp + 0.1 * entropy), logp

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    inputs = tokens, positions.astype(np.int32), segments
    (_, logp), grads = run(params, *inputs)
    mesh = mesh_lib.make_mesh(fsdp, tp, jax.devices()[: fsdp * cp * tp], cp=cp)
    with jax.set_mesh(mesh):
        placed = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
        assert "cp" in placed["layers"]["mlp"]["up_DF"].sharding.spec[1]  # stored over it as well
        by_token = jax.NamedSharding(mesh, mesh_lib.RULES.spec("BT"))
        (_, logp_split), grads_split = run(placed, *(jax.device_put(x, by_token) for x in inputs))
    np.testing.assert_allclose(logp_split, logp, atol=1e-5)
    assert trees_max_diff(jax.device_get(grads_split), jax.device_get(grads)) < 1e-5 * 32


@pytest.mark.parametrize("fsdp, ep, cp, tp", [(2, 2, 1, 1), (1, 4, 1, 1), (1, 2, 1, 2), (1, 2, 2, 1)])
def test_experts_that_are_split_over_ep_give_the_outputs_and_gradients_of_whole_ones(fsdp, ep, cp, tp):
    cfg = dataclasses.replace(TINY, d_model=8, mlp_dim=4, num_experts=4, experts_per_token=2)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        layer = nnx.split(nnx.eval_shape(lambda: transformer.Experts(cfg, nnx.Rngs(0))))[0]
    rng = np.random.default_rng(0)
    sizes = {"router_DE": (8, 4), "gate_EDF": (4, 8, 4), "up_EDF": (4, 8, 4), "down_EFD": (4, 4, 8)}
    params = {name: rng.normal(0, 0.3, size).astype(np.float32) for name, size in sizes.items()}
    params["router_DE"][:, 3] = 0.0
    params["router_DE"][0, 0] = 9.0  # so that many tokens go to one expert, and more to one device than to the other
    x_BTD, by_BTD = rng.normal(size=(2, 4, 6, 8)).astype(np.float32)

    def loss(params, x_BTD, by_BTD):
        gathered = mesh_lib.RULES.gather(params, but=linear.EXPERTS)
        y_BTD = nnx.merge(layer, gathered)(x_BTD, {})
        return jnp.sum(y_BTD * by_BTD), y_BTD

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, want_BTD), want = run(params, x_BTD, by_BTD)
    mesh = mesh_lib.make_mesh(fsdp, tp, jax.devices()[: fsdp * ep * cp * tp], ep=ep, cp=cp)
    with jax.set_mesh(mesh):
        placed = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
        assert placed["up_EDF"].addressable_data(0).shape[0] == 4 // ep
        by_token = jax.NamedSharding(mesh, mesh_lib.out("BTD"))
        (_, got_BTD), got = run(placed, jax.device_put(x_BTD, by_token), jax.device_put(by_BTD, by_token))
    np.testing.assert_allclose(got_BTD, want_BTD, atol=1e-5)
    assert trees_max_diff(jax.device_get(got), jax.device_get(want)) < 1e-5


@pytest.mark.parametrize("attention", ["naive", "short", "xla"])
def test_remat_changes_no_gradient(attention):
    params = transformer.init_params(TINY, 0)

    def grads(remat):
        return jax.jit(jax.grad(lambda p: logp(p, remat=remat, attention=attention)[0].mean()))(params)

    want = grads("none")
    for remat in ("block", "attention", "dots"):
        assert trees_max_diff(grads(remat), want) < 1e-6


def test_remat_dots_computes_no_matmul_of_a_weight_again():
    params = transformer.init_params(TINY, 0)

    def matmuls(remat):
        def f(params):
            return transformer.hidden(TINY, params, TOKENS, POSITIONS, ONES, remat=remat, attention="xla").sum()

        return str(jax.make_jaxpr(jax.grad(f))(params)).count("dot_general")

    assert matmuls("dots") == matmuls("none") < matmuls("block")


WINDOWED = dict(window=3, local_layers=(True, False, True))
MOE = dict(num_experts=4, experts_per_token=2)
FIELDS = {  # field -> (further settings of the model, the changed value); max_seq_len is a limit, it enters no formula
    "vocab_size": ({}, 128),
    "num_layers": ({}, 6),
    "d_model": ({}, 64),
    "num_heads": ({}, 2),
    "num_kv_heads": ({}, 4),
    "head_dim": ({}, 16),
    "mlp_dim": ({}, 96),
    "rope_theta": ({}, 1e5),
    "norm_eps": ({}, 0.1),
    "tied": ({}, False),
    "qkv_bias": ({}, True),
    "qk_norm": ({}, True),
    "rope_scaling": ({}, RopeScaling("linear", 4.0)),
    "norm_plus_one": ({}, True),
    "sandwich_norms": ({}, True),
    "activation": ({}, "gelu_tanh"),
    "embed_scale": ({}, 8.0),
    "attn_scale": ({}, 1.0),
    "attn_softcap": ({}, 0.1),
    "final_softcap": ({}, 1.0),
    "window": (WINDOWED, 2),
    "local_layers": (WINDOWED, (False, True, True)),
    "no_rope_layers": ({}, (False, True, False)),
    "rope_theta_local": (WINDOWED, 10.0),
    "num_experts": (MOE, 8),
    "experts_per_token": (MOE, 1),
    "norm_top_k": (MOE, True),
    "unused": ({}, ((1, 9),)),
}
LLAMA3, YARN = RopeScaling("llama3", 4.0, 1.0, 4.0, 16), RopeScaling("yarn", 4.0, original_len=64, beta_fast=1.5)
SCALINGS = {  # field -> (a scaling that reads it, the changed value)
    "kind": (LLAMA3, "linear"),
    "factor": (LLAMA3, 8.0),
    "low_freq_factor": (LLAMA3, 2.0),
    "high_freq_factor": (LLAMA3, 8.0),
    "original_len": (LLAMA3, 64),
    "beta_fast": (YARN, 8.0),
    "beta_slow": (YARN, 0.25),
    "truncate": (YARN, False),
    "attention_factor": (YARN, 1.5),
}


def differs(one, other):
    shapes = [jax.tree.map(lambda x: x.shape, transformer.param_shapes(c)) for c in (one, other)]
    if shapes[0] != shapes[1]:
        return True
    params = transformer.init_params(one, 0)
    return float(jnp.abs(logp(params, cfg=one)[0] - logp(params, cfg=other)[0]).max()) > 1e-3


def test_the_table_of_fields_is_complete():
    assert FIELDS.keys() == {f.name for f in dataclasses.fields(TINY)} - {"max_seq_len"}
    assert SCALINGS.keys() == {f.name for f in dataclasses.fields(RopeScaling)}


@pytest.mark.parametrize("field", FIELDS)
def test_every_config_field_changes_output_or_shapes(field):
    besides, value = FIELDS[field]
    one = dataclasses.replace(TINY, **besides)
    assert differs(one, dataclasses.replace(one, **{field: value}))


@pytest.mark.parametrize("field", SCALINGS)
def test_every_field_of_rope_scaling_changes_the_output(field):
    scaling, value = SCALINGS[field]
    one = dataclasses.replace(TINY, rope_theta=50.0, rope_scaling=scaling)
    other = dataclasses.replace(scaling, **{field: value})
    assert differs(one, dataclasses.replace(one, rope_scaling=other))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(activation="relu"), "activation='relu'"),
        (dict(window=3, local_layers=(True,)), "local_layers names 1 layers"),
        (dict(no_rope_layers=(True,)), "no_rope_layers names 1 layers"),
        (dict(num_experts=4), "experts_per_token=0 with num_experts=4"),
        (dict(num_heads=3), "num_heads=3"),
        (dict(head_dim=7), "head_dim=7 is odd"),
    ],
)
def test_impossible_configs_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(TINY, **changes)


def test_attention_equals_naive_float64():
    rng = np.random.default_rng(1)
    q, k, v = rng.normal(size=(2, 3, 4, 8)), rng.normal(size=(2, 2, 5, 8)), rng.normal(size=(2, 2, 5, 8))
    mask = rng.random((2, 3, 5)) < 0.6
    mask[..., 0] = True
    got = attention(*(x.astype(np.float32) for x in (q, k, v)), mask)
    for n in range(4):
        s = np.einsum("bth,bsh->bts", q[:, :, n], k[:, n // 2]) / 8**0.5
        p = np.where(mask, np.exp(s), 0)
        want = np.einsum("bts,bsh->bth", p / p.sum(-1, keepdims=True), v[:, n // 2])
        np.testing.assert_allclose(got[:, :, n], want, atol=1e-5)


def test_number_of_devices_that_tp_does_not_divide_is_named():
    with pytest.raises(UserError, match="tp=3 does not divide the 8 devices"):
        mesh_lib.make_mesh(-1, 3)


@pytest.mark.parametrize("shape", [None, (4, 2)])
@pytest.mark.parametrize("rows", [linear.MANY_ROWS // 2, linear.MANY_ROWS])
def test_a_weight_stored_outputs_first_gives_the_same_product(rows, shape):
    rng = np.random.default_rng(0)
    x_BTNH, w_NHD = rng.normal(size=(rows, 1, 2, 8)), rng.normal(size=(2, 8, 16))
    want = np.einsum("BTNH,NHD->BTD", x_BTNH, w_NHD)

    def product(x, flipped):
        return linear.linear(None, "o_NHD", x, {"o_NHD": {"flipped_DNH": flipped}})

    x, flipped = jnp.asarray(x_BTNH, jnp.float32), jnp.asarray(w_NHD.transpose(2, 0, 1), jnp.float32)
    if shape is None:
        got = jax.jit(product)(x, flipped)
    else:
        mesh = mesh_lib.make_mesh(*shape)
        with jax.set_mesh(mesh):
            x = jax.device_put(x, jax.NamedSharding(mesh, mesh_lib.out("BTNH")))
            got = jax.jit(product)(x, jax.device_put(flipped, jax.NamedSharding(mesh, jax.P(None, "tp"))))
            assert got.sharding.spec[0] == "fsdp"
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_rotary_angles_are_computed_once_for_all_layers():
    params = transformer.param_shapes(TINY)
    jaxpr = jax.make_jaxpr(lambda p: transformer.hidden(TINY, p, TOKENS, POSITIONS, ONES))(params).jaxpr
    (scan,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan")
    assert " sin " not in str(scan.params["jaxpr"])
    assert " sin " in str(jaxpr)
