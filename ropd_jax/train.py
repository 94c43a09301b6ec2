"""One run, top to bottom: prompts -> rollouts -> references, rubric, verdicts -> rewards -> advantages -> update.

Read `main` from its first banner to its last; `make_update` stands in `ropd_jax.training.update`, `judge_step` in
`ropd_jax.training.collect`.
State is a value: parameters, optimizer state and a few host numbers, and everything random is a function of (seed,
step, prompt, rollout). A run that is killed at any moment and started again ends with the same parameters, bit for bit
(on CPU).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import logging
import math
import os
import pathlib
import time
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ropd_jax.data.prompts import PromptStream
from ropd_jax.data.questions import Questions, load_questions
from ropd_jax.methods import load_method
from ropd_jax.methods.base import without_overlong
from ropd_jax.models.lora import Lora, adapted, attach, freeze, init_adapters
from ropd_jax.parallel import hosts
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.sampling.engine import EngineConfig, sample_groups
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.teacher import BudgetError, Teacher, TeacherLoop, build_teacher, sync
from ropd_jax.teacher.build import providers
from ropd_jax.teacher.traffic.tracing import ObservedClient
from ropd_jax.training.accumulate import StreamedUpdate, streams, whole_because
from ropd_jax.training.collect import (
    NOBODY,
    Flight,
    judge_group,
    judge_step,
    kept,
    meet,
    replace_equal,
    say_left_out,
    taken_up,
)
from ropd_jax.training.drift import alarms, drift_at
from ropd_jax.training.failure_gate import FailureGate, TooManyFailures
from ropd_jax.training.heldout import evaluate
from ropd_jax.training.heldout_judge import judge_heldout
from ropd_jax.training.metrics import make_result, step_metrics
from ropd_jax.training.update import State, make_portions, make_update, needs_initial, optimizer, update_step
from ropd_jax.training.validate import check_config, check_finite, check_length, check_xla_options
from ropd_jax.types import Prompt, RolloutGroup, UserError
from ropd_jax.utils import tracing
from ropd_jax.weights.student import load_student
from ropd_jax.workdir import metrics as report
from ropd_jax.workdir.checkpoint import Checkpoints
from ropd_jax.workdir.config import Interrupt, Interrupted, claim, flatten
from ropd_jax.workdir.curves import curves_png
from ropd_jax.workdir.watchdog import watching

log = logging.getLogger(__name__)


# --------------------------------------------------------------------------------------------------------- main


def main(cfg: ConfigDict, workdir: str | pathlib.Path) -> int:
    """Run (or go on with) the experiment.

    With several hosts, on each of them inside `hosts.joined`; host 0 writes the files.

    Returns: 0 finished, 3 the teacher failed too often, 4 a budget is spent, 130 stopped by the user.
    """
    workdir = pathlib.Path(workdir)
    interrupt = Interrupt(hosts.any_host)
    with interrupt.listening(), contextlib.ExitStack() as stack:
        try:
            return _run(cfg, workdir, interrupt, stack)
        except Interrupted:
            log.warning("stopped. To go on: the same command with the same --workdir %s", workdir)
            return 130
        except TooManyFailures as error:
            log.error("stopped: %s\nTo go on: the same command with the same --workdir %s", error, workdir)
            return 3
        except BudgetError as error:
            log.error("stopped: %s", error)
            return 4
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"no space left for --workdir {workdir} ({error.strerror}); the last complete checkpoint is kept: "
                    "free some space and give the same command again"
                ) from error
            raise
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            hosts.lost(error)  # ends this process if it was another host
            raise


def _run(cfg: ConfigDict, workdir: pathlib.Path, interrupt: Interrupt, stack: contextlib.ExitStack) -> int:
    started = time.monotonic()

    # --- what the user gave: all of it is checked before anything is compiled or written
    check_config(cfg)
    hosts.check_same("the config", flatten(cfg.to_dict()))
    gate = FailureGate(cfg.teacher.max_failed_frac, cfg.teacher.failed_window)
    loop = stack.enter_context(contextlib.closing(TeacherLoop()))
    method = load_method(cfg.method, cfg)
    teacher = None  # the scripted one needs the data; of any other a missing API key is said first of all
    asks = (*method.asks, *(("judge",) if cfg.teacher.judge.model else ()))
    if "scripted" not in providers(cfg.teacher, asks):
        teacher = make_teacher(cfg, [], workdir, needs=asks)
    lora = Lora.from_config(cfg.student.lora)
    rule = SamplingRule.from_config(cfg.sampling)
    check_xla_options(cfg.optim.xla_options)
    mesh = mesh_lib.make_mesh(cfg.mesh.fsdp, cfg.mesh.tp)
    student = load_student(
        cfg.student.checkpoint,
        chat_template=cfg.student.chat_template,
        enable_thinking=cfg.student.enable_thinking,
        mesh=mesh,
        dtype=lora.load_dtype,
    )
    if lora.rank:
        adapted(student.cfg, lora)
    train, held = load_questions(cfg, student.tokenizer)
    stream = PromptStream(train.prompts, cfg.data.prompts_per_step, cfg.seed)
    longest = max(len(t) for q in (train, held) for t in q.tokens_of(q.prompts))
    prompt_len = -(-longest // 16) * 16  # one length for the whole run, so that each function compiles once
    check_length(prompt_len, cfg, student.cfg)
    teacher = teacher or make_teacher(cfg, train.prompts, workdir, needs=asks)
    if "reference" in method.asks:
        teacher.check_references(train.prompts)
    loop.on_close(teacher.close)
    hosts.check_same("a prompt's tokens", {i: zlib.crc32(t) for q in (train, held) for i, t in q.tokens.items()})
    if hosts.index() == 0:
        claim(workdir, cfg.to_dict())
    sync.start(teacher, hosts.index(), hosts.exchange)

    # --- mesh, parameters, optimizer
    stack.enter_context(jax.set_mesh(mesh))
    tx = optimizer(cfg)
    params, base, trained = student.params, None, method.setup(student, mesh)
    if lora.rank:
        base, params = freeze(student.params, lora.base_dtype), init_adapters(student.cfg, lora, cfg.seed)
        params = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
        student = dataclasses.replace(student, params={})  # the base alone remains
    ref_params = (base or jax.tree.map(jnp.copy, params)) if needs_initial(cfg, method) else None
    state = State(params, jax.jit(tx.init)(params), trained)
    length = prompt_len + cfg.sampling.max_tokens
    update = functools.partial(make_update(cfg, student.cfg, method, tx), base=base)
    if why := whole_because(cfg, method):
        log.info("the update waits for the whole step: %s", why)
    portions = make_portions(cfg, student.cfg, method, tx) if streams(cfg, method) else None

    # --- sampling
    shards, stop_ids = mesh.shape["fsdp"], student.tokenizer.stop_ids
    engine = EngineConfig.from_config(cfg, prompt_len=prompt_len, stop_ids=stop_ids, shards=shards)
    eval_prompts = -(-cfg.eval.prompts_at_once // shards) * shards
    greedy = dataclasses.replace(engine, rollouts=1, prompts=eval_prompts, rule=SamplingRule(0.0))
    eval_engines = {"accuracy": greedy}
    if cfg.eval.sampled:
        eval_engines["sampled_accuracy"] = dataclasses.replace(greedy, rule=rule)

    def sample(engine: EngineConfig, params, prompts, questions: Questions, *, seed: int, step: int):
        for group in sample_groups(
            student.cfg, engine, params, student.tokenizer, prompts, questions.tokens_of(prompts), seed=seed, step=step
        ):
            tracing.moved()
            yield group

    def ask(group: RolloutGroup):
        return loop.submit(judge_group(method.judge, teacher, group))

    def launched(step: int, prompts: list[Prompt] | None = None, *, params=None) -> Flight:
        """A step that is to be sampled by ``params``, the present ones by default; not begun."""
        prompts = stream.batch(step) if prompts is None else prompts
        if method.needs_rollouts:
            policy = attach(lora, base, state.params if params is None else params)
            groups = sample(engine, policy, prompts, train, seed=cfg.seed, step=step)
        else:
            groups = (RolloutGroup(p, train.tokens[p.id], (), step, i) for i, p in enumerate(prompts))
        return Flight(step, groups, ask)

    def judged(step: int, prompts: list[Prompt]):
        return judge_step(launched(step, prompts), interrupt, progress.say)

    # --- checkpoint
    checkpoints = stack.enter_context(
        contextlib.closing(Checkpoints(workdir / "checkpoints", keep=cfg.checkpoint.keep))
    )
    host: dict[str, Any] = {"groups_total": 0, "groups_unscored": 0, "seconds": 0.0, "before": None, "teacher": None}
    flight, ahead, carried = None, None, NOBODY  # the step at hand, the next one, and slow groups on their way to it
    checkpoints.check_room(state)
    first = checkpoints.latest() or 0
    if first:
        state, saved = checkpoints.restore(first, state)
        host |= saved
        teacher.restore(host["teacher"], host=hosts.index())
        gate.restore(host["failures"])
    meet(teacher)
    if first == cfg.steps and hosts.first_says((workdir / "result.json").exists()):
        if hosts.index() == 0:
            log.info("%s is finished; its result:", workdir)
            report.show_result(report.read_result(workdir))
        return 0

    def save(step: int, *, ask: bool = True):
        meet(teacher)
        if step == checkpoints.latest():
            return
        more = kept(step, (flight, ahead), carried, stale=bool(cfg.stream.staleness), ask=ask)
        more |= {"seconds": host["seconds"] + time.monotonic() - started}
        with tracing.span("checkpoint"):
            checkpoints.save(step, state, host | more | {"teacher": teacher.state(), "failures": gate.state()})

    # --- loop
    writes = hosts.index() == 0
    metrics_log = report.Metrics(
        workdir, start_step=first + 1 if first else 0, tensorboard=cfg.log.tensorboard, write=writes
    )
    stack.enter_context(contextlib.closing(metrics_log))
    timeline = stack.enter_context(tracing.Timeline(workdir, start_step=first, write=writes).recording())
    stack.enter_context(watching(timeline, cfg.log.watchdog_s, workdir, loop.stacks))
    teacher.client = ObservedClient(teacher.client, tracing.span)
    groups_log = report.GroupsLog(workdir)
    shown_on = None if writes else stack.enter_context(open(os.devnull, "w"))  # noqa: SIM115
    progress = stack.enter_context(report.Progress(cfg.steps, start=first, file=shown_on))

    def looking(text: str):
        progress.say(text)
        interrupt.check()

    def evaluated(step: int, n: int) -> dict[str, Any]:
        answers: list[RolloutGroup] = []
        with tracing.span("evaluate"):
            metrics = evaluate(sample, eval_engines, attach(lora, base, state.params), held, n, looking, answers)
            if cfg.teacher.judge.model:
                answers = [group for group in answers if group.index < cfg.eval.judged]
                metrics |= judge_heldout(answers, step, teacher, loop, interrupt, progress.say)
        metrics_log.log(step, metrics)
        drift = drift_at(report.read_metrics(workdir), step)
        if drift is not None:
            metrics |= drift.as_metrics()
            metrics_log.log(step, drift.as_metrics())
            if drift.alarm:
                log.warning("drift: %s; look at groups/ before you trust the reward", drift)
        progress.note(metrics)
        return metrics

    done = first
    try:
        if host["before"] is None:
            host["before"] = evaluated(0, len(held.prompts))
        if first:
            ahead, carried = taken_up(first, host, {p.id: p for p in train.prompts}, train.tokens, ask)
        for step in range(first, cfg.steps):
            with tracing.about(step=step), tracing.span("step"):
                flight, ahead = ahead or launched(step), None
                due = step and step % cfg.eval.every == 0
                if due and not hosts.first_says(metrics_log.holds(step, "eval/accuracy")):
                    evaluated(step, cfg.eval.size or len(held.prompts))
                begin, last = time.monotonic(), step + 1 == cfg.steps
                if cfg.stream.staleness and not last:  # by the policy before this step's update, which takes its memory
                    ahead = launched(step + 1, params=jax.tree.map(jnp.copy, state.params))
                summed = None
                if portions:
                    summed = StreamedUpdate(
                        portions, state, ref_params=ref_params, base=base, method=method, mesh=mesh, cfg=cfg, step=step,
                        length=length, tokenizer=student.tokenizer,
                    )  # fmt: skip
                flight.receive(carried)
                patience_s = math.inf if last or not cfg.stream.straggler_timeout_s else cfg.stream.straggler_timeout_s
                groups, judgements, metrics = judge_step(
                    flight, interrupt, progress.say, ahead=ahead, update=summed, patience_s=patience_s
                )
                carried = flight.carry()
                metrics["group/carried"] = len(carried.groups)
                if cfg.sampling.resample:
                    groups, judgements, more = replace_equal(cfg, method, stream, functools.partial(judged, step), step,
                                                             groups, judgements)  # fmt: skip
                    metrics |= more
                trained, judgements, more = method.revise(state.method, groups, judgements, student.tokenizer)
                state = state._replace(method=trained)
                metrics |= more
                reward_PG, valid_PG = method.rewards(groups, judgements)
                advantages = method.advantages(reward_PG, valid_PG, step)
                metrics |= step_metrics(
                    groups, judgements, advantages, reward_PG, valid_PG, metrics["time/sample_s"], student.tokenizer
                )

                rows = [
                    s
                    for g, j in zip(groups, judgements, strict=True)
                    for s in method.sequences(g, j, student.tokenizer)
                ]
                progress.say("update")
                before_update = time.monotonic()
                if summed:
                    state, update_metrics = summed.finish()
                    update_metrics["time/update_s"] = summed.seconds
                else:
                    used = without_overlong(advantages, groups, rows) if cfg.loss.overlong == "mask" else advantages
                    with tracing.span("update"):
                        state, update_metrics = update_step(
                            update, state, ref_params, rows, used, method, mesh, cfg, length
                        )
                    update_metrics["time/update_s"] = time.monotonic() - before_update
                metrics |= update_metrics
                done = step + 1
                host["groups_total"] += len(groups)
                failed_P = (~np.asarray(advantages.valid_PG)).all(axis=1)
                host["groups_unscored"] += int(failed_P.sum())
                say_left_out(step, groups, judgements, failed_P, carried)
                for judgement, failed in zip(judgements, failed_P, strict=True):
                    gate.add(judgement.causes, failed=bool(failed))
                metrics |= gate.as_metrics()
                meet(teacher, groups)
                metrics |= teacher.metrics(step)
                if writes and cfg.log.groups and method.needs_rollouts:
                    groups_log.write(step, groups, judgements, np.asarray(advantages.advantage_PG).tolist())
                check_finite(update_metrics, step, workdir, rows, advantages)

                metrics["time/step_s"] = time.monotonic() - begin
                metrics_log.log(done, metrics)
                timeline.flush()
                progress.step(done, metrics)
                gate.check()
                if done % cfg.checkpoint.every == 0 or done == cfg.steps:
                    save(done)
                interrupt.check()
        after = evaluated(cfg.steps, len(held.prompts))
    except (Interrupted, UserError):
        save(done, ask=False)
        log.warning("saved a checkpoint after step %d", done)
        raise

    # --- result
    if not writes:
        return 0
    result = make_result(cfg, host, after, len(held.prompts), host["seconds"] + time.monotonic() - started, teacher)
    result["drift_alarms"] = alarms(report.read_metrics(workdir))
    report.write_result(workdir, result)
    path = curves_png(workdir)
    stack.callback(report.show_result, result)  # after the progress bar has gone
    stack.callback(log.info, "curves: %s", path)
    return 0


def make_teacher(
    cfg: ConfigDict,
    prompts: list[Prompt],
    workdir: pathlib.Path | None = None,
    needs: Sequence[str] = ("reference", "rubric", "verify"),
) -> Teacher:
    """The config's teacher; without a workdir it has no tape of the run.

    A scripted one without an answer key gets that of the training data, if it has one. ``needs`` are the roles
    that will be asked (`Method.asks`).
    """
    scripted = cfg.teacher.scripted
    answer_key = [(p.question, p.solution) for p in prompts if p.solution] if not scripted.answer_key else None
    share, host = 1 / hosts.count(), hosts.index()
    return build_teacher(
        cfg.teacher, seed=cfg.seed, answer_key=answer_key, share=share, host=host, workdir=workdir, needs=needs
    )
