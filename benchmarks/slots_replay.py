"""The sampler's scheduler without a device: token steps of a training step, positions read over positions needed.

    python -m benchmarks.slots_replay                         # seconds
    python -m benchmarks.slots_replay --prompts-at-once 32    # all 256 rollouts at once

The scheduler runs (`plan.replay`) as in a step of experiments/qwen3_4b_math.py on v5e:4x4 (four parts): 32 prompts of
150 tokens, 8 rollouts each, answers of log-normal length (mean 3.6k, at most 8,192). A token step needs the tokens of
the rows that still decode, and each of their prompts once. It reads:

    paged       whole pages of the rows that still decode, the stage counted as one, and of each prompt slot in use
    blocks      without the kernel on a TPU or GPU: all stages, all prompt slots in blocks of 256 up to the longest
                prompt, and the pool in blocks of pages up to the last that is in use
    whole_pool  as ``blocks``, but the whole pool

Programs are the shapes that decoding compiles for.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math

import numpy as np

from ropd_jax.plan.replay import SIGMA, Sizes, chunks, lengths, paged_read, pages_read
from ropd_jax.sampling.pages import prompt_pages
from ropd_jax.sampling.slots import halved, pool_size


@dataclasses.dataclass(frozen=True)
class Replayed:
    """Counts of one training step.

    Attributes:
        token_steps: passes of the token loop.
        tokens: tokens sampled in them.
        read_paged: cache positions that the kernel reads.
        read_prompts, read_stages, read_pages, read_pool: cache positions that are read without the kernel: of prompts,
            of stages, of pages up to the last one in use, of the whole pool.
        needed: see the module docstring.
        restarts: rollouts that had to make room for others.
        lost_tokens: tokens that these rollouts sampled twice.
        programs: number of pairs (rows, pages of the pool) used for decoding.
        most_pages, mean_pages: pages of all parts, maximum and mean over the token steps.
        mean_used: mean number of pages that held a row's tokens.
    """

    token_steps: int
    tokens: int
    read_paged: int
    read_prompts: int
    read_pages: int
    read_pool: int
    read_stages: int
    needed: int
    programs: int
    most_pages: int
    mean_pages: float
    mean_used: float
    restarts: int
    lost_tokens: int

    @property
    def over(self) -> dict[str, float]:
        """Positions read over needed."""
        others = self.read_prompts + self.read_stages
        read = {"paged": self.read_paged, "blocks": others + self.read_pages, "whole_pool": others + self.read_pool}
        return {name: round(n / self.needed, 3) for name, n in read.items()}


def replay(
    limits: list[list[int]],
    *,
    parts: int,
    at_once: int,
    prompt_tokens: int,
    prompt_len: int,
    page: int,
    chunk: int,
    most: int,
    pool: float = 1.0,
) -> Replayed:
    """One training step, as `engine._Engine` runs it on a TPU or GPU, one token per row and step until the row ends."""
    G, n = len(limits[0]), len(limits)
    each = at_once // parts
    rows, batch = each * G, max(1, each // 2)
    slots = min(3 * each + batch, -(-n // parts))
    rows, depth = halved(rows, -(-n // parts) * G), (most - 1) // page
    pages = pool_size(max(depth, math.ceil(rows * depth * pool)), rows)
    sizes = Sizes(parts, rows, slots, batch, pages, page, chunk, most, pool)
    steps = tokens = paged = prompts_read = block_read = pool_read = stages_read = needed = used = pages_seen = 0
    shapes, prompt_block, prompt_page = set(), min(256, prompt_len), prompt_pages(prompt_len)[1]
    for state, left, ran in chunks(limits, prompt_tokens, sizes):
        shapes.add((state.rows, state.pages))
        for i in range(ran):
            live = left > i
            prompts = {job.index for job, alive in zip(state.job, live, strict=True) if job and alive}
            needed += int((state.t[live] + i + 1).sum()) + len(prompts) * (prompt_tokens - 1)
            paged += sum(paged_read(state, live, i, prompt_page))
        steps, tokens = steps + ran, tokens + int(np.minimum(left, ran).sum())
        prompts_read += ran * parts * slots * prompt_block * -(-(prompt_tokens - 1) // prompt_block)
        pool_read += ran * parts * state.pages * page
        block_read += ran * page * sum(pages_read(state))
        stages_read += ran * parts * state.rows * page
        in_use = sum(map(len, state.own_pages.values()))
        used, pages_seen = used + ran * in_use, pages_seen + ran * parts * state.pages
    return Replayed(
        steps,
        tokens,
        paged,
        prompts_read,
        block_read,
        pool_read,
        stages_read,
        needed,
        len(shapes),
        parts * pages,
        pages_seen / steps,
        used / steps,
        state.restarts,
        state.lost_tokens,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=32, help="prompts per step (32)")
    parser.add_argument("--rollouts", type=int, default=8, help="rollouts per prompt (8)")
    parser.add_argument("--prompts-at-once", type=int, default=16, help="sampling.prompts_at_once (16)")
    parser.add_argument("--parts", type=int, default=4, help="mesh.fsdp (4)")
    parser.add_argument("--mean", type=float, default=3600, help="mean length of an answer in tokens (3600)")
    parser.add_argument("--sigma", type=float, default=SIGMA, help="standard deviation of the log length (0.8)")
    parser.add_argument("--most", type=int, default=8192, help="sampling.max_tokens (8192)")
    parser.add_argument("--prompt-tokens", type=int, default=150, help="tokens of each prompt (150)")
    parser.add_argument("--prompt-len", type=int, default=2048, help="tokens of a prompt slot (2048)")
    parser.add_argument("--chunk", type=int, default=8, help="sampling.chunk (8)")
    parser.add_argument("--pool", type=float, default=1.0, help="sampling.pool (1)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    limits = lengths(args.prompts, args.rollouts, args.mean, args.sigma, args.most, args.seed)
    page = args.chunk * -(-max(32, -(-args.most // 64)) // args.chunk)
    found = replay(
        limits, parts=args.parts, at_once=args.prompts_at_once, prompt_tokens=args.prompt_tokens,
        prompt_len=args.prompt_len, page=page, chunk=args.chunk, pool=args.pool, most=args.most,
    )  # fmt: skip
    print(json.dumps(dataclasses.asdict(found) | {"read_over_needed": found.over}, indent=1))


if __name__ == "__main__":
    main()
