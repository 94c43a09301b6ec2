"""llama.cpp's server, started for one GGUF file on a port of loopback.

    with serving("PYTHON", "qwen15.gguf", threads=2) as address:      # PYTHON has xllamacpp, the server as a wheel
        ...                                                           # http://127.0.0.1:PORT/v1
    with serving("build/bin/llama-server", "qwen15.gguf") as address:

The wheel (``pip install xllamacpp``) is built for AVX2. llama.cpp built on the machine itself uses all of its
instructions. Flash attention and repacked weights are off: on one CPU a build of September 2026 wrote nonsense with
both, and gave other verdicts than the wheel with repacked weights, without any error. Each server is asked for a sum
first, which shows the worst.

The server runs in a child process, so this package requires neither. It keeps the tokens of the last prompt of each
slot, so calls that begin with the same text should follow each other.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

BINARY = "llama-server"
WHEEL = """
import os, sys, time, xllamacpp
parent, model, port, threads, context, slots = int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
p = xllamacpp.CommonParams()
p.model.path, p.port, p.hostnames = model, port, ["127.0.0.1"]
p.n_ctx, p.n_parallel = context, slots
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(p)
while os.getppid() == parent:  # a killed parent cannot end it
    time.sleep(1)
os._exit(0)
"""
WATCHED = """
import os, subprocess, sys, time
parent, server = int(sys.argv[1]), subprocess.Popen(sys.argv[2:])
while os.getppid() == parent and server.poll() is None:
    time.sleep(1)
server.kill()
"""
STARTED_S = 120.0
QUESTION, ANSWER = "What is 2 + 3? Answer with the number.", "5"


@contextlib.contextmanager
def serving(
    server: str,
    model: str | os.PathLike[str],
    threads: int = 2,
    *,
    port: int = 0,
    context: int = 16384,
    slots: int = 1,
) -> Iterator[str]:
    """The address of a server with the model, on loopback. The server ends with the block, or with this process.

    Args:
        server: an interpreter that has ``xllamacpp``, or the program `BINARY` of llama.cpp.
        model: a GGUF file.
        threads: number of server threads. Two threads that share a core are much slower than one.
        port: 0 chooses a free one. A tape warns if the server later has another port.
        context: tokens, summed over all slots.
        slots: number of concurrent requests.

    Raises:
        SystemExit: the program, the file, the port or the server fails; with the end of the server's log.
    """
    if not pathlib.Path(model).is_file():
        raise SystemExit(f"model {os.fspath(model)!r} does not exist; expected a GGUF file")
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of a server that has just ended
        try:
            s.bind(("127.0.0.1", port))
        except OSError as error:
            raise SystemExit(
                f"port {port} is in use ({error.strerror}); choose another one, or 0 for a free one"
            ) from error
        port = s.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                _command(server, os.fspath(model), port, threads, context, slots),
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise SystemExit(
                f"cannot run {server!r} ({error.strerror}); expected {BINARY}, or a Python interpreter that has "
                "xllamacpp (python -m venv llama; llama/bin/pip install xllamacpp)"
            ) from error
        try:
            deadline = time.monotonic() + STARTED_S
            while not _healthy(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    end = log.read()[-500:].decode(errors="replace")
                    raise SystemExit(f"the server for {os.fspath(model)} does not start: {end}")
                time.sleep(0.5)
            address = f"http://127.0.0.1:{port}/v1"
            if said := nonsense(address):
                print(
                    f"warning: {os.fspath(model)} answers {QUESTION!r} with {said!r:.60}; expected {ANSWER}. Either it "
                    "cannot add, or this build of the server computes wrongly: read some replies before you trust them",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
            yield address
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a watched server has its watcher's group
            process.wait()


def _command(server: str, model: str, port: int, threads: int, context: int, slots: int) -> list[str]:
    """The child's command. It ends with this process, even if this process is killed.

    Raises:
        FileNotFoundError: no such program.
    """
    if not pathlib.Path(server).name.startswith(BINARY):
        numbers = (port, threads, context, slots)
        return [server, "-c", WHEEL, str(os.getpid()), model, *map(str, numbers)]
    if shutil.which(server) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), server)
    flags = {"-m": model, "--host": "127.0.0.1", "--port": port, "-t": threads, "-tb": threads, "-c": context}
    flags |= {"-np": slots, "-fa": "off"}
    program = [server, *(str(x) for flag in flags.items() for x in flag), "--no-repack"]
    return [sys.executable, "-c", WATCHED, str(os.getpid()), *program]


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def nonsense(address: str) -> str:
    """What the server says to `QUESTION` if it does not contain the answer; "" if it does, or cannot be asked."""
    asked = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16, "temperature": 0}
    request = urllib.request.Request(
        f"{address}/chat/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=STARTED_S) as reply:
            said = str(json.load(reply)["choices"][0]["message"]["content"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return "" if ANSWER in said else said or "nothing"
