"""Adapters in PEFT's format: adapter_model.safetensors and adapter_config.json."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ropd_jax.models.config import ModelConfig
from ropd_jax.models.lora import Lora, Params, adapted, each_adapter
from ropd_jax.weights.tensors import tensors_of

TEXT_PART = "model.language_model."  # in a checkpoint with a vision part; a text-only one has "model."


def adapter_tensors(cfg: ModelConfig, adapters: Params, *, pictures: bool = False) -> dict[str, np.ndarray]:
    """The adapters by their names in adapter_model.safetensors: A is [R, in] and B is [out, R], one pair per layer.

    Args:
        pictures: the base is a multimodal checkpoint (`families.has_pictures`), whose text part is a separate module.
    """
    hf = {t.path: t.hf for t in tensors_of(cfg)}
    found: dict[str, np.ndarray] = {}
    for group, name, a_name, b_name in each_adapter(adapters):
        own = adapters["layers"][group][name]
        a_LIR, b_LRO = np.asarray(own[a_name]), np.asarray(own[b_name])
        L, R = len(a_LIR), a_LIR.shape[-1]
        module = hf["layers", group, name].removesuffix(".weight")
        if pictures:
            module = TEXT_PART + module.removeprefix("model.")
        for i in range(L):
            full = "base_model.model." + module.format(i)
            found[f"{full}.lora_A.weight"] = np.ascontiguousarray(a_LIR[i].reshape(-1, R).T)
            found[f"{full}.lora_B.weight"] = np.ascontiguousarray(b_LRO[i].reshape(R, -1).T)
    return found


def adapter_config(cfg: ModelConfig, lora: Lora, base_model: str = "", *, pictures: bool = False) -> dict[str, Any]:
    """adapter_config.json; ``base_model`` is the checkpoint to which the adapters belong.

    ``target_modules`` is a list of last names. The vision tower of a multimodal base has its own ``q_proj``, so for
    those it is a pattern, which PEFT matches against full names.
    """
    hf = {t.path: t.hf for t in tensors_of(cfg)}
    modules: Any = [hf["layers", group, name].split(".")[-2] for group, name in adapted(cfg, lora)]
    if pictures:
        modules = rf"{re.escape(TEXT_PART)}.*\.({'|'.join(modules)})"
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model or None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
    }
