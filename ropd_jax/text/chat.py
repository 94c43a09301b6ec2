"""Chat templates: the Jinja text that a checkpoint carries, rendered to the text that its student reads."""

from __future__ import annotations

import functools
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence

from ropd_jax.types import Message, UserError

log = logging.getLogger(__name__)


@functools.cache
def _compile(template: str):
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message):
        from jinja2 import TemplateError

        raise TemplateError(message)

    # the options that chat templates are written for: a block tag removes its line break; break and continue work
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


def choose(own: str | None, replacement: str, where: str) -> str:
    """The template of a tokenizer: the user's file if one is given, else the checkpoint's own.

    Args:
        own: the template that the checkpoint carries, if any.
        replacement: a Jinja file; "" for none.
        where: the checkpoint, for messages.

    Raises:
        UserError: there is neither, or it does not parse.
    """
    if replacement:
        return read(replacement)
    if not own or not own.strip():
        raise UserError(
            f"{where} has no chat template, so prompts cannot be written as its student expects them; choose an "
            "instruct checkpoint or give a Jinja file: --config.student.chat_template=FILE"
        )
    return check(own, f"chat template of {where}")


def check_thinking(template: str, enable_thinking: bool | None) -> dict[str, bool]:
    """The options that ``student.enable_thinking`` passes to the template; none for None, so its own default applies.

    Raises:
        UserError: the template does not read it, so setting it would change nothing.
    """
    if enable_thinking is None:
        return {}
    if "enable_thinking" not in template:
        raise UserError(
            f"student.enable_thinking={enable_thinking}, but this student's chat template never reads it; leave it "
            "None, or give a template that does with --config.student.chat_template=FILE"
        )
    return {"enable_thinking": enable_thinking}


def render(
    template: str, messages: Sequence[Message], special: Mapping[str, str], options: Mapping[str, bool] | None = None
) -> str:
    """The text of a chat, up to where the assistant's answer begins.

    If a template refuses or drops a system message (Gemma 2 has no form for one), the message is put before the first
    user message, with an empty line between them, as Gemma 3's own template does.

    Args:
        special: ``bos_token``, ``eos_token``, ``pad_token`` ... as the template names them.
        options: further variables of the template, e.g. ``enable_thinking``.

    Raises:
        UserError: the template refuses these messages, or leaves the system message out in either form.
    """
    from jinja2 import TemplateError

    refusals = (TemplateError, TypeError, ValueError)

    def text_of(messages: Sequence[Message]) -> str:
        chat = [{"role": m.role, "content": m.content} for m in messages]
        return _compile(template).render(
            messages=chat, add_generation_prompt=True, tools=None, documents=None, **special, **(options or {})
        )

    refusal: Exception | None = None
    try:
        text = text_of(messages)
    except refusals as e:
        refusal = e
    if not messages or messages[0].role != "system" or (refusal is None and messages[0].content.strip() in text):
        if refusal is None:
            return text
    else:
        try:
            text = text_of(_merged(messages))
        except refusals:
            pass  # the first refusal says more
        else:
            if messages[0].content.strip() in text:
                _report_merged(template)
                return text
    roles = ", ".join(m.role for m in messages)
    reason = f"refuses messages of roles [{roles}]: {refusal}" if refusal else "leaves the system message out"
    raise UserError(
        f"the chat template {reason}; change data.system or give another template "
        "with --config.student.chat_template=FILE"
    ) from refusal


def _merged(messages: Sequence[Message]) -> list[Message]:
    """The messages with the system message merged into the first user message."""
    system, first, *rest = messages if len(messages) > 1 else (*messages, Message("user", ""))
    return [Message(first.role, f"{system.content}\n\n{first.content}"), *rest]


@functools.cache
def _report_merged(template: str) -> None:
    log.warning("the chat template has no form for a system message; it is put before the first user message instead")
