"""``ropd view``: a run in the browser."""

from __future__ import annotations

import getpass
import os
import socket
import sys
import urllib.parse

from ropd_jax.cli.flags import Arguments, Command, Flag


def run(args: Arguments) -> None:
    """Serves until Ctrl-C."""
    from ropd_jax.utils.paths import only_local
    from ropd_jax.viewer import server

    directory = only_local(args.words[0] if args.words else "runs", "DIR")
    server.serve(directory, port=args["port"], told=_tell)


def _tell(url: str) -> None:
    sys.stdout.write(f"{url}\nStop it with Ctrl-C.\n")
    if os.environ.get("SSH_CONNECTION"):
        port = urllib.parse.urlsplit(url).port
        user = getpass.getuser()
        sys.stdout.write(f"On your own machine: ssh -L {port}:127.0.0.1:{port} {user}@{socket.gethostname()}\n")
    sys.stdout.flush()


COMMAND = Command(
    name="view",
    summary="a run in the browser: curves, groups, and why each answer got its reward",
    intro="""
        Serves a page for one run, or for a folder of runs (by default runs/), and prints its address. Open the whole
        address: its token is what lets you in. The server listens on 127.0.0.1 only and writes nothing; the page shows
        new steps while a run trains. In an SSH session the command also prints the ssh -L line that reaches it.
    """,
    run=run,
    words=("[DIR]",),
    flags=(Flag("port", "N", "Port on 127.0.0.1; 0 is any free one.", 0, low=0, high=65535),),
    examples=("ropd view runs/quickstart", "ropd view runs --port 8810"),
)
