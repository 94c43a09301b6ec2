"""llama.cpp's server as a wheel (``pip install xllamacpp``), started for one GGUF file on a port of loopback.

    with serving("PYTHON", "qwen15.gguf", threads=2) as address:      # PYTHON has xllamacpp
        ...                                                           # http://127.0.0.1:PORT/v1

The server is a child process with a small script, so this package does not require xllamacpp. It keeps the tokens of
the last prompt of each slot, so calls that begin with the same text should follow each other.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

SERVER = """
import os, sys, time, xllamacpp
model, port, threads, context, slots, parent = sys.argv[1], *map(int, sys.argv[2:])
p = xllamacpp.CommonParams()
p.model.path, p.port, p.hostnames = model, port, ["127.0.0.1"]
p.n_ctx, p.n_parallel = context, slots
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(p)
while os.getppid() == parent:  # a killed parent cannot end it
    time.sleep(1)
os._exit(0)
"""
STARTED_S = 120.0


@contextlib.contextmanager
def serving(
    python: str,
    model: str | os.PathLike[str],
    threads: int = 2,
    *,
    port: int = 0,
    context: int = 16384,
    slots: int = 1,
) -> Iterator[str]:
    """The address of a server with the model, on loopback. The server ends with the block, or with this process.

    Args:
        python: an interpreter that has ``xllamacpp``.
        model: a GGUF file.
        threads: number of server threads. Two threads that share a core are much slower than one.
        port: 0 chooses a free one. A tape warns if the server later has another port.
        context: tokens, summed over all slots.
        slots: number of concurrent requests.

    Raises:
        SystemExit: the interpreter, the file, the port or the server fails; with the end of the server's log.
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
    numbers = (port, threads, context, slots, os.getpid())
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                [python, "-c", SERVER, os.fspath(model), *map(str, numbers)], stdout=log, stderr=log
            )
        except OSError as error:
            raise SystemExit(
                f"cannot run {python!r} ({error.strerror}); expected a Python interpreter that has xllamacpp "
                "(python -m venv llama; llama/bin/pip install xllamacpp)"
            ) from error
        try:
            deadline = time.monotonic() + STARTED_S
            while not _healthy(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    end = log.read()[-500:].decode(errors="replace")
                    raise SystemExit(f"the server for {os.fspath(model)} does not start: {end}")
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()
            process.wait()


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False
