"""Hugging Face directories, in and out. Imports no jax and no transformers.

`tensors_of` says, for every parameter of a config, where it stands in our tree, what it is called in safetensors and in
GGUF files, and its shape there. Reading, checking and writing all follow from it:

1. `config.json` becomes a `ModelConfig` (`families`), or an error that names what is not supported.
2. The headers of all `*.safetensors` are compared with `tensors_of` before any weight is read.
3. A matrix is stored as [out, in] there and is [in, out] here, its head axes apart; layers (and experts) are stacked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ropd_jax.models.config import ModelConfig
from ropd_jax.models.families import ARCHITECTURE, config_json, read_config, read_json
from ropd_jax.types import UserError

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
STORED = ("F32", "BF16", "F16")  # safetensors' names of the above


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One parameter, in our tree and in files.

    Attributes:
        path: keys in the parameter tree.
        hf: name in safetensors; the first ``{}`` is the layer, the second the expert.
        gguf: name in GGUF files, the same way.
        sizes: the sizes of our axes, layers and experts aside.
        n_in: how many of them are input axes, for a matrix stored as [out, in] (0: a bias, stored flat); None for what
            is stored as it is.
        stack: sizes of the leading axes: () or (L,) or (L, E).
    """

    path: tuple[str, ...]
    hf: str
    gguf: str
    sizes: tuple[int, ...]
    n_in: int | None = None
    stack: tuple[int, ...] = ()

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of one of them in a file."""
        if self.n_in is None:
            return self.sizes
        n_in, n_out = int(np.prod(self.sizes[: self.n_in])), int(np.prod(self.sizes[self.n_in :]))
        return (n_out, n_in) if self.n_in else (n_out,)

    def indices(self) -> Iterator[tuple[int, ...]]:
        """Of each one that the file holds."""
        return itertools.product(*map(range, self.stack))

    def from_stored(self, w: np.ndarray) -> np.ndarray:
        return w.T.reshape(self.sizes) if self.n_in else w.reshape(self.sizes)

    def to_stored(self, w: np.ndarray) -> np.ndarray:
        if not self.n_in:
            return np.ascontiguousarray(w.reshape(self.stored_shape))
        return np.ascontiguousarray(w.reshape(self.stored_shape[::-1]).T)


def tensors_of(cfg: ModelConfig) -> tuple[Tensor, ...]:
    """The parameters of this config: biases, norms, experts and the head only where it has them."""
    V, D, N, K, H, F = cfg.vocab_size, cfg.d_model, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, cfg.mlp_dim
    found: list[Tensor] = []

    def layer(group: str, name: str, hf: str, gguf: str, sizes, n_in=None, part="weight", experts: int = 0):
        stack = (cfg.num_layers, experts) if experts else (cfg.num_layers,)
        path = ("layers", *group.split("/"), name)
        found.append(Tensor(path, f"model.layers.{{}}.{hf}.{part}", f"blk.{{}}.{gguf}.{part}", sizes, n_in, stack))

    layer("attn_norm", "scale_D", "input_layernorm", "attn_norm", (D,))
    for name, letter, heads in (("q", "N", N), ("k", "K", K), ("v", "K", K)):
        layer("attn", f"{name}_D{letter}H", f"self_attn.{name}_proj", f"attn_{name}", (D, heads, H), 1)
        if cfg.qkv_bias:
            layer("attn", f"{name}_bias_{letter}H", f"self_attn.{name}_proj", f"attn_{name}", (heads, H), 0, "bias")
        if cfg.qk_norm and name != "v":
            layer(f"attn/{name}_norm", "scale_H", f"self_attn.{name}_norm", f"attn_{name}_norm", (H,))
    layer("attn", "o_NHD", "self_attn.o_proj", "attn_output", (N, H, D), 2)
    if cfg.sandwich_norms:
        layer("attn_post_norm", "scale_D", "post_attention_layernorm", "post_attention_norm", (D,))
        layer("mlp_norm", "scale_D", "pre_feedforward_layernorm", "ffn_norm", (D,))
        layer("mlp_post_norm", "scale_D", "post_feedforward_layernorm", "post_ffw_norm", (D,))
    else:
        layer("mlp_norm", "scale_D", "post_attention_layernorm", "ffn_norm", (D,))
    where, e, stacked = ("mlp.experts.{}", "E", "_exps") if cfg.num_experts else ("mlp", "", "")
    if cfg.num_experts:
        layer("mlp", "router_DE", "mlp.gate", "ffn_gate_inp", (D, cfg.num_experts), 1)
    for name, dims, sizes in (("gate", "DF", (D, F)), ("up", "DF", (D, F)), ("down", "FD", (F, D))):
        hf, gguf = f"{where}.{name}_proj", f"ffn_{name}{stacked}"
        layer("mlp", f"{name}_{e}{dims}", hf, gguf, sizes, 1, experts=cfg.num_experts)
    embed = Tensor(("embed", "table_VD"), "model.embed_tokens.weight", "token_embd.weight", (V, D))
    norm = Tensor(("final_norm", "scale_D"), "model.norm.weight", "output_norm.weight", (D,))
    head = Tensor(("head", "table_VD"), "lm_head.weight", "output.weight", (V, D))
    return (embed, *found, norm) if cfg.tied else (embed, *found, norm, head)


def check_shapes(cfg: ModelConfig, found: Mapping[str, tuple[int, ...]], names: Callable[[Tensor], str], where: str):
    """Compare the names and shapes of a file with what ``cfg`` demands.

    Raises:
        UserError: a tensor is missing, misshapen or unknown; names the first one and counts the others.
    """
    expected = {names(t).format(*i): t.stored_shape for t in tensors_of(cfg) for i in t.indices()}
    if missing := [n for n in expected if n not in found]:
        raise UserError(
            f"{where} lacks tensor {missing[0]!r}{_others(missing)}; expected {len(expected)} tensors "
            "for its config: the download is incomplete, or config and weights belong to different models"
        )
    if extra := sorted(n for n in found if n not in expected):
        raise UserError(
            f"{where} holds tensor {extra[0]!r}{_others(extra)}, which a model of its config does not have; "
            f"supported are {', '.join(ARCHITECTURE.values())} without biases, adapters or quantization"
        )
    if wrong := [n for n, shape in expected.items() if tuple(found[n]) != shape]:
        raise UserError(
            f"{where}: tensor {wrong[0]!r}{_others(wrong)} has shape {list(found[wrong[0]])}, "
            f"expected {list(expected[wrong[0]])} from its config; config and weights belong to different models"
        )


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} others)" if len(names) > 1 else ""


def build(cfg: ModelConfig, read: Callable[[Tensor, str], np.ndarray], names: Callable[[Tensor], str], dtype) -> dict:
    """The parameter tree, filled tensor by tensor; ``read(tensor, name)`` gives one array as stored."""
    params: dict = {}
    for t in tensors_of(cfg):
        value = np.empty((*t.stack, *t.sizes), dtype)
        for i in t.indices():
            value[i] = t.from_stored(read(t, names(t).format(*i)))
        node = params
        for key in t.path[:-1]:
            node = node.setdefault(key, {})
        node[t.path[-1]] = value
    return params


TEXT_PREFIXES = ("model.language_model.", "language_model.model.")  # checkpoints that see pictures too
NOT_TEXT = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def text_name(name: str) -> str | None:
    """The name of a tensor in a text-only checkpoint; None for what belongs to pictures."""
    if name.startswith(NOT_TEXT):
        return None
    for prefix in TEXT_PREFIXES:
        if name.startswith(prefix):
            return "model." + name.removeprefix(prefix)
    return name.removeprefix("language_model.")


def load_hf(path: str | pathlib.Path, dtype="float32") -> tuple[ModelConfig, dict]:
    """Read ``config.json`` and ``*.safetensors`` (one file, or shards with or without an index) of a directory.

    Args:
        path: the directory.
        dtype: of the arrays returned; stored may be float32, bfloat16 or float16.

    Returns:
        (config, tree of numpy arrays as `transformer.param_shapes` describes it).

    Raises:
        UserError: no or unsupported config; truncated or foreign weights; a missing, extra or misshapen tensor.
    """
    path = pathlib.Path(path)
    cfg = read_config(path)
    with contextlib.ExitStack() as stack:
        files = {file: stack.enter_context(_open(file)) for file in weight_files(path)}
        home = {t: (file, n) for file, f in files.items() for n in f.keys() if (t := text_name(n))}  # noqa: SIM118
        ignored = ["lm_head.weight"] if cfg.tied else []  # some tied checkpoints store the table twice
        home = {n: f for n, f in home.items() if n not in ignored and not n.endswith(".rotary_emb.inv_freq")}
        slices = {name: files[file].get_slice(stored) for name, (file, stored) in home.items()}
        check_shapes(cfg, {n: tuple(s.get_shape()) for n, s in slices.items()}, lambda t: t.hf, str(path))
        for name, s in slices.items():
            if s.get_dtype() not in STORED:
                raise UserError(
                    f"{home[name][0]}: tensor {name!r} is stored as {s.get_dtype()}, expected one of "
                    f"{', '.join(STORED)}; use the unquantized checkpoint"
                )

        def read(t: Tensor, name: str) -> np.ndarray:
            file, stored = home[name]
            return files[file].get_tensor(stored)

        params = build(cfg, read, lambda t: t.hf, np.dtype(dtype))
    return cfg, params


def weight_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files of a directory: those of the index if there is one, else all.

    Raises:
        UserError: there are none, or the index names one that is not there.
    """
    index = path / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{index} has no 'weight_map'; expected tensor names and their files, fetch it again")
        files = [path / name for name in sorted(set(weight_map.values()))]
    else:
        files = [path / "model.safetensors"]
        if not files[0].exists():
            files = sorted(path.glob("*.safetensors"))
    if not files:
        other = sorted(p.name for p in (*path.glob("*.bin"), *path.glob("*.pth"), *path.glob("*.gguf")))
        seen = f"only {', '.join(other[:3])}" if other else "none"
        raise UserError(
            f"{path} has no *.safetensors (weights found: {seen}); fetch or convert the safetensors weights"
        )
    for file in files:
        if not file.exists():
            raise UserError(f"{file} does not exist, but {index.name} names it; the download is incomplete")
    return files


def _open(file: pathlib.Path):
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as e:
        size = f"{file.stat().st_size:,} bytes" if file.exists() else "missing"
        raise UserError(
            f"{file} ({size}) is not a whole safetensors file ({e}); it is truncated or foreign, fetch it again"
        ) from e


def save_hf(path: str | pathlib.Path, cfg: ModelConfig, params: Mapping, *, dtype: str = "float32", **extra) -> None:
    """Write ``config.json`` and ``model.safetensors`` that `load_hf` and transformers read.

    Each file is written under another name and then renamed, so an interrupted save leaves the old one.

    Args:
        path: the directory; made if need be.
        params: tree of arrays, layers stacked.
        dtype: as which weights are stored: float32, bfloat16 or float16.
        extra: further keys of config.json.

    Raises:
        UserError: the tree does not fit ``cfg``, the dtype is unknown, or the disk refuses.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} cannot be stored; expected one of {', '.join(DTYPES)}")
    flat = {}
    for t in tensors_of(cfg):
        node = params
        for key in t.path:
            if key not in node:
                raise UserError(f"parameter {'.'.join(t.path)} is missing; expected the tree of this config")
            node = node[key]
        value = np.asarray(node)
        shape = (*t.stack, *t.sizes)
        if value.shape != shape:
            raise UserError(f"parameter {'.'.join(t.path)} has shape {value.shape}, expected {shape} from its config")
        value = value.astype(DTYPES[dtype])
        flat |= {t.hf.format(*i): t.to_stored(value[i]) for i in t.indices()}
    path = pathlib.Path(path)
    part = path / f".part.{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        save_file(flat, part, metadata={"format": "pt"})
        part.replace(path / "model.safetensors")
        part.write_text(json.dumps(config_json(cfg, dtype, **extra), indent=2) + "\n", encoding="utf-8")
        part.replace(path / "config.json")
    except (OSError, SafetensorError) as e:
        raise UserError(f"cannot save a checkpoint to {path} ({e}); free some space or choose another directory") from e
    finally:
        part.unlink(missing_ok=True)
