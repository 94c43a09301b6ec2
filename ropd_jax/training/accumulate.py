"""The update in a stream: judged groups are summed into the gradient while the teacher still reads the others.

    StreamedUpdate.take     a group has been judged
    StreamedUpdate.due      enough groups for a portion are there ...
    StreamedUpdate.work     ... and are added: numerators to the gradient, tokens and sequences to the counts
    StreamedUpdate.finish   the whole is divided once, and the optimizer steps

A portion is ``stream.groups`` groups; the programs' shapes are those of a full one. Until the step is complete nothing
of the state has changed, so a run may stop at any moment. ``stream.deterministic`` sums in the order of the prompts:
then the update is bit for bit the same however the answers came in (on CPU). Without, it sums in the order of arrival:
the same sum, rounded another way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ropd_jax.core.batches import TokenSequence, real_frac
from ropd_jax.methods import Method
from ropd_jax.methods.base import without_overlong
from ropd_jax.training.update import Portions, State, on_mesh, step_parts
from ropd_jax.types import Judgement, Prompt, Rollout, RolloutGroup
from ropd_jax.utils import tracing

EMPTY = TokenSequence(np.zeros(1, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))


def whole_because(cfg: ConfigDict, method: Method) -> str:
    """Why ``stream.groups`` cannot be used, so that the update waits for the whole step; "" where it can."""
    if not cfg.stream.groups:
        return ""
    if not method.by_group:
        return f"method={cfg.method} has rewards or advantages that hang on all groups"
    if cfg.sampling.resample:
        return "sampling.resample replaces groups once all are judged"
    if cfg.optim.minibatches > 1:
        return f"optim.minibatches={cfg.optim.minibatches} changes the policy within the step"
    return ""


def streams(cfg: ConfigDict, method: Method) -> bool:
    """Whether the update comes in portions of ``stream.groups``."""
    return bool(cfg.stream.groups) and not whole_because(cfg, method)


class StreamedUpdate:
    """The update of one step.

    Args:
        programs: `make_portions`.
        state: before the step; it stays as it is until `finish`.
        length: most tokens of a sequence.
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
        cfg: ConfigDict,
        step: int,
        length: int,
        tokenizer: Any,
    ):
        self._state, self.seconds = state, 0.0
        self._programs, self._ref_params, self._base = programs, ref_params, base
        self._method, self._mesh, self._cfg, self._step = method, mesh, cfg, step
        self._length, self._tokenizer = length, tokenizer
        self._arrived: dict[int, tuple[RolloutGroup, Judgement]] = {}  # by its place in the order of the sum
        self._added = 0
        self._grads: Any = None
        self._counted: list[dict[str, float]] = []
        self._informative = False

    def take(self, group: RolloutGroup, judgement: Judgement) -> None:
        """A group has been judged; each of a step comes once."""
        place = group.index if self._cfg.stream.deterministic else len(self._arrived)
        assert place not in self._arrived, f"group {group.index} of step {group.step} came twice"
        self._arrived[place] = (group, judgement)

    def due(self, expected: int) -> bool:
        """Whether the next portion is complete; ``expected`` groups are in the step, all told."""
        places = self._next(expected)
        return bool(places) and all(i in self._arrived for i in places)

    def work(self, expected: int) -> None:
        """Add the next portion."""
        begin, places = time.monotonic(), self._next(expected)
        with tracing.span("update"):
            self._add([self._arrived[i] for i in places])
        self._added = places.stop
        self.seconds += time.monotonic() - begin

    def finish(self) -> tuple[State, dict[str, float]]:
        """(state after the step, metrics). Without any gradient nothing changes: AdamW would move on its momentum."""
        assert self._added == len(self._arrived), f"{len(self._arrived) - self._added} groups are not in the sum"
        if not self._informative:
            return self._state, {"update/count": 0}
        begin, parts = time.monotonic(), self._counted
        total = {k: float(np.sum([p[k] for p in parts])) for k in parts[0]}
        with tracing.span("update"):
            state, norm = self._programs.apply(self._state, self._grads, total["weight"])
            norm, self._grads = float(norm), None
        self.seconds += time.monotonic() - begin
        tokens = max(total["tokens"], 1.0)
        special = ("loss", "weight", "tokens", "gap_max", "real_frac")
        return state, {f"update/{k}": v / tokens for k, v in total.items() if k not in special} | {
            "update/loss": total["loss"] / max(total["weight"], 1.0),
            "update/logp_gap_max": max(p["gap_max"] for p in parts),
            "update/grad_norm": norm,
            "update/tokens": tokens,
            "update/real_frac": total["real_frac"] / len(parts),
            "update/count": 1,
        }

    def _next(self, expected: int) -> range:
        """Places of the next portion."""
        return range(self._added, min(self._added + self._cfg.stream.groups, expected))

    def _add(self, portion: Sequence[tuple[RolloutGroup, Judgement]]) -> None:
        groups, judgements = zip(*portion, strict=True)
        method, state = self._method, self._state
        advantages = method.advantages(*method.rewards(groups, judgements), self._step)
        rows = [s for g, j in portion for s in method.sequences(g, j, self._tokenizer)]
        if self._cfg.loss.overlong == "mask":
            advantages = without_overlong(advantages, groups, rows)
        missing = (self._cfg.stream.groups - len(groups)) * method.sequences_per_prompt
        flat = [np.pad(np.asarray(x).reshape(-1), (0, missing)) for x in advantages]
        batch = step_parts(rows + [EMPTY] * missing, *flat, method, self._mesh, self._cfg, self._length)
        if self._grads is None:
            self._grads = self._programs.zeros(state.params)
        self._grads, counted = self._programs.add(
            self._grads,
            state.params,
            self._ref_params,
            *on_mesh(batch, method, state.method, self._mesh),
            self._base,
        )
        self._informative |= bool(batch.informative_BT.any())
        self._counted.append({k: float(v) for k, v in counted.items()} | {"real_frac": real_frac(batch)})


# --------------------------------------------------------------------------------------- groups in a checkpoint


def stored(groups: Sequence[RolloutGroup]) -> list[dict[str, Any]]:
    """Sampled groups as JSON, exactly: those that no later policy could sample again."""
    return [
        {
            "prompt": g.prompt.id,
            "step": g.step,
            "index": g.index,
            "rollouts": [
                {
                    "tokens": r.tokens_T.tolist(),
                    "logp": r.logp_T.tolist(),  # float32 -> float64 -> its shortest decimal: comes back the same
                    "text": r.text,
                    "finish_reason": r.finish_reason,
                }
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
                        r["finish_reason"])
                for r in row["rollouts"]
            ),
            row["step"],
            row["index"],
        )
        for row in rows
    ]  # fmt: skip
