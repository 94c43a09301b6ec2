"""Dynamic sampling (DAPO, arXiv 2503.14476, Eq. 11), bounded: zero-variance groups give their places to new prompts.

A group whose rewards are all equal has no advantage and gives no gradient. A new prompt takes its place, in at most
``sampling.resample`` rounds. A group that still has zero variance after the last round stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ropd_jax.data.stream import PromptStream
from ropd_jax.methods import Method
from ropd_jax.types import Judgement, Prompt, RolloutGroup

Judged = tuple[Sequence[RolloutGroup], Sequence[Judgement]]


def dynamic_sampling(
    method: Method,
    stream: PromptStream,
    judge: Callable[[list[Prompt]], Judged],
    step: int,
    rounds: int,
    groups: Sequence[RolloutGroup],
    judgements: Sequence[Judgement],
) -> tuple[list[RolloutGroup], list[Judgement], dict[str, float]]:
    """(groups, judgements, metrics) after the replacements.

    The new prompts depend only on (seed, step, round), so a resumed run draws the same ones. They come in addition
    to those of the step: an epoch still visits each prompt once.

    Args:
        judge: samples and judges new prompts.
        rounds: maximum number of rounds.
    """
    kept, verdicts = list(groups), list(judgements)
    used = {g.prompt.id for g in groups}
    counts: dict[str, float] = {"group/resampled": 0, "group/replaced": 0}

    def zero_variance(groups: Sequence[RolloutGroup], judgements: Sequence[Judgement]) -> list[bool]:
        found = method.step_advantages(groups, judgements, step)
        rows = zip(np.asarray(found.valid_PG), np.asarray(found.informative_PG), strict=True)
        return [bool(valid_G.any() and not informative_G.any()) for valid_G, informative_G in rows]

    for number in range(rounds):
        places = [i for i, flat in enumerate(zero_variance(kept, verdicts)) if flat]
        prompts = stream.spare(step, number, len(places), without=used)
        if not prompts:
            break
        used |= {p.id for p in prompts}
        fresh, fresh_judgements = judge(prompts)
        counts["group/resampled"] += len(prompts)
        flats = zero_variance(fresh, fresh_judgements)
        for group, judgement, flat in zip(fresh, fresh_judgements, flats, strict=True):
            if not flat and any(r is not None for r in judgement.rewards):
                i = places.pop(0)
                kept[i], verdicts[i] = dataclasses.replace(group, index=i), judgement
                counts["group/replaced"] += 1
    return kept, verdicts, counts
