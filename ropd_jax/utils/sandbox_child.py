"""The program of a `sandbox` child: it imports one module, restricts itself, and answers requests until stdin ends.

In this order, so that no foreign text is read before all restrictions are active::

    1. limits on memory and core dumps          5. ready
    2. module.warm_up()   all imports           6. per request: a new CPU limit, then module.answer
    3. limits on files, output and processes
    4. `Guard`            forbids the rest

The limits hold whatever happens in the process. The guard is a Python audit hook: it prevents starting programs,
opening sockets, writing files, and reading files other than Python's own. It is a second line of defence, not a jail:
the modules that run here do not execute text in the first place.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import resource
import sys
from typing import Any

OPEN_FILES = 32
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = frozenset(
    ("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill", "os.killpg")
    + ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
    + ("os.chown", "os.listdir", "os.scandir", "subprocess.Popen", "pty.spawn", "signal.pthread_kill")
    + ("resource.setrlimit", "resource.prlimit")
)
FORBIDDEN_ROOMS = ("socket.", "ctypes.", "shutil.", "tempfile.", "urllib.", "http.", "smtplib.", "ftplib.", "sqlite3.")


class Guard:
    """The audit hook. ``refused`` is the name of the last event that it refused, or None.

    A scorer that catches every exception would turn a refusal into "wrong", so `main` checks ``refused``.
    """

    def __init__(self) -> None:
        roots = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path}
        self._roots = tuple(os.path.realpath(root) + os.sep for root in roots if root)
        self.refused: str | None = None
        self.allows_limits = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(path, int) or (not flags & WRITING and self._is_ours(path)):
                return
        elif event == "resource.setrlimit" and self.allows_limits:
            return
        elif event in ("os.listdir", "os.scandir"):  # the import system lists the folders of its path
            if isinstance(args[0], str | bytes) and self._is_ours(args[0]):
                return
        elif event not in FORBIDDEN and not event.startswith(FORBIDDEN_ROOMS):
            return
        self.refused = event
        raise PermissionError(f"{event} is forbidden in a process that reads foreign text")

    def _is_ours(self, path: str | bytes) -> bool:
        name = os.fsdecode(path)  # a link in our folders can lead elsewhere, so both names are checked
        return any(
            (whole + os.sep).startswith(self._roots) for whole in (os.path.realpath(name), os.path.abspath(name))
        )


def main(module: str, cpu_s: int, memory: int) -> None:
    """Answers requests; see the module's docstring.

    Args:
        cpu_s: seconds of CPU time per request; then the system ends the process (SIGXCPU), whatever it is
            doing.
        memory: bytes of address space.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # threads reserve address space
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    logging.disable(logging.WARNING)
    out = os.dup(1)
    os.dup2(2, 1)  # output of libraries must not mix with the replies
    work = importlib.import_module(module)
    work.warm_up()

    _drop_output()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    sys.dont_write_bytecode = True
    guard = Guard()
    sys.addaudithook(guard)
    os.write(out, b"ready\n")
    for line in sys.stdin.buffer:
        token, request = json.loads(line)
        _limit_cpu(cpu_s, guard)
        guard.refused = None
        reply = _reply(work.answer, request)
        if guard.refused is not None:
            reply = {"error": "forbidden"}
        data = _encoded(token, reply)
        while data:
            data = data[os.write(out, data) :]


def _encoded(token: str, reply: dict[str, Any]) -> bytes:
    try:
        return json.dumps([token, reply]).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        return json.dumps([token, {"error": type(error).__name__}]).encode() + b"\n"


def _drop_output() -> None:
    """Discards standard output and error; the parent has read them up to here."""
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _limit_cpu(cpu_s: int, guard: Guard) -> None:
    """``cpu_s`` more seconds than the process has used, because the system's limit counts from its start."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    end = int(used.ru_utime + used.ru_stime) + cpu_s + 1
    guard.allows_limits = True
    resource.setrlimit(resource.RLIMIT_CPU, (end, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    guard.allows_limits = False


def _reply(answer: Any, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return answer(request)
    except MemoryError:
        return {"error": "memory"}
    except BaseException as error:  # including SystemExit from hostile text: it is reported, and the child continues
        try:
            return {"error": f"{type(error).__name__}: {error}"[:300]}
        except Exception:  # an error whose text cannot be created, such as for an integer of a million digits
            return {"error": type(error).__name__}
