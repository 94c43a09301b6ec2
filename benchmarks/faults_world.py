"""What a fault trial needs (`benchmarks.faults`): a teacher that counts, runs as processes, disks to break."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import faults_child
from benchmarks.faults_child import Mark
from ropd_jax.teacher.clients.chat import ChatRequest
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.teacher.scripted.server import running

STEPS = 4
ARGUMENTS = [
    *("train", "--config", "experiments/quickstart.py", f"--config.steps={STEPS}", "--config.data.size=64"),
    *("--config.data.heldout_size=16", "--config.data.prompts_per_step=2", "--config.sampling.rollouts=4"),
    *("--config.sampling.max_tokens=32", "--config.eval.prompts_at_once=16", "--config.eval.sampled=False"),
    *("--config.eval.every=2", "--config.eval.judged=4", "--config.checkpoint.every=1", "--config.mesh.fsdp=1"),
    *("--config.teacher.provider=openai", "--config.teacher.check=False", "--config.teacher.judge.model=judge"),
    *("--config.teacher.attempts=2", "--config.teacher.max_wait_s=0.5"),
]
IN_FLIGHT_S = 0.5  # a reply sent within this time before the fault need not have been recorded
TMPFS_MB = 128


# ------------------------------------------------------------------------------------------------- the teacher


class CountingTeacher(ScriptedClient):
    """The scripted teacher behind HTTP on its own port, with a log of its requests and their times."""

    def __init__(self) -> None:
        super().__init__(latency_s=0.03, slip_rate=0.1)
        self._port = 0
        self.calls: list[tuple[str, float, float | None]] = []  # (request, received, answered), monotonic clock
        self.start()

    async def begin(self, request: ChatRequest) -> str | None:
        key = hashlib.sha256(repr((request.messages, request.model, request.sample_index)).encode()).hexdigest()
        place = len(self.calls)
        self.calls.append((key, time.monotonic(), None))
        kind = await super().begin(request)
        self.calls[place] = (key, self.calls[place][1], time.monotonic())
        return kind

    def start(self) -> None:
        ready, self._stop = threading.Event(), threading.Event()

        async def serve() -> None:
            async with running(self, port=self._port) as url:
                self._port = int(url.rpartition(":")[2])
                ready.set()
                while not self._stop.is_set():
                    await asyncio.sleep(0.02)

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()))
        self._thread.start()
        if not ready.wait(30):
            raise RuntimeError("the teacher's server did not start")

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def asked_twice(self, fault_s: float) -> tuple[int, int]:
        """(repeated requests that had been answered before the fault, requests that were in flight at the fault)."""
        lost = flying = 0
        by_key = collections.defaultdict(list)
        for key, _, answered in self.calls:
            by_key[key].append(answered)
        for answers in by_key.values():
            for earlier in answers[:-1]:
                if earlier is not None and earlier < fault_s - IN_FLIGHT_S:
                    lost += 1
                else:
                    flying += 1
        return lost, flying


# ------------------------------------------------------------------------------------------------- the processes


class Started:
    """A run in its own process."""

    context = multiprocessing.get_context("forkserver")
    patience_s = 180.0  # a slower process counts as hanging; a run takes a few seconds

    def __init__(self, teacher: CountingTeacher, workdir: pathlib.Path, log_file: pathlib.Path,
                 mark: Mark | None = None, *, quick_lock: bool = False):  # fmt: skip
        self.log_file = log_file
        self.pipe, theirs = self.context.Pipe()
        argv = [*ARGUMENTS, f"--config.teacher.base_url={teacher.url}", "--workdir", str(workdir)]
        args = (argv, str(log_file), mark, theirs, quick_lock)
        self.process = self.context.Process(target=faults_child.run, args=args)
        self.process.start()
        theirs.close()

    def at_the_mark(self) -> bool:
        """Waits for the phase; False if the process ended before it."""
        with contextlib.suppress(EOFError, ConnectionResetError):
            if self.pipe.poll(self.patience_s):
                self.pipe.recv()
                return True
        return False

    def go_on(self, kind: str = "", value: Any = None) -> None:
        with contextlib.suppress(OSError):  # it was killed at the mark
            self.pipe.send((kind, value))

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def ended(self) -> int | None:
        """The exit code; None if the process hangs (it is then killed)."""
        self.process.join(self.patience_s)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        return code

    def text(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""


# ------------------------------------------------------------------------------------------------------- faults


@contextlib.contextmanager
def small_disk(place: pathlib.Path) -> Iterator[pathlib.Path]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MB}m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(disk: pathlib.Path) -> None:
    with open(disk / "ballast", "wb", buffering=0) as f, contextlib.suppress(OSError):
        while f.write(bytes(1 << 16)):
            pass
        while True:
            f.write(b"\0")


def mount_readonly(workdir: pathlib.Path) -> None:
    subprocess.run(["mount", "--bind", workdir, workdir], check=True)
    remount, deadline = ["mount", "-o", "remount,ro,bind", str(workdir)], time.monotonic() + 5
    while subprocess.run(remount, capture_output=True).returncode:  # busy while a file in it is being written
        assert time.monotonic() < deadline, f"{workdir} stays busy"
        time.sleep(0.05)


def may_mount() -> bool:
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    try:
        with tempfile.TemporaryDirectory() as name, small_disk(pathlib.Path(name) / "disk"):
            return True
    except (subprocess.CalledProcessError, OSError):
        return False


def damage(workdir: pathlib.Path, phase: str) -> None:
    """A different kind of damage for each phase, to the newest checkpoint or to the logs."""
    steps = sorted((p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    newest = steps[-1]
    files = sorted((p for p in newest.rglob("*") if p.is_file()), key=lambda p: (-p.stat().st_size, str(p)))
    if phase == "sampling":  # sixteen bytes in the middle of the arrays
        data = bytearray(files[0].read_bytes())
        data[len(data) // 2 : len(data) // 2 + 16] = b"sixteen bad byte"
        files[0].write_bytes(data)
    elif phase == "judging":
        os.truncate(files[0], files[0].stat().st_size // 2)
    elif phase == "update":
        next(p for p in files if p.name == "_CHECKPOINT_METADATA").unlink()
    elif phase == "save":
        next((newest / "host").rglob("metadata")).write_text('{"groups_total": ')
    else:
        for name in ("metrics.jsonl", "timeline.jsonl"):
            with open(workdir / name, "a") as f:
                f.write('{"step": 2, "torn')
