"""``ropd configs``: the configs that come with the package, and every key of a config."""

from __future__ import annotations

import ast
import inspect
import io
import sys
import textwrap
import tokenize

from ropd_jax.cli.flags import Arguments, Command, Flag
from ropd_jax.types import UserError
from ropd_jax.utils.suggest import near

RESUME = {  # see `ropd_jax.workdir.keys`
    "identity": "a run continues only with the same value",
    "numerics": "a run continues with another value, up to rounding the same computation",
    "free": "a run continues with another value",
}


def run(args: Arguments) -> None:
    """Lists names with one line each; with NAME, prints where the file is and what it says about itself; with --keys,
    explains keys.

    Raises:
        UserError: no key or no config of this name.
    """
    from ropd_jax.utils import shipped

    if args["keys"] is not None:
        sys.stdout.write(_explained(args["keys"]))
        return
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
        "ropd configs --keys TEXT                  explains the keys that have TEXT in their names: --keys sampling",
        "ropd init DIR                             copies their files to DIR, to be changed",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _explained(text: str) -> str:
    """The keys whose name has the text, else those whose explanation has it: default, values, meaning."""
    from ropd_jax import configs
    from ropd_jax.workdir.changes import flatten
    from ropd_jax.workdir.keys import KEYS

    defaults, said = flatten(configs.default().to_dict()), comments()
    wanted = text.strip().lower().replace("-", "_")
    found = [key for key in KEYS if wanted in key] or [key for key in KEYS if text.strip().lower() in said[key].lower()]
    if not found:
        raise UserError(f"--keys {text}: no key and no explanation has this text; {near(wanted, KEYS)}")
    parts = []
    for key in found:
        rule, default = KEYS[key], defaults.get(key, {})
        rows = [f"{key} = {default!r}", f"    {rule.expected}; {rule.resume}"]
        rows += textwrap.wrap(said[key], 96, initial_indent="    ", subsequent_indent="    ")
        parts.append("\n".join(rows))
    used = [f"{name}: {what}" for name, what in RESUME.items() if any(KEYS[k].resume == name for k in found)]
    ending = f"{len(found)} of {len(KEYS)} keys, with their defaults. Set one with --config.KEY=VALUE."
    return "\n\n".join([*parts, "\n".join([ending, *used])]) + "\n"


def comments() -> dict[str, str]:
    """What the comments of ropd_jax/configs.py say about each key; "" where there is none."""
    from ropd_jax import configs
    from ropd_jax.workdir.keys import ROLES

    source = inspect.getsource(configs)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    prefixes = {"cfg": ("",), "role": tuple(f"teacher.{role}." for role in ROLES)}
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            variable, _, key = ast.unparse(node.targets[0]).partition(".")
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            text = " ".join(said[line] for line in lines if line in said)
            for prefix in prefixes.get(variable, ()):
                found[prefix + key] = found.get(prefix + key) or text
    return found


COMMAND = Command(
    name="configs",
    summary="the configs that come with the package, and what each key of a config does",
    intro="""
        Without NAME: lists the configs that come with the package, with one line each. With NAME: prints the path of
        the file and its description, which has the arguments that follow a colon (--config NAME:ARG). With --keys:
        explains the keys of a config.

        Every command with --config takes these names. A config of your own is a Python file, given by its path; it
        starts from ropd_jax.configs.default() and changes a few lines. ropd init DIR copies the package's own files.
    """,
    run=run,
    words=("[NAME]",),
    flags=(
        Flag(
            "keys",
            "TEXT",
            "Explains every key with TEXT in its name, or else in its explanation: default, allowed values, whether a "
            "run can continue with another value. --keys= explains all.",
            None,
            str,
        ),
    ),
    examples=(
        "ropd configs",
        "ropd configs mini",
        "ropd configs --keys teacher.verifier",
        "ropd train --config mini:method=sft --workdir runs/sft",
    ),
)
