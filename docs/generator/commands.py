"""The page of commands, from the flags that parse them."""

from __future__ import annotations

import inspect
import textwrap

from docs.generator.markdown import code, from_docstring, linked, table
from ropd_jax.cli import main
from ropd_jax.cli.flags import OVERRIDE, Command
from ropd_jax.cli.help import help_text

HEAD = """# Commands

What `ropd COMMAND --help` prints, made from the same tables. In the names of flags and config keys `-` and `_` are the
same: `--max-tokens` is `--max_tokens`. [Runs that are preempted](../launch.md#exit-codes) says which exit codes are
worth another start.
"""


def page() -> str:
    """The page."""
    parts = [HEAD]
    for title, commands in main.GROUPS.items():
        parts.append(
            table((title.capitalize(), ""), [(f"[`ropd {c.name}`](#{_anchor(c)})", c.summary) for c in commands])
        )
    parts += [_exit_codes(), *(_section(c) for commands in main.GROUPS.values() for c in commands)]
    return "\n\n".join(parts) + "\n"


def _anchor(command: Command) -> str:
    return f"ropd-{command.name}"


def _exit_codes() -> str:
    rows = [
        line.strip().split(maxsplit=1)
        for line in inspect.cleandoc(main.main.__doc__ or "").split("\n")
        if line[:1].isdigit()
    ]
    return "## Exit codes\n\n" + table(("Code", "Meaning"), [(c, _prose(text)) for c, text in rows])


def _section(command: Command) -> str:
    usage = help_text(command).partition("\n\n")[0].removeprefix("usage: ")
    parts = [
        f"## `ropd {command.name}` {{ #{_anchor(command)} }}",
        _cap(command.summary),
        code(usage),
        _text(command.intro),
    ]
    sections: dict[str, list[tuple[str, str]]] = {}
    for flag in command.all_flags:
        default = (
            "" if flag.required or flag.default in ("", None) or flag.type is bool else f" Default: `{flag.default}`."
        )
        sections.setdefault(flag.section, []).append((f"`{flag.shown}`", _prose(flag.help) + default))
    if command.config:
        sections.setdefault("flags", []).append((f"`{OVERRIDE}`", "Changes one key of the config; it keeps its type."))
    for title, rows in sections.items():
        parts.append(table((linked(_cap(title)), ""), rows))
    if command.notes:
        parts.append(_text(command.notes))
    if command.examples:
        parts.append(code("\n".join(command.examples)))
    return "\n\n".join(parts)


def _text(text: str) -> str:
    """An introduction: a line that begins with two spaces is kept as it is, as in the help."""
    parts, kept = [], False
    for line in textwrap.dedent(text).strip("\n").split("\n"):
        indented = line.startswith("  ")
        parts.append(("    " if indented and not kept else "") + line if not indented else f"    {line}")
        if indented and not kept and len(parts) > 1 and parts[-2].strip():
            parts.insert(-1, "")
        if kept and not indented and line.strip():
            parts.insert(-1, "")
        kept = indented
    return from_docstring("\n".join(_prose(p) if not p.startswith("    ") else p for p in parts))


def _prose(text: str) -> str:
    """Angle brackets and stars of a help text are not Markdown."""
    return linked(text.replace("<", "&lt;").replace("*", r"\*"))


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]
