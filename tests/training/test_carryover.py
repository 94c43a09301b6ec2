"""What a checkpoint stores of groups in flight."""

from __future__ import annotations

import concurrent.futures

from ropd_jax.training.carryover import Pending, pending_state, restore_pending
from ropd_jax.training.collect import DeferredGroups, PendingStep
from tests.training.test_accumulate import group


def never(group):
    """A request that is never answered."""
    return concurrent.futures.Future()


def ids(rows):
    return [(row["step"], row["index"]) for row in rows]


def test_a_stop_in_the_middle_of_a_step_keeps_each_deferred_group_once():
    pending = Pending(deferred=DeferredGroups([group(1, step=0)], {never(None): group(1, step=0)}))
    step = PendingStep(1, iter([group(0, step=1), group(1, step=1)]), never)
    pending.start(step, lookahead=None)
    while step.sample():
        pass
    host = pending_state(1, pending, stale=False)
    assert ids(host["carried"]) == [(0, 1)] and host["ahead"] == []
    groups = [group(0, step=1), group(1, step=0)]
    prompts, tokens = {g.prompt.id: g.prompt for g in groups}, {g.prompt.id: g.prompt_tokens_T for g in groups}
    back = restore_pending(1, host, prompts, tokens, never)
    assert [(g.step, g.index) for g in back.deferred.groups] == [(0, 1)] and len(back.deferred.waiting) == 1


def test_a_step_sampled_by_a_policy_that_is_gone_is_completed_and_kept():
    pending = Pending(lookahead=PendingStep(2, iter([group(0, step=2), group(1, step=2)]), never))
    pending.lookahead.sample()
    host = pending_state(2, pending, stale=True, send=False)
    assert ids(host["ahead"]) == [(2, 0), (2, 1)]
    assert ids(pending_state(2, pending, stale=False)["ahead"]) == []  # on-policy, it is sampled again
