"""What an order of calls can reach: a step's groups as chains of calls (rubric, then verification) on some slots.

    bound           max(longest chain, total work / slots): no schedule is shorter
    clairvoyant     a list schedule that knows all latencies and starts the longest remaining chain first
    online_bound    a lower bound for every order that does not know the latencies (and never cancels a call)
    policies        orders that only know the position of a call in its group

``online_bound``: assume that verifications use no slots, and give a slot that becomes free to the next rubric at once.
Then no rubric starts later than under any order that must take the rubrics as they come, since unknown chains cannot be
told apart. So the latest start + chain is never above that order's makespan.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence

Chain = tuple[float, float]  # seconds of the rubric and of the verification
Policy = Callable[
    [int, int, int, int], tuple
]  # (stage, group, rubrics waiting, verifications waiting) -> smaller first

POLICIES: Mapping[str, Policy] = {  # ties: first come, first served
    "finished first": lambda stage, group, rubrics, verifications: (-stage,),
    "longest first": lambda stage, group, rubrics, verifications: (stage,),
    "first come": lambda stage, group, rubrics, verifications: (),
    "whatever waits most": lambda stage, group, rubrics, verifications: ((stage == 0) != (rubrics >= verifications),),
}


def bound(chains: Sequence[Chain], slots: int) -> float:
    """Seconds that no schedule can beat."""
    return max(max(map(sum, chains)), sum(map(sum, chains)) / slots)


def online_bound(chains: Sequence[Chain], slots: int) -> float:
    """Seconds that an order without knowledge of the latencies cannot beat; at least ``bound``."""
    free, latest = [0.0] * slots, 0.0
    for chain in chains:
        start = heapq.heappop(free)
        heapq.heappush(free, start + chain[0])
        latest = max(latest, start + sum(chain))
    return max(latest, bound(chains, slots))


def clairvoyant(chains: Sequence[Chain], slots: int) -> float:
    """Makespan when the longest remaining chain always goes first."""
    return makespan(chains, slots, lambda stage, group, *_: (-sum(chains[group][stage:]),))[0]


def makespan(chains: Sequence[Chain], slots: int, policy: Policy) -> tuple[float, float]:
    """(end of the last group, mean end of a group) in seconds; all groups are available from the start."""
    waiting = [(0, group) for group in range(len(chains))]
    running: list[tuple[float, int, int]] = []
    now, ends = 0.0, []
    while waiting or running:
        while waiting and len(running) < slots:
            rubrics = sum(stage == 0 for stage, _ in waiting)
            counts = (rubrics, len(waiting) - rubrics)
            stage, group = min(waiting, key=lambda call: policy(*call, *counts))
            waiting.remove((stage, group))
            heapq.heappush(running, (now + chains[group][stage], stage, group))
        now, stage, group = heapq.heappop(running)
        if stage == 0:
            waiting.append((1, group))
        else:
            ends.append(now)
    return now, sum(ends) / len(ends)
