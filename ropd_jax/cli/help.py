"""Help texts, made from the flags of a command: ``ropd COMMAND --help``.

usage: ropd timeline RUN [--steps a:b] [--out DIR]      from words and flags

Prints in one line what the run waits for, ...          the introduction

flags
  --steps a:b  Steps a to b-1 only; ...                 each flag with its help and default

examples
  ropd timeline runs/quickstart
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from ropd_jax.cli.flags import CONFIG, OVERRIDE, Command, Flag

WIDTH = 100  # columns of a help text
LEFT = 30  # columns of a flag's name; a longer one gets a line of its own


def help_text(command: Command) -> str:
    """The help of a command: usage, introduction, flags with their defaults, examples; `WIDTH` columns."""
    parts = [_usage(command), paragraphs(command.intro)]
    sections: dict[str, list[tuple[str, str]]] = {}
    for flag in command.all_flags:
        sections.setdefault(flag.section, []).append((flag.shown, _with_default(flag)))
    if command.config == "optional":
        sections.setdefault("flags", []).append((CONFIG.shown, f"{CONFIG.help} Optional here."))
    if command.config:
        text = "Changes one key of the config; it keeps its type. ropd configs --keys explains them."
        sections.setdefault("flags", []).append((OVERRIDE, text))
    for title, rows in sections.items():
        parts.append("\n".join([title, *columns(rows)]))
    if command.notes:
        parts.append(paragraphs(command.notes))
    if command.examples:
        parts.append("\n".join(["examples", *(f"  {line}" for line in command.examples)]))
    return "\n\n".join(parts) + "\n"


def _usage(command: Command) -> str:
    head = f"ropd {command.name}"
    lines = [f"{head} {usage}" for usage in command.usages]
    if not lines:
        required = [f.shown for f in command.all_flags if f.required]
        optional = [f"[{f.shown.replace(', ', '|')}]" for f in command.all_flags if not f.required]
        config = [f"[{OVERRIDE} ...]"] if command.config else []
        file = [f"[{CONFIG.shown}]"] if command.config == "optional" else []
        lines = _wrapped(head, [*command.words, *required, *optional, *file, *config])
    return "\n".join(("usage: " if i == 0 else " " * 7) + line for i, line in enumerate(lines))


def _wrapped(head: str, parts: Sequence[str]) -> list[str]:
    """Words of a usage line, wrapped between flags and never inside of one."""
    lines, indent = [head], " " * len(head)
    for part in parts:
        if len(lines[-1]) + 1 + len(part) > WIDTH - len("usage: "):
            lines.append(indent)
        lines[-1] += f" {part}"
    return lines


def _with_default(flag: Flag) -> str:
    if flag.required or flag.default in ("", None) or flag.type is bool:
        return flag.help
    default = f"{flag.default:g}" if flag.type is float else str(flag.default)
    return f"{flag.help} Default: {default}."


def columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Two columns, the second wrapped; the first as wide as its longest name of at most `LEFT` columns."""
    width = max((len(name) for name, _ in rows if len(name) <= LEFT), default=LEFT)
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, WIDTH - width - 4) or [""]
        if len(name) > width:
            lines.append(f"  {name}")
            name = ""
        lines.append(f"  {name:<{width}}  {wrapped[0]}".rstrip())
        lines += [" " * (width + 4) + line for line in wrapped[1:]]
    return lines


def paragraphs(text: str) -> str:
    """Text wrapped to `WIDTH`, paragraph by paragraph; a line that begins with two spaces is kept as it is."""
    done: list[str] = []
    for block in textwrap.dedent(text).strip("\n").split("\n\n"):
        lines: list[str] = []
        flowing: list[str] = []
        for line in [*block.split("\n"), "  "]:
            if line.startswith("  "):
                lines += textwrap.wrap(" ".join(flowing), WIDTH)
                flowing = []
                lines += [line] if line.strip() else []
            else:
                flowing.append(line)
        done.append("\n".join(lines))
    return "\n\n".join(done)
