"""``ropd configs``: the configs that come with the package."""

from __future__ import annotations

import sys

from ropd_jax.cli.flags import Arguments, Command


def run(args: Arguments) -> None:
    """Lists names with one line each; with NAME, prints where the file is and what it says about itself."""
    from ropd_jax import configs
    from ropd_jax.utils import shipped

    known = shipped.experiments("get_config")
    if args.words:
        path = shipped.find(args.words[0], "get_config", "config")
        sys.stdout.write(f"{path}\n\n{shipped.docstring(path)}\n")
        return
    width = max(map(len, known), default=0)
    first = {name: shipped.docstring(path).partition("\n")[0] for name, path in known.items()}
    lines = [f"{name:<{width}}  {line.partition(':')[0]}" for name, line in first.items()]
    lines += [
        "",
        "ropd train --config NAME --workdir DIR    trains with one of them",
        "ropd configs NAME                         prints its description: arguments, data, hardware, expected result",
        "ropd init DIR                             copies their files to DIR, to be changed",
        "",
        f"Every key with its default: {configs.__file__}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


COMMAND = Command(
    name="configs",
    summary="the configs that come with the package, which --config takes by name",
    intro="""
        Without NAME: lists the configs that come with the package, with one line each. With NAME: prints the path of
        the file and its description, which has the arguments that follow a colon (--config NAME:ARG).

        Every command with --config takes these names. A config of your own is a Python file, given by its path; it
        starts from ropd_jax.configs.default() and changes a few lines. ropd init DIR copies the package's own files.
    """,
    run=run,
    words=("[NAME]",),
    examples=(
        "ropd configs",
        "ropd configs mini",
        "ropd train --config mini:method=sft --workdir runs/sft",
    ),
)
