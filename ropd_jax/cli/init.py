"""``ropd init``: a directory to work in, with the files that come with the package."""

from __future__ import annotations

import pathlib
import shlex
import sys

from ropd_jax.cli.flags import Arguments, Command
from ropd_jax.types import UserError
from ropd_jax.utils import shipped


def run(args: Arguments) -> None:
    """Copies the files that DIR does not have yet, and prints which, and what to do next."""
    from ropd_jax.utils.paths import only_local

    target = only_local(args.words[0], "the directory of ropd init")
    written, kept = copy(target)
    sys.stdout.write(report(target, written, kept))


def copy(target: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Copies `shipped.FOLDERS` into a directory; a file that exists there is never overwritten.

    Returns:
        The files that were written and those that were kept, relative to ``target``.

    Raises:
        UserError: ``target`` or a folder in it cannot be made, or a file cannot be written.
    """
    written, kept = [], []
    for name in shipped.FOLDERS:
        for path in shipped.files(name):
            source, relative = shipped.folder(name) / path, pathlib.Path(name) / path
            to = target / relative
            try:
                to.parent.mkdir(parents=True, exist_ok=True)
                with to.open("xb") as file:
                    file.write(source.read_bytes())
                if source.stat().st_mode & 0o100:  # a launch script
                    to.chmod(to.stat().st_mode | 0o111)
            except FileExistsError:
                if not to.parent.is_dir():
                    raise UserError(f"{to.parent} is a file, and ropd init needs a directory there") from None
                kept.append(relative)
            except OSError as error:
                raise UserError(f"cannot write {to}: {error.strerror}; choose another directory") from error
            else:
                written.append(relative)
    return written, kept


def report(target: pathlib.Path, written: list[pathlib.Path], kept: list[pathlib.Path]) -> str:
    """What was written and kept, by folder, and the next commands."""
    from ropd_jax.cli.help import columns

    parts = []
    for title, paths in (("wrote", written), ("kept, because they exist", kept)):
        rows = []
        for name in shipped.FOLDERS:
            inside = [str(path.relative_to(name)) for path in paths if path.parts[0] == name]
            rows += [(f"{name}/", " ".join(inside))] if inside else []
        if rows:
            parts.append("\n".join([f"{title}: {len(paths)} files in {target}", *columns(rows)]))
    enter = "" if target == pathlib.Path() else f"  cd {shlex.quote(str(target))}\n"
    parts.append(
        f"next\n{enter}"
        "  ropd train --config experiments/quickstart.py --workdir runs/quickstart\n"
        "  pip install 'ropd_jax[notebooks]' jupyterlab && jupyter lab notebooks\n"
        "  experiments/README.md has the commands and results of every experiment; launch/ starts runs on clusters"
    )
    return "\n\n".join(parts) + "\n"


COMMAND = Command(
    name="init",
    summary="copy the package's configs, tables, notebooks and launch scripts to a directory",
    intro="""
        Writes experiments/, notebooks/ and launch/ into DIR: the files of the version that is installed, to be read and
        changed. A file that exists is never overwritten; it is kept and listed.
    """,
    run=run,
    words=("DIR",),
    missing="which directory? expected it first, e.g. ropd init my_experiments (ropd init . is the current one)",
    examples=("ropd init my_experiments", "ropd init ."),
)
