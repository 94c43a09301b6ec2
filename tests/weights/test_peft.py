"""Adapters in PEFT's files."""

from __future__ import annotations

import numpy as np

from ropd_jax.models import transformer
from ropd_jax.models.lora import Lora, merge
from ropd_jax.weights import peft
from tests.helpers import TINY
from tests.models.test_lora import LORA, grown


def test_names_and_shapes():
    adapters = grown(TINY)
    tensors = peft.adapter_tensors(TINY, adapters)
    assert len(tensors) == 3 * 7 * 2
    q = "base_model.model.model.layers.1.self_attn.q_proj"
    assert tensors[f"{q}.lora_A.weight"].shape == (2, 32) and tensors[f"{q}.lora_B.weight"].shape == (32, 2)
    assert tensors["base_model.model.model.layers.2.mlp.down_proj.lora_A.weight"].shape == (2, 48)
    assert tensors["base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"].shape == (16, 2)
    base = transformer.init_params(TINY, 0)
    delta = np.asarray(merge(LORA, base, adapters)["layers"]["attn"]["o_NHD"] - base["layers"]["attn"]["o_NHD"])
    o = "base_model.model.model.layers.1.self_attn.o_proj"
    product = 4.0 * tensors[f"{o}.lora_B.weight"] @ tensors[f"{o}.lora_A.weight"]  # alpha / R = 8 / 2; [out, in]
    np.testing.assert_allclose(delta[1].reshape(32, 32).T, product, atol=1e-6)
    config = peft.adapter_config(TINY, Lora(rank=2, alpha=8.0, targets=("attn.q", "mlp.*")), "org/base")
    assert config["target_modules"] == ["q_proj", "gate_proj", "up_proj", "down_proj"]
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (2, 8.0, "org/base")
