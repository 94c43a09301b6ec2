"""Chat templates: the Jinja text that a checkpoint carries, rendered to the text that its student reads."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence

from ropd_jax.types import Message, UserError


@functools.cache
def _compile(template: str):
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message):
        from jinja2 import TemplateError

        raise TemplateError(message)

    # the options that chat templates are written for: block tags take their line with them, break and continue work
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.globals["raise_exception"] = raise_exception
    env.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
    return env.from_string(template)


def check(template: str, where: str) -> str:
    """The template itself, if Jinja can parse it.

    Raises:
        UserError: with the line of the syntax error.
    """
    from jinja2 import TemplateSyntaxError

    try:
        _compile(template)
    except TemplateSyntaxError as e:
        raise UserError(
            f"{where}, line {e.lineno}: not a Jinja chat template ({e.message}); correct the template"
        ) from e
    return template


def read(path: str | pathlib.Path) -> str:
    """A template from a file that the user named.

    Raises:
        UserError: the file cannot be read, is empty, or does not parse.
    """
    try:
        template = pathlib.Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"student.chat_template={str(path)!r} cannot be read ({e}); expected a Jinja file") from e
    if not template.strip():
        raise UserError(f"student.chat_template={str(path)!r} is empty; expected a Jinja chat template")
    return check(template, str(path))


def render(template: str, messages: Sequence[Message], special: Mapping[str, str]) -> str:
    """The text of a chat, up to where the assistant's answer begins.

    Args:
        special: ``bos_token``, ``eos_token``, ``pad_token`` ... as the template names them.

    Raises:
        UserError: the template refuses these messages.
    """
    from jinja2 import TemplateError

    chat = [{"role": m.role, "content": m.content} for m in messages]
    try:
        return _compile(template).render(
            messages=chat, add_generation_prompt=True, tools=None, documents=None, **special
        )
    except (TemplateError, TypeError, ValueError) as e:
        roles = ", ".join(m.role for m in messages)
        raise UserError(
            f"the chat template refuses messages of roles [{roles}]: {e}; change data.system or give another template "
            "with --config.student.chat_template=FILE"
        ) from e
