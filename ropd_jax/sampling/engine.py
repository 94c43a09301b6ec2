"""From prompts to a stream of rollout groups: rows are refilled while the others decode.

1. A prompt is prefilled once, into a prompt slot that its G rollouts share (`prefill`).
2. Decoding runs in jitted chunks of ``chunk`` tokens over a fixed number of rows. A chunk ends early if all rows have
   ended; on a mesh, only if all have reached their limits (`decode`). Each step feeds every row its last token and
   draws the next.
3. Between chunks the host takes out the rollouts that have ended and puts the next ones into the free rows
   (`slots.Slots`). A group is yielded when its last rollout has ended, while the device continues to sample, so the
   teacher works at the same time.
4. When no rollout waits and half of the rows are idle, the others move into half as many rows. A small student keeps
   its rows, because compiling another program would cost more than it saves.

Three prompts a, b, c with two rollouts each, in four rows (time runs to the right, | is the end of a chunk):

    row 0   a0 a0 | c0 c0 | c0
    row 1   a1    | c1    |            a0 and a1 have ended: group a is yielded, c0 and c1 take their rows
    row 2   b0 b0 | b0 b0 |
    row 3   b1 b1 | b1    |            then group b, then group c

Keys and values are stored in pages (`sampling.pages`). The random stream of a rollout is a function of (seed, step,
prompt, index). At the same compiled shapes, nothing about a rollout depends on its neighbours or on the order of
refills. Shapes have few sizes, so a run compiles only a handful of programs: the number of rows halves, and on a CPU
the pool grows in steps. Elsewhere the pool has its full size from the start, and only the part in use is read.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.parallel.mesh import RULES, active_mesh, constrain, fetch, place
from ropd_jax.sampling import paged_attention
from ropd_jax.sampling import pages as paging
from ropd_jax.sampling.kv import KV, View
from ropd_jax.sampling.rollouts import likely_stopped, make_group, make_rollout, opens_thought
from ropd_jax.sampling.rules import Drawn, SamplingRule, draw, rollout_keys
from ropd_jax.sampling.slots import Job, Slots, halved, pool_size
from ropd_jax.sampling.weights import DecodeWeights, decode_weights, ready
from ropd_jax.types import Prompt, Rollout, RolloutGroup, UserError
from ropd_jax.utils import tracing

if TYPE_CHECKING:
    from ropd_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Static settings of the sampler.

    Attributes:
        rollouts: G.
        prompts: number of prompts that decode side by side.
        prompt_len: prompts are padded to this many tokens.
        max_tokens: maximum length of an answer, including the stop token.
        stop_ids: tokens that end an answer.
        stop: texts that end an answer, also in the middle of a token; the text of the answer ends before them.
        rule: sampling policy.
        chunk: tokens that the device samples before the host processes them.
        page_chunks: number of chunks in a page of the cache. 0 chooses: one page if ``max_tokens`` is at most 64, else
            pages of 32 tokens, or longer ones, so that a row has at most 64 pages.
        dtype: compute dtype.
        cache_dtype: dtype of keys and values, see `pages.CACHE_DTYPES`; "" is ``dtype``.
        rows: number of rollouts that decode side by side; 0 is prompts * rollouts. It can be less than ``rollouts``:
            then the others of the same prompt wait. If rows do not divide over the mesh, some stay idle.
        reserve: allocate the pool for all rows at full length from the start, so that memory does not grow during the
            call. Otherwise it grows with the answers on a CPU.
        pool: the pool's maximum size, as a share of the size for all rows at full length. Below 1, a rollout may have
            to make room and restart (`Slots.make_room`), with the same result bit for bit.
        most_prompts: number of prompts in a call, if known (fewer prompt slots are allocated); else 0.
        attention: how the cache is read, one of `pages.ATTENTION`; see `pages.uses_kernel`.
        copy_weights: the sampler has its own weights in the compute dtype, unsplit over ``fsdp`` (`sampling.weights`).
    """

    rollouts: int
    prompts: int
    prompt_len: int
    max_tokens: int
    stop_ids: tuple[int, ...]
    rule: SamplingRule
    chunk: int = 8
    dtype: str = "float32"
    cache_dtype: str = ""
    stop: tuple[str, ...] = ()
    page_chunks: int = 0
    rows: int = 0
    reserve: bool = False
    copy_weights: bool = True
    pool: float = 1.0
    most_prompts: int = 0
    attention: str = "auto"

    def __post_init__(self):
        if self.attention not in paging.ATTENTION:
            raise UserError(f"sampling.attention={self.attention!r}; expected {', '.join(paging.ATTENTION)}")
        if self.cache_dtype not in ("", *paging.CACHE_DTYPES):
            raise UserError(
                f"sampling.cache_dtype={self.cache_dtype!r}; expected {', '.join(paging.CACHE_DTYPES)}, "
                'or "" for student.dtype'
            )
        if any(not s for s in self.stop):
            raise UserError('sampling.stop contains an empty text, which would end every answer at once; remove the ""')

    @classmethod
    def from_config(
        cls,
        section: Mapping[str, Any],
        *,
        prompts_per_step: int,
        prompt_len: int,
        stop_ids: tuple[int, ...],
        dtype: str,
        shards: int,
    ) -> EngineConfig:
        """From ``cfg.sampling``.

        Args:
            prompts_per_step: prompts that decode side by side if ``sampling.prompts_at_once`` is 0.
            dtype: compute dtype, ``cfg.student.dtype``.
            shards: size of the mesh axis ``fsdp``. The number of prompts is rounded up to a multiple of it: 6 over 4
                become 8, of which two stay idle.
        """
        at_once = section["prompts_at_once"] or prompts_per_step
        return cls(
            rollouts=section["rollouts"],
            prompts=-(-at_once // shards) * shards,
            prompt_len=prompt_len,
            max_tokens=section["max_tokens"],
            chunk=section["chunk"],
            stop_ids=stop_ids,
            rule=SamplingRule.from_config(section),
            dtype=dtype,
            cache_dtype=section["cache_dtype"],
            stop=tuple(section["stop"]),
            copy_weights=section["copy_weights"],
            pool=section["pool"],
            most_prompts=prompts_per_step,
            attention=section["attention"],
        )

    @property
    def page(self) -> int:
        """Slots of a page, a multiple of ``chunk``: 64 for at most 64 tokens, 32 for 2,000, 128 for 8,192."""
        slots = self.max_tokens if self.max_tokens <= 64 else max(32, -(-self.max_tokens // 64))
        return self.chunk * (self.page_chunks or -(-slots // self.chunk))


MOVES = 32  # pages of a part that can move between two chunks
LARGE = 10_000_000  # weights; a smaller student keeps its rows, because another program costs more than it saves


class Rows(NamedTuple):
    """State of the rows, all [B].

    Attributes:
        token: the last token, which the next step feeds.
        t: number of tokens sampled so far.
        limit: number of tokens at which the row ends.
        base: position of the prompt's last token.
        done: the row has ended, or is idle.
        key: the rollout's random stream, [B, 2] uint32.
    """

    token: jax.Array
    t: jax.Array
    limit: jax.Array
    base: jax.Array
    done: jax.Array
    key: jax.Array


@functools.partial(jax.jit, static_argnames=("cfg", "dtype"), donate_argnames=("prompts",))
def prefill(cfg: ModelConfig, dtype: str, params, prompts: list[KV], tokens_NT: jax.Array, len_N, at_N) -> list[KV]:
    """Run N prompts once and store their keys and values in the prompt slots ``at_N``.

    Args:
        dtype: compute dtype; no other setting of the sampler is an argument, so all rules share one program.
        len_N: number of cached tokens of each prompt: all but its last, which the first decode step feeds.
        at_N: an index beyond the last slot marks an idle place.
    """
    N, T = tokens_NT.shape
    positions_NT = constrain(jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (N, T)), "BT")
    real_NT = (positions_NT < len_N[:, None]).astype(jnp.int32)
    _, (k_LNKTH, v_LNKTH) = transformer.hidden(
        cfg, params, tokens_NT, positions_NT, real_NT, dtype=jnp.dtype(dtype), keep_kv=True
    )
    return paging.write_prompts(prompts, k_LNKTH, v_LNKTH, at_N)


@functools.partial(jax.jit, static_argnames=("cfg", "ecfg"), donate_argnames=("stages",))
def decode(cfg: ModelConfig, ecfg: EngineConfig, weights: DecodeWeights, prompts, pages, stages, rows: Rows, view):
    """Sample up to ``ecfg.chunk`` tokens for every row that has not ended.

    Args:
        prompts, pages, stages: the cache; see `pages.Cache`.

    Returns:
        (stages, tokens_CB, logp_CB, drawn_logp_CB, t_B, done_B). Of a row's column only the first t_B - rows.t entries
        are valid. The two log-probs are those of `rules.Drawn`.
    """
    C, B = ecfg.chunk, rows.token.shape[0]
    stop_ids = jnp.asarray(ecfg.stop_ids, jnp.int32)
    keys_B = jax.random.wrap_key_data(rows.key)
    weights = ready(weights, ecfg.dtype, only_vectors=True)  # small and many: gathered once, with or without a copy

    # If rows are split over chips, checking whether all have ended needs a sum between chips before every token. So a
    # chunk then runs to the last limit, at the cost of a few extra tokens in the last chunk.
    mesh = active_mesh()
    split = mesh is not None and mesh.shape[dict(RULES.axis)["B"]] > 1
    most = jnp.minimum(C, jnp.max(jnp.where(rows.done, 0, rows.limit - rows.t)))

    def going(s):
        i, done_B = s[0], s[3]
        return i < most if split else (i < most) & ~jnp.all(done_B)

    def body(s):
        i, token_B, t_B, done_B, found, stages = s
        position_B, slot_B = rows.base + t_B, t_B % ecfg.page

        def attend(q_BTNH, k_BTKH, v_BTKH, layer, window):
            prompt, page, stage = layer
            k_BKTH, v_BKTH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
            o_BNH, stage = paging.attention(
                cfg, q_BTNH[:, 0], k_BKTH, v_BKTH, prompt, page, stage, view, position_B, slot_B, done_B, window
            )
            return o_BNH[:, None], stage

        logits_BV, stages = transformer.decode_step(
            cfg,
            weights.outer,
            weights.layers or transformer.unstack(weights.outer, cfg.num_layers),
            token_B,
            position_B,
            list(zip(prompts, pages, stages, strict=True)),
            attend,
            dtype=jnp.dtype(ecfg.dtype),
        )
        drawn = draw(keys_B, t_B, logits_BV, ecfg.rule)
        t_B = t_B + (~done_B).astype(jnp.int32)
        stopped_B = jnp.any(drawn.token[:, None] == stop_ids[None], axis=1)
        return (
            i + 1,
            drawn.token,
            t_B,
            done_B | stopped_B | (t_B >= rows.limit),
            jax.tree.map(lambda x_CB, x_B: jax.lax.dynamic_update_index_in_dim(x_CB, x_B, i, 0), found, drawn),
            stages,
        )

    empty = Drawn(*(constrain(jnp.zeros((C, B), t), "CB") for t in (jnp.int32, jnp.float32, jnp.float32)))
    start = (jnp.int32(0), rows.token, rows.t, rows.done, empty, stages)
    _, _, t_B, done_B, found, stages = jax.lax.while_loop(going, body, start)
    return stages, *found, t_B, done_B


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
    limits: Sequence[Sequence[int]] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[RolloutGroup]:
    """Yield the group of each prompt as soon as its last rollout has ended.

    Args:
        params: stacked parameters, the learner's.
        prompts: any number; ``ecfg.rows`` rollouts decode side by side.
        prompt_tokens: tokens of each prompt after the chat template, at least 1 and at most ``ecfg.prompt_len``.
        seed, step: together with prompt id and rollout index they fix the random stream.
        limits: [len(prompts)][G], the maximum number of tokens of each rollout; None is ``max_tokens`` for all.
        check: called between two chunks, while the device is idle; it can stop the sampling by raising.
    """
    rollouts: list[dict[int, Rollout]] = [{} for _ in prompts]
    ended = sample_rollouts(cfg, ecfg, params, tokenizer, prompts, prompt_tokens, seed=seed, step=step, limits=limits,
                            between=lambda tokens: check())  # fmt: skip
    for index, g, rollout in ended:
        rollouts[index][g] = rollout
        if len(rollouts[index]) == ecfg.rollouts:
            yield make_group(prompts, prompt_tokens, rollouts, index, step)


def sample_rollouts(
    cfg: ModelConfig,
    ecfg: EngineConfig,
    params,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    prompt_tokens: Sequence[np.ndarray],
    *,
    seed: int,
    step: int,
    limits: Sequence[Sequence[int]] | None = None,
    between: Callable[[int], None] = lambda tokens: None,
) -> Iterator[tuple[int, int, Rollout]]:
    """Yield (index of the prompt, index of the rollout, rollout) as soon as a rollout has ended.

    Args:
        limits: see `sample_groups`; a rollout of limit 0 is not sampled, which does not change the others.
        between: called between two chunks with the number of tokens of the first, while no program runs, so that it can
            call a collective. If it raises, the rollouts that have ended are yielded first.
    """
    if not prompts:
        return
    engine = _Engine(cfg, ecfg, params, prompt_tokens, rollout_keys(seed, step, [p.id for p in prompts], ecfg.rollouts),
                     limits)  # fmt: skip

    def made(jobs: Sequence[Job]) -> Iterator[tuple[int, int, Rollout]]:
        for j in jobs:
            opened = opens_thought(tokenizer, prompt_tokens[j.index])
            yield j.index, j.g, make_rollout(tokenizer, ecfg.stop_ids, ecfg.stop, j, opened=opened)

    ended: list[Job] = []
    while engine.slots.unfinished:
        pending = engine.dispatch()
        if ended and jax.process_count() > 1:  # the caller can start a collective, which must not overlap the chunk
            jax.block_until_ready(pending)
        yield from made(ended)  # while the device samples
        ended, tokens = engine.collect(pending, tokenizer)
        try:
            between(tokens)
        except Exception:  # a request to stop: ended rollouts are not lost
            yield from made(ended)
            raise
    yield from made(ended)


class Layout(NamedTuple):
    """Sizes on each of the ``parts`` of the mesh: rows, prompt slots, and prompts per prefill."""

    parts: int
    rows: int
    slots: int
    batch: int


def layout(ecfg: EngineConfig) -> Layout:
    """Sizes for the active mesh; raises UserError if the prompts do not divide over it."""
    mesh = active_mesh()
    parts = 1 if mesh is None else mesh.shape["fsdp"]
    if ecfg.prompts % parts:
        raise UserError(
            f"{ecfg.prompts} prompts at once do not divide over mesh axis fsdp={parts}; choose a multiple of {parts}"
        )
    prompts = ecfg.prompts // parts
    batch = max(1, prompts // 2)
    groups = 1 if ecfg.rollouts == 1 else 3  # new groups start while the last rollouts of others decode
    rows = -(-ecfg.rows // parts) or prompts * ecfg.rollouts
    slots = 2 if rows < ecfg.rollouts else groups * prompts + batch
    if ecfg.most_prompts:
        slots = min(slots, max(-(-ecfg.most_prompts // parts), batch))
    return Layout(parts, rows, slots, batch)


def empty_cache(cfg: ModelConfig, ecfg: EngineConfig, sizes: Layout, *, pages: int) -> paging.Cache:
    """An empty cache with ``pages`` pages in the pool of each part, at most `most_pages`."""
    return paging.make_cache(
        cfg,
        prompts=sizes.parts * sizes.slots,
        prompt_len=ecfg.prompt_len,
        rows=sizes.parts * sizes.rows,
        pages=sizes.parts * pages,
        page=ecfg.page,
        dtype=ecfg.cache_dtype or ecfg.dtype,
        paged=paging.uses_kernel(ecfg.attention, cfg, ecfg.page),
    )


def most_pages(ecfg: EngineConfig, rows: int) -> int:
    """The pages of a part's pool if all its rows reach ``max_tokens``, or the share of those that ``pool`` allows."""
    depth = (ecfg.max_tokens - 1) // ecfg.page
    return pool_size(max(depth, math.ceil(rows * depth * ecfg.pool)), rows) if depth else 1


class _Engine:
    """Cache and scheduler state of one call: `dispatch` starts a chunk, `collect` waits for it."""

    def __init__(self, cfg, ecfg: EngineConfig, params, prompt_tokens, keys, limits):
        self.cfg, self.ecfg, self.params, self.prompt_tokens = cfg, ecfg, params, prompt_tokens
        kernel = paging.uses_kernel(ecfg.attention, cfg, ecfg.page)
        self.compacts = paged_attention.reads_blocks() and not kernel
        self.reserve = ecfg.reserve or kernel or self.compacts  # if only used pages are read, one size is enough
        self.large = sum(x.size for x in jax.tree.leaves(params["layers"])) >= LARGE
        self.weights = decode_weights(params, cfg.num_layers, ecfg.dtype, copy=ecfg.copy_weights)
        G, n = ecfg.rollouts, len(prompt_tokens)
        whole = layout(ecfg)
        whole = whole._replace(slots=min(whole.slots, -(-n // whole.parts)))
        self.parts, self.batch = whole.parts, whole.batch
        rows = halved(whole.rows, -(-n // self.parts) * G)
        self.slots = Slots(
            parts=self.parts,
            rows=rows,
            slots=whole.slots,
            page=ecfg.page,
            prompt_lens=[len(t) for t in prompt_tokens],
            limits=limits if limits is not None else [[ecfg.max_tokens] * G] * n,
            key_PG2=fetch(jax.random.key_data(keys))[0].reshape(n, G, 2),
            most=ecfg.rows if rows == whole.rows else 0,
            most_pages=most_pages(ecfg, rows) if ecfg.pool < 1 else 0,
        )
        self.last_tokens = [int(t[-1]) for t in prompt_tokens]
        # At least one page: a pool without pages would be a second program, with different rounding.
        pages = most_pages(ecfg, self.slots.rows) if self.reserve else 1
        self.slots.grow(pages)
        self.cache = empty_cache(cfg, ecfg, whole._replace(rows=self.slots.rows), pages=pages)

    def dispatch(self):
        """Prefill prompts, store full stages, fill free rows, then start a chunk; returns the chunk's future arrays."""
        slots = self.slots
        while any(taken := slots.take_prompts(self.batch)):
            self._prefill(taken)
        slots.make_room()
        if slots.full():
            self._commit()
        slots.admit(self.last_tokens)
        if self.compacts and (moves := slots.compact(paged_attention.block_of(slots.pages), MOVES)):
            self.cache = self.cache._replace(pages=paging.move(self.cache.pages, *_place(*((x, "B") for x in moves))))
        if self.large and (fewer := slots.rows_enough()) < slots.rows:
            self._shrink(fewer)
        rows = Rows(*_place(*((getattr(slots, name), "B") for name in Rows._fields)))
        view = View(*_place(*((slots.view[name], "B") for name in View._fields)))
        stages, *rest = decode(self.cfg, self.ecfg, self.weights, *self.cache, rows, view)
        self.cache = self.cache._replace(stages=stages)
        return rest

    def collect(self, pending, tokenizer) -> tuple[list[Job], int]:
        """(the rollouts that ended in the chunk, the number of tokens that it sampled)."""
        tokens_CB, logp_CB, drawn_logp_CB, t_B, done_B = fetch(*pending)
        sampled = int((t_B - self.slots.t).sum())
        ended = self.slots.absorb(tokens_CB, logp_CB, drawn_logp_CB, t_B, done_B)
        if stop := self.ecfg.stop:
            going = [(b, job) for b, job in enumerate(self.slots.job) if job and b not in ended]
            ended += [b for b, job in going if likely_stopped(tokenizer, stop, self.ecfg.chunk, job)]
        return [self.slots.release(b) for b in sorted(ended)], sampled

    def _prefill(self, taken: list[list[tuple[int, int]]]) -> None:
        shape = (self.parts, self.batch)
        tokens_NT = np.zeros((*shape, self.ecfg.prompt_len), np.int32)
        len_N, at_N = np.zeros(shape, np.int32), np.full(shape, self.slots.slots, np.int32)
        for number, part in enumerate(taken):
            for row, (index, slot) in enumerate(part):
                n = len(self.prompt_tokens[index]) - 1
                tokens_NT[number, row, :n] = self.prompt_tokens[index][:n]
                len_N[number, row], at_N[number, row] = n, slot
        arrays = _place((tokens_NT.reshape(-1, tokens_NT.shape[-1]), "BT"), (len_N.ravel(), "B"), (at_N.ravel(), "B"))
        with tracing.span("prefill"):  # the device is idle: the last chunk is done, and the next one has not started
            prompts = prefill(self.cfg, self.ecfg.dtype, self.params, self.cache.prompts, *arrays)
            jax.block_until_ready(prompts)
        self.cache = self.cache._replace(prompts=prompts)

    def _commit(self) -> None:
        if size := self.slots.pages_missing():
            self.cache = self.cache._replace(pages=paging.grow(self.cache.pages, size))
            self.slots.grow(size)
        (at_B,) = _place((self.slots.commit(), "B"))
        self.cache = self.cache._replace(pages=paging.commit(self.cache.pages, self.cache.stages, at_B))

    def _shrink(self, rows: int) -> None:
        full = most_pages(dataclasses.replace(self.ecfg, pool=1.0), rows)  # fewer rows need at most this many
        kept = self.slots.shrink(rows, min(full, self.slots.pages) if self.reserve else 0)
        at_B, at_M = _place(*((x, "B") for x in kept))
        pages, stages = paging.keep(self.cache.pages, at_M), paging.keep(self.cache.stages, at_B)
        self.cache = self.cache._replace(pages=pages, stages=stages)


def _place(*arrays):
    """Put host arrays on the mesh by their dimension letters; without a mesh on the default device."""
    if active_mesh() is None:
        return [jnp.asarray(x) for x, _ in arrays]
    mesh = jax.sharding.get_mesh()
    shardings = [jax.NamedSharding(mesh, RULES.spec(dims)) for _, dims in arrays]
    if shardings[0].is_fully_addressable:  # one call, because each takes as long as a small model's step
        return jax.device_put([x for x, _ in arrays], shardings)
    return [place(x, s) for (x, _), s in zip(arrays, shardings, strict=True)]
