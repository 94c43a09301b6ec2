"""Log-probabilities of given tokens, in chunks, so that [B, T, V] never exists.

At V = 151,936 and T = 10,240 the float32 logits of one sequence are 6.2 GB; a chunk of 128 positions is 78 MB.
The backward pass recomputes each chunk's logits.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard

from ropd_jax.mesh import active_mesh, constrain, out
from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig


def token_logprobs(
    cfg: ModelConfig,
    params: transformer.Params,
    x_BTD: jax.Array,
    targets_BT: jax.Array,
    *,
    temperature: float = 1.0,
    chunk: int = 128,
    entropy_grad: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """(logp_BT, entropy_BT) in float32 of ``targets_BT`` under softmax(logits / temperature).

    Args:
        x_BTD: hidden states before the final norm; position t predicts ``targets_BT[:, t]``.
        targets_BT: int32 token ids.
        temperature: of the sampling policy, so that log-probs compare with the sampler's.
        chunk: positions whose logits exist at once.
        entropy_grad: let a gradient flow through the entropy.
    """
    T = x_BTD.shape[1]
    norm, table_VD = transformer.head(cfg, params)
    spread = _spread(cfg)
    if spread:
        table_VD = reshard((params["embed"] if cfg.tied else params["head"])["table_VD"], P(spread, None))
    pad = -T % chunk
    x_BTD = jnp.pad(norm(x_BTD), ((0, 0), (0, pad), (0, 0)))
    targets_BT = jnp.pad(targets_BT, ((0, 0), (0, pad)))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one_chunk(x_BTD, targets_BT):
        if spread:
            x_BTD, targets_BT = constrain(x_BTD, "_TD"), constrain(targets_BT, "_T")
        logits_BTV = transformer.output_logits(cfg, x_BTD, table_VD) / temperature
        lse_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
        if out("BTV") is None:
            picked_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
        else:  # the vocabulary is sharded: a gather along it would need every shard
            ids_V = jnp.arange(logits_BTV.shape[-1], dtype=targets_BT.dtype)
            ids_V = reshard(ids_V, P(spread)) if spread else ids_V
            picked_BT = jnp.sum(jnp.where(ids_V[None, None] == targets_BT[..., None], logits_BTV, 0.0), axis=-1)
        p_BTV = jnp.exp(logits_BTV - lse_BT[..., None])
        entropy_BT = lse_BT - jnp.sum(p_BTV * logits_BTV, axis=-1)
        entropy_BT = entropy_BT if entropy_grad else jax.lax.stop_gradient(entropy_BT)
        return constrain(picked_BT - lse_BT, "BT"), constrain(entropy_BT, "BT")

    def split(x_BT):  # [B, T, ...] -> [chunks, B, chunk, ...]
        return x_BT.reshape(x_BT.shape[0], -1, chunk, *x_BT.shape[2:]).swapaxes(0, 1)

    pieces = jax.lax.map(lambda xs: one_chunk(*xs), (split(x_BTD), split(targets_BT)))
    logp_BT, entropy_BT = (x.swapaxes(0, 1).reshape(targets_BT.shape)[:, :T] for x in pieces)
    return constrain(logp_BT, "BT"), constrain(entropy_BT, "BT")  # the reshape of a single row forgets its axis


def _spread(cfg: ModelConfig) -> tuple[str, ...]:
    """The mesh axes over which the output table lies by words, () where it is gathered instead.

    A chunk of every row's positions then meets the words of one device: the same work as all words for a device's own
    rows, but neither the table nor its gradient exists whole on a device (Qwen3-4B, float32: 1.6 GB each).
    """
    mesh = active_mesh()
    if mesh is None or mesh.shape["fsdp"] == 1 or cfg.vocab_size % mesh.size:
        return ()
    return ("fsdp", "tp")
