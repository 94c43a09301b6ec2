"""Temperature, top-k, top-p: which tokens are kept, and with what probability."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.sampling import rules
from ropd_jax.sampling.rules import SamplingRule, draw, policy_logits, rollout_keys
from ropd_jax.types import UserError

P = np.array([[0.5, 0.25, 0.15, 0.1]], np.float32)
LOGITS = jnp.log(jnp.asarray(P))[:, jnp.array([2, 0, 3, 1])]  # probabilities 0.15, 0.5, 0.1, 0.25


@pytest.mark.parametrize(
    ("rule", "want"),
    [
        (SamplingRule(), [0.15, 0.5, 0.1, 0.25]),
        (SamplingRule(top_k=2), [0, 2 / 3, 0, 1 / 3]),
        (SamplingRule(top_p=0.7), [0, 2 / 3, 0, 1 / 3]),  # 0.5 does not reach 0.7, 0.75 does
        (SamplingRule(top_p=0.5), [0, 1, 0, 0]),
        (SamplingRule(top_p=0.76), [0.15 / 0.9, 0.5 / 0.9, 0, 0.25 / 0.9]),
        (SamplingRule(top_k=3, top_p=0.8), [0, 2 / 3, 0, 1 / 3]),  # of the three, 0.5/0.9 + 0.25/0.9 reach 0.8
        (SamplingRule(temperature=0.5), np.square([0.15, 0.5, 0.1, 0.25]) / np.sum(np.square(P))),
        (SamplingRule(top_k=99), [0.15, 0.5, 0.1, 0.25]),
    ],
)
def test_policy_probabilities(rule, want):
    np.testing.assert_allclose(jax.nn.softmax(policy_logits(LOGITS, rule))[0], want, atol=1e-6)


@pytest.mark.parametrize("V", [300, 40_000])
@pytest.mark.parametrize("sharpness", [0.1, 3.0])
@pytest.mark.parametrize(
    "rule",
    [SamplingRule(top_k=20), SamplingRule(top_p=0.95), SamplingRule(top_k=20, top_p=0.9), SamplingRule(top_k=250)],
)
def test_admitted_tokens_are_those_of_a_sorted_vocabulary(V, sharpness, rule):
    rng = np.random.default_rng(V)
    logits_BV = np.round(sharpness * rng.standard_normal((6, V)), 2).astype(np.float32)  # two digits: ties
    logits_BV[0] *= 4  # next to flat rows
    logits_BV[1, :] = -1.0
    logits_BV[1, 7::50] = 2.0
    for row_V, found_V in zip(logits_BV, np.asarray(rules.kept(jnp.asarray(logits_BV), rule)), strict=True):
        want_V = row_V >= np.sort(row_V)[-rule.top_k] if rule.top_k else np.ones(V, bool)
        if rule.top_p < 1:
            p_V = np.where(want_V, np.exp(row_V.astype(np.float64) - row_V.max()), 0)
            values, at_V = np.unique(row_V, return_inverse=True)
            upto = np.cumsum(np.bincount(at_V, p_V / p_V.sum())[::-1])[::-1]  # mass of this value and all above it
            want_V &= row_V >= values[np.flatnonzero(upto >= rule.top_p)[-1]]
        np.testing.assert_array_equal(found_V, want_V)


def test_a_rows_admitted_tokens_do_not_depend_on_its_neighbours():
    rng = np.random.default_rng(0)
    sharp, flat = 6 * rng.standard_normal((1, 9000)), 0.01 * rng.standard_normal((1, 9000))
    both = jnp.asarray(np.concatenate([sharp, flat]).astype(np.float32))
    twice = jnp.concatenate([both[:1], both[:1]])
    rule = SamplingRule(top_p=0.9)
    np.testing.assert_array_equal(rules.kept(both, rule)[0], rules.kept(twice, rule)[0])
    assert 0 < int(rules.kept(both, rule)[0].sum()) < rules.NUCLEUS < int(rules.kept(both, rule)[1].sum())


def test_drawn_frequencies_follow_the_policy():
    keys = rollout_keys(0, 0, ["q"], 4000)
    rule = SamplingRule(top_k=3)
    token_B, logp_B, drawn_logp_B = draw(keys, jnp.zeros((4000,), jnp.int32), jnp.tile(LOGITS, (4000, 1)), rule)
    share_V = np.bincount(np.asarray(token_B), minlength=4) / 4000
    np.testing.assert_allclose(share_V, [0.15 / 0.9, 0.5 / 0.9, 0, 0.25 / 0.9], atol=0.03)
    np.testing.assert_allclose(logp_B, np.log([0.15, 0.5, 0.1, 0.25])[np.asarray(token_B)], atol=1e-6)
    np.testing.assert_allclose(drawn_logp_B, logp_B - np.log(0.9), atol=1e-6)  # the three kept have 0.9


def test_keys_differ_in_every_argument():
    keys = np.concatenate(
        [np.asarray(jax.random.key_data(rollout_keys(s, t, ["a", "b"], 3))) for s, t in ((0, 0), (1, 0), (0, 1))]
    )
    assert len({tuple(k) for k in keys.tolist()}) == 18


def test_a_key_does_not_depend_on_the_other_prompts():
    alone, among = rollout_keys(3, 5, ["b"], 2), rollout_keys(3, 5, ["a", "b", "c"], 2)
    np.testing.assert_array_equal(jax.random.key_data(alone), jax.random.key_data(among)[2:4])


@pytest.mark.parametrize(
    ("kw", "word"), [({"temperature": -1}, "temperature"), ({"top_p": 0}, "top_p"), ({"top_k": -2}, "top_k")]
)
def test_impossible_rules_are_refused(kw, word):
    with pytest.raises(UserError, match=word):
        SamplingRule(**kw)


@pytest.mark.parametrize(
    ("V", "fsdp", "tp"),
    [(1024, 2, 2), (1000, 1, 4), (600, 2, 4)],  # whole blocks of 128 a part; shared ones; parts of one and a bit
)
def test_a_split_vocabulary_draws_the_same_tokens(V, fsdp, tp):
    rng = np.random.default_rng(V)
    logits_BV = (3 * rng.standard_normal((64, V))).astype(np.float32)
    logits_BV[1, V // 2 :] = -np.inf  # a part without a token
    logits_BV[2, :] = 0.0  # ties
    logits_BV[3, V // 2 - 40 : V // 2 + 40] += 9.0  # near the edge of a part
    given = rollout_keys(0, 0, [f"q{i}" for i in range(16)], 4), jnp.arange(64, dtype=jnp.int32), jnp.asarray(logits_BV)
    mesh = mesh_lib.make_mesh(fsdp, tp, jax.devices()[: fsdp * tp])
    for rule in (SamplingRule(), SamplingRule(0.7), SamplingRule(0.0)):
        plain = jax.jit(draw, static_argnums=3)(*given, rule)
        with jax.set_mesh(mesh):
            args = [mesh_lib.constrain(x, dims) for x, dims in zip(given, ("B", "B", "BV"), strict=True)]
            lowered = jax.jit(draw, static_argnums=3).lower(*args, rule)
            split = lowered.compile()(*args)
        np.testing.assert_array_equal(plain.token, split.token)
        np.testing.assert_allclose(plain.logp, split.logp, atol=3e-6)
        np.testing.assert_array_equal(split.logp, split.drawn_logp)
        gathered = re.findall(r'"stablehlo.all_gather".*?-> tensor<([\dx]+)xf32>', lowered.as_text(), re.DOTALL)
        (size,) = (np.prod([int(n) for n in x.split("x")]) for x in gathered)
        assert size <= 64 // fsdp * tp * (V // tp // 128 + 3)  # sums of blocks, not logits
