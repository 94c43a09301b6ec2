"""One run, top to bottom: prompts -> rollouts -> references, rubric, verdicts -> rewards -> advantages -> update.

Read `main` from its first banner to its last; `make_update` stands just above it. State is a value: parameters,
optimizer state and a few host numbers, and everything random is a function of (seed, step, prompt, rollout).
A run that is killed at any moment and started again ends with the same parameters, bit for bit (on CPU).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import functools
import logging
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ropd_jax import mesh as mesh_lib
from ropd_jax import report
from ropd_jax.checkpoint import Checkpoints
from ropd_jax.checks import check_config, check_finite, check_length
from ropd_jax.core.losses import kl_k3, token_weights
from ropd_jax.core.masked import masked_max, masked_sum
from ropd_jax.core.optim import make_optimizer
from ropd_jax.data.batches import TrainBatch, make_batch, split_parts
from ropd_jax.data.prompts import PromptStream
from ropd_jax.data.questions import Questions, load_questions
from ropd_jax.evaluation.heldout import evaluate
from ropd_jax.figures import curves_png
from ropd_jax.methods import Method, load_method
from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.models.logprobs import token_logprobs
from ropd_jax.sampling.engine import EngineConfig, sample_groups
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.student import load_student
from ropd_jax.summary import make_result, step_metrics
from ropd_jax.teacher import BudgetError, Teacher, TeacherLoop, at_step
from ropd_jax.teacher.build import providers
from ropd_jax.teacher.failures import FailureGate, TooManyFailures
from ropd_jax.types import Judgement, Prompt, RolloutGroup, UserError
from ropd_jax.workdir import Interrupt, Interrupted, claim

log = logging.getLogger(__name__)


class State(NamedTuple):
    """What an update changes."""

    params: dict
    opt_state: optax.OptState


# -------------------------------------------------------------------------------------------------------- judge


def judge_step(
    groups, method: Method, teacher: Teacher, loop: TeacherLoop, interrupt: Interrupt, say: Callable[[str], None]
) -> tuple[list[RolloutGroup], list[Judgement], dict[str, float]]:
    """Send each group to the teacher the moment it is sampled; return all in prompt order once all are judged.

    Raises:
        ConfigurationError: the teacher cannot work at all (a wrong key, an unknown model); nothing more is sent.
        Interrupted: the user asked to stop; what is in flight is cancelled.
    """
    waiting: dict[concurrent.futures.Future, RolloutGroup] = {}
    start = time.monotonic()
    try:
        for group in groups:
            waiting[loop.submit(at_step(group.step, method.judge(teacher, group)))] = group
            say(f"sampled {len(waiting)} groups")
            interrupt.check()
        sampled = time.monotonic()
        pending = set(waiting)
        while pending:
            done, pending = concurrent.futures.wait(
                pending, timeout=0.2, return_when=concurrent.futures.FIRST_EXCEPTION
            )
            for future in done:
                future.result()
            say(f"judged {len(waiting) - len(pending)}/{len(waiting)} groups")
            interrupt.check()
    except BudgetError:
        concurrent.futures.wait(waiting)  # nothing new is sent; what is in flight is paid for and goes on the tape
        raise
    except BaseException:
        for future in waiting:
            future.cancel()
        raise
    judged = sorted(((g, f.result()) for f, g in waiting.items()), key=lambda pair: pair[0].index)
    times = {"time/sample_s": sampled - start, "time/teacher_wait_s": time.monotonic() - sampled}
    return [g for g, _ in judged], [j for _, j in judged], times


def reward_arrays(judgements: list[Judgement]) -> tuple[np.ndarray, np.ndarray]:
    """(reward_PG, valid_PG): NaN and False where unscored, so that an unscored reward can be used nowhere unseen."""
    reward_PG = np.array([[np.nan if r is None else r for r in j.rewards] for j in judgements], np.float32)
    return reward_PG, ~np.isnan(reward_PG)


# ------------------------------------------------------------------------------------------------------- update


def make_update(cfg: ConfigDict, model_cfg: ModelConfig, method: Method, tx: optax.GradientTransformation):
    """The jitted update: (state, ref_params, batch [A, b, T]) -> (state, metrics).

    The gradient is accumulated over the A parts; the token weights are those of the whole batch, so it equals the
    gradient of one pass over all rows. ``ref_params`` is the initial student, or None without a KL term.
    """

    def logprobs(params, part: TrainBatch):
        x_BTD = transformer.hidden(
            model_cfg,
            params,
            part.tokens_BT,
            part.positions_BT,
            part.segments_BT,
            dtype=jnp.dtype(cfg.student.dtype),
            remat=cfg.optim.remat,
        )
        return token_logprobs(
            model_cfg,
            params,
            x_BTD,
            part.targets_BT,
            temperature=cfg.sampling.temperature or 1.0,
            chunk=cfg.optim.logprob_chunk,
        )

    def part_loss(params, ref_params, part: TrainBatch, weight_BT):
        logp_BT, entropy_BT = logprobs(params, part)
        mask_BT, active_BT = part.mask_BT, part.informative_BT
        loss_BT, extra = method.loss(logp_BT, part)
        loss = masked_sum(weight_BT * loss_BT, active_BT)
        gap_BT = jnp.abs(logp_BT - part.old_logp_BT)
        sums = {"entropy": masked_sum(entropy_BT, mask_BT), "logp_gap": masked_sum(gap_BT, mask_BT)}
        sums |= {name: masked_sum(x_BT, mask_BT) for name, x_BT in extra.items()}
        if cfg.loss.kl_coef:
            ref_logp_BT = jax.lax.stop_gradient(logprobs(ref_params, part)[0])
            kl_BT = kl_k3(logp_BT, ref_logp_BT)
            loss += cfg.loss.kl_coef * masked_sum(weight_BT * kl_BT, active_BT)
            sums["kl"] = masked_sum(kl_BT, mask_BT)
        gap_max = jnp.maximum(masked_max(jax.lax.stop_gradient(gap_BT), mask_BT), 0.0)
        return loss, (sums, gap_max)

    @functools.partial(jax.jit, donate_argnums=(0,))
    def update(state: State, ref_params, batch: TrainBatch):
        weight_ABT = token_weights(batch.mask_BT, cfg.loss.aggregation)

        def accumulate(grads, xs):
            part, weight_BT = xs
            (loss, aux), g = jax.value_and_grad(part_loss, has_aux=True)(state.params, ref_params, part, weight_BT)
            return jax.tree.map(jnp.add, grads, g), (loss, aux)

        grads = jax.tree.map(jnp.zeros_like, state.params)
        grads, (loss_A, (sums_A, gap_max_A)) = jax.lax.scan(accumulate, grads, (batch, weight_ABT))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        tokens = jnp.maximum(jnp.sum(batch.mask_BT), 1).astype(jnp.float32)
        metrics = {f"update/{name}": jnp.sum(x_A) / tokens for name, x_A in sums_A.items()}
        metrics |= {
            "update/loss": jnp.sum(loss_A),
            "update/logp_gap_max": jnp.max(gap_max_A),
            "update/grad_norm": optax.tree.norm(grads),
            "update/tokens": tokens,
        }
        return State(params, opt_state), metrics

    return update


def update_step(update, state: State, ref_params, rows, advantages, mesh, cfg: ConfigDict, length: int):
    """Cut the step into its mini-batches (by prompt), update on each; a mini-batch without gradient is skipped."""
    per_prompt = advantages.advantage_PG.shape[1]
    flat = [np.asarray(x).reshape(-1) for x in advantages]
    everything: list[dict[str, float]] = []
    for part in np.array_split(np.arange(len(rows)).reshape(-1, per_prompt), cfg.optim.minibatches):
        at = part.reshape(-1)
        batch = make_batch([rows[i] for i in at], *(x[at] for x in flat), length)
        if not batch.informative_BT.any():  # AdamW would move on its momentum alone
            continue
        batch = split_parts(batch, cfg.optim.microbatch, multiple=mesh.shape["fsdp"])
        spec = mesh_lib.RULES.spec("ABT")
        placed = TrainBatch(*(jax.device_put(x, jax.NamedSharding(mesh, spec)) for x in batch))
        state, metrics = update(state, ref_params, placed)
        everything.append({k: float(v) for k, v in metrics.items()})
    means = {k: float(np.mean([m[k] for m in everything])) for k in (everything[0] if everything else ())}
    return state, means | {"update/count": len(everything)}


# --------------------------------------------------------------------------------------------------------- main


def main(cfg: ConfigDict, workdir: str | pathlib.Path) -> int:
    """Run (or go on with) the experiment.

    Returns: 0 finished, 3 the teacher failed too often, 4 a budget is spent, 130 stopped by the user.
    """
    workdir = pathlib.Path(workdir)
    interrupt = Interrupt()
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


def _run(cfg: ConfigDict, workdir: pathlib.Path, interrupt: Interrupt, stack: contextlib.ExitStack) -> int:
    started = time.monotonic()

    # --- what the user gave: all of it is checked before anything is compiled or written
    check_config(cfg)
    gate = FailureGate(cfg.teacher.max_failed_frac, cfg.teacher.failed_window)
    loop = stack.enter_context(contextlib.closing(TeacherLoop()))
    teacher = None  # the scripted one needs the data; of any other a missing API key is said first of all
    if "scripted" not in providers(cfg.teacher):
        teacher = make_teacher(cfg, [], workdir)
    method = load_method(cfg.method, cfg)
    rule = SamplingRule(cfg.sampling.temperature, cfg.sampling.top_k, cfg.sampling.top_p)
    mesh = mesh_lib.make_mesh(cfg.mesh.fsdp, cfg.mesh.tp)
    student = load_student(cfg.student.checkpoint, chat_template=cfg.student.chat_template)
    mesh_lib.check_divides(student.cfg, mesh)
    train, held = load_questions(cfg, student.tokenizer)
    stream = PromptStream(train.prompts, cfg.data.prompts_per_step, cfg.seed)
    longest = max(len(t) for q in (train, held) for t in q.tokens_of(q.prompts))
    prompt_len = -(-longest // 16) * 16  # one length for the whole run, so that each function compiles once
    check_length(prompt_len, cfg, student.cfg)
    teacher = teacher or make_teacher(cfg, train.prompts, workdir)
    teacher.check_references(train.prompts)
    loop.on_close(teacher.close)
    claim(workdir, cfg.to_dict())

    # --- mesh, parameters, optimizer
    stack.enter_context(jax.set_mesh(mesh))
    specs = mesh_lib.RULES.storage(student.params)
    tx = make_optimizer(
        lr=cfg.optim.lr,
        schedule=cfg.optim.schedule,
        warmup_steps=cfg.optim.warmup_steps,
        total_steps=cfg.steps * cfg.optim.minibatches,
        b1=cfg.optim.b1,
        b2=cfg.optim.b2,
        eps=cfg.optim.eps,
        weight_decay=cfg.optim.weight_decay,
        clip_norm=cfg.optim.clip_norm,
    )
    params = mesh_lib.put(student.params, mesh, specs)
    ref_params = jax.tree.map(jnp.copy, params) if cfg.loss.kl_coef else None
    state = State(params, jax.jit(tx.init)(params))
    update = make_update(cfg, student.cfg, method, tx)

    # --- sampling
    common = dict(prompt_len=prompt_len, max_tokens=cfg.sampling.max_tokens, chunk=cfg.sampling.chunk,
                  stop_ids=student.tokenizer.stop_ids, stop=tuple(cfg.sampling.stop), dtype=cfg.student.dtype,
                  cache_dtype=cfg.sampling.cache_dtype)  # fmt: skip

    def side_by_side(prompts: int) -> int:  # idle rows fill the mesh up
        return -(-prompts // mesh.shape["fsdp"]) * mesh.shape["fsdp"]

    at_once = side_by_side(cfg.sampling.prompts_at_once or cfg.data.prompts_per_step)
    engine = EngineConfig(rollouts=cfg.sampling.rollouts, prompts=at_once, rule=rule, **common)
    common |= dict(rollouts=1, prompts=side_by_side(cfg.eval.prompts_at_once))
    eval_engines = {"accuracy": EngineConfig(rule=SamplingRule(0.0), **common)}
    if cfg.eval.sampled:
        eval_engines["sampled_accuracy"] = EngineConfig(rule=rule, **common)

    def sample(engine: EngineConfig, params, prompts, questions: Questions, *, seed: int, step: int):
        interrupt.check()
        for group in sample_groups(
            student.cfg, engine, params, student.tokenizer, prompts, questions.tokens_of(prompts), seed=seed, step=step
        ):
            yield group
            interrupt.check()

    # --- checkpoint
    checkpoints = stack.enter_context(
        contextlib.closing(Checkpoints(workdir / "checkpoints", keep=cfg.checkpoint.keep))
    )
    host: dict[str, Any] = {"groups_total": 0, "groups_unscored": 0, "seconds": 0.0, "before": None, "teacher": None}
    checkpoints.check_room(state)
    first = checkpoints.latest() or 0
    if first:
        state, host = checkpoints.restore(first, state)
        teacher.restore(host["teacher"])
        gate.restore(host["failures"])
    if first == cfg.steps and (workdir / "result.json").exists():
        log.info("%s is finished; its result:", workdir)
        report.show_result(report.read_result(workdir))
        return 0

    def save(step: int):
        seconds = host["seconds"] + time.monotonic() - started
        checkpoints.save(step, state, host | {"teacher": teacher.state(), "failures": gate.state(), "seconds": seconds})

    # --- loop
    metrics_log = report.Metrics(workdir, start_step=first + 1 if first else 0, tensorboard=cfg.log.tensorboard)
    stack.enter_context(contextlib.closing(metrics_log))
    groups_log = report.GroupsLog(workdir)
    progress = stack.enter_context(report.Progress(cfg.steps, start=first))

    def evaluated(step: int, n: int) -> dict[str, Any]:
        metrics = evaluate(sample, eval_engines, state.params, held, n, progress.say)
        metrics_log.log(step, metrics)
        progress.note(metrics)
        return metrics

    done = first
    try:
        if host["before"] is None:
            host["before"] = evaluated(0, len(held.prompts))
        for step in range(first, cfg.steps):
            if step and step % cfg.eval.every == 0 and not metrics_log.holds(step, "eval/accuracy"):
                evaluated(step, cfg.eval.size or len(held.prompts))
            begin = time.monotonic()
            prompts = stream.batch(step)
            if method.needs_rollouts:
                groups = sample(engine, state.params, prompts, train, seed=cfg.seed, step=step)
            else:
                groups = (RolloutGroup(p, train.tokens[p.id], (), step, i) for i, p in enumerate(prompts))
            groups, judgements, metrics = judge_step(groups, method, teacher, loop, interrupt, progress.say)

            reward_PG, valid_PG = reward_arrays(judgements)
            advantages = method.advantages(reward_PG, valid_PG, step)
            metrics |= step_metrics(groups, judgements, advantages, reward_PG, valid_PG, metrics["time/sample_s"])

            rows = [
                s for g, j in zip(groups, judgements, strict=True) for s in method.sequences(g, j, student.tokenizer)
            ]
            progress.say("update")
            before_update = time.monotonic()
            state, update_metrics = update_step(
                update, state, ref_params, rows, advantages, mesh, cfg, prompt_len + cfg.sampling.max_tokens
            )
            metrics |= update_metrics | {"time/update_s": time.monotonic() - before_update}
            done = step + 1
            host["groups_total"] += len(groups)
            failed_P = (~np.asarray(advantages.valid_PG)).all(axis=1)
            host["groups_unscored"] += int(failed_P.sum())
            for judgement, failed in zip(judgements, failed_P, strict=True):
                gate.add(judgement.causes, failed=bool(failed))
            metrics |= gate.as_metrics()
            metrics |= teacher.metrics(step)
            if cfg.log.groups and method.needs_rollouts:
                groups_log.write(step, groups, judgements, np.asarray(advantages.advantage_PG).tolist())
            check_finite(update_metrics, step, workdir, rows, advantages)

            metrics["time/step_s"] = time.monotonic() - begin
            metrics_log.log(done, metrics)
            progress.step(done, metrics)
            gate.check()
            if done % cfg.checkpoint.every == 0 or done == cfg.steps:
                save(done)
            interrupt.check()
        after = evaluated(cfg.steps, len(held.prompts))
    except (Interrupted, UserError):
        save(done)
        log.warning("saved a checkpoint after step %d", done)
        raise

    # --- result
    result = make_result(cfg, host, after, len(held.prompts), host["seconds"] + time.monotonic() - started, teacher)
    report.write_result(workdir, result)
    path = curves_png(workdir)
    stack.callback(report.show_result, result)  # after the progress bar has gone
    stack.callback(log.info, "curves: %s", path)
    return 0


def make_teacher(cfg: ConfigDict, prompts: list[Prompt], workdir: pathlib.Path | None = None) -> Teacher:
    """The config's teacher; without a workdir it has no tape of the run.

    A scripted one without a book owns the textbook of the training data, where it has one.
    """
    scripted = cfg.teacher.scripted
    book = [(p.question, p.solution) for p in prompts if p.solution] if not scripted.book else None
    return Teacher.from_config(cfg, seed=cfg.seed, book=book, share=1 / jax.process_count(), workdir=workdir)
