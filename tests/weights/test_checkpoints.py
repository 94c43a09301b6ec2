"""The ways to store a checkpoint: we read the same as transformers and PEFT.

The golden files were made by `tests/golden/make_checkpoints.py`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from ropd_jax.models import transformer
from ropd_jax.models.lora import Lora, adapter_shapes, merge
from ropd_jax.models.rope import rope_frequencies
from ropd_jax.plan.shapes import model_config
from ropd_jax.weights import peft
from ropd_jax.weights.families import config_json, family_of, has_pictures, read_config
from tests.helpers import read_weights

CHECKPOINTS = pathlib.Path(__file__).parents[1] / "golden" / "checkpoints"
SECTION = {"rank": 2, "alpha": 8.0, "targets": ["attn.*", "mlp.up"], "base_dtype": "float32"}


def made_adapters(cfg, lora):
    """Adapters that have an effect."""
    rng = np.random.default_rng(3)
    draw = lambda s: (0.3 * rng.standard_normal(s.shape)).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, adapter_shapes(cfg, lora))


def logits(cfg, params, tokens_BT):
    positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
    x_BTD = transformer.hidden(cfg, params, tokens_BT, positions_BT, np.ones_like(tokens_BT))
    return np.asarray(transformer.logits(cfg, params, x_BTD))


@pytest.mark.parametrize("name", ["llama_own_head", "llama_only_head", "gemma2_null", "mistral", "smollm3"])
def test_logits_equal_those_of_transformers(tmp_path, name):
    cfg, params = read_weights(CHECKPOINTS / name)
    golden = np.load(CHECKPOINTS / name / "logits.npz")
    np.testing.assert_allclose(logits(cfg, params, golden["tokens"]), golden["logits"], rtol=0, atol=2e-5)
    (tmp_path / "config.json").write_text(json.dumps(config_json(cfg)))
    again = dataclasses.replace(read_config(tmp_path), attn_scale=cfg.attn_scale)  # stored as its inverse square
    assert again == cfg and family_of(cfg) == json.loads((CHECKPOINTS / name / "config.json").read_text())["model_type"]
    assert cfg.tied == (name not in ("llama_own_head", "mistral")) and cfg.attn_softcap == cfg.final_softcap == 0.0


def test_a_plan_counts_the_head_that_the_files_have(tmp_path):
    path = CHECKPOINTS / "llama_own_head"
    assert read_config(path).tied and not model_config(str(path)).tied
    (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
    assert model_config(str(tmp_path)).tied  # without weights only the config is known


def test_yarn_has_the_frequencies_and_the_factor_of_transformers(tmp_path):
    golden = json.loads((CHECKPOINTS / "rope.json").read_text())
    base = json.loads((CHECKPOINTS / "llama_own_head" / "config.json").read_text())
    base |= {"max_position_embeddings": golden["max_position_embeddings"], "rope_parameters": None}
    for row in golden["rows"]:
        theta = row["rope"].pop("rope_theta")
        old = {"rope_scaling": {"type": "yarn", **row["rope"]}, "rope_theta": theta}
        new = {"rope_parameters": {"rope_type": "yarn", "rope_theta": theta, **row["rope"]}}
        for spelling in (old, new):
            (tmp_path / "config.json").write_text(json.dumps(base | {"head_dim": row["head_dim"]} | spelling))
            cfg = read_config(tmp_path)
            freq_H = rope_frequencies(cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
            np.testing.assert_allclose(freq_H, row["freq"], rtol=2e-6)
            assert cfg.rope_scaling.attention_factor == pytest.approx(row["factor"], rel=1e-7)
            assert cfg.max_seq_len == max(
                base["max_position_embeddings"], cfg.rope_scaling.original_len * cfg.rope_scaling.factor
            )


def test_adapters_of_a_multimodal_base_have_the_names_and_the_effect_that_peft_gives_them():
    path = CHECKPOINTS / "gemma3_pictures"
    cfg, params = read_weights(path)
    golden, lora = np.load(path / "logits.npz"), Lora.from_config(SECTION)
    adapters = made_adapters(cfg, lora)
    for tree, key in ((params, "logits"), (merge(lora, params, adapters), "adapted")):
        np.testing.assert_allclose(logits(cfg, tree, golden["tokens"]), golden[key], rtol=0, atol=3e-5)
    assert np.abs(golden["logits"] - golden["adapted"]).max() > 1
    assert has_pictures(path) and not has_pictures(CHECKPOINTS / "gemma2_null")
    names = sorted(peft.adapter_tensors(cfg, adapters, pictures=True))
    assert names == json.loads((path / "peft.json").read_text())
    pattern = peft.adapter_config(cfg, lora, pictures=True)["target_modules"]
    assert re.fullmatch(pattern, "model.language_model.layers.1.mlp.up_proj")
    assert not re.fullmatch(pattern, "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj")
    assert not re.fullmatch(pattern, "model.language_model.layers.1.mlp.down_proj")
