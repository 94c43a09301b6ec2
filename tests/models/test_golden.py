"""SmolLM2-135M-Instruct from its GGUF file computes what transformers computes from the same file.

The golden files were made by `tests/golden/make_golden.py`.
"""

from __future__ import annotations

import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.models import transformer
from ropd_jax.sampling.engine import EngineConfig, sample_groups
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.types import Message, Prompt, UserError
from ropd_jax.weights.gguf import find_smollm2
from ropd_jax.weights.tokenizer import load_tokenizer
from tests.helpers import read_weights

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
ATOL = 2e-3


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "smollm2.json").read_text())


@pytest.fixture(scope="module")
def checkpoint(golden):
    try:
        path = find_smollm2()
    except UserError as e:
        pytest.skip(str(e))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != golden["gguf_sha256"]:
        pytest.skip(
            f"{path} has sha256 {found[:12]}, the golden files are of {golden['gguf_sha256'][:12]}: make golden"
        )
    return path


@pytest.fixture(scope="module")
def rows(golden):
    """(tokens_BT padded with 0, prompt lengths, whole lengths)."""
    tokens = [r["prompt"] + r["greedy"] for r in golden["rows"]]
    len_B = np.array([len(t) for t in tokens])
    tokens_BT = np.zeros((len(tokens), len_B.max()), np.int32)
    for b, t in enumerate(tokens):
        tokens_BT[b, : len(t)] = t
    return tokens_BT, len_B - 32, len_B


@pytest.fixture(scope="module")
def student(checkpoint):
    cfg, params = read_weights(checkpoint)
    return cfg, jax.tree.map(jnp.asarray, params), load_tokenizer(checkpoint)


@pytest.fixture(scope="module")
def computed(student, rows):
    """Per row: the argmax after each prompt position onwards, and the two rows of golden logits."""
    cfg, params, _ = student
    tokens_BT, prompt_B, len_B = rows

    @jax.jit
    def forward(params, tokens_BT, length_B, start_B):
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None], tokens_BT.shape)
        segments_BT = (positions_BT < length_B[:, None]).astype(jnp.int32)
        x_BTD = transformer.hidden(cfg, params, tokens_BT, positions_BT, segments_BT)
        at_BT = start_B[:, None] + jnp.arange(33, dtype=jnp.int32)[None]  # last of the prompt ... last of all
        x_BTD = jnp.take_along_axis(x_BTD, at_BT[:, :, None], axis=1)
        logits_BTV = transformer.logits(cfg, params, x_BTD)
        return jnp.argmax(logits_BTV, axis=-1), logits_BTV[:, jnp.array([0, 32])]

    best, ends = [], []
    for b in range(0, len(tokens_BT), 5):
        part = slice(b, b + 5)
        args = (tokens_BT[part], len_B[part].astype(np.int32), prompt_B[part].astype(np.int32) - 1)
        best_BT, ends_B2V = forward(params, *args)
        best.append(np.asarray(best_BT))
        ends.append(np.asarray(ends_B2V))
    return np.concatenate(best), np.concatenate(ends)


def test_twenty_greedy_continuations_of_32_tokens_equal_those_of_transformers(golden, computed):
    """Fed with the golden tokens, the most likely next token is the golden one everywhere: greedy decoding agrees."""
    best_BT, _ = computed
    greedy_BT = np.array([r["greedy"] for r in golden["rows"]])
    assert greedy_BT.shape == (20, 32)
    np.testing.assert_array_equal(best_BT[:, :32], greedy_BT)


def test_last_position_logits_equal_those_of_transformers(computed, record_property):
    _, ends_B2V = computed
    stored = np.load(GOLDEN / "smollm2.npz")
    top = np.abs(np.take_along_axis(ends_B2V, stored["top_ids"], axis=-1) - stored["top_logits"]).max()
    fixed = np.abs(ends_B2V[..., stored["fixed"]] - stored["fixed_logits"]).max()
    lse = np.abs(np.logaddexp.reduce(ends_B2V.astype(np.float64), axis=-1) - stored["logsumexp"]).max()
    assert stored["top_logits"].shape == (20, 2, 64) and stored["fixed_logits"].shape == (20, 2, 256)
    assert np.abs(stored["top_logits"]).max() > 10
    record_property("max_logit_difference", float(max(top, fixed)))
    assert max(top, fixed) <= ATOL
    assert lse <= ATOL  # nor is any other token of the vocabulary far off


def test_sampler_at_temperature_zero_writes_the_golden_continuations(golden, student):
    """The same 20 x 32 tokens through prefill, cache and decode, all rows side by side."""
    cfg, params, tokenizer = student
    prompts = [Prompt(str(i), tuple(Message(*m) for m in r["messages"])) for i, r in enumerate(golden["rows"])]
    tokens = [tokenizer.apply_chat_template(p.messages) for p in prompts]
    never = (cfg.vocab_size,)  # the golden rows do not stop
    ecfg = EngineConfig(1, len(prompts), max(map(len, tokens)), 32, never, SamplingRule(temperature=0.0))
    groups = sample_groups(cfg, ecfg, params, tokenizer, prompts, tokens, seed=0, step=0)
    got = {g.index: g.rollouts[0] for g in groups}
    assert [got[i].tokens_T.tolist() for i in range(20)] == [r["greedy"] for r in golden["rows"]]
    assert {r.finish_reason for r in got.values()} == {"length"}


def test_prompts_become_the_golden_tokens(golden, student):
    _, _, tokenizer = student
    for row in golden["rows"]:
        assert tokenizer.apply_chat_template([Message(*m) for m in row["messages"]]) == row["prompt"]
