"""The sampler: exact log-probs, draws that do not depend on neighbours, groups returned as they end."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.models import transformer
from ropd_jax.models.logprobs import token_logprobs
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.sampling.engine import EngineConfig, sample_groups
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.types import Message, Prompt
from tests.helpers import TINY, IdTokenizer

ENGINE = EngineConfig(rollouts=4, prompts=3, prompt_len=8, max_tokens=12, stop_ids=(1,), rule=SamplingRule(), chunk=5)
TOKENS = [np.array(t, np.int32) for t in ([5, 6, 7], [9, 3, 4, 8, 2, 11, 13, 17], [40])]
PROMPTS = [Prompt(f"q{i}", (Message("user", "?"),)) for i in range(3)]


@pytest.fixture(scope="module")
def params():
    return transformer.init_params(TINY, 0)


def sample(params, *, engine=ENGINE, which=(0, 1, 2), seed=0, step=0):
    prompts, tokens = [PROMPTS[i] for i in which], [TOKENS[i] for i in which]
    groups = sample_groups(TINY, engine, params, IdTokenizer(), prompts, tokens, seed=seed, step=step)
    return {g.prompt.id: g for g in groups}


def forced_logprobs(params, prompt_T, rollout):
    row = jnp.asarray(np.concatenate([prompt_T, rollout.tokens_T]))[None]
    x_BTD = transformer.hidden(TINY, params, row, jnp.arange(row.shape[1], dtype=jnp.int32)[None], jnp.ones_like(row))
    logp_BT, _ = token_logprobs(TINY, params, x_BTD[:, :-1], row[:, 1:], chunk=16)
    return np.asarray(logp_BT)[0, len(prompt_T) - 1 :]


def test_decode_equals_teacher_forced_logprobs(params):
    for group in sample(params).values():
        for rollout in group.rollouts:
            prompt_T = TOKENS[int(group.prompt.id[1:])]
            np.testing.assert_allclose(rollout.logp_T, forced_logprobs(params, prompt_T, rollout), atol=2e-5)


def test_rollouts_end_at_the_stop_token_or_the_limit(params):
    reasons = set()
    for group in sample(params, engine=dataclasses.replace(ENGINE, stop_ids=tuple(range(1, 8)))).values():
        assert len(group.rollouts) == 4
        for r in group.rollouts:
            reasons.add(r.finish_reason)
            inner = r.tokens_T[:-1] if r.finish_reason == "stop" else r.tokens_T
            assert not np.isin(inner, np.arange(1, 8)).any()
            assert (r.finish_reason == "stop") == bool(np.isin(r.tokens_T[-1], np.arange(1, 8)))
            assert len(r.tokens_T) == len(r.logp_T) <= 12
            assert r.text == " ".join(map(str, inner))
    assert reasons == {"stop", "length"}


def test_random_stream_does_not_depend_on_neighbours_or_order(params):
    together = sample(params)
    for which in ((2, 0), (1,)):
        for name, group in sample(params, which=which).items():
            for a, b in zip(group.rollouts, together[name].rollouts, strict=True):
                np.testing.assert_array_equal(a.tokens_T, b.tokens_T)


def test_no_two_streams_share_noise(params):
    texts = [r.text for kw in ({}, {"step": 1}, {"seed": 1}) for g in sample(params, **kw).values() for r in g.rollouts]
    assert len(set(texts)) == len(texts)


def test_greedy_rollouts_follow_the_largest_logit(params):
    greedy = dataclasses.replace(ENGINE, rule=SamplingRule(temperature=0.0), rollouts=1)
    for group in sample(params, engine=greedy).values():
        prompt_T = TOKENS[int(group.prompt.id[1:])]
        row = jnp.asarray(np.concatenate([prompt_T, group.rollouts[0].tokens_T]))[None]
        x_BTD = transformer.hidden(TINY, params, row, jnp.arange(row.shape[1], dtype=jnp.int32)[None], row * 0 + 1)
        best_T = np.argmax(np.asarray(transformer.logits(TINY, params, x_BTD))[0], -1)
        np.testing.assert_array_equal(best_T[len(prompt_T) - 1 : -1], group.rollouts[0].tokens_T)


def test_short_groups_stream_out_before_long_ones(params):
    # Only prompt 2 can stop early: its group must come first, although it is the last prompt.
    seen = []
    engine = dataclasses.replace(ENGINE, rollouts=1, chunk=1, stop_ids=(int(first_token(params, 2)),))
    prompts, tokens = PROMPTS, TOKENS
    for g in sample_groups(TINY, engine, params, IdTokenizer(), prompts, tokens, seed=0, step=0):
        seen.append((g.prompt.id, len(g.rollouts[0].tokens_T)))
    assert seen[0] == ("q2", 1)
    assert [n for _, n in seen] == sorted(n for _, n in seen)


def first_token(params, i):
    return sample(params, engine=dataclasses.replace(ENGINE, rollouts=1))[f"q{i}"].rollouts[0].tokens_T[0]


def test_sampling_on_a_mesh_gives_the_same_rollouts(params):
    plain = sample(params, engine=dataclasses.replace(ENGINE, prompts=4))
    mesh = mesh_lib.make_mesh(4, 2)
    with jax.set_mesh(mesh):
        placed = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
        sharded = sample(placed, engine=dataclasses.replace(ENGINE, prompts=4))
    for name, group in plain.items():
        for a, b in zip(group.rollouts, sharded[name].rollouts, strict=True):
            np.testing.assert_array_equal(a.tokens_T, b.tokens_T)
            np.testing.assert_allclose(a.logp_T, b.logp_T, atol=1e-5)
