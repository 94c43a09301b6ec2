"""The student: a decoder-only transformer, stated once as Flax NNX modules, run as functions over a pytree.

1. `Block` and its parts state the architecture. `param_shapes` reads the shapes of all parameters from them,
   layers stacked on a leading L axis; `init_params` draws random ones; checkpoints fill the same tree.
2. `hidden` runs the L blocks with `lax.scan` over the stacked layers (training, scoring, prefill).
3. `decode_step` runs them for one token per row against a `cache.Cache`. With ``unroll=True`` over layers that
   `unstack` took apart once: a scan in the decode loop copies every layer's weights and is 2-3x slower on CPU.

Both call the same `Block`; what differs is the ``attend`` function that is passed in.
Parameter names end in their dimensions (see `ropd_jax.types`), from which `ropd_jax.mesh` derives the sharding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from ropd_jax.mesh import RULES, constrain, out
from ropd_jax.models.attention import attention, causal_mask
from ropd_jax.models.config import ModelConfig

Params = dict


class RMSNorm(nnx.Module):
    def __init__(self, cfg: ModelConfig):
        self.eps = cfg.norm_eps
        self.scale_D = nnx.Param(jnp.ones((cfg.d_model,)))

    def __call__(self, x_BTD):
        x32_BTD = x_BTD.astype(jnp.float32)  # the mean square is taken in float32
        inv_BT1 = jax.lax.rsqrt(jnp.mean(jnp.square(x32_BTD), axis=-1, keepdims=True) + self.eps)
        return (x32_BTD * inv_BT1).astype(x_BTD.dtype) * self.scale_D[...].astype(x_BTD.dtype)[None, None]


class Attention(nnx.Module):
    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        D, N, K, H = cfg.d_model, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        self.q_DNH = nnx.Param(normal(rngs, (D, N, H), D))
        self.k_DKH = nnx.Param(normal(rngs, (D, K, H), D))
        self.v_DKH = nnx.Param(normal(rngs, (D, K, H), D))
        self.o_NHD = nnx.Param(normal(rngs, (N, H, D), N * H))

    def __call__(self, x_BTD, angles_BTH, attend):
        dt = x_BTD.dtype
        q_BTNH = rotate(jnp.einsum("BTD,DNH->BTNH", x_BTD, self.q_DNH[...].astype(dt)), angles_BTH)
        k_BTKH = rotate(jnp.einsum("BTD,DKH->BTKH", x_BTD, self.k_DKH[...].astype(dt)), angles_BTH)
        v_BTKH = jnp.einsum("BTD,DKH->BTKH", x_BTD, self.v_DKH[...].astype(dt))
        o_BTNH, kv = attend(q_BTNH, k_BTKH, v_BTKH)
        return jnp.einsum("BTNH,NHD->BTD", o_BTNH, self.o_NHD[...].astype(dt), out_sharding=out("BTD")), kv


class MLP(nnx.Module):
    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        D, F = cfg.d_model, cfg.mlp_dim
        self.gate_DF = nnx.Param(normal(rngs, (D, F), D))
        self.up_DF = nnx.Param(normal(rngs, (D, F), D))
        self.down_FD = nnx.Param(normal(rngs, (F, D), F))

    def __call__(self, x_BTD):
        dt = x_BTD.dtype
        gate_BTF = jnp.einsum("BTD,DF->BTF", x_BTD, self.gate_DF[...].astype(dt))
        up_BTF = jnp.einsum("BTD,DF->BTF", x_BTD, self.up_DF[...].astype(dt))
        return jnp.einsum(
            "BTF,FD->BTD", jax.nn.silu(gate_BTF) * up_BTF, self.down_FD[...].astype(dt), out_sharding=out("BTD")
        )


class Block(nnx.Module):
    """One layer. ``attend(q_BTNH, k_BTKH, v_BTKH) -> (o_BTNH, kv)`` decides what the queries see and what is kept."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.attn_norm = RMSNorm(cfg)
        self.attn = Attention(cfg, rngs)
        self.mlp_norm = RMSNorm(cfg)
        self.mlp = MLP(cfg, rngs)

    def __call__(self, x_BTD, angles_BTH, attend):
        y_BTD, kv = self.attn(self.attn_norm(x_BTD), angles_BTH, attend)
        x_BTD = x_BTD + y_BTD
        return x_BTD + self.mlp(self.mlp_norm(x_BTD)), kv


class Ends(nnx.Module):
    """What stands before and after the blocks: embedding, final norm and, unless tied, the output head."""

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
    """(graphdef of one block, graphdef of the ends): the architecture without any array."""
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        block = nnx.eval_shape(lambda: Block(cfg, nnx.Rngs(0)))
        ends = nnx.eval_shape(lambda: Ends(cfg, nnx.Rngs(0)))
    return nnx.split(block)[0], nnx.split(ends)[0]


def init_params(cfg: ModelConfig, seed: int) -> Params:
    """Random parameters, float32, layers stacked on a leading L axis."""

    def pure(module):
        return nnx.to_pure_dict(nnx.state(module))

    @jax.jit
    def build(key):
        ends_key, key = jax.random.split(key)
        layers = jax.vmap(lambda k: pure(Block(cfg, nnx.Rngs(k))))(jax.random.split(key, cfg.num_layers))
        return {"layers": layers, **pure(Ends(cfg, nnx.Rngs(ends_key)))}

    return build(jax.random.key(seed))


def param_shapes(cfg: ModelConfig) -> Params:
    """Tree of ShapeDtypeStructs (float32) that every checkpoint of this config must fill."""
    return jax.eval_shape(lambda: init_params(cfg, 0))


def _block(cfg: ModelConfig, layer: Params) -> Block:
    return nnx.merge(_definitions(cfg)[0], RULES.gather(layer))


def _ends(cfg: ModelConfig, params: Params) -> Ends:
    return nnx.merge(_definitions(cfg)[1], RULES.gather({k: v for k, v in params.items() if k != "layers"}))


def rope_angles(cfg: ModelConfig, positions_BT: jax.Array) -> jax.Array:
    """angles_BTH (H/2 of them): position times theta^(-2i/H), in float32 (bfloat16 rounds 257 to 256)."""
    i_H = jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32)
    inv_H = jnp.float32(cfg.rope_theta) ** (-i_H / cfg.head_dim)
    return positions_BT.astype(jnp.float32)[:, :, None] * inv_H[None, None]


def rotate(x_BTNH: jax.Array, angles_BTH: jax.Array) -> jax.Array:
    """Rotary embedding in the half-split convention of Hugging Face checkpoints."""
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    sin, cos = jnp.sin(angles_BTH)[:, :, None], jnp.cos(angles_BTH)[:, :, None]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


def embed(cfg: ModelConfig, params: Params, tokens_BT: jax.Array, dtype) -> jax.Array:
    table_VD = RULES.gather({"table_VD": params["embed"]["table_VD"]})["table_VD"]
    if (sharding := out("BTD")) is not None:
        return constrain(table_VD, "_D").at[tokens_BT].get(out_sharding=sharding).astype(dtype)
    return table_VD[tokens_BT].astype(dtype)


def head(cfg: ModelConfig, params: Params) -> tuple[Callable, jax.Array]:
    """(final norm, output table_VD), gathered for use."""
    ends = _ends(cfg, params)
    table_VD = (ends.embed if cfg.tied else ends.head).table_VD[...]
    return ends.final_norm, table_VD


def logits(cfg: ModelConfig, params: Params, x_BTD: jax.Array) -> jax.Array:
    """logits_BTV in float32 of hidden states: for few positions only (the last one, a test, a chunk)."""
    norm, table_VD = head(cfg, params)
    x_BTD = norm(x_BTD)
    return jnp.einsum("BTD,VD->BTV", x_BTD, table_VD.astype(x_BTD.dtype), preferred_element_type=jnp.float32)


def hidden(
    cfg: ModelConfig,
    params: Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
    *,
    dtype=jnp.float32,
    remat: bool = False,
    keep_kv: bool = False,
):
    """Hidden states x_BTD before the final norm, of whole sequences.

    Args:
        tokens_BT: int32.
        positions_BT: position of each token in its own sequence, from 0.
        segments_BT: which sequence of the row a token belongs to; 0 is padding. Tokens see their own segment only.
        dtype: compute dtype; parameters are cast at use.
        remat: recompute each block in the backward pass.
        keep_kv: also return the keys and values, each [L, B, K, T, H] (prefill).
    """
    mask_BTS = causal_mask(positions_BT, segments_BT)
    angles_BTH = rope_angles(cfg, positions_BT)

    def attend(q_BTNH, k_BTKH, v_BTKH):
        k_BKTH, v_BKTH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
        return attention(q_BTNH, k_BKTH, v_BKTH, mask_BTS), (k_BKTH, v_BKTH)

    def body(x_BTD, layer):
        x_BTD, kv = _block(cfg, layer)(x_BTD, angles_BTH, attend)
        return x_BTD, (kv if keep_kv else None)

    if remat:
        body = jax.checkpoint(body, prevent_cse=False)  # inside scan CSE cannot undo it
    x_BTD, kv = jax.lax.scan(body, embed(cfg, params, tokens_BT, dtype), params["layers"])
    return (x_BTD, kv) if keep_kv else x_BTD


def unstack(params: Params, num_layers: int) -> list[Params]:
    """The stacked layers as a list of L trees, for the unrolled decode loop."""
    return [jax.tree.map(lambda x: x[i], params["layers"]) for i in range(num_layers)]  # noqa: B023


def decode_step(
    cfg: ModelConfig,
    params: Params,
    layers: list[Params],
    tokens_B: jax.Array,
    positions_B: jax.Array,
    cache: list[tuple[jax.Array, jax.Array]],
    slot: jax.Array,
    mask_BS: jax.Array,
    *,
    dtype=jnp.float32,
):
    """One token for each row, against per-layer caches (k_BKSH, v_BKSH).

    Args:
        tokens_B: the tokens to feed.
        positions_B: their positions in their own sequences.
        cache: L pairs; slot ``slot`` of every row is written.
        slot: scalar int32, the same for all rows.
        mask_BS: True where a row may look, the written slot included.

    Returns:
        (logits_BV float32, cache).
    """
    angles_BTH = rope_angles(cfg, positions_B[:, None])
    x_BTD = embed(cfg, params, tokens_B[:, None], dtype)
    new_cache = []
    for layer, (k_BKSH, v_BKSH) in zip(layers, cache, strict=True):

        def attend(q_BTNH, k_BTKH, v_BTKH, k_BKSH=k_BKSH, v_BKSH=v_BKSH):
            k = write_slot(k_BKSH, k_BTKH.swapaxes(1, 2), slot)
            v = write_slot(v_BKSH, v_BTKH.swapaxes(1, 2), slot)
            return attention(q_BTNH, k, v, mask_BS[:, None]), (k, v)

        x_BTD, kv = _block(cfg, layer)(x_BTD, angles_BTH, attend)
        new_cache.append(kv)
    return logits(cfg, params, x_BTD)[:, 0], new_cache


def write_slot(cache_BKSH: jax.Array, new_BK1H: jax.Array, slot: jax.Array) -> jax.Array:
    zero = jnp.zeros_like(slot)
    return jax.lax.dynamic_update_slice(cache_BKSH, new_BK1H.astype(cache_BKSH.dtype), (zero, zero, slot, zero))
