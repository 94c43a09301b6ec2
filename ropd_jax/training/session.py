"""Everything around the loop of a run: its directory, logs, checkpoints, progress, the teacher's event loop, signals.

`session` opens it, the loop in ``train.py`` reports to it, and leaving it closes everything in reverse order, however
the run ends. Each host has a session; host 0 writes the run's files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ropd_jax.core.advantages import Advantages
from ropd_jax.core.batches import TokenSequence
from ropd_jax.parallel import compile_cache, hosts
from ropd_jax.teacher import BudgetError, Teacher, TeacherLoop, sync
from ropd_jax.teacher.traffic.tracing import ObservedClient
from ropd_jax.text.tokenizer import HFTokenizer
from ropd_jax.training.carryover import Pending, pending_ids, pending_state, restore_pending
from ropd_jax.training.collect import DeferredGroups, judge_by, report_left_out, sync_teachers
from ropd_jax.training.drift import alarms, drift_at
from ropd_jax.training.failure_gate import FailureGate
from ropd_jax.training.flat import FlatRewards
from ropd_jax.training.metrics import make_result
from ropd_jax.training.profile import Profile
from ropd_jax.training.rescore import Changes
from ropd_jax.training.run import Run
from ropd_jax.training.update import State
from ropd_jax.training.validate import all_finite, check_finite
from ropd_jax.types import Judgement, RolloutGroup, UserError
from ropd_jax.utils import tracing
from ropd_jax.utils.interrupt import Interrupt, Interrupted
from ropd_jax.utils.writing import WRITE_ERRORS, Dispensable, WriteError, write_error
from ropd_jax.workdir.checkpoint import Checkpoints
from ropd_jax.workdir.config import claim
from ropd_jax.workdir.curves import curves_png
from ropd_jax.workdir.groups import GroupsLog, answer_rows
from ropd_jax.workdir.lock import LockLost
from ropd_jax.workdir.metrics import Metrics, read_metrics
from ropd_jax.workdir.one_run import Ownership
from ropd_jax.workdir.progress import Progress
from ropd_jax.workdir.rescue import rescue
from ropd_jax.workdir.result import Result, read_result, write_result
from ropd_jax.workdir.status import reporting
from ropd_jax.workdir.token_logprobs import OFF
from ropd_jax.workdir.trackers import Start, make_trackers
from ropd_jax.workdir.watchdog import watching

log = logging.getLogger(__name__)
CHUNKS = 16  # of sampling between two checks of the other hosts' signals: 128 tokens, a few seconds


@dataclasses.dataclass(frozen=True)
class StepReport:
    """The results of a step, for the logs.

    Attributes:
        begin: start of the step, by the monotonic clock.
        rows: the sequences that it was trained on.
        deferred: groups that the next step waits for.
        finite: whether all parameters are finite after the step.
        changes: the change of the rollouts' log-probs by the update (`rescore`), or None.
    """

    begin: float
    metrics: dict[str, Any]
    groups: Sequence[RolloutGroup]
    judgements: Sequence[Judgement]
    advantages: Advantages
    rows: Sequence[TokenSequence]
    deferred: DeferredGroups
    finite: bool
    changes: Changes | None = None


@contextlib.contextmanager
def session(run: Run, owner: Ownership) -> Iterator[Session]:
    """The run's session; ``owner`` holds its directory.

    Raises:
        UserError: the workdir belongs to another config or is not writable, or its disk is full.
    """
    interrupt = Interrupt(hosts.any_host)
    with hosts.lost_together(), interrupt.listening(), contextlib.ExitStack() as stack:
        stack.callback(run.place.close)
        try:
            yield Session(run, owner, interrupt, stack)
        except LockLost:  # the directory belongs to another run by now
            run.place.abandon()
            raise
        except OSError as error:
            if error.errno not in WRITE_ERRORS:
                raise
            raise write_error(error.filename or run.place.home, error) from error


class Session:
    """An open session; see the module. Call `resume` first and `finish` last.

    Attributes:
        loop: the teacher's event loop.
        interrupt: the user's request to stop.
    """

    def __init__(self, run: Run, owner: Ownership, interrupt: Interrupt, stack: contextlib.ExitStack):
        self._run, self._owner, self.interrupt, self._stack = run, owner, interrupt, stack
        self._started = time.monotonic()
        self._writes = hosts.index() == 0
        self._reported_programs = False
        self._gate = FailureGate(run.cfg.max_failed_frac, run.cfg.failed_window)
        self._flat = FlatRewards()
        self.loop = stack.enter_context(contextlib.closing(TeacherLoop()))
        self.loop.on_close(run.teacher.close)
        if run.served is not None:
            stack.callback(run.served.close)
        if self._writes:
            home = run.place.home
            claim(run.place.files, run.raw, contents=run.contents, forked_from=run.forked_from, home=home)
            run.place.upload_all()
        sync.start(run.teacher, hosts.index(), hosts.exchange)
        stack.enter_context(jax.set_mesh(run.mesh))
        how = run.cfg.checkpoint
        self._scores: dict[int, float | None] = {}  # held-out scores by step
        self._checkpoints = stack.enter_context(
            contextlib.closing(
                Checkpoints(
                    run.place.checkpoints,
                    keep=how.keep,
                    keep_best=how.keep_best,
                    scores=lambda: dict(self._scores),
                )
            )
        )
        self._chunks = 0  # of sampling, so far
        self._finished: tuple[int, State, Pending] | None = None
        if hosts.count() == 1:  # on several hosts, all of them must save at the same point
            interrupt.unheard = self._save_unheard
        self._host: dict[str, Any] = {  # what a checkpoint holds besides the state
            "groups_total": 0,
            "groups_unscored": 0,
            "seconds": 0.0,
            "before": None,
            "teacher": None,
        }

    @property
    def teacher(self) -> Teacher:
        return self._run.teacher

    def send(self, group: RolloutGroup):
        """Send a group to the teacher; returns the future of its `Judgement`."""
        return self.loop.submit(judge_by(self._run.method, self.teacher, group))

    # --- start

    def resume(self, state: State, pending: Pending) -> tuple[State, int]:
        """(state, number of finished steps), from the last checkpoint if there is one; fills ``pending``."""
        self._owner.check()
        with self._writing_checkpoints():
            self._checkpoints.check_room(state)
        found = self._checkpoints.restore_newest(state, {"ahead": state.params})
        first = 0
        if found:
            first, state = found.step, found.state
            self._host |= found.host
            self.teacher.restore(self._host["teacher"], host=hosts.index())
            self._gate.restore(self._host["failures"])
            self._run.prompts.restore(self._host.get("curriculum"))
        sync_teachers(self.teacher)
        self._open_logs(first, resumed=found is not None)
        if found:
            prompts = self._run.train.find(pending_ids(self._host))
            tokens = dict(zip(prompts, self._run.train.tokens_of(list(prompts.values())), strict=True))
            restored = restore_pending(first, self._host, prompts, tokens, self.send)
            pending.lookahead, pending.deferred = restored.lookahead, restored.deferred
        if not found and self._run.forked_from:
            self.save(0, state, pending)
        if found and "ahead" in found.extras:  # the policy that samples the next step
            begin = self._run.begin(first, found.extras["ahead"], self.send, self.check, keep_policy=True)
            pending.lookahead = begin
        return state, first

    def finished(self) -> Result | None:
        """The result, if the run has already finished, else None."""
        place = self._run.place
        there = (place.files / "result.json").exists()
        if self._checkpoints.latest() != self._run.steps or not hosts.broadcast_from_host0(there):
            return None
        log.info("%s is already finished; this is its result", place.home)
        return Result(place.home, read_result(place.files), self._writes)

    def _open_logs(self, first: int, *, resumed: bool) -> None:
        run, stack, writes = self._run, self._stack, self._writes
        files = run.place.files
        begin = first + 1 if resumed else 0
        start = Start(run.raw, files, run.place.home.name, begin, resumed, run.forked_from or {})
        self._trackers = make_trackers(run.cfg.log.trackers if writes else (), start)
        stack.push(lambda kind, error, trace: self._trackers.finish(0 if kind is None else 1))
        self._metrics = Metrics(files, start_step=begin, trackers=self._trackers, write=writes)
        self._profile = Profile(run.cfg.log.profile_steps if writes else "", files / "profile")
        stack.callback(self._profile.close)
        stack.enter_context(contextlib.closing(self._metrics))
        self._timeline = stack.enter_context(tracing.Timeline(files, start_step=first, write=writes).recording())
        compile_cache.hand_over(self._timeline)
        stack.enter_context(watching(self._timeline, run.cfg.log.watchdog_s, files, self.loop.stacks))
        self._now = {"done": first, "steps": run.steps, "doing": ""}
        stack.enter_context(reporting(self._timeline, files, lambda: dict(self._now), write=writes))
        self.teacher.client = ObservedClient(self.teacher.client, tracing.span)
        how, tokenizer = run.cfg.log.token_logprobs, run.student.tokenizer
        sizes = tokenizer.token_bytes() if how != OFF and isinstance(tokenizer, HFTokenizer) else None
        self._groups_log = GroupsLog(files, token_logprobs=how, token_bytes_V=sizes)
        series = read_metrics(files) if writes else {}
        self._scores |= hosts.broadcast_from_host0(dict(zip(*series.get(self._best_by, ((), ())), strict=True)))
        shown_on = None if writes else stack.enter_context(open(os.devnull, "w"))  # noqa: SIM115
        self._progress = stack.enter_context(Progress(run.steps, start=first, file=shown_on))

    # --- progress

    def report(self, text: str) -> None:
        """Show what the run is doing."""
        self._now["doing"] = text
        self._progress.report(text)

    def outage(self) -> str:
        """What the run waits for while the teacher is unreachable; "" if it is reachable."""
        return self.teacher.waiting_for

    def poll(self, text: str) -> None:
        """`report`, then raise Interrupted if the user requested a stop. Collective: every host must call it."""
        self.report(text)
        self.interrupt.check()

    def check(self) -> None:
        """`Interrupt.check` between two chunks of sampling. With several hosts it needs an exchange, so not every chunk
        is checked. Collective: every host must call it."""
        self._chunks += 1
        if hosts.count() == 1 or self._chunks % CHUNKS == 0:
            self.interrupt.check()

    # --- around a step

    @contextlib.contextmanager
    def step(self, step: int, state: State, pending: Pending) -> Iterator[None]:
        """Context of a step: its work is recorded in the timeline. ``state`` is that of the last finished step."""
        self._finished = (step, state, pending)
        with tracing.about(step=step), tracing.span("step"), self._profile.step(step):
            yield

    def eval_due(self, step: int) -> bool:
        """Whether an evaluation before this step (`Run.evaluations`) is missing in the log."""
        if step == 0:
            return self._host["before"] is None
        names = self._run.evaluations(step)
        return bool(names) and not hosts.broadcast_from_host0(
            all(self._metrics.holds(step, f"eval/{name}") for name in names)
        )

    def log_eval(self, step: int, metrics: dict[str, Any]) -> None:
        """Log an evaluation, and check for drift (`training.drift`)."""
        self._owner.check()
        self._scores[step] = metrics.get(self._best_by)
        if step == self._run.steps:  # no later step logs the duration of the last save
            self._wait_for_save()
            metrics |= self._checkpoints.times()
        self._metrics.log(step, metrics)
        drift = drift_at(read_metrics(self._run.place.files), step)
        if drift is not None:
            metrics |= drift.as_metrics()
            self._metrics.log(step, drift.as_metrics())
            if drift.alarm:
                log.warning("drift: %s; inspect groups/ before you trust the reward", drift)
        if step == 0:
            self._host["before"] = metrics
        self._progress.note(metrics)

    def log_step(self, done: int, report: StepReport) -> None:
        """Log a step; ``done`` counts the finished steps, including this one.

        Raises:
            TooManyFailures: more groups than ``teacher.max_failed_frac`` could not be scored.
            FloatingPointError: a loss, gradient or parameter is not finite.
        """
        self._owner.check()
        run, step, metrics = self._run, done - 1, report.metrics
        self._host["groups_total"] += len(report.groups)
        failed_P = [not valid_G.any() for valid_G in np.asarray(report.advantages.valid_PG)]
        self._host["groups_unscored"] += sum(failed_P)
        report_left_out(step, report.groups, report.judgements, failed_P, report.deferred)
        informative_P = [informative_G.any() for informative_G in np.asarray(report.advantages.informative_PG)]
        for judgement, failed, informative in zip(report.judgements, failed_P, informative_P, strict=True):
            self._gate.add(judgement.causes, failed=failed)
            if not failed:
                self._flat.add(judgement, informative=bool(informative))
        if text := self._flat.warning():
            log.warning("step %d: %s", step, text)
        metrics |= self._gate.as_metrics()
        sync_teachers(self.teacher, report.groups)
        metrics |= self.teacher.metrics(step)
        advantage_PG = np.asarray(report.advantages.advantage_PG)
        if self._writes and run.cfg.log.groups and run.method.needs_rollouts:
            judged = (report.groups, report.judgements, advantage_PG.tolist())
            self._groups_log.write(step, *judged, report.changes)
            self._trackers.table(done, lambda: answer_rows(step, *judged))
        check_finite(metrics, step, run.place.files, report.rows, advantage_PG, finite=report.finite)
        metrics |= self._checkpoints.times()
        metrics["time/step_s"] = time.monotonic() - report.begin
        self._metrics.log(done, metrics)
        self._timeline.flush()
        run.place.upload()
        self._progress.step(done, metrics)
        self._now |= {"done": done, "doing": ""}
        if not self._reported_programs:
            log.info("%s", compile_cache.programs())
            self._reported_programs = True
        self._checkpoints.check()
        self._gate.check(self.teacher.stats.unusable.table())

    # --- checkpoints and the end

    def save_due(self, done: int) -> bool:
        """Whether a checkpoint is due after ``done`` steps."""
        return done % self._run.cfg.checkpoint.every == 0 or done == self._run.steps

    def save(self, done: int, state: State, pending: Pending, *, ends: bool = False) -> None:
        """Save a checkpoint after ``done`` steps, unless it exists or is being written.

        Args:
            ends: the run ends here: no more sampling or requests, and the checkpoint is complete on return.

        Raises:
            FloatingPointError: a parameter is NaN or infinite; earlier checkpoints are kept.
            WriteError: the checkpoint cannot be written.
        """
        self._owner.check()
        sync_teachers(self.teacher)
        if not self._checkpoints.has(done):
            if not all_finite(state.params):
                raise FloatingPointError(
                    f"after step {done} the student has NaN or infinite parameters; no checkpoint is saved"
                )
            host = self._host_state(done, pending, ends=ends)
            ahead = pending.unsampled(done)
            with self._writing_checkpoints():
                if not ends:  # if the machine is about to stop, the checkpoint comes first
                    self._checkpoints.wait()  # a copy (S3) needs the previous save to be complete
                    self._run.place.upload_all()
                complete = None if self._checkpoints.writing else self._checkpoints.latest()
                with tracing.span("checkpoint"):
                    self._checkpoints.save(done, state, host, extras={"ahead": ahead.policy} if ahead else {})
                if self._run.served is not None and complete is not None:
                    self._run.served.kept.forget_before(complete)
        if ends:
            self._wait_for_save()

    def leave(self, error: BaseException, done: int, state: State, pending: Pending) -> None:
        """Save a checkpoint of the last finished step when the run ends by an error, which the caller raises.

        A save that exists or is in flight is not repeated. Errors in here are only logged.
        """
        if not isinstance(error, BudgetError):  # requests in flight are paid for, and are already on the tape
            pending.cancel()
        try:
            if why := self._not_saved_because(error, state):
                self._wait_for_save()
                log.warning("no checkpoint of step %d: %s; the newest is after step %s", done, why,
                            self._checkpoints.latest())  # fmt: skip
            else:
                self._save_last(done, state, pending)
        except (Exception, KeyboardInterrupt) as again:
            log.error("no checkpoint of step %d: %s", done, " ".join(str(again).split()) or type(again).__name__)
        if isinstance(error, Interrupted):
            since = [s for s in hosts.exchange(self.interrupt.waited_s()) if s is not None]
            log.warning("%.1f s from the signal to the complete checkpoint", max(since))
            self._timeline.ends_now("stop", max(since), step=done)
            self._timeline.flush()
        if isinstance(error, LockLost):
            self._run.place.abandon()
        try:
            self._run.place.upload_all()
        except UserError as again:
            log.error("%s; the newest logs and the tape are in %s", again, self._run.place.files)

    def _save_last(self, done: int, state: State, pending: Pending) -> None:
        """Save at the end of the run; to another directory if the workdir is not writable."""
        try:
            self.save(done, state, pending, ends=True)
            log.warning("saved a checkpoint after step %d", done)
        except WriteError as error:
            log.error("no checkpoint after step %d in the workdir: %s", done, error)
            if hosts.count() == 1 and done:
                rescue(self._run.place, done, state, self._host_state(done, pending, ends=True))

    def _save_unheard(self) -> None:
        """Save the last finished step on the signal thread, while the main thread compiles or waits."""
        if self._finished is None or self._not_saved_because(Interrupted(), self._finished[1]):
            return  # the update has donated the arrays: the main thread saves after this step
        done = self._finished[0]
        log.warning("the run is busy: saving the checkpoint after step %d in the background", done)
        try:
            self.save(*self._finished, ends=True)
            self._run.place.copy_checkpoints()
            log.warning("saved a checkpoint after step %d, %.1f s after the signal", done, self.interrupt.waited_s())
        except Exception as error:  # e.g. the update donated the arrays meanwhile; the main thread tries again
            log.warning("could not save in the background: %s", " ".join(str(error).split()) or type(error).__name__)

    def _not_saved_because(self, error: BaseException, state: State) -> str:
        """Why the state is not that of the last finished step, or cannot be saved; "" if it can."""
        if isinstance(error, LockLost):
            return "another run has taken over the directory"
        if isinstance(error, FloatingPointError):
            return "its numbers are not finite"
        if any(x.is_deleted() for x in jax.tree.leaves(state)):
            return "the update failed after it had donated the arrays"
        if hosts.count() > 1 and not isinstance(error, Interrupted | UserError):
            return "other hosts might not have failed, and a save needs all of them"
        return ""

    def _wait_for_save(self) -> None:
        if self._checkpoints.writing:
            with tracing.span("checkpoint"), self._writing_checkpoints():
                self._checkpoints.wait()

    @contextlib.contextmanager
    def _writing_checkpoints(self) -> Iterator[None]:
        """Converts whatever Orbax, tensorstore and a bucket's library raise to `WriteError`; they share no class."""
        try:
            yield
        except (UserError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            if "Gloo" in str(error):  # another host was lost, see `hosts.lost`
                raise
            raise write_error(self._run.place.home / "checkpoints", error) from error

    def _host_state(self, done: int, pending: Pending, *, ends: bool) -> dict[str, Any]:
        """The contents of a checkpoint besides the arrays; ``ends`` as in `save`."""
        stale = bool(self._run.cfg.overlap.staleness)
        host = self._host | pending_state(done, pending, stale=stale, sample=not ends)
        host |= {"seconds": self._seconds(), "teacher": self.teacher.state(), "failures": self._gate.state()}
        return host | ({"curriculum": drawn} if (drawn := self._run.prompts.state(done)) else {})

    def finish(self, after: dict[str, Any]) -> Result:
        """Write the result, including the last held-out evaluation, and the curves.

        Raises:
            TooManyFailures: no group of the run was ever scored; no result is written.
        """
        self._owner.check()
        self._gate.check_run(self._host["groups_total"], self._host["groups_unscored"])
        run = self._run
        self._wait_for_save()
        if run.served is not None:
            run.served.kept.forget_before(run.steps)
        values = make_result(
            method=run.raw["method"],
            seed=run.cfg.seed,
            steps=run.steps,
            heldout_n=len(run.heldout.prompts),
            before=self._host["before"],
            after=after,
            seconds=self._seconds(),
            groups_total=self._host["groups_total"],
            groups_unscored=self._host["groups_unscored"],
            teacher=self.teacher.metrics(),
            calibration=run.calibration,
        )
        if run.forked_from:
            values["forked_from"] = dict(run.forked_from)
        if self._writes:
            files = run.place.files
            values["drift_alarms"] = alarms(read_metrics(files))
            write_result(files, values)
            with Dispensable(f"{files / 'curves.png'}"):
                curves_png(files, title=run.place.home.name)
        run.place.upload_all()
        return Result(run.place.home, values, self._writes)

    @property
    def _best_by(self) -> str:
        return f"eval/{self._run.cfg.checkpoint.best_by}"

    def _seconds(self) -> float:
        return self._host["seconds"] + time.monotonic() - self._started
