"""What a run carries from one step to the next besides its parameters, and how a checkpoint stores it.

A checkpoint after ``step`` steps holds the groups that cannot be sampled again: those of the next step, if it was
sampled by a policy that no longer exists (``stream.staleness=1``), and deferred groups
(``stream.straggler_timeout_s``). Their judgements are on the tape, so a resumed run sends no request twice. If the run
ends before such a step is fully sampled, the checkpoint holds that policy instead (`unsampled`), and the resumed run
samples the step from its beginning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ropd_jax.parallel import hosts
from ropd_jax.training.collect import NONE_DEFERRED, DeferredGroups, PendingStep, Send
from ropd_jax.types import Prompt, Rollout, RolloutGroup


@dataclasses.dataclass
class Pending:
    """What is in flight between steps: the only mutable object of the loop.

    Attributes:
        current: the current step.
        lookahead: the next step, already being sampled.
        deferred: groups of an earlier step that are still being judged.
    """

    current: PendingStep | None = None
    lookahead: PendingStep | None = None
    deferred: DeferredGroups = NONE_DEFERRED

    def take(self, step: int) -> PendingStep | None:
        """The step, if its sampling has started."""
        assert self.lookahead is None or self.lookahead.step == step
        return self.lookahead

    def start(self, current: PendingStep, *, lookahead: PendingStep | None) -> None:
        """Start a step. It takes over the deferred groups, so that a checkpoint finds each group once."""
        current.receive(self.deferred)
        self.current, self.lookahead, self.deferred = current, lookahead, NONE_DEFERRED

    def cancel(self) -> None:
        """Cancel all outstanding requests to the teacher."""
        for step in (self.current, self.lookahead):
            if step is not None:
                step.cancel()
        for future in self.deferred.waiting:
            future.cancel()

    def unsampled(self, step: int) -> PendingStep | None:
        """The step, if it is not fully sampled and the policy that samples it exists nowhere else."""
        return next((p for p in (self.current, self.lookahead) if p and p.step == step and p.policy is not None), None)


def pending_state(
    step: int, pending: Pending, *, stale: bool, send: bool = True, sample: bool = True
) -> dict[str, Any]:
    """The part of ``pending`` that a checkpoint after ``step`` steps holds, as JSON.

    Args:
        stale: steps are sampled by the policy before; the rest of the next step is sampled now.
        send: see `PendingStep.sample`.
        sample: False drops the groups of a step that is not fully sampled; see `Pending.unsampled`.
    """
    here = next((p for p in (pending.current, pending.lookahead) if p and p.step == step), None)
    if here and stale:
        while sample and here.sample(send=send):
            pass
        stale = here.sampled
    groups = [*(here.groups if here else ()), *pending.deferred.groups]
    own = [g for g in groups if g.step == step] if stale else []
    return {
        "ahead": stored(own),
        "ahead_sample_s": here.sample_s if here and own else 0.0,
        "carried": stored([g for g in groups if g.step < step]),
    }


def pending_ids(host: Mapping[str, Any]) -> set[str]:
    """The ids of the prompts whose groups a checkpoint holds."""
    return {row["prompt"] for name in ("ahead", "carried") for row in host.get(name, ())}


def restore_pending(
    step: int, host: Mapping[str, Any], prompts: Mapping[str, Prompt], tokens: Mapping[str, np.ndarray], send: Send
) -> Pending:
    """The inverse of `pending_state`, from what a checkpoint holds; deferred groups are sent to the teacher again."""
    own, late = (restored(host.get(name, ()), prompts, tokens) for name in ("ahead", "carried"))
    lookahead = None
    if own:
        lookahead = PendingStep(step, iter(own), send)
        lookahead.sample_s = host["ahead_sample_s"]
    return Pending(None, lookahead, DeferredGroups(late, {send(g): g for g in late if hosts.is_local(g.index)}))


def stored(groups: Sequence[RolloutGroup]) -> list[dict[str, Any]]:
    """Sampled groups as JSON, without loss."""
    return [
        {
            "prompt": g.prompt.id,
            "step": g.step,
            "index": g.index,
            "rollouts": [
                {
                    "tokens": r.tokens_T.tolist(),
                    "logp": r.logp_T.tolist(),  # float32 -> float64 -> its shortest decimal: lossless
                    "text": r.text,
                    "finish_reason": r.finish_reason,
                }
                | ({} if r.drawn_logp_T is None else {"drawn_logp": r.drawn_logp_T.tolist()})
                | ({"opened": True} if r.opened else {})
                for r in g.rollouts
            ],
        }
        for g in groups
    ]


def restored(
    rows: Sequence[Mapping[str, Any]], prompts: Mapping[str, Prompt], tokens: Mapping[str, np.ndarray]
) -> list[RolloutGroup]:
    """The groups that `stored` wrote; ``prompts`` and their ``tokens`` by the prompt's id."""
    return [
        RolloutGroup(
            prompts[row["prompt"]],
            np.asarray(tokens[row["prompt"]], np.int32),
            tuple(
                Rollout(np.asarray(r["tokens"], np.int32), np.asarray(r["logp"], np.float32), r["text"],
                        r["finish_reason"],
                        np.asarray(r["drawn_logp"], np.float32) if "drawn_logp" in r else None,
                        r.get("opened", False))
                for r in row["rollouts"]
            ),
            row["step"],
            row["index"],
        )
        for row in rows
    ]  # fmt: skip
