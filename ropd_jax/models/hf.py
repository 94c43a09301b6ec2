"""Hugging Face directories of the Llama family, in and out. Imports no jax and no transformers.

`TENSORS` says once, for every parameter, where it stands in our tree, what it is called in safetensors and in GGUF
files, and its shape there. Reading, checking and writing all follow from it:

1. `config.json` becomes a `ModelConfig`, or an error that names what is not supported.
2. The headers of all `*.safetensors` are compared with `TENSORS` before any weight is read.
3. A matrix is stored as [out, in] there and is [in, out] here, its head axes apart; layers are stacked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ropd_jax.models.config import ModelConfig
from ropd_jax.types import UserError

MODEL_TYPES = ("llama",)
ARCHITECTURES = ("LlamaForCausalLM",)
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
STORED = ("F32", "BF16", "F16")  # safetensors' names of the above


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One parameter, in our tree and in files.

    Attributes:
        path: keys in the parameter tree.
        hf: name in safetensors; ``{}`` is the layer.
        gguf: name in GGUF files, the same way.
        sizes: the sizes of our axes, the layer axis aside.
        n_in: how many of them are input axes; 0 is a table or a vector, stored as it is.
    """

    path: tuple[str, ...]
    hf: str
    gguf: str
    sizes: Callable[[ModelConfig], tuple[int, ...]]
    n_in: int = 0

    @property
    def per_layer(self) -> bool:
        return self.path[0] == "layers"

    def stored_shape(self, cfg: ModelConfig) -> tuple[int, ...]:
        """Shape in a file: [out, in] for a matrix."""
        sizes = self.sizes(cfg)
        if not self.n_in:
            return sizes
        return int(np.prod(sizes[self.n_in :])), int(np.prod(sizes[: self.n_in]))

    def from_stored(self, cfg: ModelConfig, w: np.ndarray) -> np.ndarray:
        return w.T.reshape(self.sizes(cfg)) if self.n_in else w

    def to_stored(self, cfg: ModelConfig, w: np.ndarray) -> np.ndarray:
        n_out, n_in = self.stored_shape(cfg) if self.n_in else (0, 0)
        return np.ascontiguousarray(w.reshape(n_in, n_out).T) if self.n_in else np.ascontiguousarray(w)


def _layer(group: str, name: str, hf: str, gguf: str, sizes, n_in: int = 0) -> Tensor:
    return Tensor(("layers", group, name), f"model.layers.{{}}.{hf}.weight", f"blk.{{}}.{gguf}.weight", sizes, n_in)


TENSORS = (
    Tensor(
        ("embed", "table_VD"), "model.embed_tokens.weight", "token_embd.weight", lambda c: (c.vocab_size, c.d_model)
    ),
    _layer("attn_norm", "scale_D", "input_layernorm", "attn_norm", lambda c: (c.d_model,)),
    _layer("attn", "q_DNH", "self_attn.q_proj", "attn_q", lambda c: (c.d_model, c.num_heads, c.head_dim), 1),
    _layer("attn", "k_DKH", "self_attn.k_proj", "attn_k", lambda c: (c.d_model, c.num_kv_heads, c.head_dim), 1),
    _layer("attn", "v_DKH", "self_attn.v_proj", "attn_v", lambda c: (c.d_model, c.num_kv_heads, c.head_dim), 1),
    _layer("attn", "o_NHD", "self_attn.o_proj", "attn_output", lambda c: (c.num_heads, c.head_dim, c.d_model), 2),
    _layer("mlp_norm", "scale_D", "post_attention_layernorm", "ffn_norm", lambda c: (c.d_model,)),
    _layer("mlp", "gate_DF", "mlp.gate_proj", "ffn_gate", lambda c: (c.d_model, c.mlp_dim), 1),
    _layer("mlp", "up_DF", "mlp.up_proj", "ffn_up", lambda c: (c.d_model, c.mlp_dim), 1),
    _layer("mlp", "down_FD", "mlp.down_proj", "ffn_down", lambda c: (c.mlp_dim, c.d_model), 1),
    Tensor(("final_norm", "scale_D"), "model.norm.weight", "output_norm.weight", lambda c: (c.d_model,)),
    Tensor(("head", "table_VD"), "lm_head.weight", "output.weight", lambda c: (c.vocab_size, c.d_model)),
)


def tensors_of(cfg: ModelConfig) -> tuple[Tensor, ...]:
    """The parameters of this config: without the head where it is tied to the embedding."""
    return tuple(t for t in TENSORS if not (cfg.tied and t.path[0] == "head"))


def check_shapes(cfg: ModelConfig, found: Mapping[str, tuple[int, ...]], names: Callable[[Tensor], str], where: str):
    """Compare the names and shapes of a file with what ``cfg`` demands.

    Raises:
        UserError: a tensor is missing, misshapen or unknown; names the first one and counts the others.
    """
    expected = {
        name: t.stored_shape(cfg)
        for t in tensors_of(cfg)
        for name in ([names(t).format(i) for i in range(cfg.num_layers)] if t.per_layer else [names(t)])
    }
    if missing := [n for n in expected if n not in found]:
        raise UserError(
            f"{where} lacks tensor {missing[0]!r}{_others(missing)}; expected {len(expected)} tensors "
            "for its config: the download is incomplete, or config and weights belong to different models"
        )
    if extra := sorted(n for n in found if n not in expected):
        raise UserError(
            f"{where} holds tensor {extra[0]!r}{_others(extra)}, which a model of its config does not have; "
            f"supported are {', '.join(ARCHITECTURES)} without biases, adapters or quantization"
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
        if t.per_layer:
            value = np.empty((cfg.num_layers, *t.sizes(cfg)), dtype)
            for i in range(cfg.num_layers):
                value[i] = t.from_stored(cfg, read(t, names(t).format(i)))
        else:
            value = np.array(t.from_stored(cfg, read(t, names(t))), dtype)  # a copy: the file may go away
        node = params
        for key in t.path[:-1]:
            node = node.setdefault(key, {})
        node[t.path[-1]] = value
    return params


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
        home = {name: file for file, f in files.items() for name in f.keys()}  # noqa: SIM118
        ignored = ["lm_head.weight"] if cfg.tied else []  # some tied checkpoints store the table twice
        home = {n: f for n, f in home.items() if n not in ignored and not n.endswith(".rotary_emb.inv_freq")}
        slices = {name: files[file].get_slice(name) for name, file in home.items()}
        check_shapes(cfg, {n: tuple(s.get_shape()) for n, s in slices.items()}, lambda t: t.hf, str(path))
        for name, s in slices.items():
            if s.get_dtype() not in STORED:
                raise UserError(
                    f"{home[name]}: tensor {name!r} is stored as {s.get_dtype()}, expected one of "
                    f"{', '.join(STORED)}; use the unquantized checkpoint"
                )
        params = build(cfg, lambda t, name: files[home[name]].get_tensor(name), lambda t: t.hf, np.dtype(dtype))
    return cfg, params


def weight_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files of a directory: those of the index if there is one, else all.

    Raises:
        UserError: there are none, or the index names one that is not there.
    """
    index = path / "model.safetensors.index.json"
    if index.exists():
        weight_map = _json(index).get("weight_map")
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


def _json(file: pathlib.Path) -> dict:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as e:
        raise UserError(f"{file} cannot be read as JSON ({e}); fetch it again") from e
    if not isinstance(value, dict):
        raise UserError(f"{file} holds a {type(value).__name__}, expected a JSON object; fetch it again")
    return value


def read_config(path: str | pathlib.Path) -> ModelConfig:
    """``config.json`` of a directory as a `ModelConfig`.

    Absent keys mean what they mean to the format: ``num_key_value_heads`` as many as heads, ``head_dim`` D/N,
    ``rope_theta`` 10,000, ``tie_word_embeddings`` false. All other keys must be there.

    Raises:
        UserError: no config, another architecture, a feature that is not supported, a missing or foreign value.
    """
    file = pathlib.Path(path) / "config.json"
    if not file.is_file():
        raise UserError(f"{path} has no config.json; expected a Hugging Face directory (config.json, *.safetensors)")
    raw = _json(file)
    _refuse_unsupported(file, raw)

    def number(key: str, default=None, kind=int):
        value = raw[key] if raw.get(key) is not None else default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0 or value != kind(value):
            raise UserError(f"{file}: {key}={value!r}, expected a positive {kind.__name__}; check the checkpoint")
        return kind(value)

    rope = raw.get("rope_parameters") or {}
    raw = {"rope_theta": rope.get("rope_theta", 10_000.0), **raw}
    d_model, num_heads = number("hidden_size"), number("num_attention_heads")
    tied = raw.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise UserError(f"{file}: tie_word_embeddings={tied!r}, expected true or false; check the checkpoint")
    if raw.get("head_dim") is None and d_model % num_heads:
        raise UserError(
            f"{file}: hidden_size={d_model} is not a multiple of num_attention_heads={num_heads} and there is no "
            "head_dim; check the checkpoint"
        )
    return ModelConfig(
        vocab_size=number("vocab_size"),
        num_layers=number("num_hidden_layers"),
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=number("num_key_value_heads", num_heads),
        head_dim=number("head_dim", d_model // num_heads),
        mlp_dim=number("intermediate_size"),
        rope_theta=number("rope_theta", kind=float),
        norm_eps=number("rms_norm_eps", kind=float),
        tied=tied,
        max_seq_len=number("max_position_embeddings"),
    )


def _refuse_unsupported(file: pathlib.Path, raw: dict) -> None:
    kind, names = raw.get("model_type"), raw.get("architectures") or ()
    if kind not in MODEL_TYPES:
        raise UserError(
            f"{file}: model_type={kind!r} is not supported; supported: {', '.join(MODEL_TYPES)} "
            f"({', '.join(ARCHITECTURES)}), for example SmolLM2 or Llama"
        )
    if names and not set(names) & set(ARCHITECTURES):
        raise UserError(f"{file}: architectures={list(names)} is not supported; supported: {', '.join(ARCHITECTURES)}")
    for key in ("attention_bias", "mlp_bias", "quantization_config"):
        if raw.get(key):
            raise UserError(f"{file}: {key}={str(raw[key])[:80]} is not supported yet; choose a checkpoint without it")
    if raw.get("hidden_act", "silu") != "silu":
        raise UserError(f"{file}: hidden_act={raw['hidden_act']!r} is not supported yet; expected 'silu'")
    for key in ("rope_scaling", "rope_parameters"):
        rope = raw.get(key) or {}
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type != "default":
            raise UserError(
                f"{file}: {key} of type {rope_type!r} is not supported yet; choose a checkpoint without scaling"
            )
    for value in (raw.get("partial_rotary_factor"), (raw.get("rope_parameters") or {}).get("partial_rotary_factor")):
        if value not in (None, 1, 1.0):
            raise UserError(f"{file}: partial_rotary_factor={value} is not supported yet; expected 1")


def config_json(cfg: ModelConfig, dtype: str = "float32", **extra) -> dict:
    """What `save_hf` writes into config.json; ``extra`` keys (``eos_token_id``, ...) are added."""
    return {
        "architectures": [ARCHITECTURES[0]],
        "model_type": MODEL_TYPES[0],
        "vocab_size": cfg.vocab_size,
        "num_hidden_layers": cfg.num_layers,
        "hidden_size": cfg.d_model,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "intermediate_size": cfg.mlp_dim,
        "hidden_act": "silu",
        "rope_theta": cfg.rope_theta,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tied,
        "max_position_embeddings": cfg.max_seq_len,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        **extra,
    }


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
        shape = ((cfg.num_layers,) if t.per_layer else ()) + t.sizes(cfg)
        if value.shape != shape:
            raise UserError(f"parameter {'.'.join(t.path)} has shape {value.shape}, expected {shape} from its config")
        value = value.astype(DTYPES[dtype])
        if t.per_layer:
            flat |= {t.hf.format(i): t.to_stored(cfg, value[i]) for i in range(cfg.num_layers)}
        else:
            flat[t.hf] = t.to_stored(cfg, value)
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
