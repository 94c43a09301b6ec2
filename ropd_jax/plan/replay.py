"""The sampler's scheduler without a device: the number of token steps in a training step, and their programs.

Token steps are not tokens over rows: in the tail, rows stay idle, and when half of them are idle, the rest moves into
half as many. `chunks` runs `sampling.slots.Slots` as the engine does on a TPU or GPU; `ladder` sums up the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from ropd_jax.sampling.engine import MOVES
from ropd_jax.sampling.paged_attention import block_of
from ropd_jax.sampling.pages import prompt_pages
from ropd_jax.sampling.slots import Slots, pool_size

SIGMA = 0.8  # standard deviation of the log length of an answer, if only the mean is known
PROMPT_BLOCK = 256  # positions of the prompt slots that are read together


def lengths(prompts: int, rollouts: int, mean: float, sigma: float, most: int, seed: int) -> list[list[int]]:
    """Log-normal answers whose mean is ``mean`` after they are cut at ``most``."""
    draw = np.exp(sigma * np.random.default_rng(seed).standard_normal((prompts, rollouts)))
    low, high = 1.0, float(most) * 4
    for _ in range(60):  # bisection over the median
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(draw * middle, 1, most).mean() < mean else (low, middle)
    return np.clip(draw * low, 1, most).astype(int).tolist()


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes: ``parts``: the mesh axis fsdp; rows, slots, batch, pages: of each part, as in `engine.Layout`.

    Attributes:
        most: maximum length of an answer.
        pool: see `EngineConfig.pool`.
        halves: in the tail rows move into half as many; a small student keeps them (`engine.LARGE`).
        paged: the cache is read by the kernel (`pages.uses_kernel`), which reads only the pages of each row.
    """

    parts: int
    rows: int
    slots: int
    batch: int
    pages: int
    page: int
    chunk: int
    most: int
    pool: float = 1.0
    halves: bool = True
    paged: bool = False


def chunks(
    limits: Sequence[Sequence[int]], prompt_tokens: int, sizes: Sizes
) -> Iterator[tuple[Slots, np.ndarray, int]]:
    """(scheduler state, tokens left in each row, token steps of the chunk), before each chunk of decoding.

    Args:
        limits: [prompts][G], the length of each answer.
        prompt_tokens: of every prompt.
    """
    G, n = len(limits[0]), len(limits)
    depth = (sizes.most - 1) // sizes.page
    state = Slots(
        parts=sizes.parts, rows=sizes.rows, slots=sizes.slots, page=sizes.page, prompt_lens=[prompt_tokens] * n,
        limits=limits, key_PG2=np.zeros((n, G, 2), np.uint32), most_pages=sizes.pages if sizes.pool < 1 else 0,
    )  # fmt: skip
    state.grow(sizes.pages)
    while state.unfinished:
        while any(state.take_prompts(sizes.batch)):
            pass
        state.make_room()
        state.commit()
        state.admit([0] * n)
        state.compact(block_of(state.pages), MOVES)
        if sizes.halves and (fewer := state.rows_enough()) < state.rows:
            state.shrink(fewer, min(pool_size(fewer * depth, fewer), state.pages))
        left = np.where(state.done, 0, state.limit - state.t)
        ran = min(sizes.chunk, int(left.max()))
        yield state, left, ran
        t_B = state.t + np.minimum(left, ran).astype(np.int32)
        zeros = np.zeros((sizes.chunk, len(t_B)), np.float32)
        for b in state.absorb(zeros.astype(np.int32), zeros, zeros, t_B, state.done | (t_B >= state.limit)):
            state.release(b)


def pages_read(state: Slots) -> list[int]:
    """For each part, the pages that a token step reads: whole blocks up to the last one in use."""
    used = state.view["first_M"].reshape(state.parts, -1) >= 0
    block = block_of(state.pages)
    return [-(-int(np.flatnonzero(row)[-1] + 1) // block) * block if row.any() else 0 for row in used]


def paged_read(state: Slots, live_B: np.ndarray, ahead: int, prompt_page: int) -> list[int]:
    """For each part, the positions that the kernel reads in the token step ``ahead`` steps from now: whole pages of the
    rows that still decode, with the stage as one page, and of each prompt slot in use."""
    pages_B = np.where(live_B, (state.t + ahead) // state.page + 1, 0).reshape(state.parts, -1)
    in_slots_P = state.view["prompt_len_P"].reshape(state.parts, -1)
    prompts = prompt_page * (-(-in_slots_P // prompt_page)).sum(axis=1)
    return (state.page * pages_B.sum(axis=1) + prompts).tolist()


@dataclasses.dataclass(frozen=True)
class Rung:
    """One program of decoding, by its shapes, and its work in one step of training.

    Attributes:
        rows, pages: over all parts.
        steps: token steps.
        passes: of attention's loops over blocks of the cache, on the part that reads the most, summed over the steps.
            The loop over prompts, a quarter of their cycles, counts as often as those over pages.
        read: positions of the cache that a part reads, the maximum over the parts, summed over the steps.
    """

    rows: int
    pages: int
    steps: int
    passes: int
    read: int


def ladder(limits: Sequence[Sequence[int]], prompt_tokens: int, prompt_len: int, sizes: Sizes) -> tuple[Rung, ...]:
    """The programs that a step decodes with, largest number of rows first.

    In chunks of up to 1/128 of the longest answer, so that a replay takes seconds: answers end up to that much later.
    """
    while sizes.chunk * 2 <= sizes.most // 128 and sizes.page % (sizes.chunk * 2) == 0:
        sizes = dataclasses.replace(sizes, chunk=sizes.chunk * 2)
    found: dict[tuple[int, int], Rung] = {}
    block = min(PROMPT_BLOCK, prompt_len)
    prompt_blocks = -(-max(prompt_tokens - 1, 0) // block)
    for state, left, ran in chunks(limits, prompt_tokens, sizes):
        pages = max(pages_read(state))
        passes = max(1, pages // block_of(state.pages))
        read = pages * sizes.page + sizes.slots * prompt_blocks * block + state.rows * sizes.page
        if sizes.paged:
            read = max(paged_read(state, left > 0, ran // 2, prompt_pages(prompt_len)[1]))
        key = state.parts * state.rows, state.parts * state.pages
        old = found.get(key, Rung(*key, 0, 0, 0))
        found[key] = Rung(*key, old.steps + ran, old.passes + ran * passes, old.read + ran * read)
    return tuple(sorted(found.values(), key=lambda r: (-r.rows, -r.pages)))
