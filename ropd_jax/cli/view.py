"""``ropd view``: a run in the browser."""

from __future__ import annotations

import dataclasses
import getpass
import os
import pathlib
import socket
import sys
import urllib.parse

from ropd_jax.cli.flags import STEPS, Arguments, Command, Flag, steps_of
from ropd_jax.types import UserError


def run(args: Arguments) -> None:
    """Serves until Ctrl-C, or writes a bundle."""
    from ropd_jax.utils.packages import need
    from ropd_jax.utils.paths import only_local

    need("aiohttp", extra="view", what="ropd view")
    from ropd_jax.viewer import server

    directory = only_local(args.words[0] if args.words else "runs", "DIR")
    if args["bundle"]:
        return _bundle(directory, args)
    for name in ("without", "groups", "steps"):
        if args[name]:
            raise UserError(f"--{name} belongs to a bundle; give --bundle DIR too")
    server.serve(directory, port=args["port"], told=_tell)


def _bundle(directory: pathlib.Path, args: Arguments) -> None:
    from rich.progress import BarColumn, Progress, TextColumn

    from ropd_jax.utils import tables
    from ropd_jax.utils.paths import only_local
    from ropd_jax.viewer import bundle

    out = only_local(args["bundle"], "--bundle")
    choice = bundle.Choice(
        without=frozenset(name.strip() for name in args["without"].split(",") if name.strip()),
        worst=_worst(args["groups"]),
        steps=steps_of(args["steps"]),
    )
    count = TextColumn("{task.completed}/{task.total} replies", markup=False)
    with Progress(count, BarColumn(), console=tables.console(sys.stderr), transient=True) as bar:
        task = bar.add_task("", total=None)
        about = bundle.make(directory, out, choice, progress=lambda n, of: bar.update(task, completed=n, total=of))
    files = [p for p in out.rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files) / 1e6
    without = f", without {', '.join(about['without'])}" if about["without"] else ""
    sys.stdout.write(f"{out}/index.html: {about['groups']} groups{without}; {len(files)} files, {size:.1f} MB\n")


def _worst(groups: str) -> int | None:
    """N of ``worst:N``; None for all.

    Raises:
        UserError: another text.
    """
    if not groups:
        return None
    kind, _, number = groups.partition(":")
    if kind != "worst" or not number.isdecimal() or not int(number):
        raise UserError(f"--groups={groups!r:.40} chooses nothing; expected worst:N, e.g. worst:50")
    return int(number)


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

        With --bundle it writes a static copy of one run's page instead, which opens from the file system and can be
        sent to a colleague: DIR/index.html. An existing bundle in DIR is replaced; any other folder with files is
        refused.
    """,
    run=run,
    words=("[DIR]",),
    flags=(
        Flag("port", "N", "Port on 127.0.0.1; 0 chooses a free one.", 0, low=0, high=65535),
        Flag("bundle", "DIR", "Write a static copy to DIR and serve nothing.", section="bundle"),
        Flag(
            "without",
            "PARTS",
            "What the copy leaves out, separated by commas: references, prompts, texts (the students' answers), "
            "criteria. Requests to the teacher are then left out, too.",
            section="bundle",
        ),
        Flag("groups", "worst:N", "Only the N groups with the lowest mean reward. Default: all.", section="bundle"),
        dataclasses.replace(STEPS, section="bundle"),
    ),
    examples=(
        "ropd view runs/quickstart",
        "ropd view runs --port 8810",
        "ropd view runs/quickstart --bundle quickstart-page --without references,prompts --groups worst:50",
    ),
)
