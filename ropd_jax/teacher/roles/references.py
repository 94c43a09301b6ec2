"""References: the teacher's own answers to the prompt, m samples."""

from __future__ import annotations

from typing import NamedTuple

from ropd_jax.teacher.clients.chat import ChatRequest
from ropd_jax.teacher.clients.errors import MalformedError
from ropd_jax.teacher.roles import fences, templates
from ropd_jax.types import Message

TEMPLATE = "reference.v1"


class Reference(NamedTuple):
    """One of the teacher's own answers, and the model that wrote it, as the config names it."""

    text: str
    model: str


def reference_request(
    question: str,
    *,
    model: str,
    temperature: float | None,
    max_output_tokens: int,
    sample_index: int,
    seed: int = 0,
    template: str = "",
) -> ChatRequest:
    """The request for sample number ``sample_index`` of the teacher's own answer."""
    token = fences.make_token(seed, [question])
    text = templates.fill(template or TEMPLATE, token=token, question=fences.block("question", question, token))
    return ChatRequest("reference", (Message("user", text),), model, temperature, max_output_tokens, None, sample_index)


def parse_reference(text: str) -> str:
    """The answer without thinking: what follows the last ``</think>``, or the whole text if nothing does.

    Raises:
        MalformedError: nothing is left (cause ``empty``).
    """
    answer = text.rsplit("</think>", 1)[-1].strip() or text.strip()
    if not answer:
        raise MalformedError("the reference was empty; expected an answer to the question", cause="empty")
    return fences.without_surrogates(answer)
