"""Every family computes what transformers computes, whole sequences and token by token, on one device and on a mesh.

The golden files were made by `tests/golden/make_families.py`; it explains what each model tests.
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
from ropd_jax.types import Message, Prompt, UserError
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


CLASSES = {
    "llama": "LlamaConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config", "qwen3_moe": "Qwen3MoeConfig",
    "gemma2": "Gemma2Config", "gemma3_text": "Gemma3TextConfig", "mistral": "MistralConfig",
    "smollm3": "SmolLM3Config",
}  # fmt: skip
WHOLE = {  # a config of which one key is removed, or set to null
    "vocab_size": 96, "hidden_size": 512, "intermediate_size": 48, "num_hidden_layers": 13, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 100, "rms_norm_eps": 1e-3,
    "tie_word_embeddings": True, "rope_theta": 500.0,
}  # fmt: skip
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 20, "sliding_window": 4,
    "layer_types": ["full_attention"] * 12 + ["sliding_attention"], "attn_logit_softcapping": 9.0,
    "final_logit_softcapping": 7.0, "rope_local_base_freq": 50.0,
}  # fmt: skip
NULL_IS = {  # rejected by transformers 5, but read here
    "tie_word_embeddings": {"tied": False},
    "norm_topk_prob": {"norm_top_k": False},
    "head_dim": {"head_dim": 16},  # hidden_size / num_attention_heads
    "num_key_value_heads": {"num_kv_heads": 32},
    "hidden_activation": {"activation": "gelu_tanh"},
    "attention_bias": {"qkv_bias": False},
    "use_sliding_window": {"local_layers": ()},
    "intermediate_size": {"mlp_dim": 24},  # of a mixture of experts, which does not use it
}


def whole(kind):
    besides = {
        "qwen3_moe": MOE, "gemma2": GEMMA, "gemma3_text": GEMMA, "mistral": {"sliding_window": 4},
        "smollm3": {"no_rope_layers": [1] * 12 + [0], "no_rope_layer_interval": 5},
    }.get(kind, {"hidden_act": "silu"})  # fmt: skip
    return {"model_type": kind} | WHOLE | besides


def by_transformers(raw) -> dict:
    """Fields of a `ModelConfig`, by transformers' reading of a config."""
    transformers = pytest.importorskip("transformers")
    kind = raw["model_type"]
    c = getattr(transformers, CLASSES[kind])(**{k: v for k, v in raw.items() if k != "model_type"})
    rope = c.rope_parameters.get("full_attention", c.rope_parameters)
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    fields = dict(
        vocab_size=c.vocab_size, num_layers=c.num_hidden_layers, d_model=c.hidden_size, num_heads=c.num_attention_heads,
        num_kv_heads=c.num_key_value_heads, head_dim=head_dim, norm_eps=c.rms_norm_eps, tied=c.tie_word_embeddings,
        mlp_dim=c.moe_intermediate_size if kind == "qwen3_moe" else c.intermediate_size,
        max_seq_len=c.max_position_embeddings, rope_theta=rope["rope_theta"],
    )  # fmt: skip
    if kind == "qwen3_moe":
        fields |= dict(num_experts=c.num_experts, experts_per_token=c.num_experts_per_tok, norm_top_k=c.norm_topk_prob)
    if kind == "mistral":
        window = c.sliding_window
        fields |= dict(window=window or 0, local_layers=(True,) * c.num_hidden_layers if window else ())
    if kind == "smollm3":
        fields["no_rope_layers"] = tuple(not r for r in c.no_rope_layers)
    if kind.startswith("gemma"):
        fields |= dict(
            attn_scale=c.query_pre_attn_scalar**-0.5, attn_softcap=c.attn_logit_softcapping or 0.0,
            final_softcap=c.final_logit_softcapping or 0.0, activation="gelu_tanh",
        )  # fmt: skip
        if c.sliding_window is not None:
            fields |= dict(window=c.sliding_window, local_layers=tuple(t[0] == "s" for t in c.layer_types))
        if kind == "gemma3_text":
            fields["rope_theta_local"] = c.rope_parameters["sliding_attention"]["rope_theta"]
    return fields


def ours(path, raw):
    (path / "config.json").write_text(json.dumps(raw))
    return read_config(path)


def assert_is(cfg, fields, case):
    assert {k: getattr(cfg, k) for k in fields} == fields, case


@pytest.mark.parametrize("kind", CLASSES)
def test_every_key_that_is_absent_means_what_transformers_means_or_is_named(tmp_path, kind):
    raw, refused = whole(kind), {}
    assert_is(ours(tmp_path, raw), by_transformers(raw), kind)
    for key in raw.keys() - {"model_type"}:
        less = {k: v for k, v in raw.items() if k != key}
        try:
            cfg = ours(tmp_path, less)
        except UserError as e:
            refused[key] = str(e)
        else:
            assert_is(cfg, by_transformers(less), (kind, key))
    if kind.startswith("gemma"):  # whose published files leave most keys out
        assert "does not fit 26 layers" in refused.pop("num_hidden_layers") and not refused
    assert all(f"{key}=None, expected" in text for key, text in refused.items()) and len(refused) < len(raw) - 4


@pytest.mark.parametrize("kind", CLASSES)
def test_every_key_that_is_null_is_off_and_never_the_default(tmp_path, kind):
    raw = whole(kind)
    off = {"rope_scaling": None, "rope_parameters": None, "sliding_window": None, "quantization_config": None}
    off |= {"attention_bias": None, "mlp_only_layers": None, "use_sliding_window": None, "layer_types": None}
    for key in (raw.keys() | off.keys()) - {"model_type"}:
        null = raw | {key: None}
        try:
            fields = by_transformers(null)
        except Exception:
            fields = None if key == "intermediate_size" and kind != "qwen3_moe" else NULL_IS.get(key)
        if fields is None or None in fields.values():  # a base of the angles that is null ends in an error there, too
            with pytest.raises(UserError, match=rf"{key}=None, expected|hidden_act=None is not supported"):
                ours(tmp_path, null)
        else:
            assert_is(ours(tmp_path, null), fields, (kind, key))


def test_null_softcaps_and_windows_of_gemma_are_off(tmp_path):
    cfg = ours(tmp_path, whole("gemma2") | {"attn_logit_softcapping": None, "sliding_window": None})
    assert (cfg.attn_softcap, cfg.final_softcap, cfg.window, cfg.local_layers) == (0.0, 7.0, 0, ())
    assert ours(tmp_path, config_json(cfg)) == cfg
    cfg = ours(tmp_path, whole("gemma3_text") | {"sliding_window": None})
    assert cfg.window == cfg.max_seq_len == 100 and cfg.local_layers[-1] and cfg.rope_theta_local == 50.0


def test_the_outer_flag_of_a_multimodal_config_says_whether_the_tables_are_tied(tmp_path):
    text = whole("gemma3_text") | {"tie_word_embeddings": False}
    raw = {"model_type": "gemma3", "text_config": text}
    assert ours(tmp_path, raw).tied and not ours(tmp_path, raw | {"tie_word_embeddings": None}).tied


def test_config_json_is_read_back(family):
    name, cfg, _, _ = family
    raw = config_json(cfg)
    assert (
        raw["model_type"] == family_of(cfg) == json.loads((FAMILIES / name / "config.json").read_text())["model_type"]
    )
