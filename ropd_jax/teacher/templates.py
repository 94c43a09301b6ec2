"""Prompt templates: one file each in ``prompts/``, named by role and version, known by their content hash."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import re

_PLACEHOLDER = re.compile(r"\{\{([a-z_]+)\}\}")


@functools.cache
def load(name: str) -> str:
    """The template ``prompts/{name}.md``."""
    return (importlib.resources.files("ropd_jax.teacher") / "prompts" / f"{name}.md").read_text(encoding="utf-8")


@functools.cache
def prompt_sha(name: str) -> str:
    """First 16 hex digits of the SHA-256 of the template's text."""
    return hashlib.sha256(load(name).encode()).hexdigest()[:16]


def fill(name: str, **values: str) -> str:
    """The template with each ``{{placeholder}}`` replaced, in one pass: braces inside values mean nothing.

    Raises:
        KeyError: the template asks for a value that was not given.
    """
    return _PLACEHOLDER.sub(lambda m: values[m.group(1)], load(name)).strip()
