"""A student as a run needs it: shape, parameters and tokenizer of one checkpoint."""

from __future__ import annotations

import dataclasses
import importlib.resources
import pathlib

from ropd_jax.models.config import ModelConfig
from ropd_jax.models.gguf import find_smollm2, load_gguf
from ropd_jax.models.hf import load_hf
from ropd_jax.text.tokenizer import Tokenizer, load_tokenizer
from ropd_jax.types import UserError

SHIPPED = {"tiny": "quickstart_student"}


@dataclasses.dataclass(frozen=True)
class Student:
    """``params`` is a tree of host arrays (float32), layers stacked; see `ropd_jax.models.transformer`."""

    cfg: ModelConfig
    params: dict
    tokenizer: Tokenizer


def find(checkpoint: str) -> pathlib.Path:
    """The file or directory of a name: ``tiny``, ``smollm2``, a .gguf file or a Hugging Face directory.

    Raises:
        UserError: nothing is there.
    """
    if checkpoint in SHIPPED:
        return pathlib.Path(str(importlib.resources.files("ropd_jax") / "assets" / SHIPPED[checkpoint]))
    if checkpoint == "smollm2":
        return find_smollm2()
    path = pathlib.Path(checkpoint).expanduser()
    if not path.exists():
        raise UserError(
            f"student.checkpoint={checkpoint!r} does not exist; expected tiny, smollm2, a .gguf file, "
            "or a directory with config.json, *.safetensors and tokenizer files"
        )
    return path


def load_student(checkpoint: str, *, chat_template: str = "", enable_thinking: bool | None = None) -> Student:
    """Read a checkpoint into host memory.

    Args:
        checkpoint: see `find`.
        chat_template: a Jinja file that replaces the checkpoint's own template.
        enable_thinking: passed to the template; None leaves its own default.

    Raises:
        UserError: missing, truncated or unsupported checkpoint, or no chat template.
    """
    path = find(checkpoint)
    cfg, params = load_gguf(path) if path.is_file() else load_hf(path)
    return Student(cfg, params, load_tokenizer(path, chat_template=chat_template, enable_thinking=enable_thinking))
