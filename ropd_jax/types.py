"""Host data that crosses rooms, and the dimension key. Imports no jax.

One training step, as data (ROPD, arXiv 2605.07396, Algorithm 1)::

    Prompt --> RolloutGroup --> Rubric --> Verdicts --> Judgement --> TrainBatch --> new params

Dimension key, the only meaning these letters have as a suffix (``reward_PG``) or in an einsum:

    P  prompts of a step          G  rollouts of a prompt        B  = P*G flat sequences
    T  tokens of a sequence       C  criteria of a rubric        V  vocabulary
    L  layers                     D  model width                 N  query heads
    K  key/value heads            H  head width                  F  MLP width
    S  cache slots                A  gradient-accumulation parts
    E  experts                    R  rank of an adapter           M  pages of the cache
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np

FinishReason = Literal["stop", "length"]
Array: TypeAlias = Any  # numpy on the host, jax in a program (a tracer inside jit); this module imports no jax
THINK, END_THINK = "<think>", "</think>"  # how reasoning models mark their thoughts


class UserError(Exception):
    """A mistake of the user that one line can explain: the value, what was expected, the remedy.

    The command line prints only the message and exits with code 2.
    """


@dataclasses.dataclass(frozen=True)
class Message:
    """One chat message. ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One question to the student, and what is known about it.

    Attributes:
        id: unique in its data set, stable across runs.
        messages: the chat shown to the student; the last one is the user's.
        answer: the gold answer, for grading only. A teacher whose verdicts become rewards never sees it; the held-out
            judge sees it if it is free text.
        task: the grader and the generator of the prompt, e.g. ``chain_sum``.
        solution: a worked solution from the data set ("" if none); never shown to the student.
        metadata: what a grader needs in addition (the ``reasoning_gym`` entry, for example).
        source: the name of its source in a mixture (``data.sources``); "" if there is only one.
        templates: prompt templates of its source, by role of the teacher; other roles use the config's.
    """

    id: str
    messages: tuple[Message, ...]
    answer: str | None = None
    task: str = ""
    solution: str = ""
    metadata: dict = dataclasses.field(default_factory=dict, compare=False)
    source: str = ""
    templates: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def question(self) -> str:
        """The text that the teacher sees: the content only, or ``role: content`` of each message."""
        if len(self.messages) == 1:
            return self.messages[0].content
        return "\n\n".join(f"{m.role}: {m.content}" for m in self.messages)


def answer_of(text: str, *, opened: bool = False) -> str:
    """The answer in a text that can hold thoughts: what follows the last ``</think>``; "" if the thinking never ends.

    Args:
        opened: the chat template has opened ``<think>`` before the text, so that a text without ``</think>`` is an
            unfinished thought. If unknown, leave it False: then such a text counts as the answer.

    ::

        <think> 2+2 </think> It is 4.        ->  It is 4.
        2+2 </think> It is 4.                ->  It is 4.       the template has already opened <think>
        <think> a </think> b </think> c      ->  c
        <think> 2+2                          ->  (empty)        cut in the middle of a thought
        It is 4.                             ->  It is 4.       unchanged, spaces included
        2+2                                  ->  (empty)        opened
    """
    _, mark, rest = text.rpartition(END_THINK)
    if opened and not mark:
        return ""
    answer = rest.strip() if mark else rest
    return "" if answer.lstrip().startswith(THINK) else answer


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One answer of the student.

    Attributes:
        tokens_T: int32, the sampled tokens, including the stop token if there is one.
        logp_T: float32, log-probability of each token under the student's full distribution at the sampling
            temperature (1 if greedy), as the learner computes it.
        text: the decoded text without the stop token; it includes the thoughts of a student that thinks.
        finish_reason: ``stop`` or ``length`` (cut at the token limit).
        drawn_logp_T: float32, log-probability of each token under the distribution that it was drawn from, after top-k
            and top-p; None if it equals ``logp_T``.
        opened: the chat template ends with an open ``<think>``, so the text begins inside a thought.
    """

    tokens_T: np.ndarray
    logp_T: np.ndarray
    text: str
    finish_reason: FinishReason
    drawn_logp_T: np.ndarray | None = None
    opened: bool = False

    @property
    def answer(self) -> str:
        """The text without its thoughts (`answer_of`): what is graded, and what the teacher reads."""
        return answer_of(self.text, opened=self.opened)


@dataclasses.dataclass(frozen=True)
class RolloutGroup:
    """One prompt and its G rollouts: the unit that is sent to the teacher."""

    prompt: Prompt
    prompt_tokens_T: np.ndarray
    rollouts: tuple[Rollout, ...]
    step: int
    index: int  # place of the prompt in the step, 0..P-1


@dataclasses.dataclass(frozen=True)
class Criterion:
    """One yes/no question about one answer. ``points`` is its weight w_k, an integer 1..5."""

    id: str
    text: str
    points: int
    category: str = ""


@dataclasses.dataclass(frozen=True)
class Rubric:
    """4 to 12 weighted criteria, induced from the contrast between references and rollouts (Eq. 3)."""

    criteria: tuple[Criterion, ...]

    @property
    def weights(self) -> tuple[int, ...]:
        return tuple(c.points for c in self.criteria)

    @property
    def total(self) -> int:
        """Sum of all points; recomputed, never read from a reply."""
        return sum(self.weights)

    def score(self, passed: tuple[bool, ...]) -> float:
        """Weighted pass rate of one answer, sum(w*v)/sum(w) (Eq. 5)."""
        return sum(w for w, ok in zip(self.weights, passed, strict=True) if ok) / self.total

    @property
    def sha(self) -> str:
        """Content hash, first 16 hex digits."""
        text = json.dumps([dataclasses.astuple(c) for c in self.criteria], ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """True/false of each criterion for each answer; an answer without a verdict is *unscored*.

    Attributes:
        passed: per answer the C booleans, or None if the answer is unscored.
        causes: per answer None, or why it is unscored (``malformed``, ``missing``, ...).
        agreement: per criterion the mean share of votes that agree with the majority, None if unknown; empty
            if there was one vote.
    """

    passed: tuple[tuple[bool, ...] | None, ...]
    causes: tuple[str | None, ...]
    agreement: tuple[float | None, ...] = ()

    def scores(self, rubric: Rubric) -> tuple[float | None, ...]:
        """Weighted pass rate of each answer (`Rubric.score`), or None if unscored."""
        return tuple(None if v is None else rubric.score(v) for v in self.passed)


@dataclasses.dataclass(frozen=True)
class Repeat:
    """A second verification of the same answers and rubric, shown in another order. It changes no reward.

    Attributes:
        passed: verdicts of the second verification, rollouts first, then references.
        places: the positions of each answer in the first and in the second request, counted from 0.
    """

    passed: tuple[tuple[bool, ...] | None, ...]
    places: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Lineage:
    """Where a rubric comes from.

    Attributes:
        step: the step whose rollouts it was induced from; an earlier one if a rubric is reused.
        model: the rubricator's model, as the config names it.
        template: name and content hash of the rubricator's prompt, ``rubricator.v4@3f2a...``.
        references, answers: SHA-256 (16 hex digits) of the texts that it was induced from.
    """

    step: int
    model: str
    template: str
    references: tuple[str, ...]
    answers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Call:
    """One request to the teacher: its role, and its key on the tape (SHA-256 in hex)."""

    role: str
    key: str


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The teacher's judgement of one group.

    Attributes:
        rewards: one per rollout; None means unscored. Never 0.0 for a failure.
        causes: one per rollout; None, or why it is unscored.
        references: the teacher's own answers.
        rubric: the criteria, or None if there is no rubric (other methods, or a failure).
        passed: per rollout the C verdicts, or None.
        reference_passed: the same for the references.
        reference_models: the model that wrote each reference.
        repeat: the second verification, if there was one (``teacher.health.repeat_frac``).
        lineage: where the rubric comes from.
        weights: the weight of each criterion, if it is not its points; 0 if the criterion was dropped.
        scores: per rollout the grade that was requested instead of verdicts, or None.
        parts: per rollout its own judgement, if each rollout had its own rubric.
        agreement: per criterion how far the votes of the verifier agree (`Verdicts.agreement`); empty for one vote.
        exact: per rollout the exact grade that is part of its reward (``rewards.exact_weight``), None if it has
            none; empty if no reward has such a part.
        method_rewards: the rewards before the exact grades were added; empty if they are ``rewards``.
        calls: the requests on the tape that it is based on; empty without a tape. Not compared.
    """

    rewards: tuple[float | None, ...]
    causes: tuple[str | None, ...]
    references: tuple[str, ...] = ()
    rubric: Rubric | None = None
    passed: tuple[tuple[bool, ...] | None, ...] = ()
    reference_passed: tuple[tuple[bool, ...] | None, ...] = ()
    reference_models: tuple[str, ...] = ()
    repeat: Repeat | None = None
    lineage: Lineage | None = None
    weights: tuple[float, ...] = ()
    scores: tuple[int | None, ...] = ()
    parts: tuple[Judgement, ...] = ()
    agreement: tuple[float | None, ...] = ()
    exact: tuple[bool | None, ...] = ()
    method_rewards: tuple[float | None, ...] = ()
    calls: tuple[Call, ...] = dataclasses.field(default=(), compare=False)

    @property
    def taught(self) -> tuple[float | None, ...]:
        """The rewards as the method gave them, without exact grades."""
        return self.method_rewards or self.rewards
