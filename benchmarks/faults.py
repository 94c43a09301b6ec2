"""Sixty runs with a fault, each restarted: what was lost?

    make faults               python -m benchmarks.faults --only sigkill/save --only outage

Nine faults in five phases of a run (sampling, judging, update, save, evaluation). Some come early, before the first
checkpoint, and some late, in the last step:

    sigkill, sigterm   real signals at the start of the phase, or up to 50 ms later
    enospc             the disk, a tmpfs, is filled to the last byte at the phase
    readonly           the workdir is mounted read-only over itself at the phase
    eio                every write by Python below the workdir fails with EIO from the phase on
    damage             SIGKILL, then a file of the newest checkpoint or of the logs is overwritten, cut or removed
    second             the same command again while the first runs, or is stopped until its lock is stale
    clock              the system clock steps by a day
    outage             the teacher's server is unavailable for a while

The student is the quickstart's. The teacher is the scripted one behind HTTP on loopback, which counts its requests.
After the fault the same command runs again, without a fault. Then the whole state must be bit-identical to that of an
undisturbed run, the logs must be the same, and only replies that were in flight can have been paid for twice. Prints a
table of what was lost; exits with 1 if anything was. Filling and remounting need root on Linux; without it those trials
are left out, and the table reports this.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.faults_child import SPANS, Mark
from benchmarks.faults_world import STEPS, CountingTeacher, Started, damage, fill, may_mount, mount_readonly, small_disk
from ropd_jax.utils.logs import show_all_logs

log = logging.getLogger("faults")
PHASES = tuple(SPANS)


@dataclasses.dataclass(frozen=True)
class Trial:
    fault: str
    phase: str
    late: bool
    number: int

    @property
    def stale(self) -> bool:
        """Whether the lock of the first of two processes becomes stale."""
        return self.fault == "second" and self.phase in ("judging", "evaluation")

    @property
    def name(self) -> str:
        return f"{self.fault}/{self.phase}/{'late' if self.late else 'early'}"


@dataclasses.dataclass
class Outcome:
    """The result of a trial; ``lost`` is empty if nothing was lost."""

    trial: Trial
    first: str = "-"
    again: str = "-"
    in_flight: int = 0
    seconds: float = 0.0
    lost: list[str] = dataclasses.field(default_factory=list)
    left_out: str = ""


def all_trials() -> list[Trial]:
    both = [(fault, late) for fault in ("sigkill", "sigterm", "enospc") for late in (False, True)]
    kinds = [*both, *((fault, True) for fault in ("eio", "readonly", "damage", "second", "clock", "outage"))]
    pairs = [(fault, phase, late) for fault, late in kinds for phase in PHASES]
    return [Trial(fault, phase, late, n) for n, (fault, phase, late) in enumerate(pairs)]


# ------------------------------------------------------------------------------------------------------- a trial


def run_trial(trial: Trial, room: pathlib.Path, sound: dict[str, Any], mounts: bool) -> Outcome:
    outcome, begin = Outcome(trial), time.monotonic()
    if trial.fault in ("enospc", "readonly") and not mounts:
        outcome.left_out = "needs root on Linux"
        return outcome
    place = room / f"{trial.number:02d}_{trial.name.replace('/', '_')}"
    place.mkdir()
    teacher = CountingTeacher()
    try:
        with contextlib.ExitStack() as stack:
            disk = stack.enter_context(small_disk(place / "disk")) if trial.fault == "enospc" else place
            fault_s = _first(trial, outcome, teacher, disk / "run", disk, place)
            if fault_s is not None:
                _again(outcome, teacher, disk / "run", place, sound, fault_s)
            shutil.rmtree(disk / "run", ignore_errors=True)
    except Exception as error:  # an error of this benchmark: the other trials continue
        log.exception("%s", trial.name)
        outcome.lost.append(f"the trial itself failed: {type(error).__name__}")
    finally:
        teacher.stop()
    outcome.seconds = time.monotonic() - begin
    return outcome


EXPECTED = {  # exit codes of the process with the fault
    "sigkill": (-signal.SIGKILL,), "damage": (-signal.SIGKILL,), "sigterm": (130,), "clock": (0,), "outage": (0,),
    "second": (0, 2), "enospc": (0, 2), "eio": (0, 2), "readonly": (0, 2),
}  # fmt: skip


def _first(
    trial: Trial,
    outcome: Outcome,
    teacher: CountingTeacher,
    workdir: pathlib.Path,
    disk: pathlib.Path,
    place: pathlib.Path,
) -> float | None:
    """Runs until the phase, triggers the fault, waits for the end. Returns the time of the fault; None if none came."""
    rng = random.Random(trial.number)
    mark = Mark(trial.phase, trial.late, rng.choice((0.0, rng.uniform(0.0, 0.05))))
    started = Started(teacher, workdir, place / "first.log", mark, quick_lock=trial.stale)
    if not started.at_the_mark():
        outcome.first = str(started.ended())
        outcome.lost.append(f"the phase never came (exit code {outcome.first})")
        return None
    fault_s = time.monotonic()
    if trial.fault in ("sigkill", "sigterm", "damage"):
        number = signal.SIGTERM if trial.fault == "sigterm" else signal.SIGKILL
        if mark.after_s:
            started.go_on()
            time.sleep(mark.after_s)
            fault_s = time.monotonic()
        started.send(number)
        started.go_on()
    elif trial.fault == "enospc":
        fill(disk)
        started.go_on()
    elif trial.fault == "readonly":
        mount_readonly(workdir)
        started.go_on()
    elif trial.fault == "eio":
        started.go_on("eio")
    elif trial.fault == "clock":
        started.go_on("clock", 86_400.0 if trial.number % 2 else -86_400.0)
    elif trial.fault == "outage":
        teacher.stop()
        started.go_on()
        time.sleep(2.0)
        teacher.start()
    elif trial.fault == "second":
        _second(outcome, started, teacher, workdir, place)
    code = started.ended()
    outcome.first = "hangs" if code is None else str(code)
    if code not in EXPECTED[trial.fault]:
        outcome.lost.append(f"the run {'hangs' if code is None else f'ended with {code}'}")
    if "Traceback" in started.text():
        outcome.lost.append("a traceback")
    if code == 2 and trial.fault in ("enospc", "eio", "readonly"):
        errors = [line for line in started.text().splitlines() if line.startswith("ropd: error")]
        if not any(str(workdir) in line for line in errors):
            outcome.lost.append("no error names the path")
    if trial.fault == "readonly":
        subprocess.run(["umount", workdir], check=True)
    if trial.fault == "enospc":
        (disk / "ballast").unlink()
    if trial.fault == "damage":
        damage(workdir, trial.phase)
    return fault_s


def _second(
    outcome: Outcome, started: Started, teacher: CountingTeacher, workdir: pathlib.Path, place: pathlib.Path
) -> None:
    """Runs the same command while the first process runs, or while it is stopped and its lock becomes stale."""
    stale = outcome.trial.stale
    if stale:
        started.send(signal.SIGSTOP)
        time.sleep(3.0)
    other = Started(teacher, workdir, place / "second.log", quick_lock=stale)
    code = other.ended()
    if code != (0 if stale else 2):
        outcome.lost.append(f"the second process ended with {code}")
    if ("taking over the lock" if stale else "has been running here since") not in other.text():
        outcome.lost.append("the second process did not report why")
    started.go_on()
    started.send(signal.SIGCONT)
    if stale:
        code = started.ended()
        if code != 2 or "has taken over this directory" not in started.text():
            outcome.lost.append(f"the first process continued without its lock (exit code {code})")


def _again(
    outcome: Outcome, teacher: CountingTeacher, workdir: pathlib.Path, place: pathlib.Path, sound: dict[str, Any],
    fault_s: float,
) -> None:  # fmt: skip
    """Runs the same command again, and compares it with the undisturbed run."""
    started = Started(teacher, workdir, place / "again.log")
    code = started.ended()
    outcome.again = "hangs" if code is None else str(code)
    if code != 0:
        last = started.text().strip().rpartition("\n")[2]
        outcome.lost.append(f"restarted, it {'hangs' if code is None else f'ended with {code}'}: {last[:90]}")
        return
    if outcome.trial.fault == "damage" and outcome.trial.phase != "evaluation" and "damage" not in started.text():
        outcome.lost.append("the damage was not reported")
    outcome.lost += differences(sound, what_is_there(workdir))
    twice, outcome.in_flight = teacher.asked_twice(fault_s)
    if outcome.trial.fault == "clock" or (outcome.trial.fault == "second" and not outcome.trial.stale):
        twice += outcome.in_flight
    if twice:
        outcome.lost.append(f"{twice} replies paid for twice")


def what_is_there(workdir: pathlib.Path) -> dict[str, Any]:
    """Everything that must not depend on the fault: the final state, its counters, the logs."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    directory = workdir / "checkpoints" / str(STEPS)
    tree = ocp.StandardCheckpointHandler().metadata(directory / "state").tree
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        state = reader.restore(directory / "state", args=ocp.args.PyTreeRestore(restore_args=how))
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("time/", "teacher/", "sample/tokens_per_s")
    return {
        "state": {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(state)},
        "metrics": [{k: v for k, v in row.items() if not k.startswith(timed)} for row in rows],
        "groups": {p.name: p.read_bytes() for p in sorted((workdir / "groups").iterdir())},
        "result": {
            k: v
            for k, v in json.loads((workdir / "result.json").read_text()).items()
            if k not in ("seconds", "teacher")
        },
    }


def differences(sound: dict[str, Any], found: dict[str, Any]) -> list[str]:
    import numpy as np

    a, b = sound["state"], found["state"]
    same = a.keys() == b.keys() and all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)
    lost = [] if same else ["the final state differs"]
    return lost + [f"{name} differ" for name in ("metrics", "groups", "result") if sound[name] != found[name]]


# ---------------------------------------------------------------------------------------------------- all trials


def prepare(room: pathlib.Path) -> None:
    """Prepares the environment of all processes; a single server forks them."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(room / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0",
        "OPENAI_API_KEY": "sk-faults",
        "MPLBACKEND": "agg",
    }
    Started.context.set_forkserver_preload(["benchmarks.faults_child"])


def undisturbed(room: pathlib.Path) -> dict[str, Any]:
    """The result of an undisturbed run; it also compiles the programs for all others."""
    teacher = CountingTeacher()
    try:
        for name in ("compiles", "sound"):  # the second shows the duration of a run once everything is compiled
            begin = time.monotonic()
            started = Started(teacher, room / name / "run", room / f"{name}.log")
            if started.ended() != 0:
                raise SystemExit(f"the undisturbed run failed:\n{started.text()[-3000:]}")
            log.info("undisturbed run: %.1f s%s", time.monotonic() - begin, " with compilation" * (name == "compiles"))
    finally:
        teacher.stop()
    return what_is_there(room / "sound" / "run")


def show(outcomes: list[Outcome]) -> None:
    head = f"{'fault':<9} {'phase':<11} {'when':<6} {'exit':>6} {'again':>6} {'in flight':>9} {'s':>6}  lost"
    print(head)
    print("-" * (len(head) + 20))
    for o in outcomes:
        lost = f"left out: {o.left_out}" if o.left_out else "; ".join(o.lost) or "nothing"
        when = "late" if o.trial.late else "early"
        print(f"{o.trial.fault:<9} {o.trial.phase:<11} {when:<6} {o.first:>6} {o.again:>6} {o.in_flight:>9} "
              f"{o.seconds:>6.1f}  {lost}")  # fmt: skip
    tried = [o for o in outcomes if not o.left_out]
    bad = [o for o in tried if o.lost]
    print(f"\n{len(tried)} trials, {len(outcomes) - len(tried)} left out; something was lost in {len(bad)}; "
          f"{sum(o.in_flight for o in tried)} replies in flight at a fault were paid for twice")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], metavar="FAULT[/PHASE[/early|late]]")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--patience", type=float, default=Started.patience_s, help="seconds after which a process counts as hanging"
    )
    parser.add_argument("--room", type=pathlib.Path, help="directory for logs and the compile cache; it is kept")
    parser.add_argument("--out", type=pathlib.Path, help="write the outcomes to this JSON file")
    args = parser.parse_args()
    show_all_logs()
    Started.patience_s = args.patience
    trials = [t for t in all_trials() if not args.only or any(f"{t.name}/".startswith(f"{o}/") for o in args.only)]
    with contextlib.ExitStack() as stack:
        room = args.room or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults_")))
        room.mkdir(parents=True, exist_ok=True)
        room = pathlib.Path(tempfile.mkdtemp(dir=room, prefix="trials_")) if args.room else room
        prepare(args.room or room)
        begin, mounts = time.monotonic(), may_mount()
        sound = undisturbed(room)
        outcomes = []
        with concurrent.futures.ThreadPoolExecutor(args.workers) as pool:
            waiting = [pool.submit(run_trial, trial, room, sound, mounts) for trial in trials]
            for future in waiting:
                outcomes.append(future.result())
                log.info(
                    "%s: %s", outcomes[-1].trial.name, outcomes[-1].left_out or "; ".join(outcomes[-1].lost) or "ok"
                )
        show(outcomes)
        print(f"{(time.monotonic() - begin) / 60:.1f} minutes")
    if args.out:
        args.out.write_text(json.dumps([dataclasses.asdict(o) for o in outcomes], indent=1) + "\n")
    return 1 if any(o.lost for o in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
