"""The streamed update: judged groups are summed into the gradient while the teacher judges the rest.

    StreamedUpdate.add      a group has been judged
    StreamedUpdate.due      whether enough groups for a portion have been judged ...
    StreamedUpdate.work     ... sums them: numerators into the gradient, tokens and sequences into the counts
    StreamedUpdate.finish   divides once by the total weight, then takes the optimizer step

A portion is ``stream.groups`` groups; the programs are compiled for a full portion. For 6 groups in portions of 2,
summed in the order of the prompts, with group 1 judged late::

    judged      0   2   3          1          5   4
    due         no  no  no         0,1        2,3 -> 4,5
                                   work       work  work      finish

The state does not change before `StreamedUpdate.finish`, so a run can stop at any moment. With
``stream.deterministic`` the groups are summed in the order of the prompts, and the update is bit for bit the same in
whatever order the judgements arrive (on CPU). Without it, groups are summed as they arrive: same sum, other rounding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ropd_jax.core.advantages import Advantages
from ropd_jax.core.batches import EMPTY, real_frac
from ropd_jax.methods import Method
from ropd_jax.methods.base import without_overlong
from ropd_jax.text.tokenizer import Tokenizer
from ropd_jax.training.sections import OverlapConfig, RunConfig, UpdateConfig
from ropd_jax.training.update import Notes, Portions, State, has_gradient, means_of, on_mesh, step_parts
from ropd_jax.types import Judgement, RolloutGroup
from ropd_jax.utils import tracing


def why_not_streaming(cfg: RunConfig, method: Method) -> str:
    """Why ``stream.groups`` has no effect, so that the update waits for the whole step; "" if it has an effect."""
    if not cfg.overlap.groups:
        return ""
    if not method.by_group:
        return f"the rewards or advantages of method {type(method).__name__} depend on all groups of a step"
    if cfg.sampling.resample:
        return "sampling.resample replaces groups once all are judged"
    if cfg.optim.minibatches > 1:
        return f"optim.minibatches={cfg.optim.minibatches} changes the policy within the step"
    return ""


def uses_streaming(cfg: RunConfig, method: Method) -> bool:
    """Whether the update is computed in portions of ``stream.groups``."""
    return bool(cfg.overlap.groups) and not why_not_streaming(cfg, method)


class StreamedUpdate:
    """The update of one step.

    Args:
        programs: `make_portions`.
        state: before the step; unchanged until `finish`.
        ref_params: the initial student, or None if no term of the loss reads it.
        base: the frozen student under adapters, or None.
        length: maximum number of tokens in a sequence.
        told: scores the rows under the method's other prompts (`scoring.Told`).
    """

    def __init__(
        self,
        programs: Portions,
        state: State,
        *,
        ref_params: Any,
        base: Any,
        method: Method,
        mesh: jax.sharding.Mesh,
        cfg: UpdateConfig,
        overlap: OverlapConfig,
        step: int,
        length: int,
        tokenizer: Tokenizer,
        told: Notes | None = None,
    ):
        self._state, self.seconds = state, 0.0
        self._programs, self._ref_params, self._base = programs, ref_params, base
        self._method, self._mesh, self._step = method, mesh, step
        self._cfg, self._overlap = cfg, overlap
        self._length, self._tokenizer, self._told = length, tokenizer, told
        self._arrived: dict[int, tuple[RolloutGroup, Judgement]] = {}  # by place in the summing order
        self._summed = 0  # places below this one have been summed
        self._grads: Any = None
        self._counted: list[dict[str, float]] = []
        self._known: list[dict[str, float]] = []  # metrics of the contexts
        self._has_gradient = False

    def add(self, group: RolloutGroup, judgement: Judgement) -> None:
        """Add a group that has been judged; each group of a step is added once."""
        place = group.index if self._overlap.deterministic else len(self._arrived)
        assert place not in self._arrived, f"group {group.index} of step {group.step} was added twice"
        self._arrived[place] = (group, judgement)

    def due(self, expected: int) -> bool:
        """Whether the next portion can be summed; ``expected`` is the number of groups in the step."""
        places = self._next(expected)
        return bool(places) and all(i in self._arrived for i in places)

    def work(self, expected: int) -> None:
        """Sum the next portion."""
        begin, places = time.monotonic(), self._next(expected)
        with tracing.span("update"):
            self._sum([self._arrived[i] for i in places])
        self._summed = places.stop
        self.seconds += time.monotonic() - begin

    def finish(self) -> tuple[State, dict[str, float]]:
        """(state after the step, metrics). Without a gradient the state stays: AdamW would move by its momentum."""
        assert self._summed == len(self._arrived), f"{len(self._arrived) - self._summed} groups were not summed"
        if not self._has_gradient:
            return self._state, {"update/count": 0}
        begin, parts = time.monotonic(), self._counted
        total = {k: float(np.sum([p[k] for p in parts])) for k in parts[0]}
        with tracing.span("update"):
            state, norm = self._programs.apply(self._state, self._grads, total["weight"])
            self._grads = None
        self.seconds += time.monotonic() - begin
        tokens = max(total["tokens"], 1.0)
        special = ("loss", "weight", "tokens", "gap_max", "real_frac")
        return state, {f"update/{k}": v / tokens for k, v in total.items() if k not in special} | {
            "update/loss": total["loss"] / max(total["weight"], 1.0),
            "update/logp_gap_max": max(p["gap_max"] for p in parts),
            "update/grad_norm": float(norm),
            "update/tokens": tokens,
            "update/real_frac": total["real_frac"] / len(parts),
            "update/count": 1,
            **means_of(self._known),
        }

    def _next(self, expected: int) -> range:
        """Places of the next portion."""
        return range(self._summed, min(self._summed + self._overlap.groups, expected))

    def _sum(self, portion: Sequence[tuple[RolloutGroup, Judgement]]) -> None:
        groups, judgements = zip(*portion, strict=True)
        method, state = self._method, self._state
        advantages = method.step_advantages(groups, judgements, self._step)
        rows = [s for g, j in portion for s in method.sequences(g, j, self._tokenizer)]
        if self._cfg.loss.overlong == "mask":
            advantages = without_overlong(advantages, groups, rows)
        missing = (self._overlap.groups - len(groups)) * method.sequences_per_prompt  # the last portion can be short
        padded_B = Advantages(*(np.pad(np.asarray(x).reshape(-1), (0, missing)) for x in advantages))
        rows += [EMPTY] * missing
        batch = step_parts(rows, padded_B, method, self._mesh, self._cfg.optim, self._length)
        notes, known = self._told(state.params, rows, padded_B) if self._told else ({}, {})
        if self._grads is None:
            self._grads = self._programs.zeros(state.params)
        self._grads, counted = self._programs.add(
            self._grads,
            state.params,
            self._ref_params,
            *on_mesh(batch, method, state.method, self._mesh, notes),
            self._base,
        )
        self._has_gradient |= has_gradient(batch, self._cfg.loss)
        self._counted.append({k: float(v) for k, v in counted.items()} | {"real_frac": real_frac(batch)})
        self._known.append(known)
