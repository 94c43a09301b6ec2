"""From prompts to a stream of rollout groups.

1. Prompts are padded on the right to one length and prefilled once; their keys and values are then shared by the
   G rollouts of each prompt.
2. Decoding runs in jitted chunks of ``chunk`` tokens, all rows side by side, and ends early when all rows have.
3. Between chunks the host takes out every group whose last rollout has ended and yields it, so that the teacher
   works while the device samples on.

Shapes depend on the settings alone (rows, prompt length, token limit), so a run compiles each function once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ropd_jax.mesh import constrain, fetch, out, place
from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.sampling.rules import SamplingRule, draw, rollout_keys
from ropd_jax.types import Prompt, Rollout, RolloutGroup

if TYPE_CHECKING:
    from ropd_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Static settings of the sampler.

    Attributes:
        rollouts: G.
        prompts: P, prompts decoded side by side; a shorter batch is filled up with idle rows.
        prompt_len: prompts are padded to this many tokens.
        max_tokens: longest answer, stop token included.
        chunk: tokens between two looks of the host.
        stop_ids: tokens that end an answer.
        rule: sampling policy.
        dtype: compute and cache dtype.
    """

    rollouts: int
    prompts: int
    prompt_len: int
    max_tokens: int
    stop_ids: tuple[int, ...]
    rule: SamplingRule
    chunk: int = 32
    dtype: str = "float32"


class DecodeState(NamedTuple):
    """State of the decode loop; all rows have sampled ``t`` tokens or have ended.

    Attributes:
        t: int32 scalar.
        logits_BV: of the next token, float32.
        cache: per layer (k_BKSH, v_BKSH); slots [0, prompt_len) hold prompts, then one slot a token.
        tokens_BT, logp_BT: what has been sampled; 0 beyond a row's end.
        len_B: how many tokens each row has.
        done_B: the row has met a stop token (or was idle from the start).
    """

    t: jax.Array
    logits_BV: jax.Array
    cache: list[tuple[jax.Array, jax.Array]]
    tokens_BT: jax.Array
    logp_BT: jax.Array
    len_B: jax.Array
    done_B: jax.Array


@functools.partial(jax.jit, static_argnames=("cfg", "ecfg"))
def prefill(cfg: ModelConfig, ecfg: EngineConfig, params, tokens_PT: jax.Array, len_P: jax.Array) -> DecodeState:
    """Run each prompt once and lay out the state of its G rollouts. ``len_P`` 0 marks an idle prompt."""
    P, T = tokens_PT.shape
    G, S = ecfg.rollouts, T + ecfg.max_tokens
    dtype = jnp.dtype(ecfg.dtype)
    positions_PT = constrain(jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (P, T)), "BT")
    real_PT = (positions_PT < len_P[:, None]).astype(jnp.int32)
    x_PTD, (k_LPKTH, v_LPKTH) = transformer.hidden(
        cfg, params, tokens_PT, positions_PT, real_PT, dtype=dtype, keep_kv=True
    )
    last_PT = positions_PT == jnp.maximum(len_P - 1, 0)[:, None]
    x_P1D = jnp.sum(jnp.where(last_PT[..., None], x_PTD, jnp.zeros((), dtype)), axis=1, keepdims=True)
    logits_PV = transformer.logits(cfg, params, x_P1D)[:, 0]

    def share(x, dims):  # [P, ...] -> [P*G, ...]
        return jnp.repeat(x, G, axis=0, out_sharding=out(dims))

    def layer(kv_PKTH):
        return jnp.pad(share(kv_PKTH, "BKSH"), ((0, 0), (0, 0), (0, S - T), (0, 0)))

    B = P * G
    return DecodeState(
        t=jnp.int32(0),
        logits_BV=share(logits_PV, "BV"),
        cache=[(layer(k_LPKTH[i]), layer(v_LPKTH[i])) for i in range(cfg.num_layers)],
        tokens_BT=constrain(jnp.zeros((B, ecfg.max_tokens), jnp.int32), "BT"),
        logp_BT=constrain(jnp.zeros((B, ecfg.max_tokens), jnp.float32), "BT"),
        len_B=constrain(jnp.zeros((B,), jnp.int32), "B"),
        done_B=share(len_P == 0, "B"),
    )


@functools.partial(jax.jit, static_argnames=("cfg", "ecfg"), donate_argnames=("state",))
def decode(cfg: ModelConfig, ecfg: EngineConfig, params, layers, state: DecodeState, len_B, key_B) -> DecodeState:
    """Sample up to ``ecfg.chunk`` more tokens for every row that has not ended.

    Args:
        layers: `transformer.unstack` of the parameters.
        len_B: prompt length of each row.
        key_B: random stream of each row.
    """
    T, limit = ecfg.prompt_len, jnp.minimum(state.t + ecfg.chunk, ecfg.max_tokens)
    slots_S = jnp.arange(T + ecfg.max_tokens, dtype=jnp.int32)
    prompt_BS = slots_S[None] < len_B[:, None]
    position_BS = jnp.where(slots_S[None] < T, slots_S[None], len_B[:, None] + slots_S[None] - T)

    def alive(s: DecodeState):
        return (s.t < limit) & ~jnp.all(s.done_B)

    def body(s: DecodeState) -> DecodeState:
        token_B, logp_B = draw(key_B, s.t, s.logits_BV, ecfg.rule)
        here_T = jnp.arange(ecfg.max_tokens, dtype=jnp.int32) == s.t
        write_BT = here_T[None] & ~s.done_B[:, None]
        is_stop_B = functools.reduce(jnp.logical_or, [token_B == i for i in ecfg.stop_ids])
        slot = T + s.t
        mask_BS = prompt_BS | ((slots_S >= T) & (slots_S <= slot))[None]
        logits_BV, cache = transformer.decode_step(
            cfg, params, layers, token_B, len_B + s.t, s.cache, slot, mask_BS, position_BS, dtype=jnp.dtype(ecfg.dtype)
        )
        return DecodeState(
            t=s.t + 1,
            logits_BV=logits_BV,
            cache=cache,
            tokens_BT=jnp.where(write_BT, token_B[:, None], s.tokens_BT),
            logp_BT=jnp.where(write_BT, logp_B[:, None], s.logp_BT),
            len_B=s.len_B + (~s.done_B).astype(jnp.int32),
            done_B=s.done_B | is_stop_B,
        )

    return jax.lax.while_loop(alive, body, state)


unstack = jax.jit(transformer.unstack, static_argnums=(1,))


def sample_groups(
    cfg: ModelConfig,
    ecfg: EngineConfig,
    params,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    prompt_tokens: Sequence[np.ndarray],
    *,
    seed: int,
    step: int,
) -> Iterator[RolloutGroup]:
    """Yield the group of each prompt as soon as its last rollout has ended.

    Args:
        params: stacked parameters, the learner's own.
        prompts: any number; they are decoded ``ecfg.prompts`` at a time.
        prompt_tokens: the chat template's tokens of each prompt, at most ``ecfg.prompt_len`` long.
        seed, step: with a prompt's id and the rollout's index these fix the random stream.
    """
    layers = unstack(params, cfg.num_layers)
    for start in range(0, len(prompts), ecfg.prompts):
        part = range(start, min(start + ecfg.prompts, len(prompts)))
        yield from _sample_part(cfg, ecfg, params, layers, tokenizer, prompts, prompt_tokens, part, seed, step)


def _sample_part(cfg, ecfg, params, layers, tokenizer, prompts, prompt_tokens, part, seed, step):
    P, G, T = ecfg.prompts, ecfg.rollouts, ecfg.prompt_len
    tokens_PT, len_P = np.zeros((P, T), np.int32), np.zeros((P,), np.int32)
    for row, i in enumerate(part):
        len_P[row] = len(prompt_tokens[i])
        tokens_PT[row, : len_P[row]] = prompt_tokens[i]
    ids = [prompts[i].id for i in part] + [""] * (P - len(part))
    key_B = rollout_keys(seed, step, ids, G)
    state = prefill(cfg, ecfg, params, *_place((tokens_PT, "BT"), (len_P, "B")))
    len_B, key_B = _place((np.repeat(len_P, G), "B"), (key_B, "B"))
    waiting = set(range(len(part)))
    while waiting:
        state = decode(cfg, ecfg, params, layers, state, len_B, key_B)
        (done_B,), t = fetch(state.done_B), int(state.t)
        ended = [r for r in sorted(waiting) if t >= ecfg.max_tokens or done_B[r * G : (r + 1) * G].all()]
        if not ended:
            continue
        tokens_BT, logp_BT, n_B = fetch(state.tokens_BT, state.logp_BT, state.len_B)
        for row in ended:
            rows = range(row * G, (row + 1) * G)
            rollouts = tuple(_rollout(tokenizer, ecfg.stop_ids, tokens_BT[b], logp_BT[b], n_B[b]) for b in rows)
            i = part[row]
            yield RolloutGroup(prompts[i], np.asarray(prompt_tokens[i], np.int32), rollouts, step, i)
        waiting -= set(ended)


def _rollout(tokenizer, stop_ids, tokens_T, logp_T, n) -> Rollout:
    tokens_T, logp_T = tokens_T[:n].copy(), logp_T[:n].copy()
    stopped = int(tokens_T[-1]) in stop_ids
    text = tokenizer.decode([int(i) for i in (tokens_T[:-1] if stopped else tokens_T)])
    return Rollout(tokens_T, logp_T, text, "stop" if stopped else "length")


def _place(*arrays):
    """Put host arrays on the mesh by their dimension letters (as they are without a mesh)."""
    if out("B") is None:
        return [jnp.asarray(x) for x, _ in arrays]
    return [place(x, jax.NamedSharding(jax.sharding.get_mesh(), out(dims))) for x, dims in arrays]
