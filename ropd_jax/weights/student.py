"""A student: shape, parameters and tokenizer of one checkpoint.

`ropd_jax.workdir.policy.load_student` also loads the student of a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from ropd_jax.models.config import ModelConfig
from ropd_jax.text.tokenizer import HFTokenizer, Tokenizer
from ropd_jax.types import UserError
from ropd_jax.utils.paths import local_file
from ropd_jax.weights import hub
from ropd_jax.weights.families import read_config
from ropd_jax.weights.gguf import GGUFSource, find_smollm2
from ropd_jax.weights.hf import PICKLES, HFSource
from ropd_jax.weights.tensors import Source, host_tree
from ropd_jax.weights.tokenizer import load_tokenizer
from ropd_jax.weights.vocabulary import fit

if TYPE_CHECKING:
    import jax

SHIPPED = {"tiny": "quickstart_student"}


@dataclasses.dataclass(frozen=True)
class Student:
    """A model and its tokenizer.

    Attributes:
        cfg: the model's shape.
        params: a tree of arrays, layers stacked (`ropd_jax.models.transformer`), in host memory or on a mesh.
        tokenizer: with the chat template.
    """

    cfg: ModelConfig
    params: dict
    tokenizer: Tokenizer


def find(checkpoint: str, *, weights: bool = True, key: str = "student.checkpoint") -> pathlib.Path:
    """The path for a name: ``tiny``, ``smollm2``, a .gguf file, a Hugging Face directory, an id of the Hub.

    Args:
        weights: False if config and tokenizer are enough: then weights are not downloaded from the Hub.
        key: of the config, for messages.

    Raises:
        UserError: not found; for the Hub see `hub.fetch`.
    """
    if checkpoint in SHIPPED:
        return pathlib.Path(str(importlib.resources.files("ropd_jax") / "assets" / SHIPPED[checkpoint]))
    if checkpoint == "smollm2":
        return find_smollm2()
    expected = (
        "expected tiny, smollm2, a .gguf file, a directory with config.json, *.safetensors and tokenizer files, or an "
        "id of the Hub, e.g. Qwen/Qwen3-4B"
    )
    if not checkpoint:
        raise UserError(f"{key} is empty; {expected}")
    try:
        path = local_file(checkpoint, key)
        there = path.exists()
    except (OSError, RuntimeError) as error:  # too long for a name, or the home of an unknown user
        raise UserError(f"{key}={checkpoint[:200]!r} cannot be read ({error}); {expected}") from error
    if not there:
        if hub.is_id(checkpoint):
            return hub.fetch(checkpoint, weights=weights, key=key)
        raise UserError(f"{key}={checkpoint!r} does not exist; {expected}")
    return path


def open_source(path: str | pathlib.Path) -> Source:
    """Open the checkpoint at a path that `find` returned: its config and headers are checked, but no weights are read.

    Raises:
        UserError: missing, truncated or unsupported checkpoint.
    """
    path = pathlib.Path(path)
    if path.suffix in PICKLES and path.is_file():
        raise UserError(
            f"{path} is a pickle, which can run code when it is read; expected a .gguf file or a directory with "
            "*.safetensors: fetch or convert those weights"
        )
    if path.suffix == ".safetensors" and path.is_file():
        raise UserError(f"{path} has no config and no tokenizer; give its directory: {path.parent}")
    return GGUFSource(path) if path.is_file() else HFSource(path)


def outline(
    checkpoint: str,
    *,
    chat_template: str = "",
    enable_thinking: bool | None = None,
    key: str = "student.checkpoint",
) -> Student:
    """Shape and tokenizer of a checkpoint, with empty parameters; no weights are read or downloaded.

    Raises:
        UserError: see `load_checkpoint`.
    """
    path = find(checkpoint, weights=False, key=key)
    if pathlib.Path(checkpoint).expanduser().exists() or not hub.is_id(checkpoint):
        with contextlib.closing(open_source(path)) as source:
            cfg = source.cfg
    else:
        cfg = read_config(path)
    tokenizer = load_tokenizer(path, chat_template=chat_template, enable_thinking=enable_thinking)
    cfg, tokenizer = fit(cfg, tokenizer, checkpoint)
    return Student(cfg, {}, tokenizer)


def load_checkpoint(
    checkpoint: str,
    *,
    chat_template: str = "",
    enable_thinking: bool | None = None,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str = "float32",
    tokenizer: Tokenizer | None = None,
    key: str = "student.checkpoint",
    vectors: str = "",
) -> Student:
    """Load a checkpoint onto a mesh, one tensor at a time directly into its shards, or without a mesh into host memory.

    Args:
        checkpoint: see `find`.
        chat_template: a Jinja file that replaces the checkpoint's own template.
        enable_thinking: passed to the template; None keeps its default.
        mesh: placement of the parameters, sharded by `mesh.ShardingRules.storage`.
        dtype: of the parameters: float32 if they are trained; bfloat16 is enough if they are frozen.
        tokenizer: from `outline`; None loads it.
        key: of the config, for messages.
        vectors: on a mesh, dtype of norms and other vectors, which are computed in float32; "" is ``dtype``.

    Raises:
        UserError: missing, truncated or unsupported checkpoint, no chat template, a tokenizer with tokens that have no
            row in the table, or a mesh that its sizes do not divide over: all before any weights are read. NaN or
            infinite weights: when they are read.
    """
    path = find(checkpoint, key=key)
    with contextlib.closing(open_source(path)) as source:
        if tokenizer is None:
            tokenizer = load_tokenizer(path, chat_template=chat_template, enable_thinking=enable_thinking)
        cfg = source.cfg
        if isinstance(tokenizer, HFTokenizer):
            cfg, tokenizer = fit(cfg, tokenizer, checkpoint)
        if mesh is None:
            return Student(cfg, host_tree(source, np.dtype(dtype)), tokenizer)
        from ropd_jax.parallel.mesh import check_divides
        from ropd_jax.weights.load import stream

        check_divides(source.cfg, mesh)
        return Student(cfg, stream(source, mesh, dtype, vectors=vectors), tokenizer)
