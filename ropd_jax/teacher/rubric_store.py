"""The rubrics of a run by content, with their lineages, and the policy that decides when a rubric is reused.

    fresh             every group gets a rubric from its own rollouts (the paper)
    per_epoch         a prompt's rubric is used for ``epochs`` visits (passes over the data), then replaced
    until_saturated   a rubric is used until all scored rollouts of a group get the same score from it

The visits of one prompt (policy ``per_epoch``, two visits per rubric)::

    step     3      11     20     28
    rubric   A      A      B      B        find(prompt, 20) is None: A has two visits, so a new rubric B is induced

Methods in which a rubric grows (`ropd_jax.methods.evolving`) keep a *buffer* for each prompt, under any policy: the
criteria with which later visits begin.

A decision in a step depends only on earlier steps. So a repeated step makes the same decision, even if the store has
recorded a part of it. Under ``fresh`` nothing is kept, because nothing is ever looked up. Under any policy, each rubric
and its lineage are written to ``groups/*.jsonl``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

from ropd_jax.teacher.clients.errors import ConfigurationError
from ropd_jax.types import Criterion, Lineage, Rubric

POLICIES = ("fresh", "per_epoch", "until_saturated")


def text_sha(text: str) -> str:
    """First 16 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclasses.dataclass
class Visit:
    """One group of a prompt.

    Attributes:
        step: the step of the visit.
        sha: hash of the rubric that judged it.
        made: the step whose rollouts that rubric was induced from.
        saturated: all scored rollouts had the same score.
    """

    step: int
    sha: str
    made: int
    saturated: bool


@dataclasses.dataclass
class Buffer:
    """Criteria that a prompt keeps.

    Attributes:
        step: the step of the visit after which these are kept.
        sha: hash of the rubric that has them.
        persistent: how many of them, counted from the first, are never removed.
    """

    step: int
    sha: str
    persistent: int


class RubricStore:
    """Rubrics by content hash, and the visits of each prompt in the order of the steps.

    Args:
        policy: one of ``POLICIES``.
        epochs: for ``per_epoch`` only: the number of visits for which one rubric is used.

    Raises:
        ConfigurationError: the policy is unknown, or there is fewer than one visit.
    """

    def __init__(self, policy: str = "fresh", *, epochs: int = 2):
        if policy not in POLICIES:
            raise ConfigurationError(f"teacher.rubric_reuse is {policy!r}; expected one of {', '.join(POLICIES)}")
        if epochs < 1:
            raise ConfigurationError(f"teacher.rubric_epochs is {epochs}; expected at least 1 visit")
        self.policy = policy
        self._epochs = epochs
        self._rubrics: dict[str, tuple[Rubric, Lineage]] = {}
        self._visits: dict[str, list[Visit]] = {}
        self._buffers: dict[str, list[Buffer]] = {}  # the last two, because a repeated step needs the previous one

    def buffer(self, prompt_id: str, step: int) -> tuple[Rubric, int, Lineage] | None:
        """The criteria that the prompt kept before ``step``, how many of the first are persistent, and their lineage.

        None on its first visit.
        """
        known = [b for b in self._buffers.get(prompt_id, ()) if b.step < step]
        if not known:
            return None
        rubric, lineage = self._rubrics[known[-1].sha]
        return rubric, known[-1].persistent, lineage

    def keep(self, prompt_id: str, step: int, rubric: Rubric, persistent: int, lineage: Lineage) -> None:
        """Records what the prompt keeps after ``step``. A repeated step replaces its earlier record."""
        self._rubrics.setdefault(rubric.sha, (rubric, lineage))
        before = [b for b in self._buffers.get(prompt_id, ()) if b.step < step][-1:]
        self._buffers[prompt_id] = [*before, Buffer(step, rubric.sha, persistent)]

    def find(self, prompt_id: str, step: int) -> tuple[Rubric, Lineage] | None:
        """The rubric that the policy reuses for this prompt at this step, or None if a new one is needed."""
        visits = [v for v in self._visits.get(prompt_id, ()) if v.step < step]
        if self.policy == "fresh" or not visits:
            return None
        last = visits[-1]
        if self.policy == "until_saturated" and last.saturated:
            return None
        if self.policy == "per_epoch" and sum(v.made == last.made for v in visits) >= self._epochs:
            return None
        rubric, lineage = self._rubrics[last.sha]
        return rubric, dataclasses.replace(lineage, step=last.made)

    def add(self, prompt_id: str, step: int, rubric: Rubric, lineage: Lineage, *, saturated: bool) -> None:
        """Records that the rubric judged a group. A repeated step replaces its earlier record."""
        if self.policy == "fresh":
            return
        self._rubrics.setdefault(rubric.sha, (rubric, lineage))
        visits = [v for v in self._visits.get(prompt_id, ()) if v.step < step]
        self._visits[prompt_id] = [*visits, Visit(step, rubric.sha, lineage.step, saturated)]

    def delta(self, prompt_ids: Iterable[str]) -> dict:
        """The records for these prompts, with their rubrics, for `merge` into another host's store."""
        prompt_ids = list(prompt_ids)
        visits = {p: self._visits[p] for p in prompt_ids if p in self._visits}
        buffers = {p: self._buffers[p] for p in prompt_ids if p in self._buffers}
        shas = {v.sha for known in (visits, buffers) for several in known.values() for v in several}
        return {"rubrics": {sha: self._rubrics[sha] for sha in shas}, "visits": visits, "buffers": buffers}

    def merge(self, delta: dict) -> None:
        """Adds the records of another host's store."""
        for sha, known in delta["rubrics"].items():
            self._rubrics.setdefault(sha, known)
        self._visits |= delta["visits"]
        self._buffers |= delta["buffers"]

    def state(self) -> dict:
        """JSON-serializable state for a checkpoint, without unused rubrics."""
        used = {v.sha for known in (self._visits, self._buffers) for several in known.values() for v in several}
        return {
            "rubrics": [
                {"criteria": [dataclasses.astuple(c) for c in r.criteria], "lineage": dataclasses.asdict(lineage)}
                for sha, (r, lineage) in self._rubrics.items()
                if sha in used
            ],
            "visits": {p: [dataclasses.astuple(v) for v in visits] for p, visits in self._visits.items()},
            "buffers": {p: [dataclasses.astuple(b) for b in buffers] for p, buffers in self._buffers.items()},
        }

    def restore(self, state: dict) -> None:
        """Restores ``state()``."""
        self._rubrics, self._visits, self._buffers = {}, {}, {}
        for row in state["rubrics"]:
            rubric = Rubric(tuple(Criterion(*c) for c in row["criteria"]))
            self._rubrics[rubric.sha] = (rubric, lineage_from(row["lineage"]))
        for prompt_id, visits in state["visits"].items():
            self._visits[prompt_id] = [Visit(*v) for v in visits]
        for prompt_id, buffers in state.get("buffers", {}).items():  # not in checkpoints of version 0.1
            self._buffers[prompt_id] = [Buffer(*b) for b in buffers]


def lineage_of(step: int, model: str, template: str, references: Sequence[str], answers: Sequence[str]) -> Lineage:
    """The lineage of a rubric induced at ``step`` from these texts."""
    return Lineage(step, model, template, tuple(map(text_sha, references)), tuple(map(text_sha, answers)))


def lineage_from(row: dict) -> Lineage:
    """The lineage in a row from ``dataclasses.asdict`` that went through JSON."""
    return Lineage(row["step"], row["model"], row["template"], tuple(row["references"]), tuple(row["answers"]))
