"""How the next token is drawn: temperature, top-k, top-p, and the random stream of each rollout."""

from __future__ import annotations

import dataclasses
import functools
import logging
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ropd_jax.parallel.mesh import RULES, active_mesh, constrain, locally
from ropd_jax.types import UserError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SamplingRule:
    """Sampling policy.

    Attributes:
        temperature: 0 means greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches this; 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature < 0:
            raise UserError(f"sampling.temperature={self.temperature}; expected 0 (greedy) or more")
        if self.top_k < 0:
            raise UserError(f"sampling.top_k={self.top_k}; expected 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampling.top_p={self.top_p}; expected a number in (0, 1]")

    @property
    def truncates(self) -> bool:
        """Whether tokens are left out, so that the sampling policy is not the student's full distribution."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1)

    def warn_if_truncating(self) -> None:
        """Log a warning if the rule leaves tokens out."""
        if self.truncates:
            log.warning(
                "sampling.top_k=%d and top_p=%g leave tokens out, which the update does not correct: it learns as if "
                "the answers came from the full distribution; sample/cut_mass measures it (docs/update.md)",
                self.top_k, self.top_p,
            )  # fmt: skip

    @classmethod
    def from_config(cls, section: Mapping[str, Any]) -> SamplingRule:
        """From ``cfg.sampling``."""
        return cls(section["temperature"], section["top_k"], section["top_p"])


def rollout_keys(seed: int, step: int, prompt_ids: Sequence[str], rollouts: int) -> jax.Array:
    """The random streams of P x G rollouts, flat [P*G].

    Each depends on (seed, step, prompt id, index of the rollout), and not on its neighbours in the batch. An id
    that occurs twice counts as two prompts: ids a, b, a draw as "a", "b" and "a\\0" + "1".
    """
    crc_P = np.array([zlib.crc32(i.encode()) for i in distinct(prompt_ids)], np.uint32)
    return _rollout_keys(np.uint32(seed), np.uint32(step), crc_P, rollouts)


def distinct(prompt_ids: Sequence[str]) -> list[str]:
    """The ids, with a number appended to repeated ones: a, b, a becomes "a", "b", "a\\0" + "1"."""
    seen: dict[str, int] = {}
    names = []
    for i in prompt_ids:
        seen[i] = n = seen.get(i, -1) + 1
        names.append(f"{i}\0{n}" if n else i)
    return names


@functools.partial(jax.jit, static_argnames=("rollouts",))
def _rollout_keys(seed, step, crc_P, rollouts):
    root = jax.random.fold_in(jax.random.key(seed), step)
    one = jax.vmap(lambda crc, g: jax.random.fold_in(jax.random.fold_in(root, crc), g))
    g_B = jnp.tile(jnp.arange(rollouts, dtype=jnp.uint32), len(crc_P))
    return one(jnp.repeat(crc_P, rollouts), g_B)


def policy_logits(logits_BV: jax.Array, rule: SamplingRule) -> jax.Array:
    """Logits [B, V], float32, of the sampling policy: after temperature, top-k and top-p (-inf outside).

    For temperature 0 these are the model's own logits at temperature 1.
    """
    logits_BV = _tempered(logits_BV, rule)
    return jnp.where(kept(logits_BV, rule), logits_BV, -jnp.inf) if rule.truncates else logits_BV


def _tempered(logits_BV: jax.Array, rule: SamplingRule) -> jax.Array:
    """Logits of the full distribution at the rule's temperature, float32; at 1 for a greedy rule."""
    logits_BV = logits_BV.astype(jnp.float32)
    return logits_BV if rule.temperature in (0, 1) else logits_BV / rule.temperature


TOP_P_SLACK = 1e-6  # float32 rounding: a set whose probability is below top_p by less than this counts as reaching it
NUCLEUS = 256  # top-p first considers this many of the most likely tokens; a nearly flat policy needs more
WIDTH = 32  # of a block of the vocabulary; first only the maximum of each block is used
DRAW_WIDTH = 128  # of a block of the vocabulary; a block is drawn first, then a token within it


def kept(logits_BV: jax.Array, rule: SamplingRule) -> jax.Array:
    """Mask [B, V] of the tokens that top-k and top-p keep, always including the most likely one. All ties are kept.

    Probabilities 0.5, 0.25, 0.15, 0.1: top_p = 0.7 keeps two (0.5 is too little, 0.75 reaches it); top_k = 3 and
    top_p = 0.8 keep two as well, because 0.5 / 0.9 + 0.25 / 0.9 = 0.83.

    The lowest kept logit is found among the largest few (`_largest`), without sorting the vocabulary. If they are too
    few for a row (a large k, a flat nucleus), it is found by bisection: at most 32 counts over the vocabulary for each
    rule.
    """
    V = logits_BV.shape[-1]
    k = rule.top_k if 0 < rule.top_k < V else 0
    top_BK = _largest(logits_BV, k or min(NUCLEUS, V))
    if top_BK is None:
        return _kept_by_bisection(logits_BV, rule, k)
    low_B1 = top_BK[:, -1:]
    if rule.top_p == 1:
        return logits_BV >= low_B1 if k else jnp.ones_like(logits_BV, bool)
    e_BK = jnp.exp(top_BK - top_BK[:, :1])
    if k:
        ties_B1 = jnp.sum(logits_BV >= low_B1, axis=-1, keepdims=True, dtype=jnp.int32) - k
        all_B1 = jnp.sum(e_BK, axis=-1, keepdims=True) + ties_B1.astype(jnp.float32) * e_BK[:, -1:]
    else:
        all_B1 = jnp.sum(jnp.exp(logits_BV - top_BK[:, :1]), axis=-1, keepdims=True)
    reached_BK = _upto(e_BK) >= (rule.top_p - TOP_P_SLACK) * all_B1
    floor_B1 = jnp.take_along_axis(top_BK, jnp.argmax(reached_BK, axis=-1, keepdims=True), axis=-1)
    enough_B1 = reached_BK[:, -1:]
    if k or V <= NUCLEUS:
        return logits_BV >= jnp.where(enough_B1, floor_B1, low_B1)

    def bisect():
        return jnp.where(enough_B1, logits_BV >= floor_B1, _kept_by_bisection(logits_BV, rule, 0))

    return jax.lax.cond(jnp.all(enough_B1), lambda: logits_BV >= floor_B1, bisect)


def _largest(x_BV: jax.Array, k: int) -> jax.Array | None:
    """The k largest of each row in falling order, [B, k]; None if blocks would not save most of the work.

    They are in the k blocks with the largest maxima: each of these holds an entry that is at least as large as anything
    in the other blocks. For k = 50 of 49,152 tokens, 1,536 maxima and then 1,600 entries are sorted.
    """
    V = x_BV.shape[-1]
    # If only one column of the k is used, XLA on CPU sorts instead, which takes 5 x as long: hence the barrier. It
    # covers only the values, because XLA aborts when it decomposes the top-k with a barrier on values and indices.
    whole = jax.lax.optimization_barrier
    if V <= 2048:
        return whole(jax.lax.top_k(x_BV, k)[0])
    if 4 * k * WIDTH > V:
        return None
    x_BNW = _blocks(x_BV, WIDTH, -jnp.inf)
    n_Bk = jax.lax.top_k(jnp.max(x_BNW, axis=-1), k)[1]
    some_BkW = jnp.take_along_axis(x_BNW, n_Bk[..., None], axis=1)
    return whole(jax.lax.top_k(some_BkW.reshape(x_BV.shape[0], -1), k)[0])


def _kept_by_bisection(logits_BV: jax.Array, rule: SamplingRule, k: int) -> jax.Array:
    ordered_BV = _ordered(logits_BV)
    kept_BV = jnp.ones_like(logits_BV, bool)
    if k:
        kept_BV = ordered_BV >= _floor(ordered_BV, jnp.ones_like(logits_BV), jnp.float32(k))
    if rule.top_p < 1:
        p_BV = jax.nn.softmax(jnp.where(kept_BV, logits_BV, -jnp.inf), axis=-1)
        kept_BV &= ordered_BV >= _floor(ordered_BV, p_BV, jnp.float32(rule.top_p - TOP_P_SLACK))
    return kept_BV


def _ordered(x: jax.Array) -> jax.Array:
    """int32 values that compare like the float32: their bits, inverted for negative numbers.

    -2.0, -1.0, 0.0, 1.0 have bits 0xC0000000, 0xBF800000, 0, 0x3F800000; as int32 the first two compare the wrong way.
    """
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.int32)  # + 0.0: -0.0 and 0.0 tie
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _floor(ordered_BV: jax.Array, weight_BV: jax.Array, want: jax.Array) -> jax.Array:
    """floor_B1: the largest value such that the weights of all entries at or above it reach ``want``.

    Bisection over the int32 of `_ordered`; a row ends early if at most one entry is between its bounds.
    """

    def above(at_B1):
        in_BV = ordered_BV >= at_B1
        weight_B1 = jnp.sum(jnp.where(in_BV, weight_BV, 0.0), axis=-1, keepdims=True)
        return weight_B1, jnp.sum(in_BV, axis=-1, keepdims=True, dtype=jnp.int32)

    low_B1 = jnp.min(ordered_BV, axis=-1, keepdims=True)  # the weights of all entries together reach ``want``
    high_B1 = jnp.max(ordered_BV, axis=-1, keepdims=True) + 1  # no entry is left
    count_B1 = jnp.full_like(low_B1, ordered_BV.shape[-1])

    def unfinished(s):
        low_B1, high_B1, n_low_B1, n_high_B1 = s
        return jnp.any((n_low_B1 - n_high_B1 > 1) & (high_B1 - 1 > low_B1))

    def halve(s):
        low_B1, high_B1, n_low_B1, n_high_B1 = s
        middle_B1 = (low_B1 >> 1) + (high_B1 >> 1) + (low_B1 & high_B1 & 1)  # their sum would overflow
        weight_B1, n_B1 = above(middle_B1)
        up_B1 = (weight_B1 >= want) & (middle_B1 > low_B1)
        down_B1 = (weight_B1 < want) & (middle_B1 > low_B1)
        return (
            jnp.where(up_B1, middle_B1, low_B1),
            jnp.where(down_B1, middle_B1, high_B1),
            jnp.where(up_B1, n_B1, n_low_B1),
            jnp.where(down_B1, n_B1, n_high_B1),
        )

    return jax.lax.while_loop(unfinished, halve, (low_B1, high_B1, count_B1, jnp.zeros_like(count_B1)))[0]


class Drawn(NamedTuple):
    """One token for each row, all [B].

    Attributes:
        token: int32.
        logp: float32, its log-prob under the full distribution at the sampling temperature (1 if greedy). The learner
            computes the same, whatever the rule leaves out.
        drawn_logp: float32, under the policy that drew it: ``logp`` minus the log of the probability that top-k and
            top-p keep. Equal to ``logp`` if the rule leaves nothing out.
    """

    token: jax.Array
    logp: jax.Array
    drawn_logp: jax.Array


def draw(key_B: jax.Array, t_B: jax.Array, logits_BV: jax.Array, rule: SamplingRule) -> Drawn:
    """One token for each row, and its log-probs.

    A block of 128 tokens is drawn by its probability, then a token within it. That takes one exponential per token and
    two uniform numbers per row. (Gumbel noise takes one uniform number per token: at 64 x 49,152 a quarter of a decode
    step on CPU.)

    On a mesh the logits stay split over the vocabulary (`_draw_split`). A rule that leaves tokens out gathers them.

    Args:
        key_B: the rollouts' keys; token ``t`` of a rollout uses ``fold_in(key, t)``.
        t_B: int32, number of tokens that each rollout has so far.
    """
    mesh, axis = active_mesh(), dict(RULES.axis)["V"]
    split = mesh is not None and mesh.shape[axis] > 1 and not rule.truncates
    logits_BV = constrain(logits_BV, "BV" if split else "B_")
    one = functools.partial(_draw_split, axis=axis, parts=mesh.shape[axis]) if split and mesh is not None else _draw
    in_dims, out_dims = ("B", "B", "BV" if split else "B_"), ("B", "B", "B")
    return Drawn(*locally(functools.partial(one, rule=rule), in_dims, out_dims)(key_B, t_B, logits_BV))


def _draw(key_B, t_B, logits_BV, *, rule: SamplingRule):
    logits_BV = _tempered(logits_BV, rule)
    max_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    e_BV = jnp.exp(logits_BV - max_B1)
    if rule.temperature == 0:
        token_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        sum_B = kept_B = jnp.sum(e_BV, axis=-1)
    else:
        kept_BV = jnp.where(kept(logits_BV, rule), e_BV, 0.0) if rule.truncates else e_BV
        u_B2 = _uniforms(key_B, t_B)
        kept_BNW = _blocks(kept_BV, DRAW_WIDTH, 0.0)
        block_BN = jnp.sum(kept_BNW, axis=-1)
        kept_B = jnp.sum(block_BN, axis=-1)
        sum_B = jnp.sum(e_BV, axis=-1) if rule.truncates else kept_B
        n_B = _pick(block_BN, u_B2[:, 0])
        inside_BW = jnp.take_along_axis(kept_BNW, n_B[:, None, None], axis=1)[:, 0]
        token_B = n_B * kept_BNW.shape[-1] + _pick(inside_BW, u_B2[:, 1])
    logit_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0] - max_B1[:, 0]
    return token_B, logit_B - jnp.log(sum_B), logit_B - jnp.log(kept_B)


def _uniforms(key_B, t_B) -> jax.Array:
    """Two numbers in (0, 1] for each row."""
    return jax.vmap(lambda k, t: 1.0 - jax.random.uniform(jax.random.fold_in(k, t), (2,)))(key_B, t_B)


def _draw_split(key_B, t_B, logits_BV, *, rule: SamplingRule, axis: str, parts: int):
    """`_draw` without truncation, with each device's part of the vocabulary: draws the same tokens.

    1. Each part adds up its blocks. Two parts can share a block: 37,984 tokens are 296.75 blocks of 128. The blocks of
       the vocabulary are the same on every mesh, so the random numbers have the same meaning.
    2. The sums of all blocks are gathered, 1/128 of the logits, and every device draws the block.
    3. The logits of that block come from the parts that contain it, and every device draws the token.

    A greedy rule needs only the largest logit of each part and its place.
    """
    B, size = logits_BV.shape
    logits_BV = _tempered(logits_BV, rule)
    first = jax.lax.axis_index(axis) * size
    max_B1 = jnp.maximum(jnp.max(logits_BV, axis=-1, keepdims=True), -1e30)  # a part can have no token at all

    def exchanged(x_BJ):
        """(x_PBJ of all parts, maximum over all, factors of the sums of each part [P, B, 1])."""
        x_PBJ = jax.lax.all_gather(jnp.concatenate([x_BJ, max_B1], axis=-1), axis)
        max_PB1 = x_PBJ[..., -1:]
        whole_B1 = jnp.max(max_PB1, axis=0)
        return x_PBJ[..., :-1], whole_B1, jnp.exp(max_PB1 - whole_B1[None])

    if rule.temperature == 0:
        at_B1 = (first + jnp.argmax(logits_BV, axis=-1, keepdims=True).astype(jnp.int32)).astype(jnp.float32)  # < 2^24
        sum_B1 = jnp.sum(jnp.exp(logits_BV - max_B1), axis=-1, keepdims=True)
        x_PB2, _, factor_PB1 = exchanged(jnp.concatenate([at_B1, sum_B1], axis=-1))
        best_B1 = jnp.argmax(factor_PB1[..., 0], axis=0)[None, :, None]  # the first part of those that tie
        token_B = jnp.take_along_axis(x_PB2[..., :1], best_B1, axis=0)[0, :, 0].astype(jnp.int32)
        logp_B = -jnp.log(jnp.sum(x_PB2[..., 1] * factor_PB1[..., 0], axis=0))
        return token_B, logp_B, logp_B

    u_B2 = _uniforms(key_B, t_B)
    begin = first % DRAW_WIDTH  # the place of the part's first token in its block
    most = -(-(size + (DRAW_WIDTH - 1 if size % DRAW_WIDTH else 0)) // DRAW_WIDTH)  # blocks of a part
    words_BV = jnp.full((B, most * DRAW_WIDTH), -jnp.inf, jnp.float32)
    words_BV = jax.lax.dynamic_update_slice_in_dim(words_BV, logits_BV, begin if size % DRAW_WIDTH else 0, 1)
    words_BNW = words_BV.reshape(B, most, DRAW_WIDTH)
    sums_PBN, whole_B1, factor_PB1 = exchanged(jnp.sum(jnp.exp(words_BNW - max_B1[..., None]), axis=-1))

    blocks = -(-parts * size // DRAW_WIDTH)
    block_BN = jnp.zeros((B, blocks), jnp.float32)
    for n, part_BN in enumerate(sums_PBN * factor_PB1):
        at = n * size // DRAW_WIDTH
        part_BN = part_BN[:, : blocks - at]
        block_BN += jnp.pad(part_BN, ((0, 0), (at, blocks - at - part_BN.shape[1])))
    sum_B = jnp.sum(block_BN, axis=-1)
    n_B = _pick(block_BN, u_B2[:, 0])

    own_B = n_B - first // DRAW_WIDTH
    at_BW = n_B[:, None] * DRAW_WIDTH + jnp.arange(DRAW_WIDTH, dtype=jnp.int32)[None]
    inside_BW = jnp.take_along_axis(words_BNW, jnp.clip(own_B, 0, most - 1)[:, None, None], axis=1)[:, 0]
    mine_BW = (at_BW >= first) & (at_BW < first + size)
    inside_BW = jax.lax.psum(jnp.where(mine_BW, inside_BW, 0.0), axis) - whole_B1
    kept_BW = jnp.where(at_BW < parts * size, jnp.exp(inside_BW), 0.0)
    w_B = _pick(kept_BW, u_B2[:, 1])
    logp_B = jnp.take_along_axis(inside_BW, w_B[:, None], axis=-1)[:, 0] - jnp.log(sum_B)
    return n_B * DRAW_WIDTH + w_B, logp_B, logp_B


def _blocks(x_BV: jax.Array, width: int, fill: float) -> jax.Array:
    """[B, V] as [B, blocks, width], padded with ``fill`` if the width does not divide the vocabulary."""
    B, V = x_BV.shape
    return jnp.pad(x_BV, ((0, 0), (0, -V % width)), constant_values=fill).reshape(B, -1, width)


def _upto(x_BN: jax.Array) -> jax.Array:
    """Cumulative sums along N, as a matmul: `jnp.cumsum` takes 10 x as long on CPU."""
    n_N = jnp.arange(x_BN.shape[-1], dtype=jnp.int32)
    upto_NN = (n_N[:, None] <= n_N[None]).astype(x_BN.dtype)
    return jnp.matmul(x_BN, upto_NN, precision=jax.lax.Precision.HIGHEST)


def _pick(weight_BN: jax.Array, u_B: jax.Array) -> jax.Array:
    """Index [B] drawn in proportion to the weights, with a uniform number in (0, 1]; never one of weight 0.

    Weights 1, 0, 3 have sums 1, 1, 4: u = 0.25 gives index 0 (1 >= 0.25 * 4), u = 0.26 gives index 2.
    """
    n_N = jnp.arange(weight_BN.shape[-1], dtype=jnp.int32)[None]
    upto_BN = _upto(weight_BN)
    some_BN = weight_BN > 0
    last_B = jnp.max(jnp.where(some_BN, n_N, 0), axis=-1)  # rounding can make u * sum larger than the last sum
    hit_BN = some_BN & (upto_BN >= u_B[:, None] * upto_BN[:, -1:])
    return jnp.min(jnp.where(hit_BN, n_N, last_B[:, None]), axis=-1)
