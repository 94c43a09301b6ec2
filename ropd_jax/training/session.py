"""All that surrounds the loop of a run: its directory, logs, checkpoints, progress, the teacher's event loop, signals.

`session` opens it, the loop in ``train.py`` reports to it, and leaving it closes everything in reverse order, however
the run ends. With several hosts each has a session; host 0 writes the run's files.
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
from ropd_jax.parallel import hosts
from ropd_jax.teacher import Teacher, TeacherLoop, sync
from ropd_jax.teacher.traffic.tracing import ObservedClient
from ropd_jax.training.carryover import Pending, pending_state, restore_pending
from ropd_jax.training.collect import DeferredGroups, judge_by, report_left_out, sync_teachers
from ropd_jax.training.drift import alarms, drift_at
from ropd_jax.training.failure_gate import FailureGate
from ropd_jax.training.metrics import make_result
from ropd_jax.training.run import Run
from ropd_jax.training.update import State
from ropd_jax.training.validate import check_finite
from ropd_jax.types import Judgement, RolloutGroup, UserError
from ropd_jax.utils import tracing
from ropd_jax.utils.interrupt import Interrupt
from ropd_jax.utils.writing import WRITE_ERRORS, Dispensable, write_error
from ropd_jax.workdir.checkpoint import Checkpoints
from ropd_jax.workdir.config import claim
from ropd_jax.workdir.curves import curves_png
from ropd_jax.workdir.groups import GroupsLog
from ropd_jax.workdir.metrics import Metrics, read_metrics
from ropd_jax.workdir.progress import Progress
from ropd_jax.workdir.rescue import rescue
from ropd_jax.workdir.result import Result, read_result, write_result
from ropd_jax.workdir.watchdog import watching

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What a step leaves for the logs.

    Attributes:
        begin: of the step, by the monotonic clock.
        rows: the sequences it was trained on.
        deferred: groups that the next step waits for.
    """

    begin: float
    metrics: dict[str, Any]
    groups: Sequence[RolloutGroup]
    judgements: Sequence[Judgement]
    advantages: Advantages
    rows: Sequence[TokenSequence]
    deferred: DeferredGroups


@contextlib.contextmanager
def session(run: Run) -> Iterator[Session]:
    """The run's session.

    Raises:
        UserError: the workdir belongs to another config or cannot be written, or its disk is full.
    """
    interrupt = Interrupt(hosts.any_host)
    with hosts.lost_together(), interrupt.listening(), contextlib.ExitStack() as stack:
        stack.callback(run.place.close)
        try:
            yield Session(run, interrupt, stack)
        except OSError as error:
            if error.errno not in WRITE_ERRORS:
                raise
            raise write_error(error.filename or run.place.home, error) from error


class Session:
    """An open session; see the module. `resume` comes first, `finish` last.

    Attributes:
        loop: the teacher's event loop.
        interrupt: the user's wish to stop.
    """

    def __init__(self, run: Run, interrupt: Interrupt, stack: contextlib.ExitStack):
        self._run, self.interrupt, self._stack = run, interrupt, stack
        self._started = time.monotonic()
        self._writes = hosts.index() == 0
        self._gate = FailureGate(run.cfg.max_failed_frac, run.cfg.failed_window)
        self.loop = stack.enter_context(contextlib.closing(TeacherLoop()))
        self.loop.on_close(run.teacher.close)
        if self._writes:
            claim(run.place.files, run.raw, shown=run.place.home)
            run.place.upload_all()
        sync.start(run.teacher, hosts.index(), hosts.exchange)
        stack.enter_context(jax.set_mesh(run.mesh))
        self._checkpoints = stack.enter_context(
            contextlib.closing(Checkpoints(run.place.checkpoints, keep=run.cfg.checkpoint.keep))
        )
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
        """Ask the teacher about a group; the future of its `Judgement`."""
        return self.loop.submit(judge_by(self._run.method, self.teacher, group))

    # --- start

    def resume(self, state: State, pending: Pending) -> tuple[State, int]:
        """(state, number of finished steps), from the last checkpoint if there is one; ``pending`` is filled."""
        with self._writing_checkpoints():
            self._checkpoints.check_room(state)
        first = self._checkpoints.latest() or 0
        if first:
            state, saved = self._checkpoints.restore(first, state)
            self._host |= saved
            self.teacher.restore(self._host["teacher"], host=hosts.index())
            self._gate.restore(self._host["failures"])
        sync_teachers(self.teacher)
        self._open_logs(first)
        if first:
            train = self._run.train
            restored = restore_pending(first, self._host, {p.id: p for p in train.prompts}, train.tokens, self.send)
            pending.lookahead, pending.deferred = restored.lookahead, restored.deferred
        return state, first

    def finished(self) -> Result | None:
        """The result of a run that has finished before, or None."""
        place = self._run.place
        there = (place.files / "result.json").exists()
        if self._checkpoints.latest() != self._run.steps or not hosts.broadcast_from_host0(there):
            return None
        log.info("%s is finished; this is its result", place.home)
        return Result(place.home, read_result(place.files), self._writes)

    def _open_logs(self, first: int) -> None:
        run, stack, writes = self._run, self._stack, self._writes
        files = run.place.files
        self._metrics = Metrics(
            files, start_step=first + 1 if first else 0, tensorboard=run.cfg.log.tensorboard, write=writes
        )
        stack.enter_context(contextlib.closing(self._metrics))
        self._timeline = stack.enter_context(tracing.Timeline(files, start_step=first, write=writes).recording())
        stack.enter_context(watching(self._timeline, run.cfg.log.watchdog_s, files, self.loop.stacks))
        self.teacher.client = ObservedClient(self.teacher.client, tracing.span)
        self._groups_log = GroupsLog(files)
        shown_on = None if writes else stack.enter_context(open(os.devnull, "w"))  # noqa: SIM115
        self._progress = stack.enter_context(Progress(run.steps, start=first, file=shown_on))

    # --- progress

    def report(self, text: str) -> None:
        """Show what the run is doing."""
        self._progress.report(text)

    def outage(self) -> str:
        """What the run waits for while the teacher cannot be reached; "" if it can."""
        return self.teacher.waiting_for

    def poll(self, text: str) -> None:
        """`report`, then raise Interrupted if the user asked to stop. Collective: every host must call it."""
        self.report(text)
        self.interrupt.check()

    # --- around a step

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Everything inside belongs to this step of the timeline."""
        with tracing.about(step=step), tracing.span("step"):
            yield

    def eval_due(self, step: int) -> bool:
        """Whether the held-out set is evaluated before this step: at the start, and every ``eval.every`` steps."""
        if step == 0:
            return self._host["before"] is None
        due = step % self._run.cfg.eval.every == 0
        return due and not hosts.broadcast_from_host0(self._metrics.holds(step, "eval/accuracy"))

    def log_eval(self, step: int, metrics: dict[str, Any]) -> None:
        """Log a held-out evaluation, and look for drift (`training.drift`)."""
        self._metrics.log(step, metrics)
        drift = drift_at(read_metrics(self._run.place.files), step)
        if drift is not None:
            metrics |= drift.as_metrics()
            self._metrics.log(step, drift.as_metrics())
            if drift.alarm:
                log.warning("drift: %s; look at groups/ before you trust the reward", drift)
        if step == 0:
            self._host["before"] = metrics
        self._progress.note(metrics)

    def log_step(self, done: int, report: StepReport) -> None:
        """Log a step; ``done`` steps are finished with it.

        Raises:
            TooManyFailures: more groups than ``teacher.max_failed_frac`` could not be scored.
            FloatingPointError: a loss or gradient that is not finite.
        """
        run, step, metrics = self._run, done - 1, report.metrics
        self._host["groups_total"] += len(report.groups)
        failed_P = [not valid_G.any() for valid_G in np.asarray(report.advantages.valid_PG)]
        self._host["groups_unscored"] += sum(failed_P)
        report_left_out(step, report.groups, report.judgements, failed_P, report.deferred)
        for judgement, failed in zip(report.judgements, failed_P, strict=True):
            self._gate.add(judgement.causes, failed=failed)
        metrics |= self._gate.as_metrics()
        sync_teachers(self.teacher, report.groups)
        metrics |= self.teacher.metrics(step)
        advantage_PG = np.asarray(report.advantages.advantage_PG)
        if self._writes and run.cfg.log.groups and run.method.needs_rollouts:
            self._groups_log.write(step, report.groups, report.judgements, advantage_PG.tolist())
        check_finite(metrics, step, run.place.files, report.rows, advantage_PG)
        metrics["time/step_s"] = time.monotonic() - report.begin
        self._metrics.log(done, metrics)
        self._timeline.flush()
        run.place.upload()
        self._progress.step(done, metrics)
        self._gate.check(self.teacher.stats.unusable.table())

    # --- checkpoints and the end

    def save_due(self, done: int) -> bool:
        """Whether a checkpoint is due after ``done`` steps."""
        return done % self._run.cfg.checkpoint.every == 0 or done == self._run.steps

    def save(self, done: int, state: State, pending: Pending) -> None:
        """Save a checkpoint after ``done`` steps, unless it is there already.

        Raises:
            WriteError: it cannot be written.
        """
        sync_teachers(self.teacher)
        if done == self._checkpoints.latest():
            return
        host = self._host_state(done, pending, send=True)
        with tracing.span("checkpoint"), self._writing_checkpoints():
            self._run.place.upload_all()
            self._checkpoints.save(done, state, host)
            self._run.place.copy_checkpoints()

    def save_last(self, done: int, state: State, pending: Pending) -> None:
        """Save a checkpoint because the run stops, elsewhere if the workdir cannot be written.

        It raises nothing, so that the user sees why the run stops.
        """
        sync_teachers(self.teacher)
        place = self._run.place
        if done != self._checkpoints.latest():
            host = self._host_state(done, pending, send=False)  # the teacher gets no further requests
            try:
                with self._writing_checkpoints():
                    self._checkpoints.save(done, state, host)
            except UserError as error:
                log.error("no checkpoint after step %d in the workdir: %s", done, error)
                if hosts.count() == 1 and done:
                    rescue(place, done, state, host)
                return
        log.warning("saved a checkpoint after step %d", done)
        try:
            place.upload_all()
        except UserError as error:
            log.error("%s; the newest logs and the tape are in %s", error, place.files)

    @contextlib.contextmanager
    def _writing_checkpoints(self) -> Iterator[None]:
        """Whatever Orbax, tensorstore and a bucket's library raise becomes a `WriteError`; they share no class."""
        try:
            yield
        except (UserError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            if "Gloo" in str(error):  # another host is gone, see `hosts.lost`
                raise
            raise write_error(self._run.place.home / "checkpoints", error) from error

    def _host_state(self, done: int, pending: Pending, *, send: bool) -> dict[str, Any]:
        """What a checkpoint holds besides the arrays; ``send`` as in `pending_state`."""
        host = self._host | pending_state(done, pending, stale=bool(self._run.cfg.overlap.staleness), send=send)
        return host | {"seconds": self._seconds(), "teacher": self.teacher.state(), "failures": self._gate.state()}

    def finish(self, after: dict[str, Any]) -> Result:
        """Write the result, with the last held-out evaluation in it, and the curves."""
        run = self._run
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
        if self._writes:
            files = run.place.files
            values["drift_alarms"] = alarms(read_metrics(files))
            write_result(files, values)
            with Dispensable(f"{files / 'curves.png'}"):
                curves_png(files, title=run.place.home.name)
        run.place.upload_all()
        return Result(run.place.home, values, self._writes)

    def _seconds(self) -> float:
        return self._host["seconds"] + time.monotonic() - self._started
