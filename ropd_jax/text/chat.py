"""Chat templates: the Jinja text of a checkpoint, rendered to the text that the student reads.

A template comes with a download and is a program, so it is compiled and rendered in a child process with limits on
time, memory and output (`ropd_jax.utils.sandbox`). Limits inside our own process would not work: Python cannot stop a
thread, an alarm works only on the main thread, and counting steps does not stop a single endless step, such as
``9**9**9**9`` or ``'x' * 10**12``.
"""

from __future__ import annotations

import datetime
import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ropd_jax.types import Message, UserError
from ropd_jax.utils.paths import local_file
from ropd_jax.utils.sandbox import Service, StartError

log = logging.getLogger(__name__)

CPU_S = 2
MEMORY, TEXT_BYTES = 1 << 30, 1 << 24
BOUNDS = {
    "timeout": f"takes more than {CPU_S} s to render one chat",
    "memory": f"takes more than {MEMORY >> 30} GiB of memory to render one chat",
    "crashed": f"renders one chat to a text of more than {TEXT_BYTES >> 20} MiB, or crashes the renderer",
    "forbidden": "does something that templates must not do",
}
_child = Service("ropd_jax.text.chat_worker", cpu_s=CPU_S, memory=MEMORY, reply_bytes=TEXT_BYTES)


def _ask(template: str, variables: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """The reply of `chat_worker`.

    Raises:
        UserError: the template exceeds time or memory, or the child does not start.
    """
    try:
        now = datetime.datetime.now().isoformat()  # in the user's time zone, which the child does not know
        reply = _child.ask({"template": template, "variables": variables, "now": now})
    except StartError as e:
        raise UserError(f"chat templates are rendered in a child process, which does not start: {e}") from e
    if (error := reply.get("error")) in BOUNDS:
        raise UserError(f"{where} {BOUNDS[error]}; choose another template with --config.student.chat_template=FILE")
    return {"refusal": error} if error is not None else reply


def check(template: str, where: str) -> str:
    """The template itself, if Jinja can parse it.

    Raises:
        UserError: with the line of the syntax error.
    """
    reply = _ask(template, None, where)
    if "text" not in reply:
        place = f", line {reply['line']}" if "line" in reply else ""
        reason = reply.get("syntax", reply.get("refusal"))
        raise UserError(f"{where}{place}: not a Jinja chat template ({reason}); correct the template")
    return template


def read(path: str | pathlib.Path) -> str:
    """A template from a file that the user named.

    Raises:
        UserError: the file cannot be read, is empty, or does not parse.
    """
    try:
        template = local_file(path, "student.chat_template").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"student.chat_template={str(path)!r} cannot be read ({e}); expected a Jinja file") from e
    if not template.strip():
        raise UserError(f"student.chat_template={str(path)!r} is empty; expected a Jinja chat template")
    return check(template, str(path))


def choose(own: str | None, replacement: str, where: str) -> str:
    """The template of a tokenizer: the user's file if one is given, else the checkpoint's own.

    Args:
        own: the template in the checkpoint, if any.
        replacement: a Jinja file; "" for none.
        where: the checkpoint, for messages.

    Raises:
        UserError: there is no template, or it does not parse.
    """
    if replacement:
        return read(replacement)
    if not own or not own.strip():
        raise UserError(
            f"{where} has no chat template, so prompts cannot be formatted for its student; choose an "
            "instruct checkpoint or give a Jinja file: --config.student.chat_template=FILE"
        )
    return check(own, f"chat template of {where}")


def check_thinking(template: str, enable_thinking: bool | None) -> dict[str, bool]:
    """The options that ``student.enable_thinking`` passes to the template; {} for None, so its own default applies.

    Raises:
        UserError: the template does not read it, so setting it would change nothing.
    """
    if enable_thinking is None:
        return {}
    if "enable_thinking" not in template:
        raise UserError(
            f"student.enable_thinking={enable_thinking}, but this student's chat template never reads it; leave it "
            "None, or choose a template that does with --config.student.chat_template=FILE"
        )
    return {"enable_thinking": enable_thinking}


def render(
    template: str, messages: Sequence[Message], special: Mapping[str, str], options: Mapping[str, bool] | None = None
) -> str:
    """The text of a chat, up to the start of the assistant's answer.

    If a template rejects or drops a system message (Gemma 2 does not support any), the message is put before the first
    user message, with an empty line between them, as in Gemma 3's own template.

    Args:
        special: ``bos_token``, ``eos_token``, ``pad_token`` ... by their names in the template.
        options: further variables of the template, e.g. ``enable_thinking``.

    Raises:
        UserError: the template rejects these messages, drops the system message in both forms, or exceeds the limits.
    """

    def rendered(messages: Sequence[Message]) -> tuple[str | None, str]:
        """(the text or None, the reason if None)"""
        chat = [{"role": m.role, "content": m.content} for m in messages]
        fixed = {"messages": chat, "add_generation_prompt": True, "tools": None, "documents": None}
        reply = _ask(template, {**special, **(options or {}), **fixed}, "the chat template")
        return reply.get("text"), str(reply.get("refusal", reply.get("syntax")))

    text, refusal = rendered(messages)
    has_system = bool(messages) and messages[0].role == "system"
    system = messages[0].content.strip() if has_system else ""
    if text is not None and system in text:
        return text
    reason = "drops the system message"
    if text is None:
        reason = f"rejects messages of roles [{', '.join(m.role for m in messages)}]: {refusal}"
    if has_system:
        text, _ = rendered(_merged(messages))  # the first error is more informative
        if text is not None and system in text:
            _report_merged(template)
            return text
    raise UserError(
        f"the chat template {reason}; change data.system or choose another template "
        "with --config.student.chat_template=FILE"
    )


def _merged(messages: Sequence[Message]) -> list[Message]:
    """The messages with the system message merged into the first user message."""
    system, first, *rest = messages if len(messages) > 1 else (*messages, Message("user", ""))
    return [Message(first.role, f"{system.content}\n\n{first.content}"), *rest]


@functools.cache
def _report_merged(template: str) -> None:
    log.warning("the chat template does not support a system message; it is put before the first user message instead")
