"""The page of config keys: default, values, the paper's and the released code's value, and what a resume allows."""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any

from docs.generator.markdown import linked, table
from ropd_jax import configs
from ropd_jax.workdir.keys import KEYS

A2 = "Table A2"
PAPER: Mapping[str, tuple[Any, str]] = {  # key -> the value that arXiv 2605.07396 gives, and where
    "steps": (531, f"{A2}, mathematics; 625 for science and medicine"),
    "student.dtype": ("bfloat16", A2),
    "data.prompts_per_step": (32, A2),
    "sampling.rollouts": (8, A2),
    "sampling.max_tokens": (8_192, A2),
    "sampling.temperature": (1.0, A2),
    "teacher.references": (4, A2),
    "teacher.reference.temperature": (0.0, A2),
    "teacher.rubricator.temperature": (0.7, A2),
    "teacher.verifier.temperature": (0.0, A2),
    "ropd.least_criteria": (4, A2),
    "ropd.most_criteria": (12, A2),
    "ropd.rubric_per": ("group", "Table 6, the full method"),
    "ropd.blind": (True, "Table 6, the full method"),
    "loss.normalize_std": (True, "Eq. 6"),
    "loss.aggregation": ("seq_mean", "Eq. 8"),
    "optim.lr": (1e-6, A2),
    "optim.schedule": ("cosine", A2),
    "optim.warmup_steps": (100, A2),
    "optim.b1": (0.9, A2),
    "optim.b2": (0.95, A2),
    "optim.weight_decay": (0.1, A2),
    "optim.clip_norm": (1.0, A2),
}
ROLES = ("reference", "rubricator", "verifier", "scorer", "judge")
RESUME = {
    "identity": "no: `--fork`",
    "numerics": "yes, with a warning",
    "free": "yes",
}

HEAD = """# Config keys

Every key of a config with its default. This page is made from `ropd_jax/configs.py` and from the
table that checks values and resumes, `ropd_jax/workdir/keys.py`.

- **Takes** is what the key accepts. Another value ends the command in one line.
- **Paper** is the value of arXiv 2605.07396 and where the paper gives it; the cell is empty if the paper gives none.
  **Released** is the value of the official code where it differs. `configs.paper_run("paper")` and
  `configs.paper_run("released")` set them; [Reproduce a table](../reproduce.md) compares the two columns.
- **Change on resume** says whether a run continues in its directory after the key was changed. "By content" means that
  another path to the same content is not a change. [Resume, extend, change, fork](../resume.md) has the rules.

Set a key on the command line with `--config.KEY=VALUE`, or in a config file with `cfg.KEY = VALUE`.
"""


def page() -> str:
    """The page."""
    paper, released = (configs.paper_run(column) for column in ("paper", "released"))
    said = comments()
    parts = [HEAD]
    for title, section, names in _sections():
        parts.append(f"## {title}")
        if section in said:
            parts.append(f"{_sentence(said[section])}")
        rows = [_row(name, said.get(_of_role(name), ""), paper, released) for name in names]
        parts.append(table(("Key and default", "What it is", "Takes", "Paper", "Released", "Change on resume"), rows))
    return "\n\n".join(parts) + "\n"


def comments() -> dict[str, str]:
    """The comment of each key and section in `configs.default`; those of a role are under ``ROLE.name``."""
    found = _commented(configs.default, "cfg")
    return found | {f"ROLE.{name}": text for name, text in _commented(configs._role, "role").items()}


def _commented(function: Any, variable: str) -> dict[str, str]:
    """The comments of ``variable.key = value  # comment`` in a function, by key."""
    text = inspect.getsource(function)
    lines: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0]] = token.string.lstrip("# ")
    found = {}
    for statement in ast.walk(ast.parse(text)):
        if isinstance(statement, ast.Assign) and statement.end_lineno:
            target = ast.unparse(statement.targets[0])
            said = [lines[n] for n in range(statement.lineno, statement.end_lineno + 1) if n in lines]
            if target.startswith(f"{variable}.") and said:
                found[target.removeprefix(f"{variable}.")] = " ".join(said)
    return found


def _of_role(name: str) -> str:
    """Where the comment of a key is: the keys that all roles have are described once."""
    section, _, last = name.rpartition(".")
    return f"ROLE.{last}" if section in [f"teacher.{role}" for role in ROLES] and last in _role_keys() else name


def _role_keys() -> set[str]:
    return set(configs._role(temperature=0.0, max_output_tokens=1))


def _sections() -> Iterator[tuple[str, str, list[str]]]:
    """(title, section, its keys) in the order of the table of keys."""
    found: dict[str, list[str]] = {}
    for name in KEYS:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    for section, names in found.items():
        yield f"`{section}`" if section else "The run", section, names


def _row(name: str, comment: str, paper: Any, released: Any) -> tuple[str, ...]:
    key = KEYS[name]
    theirs, ours = configs.lookup(released, name), configs.lookup(paper, name)
    where = f"{_shown(PAPER[name][0])} ({PAPER[name][1]})" if name in PAPER else ""
    resume = RESUME[key.resume] + (" (by content)" if key.by_content else "")
    parts = name.replace(".", ".<wbr>").replace("_", "_<wbr>")  # where a narrow column can break it
    head = f'<code id="{name}">{parts}</code><br>{_shown(configs.lookup(configs.default(), name))}'
    return head, _sentence(comment), key.expected, where, "" if theirs == ours else _shown(theirs), resume


def _shown(value: Any) -> str:
    if isinstance(value, configs.ConfigDict):
        return f"`{value.to_dict()}`"
    return f"`{value!r}`"


def _sentence(text: str) -> str:
    """A comment as the beginning of a sentence; braces and stars are not Markdown."""
    text = text.replace("*", r"\*").replace("<", "&lt;").replace("[", r"\[")
    return linked(text[:1].upper() + text[1:] if re.match(r"[a-z]+[ ,;:]", text) else text)
