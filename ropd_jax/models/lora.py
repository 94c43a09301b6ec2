"""LoRA (Hu et al., arXiv 2106.09685): a frozen base, and small trainable factors for its linear weights.

    y = x W + (alpha / R) (x A) B        A Gaussian, B zero: initially the student equals the base

1. `init_adapters` draws {"layers": {"attn": {"q_DNH": {"a_DR", "b_RNH"}}, ...}}, stacked over layers like the base.
   Only these are optimized and stored in checkpoints.
2. `freeze` stores the base in ``base_dtype``. In int8 each output channel of a linear weight has one factor
   (``channel_NH``: the largest magnitude over 127), which multiplies the output. It is stored under ``scales``. Tables
   become bfloat16.
3. `attach` combines both, without copying the base, into the tree that every function of `transformer` takes:
   the adapters are under ``adapters`` (`linear` draws the tree). The base without them is the reference of a KL term.
4. `merge` combines them into one dense tree, for export. `ropd_jax.weights.peft` writes adapters in PEFT's format.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ropd_jax.models import linear, transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.types import UserError

Params = dict
BASE_DTYPES = ("float32", "bfloat16", "int8")
EXPERTS = ("gate_EDF", "up_EDF", "down_EFD")
LINEAR = (*itertools.chain(*linear.LINEAR.values()), *EXPERTS)


@dataclasses.dataclass(frozen=True)
class Lora:
    """How a student is fine-tuned.

    Attributes:
        rank: R; 0 is full fine-tuning, without a frozen base and adapters.
        alpha: the low-rank path is multiplied by alpha / R.
        targets: patterns over attn.q, attn.k, attn.v, attn.o, mlp.gate, mlp.up, mlp.down.
        base_dtype: dtype of the frozen base; one of ``BASE_DTYPES``.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attn.*", "mlp.*")
    base_dtype: str = "float32"

    def __post_init__(self):
        if self.rank < 0:
            raise UserError(f"student.lora.rank={self.rank}; expected 0 (full fine-tuning) or a positive rank, e.g. 16")
        if self.alpha <= 0:
            raise UserError(f"student.lora.alpha={self.alpha}; expected a positive number, e.g. the rank or twice it")
        if self.base_dtype not in BASE_DTYPES:
            raise UserError(f"student.lora.base_dtype={self.base_dtype!r}; expected one of {', '.join(BASE_DTYPES)}")
        if not self.rank and self.base_dtype != "float32":
            raise UserError(
                f"student.lora.base_dtype={self.base_dtype!r} without adapters would train rounded weights; "
                "set student.lora.rank, e.g. 16"
            )

    @classmethod
    def from_config(cls, section: Mapping[str, Any]) -> Lora:
        """From ``cfg.student.lora``."""
        targets = section["targets"]
        targets = (targets,) if isinstance(targets, str) else tuple(targets)
        return cls(section["rank"], section["alpha"], targets, section["base_dtype"])

    @property
    def load_dtype(self) -> str:
        """The dtype to load a checkpoint in: large ones are published in bfloat16, so a rounded base loses nothing."""
        return "float32" if self.base_dtype == "float32" else "bfloat16"

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.rank else 0.0


def adapted(cfg: ModelConfig, lora: Lora) -> tuple[tuple[str, str], ...]:
    """(group, name) of each weight that gets an adapter, e.g. ("attn", "q_DNH").

    Raises:
        UserError: a pattern matches no weight, or matches experts.
    """
    names = {
        f"{group}.{name.rsplit('_', 1)[0]}": (group, name) for group, names in linear.LINEAR.items() for name in names
    }
    found = []
    for pattern in lora.targets:
        hits = [pair for name, pair in names.items() if fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            raise UserError(
                f"student.lora.targets: {pattern!r} matches no weight; expected patterns over {', '.join(names)}"
            )
        found += hits
    if not found:
        raise UserError(f"student.lora.targets is empty; expected patterns over {', '.join(names)}")
    if cfg.num_experts and any(group == "mlp" for group, _ in found):
        raise UserError(
            f"student.lora.targets={list(lora.targets)} match the MLP, but this student's is a mixture of "
            f"{cfg.num_experts} experts, which cannot have adapters; set --config.student.lora.targets='attn.*'"
        )
    return tuple(pair for pair in names.values() if pair in found)


def _dims(name: str) -> tuple[str, str, str]:
    """(leading, input, output) letters of a linear weight: ("", "NH", "D") for ``o_NHD``, ("E", "D", "F"): experts."""
    dims = name.rsplit("_", 1)[-1]
    lead, dims = ("E", dims[1:]) if dims[0] == "E" else ("", dims)
    n_in = 2 if dims == "NHD" else 1
    return lead, dims[:n_in], dims[n_in:]


def adapter_shapes(cfg: ModelConfig, lora: Lora) -> Params:
    """Tree of ShapeDtypeStructs (float32) of the adapters."""
    return jax.eval_shape(lambda: _draw(cfg, lora, jax.random.key(0)))


def init_adapters(cfg: ModelConfig, lora: Lora, seed: int) -> Params:
    """Adapters that have no effect yet: A Gaussian with standard deviation 1/sqrt(inputs), B zero; float32."""
    return jax.jit(functools.partial(_draw, cfg, lora))(jax.random.key(seed))


def _draw(cfg: ModelConfig, lora: Lora, key: jax.Array) -> Params:
    shapes = transformer.param_shapes(cfg)["layers"]
    layers: Params = {}
    for i, (group, name) in enumerate(adapted(cfg, lora)):
        L, *sizes = shapes[group][name].shape
        _, ins, outs = _dims(name)
        size_in, size_out = sizes[: len(ins)], sizes[len(ins) :]
        a = jax.random.normal(jax.random.fold_in(key, i), (L, *size_in, lora.rank)) * float(np.prod(size_in)) ** -0.5
        b = jnp.zeros((L, lora.rank, *size_out))
        layers.setdefault(group, {})[name] = {f"a_{ins}R": a, f"b_R{outs}": b}
    return {"layers": layers}


def freeze(params: Params, base_dtype: str) -> Params:
    """The base in its stored form: norms and biases float32, the rest in ``base_dtype`` (tables bfloat16 for int8).

    Arrays keep their place on a mesh.
    """
    if base_dtype == "float32":
        return params
    scales: Params = {}

    def stored(path, x):
        *_, group, name = (key.key for key in path)
        if name in LINEAR and base_dtype == "int8":
            lead, ins, outs = _dims(name)
            x, channel = _as_int8(x, n_in=len(ins), n_out=len(outs))
            scales.setdefault(group, {})[name] = {f"channel_{lead}{outs}": channel}
            return x
        large = name in LINEAR or name.startswith(("table_", "router_"))
        return x.astype(jnp.bfloat16 if large else jnp.float32)

    base = jax.tree_util.tree_map_with_path(stored, params)
    return {**base, "layers": base["layers"] | ({"scales": scales} if scales else {})}


@functools.partial(jax.jit, static_argnames=("n_in", "n_out"))
def _as_int8(w, *, n_in: int, n_out: int):
    """(int8 w, float32 channel): w ~ int8 * channel, with an error of at most channel / 2."""
    axes = tuple(range(w.ndim - n_in - n_out, w.ndim - n_out))
    w = w.astype(jnp.float32)
    channel = jnp.max(jnp.abs(w), axis=axes, keepdims=True) / 127.0
    q = jnp.round(w / jnp.where(channel == 0, 1.0, channel)).astype(jnp.int8)
    return q, jnp.squeeze(channel, axes)


def thaw(base: Params) -> Params:
    """The base as plain float32 weights: int8 times their channels. Arrays that are already float32 are not copied."""
    layers = {group: dict(own) for group, own in base["layers"].items() if group != "scales"}
    for group, names in base["layers"].get("scales", {}).items():
        for name, own in names.items():
            lead, ins, outs = _dims(name)
            if (channel := own.get(f"channel_{lead}{outs}")) is not None:
                axes = tuple(range(channel.ndim - len(outs), channel.ndim - len(outs) + len(ins)))
                layers[group][name] = layers[group][name].astype(np.float32) * jnp.expand_dims(channel, axes)
    return jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == jnp.bfloat16 else x, {**base, "layers": layers})


def attach(lora: Lora, base: Params | None, trainable: Params) -> Params:
    """The student's parameters: ``trainable`` itself (rank 0), or the base with the adapters.

    The base is not copied. B takes the factor alpha / R.
    """
    if not lora.rank:
        return trainable
    assert base is not None
    adapters: Params = {}
    for group, name, a_name, b_name in each_adapter(trainable):
        own = trainable["layers"][group][name]
        adapters.setdefault(group, {})[name] = {a_name: own[a_name], b_name: own[b_name] * lora.scale}
    return {**base, "layers": {**base["layers"], "adapters": adapters}}


def merge(lora: Lora, base: Params, adapters: Params) -> Params:
    """One dense float32 tree, W + (alpha / R) A B: the trained policy, with an int8 base as rounded."""
    params = thaw(base)
    for group, name, a_name, b_name in each_adapter(adapters):
        own, (_, ins, outs) = adapters["layers"][group][name], _dims(name)
        a, b = (jnp.asarray(own[key]) for key in (a_name, b_name))
        delta = jnp.einsum(f"L{ins}R,LR{outs}->L{ins}{outs}", a, b, precision=jax.lax.Precision.HIGHEST)
        params["layers"][group][name] = params["layers"][group][name] + lora.scale * delta
    return params


def each_adapter(adapters: Params) -> Iterator[tuple[str, str, str, str]]:
    """(group, name of the weight, name of A, name of B) of each adapter."""
    for group, names in adapters["layers"].items():
        for name in names:
            _, ins, outs = _dims(name)
            yield group, name, f"a_{ins}R", f"b_R{outs}"
