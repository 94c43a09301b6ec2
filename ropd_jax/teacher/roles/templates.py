"""Prompt templates: one file each in ``prompts/``, named by role and version, identified by their content hash.

A name that ends in ``.md`` is the path of a user's own file.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import pathlib
import re

from ropd_jax.teacher.clients.errors import ConfigurationError

_PLACEHOLDER = re.compile(r"\{\{([a-z_]+)\}\}")

_SCORE = ({"question", "answers", "token"}, {"references", "rubric", "lowest", "highest", "n_answers", "reply_token"})
_RUBRIC = {"least", "most", "reply_token", "reply", "n_references", "n_distinct"}
PLACEHOLDERS = {  # role -> placeholders that its template must have, and those that it can have
    "reference": ({"question", "token"}, set()),
    "rubric": ({"question", "references", "students", "token"}, _RUBRIC),
    "rubric_alone": ({"question", "references", "token"}, _RUBRIC),  # shows no answers of the student
    "verify": ({"question", "rubric", "answers", "token"}, {"n_answers", "n_criteria", "authors", "reply_token"}),
    "score": _SCORE,
    "judge": _SCORE,
    "reask": ({"problem"}, set()),
    "healthbench": ({"conversation", "criterion", "token"}, {"reply_token"}),
}


@functools.cache
def load(name: str) -> str:
    """The template ``prompts/{name}.md``, or the file ``name`` if it ends in ``.md``.

    Raises:
        ConfigurationError: the template does not exist or cannot be read.
    """
    folder = importlib.resources.files("ropd_jax.teacher.roles") / "prompts"
    file = pathlib.Path(name).expanduser() if name.endswith(".md") else folder / f"{name}.md"
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(f.name.removesuffix(".md") for f in folder.iterdir() if f.name.endswith(".md")))
        raise ConfigurationError(
            f"prompt template {name!r} cannot be read ({error}); expected one of {known}, or the path of a .md file",
            cause="no_template",
        ) from error


def check(role: str, name: str) -> None:
    """Raise ``ConfigurationError`` unless the template has the placeholders that the role fills, and no others."""
    needed, optional = PLACEHOLDERS[role]
    found = set(_PLACEHOLDER.findall(load(name)))
    lacking, unknown = sorted(needed - found), sorted(found - needed - optional)
    if lacking or unknown:
        what = f"lacks {', '.join(lacking)}" if lacking else f"has unknown placeholders {', '.join(unknown)}"
        raise ConfigurationError(
            f"prompt template {name!r} {what}; expected {', '.join(sorted(needed))}, each in double braces",
            cause="bad_template",
        )


@functools.cache
def prompt_sha(name: str) -> str:
    """First 16 hex digits of the SHA-256 of the template's text."""
    return hashlib.sha256(load(name).encode()).hexdigest()[:16]


def reply_token(name: str, token: str) -> str:
    """``token`` if the template asks for it in the reply (``{{reply_token}}``), else "". See `json_reply`."""
    return token if "reply_token" in _PLACEHOLDER.findall(load(name)) else ""


def fill(name: str, **values: str) -> str:
    """The template with each ``{{placeholder}}`` replaced in one pass, so that braces in values have no effect.

    Raises:
        KeyError: the template has a placeholder without a value.
    """
    return _PLACEHOLDER.sub(lambda m: values[m.group(1)], load(name)).strip()
