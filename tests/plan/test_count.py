"""FLOPs and bytes of a step against numbers worked out by hand, and against XLA's own count if it has no loop."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.plan import count, shapes
from ropd_jax.plan.bound import Phase, bound
from ropd_jax.plan.chips import chips

SMALL = ModelConfig(
    vocab_size=5, num_layers=2, d_model=4, num_heads=2, num_kv_heads=1, head_dim=2, mlp_dim=3, rope_theta=1e4,
    norm_eps=1e-5, tied=True, max_seq_len=64,
)  # fmt: skip


def test_weights_of_a_layer_by_hand():
    assert count.layer_matmul_params(SMALL) == 4 * 2 * (2 + 2 + 1 + 1) + 3 * 4 * 3  # q o k v, gate up down
    moe = dataclasses.replace(SMALL, num_experts=8, experts_per_token=2)
    assert count.layer_matmul_params(moe) == 48 + 2 * 36 + 4 * 8  # two experts and the router
    assert count.read_params(moe, 3) == 2 * (48 + 32 + 6 * 36) + 20  # three tokens reach at most six experts
    assert count.read_params(moe, 99) == 2 * (48 + 32 + 8 * 36) + 20


def test_contexts_by_hand():
    assert count.contexts(SMALL, 0, 4) == 2 * (1 + 2 + 3 + 4)
    assert count.contexts(SMALL, 2, 4) == 2 * (3 + 4)
    local = dataclasses.replace(SMALL, window=2, local_layers=(True, False))
    assert count.contexts(local, 0, 4) == (1 + 2 + 2 + 2) + (1 + 2 + 3 + 4)
    assert count.contexts(local, 3, 5) == (2 + 2) + (4 + 5)


def test_a_forward_pass_by_hand():
    found = count.forward_flops(SMALL, tokens=10, contexts=count.contexts(SMALL, 0, 10), logits=3)
    assert found == 2 * 2 * 84 * 10 + 4 * 2 * 2 * (2 * 55) + 2 * 5 * 4 * 3


def test_an_update_is_three_forward_passes_and_what_is_computed_again():
    layers, head, attention = 2 * 2 * 84 * 10, 2 * 5 * 4 * 10, 4 * 2 * 2 * 110
    common = dict(tokens=10, contexts=110)
    assert count.update_flops(SMALL, **common, remat=False) == 3 * (layers + attention) + 4 * head
    assert count.update_flops(SMALL, **common, remat=True) == 4 * (layers + attention + head)
    assert count.update_flops(SMALL, **common, remat=True, frozen=True) == 3 * (layers + head) + 4 * attention
    more = count.update_flops(SMALL, **common, remat=False, references=1) - count.update_flops(
        SMALL, **common, remat=False
    )
    assert more == layers + head + attention


def test_xla_counts_the_same_in_a_forward_pass_of_one_layer():
    cfg = dataclasses.replace(SMALL, num_layers=1, d_model=64, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=256)
    T = 128

    def forward(params, tokens_BT):
        one_BT = jnp.ones_like(tokens_BT)
        return transformer.hidden(cfg, params, tokens_BT, jnp.arange(T, dtype=jnp.int32)[None], one_BT)

    shapes_BT = jax.ShapeDtypeStruct((1, T), jnp.int32)
    xla = jax.jit(forward).lower(transformer.param_shapes(cfg), shapes_BT).compile().cost_analysis()["flops"]
    matmuls = count.forward_flops(cfg, tokens=T, contexts=0, logits=0)
    whole = count.forward_flops(cfg, tokens=T, contexts=T * T, logits=0)  # masked keys are computed all the same
    assert matmuls < xla and xla == pytest.approx(whole, rel=0.15)  # in addition: norms, softmax, rotation


def test_rollouts_prefill_each_prompt_once_whatever_the_group():
    common = dict(prompts=3, prompt_len=4, answer_len=6, slots=6, itemsize=2)
    two, eight = (count.rollouts(SMALL, per_prompt=g, **common) for g in (2, 8))
    assert two.prefill_flops == eight.prefill_flops == 3 * (2 * 2 * 84 * 4 + 16 * 20 + 40)
    assert (two.tokens, two.decode_steps) == (36, 6.0) and (eight.tokens, eight.decode_steps) == (144, 24.0)
    looked_at = sum(range(5, 11))  # of one layer
    assert two.cache_bytes == 6 * 2 * looked_at * (2 * 1 * 2 * 2)  # sequences, layers, keys; K and V of 2 numbers
    assert count.kv_bytes_per_token(SMALL, 2) == 2 * 2 * 1 * 2 * 2


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen3-4B", 4_022_468_096),
        ("Qwen/Qwen3-30B-A3B", 30_532_122_624),
        ("google/gemma-3-4b-it", 4_300_079_472 - 419_816_304),  # without the part that sees pictures
    ],
)
def test_the_models_kept_as_facts_have_their_published_size(name, parameters):
    tree = transformer.param_shapes(shapes.model_config(name))
    assert sum(x.size for x in jax.tree.leaves(tree)) == parameters


def test_the_longest_of_three_times_is_the_bound():
    v5e = chips()["v5e"]
    found = bound(Phase("x", flops=197e12, memory=819e9 * 3, links=200e9 * 2), v5e)
    assert (found.compute, found.memory, found.links) == pytest.approx((1.0, 3.0, 2.0))
    assert (found.seconds, found.waits_for) == (pytest.approx(3.0), "memory")
    v4 = bound(Phase("x", flops=275e12, memory=0.0, links=1e15), chips()["v4"])
    assert (v4.seconds, v4.links) == (pytest.approx(1.0), None)  # nothing is published about its links
