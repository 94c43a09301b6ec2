"""A run, built: everything that the loop needs and that no step changes. `training.setup` makes it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ropd_jax.data.questions import Questions
from ropd_jax.data.stream import PromptStream
from ropd_jax.methods import Method
from ropd_jax.models.lora import attach
from ropd_jax.sampling.engine import EngineConfig, sample_groups
from ropd_jax.sampling.weights import moved
from ropd_jax.teacher import Teacher
from ropd_jax.training.accumulate import StreamedUpdate
from ropd_jax.training.benchmarks import RunBenchmark
from ropd_jax.training.collect import PendingStep, Send
from ropd_jax.training.rescore import Changes, changes_of, start_logprobs
from ropd_jax.training.sections import RunConfig
from ropd_jax.training.served import ServedPolicy
from ropd_jax.training.update import Notes, Portions, State, update_step
from ropd_jax.types import Prompt, RolloutGroup
from ropd_jax.utils import tracing
from ropd_jax.weights.student import Student
from ropd_jax.workdir.place import Place
from ropd_jax.workdir.token_logprobs import BEFORE_AFTER


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is checked, loaded and built; nothing has been written yet.

    Attributes:
        cfg: the config, frozen. ``raw`` is the same config as nested JSON values, for ``config.json``.
        place: where its files are.
        mesh: of the update; ``sample_mesh``: of the sampler, the same unless the config says otherwise.
        student: shape and tokenizer; its parameters are in the `State`.
        base: the frozen weights under adapters, or None.
        ref_params: the initial student, or None if no term of the loss reads it.
        train, heldout: the questions, tokenized on access.
        prompts: selects the questions of each step.
        engine: of the rollouts; ``eval_engines``: of the held-out evaluation, by the name of their metric.
        update: the jitted update of a whole mini-batch; ``portions``: of one in portions, or None without streaming.
        length: maximum number of tokens in a sequence.
        told: gives an update the scores or rows under other prompts (`Method.contexts`); None if the method has none.
        benchmarks: those of ``eval.benchmarks``.
        judged: held-out answers that ``teacher.judge`` grades; 0 without such a judge.
        biased: the scripted judge has biases, so gold rewards are logged too.
        calibration: the verifier's entry in the report ``teacher.calibration``; None without a report.
        contents: hashes of the files that the config names (`workdir.contents`).
        forked_from: the run and step whose checkpoint this run started from; None is ``student.checkpoint``.
        served: samples in place of the built-in sampler, if ``sampling.engine`` is a server.
    """

    cfg: RunConfig
    raw: Mapping[str, Any]
    place: Place
    method: Method
    teacher: Teacher
    mesh: jax.sharding.Mesh
    sample_mesh: jax.sharding.Mesh
    student: Student
    base: Any
    ref_params: Any
    train: Questions
    heldout: Questions
    prompts: PromptStream
    engine: EngineConfig
    eval_engines: Mapping[str, EngineConfig]
    update: Callable
    portions: Portions | None
    length: int
    judged: int
    told: Notes | None = None
    biased: bool = False
    benchmarks: tuple[RunBenchmark, ...] = ()
    calibration: Mapping[str, Any] | None = None
    contents: Mapping[str, str] = dataclasses.field(default_factory=dict)
    forked_from: Mapping[str, Any] | None = None
    served: ServedPolicy | None = None

    @property
    def steps(self) -> int:
        return self.cfg.steps

    def evaluations(self, step: int) -> tuple[str, ...]:
        """Names of the evaluations that are due after ``step`` steps: ``accuracy``, then ``eval.benchmarks``."""
        how, ends = self.cfg.eval, step in (0, self.steps)
        accuracy = ("accuracy",) if self.heldout.prompts and (ends or step % how.every == 0) else ()
        return accuracy + (tuple(how.benchmarks) if ends or step % how.benchmark_steps == 0 else ())

    def policy(self, params: Any) -> Any:
        """The student with these trained parameters: they are all of it, or adapters on the frozen base."""
        return attach(self.cfg.lora, self.base, params)

    def sample(
        self,
        engine: EngineConfig,
        params: Any,
        prompts: Sequence[Prompt],
        questions: Questions,
        *,
        seed: int,
        step: int,
        version: int,
        check: Callable[[], None],
    ) -> Iterator[RolloutGroup]:
        """Groups of answers by the policy of ``params``, each yielded when its last rollout ends. ``check`` is called
        between two chunks of tokens and can stop the sampling by raising. ``version``: updates applied to ``params``.
        """
        tokens = questions.tokens_of(list(prompts))
        if self.served is not None:
            groups = self.served.sample(
                engine, params, prompts, tokens, seed=seed, step=step, version=version,
                trains=questions is self.train, check=check,
            )  # fmt: skip
        else:
            policy = self.policy(params)
            if self.sample_mesh is not self.mesh:
                policy = moved(policy, engine.dtype, self.sample_mesh)
            groups = sample_groups(
                self.student.cfg, engine, policy, self.student.tokenizer, prompts, tokens,
                seed=seed, step=step, check=check,
            )  # fmt: skip
        while True:  # the mesh is set only for the sampler, not for the caller's code between two groups
            with jax.set_mesh(self.sample_mesh):
                group = next(groups, None)
            if group is None:
                return
            tracing.moved()
            yield group

    def begin(
        self,
        step: int,
        params: Any,
        send: Send,
        check: Callable[[], None],
        prompts: Sequence[Prompt] | None = None,
        *,
        keep_policy: bool = False,
    ) -> PendingStep:
        """A step whose groups are to be sampled by ``params`` and sent by ``send``; nothing is sampled yet.

        Args:
            check: see `sample`.
            prompts: None for those of the step.
            keep_policy: ``params`` belong to the previous step, so a checkpoint has to hold them
                (`PendingStep.policy`).
        """
        prompts = self.prompts.batch(step) if prompts is None else prompts
        if self.method.needs_rollouts:
            groups = self.sample(
                self.engine, params, prompts, self.train, seed=self.cfg.seed, step=step,
                version=step - keep_policy, check=check,
            )  # fmt: skip
        else:
            tokens = self.train.tokens_of(prompts)
            groups = (RolloutGroup(p, t, (), step, i) for i, (p, t) in enumerate(zip(prompts, tokens, strict=True)))
        return PendingStep(step, groups, send, policy=params if keep_policy else None)

    def begin_lookahead(self, step: int, state: State, send: Send, check: Callable[[], None]) -> PendingStep | None:
        """The step after ``step``, sampled by the policy before this step's update (``stream.staleness``), or None."""
        if not self.cfg.overlap.staleness or step + 1 == self.steps:
            return None
        params = jax.tree.map(jnp.copy, state.params)  # the update donates the originals
        return self.begin(step + 1, params, send, check, keep_policy=True)

    def patience_s(self, step: int) -> float:
        """How long a step waits for its last groups before it defers them; the last step defers none."""
        timeout_s = self.cfg.overlap.straggler_timeout_s
        return timeout_s if timeout_s and step + 1 < self.steps else math.inf

    def streamed_update(self, state: State, step: int) -> StreamedUpdate | None:
        """An update that sums groups as they are judged, or None if the update waits for the whole step."""
        if self.portions is None:
            return None
        return StreamedUpdate(
            self.portions, state, ref_params=self.ref_params, base=self.base, method=self.method, mesh=self.mesh,
            cfg=self.cfg.update, overlap=self.cfg.overlap, step=step, length=self.length,
            tokenizer=self.student.tokenizer, told=self.told,
        )  # fmt: skip

    def token_changes(self, state: State, groups: Sequence[RolloutGroup]) -> Changes | None:
        """The change of the rollouts' log-probs by the update to ``state`` (`rescore`); None if not configured."""
        how = self.cfg.log
        if not how.groups or how.token_logprobs != BEFORE_AFTER or not self.method.needs_rollouts:
            return None
        with tracing.span("rescore"):
            return changes_of(
                self.cfg.update, self.student.cfg, state.params, self.base, groups, self.mesh, self.length
            )

    def whole_update(self, state: State, rows, advantages) -> tuple[State, dict[str, float]]:
        """(state, metrics) after the step's mini-batches; see `update_step`."""
        start = None
        if self.cfg.loss.is_clip and self.cfg.optim.minibatches > 1:
            start = functools.partial(start_logprobs, self.cfg.update, self.student.cfg, self.base, self.mesh)
        with tracing.span("update"):
            return update_step(
                self.update, state, self.ref_params, rows, advantages, self.method, self.mesh, self.cfg.optim,
                self.cfg.loss, self.length, told=self.told, start=start,
            )  # fmt: skip
