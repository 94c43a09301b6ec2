"""Rollouts by a server during a run (``sampling.engine=openai``): which weights it has, and whether they are correct.

    step t     groups that an earlier attempt at the step has left    `answers_kept`
               weights -> directory -> the server, if they are due    `ServedPolicy.sync`
               answers to the other prompts, group by group
               the first of them: the server's log-probs against the trainer's own

The *version* of a policy is its number of updates. With ``sampling.server.sync_every`` k the rollouts
of a step are up to k - 1 updates old, plus those of ``stream.staleness``. In both cases the importance weights of the
update correct for it (`Method.surrogate`), because `Rollout.logp_T` are the log-probs of the policy that sampled.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ropd_jax.models.lora import Lora, merge
from ropd_jax.sampling.engine import EngineConfig
from ropd_jax.sampling.external import RolloutServer
from ropd_jax.sampling.rollouts import make_rollout, opens_thought
from ropd_jax.sampling.server_config import ServerConfig, Settings
from ropd_jax.sampling.server_reply import Answer
from ropd_jax.sampling.slots import Job
from ropd_jax.teacher import ConfigurationError
from ropd_jax.training.answers_kept import KeptAnswers, names_of
from ropd_jax.training.rescore import changes_of
from ropd_jax.training.sections import UpdateConfig
from ropd_jax.types import Prompt, Rollout, RolloutGroup
from ropd_jax.utils import tracing
from ropd_jax.utils.paths import folder_name
from ropd_jax.weights.student import Student
from ropd_jax.workdir.export import write_adapter, write_student
from ropd_jax.workdir.place import ROLLOUTS

log = logging.getLogger(__name__)
KEPT = 2  # directories of weights: the newest, and one that the server might still be reading
Check = Callable[[], None]


class ServedPolicy:
    """The student at a rollout server.

    Args:
        how: ``cfg.sampling.server``.
        update: of the run; the server's log-probs are compared with those of its forward pass.
        student: shape and tokenizer. checkpoint, template: ``student.checkpoint`` and ``student.chat_template``.
        base: the frozen weights under adapters, or None.
        length: maximum number of tokens in a sequence.
        files: the run's directory.

    Raises:
        UserError: settings that a server cannot serve.
    """

    def __init__(
        self,
        server: RolloutServer,
        how: ServerConfig,
        update: UpdateConfig,
        student: Student,
        checkpoint: str,
        template: str,
        base: Any,
        mesh: jax.sharding.Mesh,
        length: int,
        files: pathlib.Path,
    ):
        self._server, self._how, self._update = server, how, update
        self._student, self._base = student, base
        self._checkpoint, self._template = checkpoint, template
        self._mesh, self._length = mesh, length
        self._weights = _own_folder(how.weights_dir, files)
        self.kept = KeptAnswers(files / ROLLOUTS)
        self._version: int | None = None  # of the server's weights; None: they are not this run's yet
        self._written: list[pathlib.Path] = []
        self._compared: int | None = None  # version at which the log-probs were last compared
        self.gap: float | None = None  # of that comparison

    def sample(
        self,
        engine: EngineConfig,
        params: Any,
        prompts: Sequence[Prompt],
        tokens: Sequence[np.ndarray],
        *,
        seed: int,
        step: int,
        version: int,
        trains: bool,
        check: Check,
    ) -> Iterator[RolloutGroup]:
        """Groups of answers, each yielded when the server has finished it.

        Args:
            params: the trained parameters. version: updates applied to them.
            trains: True for rollouts to train on. False for evaluation: the server always gets ``params`` first.
            check: called while the server works; can stop the sampling by raising.

        Raises:
            ConfigurationError: see `RolloutServer`; or the log-probs differ from the trainer's.
        """
        found = self.kept.find(step, prompts, tokens, engine.rollouts) if trains else {}
        if found:
            log.info("step %d: %d of %d groups were already sampled", step, len(found), len(prompts))
        yield from found.values()
        rest = [place for place in range(len(prompts)) if place not in found]
        if not rest:
            return
        self.sync(params, version, check, now=not trains)
        names, stop_ids = names_of(prompts), engine.stop_ids
        want = Settings(
            engine.rollouts, engine.max_tokens, engine.rule, stop_ids, engine.stop, self._student.cfg.vocab_size
        )
        chosen = [tokens[place] for place in rest]
        asked = self._server.groups(want, chosen, [names[p] for p in rest], seed=seed, step=step, check=check)
        for number, answers in asked:
            place = rest[number]
            rollouts = tuple(rollout_of(self._student.tokenizer, engine, tokens[place], a) for a in answers)
            group = RolloutGroup(prompts[place], np.asarray(tokens[place], np.int32), rollouts, step, place)
            if trains:
                if self._how.max_gap and self._version == version != self._compared:
                    self.compare(params, group, version)
                self.kept.add(group, names[place])
            yield group

    def sync(self, params: Any, version: int, check: Check, *, now: bool = False) -> None:
        """Give the server the weights of this version if they are due; with ``now``, if it has any others."""
        how, has = self._how, self._version
        if not how.sync_every:
            self._version = 0  # the weights it was started with; never changed
            return
        if has is not None and has <= version < has + (1 if now else how.sync_every):
            return
        with tracing.span("sync"):
            self._server.settle(check)
            directory = self._write(params, version)
            self._server.load(str(directory), version)
            tracing.moved()
        self._version = version
        self._written.append(directory)
        while len(self._written) > KEPT:
            shutil.rmtree(self._written.pop(0), ignore_errors=True)

    def compare(self, params: Any, group: RolloutGroup, version: int) -> None:
        """Compare the server's log-probs of a group with those of ``params``.

        Raises:
            ConfigurationError: their mean absolute difference is above ``max_gap``; the error names the likely cause.
        """
        self._compared, self.gap = version, self._gap(self._update, params, group)
        if self.gap <= self._how.max_gap:
            log.info(
                "the server's log-probs after %d updates match the trainer's: mean |difference| %.2g per token",
                version, self.gap,
            )  # fmt: skip
            return
        raise ConfigurationError(
            f"the log-probs of the rollout server differ from the trainer's by {self.gap:.3f} per token "
            f"(sampling.server.max_gap={self._how.max_gap:g}), after {version} updates. {self._reason(params, group)}"
        )

    def _reason(self, params: Any, group: RolloutGroup) -> str:
        temperature = self._update.temperature
        if temperature != 1:
            raw = self._gap(dataclasses.replace(self._update, temperature=1.0), params, group)
            if raw <= self._how.max_gap:
                return (
                    f"They are log-probs at temperature 1, but the update needs them at sampling.temperature="
                    f"{temperature:g}: start vLLM with --logprobs-mode processed_logprobs, or set the temperature to 1"
                )
        return (
            "Expected those of the student's own weights. Probably the server has another model, has not loaded the "
            "new weights (sampling.server.sync, sync_every), or quantizes them. For a model whose bfloat16 differs by "
            "more, raise max_gap"
        )

    def _gap(self, update: UpdateConfig, params: Any, group: RolloutGroup) -> float:
        [changes] = changes_of(update, self._student.cfg, params, self._base, [group], self._mesh, self._length)
        return float(np.mean(np.abs(np.concatenate(changes))))

    def _write(self, params: Any, version: int) -> pathlib.Path:
        """A directory with the weights; its name is used once, because servers cache what they have read."""
        if not self._written:  # left by an earlier process of the run; not read any more
            shutil.rmtree(self._weights, ignore_errors=True)
        to = self._weights / f"step_{version:06d}_{secrets.token_hex(3)}"
        lora, dtype = self._update.lora, self._update.dtype
        if lora.rank and self._how.sync == "vllm_lora":
            write_adapter(to, self._checkpoint, lora, jax.device_get(params), dtype)
        else:
            whole = _merged(lora, self._base, params) if lora.rank else params
            write_student(to, self._checkpoint, self._template, jax.device_get(whole), dtype)
        return to

    def close(self) -> None:
        """Cancel requests in flight, and delete the weights, which the server has already loaded."""
        self._server.close()
        shutil.rmtree(self._weights, ignore_errors=True)


def _merged(lora: Lora, base: Any, adapters: Any) -> Any:
    return jax.jit(lambda base, adapters: merge(lora, base, adapters))(base, adapters)


def rollout_of(tokenizer, engine: EngineConfig, prompt_T: np.ndarray, answer: Answer) -> Rollout:
    """A rollout with the fields of our own sampler; stop texts are searched for here, whatever the server reports."""
    job = Job(0, 0, engine.max_tokens, answer.tokens, answer.logp, answer.logp)
    rollout = make_rollout(tokenizer, engine.stop_ids, engine.stop, job, opened=opens_thought(tokenizer, prompt_T))
    if answer.stopped and rollout.finish_reason == "length":
        raise ConfigurationError(
            f"the rollout server ended an answer after {len(answer.tokens)} tokens, without a stop token of the "
            f"student {engine.stop_ids} or a text of sampling.stop={engine.stop!r}. Serve the student's own "
            "checkpoint, and vLLM with --generation-config vllm"
        )
    return rollout


def _own_folder(weights_dir: str, files: pathlib.Path) -> pathlib.Path:
    """The directory for this run's weights."""
    own = files / "server_weights"
    if weights_dir:
        own = pathlib.Path(weights_dir).expanduser() / folder_name(str(files.absolute()))
    return own.absolute()
