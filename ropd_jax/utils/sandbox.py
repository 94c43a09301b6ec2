"""A child process that reads foreign text, and cannot do harm if the text is hostile.

A student's answer is foreign text: a parser or a computer algebra system that reads it can be made to compute for
hours, to take all memory, or (if it evaluates text) to run a program. So everything that does more with an answer than
compare texts and numbers runs in a child::

    our process                                     child (`sandbox_child`)
    -----------                                     ----------------------------------------------
    Child("package.module", cpu_s=5)   -- start ->  no environment, no inherited file, no core dump,
                                                    bounded memory; imports the module, then gives up
                                                    writing files, opening others, sockets, processes
    .ask({"answer": "1/2"})     [token, {...}] -->   module.answer({"answer": "1/2"})
    {"right": True}             <-- [token, {...}]   at most 64 KiB, in at most ``cpu_s`` of computing

A reply is data and is never executed. Every failure is a reply with an ``error`` (`ERRORS`), so that the caller reports
the answer as *ungraded*, never as wrong.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import pathlib
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any

from ropd_jax.types import UserError

log = logging.getLogger(__name__)

MEMORY = 3 << 30  # bytes of address space: 10^(10^6) must not bring the machine down
REPLY_BYTES = 65_536
ERRORS = ("timeout", "memory", "crashed", "forbidden")  # in addition to errors of the module itself

_START_S = 120.0  # importing sympy takes long on a busy machine
_TRIES = 3  # attempts to start a process
_WALL = 12  # wall-clock limit in multiples of the CPU limit
_BOOT = (
    "import json, sys; sys.path[:0] = json.loads(sys.argv[1]); "
    "from ropd_jax.utils.sandbox_child import main; main(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))"
)


class StartError(UserError):
    """The child cannot be started; the message ends with the last line that the child printed."""


class Child:
    """One child process. It is used by one thread at a time.

    Args:
        module: a module with ``warm_up()``, which imports everything that it needs, and ``answer(request) -> reply``.
        cpu_s: seconds of computing per request, rounded up. It is the child's own CPU time, so that grading is the same
            on a busy machine as on an idle one.
        memory: bytes of address space.
        reply_bytes: maximum size of a reply; a child that writes more is ended.

    Raises:
        StartError: the child does not start, in three attempts.
    """

    def __init__(self, module: str, *, cpu_s: float, memory: int = MEMORY, reply_bytes: int = REPLY_BYTES):
        self._reply_bytes = reply_bytes
        self._command = [sys.executable, "-I", "-c", _BOOT, json.dumps(_search_path())]
        self._command += [module, str(math.ceil(cpu_s)), str(memory)]
        self._wall_s = _WALL * cpu_s
        for attempt in range(_TRIES):
            self._start()
            if self._line(_START_S) == b"ready\n":
                return
            printed = self.close().strip()
            log.debug("a child for %s did not start (attempt %d): %s", module, attempt + 1, printed)
        raise StartError(printed.splitlines()[-1] if printed else f"it printed nothing in {_START_S:.0f} s")

    def _start(self) -> None:
        self._stderr = tempfile.TemporaryFile()  # an unread pipe would fill up  # noqa: SIM115
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, bufsize=0,
            env={}, cwd="/", close_fds=True, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self._buffer = b""
        self.alive = True

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: Mapping[str, Any], stopped: threading.Event | None = None) -> dict[str, Any]:
        """The reply to one request: what ``answer`` returned, or ``{"error": ...}``.

        ``alive`` is False afterwards if the child has ended or must be ended; the caller closes it.

        Args:
            stopped: ends the wait early if it is set.
        """
        token = secrets.token_hex(8)  # no earlier reply can contain it
        if self.has_ended() or not self._send(json.dumps([token, request]).encode() + b"\n"):
            self.alive = False
            return {"error": "crashed"}
        line = self._line(self._wall_s, stopped)
        if line is None:
            ended, self.alive = not self.alive, False
            out_of_time = not ended or self._process.wait() == -signal.SIGXCPU
            return {"error": "timeout" if out_of_time else "crashed"}
        match _decoded(line):
            case [echo, dict() as reply] if echo == token and not self._buffer:
                return reply
        self.alive = False  # a line that is not our reply: from here on, replies and requests could be out of sync
        return {"error": "crashed"}

    def has_ended(self) -> bool:
        """True if the process has ended on its own."""
        return self._process.poll() is not None

    def _send(self, data: bytes) -> bool:
        try:
            while data:
                data = data[self._in.write(data) :]
        except OSError:  # the child has ended
            return False
        return True

    def _line(self, timeout_s: float, stopped: threading.Event | None = None) -> bytes | None:
        """The next line; None if there is none in time, if it is too long, or if the process has ended."""
        end = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or (stopped is not None and stopped.is_set()):
                return None
            if select.select([self._out], [], [], min(left, 0.2))[0]:
                data = os.read(self._out.fileno(), REPLY_BYTES)
                if not data or len(self._buffer) > self._reply_bytes:
                    self._process.kill()
                    self.alive = False
                    return None
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line + b"\n"

    def close(self) -> str:
        """Ends the process; returns what it wrote to standard error before it was ready."""
        self.alive = False
        if self._stderr.closed:
            return ""
        self._process.kill()
        self._process.wait()
        self._in.close()
        self._out.close()
        with self._stderr as file:
            file.seek(0)
            return file.read(REPLY_BYTES).decode("utf-8", "replace")


class Service:
    """A child that starts at the first request, lives as long as our process, and is replaced if it dies.

    Any number of threads can call `ask`; they take turns.
    """

    def __init__(self, module: str, *, cpu_s: float, memory: int = MEMORY, reply_bytes: int = REPLY_BYTES):
        self._how: dict[str, Any] = {"cpu_s": cpu_s, "memory": memory, "reply_bytes": reply_bytes}
        self._module = module
        self._lock = threading.Lock()
        self._child: Child | None = None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to one request, see `Child.ask`.

        Raises:
            StartError: the child does not start.
        """
        with self._lock:
            if self._child is not None and self._child.has_ended():  # while it was idle
                self._end()
            if self._child is None:
                self._child = Child(self._module, **self._how)
                atexit.register(self._child.close)
            reply = self._child.ask(request)
            if not self._child.alive:
                self._end()
            return reply

    def close(self) -> None:
        """Ends the child, if there is one; the next request starts another."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._child is not None:
            atexit.unregister(self._child.close)
            self._child.close()
            self._child = None


def _decoded(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _search_path() -> list[str]:
    """The module search path of our process, for the child, which has no PYTHONPATH."""
    root = str(pathlib.Path(__file__).parents[2])
    return [root, *(str(pathlib.Path(p).resolve()) for p in sys.path if p and p != root)]
