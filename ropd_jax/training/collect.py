"""Judging a step: each group goes to the teacher the moment it is sampled, and what is judged is used at once.

Sampling goes first, because only what is sampled can be judged. Then, while the teacher works, the device sums the
gradient of the groups that are judged (`training.accumulate`), and if it has nothing to sum it samples the next step
(``stream.staleness=1``). Only when there is nothing of all that to do does the run wait.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ropd_jax.data.prompts import PromptStream
from ropd_jax.methods import Method
from ropd_jax.parallel import hosts
from ropd_jax.teacher import BudgetError, Teacher, at_step, sync
from ropd_jax.training.accumulate import StreamedUpdate, restored, stored
from ropd_jax.types import Judgement, Prompt, RolloutGroup, UserError
from ropd_jax.utils import tracing
from ropd_jax.workdir.config import Interrupt

log = logging.getLogger(__name__)
LOOK_S = 0.2  # between two looks at other hosts and at the user while the teacher is waited for
Key = tuple[int, int]  # step and index of a group
Send = Callable[[RolloutGroup], concurrent.futures.Future]


class Carried(NamedTuple):
    """Groups that the teacher has not judged when their step ends, and those of them that this host has asked about."""

    groups: Sequence[RolloutGroup] = ()
    waiting: Mapping[concurrent.futures.Future, RolloutGroup] = {}


NOBODY = Carried()


class Flight:
    """A step between its first sample and its update: what is sampled, who is asked, what has been said.

    Of several hosts each sends its own groups (`hosts.mine`); all of them know all that is sampled and said.

    Args:
        groups: from the sampler; drawn as they are asked for.
        send: asks the teacher about a group.
    """

    def __init__(self, step: int, groups: Iterator[RolloutGroup], send: Send):
        self.step = step
        self.groups: list[RolloutGroup] = []
        self.waiting: dict[concurrent.futures.Future, RolloutGroup] = {}
        self.judgements: dict[Key, Judgement] = {}
        self.sample_s = 0.0
        self.sampled = False  # all of it
        self._sampler, self._send = groups, send

    def sample(self, *, ask: bool = True) -> bool:
        """Take the next group from the sampler and send it to the teacher; False when there is none left.

        ``ask`` False: the run ends, nobody is to be asked any more.
        """
        if self.sampled:
            return False
        begin = time.monotonic()
        with tracing.about(step=self.step), tracing.span("sample"):
            group = next(self._sampler, None)
        self.sample_s += time.monotonic() - begin
        if group is None:
            self.sampled = True
            return False
        self.groups.append(group)
        if ask and hosts.mine(group.index):
            self.waiting[self._send(group)] = group
        return True

    def collect(self, timeout_s: float) -> list[tuple[RolloutGroup, Judgement]]:
        """What has been judged since the last call, on all hosts alike; waits for ``timeout_s`` at most.

        Raises:
            ConfigurationError: the teacher cannot work at all (a wrong key, an unknown model); nothing more is sent.
        """
        done, _ = concurrent.futures.wait(self.waiting, timeout_s, return_when=concurrent.futures.FIRST_COMPLETED)
        failed = next((e for future in done if (e := future.exception())), None)
        new = {} if failed else {_key(self.waiting.pop(future)): future.result() for future in done}
        said = hosts.exchange((new, failed and (isinstance(failed, BudgetError), str(failed))))
        if failed is not None:
            raise failed
        for number, (_, problem) in enumerate(said):
            if problem is not None:
                raise (BudgetError if problem[0] else UserError)(f"host {number}: {problem[1]}")
        told = {key: judgement for part, _ in said for key, judgement in part.items()}
        self.judgements |= told
        known = {_key(group): group for group in self.groups}
        return [(known[key], told[key]) for key in sorted(told)]

    @property
    def pending(self) -> list[RolloutGroup]:
        """Sampled, not yet judged."""
        return [group for group in self.groups if _key(group) not in self.judgements]

    def goes_on_without(self, deadline_s: float) -> bool:
        """Whether the step ends without what is pending: half of it is judged, the time is up on some host, and none
        of it has been carried over before; ``deadline_s`` is of the monotonic clock."""
        late = hosts.any_host(time.monotonic() > deadline_s)
        pending = self.pending
        return late and 2 * len(pending) <= len(self.groups) and all(g.step == self.step for g in pending)

    def carry(self) -> Carried:
        """Give up what is still pending, for the next step's flight to wait for."""
        late = Carried(self.pending, self.waiting)
        self.groups, self.waiting = [g for g in self.groups if _key(g) in self.judgements], {}
        return late

    def receive(self, carried: Carried) -> None:
        """Wait for these too."""
        self.groups = [*carried.groups, *self.groups]
        self.waiting |= carried.waiting

    def cancel(self) -> None:
        for future in self.waiting:
            future.cancel()


def _key(group: RolloutGroup) -> Key:
    return group.step, group.index


def judge_step(
    flight: Flight,
    interrupt: Interrupt,
    say: Callable[[str], None],
    *,
    ahead: Flight | None = None,
    update: StreamedUpdate | None = None,
    patience_s: float = math.inf,
) -> tuple[list[RolloutGroup], list[Judgement], dict[str, float]]:
    """Sample the rest of the step and wait until it is judged; all of it, in the order of the prompts.

    Args:
        ahead: the next step, sampled while there is nothing better to do.
        update: sums the groups' gradient as they are judged.
        patience_s: after so long the groups that are not judged stay in ``flight.pending``, if at least half of the
            step is; those that have been carried over once are waited for.

    Raises:
        ConfigurationError: see `Flight.collect`.
        Interrupted: the user asked to stop; what is in flight is cancelled.
    """
    waited_s, worked = 0.0, True
    try:
        while flight.sample():
            say(f"sampled {len(flight.groups)} groups")
            interrupt.check()
        begin = time.monotonic()
        with contextlib.ExitStack() as idle:
            while True:  # as often on every host
                looked = time.monotonic()
                for judged in flight.collect(0.0 if worked else LOOK_S):
                    if update:
                        update.take(*judged)
                waited_s += 0.0 if worked else time.monotonic() - looked
                say(f"judged {len(flight.judgements)}/{len(flight.groups)} groups")
                interrupt.check()
                if not flight.pending or (patience_s < math.inf and flight.goes_on_without(begin + patience_s)):
                    break
                if update and update.due(len(flight.groups)):
                    idle.close()
                    update.work(len(flight.groups))
                elif ahead and not ahead.sampled:
                    idle.close()
                    ahead.sample()
                else:
                    if worked:
                        idle.enter_context(tracing.span("idle"))
                    worked = False
                    continue
                worked = True
        while update and update.due(len(flight.judgements)):
            update.work(len(flight.judgements))
            interrupt.check()
    except BudgetError:  # nothing new is sent; what is in flight is paid for and goes on the tape
        concurrent.futures.wait([*flight.waiting, *(ahead.waiting if ahead else ())])
        raise
    except BaseException:
        for one in (flight, *([ahead] if ahead else ())):
            one.cancel()
        raise
    groups = sorted((g for g in flight.groups if _key(g) in flight.judgements), key=_key)
    times = {"time/sample_s": flight.sample_s, "time/teacher_wait_s": waited_s}
    return groups, [flight.judgements[_key(g)] for g in groups], times


async def judge_group(
    judge: Callable[[Teacher, RolloutGroup], Awaitable[Judgement]], teacher: Teacher, group: RolloutGroup
) -> Judgement:
    """What ``judge`` (`Method.judge`) says of a group; its spans and what is spent on it belong to the group's step."""
    with tracing.about(step=group.step, group=group.index), tracing.span("judged"):
        return await at_step(group.step, judge(teacher, group))


def say_left_out(
    step: int, groups: Sequence[RolloutGroup], judgements: Sequence[Judgement], failed_P: Sequence[bool], late: Carried
) -> None:
    """One line of what the step ends without: groups without a score, and why; groups that go over to the next."""
    failed = [(g, j) for g, j, out in zip(groups, judgements, failed_P, strict=True) if out]
    if failed:
        causes = Counter(cause for _, j in failed for cause in j.causes if cause is not None)
        why = ", ".join(f"{cause} {n}" for cause, n in causes.most_common()) or "fewer scores than loss.min_scored"
        log.warning("step %d: %d of %d groups have no score and are left out (%s): %s", step, len(failed), len(groups),
                    why, _names(g for g, _ in failed))  # fmt: skip
    if late.groups:
        log.warning("step %d: %d groups are not judged yet and go over to step %d: %s", step, len(late.groups),
                    step + 1, _names(late.groups))  # fmt: skip


def _names(groups: Iterable[RolloutGroup]) -> str:
    ids = [g.prompt.id for g in groups]
    return ", ".join(ids[:4]) + (f" and {len(ids) - 4} more" if len(ids) > 4 else "")


# ------------------------------------------------------------------------------------------ groups and checkpoints


def kept(
    step: int, flights: Sequence[Flight | None], carried: Carried, *, stale: bool, ask: bool = True
) -> dict[str, Any]:
    """What a checkpoint after ``step`` steps holds of groups: those that nobody can sample again.

    That is the next step, where it is sampled by a policy that is gone (``stale``; the rest of it is sampled now), and
    groups carried over. Their judgements are on the tape.
    """
    here = next((f for f in flights if f and f.step == step), None)
    if here and stale:
        while here.sample(ask=ask):
            pass
    groups = [*(here.groups if here else ()), *carried.groups]
    own = [g for g in groups if g.step == step] if stale else []
    return {
        "ahead": stored(own),
        "ahead_sample_s": here.sample_s if here else 0.0,
        "carried": stored([g for g in groups if g.step < step]),
    }


def taken_up(
    step: int, host: Mapping[str, Any], prompts: Mapping[str, Prompt], tokens: Mapping[str, np.ndarray], send: Send
) -> tuple[Flight | None, Carried]:
    """(the flight of ``step`` or None, groups carried over), from what `kept` has left in ``host``."""
    own, late = (restored(host.get(name, ()), prompts, tokens) for name in ("ahead", "carried"))
    flight = None
    if own:
        flight = Flight(step, iter(own), send)
        flight.sample_s = host["ahead_sample_s"]
    return flight, Carried(late, {send(g): g for g in late if hosts.mine(g.index)})


def meet(teacher: Teacher, groups: Sequence[RolloutGroup] = ()) -> None:
    """Of several hosts, let every teacher know what the others have spent, answered and noted in this step."""
    if hosts.count() > 1:
        deltas = hosts.exchange(sync.delta(teacher, [g.prompt.id for g in groups]))
        sync.merge(teacher, hosts.index(), deltas)


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
