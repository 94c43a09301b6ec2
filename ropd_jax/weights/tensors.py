"""The location of every parameter of a config in our tree, in safetensors files and in GGUF files. Imports no jax.

All code for reading (`hf`, `gguf`), checking, placing on a mesh (`load`) and writing is based on `tensors_of`.
A matrix is stored as [out, in] in files. Here it is [in, out] with separate head axes, and layers (and experts) are
stacked: q_proj.weight [N*H, D] of 24 layers becomes q_DNH [24, D, N, H].
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from ropd_jax.models.config import ModelConfig
from ropd_jax.types import UserError
from ropd_jax.weights.families import ARCHITECTURE


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One parameter, in our tree and in files.

    Attributes:
        path: keys in the parameter tree.
        hf: name in safetensors; the first ``{}`` is the layer, the second the expert.
        gguf: name in GGUF files, the same way.
        sizes: the sizes of our axes, without layers and experts.
        n_in: number of input axes among them, for a matrix stored as [out, in]: 1 for ``q_DNH``, 2 for ``o_NHD``, 0
            for a bias, which is stored flat. None if it is stored in our layout.
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
        """The shape of one of its arrays in a file."""
        if self.n_in is None:
            return self.sizes
        n_in, n_out = int(np.prod(self.sizes[: self.n_in])), int(np.prod(self.sizes[self.n_in :]))
        return (n_out, n_in) if self.n_in else (n_out,)

    def indices(self) -> Iterator[tuple[int, ...]]:
        """The index of each array in the file: (), (layer,) or (layer, expert)."""
        return itertools.product(*map(range, self.stack))

    @property
    def whole(self) -> tuple[slice, ...]:
        """Slices that select all of our array."""
        return tuple(slice(0, n) for n in self.sizes)

    def stored_part(self, part: tuple[slice, ...]) -> tuple[slice, ...]:
        """The slices of the stored array that correspond to a part of ours.

        Of several axes that are flattened together only the first can be split, as a mesh does: heads 2:4 of width 16
        are rows 32:64.
        """
        if self.n_in is None:
            return part

        def flat(axes: slice) -> slice:
            first, *inner = zip(part[axes], self.sizes[axes], strict=True)
            assert all(s == slice(0, n) for s, n in inner), (self.path, part)
            width = math.prod(n for _, n in inner)
            return slice(first[0].start * width, first[0].stop * width)

        out = flat(slice(self.n_in, None))
        return (out, flat(slice(0, self.n_in))) if self.n_in else (out,)

    def from_stored(self, w: np.ndarray, part: tuple[slice, ...] | None = None) -> np.ndarray:
        """Our array from the stored one, or a part of ours from that part of the stored one."""
        sizes = self.sizes if part is None else tuple(s.stop - s.start for s in part)
        return w.T.reshape(sizes) if self.n_in else w.reshape(sizes)

    def to_stored(self, w: np.ndarray) -> np.ndarray:
        if not self.n_in:
            return np.ascontiguousarray(w.reshape(self.stored_shape))
        return np.ascontiguousarray(w.reshape(self.stored_shape[::-1]).T)


def tensors_of(cfg: ModelConfig) -> tuple[Tensor, ...]:
    """The parameters of this config: biases, norms, experts and the head only if it has them."""
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
    """Compare the names and shapes of a file with those that ``cfg`` requires.

    Raises:
        UserError: a tensor is missing, misshapen or unknown; the message names the first one and counts the others.
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


class Source(Protocol):
    """An open checkpoint: names and shapes are checked, no weights have been read.

    Attributes:
        cfg: shape of the model.
        dtype: the stored dtype of most of its weights.
    """

    cfg: ModelConfig

    @property
    def dtype(self) -> str: ...

    def read(self, t: Tensor, i: tuple[int, ...], part: tuple[slice, ...]) -> np.ndarray:
        """``part`` of the i-th array of ``t`` in our layout; ``part`` has one slice for each of ``t.sizes``."""
        ...

    def close(self) -> None: ...


def host_tree(source: Source, dtype) -> dict:
    """The whole parameter tree as numpy arrays."""
    params: dict = {}
    for t in tensors_of(source.cfg):
        value = np.empty((*t.stack, *t.sizes), dtype)
        for i in t.indices():
            value[i] = source.read(t, i, t.whole)
        check_finite(value, t)
        put_leaf(params, t, value)
    return params


def check_finite(value: np.ndarray, t: Tensor) -> None:
    """Reject NaN and infinities in weights as they are read, in blocks that fit into a core's cache.

    A 16-bit float is checked as an integer (all exponent bits set), because numpy's own test takes four times as long.

    Raises:
        UserError: naming the tensor.
    """
    flat = np.ascontiguousarray(value).reshape(-1)
    exponent = {"bfloat16": 0x7F80, "float16": 0x7C00}.get(flat.dtype.name)
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        if exponent is None:
            finite = np.isfinite(block).all()
        else:
            finite = (block.view(np.uint16) & np.uint16(0x7FFF)).max() < exponent
        if not finite:
            raise UserError(
                f"the checkpoint's tensor {t.hf!r} holds NaN or infinite weights; fetch it again, or choose an earlier "
                "checkpoint of its training"
            )


BLOCK = 1 << 18  # weights


def put_leaf(params: dict, t: Tensor, value) -> None:
    """Set one leaf of a tree, creating the dicts on the way."""
    node = params
    for key in t.path[:-1]:
        node = node.setdefault(key, {})
    node[t.path[-1]] = value


def get_leaf(params: Mapping, t: Tensor):
    """One leaf of a tree.

    Raises:
        UserError: it is missing, or its shape differs from that of ``t``.
    """
    node: Any = params
    for key in t.path:
        if key not in node:
            raise UserError(f"parameter {'.'.join(t.path)} is missing; expected the tree of this config")
        node = node[key]
    if tuple(node.shape) != (shape := (*t.stack, *t.sizes)):
        raise UserError(f"parameter {'.'.join(t.path)} has shape {node.shape}, expected {shape} from its config")
    return node
