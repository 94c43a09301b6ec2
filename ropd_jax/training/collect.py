"""Collecting a step: each group is sent to the teacher as soon as it is sampled, each judgement used when it arrives.

Sampling has priority, because only sampled groups can be judged. While the teacher works, the device sums the gradient
of the judged groups (`training.accumulate`). If there is nothing to sum, it samples the next step
(``stream.staleness=1``). The run waits only if there is neither::

    device   |sample 0|sample 1|sample 2| sum 0 | sample the next step ... | sum 1,2 | optimizer
    teacher           |--judge 0--|
                               |----judge 1---------------------|
                                        |------judge 2------|
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ropd_jax.methods import Method, check_judgement
from ropd_jax.parallel import hosts
from ropd_jax.teacher import BudgetError, Teacher, at_step, sync
from ropd_jax.teacher.recorded import recording
from ropd_jax.training.accumulate import StreamedUpdate
from ropd_jax.types import Judgement, RolloutGroup, UserError
from ropd_jax.utils import tracing
from ropd_jax.utils.interrupt import Interrupt

log = logging.getLogger(__name__)
POLL_S = 0.2  # between two checks of other hosts and of signals while the run waits for the teacher
Key = tuple[int, int]  # step and index of a group
Send = Callable[[RolloutGroup], concurrent.futures.Future]
Report = Callable[[str], None]
Outage = Callable[[], str]  # what the teacher waits for while it is unreachable; "" if it is reachable
Judge = Callable[[Teacher, RolloutGroup], Coroutine[Any, Any, Judgement]]


class DeferredGroups(NamedTuple):
    """Groups that are not yet judged when their step ends, and this host's requests for them in flight."""

    groups: Sequence[RolloutGroup] = ()
    waiting: Mapping[concurrent.futures.Future, RolloutGroup] = {}


NONE_DEFERRED = DeferredGroups()


class PendingStep:
    """A step between its first sample and its update: the groups sampled, sent and judged so far.

    With several hosts, each sends its own groups (`hosts.is_local`); every host knows all sampled groups and all
    judgements.

    Args:
        groups: from the sampler; sampled lazily.
        send: sends a group to the teacher.
        policy: the parameters that sample it, if they differ from those at the beginning of the step's update.
    """

    def __init__(self, step: int, groups: Iterator[RolloutGroup], send: Send, policy: Any = None):
        self.step = step
        self.groups: list[RolloutGroup] = []
        self.waiting: dict[concurrent.futures.Future, RolloutGroup] = {}
        self.judgements: dict[Key, Judgement] = {}
        self.sample_s = 0.0
        self.sampled = False  # all groups are
        self._sampler, self._send, self.policy = groups, send, policy

    def sample(self, *, send: bool = True) -> bool:
        """Take the next group from the sampler and send it to the teacher; False if there are none left.

        Args:
            send: False if the run is ending, so that no further requests are sent.
        """
        if self.sampled:
            return False
        begin = time.monotonic()
        with tracing.about(step=self.step), tracing.span("sample"):
            group = next(self._sampler, None)
        self.sample_s += time.monotonic() - begin
        if group is None:
            self.sampled, self.policy = True, None
            return False
        self.groups.append(group)
        if send and hosts.is_local(group.index):
            self.waiting[self._send(group)] = group
        return True

    def collect(self, timeout_s: float) -> list[tuple[RolloutGroup, Judgement]]:
        """The groups judged since the last call, the same on all hosts; waits at most ``timeout_s``.

        Raises:
            ConfigurationError: the teacher cannot work (a wrong key, an unknown model); no further requests are sent.
        """
        done, _ = concurrent.futures.wait(self.waiting, timeout_s, return_when=concurrent.futures.FIRST_COMPLETED)
        failed = next((e for future in done if (e := future.exception())), None)
        new = {} if failed else {_key(self.waiting.pop(future)): future.result() for future in done}
        problem = None if failed is None else (isinstance(failed, BudgetError), str(failed))
        reports = hosts.exchange((new, problem))
        if failed is not None:
            raise failed
        for host, (_, theirs) in enumerate(reports):
            if theirs is not None:
                raise (BudgetError if theirs[0] else UserError)(f"host {host}: {theirs[1]}")
        judged = {key: judgement for part, _ in reports for key, judgement in part.items()}
        self.judgements |= judged
        known = {_key(group): group for group in self.groups}
        return [(known[key], judged[key]) for key in sorted(judged)]

    @property
    def pending(self) -> list[RolloutGroup]:
        """Groups that are sampled but not yet judged."""
        return [group for group in self.groups if _key(group) not in self.judgements]

    def leaves_stragglers(self, deadline_s: float) -> bool:
        """Whether the step ends without its pending groups: at least half of it is judged, the time is up on some
        host, and no pending group has been deferred before. ``deadline_s`` is in seconds of the monotonic clock."""
        late = hosts.any_host(time.monotonic() > deadline_s)
        pending = self.pending
        return late and 2 * len(pending) <= len(self.groups) and all(g.step == self.step for g in pending)

    def defer(self) -> DeferredGroups:
        """Give up the pending groups; the next step waits for them."""
        late = DeferredGroups(self.pending, self.waiting)
        self.groups, self.waiting = [g for g in self.groups if _key(g) in self.judgements], {}
        return late

    def receive(self, deferred: DeferredGroups) -> None:
        """Also wait for these groups of an earlier step."""
        self.groups = [*deferred.groups, *self.groups]
        self.waiting |= deferred.waiting

    def cancel(self) -> None:
        """Cancel all requests in flight."""
        for future in self.waiting:
            future.cancel()


def _key(group: RolloutGroup) -> Key:
    return group.step, group.index


def judge_step(
    current: PendingStep,
    interrupt: Interrupt,
    report: Report,
    *,
    lookahead: PendingStep | None = None,
    update: StreamedUpdate | None = None,
    patience_s: float = math.inf,
    outage: Outage = str,
) -> tuple[Sequence[RolloutGroup], Sequence[Judgement], dict[str, Any]]:
    """Sample the rest of the step and wait until it is judged.

    Args:
        report: called with a line of progress.
        lookahead: the next step, sampled while there is nothing more urgent.
        update: sums the gradient of groups as they are judged.
        patience_s: after this time, unjudged groups stay in ``current.pending``, provided that at least half of the
            step is judged. A group that was deferred once is always waited for.
        outage: see `Teacher.waiting_for`; its duration does not count towards ``patience_s``.

    Returns:
        the groups and their judgements in the order of the prompts; the seconds spent sampling and waiting.

    Raises:
        ConfigurationError: see `PendingStep.collect`.
        Interrupted: the user requested a stop; requests in flight are cancelled.
    """
    waited_s = 0.0
    try:
        while current.sample():
            report(f"sampled {len(current.groups)} groups")
            interrupt.check()
        waited_s = _wait(current, interrupt, report, lookahead, update, patience_s, outage)
        while update and update.due(len(current.judgements)):
            update.work(len(current.judgements))
            interrupt.check()
    except BudgetError:  # no new requests; those in flight are paid for and recorded on the tape
        paid = [*current.waiting, *(lookahead.waiting if lookahead else ())]
        while not interrupt.requested and concurrent.futures.wait(paid, POLL_S).not_done:
            pass
        raise
    except BaseException:
        for one in (current, *([lookahead] if lookahead else ())):
            one.cancel()
        raise
    groups = sorted((g for g in current.groups if _key(g) in current.judgements), key=_key)
    times = {"time/sample_s": current.sample_s, "time/teacher_wait_s": waited_s}
    return groups, [current.judgements[_key(g)] for g in groups], times


def _wait(
    current: PendingStep,
    interrupt: Interrupt,
    report: Report,
    lookahead: PendingStep | None,
    update: StreamedUpdate | None,
    patience_s: float,
    outage: Outage,
) -> float:
    """Until the step is judged, or only stragglers are left: sum a portion, else sample ahead, else wait.

    Every host runs this loop the same number of times: `PendingStep.collect` and `Interrupt.check` are collective, and
    the decisions between them depend only on what all hosts know.

    Returns: seconds spent waiting for the teacher with nothing else to do.
    """
    waited_s, worked, begin = 0.0, True, time.monotonic()
    with contextlib.ExitStack() as idle:
        while True:
            looked = time.monotonic()
            for group, judgement in current.collect(0.0 if worked else POLL_S):
                if update:
                    update.add(group, judgement)
            waited_s += 0.0 if worked else time.monotonic() - looked
            unreachable = outage()
            judged = f"judged {len(current.judgements)}/{len(current.groups)} groups"
            report(f"{judged}, {unreachable}" if unreachable else judged)
            interrupt.check()
            if patience_s < math.inf and hosts.any_host(bool(unreachable)):
                begin += time.monotonic() - looked
            if not current.pending or (patience_s < math.inf and current.leaves_stragglers(begin + patience_s)):
                return waited_s
            if update and update.due(len(current.groups)):
                idle.close()
                update.work(len(current.groups))
            elif lookahead and not lookahead.sampled:
                idle.close()
                lookahead.sample()
            else:
                if worked:
                    idle.enter_context(tracing.span("idle"))
                worked = False
                continue
            worked = True


async def judge_group(judge: Judge, teacher: Teacher, group: RolloutGroup) -> Judgement:
    """The judgement of a group by ``judge``; its spans and its cost are attributed to the group's step."""
    with tracing.about(step=group.step, group=group.index), tracing.span("judged"):
        return await at_step(group.step, judge(teacher, group))


async def judge_by(method: Method, teacher: Teacher, group: RolloutGroup) -> Judgement:
    """`judge_group` by a method, with the exact grades in its rewards if ``rewards.exact_weight`` is set.

    Raises:
        UserError: the method did not return one reward or None for each rollout.
    """
    with recording() as calls:
        judgement = check_judgement(method, await judge_group(method.judge, teacher, group), group)
    judgement = dataclasses.replace(judgement, calls=calls())
    if not method.cfg.rewards.exact_weight:
        return judgement
    return await asyncio.to_thread(method.with_exact, judgement, group)  # a hostile answer can take seconds


def report_left_out(
    step: int,
    groups: Sequence[RolloutGroup],
    judgements: Sequence[Judgement],
    failed_P: Sequence[bool],
    late: DeferredGroups,
) -> None:
    """Log the groups that the step ends without: those without a score, and why; those deferred to the next step."""
    failed = [(g, j) for g, j, out in zip(groups, judgements, failed_P, strict=True) if out]
    if failed:
        causes = Counter(cause for _, j in failed for cause in j.causes if cause is not None)
        why = ", ".join(f"{cause} {n}" for cause, n in causes.most_common()) or "fewer scores than loss.min_scored"
        log.warning("step %d: %d of %d groups have no score and are left out (%s): %s", step, len(failed), len(groups),
                    why, _names(g for g, _ in failed))  # fmt: skip
    if late.groups:
        log.warning("step %d: %d groups are not judged yet and are deferred to step %d: %s", step, len(late.groups),
                    step + 1, _names(late.groups))  # fmt: skip


def _names(groups: Iterable[RolloutGroup]) -> str:
    ids = [g.prompt.id for g in groups]
    return ", ".join(ids[:4]) + (f" and {len(ids) - 4} more" if len(ids) > 4 else "")


def sync_teachers(teacher: Teacher, groups: Sequence[RolloutGroup] = ()) -> None:
    """With several hosts, share with every teacher what the others spent, answered and stored in this step."""
    if hosts.count() > 1:
        deltas = hosts.exchange(sync.delta(teacher, [g.prompt.id for g in groups]))
        sync.merge(teacher, hosts.index(), deltas)
