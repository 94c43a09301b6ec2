"""Stored groups for tests of the viewer, written by the same log as a run's."""

from __future__ import annotations

import pathlib

import numpy as np

from ropd_jax.types import Criterion, Judgement, Message, Prompt, Rollout, RolloutGroup, Rubric
from ropd_jax.workdir.groups import GroupsLog

RUBRIC = Rubric(
    (Criterion("c1", "Adds the first two numbers.", 1, "Step"), Criterion("c2", "Ends with 5.", 3, "Final"))
)
T, F = True, False


def write_group(
    run: pathlib.Path,
    step: int,
    passed=((T, T), (T, F), None),
    *,
    texts=("2 + 3 = 5\nAnswer: 5", "2 + 3 = 6\nAnswer: 6", "Answer: 5"),
    question="What is 2 + 3?",
    gold="5",
    rubric=RUBRIC,
    reference="So 5.\nAnswer: 5",
    reference_passed=((T, T),),
    causes=None,
    finish="stop",
    index=0,
):
    """Writes a step of one group (or adds one): three answers, the last one unscored."""
    rewards = tuple(None if p is None else rubric.score(p) for p in passed)
    causes = causes or tuple("malformed" if p is None else None for p in passed)
    known = [r for r in rewards if r is not None]
    mean = sum(known) / len(known) if known else 0.0
    tokens = np.zeros(4, np.int32)
    rollouts = tuple(Rollout(tokens, np.zeros(4, np.float32), text, finish) for text in texts)
    group = RolloutGroup(Prompt(f"sum-{step}-{index}", (Message("user", question),), answer=gold), tokens, rollouts,
                         step, index)  # fmt: skip
    judgement = Judgement(rewards, causes, (reference,), rubric, tuple(passed), reference_passed)
    pushes = [None if r is None else r - mean for r in rewards]
    path = run / "groups" / f"step_{step:06d}.jsonl"
    before = path.read_text() if path.exists() else ""
    GroupsLog(run).write(step, [group], [judgement], [pushes])
    path.write_text(before + path.read_text())
    return path
