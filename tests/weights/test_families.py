"""Every family computes what transformers computes, whole sequences and token by token, on one device and on a mesh.

The golden files were made by `tests/golden/make_families.py`; see there for what each model shows.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.models import transformer
from ropd_jax.models.config import RopeScaling
from ropd_jax.models.logprobs import token_logprobs
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.sampling.engine import EngineConfig, sample_groups
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.types import Message, Prompt
from ropd_jax.weights.families import config_json, family_of, read_config
from ropd_jax.weights.hf import save_hf
from tests.helpers import IdTokenizer, read_weights, trees_max_diff

FAMILIES = pathlib.Path(__file__).parents[1] / "golden" / "families"
NAMES = sorted(p.name for p in FAMILIES.iterdir())
ATOL = 2e-5


@pytest.fixture(scope="module", params=NAMES)
def family(request):
    cfg, params = read_weights(FAMILIES / request.param)
    return request.param, cfg, jax.tree.map(jnp.asarray, params), np.load(FAMILIES / request.param / "golden.npz")


def inputs(golden):
    """(tokens, positions, segments) of the golden rows; the second one is padded on the left."""
    mask = golden["mask"]
    return golden["tokens"], np.maximum(mask.cumsum(1) - 1, 0).astype(np.int32), mask.astype(np.int32)


def forward(cfg, params, tokens, positions, segments):
    x_BTD = transformer.hidden(cfg, params, tokens, positions, segments)
    return transformer.logits(cfg, params, x_BTD), token_logprobs(cfg, params, x_BTD[:, :-1], tokens[:, 1:], chunk=8)[0]


def test_there_are_all_families():
    kinds = {read_config(FAMILIES / name).__class__ and family_of(read_config(FAMILIES / name)) for name in NAMES}
    assert kinds == {"llama", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text"}


def test_logits_and_logprobs_equal_transformers(family):
    _, cfg, params, golden = family
    logits, logp = jax.jit(lambda p, *xs: forward(cfg, p, *xs))(params, *inputs(golden))
    real = golden["mask"]
    assert np.abs(np.asarray(logits) - golden["logits"])[real].max() <= ATOL
    both = real[:, 1:] & real[:, :-1]
    assert np.abs(np.asarray(logp) - golden["logp"])[both].max() <= ATOL


def greedy(cfg, params, golden, prompts=1):
    prompt_T = golden["tokens"][0]
    engine = EngineConfig(
        rollouts=2, prompts=prompts, prompt_len=24, max_tokens=16, stop_ids=(95,), rule=SamplingRule(0.0), chunk=6
    )
    prompt = Prompt("q", (Message("user", "?"),))
    stream = sample_groups(cfg, engine, params, IdTokenizer(), [prompt], [prompt_T], seed=0, step=0)
    return next(stream).rollouts


def test_decoding_with_a_cache_gives_the_golden_tokens_and_the_trainers_logprobs(family):
    _, cfg, params, golden = family
    prompt_T = golden["tokens"][0]
    for rollout in greedy(cfg, params, golden):
        np.testing.assert_array_equal(rollout.tokens_T, golden["greedy"])
        row = np.concatenate([prompt_T, rollout.tokens_T])[None].astype(np.int32)
        positions = np.arange(row.shape[1], dtype=np.int32)[None]
        _, logp = jax.jit(lambda p, *xs: forward(cfg, p, *xs))(params, row, positions, np.ones_like(row))
        np.testing.assert_allclose(rollout.logp_T, np.asarray(logp)[0, len(prompt_T) - 1 :], atol=5e-5)


def test_sharded_equals_unsharded_forward_gradient_and_decode(family):
    _, cfg, params, golden = family
    tokens, positions, segments = (np.tile(x, (2, 1)) for x in inputs(golden))
    both = (segments[:, 1:] * segments[:, :-1]).astype(bool)

    def loss(params, tokens, positions, segments):
        return jnp.sum(jnp.where(both, forward(cfg, params, tokens, positions, segments)[1], 0.0)) / float(both.sum())

    value, grads = jax.jit(jax.value_and_grad(loss))(params, tokens, positions, segments)
    mesh = mesh_lib.make_mesh(4, 2)
    mesh_lib.check_divides(cfg, mesh)
    with jax.set_mesh(mesh):
        placed = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
        spec = jax.NamedSharding(mesh, mesh_lib.RULES.spec("BT"))
        rows = [jax.device_put(x, spec) for x in (tokens, positions, segments)]
        value_s, grads_s = jax.jit(jax.value_and_grad(loss))(placed, *rows)
        decoded = greedy(cfg, placed, golden, prompts=4)
    assert float(value_s) == pytest.approx(float(value), abs=1e-5)
    assert trees_max_diff(grads, grads_s) < 1e-5
    np.testing.assert_array_equal(decoded[0].tokens_T, golden["greedy"])


def test_import_then_export_is_bit_identical(family, tmp_path):
    name, cfg, params, _ = family
    save_hf(tmp_path, cfg, jax.device_get(params))
    again, loaded = read_weights(tmp_path)
    assert dataclasses.replace(again, attn_scale=cfg.attn_scale) == cfg
    assert again.attn_scale == pytest.approx(cfg.attn_scale)
    assert trees_max_diff(params, loaded) == 0.0
    from safetensors.numpy import load_file

    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(FAMILIES / name / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all((ours[k] == theirs[k]).all() for k in ours)


def test_published_gemma3_config_that_leaves_most_keys_out(tmp_path):
    text = {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    }  # fmt: skip
    raw = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    cfg = read_config(tmp_path)
    assert (cfg.vocab_size, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim) == (262_208, 8, 4, 256)
    assert cfg.rope_scaling == RopeScaling("linear", 8.0) and cfg.rope_theta == 1e6 and cfg.rope_theta_local == 1e4
    assert cfg.attn_scale == 256**-0.5 and cfg.tied and cfg.window == 1024
    assert [i for i, local in enumerate(cfg.local_layers) if not local] == [5, 11, 17, 23, 29]
    assert cfg.embed_scale == 2560**0.5


def test_absent_keys_mean_what_transformers_means():
    transformers = pytest.importorskip("transformers")
    for kind, cls in (("gemma2", "Gemma2Config"), ("gemma3_text", "Gemma3TextConfig")):
        theirs = getattr(transformers, cls)().to_dict()
        from ropd_jax.weights.families import ABSENT, _flat_rope

        theirs = _flat_rope(theirs) | {"hidden_act": theirs["hidden_activation"]}
        for key, value in ABSENT[kind].items():
            assert theirs[key] == value, (kind, key)


def test_config_json_is_read_back(family):
    name, cfg, _, _ = family
    raw = config_json(cfg)
    assert (
        raw["model_type"] == family_of(cfg) == json.loads((FAMILIES / name / "config.json").read_text())["model_type"]
    )
