"""The student: a decoder-only transformer, defined once as Flax NNX modules, run as functions over a pytree.

1. `Block` and its parts define the architecture. `param_shapes` reads the shapes of all parameters from them,
   layers stacked on a leading L axis; `init_params` draws random ones; checkpoints fill the same tree.
2. `hidden` runs the L blocks with `lax.scan` over the stacked layers (training, scoring, prefill).
3. `decode_step` runs them for one token per row against the sampler's cache. It is unrolled over layers that `unstack`
   separated once: a scan in the decode loop copies every layer's weights and is 2-3x slower on CPU.

Both call the same `Block`; they differ in the ``attend`` function that they pass.
Parameter names end in their dimensions (see `types`), from which `parallel.mesh` derives the sharding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import reshard

from ropd_jax.models.attention import self_attention
from ropd_jax.models.config import ModelConfig
from ropd_jax.models.grouped import grouped_matmul
from ropd_jax.models.linear import (
    EXPERTS,
    GATHERED_AT_USE,
    MANY_ROWS,
    Params,
    flip,
    flipped_back,
    linear,
    product_outputs_first,
    take_attached,
    whole,
)
from ropd_jax.models.rope import angles_of_kind, rope_kind_of, rotary_angles, rotate
from ropd_jax.models.vocabulary import only_tokens
from ropd_jax.parallel.mesh import RULES, active_mesh, constrain, out, platform, size_of
from ropd_jax.types import Array


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps), times scale or 1 + scale, over the last axis, in float32."""

    def __init__(self, cfg: ModelConfig, axis: str = "D"):
        self.eps, self.plus_one, self.name = cfg.norm_eps, cfg.norm_plus_one, f"scale_{axis}"
        size = cfg.d_model if axis == "D" else cfg.head_dim
        setattr(self, self.name, nnx.Param(jnp.zeros((size,)) if cfg.norm_plus_one else jnp.ones((size,))))

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        scale = getattr(self, self.name)[...].astype(jnp.float32) + (1.0 if self.plus_one else 0.0)
        y = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (y * jnp.expand_dims(scale, range(x.ndim - 1))).astype(x.dtype)


class Attention(nnx.Module):
    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        D, N, K, H = cfg.d_model, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        self.cfg = cfg
        self.q_DNH = nnx.Param(normal(rngs, (D, N, H), D))
        self.k_DKH = nnx.Param(normal(rngs, (D, K, H), D))
        self.v_DKH = nnx.Param(normal(rngs, (D, K, H), D))
        self.o_NHD = nnx.Param(normal(rngs, (N, H, D), N * H))
        if cfg.qkv_bias:
            self.q_bias_NH, self.k_bias_KH, self.v_bias_KH = (nnx.Param(jnp.zeros((n, H))) for n in (N, K, K))
        if cfg.qk_norm:
            self.q_norm, self.k_norm = RMSNorm(cfg, "H"), RMSNorm(cfg, "H")

    def __call__(self, x_BTD, angles, attend, attached):
        dt = x_BTD.dtype
        q_BTNH = linear(self, "q_DNH", x_BTD, attached)
        k_BTKH = linear(self, "k_DKH", x_BTD, attached)
        v_BTKH = linear(self, "v_DKH", x_BTD, attached)
        if self.cfg.qkv_bias:
            q_BTNH += self.q_bias_NH[...].astype(dt)[None, None]
            k_BTKH += self.k_bias_KH[...].astype(dt)[None, None]
            v_BTKH += self.v_bias_KH[...].astype(dt)[None, None]
        if self.cfg.qk_norm:
            q_BTNH, k_BTKH = self.q_norm(q_BTNH), self.k_norm(k_BTKH)
        o_BTNH, kv = attend(rotate(q_BTNH, angles), rotate(k_BTKH, angles), v_BTKH)
        return linear(self, "o_NHD", o_BTNH, attached), kv


ACTIVATE: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class MLP(nnx.Module):
    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        D, F = cfg.d_model, cfg.mlp_dim
        self.activate = ACTIVATE[cfg.activation]
        self.gate_DF = nnx.Param(normal(rngs, (D, F), D))
        self.up_DF = nnx.Param(normal(rngs, (D, F), D))
        self.down_FD = nnx.Param(normal(rngs, (F, D), F))

    def __call__(self, x_BTD, attached):
        gate_BTF = linear(self, "gate_DF", x_BTD, attached)
        up_BTF = linear(self, "up_DF", x_BTD, attached)
        return linear(self, "down_FD", self.activate(gate_BTF) * up_BTF, attached)


class Experts(nnx.Module):
    """Mixture of experts: each token goes to its top-k experts, weighted by the router's softmax (Qwen3-MoE).

    The tokens are sorted by expert and each expert multiplies its own (`grouped_matmul`), so the FLOPs are those of
    k experts, not E. Three tokens with experts (2, 0), (0, 1), (2, 1) make 6 rows; sorted by expert they are the tokens
    0 1 | 1 2 | 0 2 with sizes 2, 2, 2. On a mesh each device sorts the tokens it has and multiplies its slice of F; one
    sum over ``tp`` ends the layer. Sorting is local, in a `jax.shard_map`: a global sort would gather every token.

    With ``mesh.ep`` a device has some of the experts. The tokens of all devices along ``ep`` are gathered, each device
    computes the contributions of its own experts, and a reduce-scatter sums. No token is dropped, however many choose
    one expert. For each of its tokens a device receives (ep - 1) D numbers each way; an all-to-all of the sorted rows
    would receive k D (ep - 1) / ep, which is less only if k < ep. Every device sorts the rows of all ``ep`` devices.
    """

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        E, D, F = cfg.num_experts, cfg.d_model, cfg.mlp_dim
        self.cfg, self.activate = cfg, ACTIVATE[cfg.activation]
        self.router_DE = nnx.Param(normal(rngs, (D, E), D))
        self.gate_EDF = nnx.Param(normal(rngs, (E, D, F), D))
        self.up_EDF = nnx.Param(normal(rngs, (E, D, F), D))
        self.down_EFD = nnx.Param(normal(rngs, (E, F, D), F))

    def route(self, x_BTD):
        """(weight_BTk in the dtype of x, expert_BTk int32) of each token's experts; the softmax in float32."""
        logits_BTE = jnp.einsum("BTD,DE->BTE", x_BTD, self.router_DE[...].astype(x_BTD.dtype))
        p_BTE = jax.nn.softmax(logits_BTE.astype(jnp.float32), axis=-1)
        weight_BTk, expert_BTk = jax.lax.top_k(p_BTE, self.cfg.experts_per_token)
        if self.cfg.norm_top_k:
            weight_BTk = weight_BTk / jnp.sum(weight_BTk, axis=-1, keepdims=True)
        return weight_BTk.astype(x_BTD.dtype), expert_BTk

    def __call__(self, x_BTD, attached):
        weight_BTk, expert_BTk = self.route(x_BTD)
        weights = [self.weight(name, attached, x_BTD.dtype) for name in EXPERTS]
        if active_mesh() is None:
            return self.sorted(x_BTD, weight_BTk, expert_BTk, *weights)
        stored = tuple(jax.typeof(w).sharding.spec for w in weights)
        tokens = (out("BTD"),) * 3

        def local(*args):
            of_tokens, weights = args[:3], [_gathered(w, spec) for w, spec in zip(args[3:], stored, strict=True)]
            if size_of("ep") == 1:
                y_BTD = self.sorted(*of_tokens, *weights)
            else:
                of_all = [jax.lax.all_gather(a, "ep", tiled=True) for a in of_tokens]
                y_BTD = self.sorted(*of_all, *weights, first=jax.lax.axis_index("ep") * len(weights[0]))
                y_BTD = jax.lax.psum_scatter(y_BTD, "ep", tiled=True)
            return jax.lax.psum(y_BTD, dict(RULES.axis)["F"])

        return jax.shard_map(local, in_specs=(*tokens, *stored), out_specs=tokens[0])(
            x_BTD, weight_BTk, expert_BTk, *weights
        )

    def weight(self, name: str, attached: Params, dtype) -> jax.Array:
        w = getattr(self, name)[...]
        if w.dtype.itemsize < dtype.itemsize:  # int8: it is sent unchanged, as in `linear`
            w = whole(w, name.rsplit("_", 1)[-1])
        w = w.astype(dtype)
        channel = attached.get(name, {}).get(f"channel_E{name[-1]}")  # of int8 experts, as in `linear`
        return w if channel is None else w * channel.astype(dtype)[:, None]

    def sorted(self, x_BTD, weight_BTk, expert_BTk, gate_EDF, up_EDF, down_EFD, *, first: Array | None = None):
        """The contributions of the given experts to the tokens.

        Args:
            first: the id of the first of them; None: all are given. The rows of other experts are sorted to the end,
                belong to no group and are set to 0, because `grouped_matmul` leaves them undefined.
        """
        B, T, D = x_BTD.shape
        k, E = self.cfg.experts_per_token, len(gate_EDF)
        expert_R = expert_BTk.reshape(-1)  # R = B*T*k rows, one for each (token, expert)
        if first is not None:
            expert_R = jnp.where((expert_R >= first) & (expert_R < first + E), expert_R - first, E)
        order_R = jnp.argsort(expert_R, stable=True)
        size_E = jnp.bincount(expert_R, length=E).astype(jnp.int32)
        own_R1 = None if first is None else (jnp.arange(len(order_R)) < jnp.sum(size_E))[:, None]

        def only_own(x_RD):
            return x_RD if own_R1 is None else jnp.where(own_R1, x_RD, 0)

        x_RD = only_own(x_BTD.reshape(B * T, D)[order_R // k])
        h_RF = self.activate(grouped_matmul(x_RD, gate_EDF, size_E)) * grouped_matmul(x_RD, up_EDF, size_E)
        y_RD = only_own(grouped_matmul(h_RF, down_EFD, size_E)) * weight_BTk.reshape(-1)[order_R][:, None]
        return jnp.zeros((B * T, D), x_BTD.dtype).at[order_R // k].add(y_RD).reshape(B, T, D)


def _gathered(w: jax.Array, spec: jax.P) -> jax.Array:
    """A weight gathered over ``fsdp`` and ``cp``, in `jax.shard_map`; its gradient is summed into the stored slices."""
    for i, axes in enumerate(spec):
        if axes is not None and "fsdp" in (axes if isinstance(axes, tuple) else (axes,)):
            return jax.lax.all_gather(w, axes, axis=i, tiled=True)
    return w


class Block(nnx.Module):
    """One layer. ``attend(q_BTNH, k_BTKH, v_BTKH) -> (o_BTNH, kv)`` sets what the queries see and what is stored."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.sandwich = cfg.sandwich_norms
        self.attn_norm = RMSNorm(cfg)
        self.attn = Attention(cfg, rngs)
        self.mlp_norm = RMSNorm(cfg)
        self.mlp = Experts(cfg, rngs) if cfg.num_experts else MLP(cfg, rngs)
        if cfg.sandwich_norms:
            self.attn_post_norm, self.mlp_post_norm = RMSNorm(cfg), RMSNorm(cfg)

    def __call__(self, x_BTD, angles, attend, attached):
        y_BTD, kv = self.attn(self.attn_norm(x_BTD), angles, attend, attached.get("attn", {}))
        x_BTD = x_BTD + (self.attn_post_norm(y_BTD) if self.sandwich else y_BTD)
        y_BTD = self.mlp(self.mlp_norm(x_BTD), attached.get("mlp", {}))
        return x_BTD + (self.mlp_post_norm(y_BTD) if self.sandwich else y_BTD), kv


class EmbedAndHead(nnx.Module):
    """The parts before and after the blocks: embedding, final norm and, unless tied, the output head."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.embed = Table(cfg, rngs)
        self.final_norm = RMSNorm(cfg)
        if not cfg.tied:
            self.head = Table(cfg, rngs)


class Table(nnx.Module):
    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.table_VD = nnx.Param(normal(rngs, (cfg.vocab_size, cfg.d_model), cfg.d_model))


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> jax.Array:
    """Gaussian with standard deviation 1/sqrt(fan_in), float32."""
    return jax.random.normal(rngs.params(), shape) * fan_in**-0.5


@functools.cache
def _definitions(cfg: ModelConfig):
    """(graphdef of one block, graphdef of embedding and head): the architecture without any array."""
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        block = nnx.eval_shape(lambda: Block(cfg, nnx.Rngs(0)))
        outer = nnx.eval_shape(lambda: EmbedAndHead(cfg, nnx.Rngs(0)))
    return nnx.split(block)[0], nnx.split(outer)[0]


def init_params(cfg: ModelConfig, seed: int) -> Params:
    """Random parameters, float32, layers stacked on a leading L axis."""
    return _init(cfg)(jax.random.key(seed))


@functools.cache
def _init(cfg: ModelConfig):
    """The jitted function of a key, cached per architecture, so that it is compiled once."""

    def pure(module):
        return nnx.to_pure_dict(nnx.state(module))

    @jax.jit
    def build(key):
        outer_key, key = jax.random.split(key)
        layers = jax.vmap(lambda k: pure(Block(cfg, nnx.Rngs(k))))(jax.random.split(key, cfg.num_layers))
        return {"layers": layers, **pure(EmbedAndHead(cfg, nnx.Rngs(outer_key)))}

    return build


def param_shapes(cfg: ModelConfig) -> Params:
    """Tree of ShapeDtypeStructs (float32) that every checkpoint of this config must fill."""
    return jax.eval_shape(lambda: init_params(cfg, 0))


def _block(cfg: ModelConfig, layer: Params) -> Callable:
    """One layer as a function of (x_BTD, angles, attend)."""
    own, attached = take_attached(RULES.gather(layer, but=GATHERED_AT_USE))
    for part, names in attached.items():
        for name in names:
            if name not in own[part]:  # `unstack` stored it outputs first; the module needs only its shape
                own[part] = own[part] | {name: flipped_back(name, names[name])}
    return functools.partial(nnx.merge(_definitions(cfg)[0], own), attached=attached)


def _embed_and_head(cfg: ModelConfig, params: Params) -> EmbedAndHead:
    return nnx.merge(_definitions(cfg)[1], RULES.gather({k: v for k, v in params.items() if k != "layers"}))


class PerLayer(NamedTuple):
    """The differences between layers besides their parameters, as arrays with a leading L: data, not other blocks.

    Attributes:
        kind_L: int32, which of `rope_kinds` rotates each layer's queries and keys.
        window_L: int32, number of positions that a query sees; the largest int32 if it sees all.
    """

    kind_L: np.ndarray
    window_L: np.ndarray


@functools.cache
def per_layer(cfg: ModelConfig) -> PerLayer:
    local_L = np.array(cfg.local_layers or (False,) * cfg.num_layers)
    windows_L = np.where(local_L, cfg.window, np.iinfo(np.int32).max)
    return PerLayer(rope_kind_of(cfg), windows_L.astype(np.int32))


def embed(cfg: ModelConfig, params: Params, tokens_BT: jax.Array, dtype) -> jax.Array:
    """x_BTD of token ids.

    On a mesh the table is not moved: every device looks up all tokens in its slice of D, and an all-to-all then
    exchanges slices for rows. Neither the table nor its gradient ever exists whole (151,936 x 2,560 float32: 1.6 GB).
    """
    table_VD = params["embed"]["table_VD"]
    if active_mesh() is None:
        x_BTD = table_VD[tokens_BT].astype(dtype)
    else:
        table_VD, tokens_BT = reshard(table_VD, RULES.spec("_D")), constrain(tokens_BT, "__")
        x_BTD = table_VD.at[tokens_BT].get(out_sharding=RULES.spec("__D")).astype(dtype)
        if later := tuple(axis for axis in ("ep", "cp") if size_of(axis) > 1):
            # One axis at a time: for several at once, XLA would gather all rows.
            x_BTD = reshard(x_BTD, jax.P(dict(RULES.axis)["B"], None, later))
            if len(later) > 1:
                x_BTD = reshard(x_BTD, jax.P(dict(RULES.axis)["B"], "cp", "ep"))
        x_BTD = constrain(x_BTD, "BTD")
    return x_BTD * jnp.asarray(cfg.embed_scale, dtype)  # Gemma's checkpoints were trained with the rounded factor


def embed_few(cfg: ModelConfig, params: Params, tokens_B: jax.Array, dtype) -> jax.Array:
    """x_BD of one token for each row (decoding).

    On a mesh every device looks up its own part of the vocabulary, the other rows are 0, and the sum over ``tp`` is
    exact. So the exchanged data has the size of x_BD. A table that is split over ``fsdp`` first gives all rows a slice
    of D, and an all-to-all then exchanges slices for rows.
    """
    table_VD = params["embed"]["table_VD"]
    mesh = active_mesh()
    if mesh is None:
        x_BD = table_VD[tokens_B].astype(dtype)
    else:
        (axis, split), spec = RULES.spec("VD"), jax.typeof(table_VD).sharding.spec
        whole = split not in spec

        def local(table_VD, tokens_B):
            if not whole:
                tokens_B = jax.lax.all_gather(tokens_B, split, tiled=True)
            at_B = tokens_B - jax.lax.axis_index(axis) * len(table_VD)
            mine_B = (at_B >= 0) & (at_B < len(table_VD))
            x_BD = table_VD.at[jnp.where(mine_B, at_B, 0)].get(mode="promise_in_bounds").astype(dtype)
            x_BD = jax.lax.psum(jnp.where(mine_B[:, None], x_BD, 0), axis)
            return x_BD if whole else jax.lax.all_to_all(x_BD, split, 0, 1, tiled=True)

        x_BD = jax.shard_map(local, in_specs=(spec, out("B")), out_specs=out("BD"), check_vma=False)(table_VD, tokens_B)
    return x_BD * jnp.asarray(cfg.embed_scale, dtype)


def head(cfg: ModelConfig, params: Params) -> tuple[Callable, jax.Array]:
    """(final norm, output table_VD), gathered for use."""
    outer = _embed_and_head(cfg, params)
    table_VD = (outer.embed if cfg.tied else outer.head).table_VD[...]
    return outer.final_norm, table_VD


def logits(cfg: ModelConfig, params: Params, x_BTD: jax.Array, *, outputs_first: bool = False) -> jax.Array:
    """logits_BTV in float32 of hidden states; use it only for a few positions (the last one, a test, a chunk)."""
    norm, table_VD = head(cfg, params)
    return output_logits(cfg, norm(x_BTD), table_VD, outputs_first=outputs_first)


def output_logits(
    cfg: ModelConfig, x_BTD: jax.Array, table_VD: jax.Array, *, first: Array = 0, outputs_first: bool = False
) -> jax.Array:
    """logits_BTV in float32 of normed hidden states, soft-capped if the family requires it; see `only_tokens`.

    Args:
        table_VD: the output table, or some rows of it.
        first: the id of its first row.
        outputs_first: for few rows on a CPU, see `product_outputs_first`.
    """
    table_VD = table_VD.astype(x_BTD.dtype)
    if outputs_first:
        logits_BTV = product_outputs_first(table_VD, x_BTD, "V", float32=True)
    else:
        logits_BTV = jnp.einsum("BTD,VD->BTV", x_BTD, table_VD, preferred_element_type=jnp.float32)
    if cfg.final_softcap:
        logits_BTV = cfg.final_softcap * jnp.tanh(logits_BTV / cfg.final_softcap)
    return only_tokens(cfg, logits_BTV, first)


def hidden(
    cfg: ModelConfig,
    params: Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
    *,
    dtype=jnp.float32,
    remat: str = "none",
    attention: str = "auto",
    keep_kv: bool = False,
    shared: bool = False,
):
    """Hidden states x_BTD before the final norm, of whole sequences.

    Args:
        tokens_BT: int32.
        positions_BT: position of each token in its own sequence, from 0.
        segments_BT: the sequence of each token in its row; 0 is padding. Tokens see only their own segment.
        dtype: compute dtype; parameters are cast at use.
        remat: a key of `REMAT`: what a block keeps for the backward pass.
        attention: the kernel, see `ropd_jax.models.attention.self_attention`.
        keep_kv: also return the keys and values, each [L, B, K, T, H] (prefill).
        shared: rows hold shared prompts, see `self_attention`.
    """

    angles = rotary_angles(cfg, constrain(positions_BT, "BT"))

    def body(x_BTD, xs):
        layer, own = xs

        def attend(q_BTNH, k_BTKH, v_BTKH):
            o_BTNH = self_attention(
                q_BTNH, k_BTKH, v_BTKH, segments_BT, local=own.window_L <= cfg.window,
                window=cfg.window if cfg.local_layers else 0, scale=cfg.attn_scale, softcap=cfg.attn_softcap,
                impl=attention, shared=shared,
            )  # fmt: skip
            return o_BTNH, (k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2))

        x_BTD, kv = _block(cfg, layer)(x_BTD, angles_of_kind(angles, own.kind_L), attend)
        return x_BTD, (kv if keep_kv else None)

    if remat != "none":
        body = jax.checkpoint(body, prevent_cse=False, policy=REMAT[remat])  # inside scan CSE cannot undo it
    own = jax.tree.map(jnp.asarray, per_layer(cfg))
    x_BTD, kv = jax.lax.scan(body, embed(cfg, params, tokens_BT, dtype), (params["layers"], own))
    return (x_BTD, kv) if keep_kv else x_BTD


_keep = jax.checkpoint_policies
REMAT = {  # name -> what a block keeps in addition to its input; the backward pass recomputes everything else
    "none": _keep.everything_saveable,
    "block": _keep.nothing_saveable,
    "attention": _keep.save_only_these_names("attention"),
    "dots": _keep.save_from_both_policies(
        _keep.dots_with_no_batch_dims_saveable, _keep.save_only_these_names("linear", "attention")
    ),
}


def unstack(params: Params, num_layers: int, *, flipped: bool = False) -> list[Params]:
    """The stacked layers as a list of L trees, for the unrolled decode loop.

    Args:
        flipped: store the weights of `linear` outputs first; see `product_outputs_first`.
    """
    layers = [jax.tree.map(lambda x: x[i], params["layers"]) for i in range(num_layers)]  # noqa: B023
    return [flip(layer) for layer in layers] if flipped else layers


def decode_step(
    cfg: ModelConfig,
    params: Params,
    layers: list[Params],
    tokens_B: jax.Array,
    positions_B: jax.Array,
    caches: list,
    attend: Callable,
    *,
    dtype=jnp.float32,
):
    """One token for each row.

    Args:
        tokens_B: the tokens to feed.
        positions_B: their positions in their own sequences.
        caches: one per layer, passed to ``attend``.
        attend: (q_BTNH, k_BTKH, v_BTKH, cache, window) -> (o_BTNH, cache) with T = 1; ``window`` is the number of
            positions that a query of this layer sees, or None if it sees all.

    Returns:
        (logits_BV float32, caches).
    """
    x_BTD = embed_few(cfg, params, tokens_B, dtype)[:, None]
    own, new, angles = per_layer(cfg), [], rotary_angles(cfg, positions_B[:, None])
    for i, (layer, cache) in enumerate(zip(layers, caches, strict=True)):
        window = jnp.asarray(own.window_L[i]) if cfg.local_layers and cfg.local_layers[i] else None

        def see(q_BTNH, k_BTKH, v_BTKH, cache=cache, window=window):
            return attend(q_BTNH, k_BTKH, v_BTKH, cache, window)

        x_BTD, cache = _block(cfg, layer)(x_BTD, angles_of_kind(angles, int(own.kind_L[i])), see)
        new.append(cache)
    few = platform() == "cpu" and len(tokens_B) <= MANY_ROWS
    return logits(cfg, params, x_BTD, outputs_first=few)[:, 0], new
