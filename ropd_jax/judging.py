"""Judging a step: each group goes to the teacher the moment it is sampled, and all hosts return the whole step."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from ropd_jax import hosts, spans
from ropd_jax.data.prompts import PromptStream
from ropd_jax.methods import Method
from ropd_jax.teacher import BudgetError, Teacher, TeacherLoop, at_step, together
from ropd_jax.types import Judgement, RolloutGroup, UserError
from ropd_jax.workdir import Interrupt


def judge_step(
    groups, method: Method, teacher: Teacher, loop: TeacherLoop, interrupt: Interrupt, say: Callable[[str], None]
) -> tuple[list[RolloutGroup], list[Judgement], dict[str, float]]:
    """Send each group to the teacher the moment it is sampled; return all in prompt order once all are judged.

    Of several hosts each sends its own groups (`hosts.mine`), and all return the whole step.

    Raises:
        ConfigurationError: the teacher cannot work at all (a wrong key, an unknown model); nothing more is sent.
        Interrupted: the user asked to stop; what is in flight is cancelled.
    """
    waiting: dict[concurrent.futures.Future, RolloutGroup] = {}
    sampled: list[RolloutGroup] = []
    start = time.monotonic()
    try:
        with spans.span("sample"):
            for group in groups:
                sampled.append(group)
                if hosts.mine(group.index):
                    waiting[loop.submit(judge_group(method, teacher, group))] = group
                say(f"sampled {len(sampled)} groups")
                interrupt.check()
        sampled_at = time.monotonic()
        pending = set(waiting)
        with spans.span("idle"):
            while True:  # as often on every host: all go on until the last has finished
                done, pending = concurrent.futures.wait(
                    pending, timeout=0.2, return_when=concurrent.futures.FIRST_EXCEPTION
                )
                failed = next((e for future in done if (e := future.exception())), None)
                said = hosts.exchange((len(pending), failed and (isinstance(failed, BudgetError), str(failed))))
                if failed is not None:
                    raise failed
                for number, (_, problem) in enumerate(said):
                    if problem is not None:
                        raise (BudgetError if problem[0] else UserError)(f"host {number}: {problem[1]}")
                left = sum(n for n, _ in said)
                say(f"judged {len(sampled) - left}/{len(sampled)} groups")
                interrupt.check()
                if not left:
                    break
    except BudgetError:
        concurrent.futures.wait(waiting)  # nothing new is sent; what is in flight is paid for and goes on the tape
        raise
    except BaseException:
        for future in waiting:
            future.cancel()
        raise
    told = hosts.exchange({group.index: future.result() for future, group in waiting.items()})
    judgements = {index: judgement for part in told for index, judgement in part.items()}
    sampled.sort(key=lambda group: group.index)
    times = {"time/sample_s": sampled_at - start, "time/teacher_wait_s": time.monotonic() - sampled_at}
    return sampled, [judgements[group.index] for group in sampled], times


async def judge_group(method: Method, teacher: Teacher, group: RolloutGroup) -> Judgement:
    """The teacher's judgement of a group; its spans, and what is spent on it, belong to the group's step."""
    with spans.about(step=group.step, group=group.index), spans.span("judged"):
        return await at_step(group.step, method.judge(teacher, group))


def meet(teacher: Teacher, groups: Sequence[RolloutGroup] = ()) -> None:
    """Of several hosts, let every teacher know what the others have spent, answered and noted in this step."""
    if hosts.count() > 1:
        told = hosts.exchange(together.news(teacher, [g.prompt.id for g in groups]))
        together.learn(teacher, hosts.index(), told)


def replace_equal(cfg: ConfigDict, method: Method, stream: PromptStream, judged, step: int, groups, judgements):
    """Dynamic sampling (DAPO, arXiv 2503.14476, Eq. 11), bounded: groups whose rewards are all equal give their place
    to new prompts, in at most ``sampling.resample`` rounds; what is equal then stays and gives no gradient.

    The new prompts are a function of (seed, step, round), so a resumed run draws the same. They come besides those of
    the step: an epoch still visits each prompt once.
    """
    groups, judgements, used = list(groups), list(judgements), {g.prompt.id for g in groups}
    counts = {"group/resampled": 0, "group/replaced": 0}

    def equal(groups, judgements) -> list[bool]:
        found = method.advantages(*method.rewards(groups, judgements), step)
        return list(np.asarray(found.valid_PG).any(axis=1) & ~np.asarray(found.informative_PG).any(axis=1))

    for round in range(cfg.sampling.resample):
        places = [i for i, dull in enumerate(equal(groups, judgements)) if dull]
        prompts = stream.spare(step, round, len(places), without=used)
        if not prompts:
            break
        used |= {p.id for p in prompts}
        new_groups, new_judgements, _ = judged(prompts)
        counts["group/resampled"] += len(prompts)
        for group, judgement, dull in zip(new_groups, new_judgements, equal(new_groups, new_judgements), strict=True):
            if not dull and any(r is not None for r in judgement.rewards):
                i = places.pop(0)
                groups[i], judgements[i] = dataclasses.replace(group, index=i), judgement
                counts["group/replaced"] += 1
    return groups, judgements, counts
