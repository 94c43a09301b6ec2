"""Hugging Face directories: files are read back unchanged, and errors name the cause."""

from __future__ import annotations

import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.types import UserError
from ropd_jax.weights import hf
from ropd_jax.weights.hf import read_config, save_hf
from tests.helpers import read_weights

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CFG = ModelConfig(
    vocab_size=11,
    num_layers=3,
    d_model=12,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    mlp_dim=10,
    rope_theta=777.0,
    norm_eps=1e-4,
    tied=False,
    max_seq_len=64,
)


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), transformer.param_shapes(CFG))


@pytest.fixture
def saved(tmp_path, params):
    save_hf(tmp_path / "m", CFG, params)
    return tmp_path / "m"


def edit_config(path: pathlib.Path, **changes):
    raw = json.loads((path / "config.json").read_text())
    raw |= changes
    (path / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))


def edit_tensors(path: pathlib.Path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def message(path) -> str:
    with pytest.raises(UserError) as e:
        read_weights(path)
    text = str(e.value)
    assert "\n" not in text
    return text


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", ["llama_untied", "llama_tied"])
def test_logits_of_a_directory_equal_those_of_transformers(name):
    cfg, params = read_weights(GOLDEN / name)
    golden = np.load(GOLDEN / name / "logits.npz")
    tokens_BT = golden["tokens"]
    positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
    x_BTD = transformer.hidden(cfg, params, tokens_BT, positions_BT, np.ones_like(tokens_BT))
    logits_BTV = transformer.logits(cfg, params, x_BTD)
    assert np.abs(golden["logits"]).max() > 1
    np.testing.assert_allclose(logits_BTV, golden["logits"], rtol=0, atol=2e-5)


def test_config_of_a_directory_is_read_field_by_field():
    assert read_config(GOLDEN / "llama_untied") == ModelConfig(
        vocab_size=96,
        num_layers=2,
        d_model=32,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        mlp_dim=64,
        rope_theta=5000.0,
        norm_eps=1e-3,
        tied=False,
        max_seq_len=128,
    )
    assert read_config(GOLDEN / "llama_tied").tied


def test_keys_that_are_absent_mean_what_the_format_says(saved):
    edit_config(saved, num_key_value_heads=..., head_dim=..., rope_theta=..., tie_word_embeddings=...)
    edit_config(saved, hidden_size=16)
    cfg = read_config(saved)
    assert (cfg.num_kv_heads, cfg.head_dim, cfg.rope_theta, cfg.tied) == (4, 4, 10_000.0, False)


def test_both_spellings_of_the_rotary_base_are_read(saved):
    edit_config(saved, rope_theta=..., rope_parameters={"rope_theta": 123.0, "rope_type": "default"})
    assert read_config(saved).rope_theta == 123.0


def test_tree_is_that_of_the_transformer(saved, params):
    cfg, loaded = read_weights(saved)
    shapes = transformer.param_shapes(cfg)
    assert jax.tree.map(lambda x: x.shape, loaded) == jax.tree.map(lambda x: x.shape, shapes)
    assert all(x.dtype == np.float32 and x.flags.c_contiguous for x in jax.tree.leaves(loaded))


@pytest.mark.parametrize("tied", [False, True])
def test_save_then_load_is_bit_identical(tmp_path, params, tied):
    cfg = CFG if not tied else ModelConfig(**{**CFG.__dict__, "tied": True})
    kept = {k: v for k, v in params.items() if not (tied and k == "head")}
    save_hf(tmp_path, cfg, kept)
    cfg2, loaded = read_weights(tmp_path)
    assert cfg2 == cfg
    assert_same(loaded, kept)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_bfloat16_goes_out_and_in(tmp_path, params):
    save_hf(tmp_path, CFG, params, dtype="bfloat16")
    rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
    _, as_f32 = read_weights(tmp_path)
    _, as_bf16 = read_weights(tmp_path, dtype=ml_dtypes.bfloat16)
    assert_same(as_f32, jax.tree.map(lambda x: x.astype(np.float32), rounded))
    assert_same(as_bf16, rounded)
    assert (tmp_path / "model.safetensors").stat().st_size < 2 * sum(x.size for x in jax.tree.leaves(params)) + 4000


def test_save_writes_what_transformers_saved(tmp_path):
    cfg, params = read_weights(GOLDEN / "llama_tied")
    save_hf(tmp_path, cfg, params, dtype="bfloat16", eos_token_id=3)
    ours, theirs = (load_file(p / "model.safetensors") for p in (tmp_path, GOLDEN / "llama_tied"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    raw, ref = (json.loads((p / "config.json").read_text()) for p in (tmp_path, GOLDEN / "llama_tied"))
    same = set(raw) & set(ref)
    assert len(same) >= 14 and {k: raw[k] for k in same} == {k: ref[k] for k in same}


def test_shards_without_an_index_are_read_too(tmp_path):
    shutil.copytree(GOLDEN / "llama_untied", tmp_path / "m")
    _, with_index = read_weights(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors.index.json").unlink()
    _, without = read_weights(tmp_path / "m")
    assert_same(with_index, without)


def stored_head(path, params, how: str, tied: bool | None):
    """A checkpoint whose head is stored as in ``how`` and whose config has ``tied`` (None: no entry)."""
    save_hf(path, CFG, params)
    edit_config(path, tie_word_embeddings=... if tied is None else tied)
    embed, head = "model.embed_tokens.weight", "lm_head.weight"

    def change(tensors):
        if how == "copy":
            tensors[head] = tensors[embed].copy()
        if how == "rounded copy":
            tensors[embed] = tensors[embed].astype(np.float16).astype(np.float32)
            tensors[head] = tensors[embed].astype(np.float16)
        if how == "none":
            del tensors[head]
        if how == "only head":
            tensors[head] = tensors.pop(embed)

    edit_tensors(path, change)


@pytest.mark.parametrize(
    "how, tied, is_tied, said",
    [
        ("own", True, False, "tie_word_embeddings=true, but lm_head.weight differs from the embedding"),
        ("own", False, False, ""),
        ("own", None, False, ""),  # an absent flag has the family's default: a Llama is untied
        ("copy", True, True, ""),
        ("copy", False, False, ""),
        ("rounded copy", True, True, ""),  # stored in another dtype
        ("none", True, True, ""),
        ("none", False, True, "tie_word_embeddings=false, but there is no lm_head.weight"),
        ("none", None, True, "tie_word_embeddings=false, but there is no lm_head.weight"),
        ("only head", True, True, ""),
    ],
)
def test_the_head_is_the_stored_one(tmp_path, params, caplog, how, tied, is_tied, said):
    stored_head(tmp_path, params, how, tied)
    tensors = load_file(tmp_path / "model.safetensors")
    with caplog.at_level("WARNING"):
        cfg, loaded = read_weights(tmp_path)
    assert cfg.tied == is_tied and ("head" in loaded) == (not is_tied)
    assert said in caplog.text and bool(said) == bool(caplog.records)
    head = tensors.get("lm_head.weight", tensors.get("model.embed_tokens.weight")).astype(np.float32)
    np.testing.assert_array_equal(loaded["embed" if is_tied else "head"]["table_VD"], head)


def test_a_head_that_differs_in_one_number_of_the_last_rows_is_kept(tmp_path, params, monkeypatch):
    monkeypatch.setattr(hf, "COMPARED_AT_ONCE", 24)  # two rows
    stored_head(tmp_path, params, "copy", True)
    assert read_weights(tmp_path)[0].tied
    edit_tensors(tmp_path, lambda t: t["lm_head.weight"].__setitem__((10, 11), 9.0))
    assert read_weights(tmp_path)[1]["head"]["table_VD"][10, 11] == 9.0


def test_a_head_in_another_shard_counts_and_one_that_only_the_index_names_is_missing(tmp_path):
    shutil.copytree(GOLDEN / "llama_untied", tmp_path / "m")
    edit_config(tmp_path / "m", tie_word_embeddings=True)
    cfg, loaded = read_weights(tmp_path / "m")
    assert not cfg.tied and "head" in loaded
    edit_config(tmp_path / "m", tie_word_embeddings=False)
    index = json.loads((tmp_path / "m" / hf.INDEX).read_text())
    file = tmp_path / "m" / index["weight_map"]["lm_head.weight"]
    save_file({k: v for k, v in load_file(file).items() if k != "lm_head.weight"}, file)
    assert "lacks tensor 'lm_head.weight'" in message(tmp_path / "m")


def test_a_head_of_another_shape_or_dtype_is_named(tmp_path, params):
    stored_head(tmp_path, params, "own", True)
    edit_tensors(tmp_path, lambda t: t.update({"lm_head.weight": np.zeros((12, 12), np.float32)}))
    assert "'lm_head.weight' has shape [12, 12], expected [11, 12]" in message(tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({"lm_head.weight": np.zeros((11, 12), np.int8)}))
    assert "'lm_head.weight' is stored as I8" in message(tmp_path)


def test_an_index_that_an_older_save_left_behind_names_nothing_that_is_read(tmp_path, params, caplog):
    save_hf(tmp_path, CFG, params, shard_bytes=2_000)
    old = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert len(old) > 4 and not (tmp_path / "model.safetensors").exists()
    newer = jax.tree.map(lambda x: x + 1, params)
    save_hf(tmp_path, CFG, newer)
    for content in (old[hf.INDEX], b"{", b"{}"):
        (tmp_path / hf.INDEX).write_bytes(content)
        caplog.clear()
        assert_same(read_weights(tmp_path)[1], newer)
        assert "has both model.safetensors and model.safetensors.index.json" in caplog.text
    save_hf(tmp_path, CFG, params, shard_bytes=2_000)  # and the other way round
    caplog.clear()
    assert_same(read_weights(tmp_path)[1], params)
    assert not caplog.records


def test_a_tensor_in_two_files_is_named(tmp_path, params):
    save_hf(tmp_path, CFG, params)
    (tmp_path / "model.safetensors").rename(tmp_path / "b.safetensors")
    norm = load_file(tmp_path / "b.safetensors")["model.norm.weight"]
    save_file({"model.norm.weight": norm}, tmp_path / "adapter_model.safetensors")  # PEFT's is none of them
    assert_same(read_weights(tmp_path)[1], params)
    save_file({"model.norm.weight": norm}, tmp_path / "a.safetensors")
    assert "holds tensor 'model.norm.weight' twice, as" in message(tmp_path)
    assert "in a.safetensors" in message(tmp_path) and "in b.safetensors; delete" in message(tmp_path)


def test_adapters_without_their_base_are_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds PEFT adapters without their base; merge them" in message(tmp_path)


def test_save_refuses_a_tree_of_another_config(tmp_path, params):
    params["layers"]["mlp"]["up_DF"] = params["layers"]["mlp"]["up_DF"][:, :, :-1]
    with pytest.raises(UserError, match=r"layers\.mlp\.up_DF has shape \(3, 12, 9\), expected \(3, 12, 10\)"):
        save_hf(tmp_path / "m", CFG, params)
    del params["head"]
    with pytest.raises(UserError, match=r"layers\.mlp\.up_DF|head\.table_VD is missing"):
        save_hf(tmp_path / "m", CFG, params)
    assert not (tmp_path / "m").exists()


def test_a_directory_without_config_is_named(tmp_path):
    assert f"{tmp_path} has no config.json; expected a Hugging Face directory" in message(tmp_path)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model_type": "mamba"}, "model_type='mamba' is not supported; supported: llama"),
        ({"model_type": ...}, "model_type=None is not supported"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "expected 'LlamaForCausalLM'"),
        ({"attention_bias": True}, "attention_bias=True is not supported yet"),
        ({"mlp_bias": True}, "mlp_bias=True is not supported yet"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not supported yet"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported yet; expected silu, gelu_pytorch_tanh"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.low_freq_factor=None, expected a positive number"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor=0, expected a positive number"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_scaling of type 'dynamic' is not supported yet"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0}}, "rope_scaling.factor=0, expected a positive number"),
        ({"rope_scaling": {"type": "yarn", "beta_fast": "x"}}, "rope_scaling.beta_fast='x', expected a positive"),
        ({"rope_scaling": {"type": "yarn", "truncate": 1}}, "rope_scaling.truncate=1, expected true or false"),
        ({"layer_types": ["sliding_attention"] * 3}, "expected full_attention only"),
        ({"model_type": "qwen3_next"}, "(missing here: gated DeltaNet (linear attention) layers, gated attention and"),
        ({"model_type": "gemma4_text"}, "(missing here: per-layer embeddings, and K and V that layers share)"),
        ({"rms_norm_eps": None}, "rms_norm_eps=None, expected a positive float"),
        ({"rope_theta": None}, "rope_theta=None, expected a positive float"),
        ({"hidden_size": ...}, "hidden_size=None, expected a positive int"),
        ({"hidden_size": "12"}, "hidden_size='12', expected a positive int"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers=2.5, expected a positive int"),
        ({"rms_norm_eps": 0}, "rms_norm_eps=0, expected a positive float"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no', expected true or false"),
        ({"num_attention_heads": 5, "head_dim": ...}, "hidden_size=12 is not a multiple of num_attention_heads=5"),
        ({"num_key_value_heads": 3}, "num_heads=4 is not a multiple of num_kv_heads=3"),
        ({"num_hidden_layers": 2}, "holds tensor 'model.layers.2."),
        ({"num_hidden_layers": 4}, "lacks tensor 'model.layers.3.input_layernorm.weight' (and 8 others)"),
        ({"vocab_size": 12}, "'model.embed_tokens.weight' (and 1 others) has shape [11, 12], expected [12, 12]"),
    ],
)
def test_config_that_cannot_be_met_is_named(saved, changes, said):
    edit_config(saved, **changes)
    assert said in message(saved)


def test_broken_config_json_is_named(saved):
    (saved / "config.json").write_text('{"model_type": "llama"')
    assert "config.json cannot be read as JSON" in message(saved)
    (saved / "config.json").write_text("[]")
    assert "holds a list; expected a JSON object" in message(saved)


def test_missing_extra_and_misshapen_tensors_are_named(saved):
    kept = saved.parent / "kept"
    shutil.copytree(saved, kept)
    edit_tensors(saved, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    assert "lacks tensor 'model.layers.1.mlp.up_proj.weight'; expected 30 tensors" in message(saved)
    shutil.copytree(kept, saved, dirs_exist_ok=True)
    edit_tensors(saved, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(24, np.float32)}))
    assert "holds tensor 'model.layers.0.self_attn.q_proj.bias', which a model of its config" in message(saved)
    shutil.copytree(kept, saved, dirs_exist_ok=True)
    edit_tensors(saved, lambda t: t.update({"model.norm.weight": np.zeros(7, np.float32)}))
    assert "'model.norm.weight' has shape [7], expected [12]" in message(saved)
    shutil.copytree(kept, saved, dirs_exist_ok=True)
    edit_tensors(saved, lambda t: t.update({"model.norm.weight": np.zeros(12, np.int8)}))
    assert "'model.norm.weight' is stored as I8, expected one of F32, BF16, F16" in message(saved)


def test_truncated_and_foreign_safetensors_are_named(saved):
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    for broken in (whole[:-10], whole[:100], whole[:5], b"", b"GGUF" + bytes(100)):
        file.write_bytes(broken)
        text = message(saved)
        assert f"{file} ({len(broken)} bytes) is not a complete safetensors file" in text.replace(",", "")
        assert "fetch it again" in text


def test_absent_weights_are_named(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    assert "has no *.safetensors (weights found: only pytorch_model.bin)" in message(saved)
    (saved / "pytorch_model.bin").unlink()
    assert "(weights found: none)" in message(saved)


def test_a_shard_that_the_index_names_and_is_not_there_is_named(tmp_path):
    shutil.copytree(GOLDEN / "llama_untied", tmp_path / "m")
    (tmp_path / "m" / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors does not exist, but model.safetensors.index.json names it" in message(
        tmp_path / "m"
    )
    (tmp_path / "m" / "model.safetensors.index.json").write_text("{}")
    assert "has no 'weight_map'" in message(tmp_path / "m")


def test_an_interrupted_save_leaves_the_old_checkpoint(saved, params, monkeypatch):
    before = (saved / "model.safetensors").read_bytes()

    def fail(tensors, file, metadata=None):
        pathlib.Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ropd_jax.weights.hf.save_file", fail)
    with pytest.raises(UserError, match=r"No space left on device.*free some space"):
        save_hf(saved, CFG, params)
    assert (saved / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]
