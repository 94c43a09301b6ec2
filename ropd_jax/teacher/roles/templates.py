"""Prompt templates: one file each in ``prompts/``, named by role and version, identified by their content hash.

A name that ends in ``.md`` is the path of a user's own file. A template is one user message, or two messages separated
by one line::

    (the system message: instructions and the stable material, the same in all calls of a group)
    === user ===
    (the user message: the part that differs from call to call, and the form of the reply)

The line is searched for before any placeholder is replaced, so a value cannot divide a message.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import re
from collections.abc import Mapping

from ropd_jax.teacher.clients.errors import ConfigurationError
from ropd_jax.types import Message
from ropd_jax.utils.paths import local_file

DIVIDER = "=== user ==="
_DIVIDER = re.compile(rf"^{DIVIDER}[ \t]*\r?$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\{\{([a-z_]+)\}\}")

_RUBRIC = {"least", "most", "reply_token", "reply", "n_references", "n_distinct"}
_SCORE = (
    {"question", "answers", "token"},
    {"references", "rubric", "lowest", "highest", "n_answers", "reply_token", "reply"},
)
PLACEHOLDERS = {  # role -> placeholders that its template must have, and those that it can have
    "reference": ({"question", "token"}, set()),
    "rubric": ({"question", "references", "students", "token"}, _RUBRIC),
    "rubric_alone": ({"question", "references", "token"}, _RUBRIC),  # does not show the student's answers
    "verify": (
        {"question", "rubric", "answers", "token"},
        {"n_answers", "n_criteria", "authors", "reply_token", "reply", "examples"},
    ),
    "score": _SCORE,
    "judge": _SCORE,
    "reask": ({"problem"}, set()),
    "healthbench": ({"conversation", "criterion", "token"}, {"reply"}),
}


@functools.cache
def load(name: str) -> str:
    """The template ``prompts/{name}.md``, or the file ``name`` if it ends in ``.md``.

    Raises:
        ConfigurationError: the template does not exist or cannot be read.
    """
    folder = importlib.resources.files("ropd_jax.teacher.roles") / "prompts"
    file = local_file(name, "template") if name.endswith(".md") else folder / f"{name}.md"
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(f.name.removesuffix(".md") for f in folder.iterdir() if f.name.endswith(".md")))
        raise ConfigurationError(
            f"prompt template {name!r} cannot be read ({error}); expected one of {known}, or the path of a .md file",
            cause="no_template",
        ) from error


def check(role: str, name: str) -> None:
    """Raises ``ConfigurationError`` unless the template has the placeholders that the role fills, and no others.

    Also raises if the template has more than two messages, or if one of the two is empty.
    """
    needed, optional = PLACEHOLDERS[role]
    parts = _DIVIDER.split(load(name))
    if len(parts) > 2 or not all(part.strip() for part in parts):
        raise ConfigurationError(
            f"prompt template {name!r} has {len(parts)} messages ({sum(not p.strip() for p in parts)} empty); expected "
            f"one message, or a system message and a user message separated by one line {DIVIDER!r}",
            cause="bad_template",
        )
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


def has(name: str, placeholder: str) -> bool:
    """True if the template has the placeholder."""
    return placeholder in _PLACEHOLDER.findall(load(name))


def reply_token(name: str, token: str) -> str:
    """``token`` if the template requests it in the reply (``{{reply_token}}`` or ``{{reply}}``), else "".

    See `json_reply`.
    """
    return token if has(name, "reply_token") or has(name, "reply") else ""


def messages(name: str, **values: str) -> tuple[Message, ...]:
    """The template's messages, filled as by `fill`: one user message, or a system message and a user message.

    Raises:
        KeyError: the template has a placeholder without a value.
    """
    roles = ("system", "user") if _DIVIDER.search(load(name)) else ("user",)
    parts = _DIVIDER.split(load(name), maxsplit=1)
    return tuple(Message(role, _filled(part, values)) for role, part in zip(roles, parts, strict=True))


def fill(name: str, **values: str) -> str:
    """The template with each ``{{placeholder}}`` replaced in one pass, so that braces in values have no effect.

    Raises:
        KeyError: the template has a placeholder without a value.
    """
    return _filled(load(name), values)


def _filled(text: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda m: values[m.group(1)], text).strip()
