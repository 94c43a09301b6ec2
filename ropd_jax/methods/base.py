"""What a method is: the few places where ROPD and its rivals differ. A new one is one file in this folder.

A step calls a method in this order:

1. `Method.judge`: the teacher's judgement of one group (asyncio, on the teacher's loop, group by group)
2. `Method.revise`: what the method's own networks add to the judgements of the step (nothing, for most)
3. `Method.rewards` and `Method.advantages`, called by `Method.step_advantages`: rewards of all groups -> advantages.
4. `Method.sequences`: the token sequences that the student is trained on.
   A method with `Method.contexts` gives each of them other prompts, under which the policy scores the completion.
5. `Method.extras`: what frozen networks compute for the tokens of the update's batch (nothing, for most)
6. `Method.loss`: the loss of each token, from the student's log-probs. Traced by jit.

and once, before the first step, `Method.check_student` and `Method.setup`. The defaults here are GRPO on the student's
own rollouts, with every switch of ``cfg.loss``; a rollout that the teacher failed to score is out of all of it.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ropd_jax.core import advantages as advantages_lib
from ropd_jax.core import losses
from ropd_jax.core.advantages import Advantages
from ropd_jax.core.batches import TokenSequence, TrainBatch
from ropd_jax.core.rewards import overlong_penalty, with_exact
from ropd_jax.data.grader import gradable, grade
from ropd_jax.types import Judgement, Prompt, RolloutGroup

if TYPE_CHECKING:
    from ropd_jax.models.config import ModelConfig
    from ropd_jax.teacher import Teacher
    from ropd_jax.text.tokenizer import Tokenizer
    from ropd_jax.weights.student import Student

START = "start_logp"  # name of `Tokens.start_logp_BT` among the extras


class Tokens(NamedTuple):
    """What a loss may read; every array is of one part of the batch, traced by jit.

    Attributes:
        batch: the tokens, their masks, old log-probs and advantages. Rows may hold several sequences.
        logp_BT: float32, log-probs of the targets under the student that is trained.
        entropy_BT: float32, its entropy in nats; a gradient flows through it only with ``loss.entropy_coef``.
        ref_logp_BT: the same under the initial student; None unless ``Method.needs_initial`` or ``loss.kl_coef``.
        extras: what `Method.extras` gives for these tokens, by name.
        shared: what it gives once for all parts.
        cfg, params, x_BTD: the student's shape, weights and hidden states before the final norm, for a loss over the
            whole vocabulary (`ropd_jax.models.logprobs`).
    """

    batch: TrainBatch
    logp_BT: jax.Array
    entropy_BT: jax.Array
    ref_logp_BT: jax.Array | None = None
    extras: Mapping[str, jax.Array] = {}
    shared: Any = ()
    cfg: ModelConfig | None = None
    params: Any = None
    x_BTD: jax.Array | None = None

    def told(self, name: str) -> tuple[jax.Array, jax.Array]:
        """(logp_BT, known_BT): log-probs of the targets under the policy told the context ``name``, and where they are
        known; 0 elsewhere. Of the policy before the update, without a gradient."""
        logp_BT = self.extras[f"told/{name}"]
        known_BT = self.batch.mask_BT & ~jnp.isnan(logp_BT)
        return jnp.where(known_BT, logp_BT, 0.0), known_BT

    def divergence(self, name: str) -> tuple[jax.Array, jax.Array]:
        """(divergence_BT, known_BT): in nats, of the student from the same policy told the context ``name``, as
        `Method.divergence` wants it, and where it is known; 0 elsewhere. The gradient flows through the student only.
        """
        return self.extras[f"divergence/{name}"], self.extras[f"known/{name}"]

    @property
    def start_logp_BT(self) -> jax.Array:
        """Log-probs under the policy before the step's first update: `START` of the extras where the step has several
        updates, else the present ones; the present ones also for tokens that were not sampled."""
        now_BT = jax.lax.stop_gradient(self.logp_BT)
        return jnp.where(jnp.isnan(self.batch.old_logp_BT), now_BT, self.extras.get(START, now_BT))

    @property
    def old_logp_BT(self) -> jax.Array:
        """Log-probs under the policy that sampled; the present ones for tokens that were not sampled (NaN): ratio 1."""
        old_BT = self.batch.old_logp_BT
        return jnp.where(jnp.isnan(old_BT), jax.lax.stop_gradient(self.logp_BT), old_BT)


class Divergence(NamedTuple):
    """How the policy is compared with itself told another prompt, over more than the sampled token.

    Attributes:
        beta: 1 for the reverse KL, 0 for the forward KL, between them the generalised JSD
            (`models.divergence.jensen_shannon`).
        context: most tokens that another prompt adds.
        top_k: the classes are the k tokens that are likeliest when told, and all others as one; 0: every token.
    """

    beta: float
    context: int
    top_k: int = 0


class Extras(NamedTuple):
    """What `Method.extras` adds to a batch: arrays [A, b, T, ...] by name, and anything shared by all parts."""

    tokens: Mapping[str, Any] = {}
    shared: Any = ()


class ExtraProgram(NamedTuple):
    """A program that a method runs in each step in addition to the update, for ``ropd plan``.

    Attributes:
        lower: () -> jax.stages.Lowered.
        model: the config of the network that it runs.
        calls: calls in one step.
        parts: iterations of its loop in one call.
        tokens: positions that one call computes.
        row: positions of one row of them.
        trains: it runs backward as well.
    """

    name: str
    lower: Callable[[], Any]
    model: ModelConfig
    calls: int
    parts: int
    tokens: int
    row: int
    trains: bool


class ExtraMemory(NamedTuple):
    """What a method keeps in memory in addition to the student, as shapes with shardings, and the programs on it."""

    arrays: Any = ()
    programs: tuple[ExtraProgram, ...] = ()


@dataclasses.dataclass(eq=False)
class Method(abc.ABC):
    """GRPO on rewards that `judge` gives.

    Attributes:
        cfg: the run's whole config.
        needs_rollouts: the student samples; without, groups arrive with no rollouts.
        asks: calls of the teacher by role for one group: the roles whose keys and prices a run needs. ``reference``
            counts as ``teacher.references`` calls the first time that a prompt is seen.
        asks_once: roles among them that are called once per prompt rather than once per group.
    """

    cfg: ConfigDict
    needs_rollouts: ClassVar[bool] = True
    asks_once: ClassVar[frozenset[str]] = frozenset({"reference"})

    def __post_init__(self) -> None:  # noqa: B027
        """Check the method's own settings; raise UserError for what cannot work, before anything is loaded."""

    @property
    def asks(self) -> Mapping[str, int]:
        return {"reference": 1, "rubric": 1, "verify": 1}

    @property
    def exact_rewards(self) -> bool:
        """Whether a reward is the exact grade of the answer, which free-text gold answers do not give."""
        return False

    @property
    def takes_exact(self) -> bool:
        """Whether ``rewards.exact_weight`` can add the exact grade to what `judge` gives: a rubric's or judge's reward
        that the student is trained on."""
        return self.needs_rollouts and not self.exact_rewards

    @property
    def needs_initial(self) -> bool:
        """True if the loss reads ``Tokens.ref_logp_BT``."""
        return False

    @property
    def contexts(self) -> tuple[str, ...]:
        """Names of the other prompts under which the policy scores its own completions (`TokenSequence.told`)."""
        return ()

    @property
    def divergence(self) -> Divergence | None:
        """What the loss reads about `contexts`: None for the log-probs of the sampled tokens (`Tokens.told`), else how
        whole distributions are compared (`Tokens.divergence`)."""
        return None

    @property
    def sequences_per_prompt(self) -> int:
        return self.cfg.sampling.rollouts

    @property
    def by_group(self) -> bool:
        """True if rewards and advantages of a group depend only on that group.

        Then its gradient can be summed before the others are judged (`training.accumulate`). A method that overrides
        `revise`, `rewards` or `advantages` sets it itself.
        """
        return all(getattr(type(self), name) is getattr(Method, name) for name in ("revise", "rewards", "advantages"))

    @property
    def teaches_text(self) -> bool:
        """True if `sequences` contains texts by the teacher; array shapes must not depend on their lengths."""
        return not self.needs_rollouts

    def check_student(self, student: Student, mesh: jax.sharding.Mesh) -> None:  # noqa: B027
        """Checks whether the method can train this student, before weights are read (its parameters are empty).

        Raises:
            UserError: what the config asks for cannot work.
        """

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027
        """Checks whether the training prompts have what the method needs, before weights are read.

        Raises:
            UserError: naming a prompt that lacks it.
        """

    def setup(self, student: Student, mesh: jax.sharding.Mesh | None) -> Any:
        """Called once, before the first step. Returns the arrays that the method trains; checkpoints contain them.

        What never changes (a frozen teacher) can be kept on ``self``.

        Raises:
            UserError: what the config asks for cannot work.
        """
        return ()

    @abc.abstractmethod
    async def judge(self, teacher: Teacher, group: RolloutGroup) -> Judgement:
        """The teacher's judgement of one group. What it fails to answer is unscored, with a cause; never 0.0."""

    def with_exact(self, judgement: Judgement, group: RolloutGroup) -> Judgement:
        """The judgement with the exact grade of each answer in its reward (``rewards.exact_weight``).

        A prompt whose answers have no exact grade (`grader.gradable`) keeps the method's rewards. Of another, an answer
        that the grader leaves ungraded is unscored, and so is what the method left unscored.
        """
        weight = self.cfg.rewards.exact_weight
        if not weight:
            return judgement
        if not gradable(group.prompt):
            return dataclasses.replace(judgement, exact=(None,) * len(judgement.rewards))
        exact = tuple(grade(group.prompt, r.answer) for r in group.rollouts)
        rewards, causes = with_exact(judgement.rewards, judgement.causes, exact, weight)
        return dataclasses.replace(
            judgement, rewards=rewards, causes=causes, exact=exact, method_rewards=judgement.rewards
        )

    def revise(
        self, trained: Any, groups: Sequence[RolloutGroup], judgements: Sequence[Judgement], tokenizer: Tokenizer
    ) -> tuple[Any, Sequence[Judgement], dict[str, float]]:
        """(arrays of `setup` after this step, judgements, metrics): the step's turn of the method's own networks."""
        return trained, judgements, {}

    def rewards(self, groups: Sequence[RolloutGroup], judgements: Sequence[Judgement]) -> tuple[np.ndarray, np.ndarray]:
        """(reward_PG, valid_PG): NaN and False if unscored, so that an unscored reward cannot be used unnoticed.

        With ``loss.overlong="shape"`` it includes the penalty for overlong answers.
        """
        reward_PG = np.array([[np.nan if r is None else r for r in j.rewards] for j in judgements], np.float32)
        if self.cfg.loss.overlong == "shape":
            for p, group in enumerate(groups):
                punished = self.overlong_penalties(group)
                reward_PG[p, : len(punished)] += punished
        return reward_PG, ~np.isnan(reward_PG)

    def overlong_penalties(self, group: RolloutGroup) -> np.ndarray:
        """What ``loss.overlong="shape"`` adds to the reward of each rollout, from -1 to 0; float32 [G]."""
        most, buffer = self.cfg.sampling.max_tokens, self.cfg.loss.overlong_buffer
        penalties = [
            overlong_penalty(len(r.tokens_T), max_tokens=most, buffer=buffer, truncated=r.finish_reason == "length")
            for r in group.rollouts
        ]
        return np.array(penalties, np.float32)

    def advantages(self, reward_PG: np.ndarray, valid_PG: np.ndarray, step: int) -> Advantages:
        """Advantages of a step from its rewards (NaN where ``valid_PG`` is False)."""
        loss = self.cfg.loss
        return advantages_lib.group_advantages(
            reward_PG, valid_PG, normalize_std=loss.normalize_std, min_scored=loss.min_scored
        )

    def step_advantages(self, groups: Sequence[RolloutGroup], judgements: Sequence[Judgement], step: int) -> Advantages:
        """Advantages of judged groups: `advantages` of their `rewards`. For a method that needs more than one number a
        rollout."""
        return self.advantages(*self.rewards(groups, judgements), step)

    def sequences(self, group: RolloutGroup, judgement: Judgement, tokenizer: Tokenizer) -> list[TokenSequence]:
        """The `sequences_per_prompt` sequences to train on, in the order of the advantages."""
        return [TokenSequence(group.prompt_tokens_T, r.tokens_T, r.logp_T) for r in group.rollouts]

    @property
    def loss_key(self) -> Hashable | None:
        """What the traced loss depends on: methods with equal keys share a compiled update. None: it is not shared.

        None is the default for a method with its own loss. Override it with a key of the settings that the loss reads.
        """
        own = any(
            getattr(type(self), name) is not getattr(Method, name) for name in ("loss", "surrogate", "needs_initial")
        )
        how = (self.cfg.loss.to_json(sort_keys=True), self.cfg.stream.to_json(sort_keys=True))
        return None if own else (*how, self.off_policy)

    @property
    def off_policy(self) -> bool:
        """Whether rollouts can come from another policy than the one that the step's update begins with: an older one,
        or the same in another engine, whose log-probs differ by rounding."""
        stream = self.cfg.stream
        return bool(stream.staleness or stream.straggler_timeout_s) or self.cfg.sampling.engine != "own"

    def extras(self, trained: Any, batch: TrainBatch) -> Extras:
        """Further arrays that the loss reads about the batch's tokens; ``batch`` is [A, b, T], on the host."""
        return Extras()

    def extra_memory(
        self, model: ModelConfig, batch: TrainBatch, prompt_len: int, read: Callable[[str], ModelConfig]
    ) -> ExtraMemory:
        """As shapes, for ``ropd plan``: what `setup` would leave in memory, and the programs of `revise` and `extras`.

        Args:
            model: the student's config.
            batch: shapes of an update's batch, on the student's mesh.
            prompt_len: positions of the longest prompt.
            read: the config of a checkpoint by its name.
        """
        return ExtraMemory()

    def abstract_extras(self, batch: TrainBatch) -> Extras:
        """What `extras` would return for a batch of these shapes, as ShapeDtypeStructs; call `extra_memory` first."""
        return Extras()

    def loss(self, tokens: Tokens) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(loss_BT, metrics_BT): token losses, and token values whose means are logged."""
        return self.surrogate(tokens, tokens.batch.advantage_BT)

    def surrogate(self, tokens: Tokens, advantage_BT: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The policy loss of ``cfg.loss`` for these advantages: clipped (token or sequence ratio), weighted or both."""
        loss, batch = self.cfg.loss, tokens.batch
        logp_BT, old_BT = tokens.logp_BT, tokens.old_logp_BT
        clips = dict(clip_low=loss.clip_low, clip_high=loss.clip_high, dual_clip=loss.dual_clip)
        cap = loss.is_cap or (self.cfg.stream.cap if self.off_policy else 0.0)
        if cap and loss.is_clip:
            loss_BT, clipped_BT, capped_BT = losses.weighted_clip_loss(
                logp_BT, tokens.start_logp_BT, old_BT, advantage_BT, cap=cap, **clips
            )
            return loss_BT, {"clip_frac": clipped_BT, "capped_frac": capped_BT}
        if cap:
            loss_BT, capped_BT = losses.truncated_is_loss(logp_BT, old_BT, advantage_BT, cap=cap)
            return loss_BT, {"capped_frac": capped_BT}
        if loss.ratio == "sequence":
            logp_BT, old_BT = losses.sequence_logp(logp_BT, old_BT, batch.mask_BT, batch.segments_BT)
        loss_BT, clipped_BT = losses.policy_loss(logp_BT, old_BT, advantage_BT, **clips)
        return loss_BT, {"clip_frac": clipped_BT}


def without_overlong(
    advantages: Advantages, groups: Sequence[RolloutGroup], rows: Sequence[TokenSequence]
) -> Advantages:
    """DAPO's overlong filtering: answers cut at the limit leave the loss; they stay in their group's baseline.

    Args:
        rows: what is trained on, `Method.sequences` of all groups; a text of the teacher's in a rollout's place stays.
    """
    advantage_PG, valid_PG, informative_PG = (np.asarray(x) for x in advantages)
    cut = {id(r.tokens_T) for g in groups for r in g.rollouts if r.finish_reason == "length"}
    cut_PG = np.array([id(row.completion_T) in cut for row in rows]).reshape(advantage_PG.shape)
    return Advantages(np.where(cut_PG, 0.0, advantage_PG), valid_PG & ~cut_PG, informative_PG & ~cut_PG)
