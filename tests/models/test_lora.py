"""Adapters on a frozen base: their results, their cost, their export, on one device and on a mesh."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.models import lora as lora_lib
from ropd_jax.models import transformer
from ropd_jax.models.logprobs import token_logprobs
from ropd_jax.models.lora import Lora, attach, freeze, init_adapters, merge, thaw
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.sampling.engine import EngineConfig, sample_groups
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.types import Message, Prompt, UserError
from tests.helpers import TINY, IdTokenizer, read_weights, trees_max_diff

FAMILIES = pathlib.Path(__file__).parents[1] / "golden" / "families"
DENSE = sorted(p.name for p in FAMILIES.iterdir() if p.name != "qwen3_moe")
LORA = Lora(rank=2, alpha=8.0)
MOE = dataclasses.replace(TINY, num_experts=4, experts_per_token=2, qk_norm=True, tied=False)


def family(name):
    cfg, params = read_weights(FAMILIES / name)
    return cfg, jax.tree.map(jnp.asarray, params)


def tokens_of(cfg, rows=2, length=12, seed=0):
    return np.random.default_rng(seed).integers(2, cfg.vocab_size, (rows, length)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def logprobs(cfg, params, tokens):
    ones = jnp.ones_like(tokens)
    x_BTD = transformer.hidden(cfg, params, tokens, jnp.cumsum(ones, axis=1, dtype=jnp.int32) - 1, ones)
    return token_logprobs(cfg, params, x_BTD[:, :-1], tokens[:, 1:], chunk=8)[0]


def grown(cfg, lora=LORA, seed=3):
    """Adapters as after training: B is not zero."""
    adapters = init_adapters(cfg, lora, seed)
    keys = iter(jax.random.split(jax.random.key(seed), 99))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), adapters)


@pytest.mark.parametrize("name", DENSE)
def test_with_b_zero_the_student_is_the_base_and_with_b_grown_it_is_not(name):
    cfg, base = family(name)
    tokens = tokens_of(cfg)
    plain = np.asarray(logprobs(cfg, base, tokens))
    np.testing.assert_array_equal(logprobs(cfg, attach(LORA, base, init_adapters(cfg, LORA, 0)), tokens), plain)
    adapters = grown(cfg)
    changed = np.asarray(logprobs(cfg, attach(LORA, base, adapters), tokens))
    assert np.abs(changed - plain).max() > 1e-2
    np.testing.assert_allclose(logprobs(cfg, merge(LORA, base, adapters), tokens), changed, atol=2e-5)


def test_every_adapter_and_alpha_change_the_output():
    base, adapters, tokens = transformer.init_params(TINY, 0), grown(TINY), tokens_of(TINY)
    changed = np.asarray(logprobs(TINY, attach(LORA, base, adapters), tokens))
    twice = dataclasses.replace(LORA, alpha=16.0)
    assert np.abs(np.asarray(logprobs(TINY, attach(twice, base, adapters), tokens)) - changed).max() > 1e-3
    for group, names in adapters["layers"].items():
        for name, own in names.items():
            without = {k: jnp.zeros_like(v) if k.startswith("b_") else v for k, v in own.items()}
            fewer = {"layers": adapters["layers"] | {group: names | {name: without}}}
            there = np.asarray(logprobs(TINY, attach(LORA, base, fewer), tokens))
            assert np.abs(there - changed).max() > 1e-4, name


def test_adapters_are_drawn_as_in_the_paper_and_targets_choose_them():
    adapters = init_adapters(TINY, Lora(rank=16), 0)
    for names in adapters["layers"].values():
        for own in names.values():
            (a, b) = (own[k] for k in sorted(own))
            fan_in = math.prod(a.shape[1:-1])
            assert float(jnp.std(a)) == pytest.approx(fan_in**-0.5, rel=0.1) and not b.any()
    shapes = lora_lib.adapter_shapes(TINY, Lora(rank=3, targets=("attn.[qv]", "mlp.down")))["layers"]
    assert {
        (g, n): {k: v.shape for k, v in own.items()} for g, names in shapes.items() for n, own in names.items()
    } == {
        ("attn", "q_DNH"): {"a_DR": (3, 32, 3), "b_RNH": (3, 3, 4, 8)},
        ("attn", "v_DKH"): {"a_DR": (3, 32, 3), "b_RKH": (3, 3, 2, 8)},
        ("mlp", "down_FD"): {"a_FR": (3, 48, 3), "b_RD": (3, 3, 32)},
    }


def dots(jaxpr, times=1):
    """(shape of the result, FLOPs) of each matrix product of a program; a scan's as often as it runs."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.outvars[0].aval.shape
            yield shape, 2 * times * math.prod(shape) * math.prod(eqn.invars[0].aval.shape[i] for i in contract)
        inner = times * eqn.params["length"] if eqn.primitive.name == "scan" else times
        for value in eqn.params.values():
            for sub in value if isinstance(value, (tuple, list)) else [value]:
                if isinstance(sub, jax.extend.core.ClosedJaxpr):
                    yield from dots(sub.jaxpr, inner)
                elif isinstance(sub, jax.extend.core.Jaxpr):
                    yield from dots(sub, inner)


@pytest.mark.parametrize("base_dtype", ["float32", "int8"])
def test_backward_computes_no_gradient_of_a_frozen_weight(base_dtype):
    cfg = dataclasses.replace(TINY, d_model=64, mlp_dim=200, vocab_size=40)
    base = jax.eval_shape(lambda: freeze(transformer.init_params(cfg, 0), base_dtype))
    adapters, tokens = lora_lib.adapter_shapes(cfg, LORA), jax.ShapeDtypeStruct((2, 12), jnp.int32)

    def hidden(params, tokens):
        positions = jnp.broadcast_to(jnp.arange(12, dtype=jnp.int32)[None], (2, 12))
        return jnp.sum(transformer.hidden(cfg, params, tokens, positions, jnp.ones_like(tokens)))

    def student(adapters, base, tokens):
        return hidden(attach(LORA, base, adapters), tokens)

    forward = list(dots(jax.make_jaxpr(student)(adapters, base, tokens).jaxpr))
    ours = list(dots(jax.make_jaxpr(jax.grad(student))(adapters, base, tokens).jaxpr))
    full = list(dots(jax.make_jaxpr(jax.grad(hidden))(jax.eval_shape(thaw, base), tokens).jaxpr))
    sizes = {math.prod(shape) for shape in ((64, 4, 8), (64, 2, 8), (64, 200))}
    assert sizes <= {math.prod(shape) for shape, _ in full}  # what the walk would find
    assert not sizes & {math.prod(shape) for shape, _ in ours}
    flops = {name: sum(f for _, f in found) for name, found in (("f", forward), ("lora", ours), ("full", full))}
    assert flops["lora"] < 0.8 * flops["full"]  # forward and dx, not dW: 2/3 and what the small factors add


@pytest.mark.parametrize("cfg", [TINY, MOE], ids=["dense", "moe"])
def test_int8_is_at_most_half_a_step_off_and_the_logprobs_stay_near(cfg):
    params = transformer.init_params(cfg, 0)
    exact = jax.device_get(params)
    base = freeze(params, "int8")
    again = jax.device_get(thaw(base))
    for group, names in base["layers"]["scales"].items():
        for name, own in names.items():
            ((key, channel),) = own.items()
            w, q = exact["layers"][group][name], again["layers"][group][name]
            assert base["layers"][group][name].dtype == jnp.int8
            axes = {"DNH": (1,), "DKH": (1,), "NHD": (1, 2), "DF": (1,), "FD": (1,), "EDF": (2,), "EFD": (2,)}
            step = np.expand_dims(np.asarray(channel), axes[name.rsplit("_", 1)[-1]])
            assert np.all(np.abs(w - q) <= step * 0.5001), (name, key)
            np.testing.assert_allclose(step.max(), np.abs(w).max() / 127, rtol=1e-6)
    assert base["embed"]["table_VD"].dtype == jnp.bfloat16 and base["final_norm"]["scale_D"].dtype == jnp.float32
    tokens = tokens_of(cfg)
    near = np.abs(np.asarray(logprobs(cfg, base, tokens)) - np.asarray(logprobs(cfg, exact, tokens)))
    same = np.abs(np.asarray(logprobs(cfg, base, tokens)) - np.asarray(logprobs(cfg, again, tokens)))
    assert 1e-4 < near.max() < 0.1 and near.mean() < 0.02  # nats; the log-probs spread over several
    assert same.max() < 1e-4  # the factor on the output is the factor on the weight


def test_bfloat16_base_keeps_norms_and_biases_in_float32():
    cfg = dataclasses.replace(TINY, qkv_bias=True)
    base = freeze(transformer.init_params(cfg, 0), "bfloat16")
    kinds = {jax.tree_util.keystr(path[-1:]): x.dtype for path, x in jax.tree_util.tree_leaves_with_path(base)}
    float32 = {k for k, dtype in kinds.items() if dtype == jnp.float32}
    assert float32 == {"['scale_D']", "['q_bias_NH']", "['k_bias_KH']", "['v_bias_KH']"}
    assert set(map(str, kinds.values())) == {"float32", "bfloat16"}


def sampled(cfg, params, tokens, prompts):
    engine = EngineConfig(
        rollouts=2, prompts=prompts, prompt_len=12, max_tokens=6, stop_ids=(1,), rule=SamplingRule(1.0), chunk=3
    )
    prompt = Prompt("q", (Message("user", "?"),))
    return next(sample_groups(cfg, engine, params, IdTokenizer(), [prompt], [tokens[0]], seed=0, step=0)).rollouts


@pytest.mark.parametrize("name, base_dtype", [("qwen2", "float32"), ("gemma3", "int8"), ("qwen3_moe", "int8")])
def test_sharded_equals_unsharded_and_decode_equals_the_trainer(name, base_dtype):
    cfg, params = family(name)
    lora = dataclasses.replace(LORA, targets=("attn.*",)) if cfg.num_experts else LORA
    adapters, tokens = grown(cfg, lora), tokens_of(cfg, rows=4)
    host = jax.device_get(params)

    def loss(adapters, base, tokens):
        return -jnp.mean(logprobs(cfg, attach(lora, base, adapters), tokens))

    base = freeze(params, base_dtype)
    value, grads = jax.jit(jax.value_and_grad(loss))(adapters, base, tokens)
    plain = sampled(cfg, attach(lora, base, adapters), tokens, 1)
    mesh = mesh_lib.make_mesh(4, 2)
    with jax.set_mesh(mesh):
        base_s = freeze(mesh_lib.put(host, mesh, mesh_lib.RULES.storage(host)), base_dtype)
        for path, x in jax.tree_util.tree_leaves_with_path(base_s):
            assert x.sharding.spec == mesh_lib.RULES.spec(mesh_lib.dims_of(path, x)), path
        placed = mesh_lib.put(adapters, mesh, mesh_lib.RULES.storage(adapters))
        rows = jax.device_put(tokens, jax.NamedSharding(mesh, mesh_lib.RULES.spec("BT")))
        value_s, grads_s = jax.jit(jax.value_and_grad(loss))(placed, base_s, rows)
        decoded = sampled(cfg, attach(lora, base_s, placed), tokens, 4)
    assert float(value_s) == pytest.approx(float(value), abs=1e-5)
    assert trees_max_diff(grads, grads_s) < 1e-5
    for a, b in zip(plain, decoded, strict=True):
        np.testing.assert_array_equal(a.tokens_T, b.tokens_T)
        row = np.concatenate([tokens[0], a.tokens_T])[None].astype(np.int32)
        logp = np.asarray(logprobs(cfg, attach(lora, base, adapters), row))
        np.testing.assert_allclose(a.logp_T, logp[0, 11:], atol=5e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(rank=-1), "rank=-1; expected 0"),
        (dict(alpha=0.0), "alpha=0.0; expected a positive"),
        (dict(base_dtype="int4"), "base_dtype='int4'; expected one of float32, bfloat16, int8"),
        (dict(rank=0, base_dtype="int8"), "without adapters would train rounded weights; set student.lora.rank"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(LORA, **changes)


def test_targets_that_fit_nothing_or_experts_are_refused():
    with pytest.raises(UserError, match=r"'q_proj' matches no weight; expected patterns over attn.q, attn.k"):
        lora_lib.adapter_shapes(TINY, Lora(rank=2, targets=("q_proj",)))
    with pytest.raises(UserError, match="targets is empty"):
        lora_lib.adapter_shapes(TINY, Lora(rank=2, targets=()))
    with pytest.raises(UserError, match=r"mixture of 4 experts, which cannot have adapters; set .*attn"):
        lora_lib.adapter_shapes(MOE, LORA)
