"""One run, top to bottom: prompts -> rollouts -> judgements -> rewards -> advantages -> update.

    train            set up, resume, then one step after another, with evaluations and checkpoints in between
    train_step       one step

`training.setup` builds everything that stays the same in all steps (`Run`). `training.session` holds what surrounds the
loop: logs, progress, checkpoints, signals. The state is a value: parameters, optimizer state, and what the method
trains. All randomness is a function of (seed, step, prompt, rollout), so a run that is killed at any moment and
restarted ends with the same parameters, bit for bit (on CPU).
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ropd_jax.methods import Method
from ropd_jax.methods.base import without_overlong
from ropd_jax.parallel import hosts
from ropd_jax.training.carryover import Pending
from ropd_jax.training.collect import judge_step
from ropd_jax.training.dynamic_sampling import dynamic_sampling
from ropd_jax.training.heldout import evaluate
from ropd_jax.training.metrics import exact_grades, gold_metrics, pass_rates, source_metrics, step_metrics
from ropd_jax.training.run import Run
from ropd_jax.training.session import Session, StepReport, session
from ropd_jax.training.setup import setup
from ropd_jax.training.update import State
from ropd_jax.training.validate import all_finite
from ropd_jax.types import Judgement, Prompt, RolloutGroup
from ropd_jax.utils.logs import show_logs
from ropd_jax.workdir.one_run import Ownership, one_run
from ropd_jax.workdir.result import Result

log = logging.getLogger(__name__)


def train(
    cfg: ConfigDict, workdir: str | os.PathLike[str], *, method: str | type[Method] | None = None, fork: str = ""
) -> Result:
    """Run an experiment, or resume it from its last checkpoint; a finished one returns its result at once.

    With several hosts, call it on each of them inside `hosts.joined`.

    Args:
        cfg: see `configs.default`.
        workdir: the run's directory; created if it does not exist.
        method: overrides ``cfg.method``: a name, the path of a .py file, or a subclass of `methods.base.Method`.
        fork: ``RUN`` or ``RUN@STEP``: a new run that starts from another run's checkpoint (`training.fork`).

    Raises:
        UserError: something that the user can correct; nothing is compiled before the config is checked.
        Interrupted: stopped by Ctrl-C or SIGTERM, after a checkpoint.
        TooManyFailures: the teacher failed on too many groups, or on every group of the run; after a checkpoint.
        BudgetError: a cap of ``teacher.budget`` is reached, after a checkpoint.
        FloatingPointError: a loss, a gradient or a parameter is not finite.
        LockLost: another process has taken over the workdir (`workdir.lock`); nothing more is written.
    """
    show_logs()
    with one_run(workdir) as owner:
        return _train(cfg, workdir, method, fork, owner)


def _train(
    cfg: ConfigDict, workdir: str | os.PathLike[str], method: str | type[Method] | None, fork: str, owner: Ownership
) -> Result:
    run, state = setup(cfg, workdir, method=method, fork=fork)
    pending = Pending()
    with session(run, owner) as out:
        if result := out.finished():
            return result
        state, step = out.resume(state, pending)
        try:
            while step < run.steps:
                with out.step(step, state, pending):
                    if out.eval_due(step):
                        out.log_eval(step, evaluate(run, state, step, out))
                    state, report = train_step(run, state, pending, step, out)
                    step += 1
                    out.log_step(step, report)
                    if out.save_due(step):
                        out.save(step, state, pending)
                    out.interrupt.check()
            after = evaluate(run, state, step, out)
            out.log_eval(step, after)
        except BaseException as error:
            out.leave(error, step, state, pending)
            raise
        return out.finish(after)


def train_step(run: Run, state: State, pending: Pending, step: int, out: Session) -> tuple[State, StepReport]:
    """(the state after the step, what there is to log of it).

    Args:
        pending: the step's groups, if they are being sampled already, and the groups that earlier steps deferred; holds
            the same for the next step afterwards.
        step: 0, 1, 2, ...

    Raises:
        as `train`; until the update, nothing of the state has changed.
    """
    method, tokenizer, begin = run.method, run.student.tokenizer, time.monotonic()

    # 1. sample: a group goes to the teacher the moment its last rollout ends
    current = pending.take(step) or run.begin(step, state.params, out.send, out.check)
    pending.start(current, lookahead=run.begin_lookahead(step, state, out.send, out.check))

    # 2. judge: meanwhile sum the gradients of judged groups, then sample ahead, then wait
    streamed = run.streamed_update(state, step)
    groups, judgements, metrics = judge_step(
        current, out.interrupt, out.report,
        lookahead=pending.lookahead, update=streamed, patience_s=run.patience_s(step), outage=out.outage,
    )  # fmt: skip
    pending.deferred = current.defer()
    metrics["group/deferred"] = len(pending.deferred.groups)
    judged = list(zip(groups, judgements, strict=True))
    if rounds := run.cfg.sampling.resample:
        judge = functools.partial(judge_prompts, run, state, step, out, judged)
        groups, judgements, more = dynamic_sampling(method, run.prompts, judge, step, rounds, groups, judgements)
        metrics |= more

    # 3. rewards and advantages: an unscored rollout is NaN and invalid, never 0
    trained, judgements, more = method.revise(state.method, groups, judgements, tokenizer)
    state = state._replace(method=trained)
    metrics |= more
    reward_PG, valid_PG = method.rewards(groups, judgements)
    advantages = method.step_advantages(groups, judgements, step)
    grades = exact_grades(groups, judgements)
    metrics |= step_metrics(
        groups, judgements, advantages, reward_PG, valid_PG, metrics["time/sample_s"], tokenizer, grades
    )
    if run.biased:
        metrics |= gold_metrics(groups, judgements)
    metrics |= source_metrics(list(run.prompts.shares), groups, reward_PG, valid_PG)
    metrics |= learn_pass_rates(run, step, judged, dict(zip(map(id, groups), grades, strict=True)))

    # 4. update
    out.report("update")
    rows = [s for g, j in zip(groups, judgements, strict=True) for s in method.sequences(g, j, tokenizer)]
    before_update = time.monotonic()
    if streamed:
        state, update_metrics = streamed.finish()
        update_metrics["time/update_s"] = streamed.seconds
    else:
        used = without_overlong(advantages, groups, rows) if run.cfg.loss.overlong == "mask" else advantages
        state, update_metrics = run.whole_update(state, rows, used)
        update_metrics["time/update_s"] = time.monotonic() - before_update

    # 5. account
    metrics |= update_metrics
    finite = all_finite(state.params)
    changes = run.token_changes(state, groups)
    return state, StepReport(begin, metrics, groups, judgements, advantages, rows, pending.deferred, finite, changes)


def judge_prompts(
    run: Run,
    state: State,
    step: int,
    out: Session,
    judged: list[tuple[RolloutGroup, Judgement]],
    prompts: list[Prompt],
):
    """(groups, judgements) of prompts that come in addition to a step's own; they are added to ``judged``."""
    more = run.begin(step, state.params, out.send, out.check, prompts)
    groups, judgements, _ = judge_step(more, out.interrupt, out.report, outage=out.outage)
    judged += zip(groups, judgements, strict=True)
    return groups, judgements


def learn_pass_rates(
    run: Run, step: int, judged: Sequence[tuple[RolloutGroup, Judgement]], known: Mapping[int, list[bool | None]]
) -> dict[str, float | None]:
    """Tells the curriculum, if there is one, the pass rates of all that the step has judged; its metrics.

    Args:
        known: exact grades, by the id of the group's object.
    """
    if not run.prompts.has_curriculum:
        return {}
    groups, judgements = [g for g, _ in judged], [j for _, j in judged]
    grades = [known.get(id(g)) or exact_grades([g], [j])[0] for g, j in judged]
    rates = pass_rates(groups, judgements, grades)
    run.prompts.learn(step, hosts.broadcast_from_host0(rates))  # one host can time out and another not
    return run.prompts.metrics()


class _CallableModule(types.ModuleType):
    """``ropd_jax.train`` is this module once anything has imported it, and is the function `train` by its name."""

    def __call__(self, cfg: ConfigDict, workdir: str | os.PathLike[str], **options: Any) -> Result:
        return train(cfg, workdir, **options)


sys.modules[__name__].__class__ = _CallableModule
