"""The sampler's log-probs are the learner's, for every rule: the ratio of the first update is 1."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.models import transformer
from ropd_jax.models.logprobs import token_logprobs
from ropd_jax.sampling.engine import EngineConfig, sample_groups
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.types import Message, Prompt
from tests.helpers import IdTokenizer, read_weights

FAMILIES = pathlib.Path(__file__).parents[1] / "golden" / "families"
RULES = [
    SamplingRule(),
    SamplingRule(0.0),
    SamplingRule(0.6),
    SamplingRule(1.5),
    SamplingRule(top_k=1),
    SamplingRule(top_k=5),
    SamplingRule(0.6, top_k=20),
    SamplingRule(top_p=0.7),
    SamplingRule(1.5, top_p=0.9),
    SamplingRule(top_k=20, top_p=0.95),
    SamplingRule(0.7, top_k=8, top_p=0.5),
    SamplingRule(1.3, top_k=1000, top_p=0.999),
]
PROMPTS = [Prompt(f"q{i}", (Message("user", "?"),)) for i in range(2)]
TOKENS = [np.array(t, np.int32) for t in ([5, 6, 7, 30], [9, 3])]
LENGTH = 4 + 10


@pytest.fixture(scope="module", params=["llama3", "qwen3", "gemma2"])
def family(request):
    """(its shape with 2 layers, ids 3 and 60 to 79 unused; its parameters; the learner's forward pass)."""
    cfg, params = read_weights(FAMILIES / request.param)
    cfg = dataclasses.replace(cfg, num_layers=2, local_layers=cfg.local_layers[:2], unused=((3, 4), (60, 80)))
    params = params | {"layers": jax.tree.map(lambda x: x[:2], params["layers"])}

    @jax.jit
    def learner(params, tokens_BT, temperature):
        at_BT = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32)[None], tokens_BT.shape)
        x_BTD = transformer.hidden(cfg, params, tokens_BT, at_BT, jnp.ones_like(tokens_BT))
        wanted_BT = jnp.ones_like(tokens_BT, bool)
        targets_BT = jnp.roll(tokens_BT, -1, axis=1)
        found = token_logprobs(cfg, params, x_BTD, targets_BT, temperature=temperature, chunk=7, wanted_BT=wanted_BT)
        return found[0], transformer.logits(cfg, params, x_BTD)

    return cfg, jax.tree.map(jnp.asarray, params), learner


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"t{r.temperature}-k{r.top_k}-p{r.top_p}")
def test_logprobs_are_the_learners_for_every_rule(family, rule):
    cfg, params, learner = family
    engine = EngineConfig(rollouts=4, prompts=2, prompt_len=4, max_tokens=10, stop_ids=(1,), rule=rule, chunk=10)
    groups = sample_groups(cfg, engine, params, IdTokenizer(), PROMPTS, TOKENS, seed=0, step=0)
    rows = [(TOKENS[g.index], r) for g in groups for r in g.rollouts]
    tokens_BT = np.stack([np.pad(x := np.concatenate([p, r.tokens_T]), (0, LENGTH - len(x))) for p, r in rows])
    logp_BT, logits_BTV = map(np.asarray, learner(params, tokens_BT, np.float32(rule.temperature or 1.0)))
    for (prompt_T, r), logp_T, logits_TV in zip(rows, logp_BT, logits_BTV, strict=True):
        here = slice(len(prompt_T) - 1, len(prompt_T) - 1 + len(r.tokens_T))
        np.testing.assert_allclose(r.logp_T, logp_T[here], atol=5e-5)  # 0 to rounding
        assert not np.isin(r.tokens_T, [3, *range(60, 80)]).any()
        drawn_T = r.logp_T if r.drawn_logp_T is None else r.drawn_logp_T  # None too if a rule happens to keep all
        if rule.truncates:
            np.testing.assert_allclose(drawn_T, truncated(logits_TV[here], r.tokens_T, rule), atol=5e-5)
        else:
            assert r.drawn_logp_T is None


def truncated(logits_TV, tokens_T, rule):
    """Log-probs under the rule, from a sorted vocabulary in float64."""
    found = []
    for z_V, token in zip(logits_TV.astype(np.float64) / rule.temperature, tokens_T, strict=True):
        p_V = np.exp(z_V - z_V.max())
        p_V[np.argsort(-p_V)[rule.top_k or len(p_V) :]] = 0.0
        p_V /= p_V.sum()
        order = np.argsort(-p_V)
        p_V[order[1 + np.flatnonzero(np.cumsum(p_V[order]) >= rule.top_p - 1e-6)[0] :]] = 0.0
        found.append(np.log(p_V[token] / p_V.sum()))
    return found
