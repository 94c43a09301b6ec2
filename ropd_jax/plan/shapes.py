"""The shape of a student without its weights: from the checkpoint on disk, or from the facts kept in ``models/``.

``models/NAME/config.json`` holds the published sizes of the paper's models, so that a plan needs neither the Hub nor
8 GB of weights.
"""

from __future__ import annotations

import importlib.resources
import pathlib

from ropd_jax.hints import near
from ropd_jax.models.config import ModelConfig
from ropd_jax.models.families import read_config
from ropd_jax.types import UserError


def facts() -> dict[str, pathlib.Path]:
    """Directory with the config.json of each model that is known, by the last part of its Hub id."""
    root = pathlib.Path(str(importlib.resources.files("ropd_jax.plan") / "models"))
    return {p.name: p for p in sorted(root.iterdir()) if (p / "config.json").is_file()}


def model_config(checkpoint: str) -> ModelConfig:
    """Sizes of ``student.checkpoint``: tiny, smollm2, a .gguf file, a Hugging Face directory or a known Hub id.

    Raises:
        UserError: neither on this disk nor among the facts.
    """
    from ropd_jax import student

    known = facts()
    on_disk = pathlib.Path(checkpoint).expanduser().exists()
    if not on_disk and checkpoint.count("/") == 1 and (name := checkpoint.split("/")[1]) in known:
        return read_config(known[name])
    if checkpoint not in ("tiny", "smollm2") and not on_disk:
        raise UserError(
            f"student.checkpoint={checkpoint!r} is not on this disk, and its sizes are not among ropd_jax/plan/models; "
            f"{near(checkpoint.split('/')[-1], known)}"
        )
    path = student.find(checkpoint)
    if path.is_dir():
        return read_config(path)
    from ropd_jax.ggufio import GGUF
    from ropd_jax.models.gguf import gguf_config

    return gguf_config(GGUF(path))
