"""The page of the public names: a directive of mkdocstrings for each name of `ropd_jax`."""

from __future__ import annotations

import importlib
import inspect

import ropd_jax
from docs.generator.markdown import code

HEAD = """# Python API

Signatures and docstrings of the names that `import ropd_jax as ropd` offers, from the source. [The public
API](../api.md) shows how they are used together. Everything else in the package can change.
"""
GROUPS = {  # title -> names, in the order of docs/api.md; what is in none of them comes last
    "Configs": ("default_config", "load_config"),
    "The student": ("load_student", "sample", "update"),
    "The teacher": ("make_teacher", "judge", "Teacher"),
    "Runs": ("train", "evaluate", "open_run"),
    "Data": ("Prompt", "Message", "Rollout", "RolloutGroup", "Rubric", "Judgement", "Method"),
    "Errors": ("UserError", "TeacherError", "BudgetError", "TooManyFailures", "Interrupted"),
}
HOMES = {"Teacher": "teacher.teacher"}  # name -> the module that defines it, where the package imports it from another
MEMBERS = {  # name -> what of it is public, where that is less than the names without an underscore
    "Teacher": ("references", "induce_rubric", "verify", "score", "blocking", "close"),
}


def page() -> str:
    """The page."""
    listed = [name for names in GROUPS.values() for name in names]
    others = tuple(name for name in ropd_jax._HOME if name not in listed)
    parts = [HEAD]
    for title, names in {**GROUPS, "Others": others}.items():
        if names:
            parts += [f"## {title}", *(directive(name) for name in names)]
    return "\n\n".join(parts) + "\n"


def directive(name: str) -> str:
    """The directive of one public name; it is shown under that name, wherever it lives."""
    module, _, other = ropd_jax._HOME[name].partition(":")
    members = f"\n      members: [{', '.join(MEMBERS[name])}]" if name in MEMBERS else ""
    where = f"::: ropd_jax.{HOMES.get(name, module)}.{other or name}\n    options:"
    if other:  # mkdocstrings would show the other name
        signature = inspect.signature(getattr(importlib.import_module(f"ropd_jax.{module}"), other))
        shown = code(f"{name}{signature}".replace("'", ""), "python")
        heading = f'<a id="{name}"></a>\n\n### {name} {{ #{name}-signature }}'
        return f"{heading}\n\n{shown}\n\n{where}\n      show_root_heading: false\n      show_root_toc_entry: false"
    options = f"\n      heading: {name}\n      toc_label: {name}\n      heading_level: 3{members}"
    return f'<a id="{name}"></a>\n\n{where}{options}'
