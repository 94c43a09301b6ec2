"""The interface of a teacher to the rest of the package: a chat that takes messages and returns text.

    ChatRequest -- ChatClient.chat --> ChatReply, or one of the errors in `errors`

The roles (rubricator, verifier, references) build a `ChatRequest` and read a `ChatReply`. The clients of this folder
(gemini, openai) and the scripted teacher translate both into one provider's wire format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args

from ropd_jax.types import Message

Purpose = Literal["reference", "rubric", "verify", "score", "judge"]
PURPOSES: tuple[str, ...] = get_args(Purpose)


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """One call to a chat model.

    Attributes:
        purpose: the role, used only for counters and priorities; not sent to the provider.
        messages: the conversation; the last one is the user's.
        model: the provider's model name.
        temperature: None means that none is sent and the provider's default applies.
        max_output_tokens: limit for the reply, including thinking.
        json_schema: JSON Schema that the reply must satisfy, or None for free text.
        sample_index: the number of this sample of the same conversation; sent as the seed.
        extra: additional parameters of the provider's request, JSON values; see `clients.options`.
    """

    purpose: Purpose
    messages: tuple[Message, ...]
    model: str
    temperature: float | None = None
    max_output_tokens: int = 4096
    json_schema: dict | None = None
    sample_index: int = 0
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of one call; None if the provider did not report them.

    ``output_tokens`` counts all generated tokens, and ``thought_tokens`` is the part of them that was thinking.
    ``cached_tokens`` is the part of ``input_tokens`` that came from a prompt cache.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    thought_tokens: int | None = None
    cached_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class ChatReply:
    """One reply of a model.

    Attributes:
        text: the reply, including thinking if the provider sends it as text.
        finish_reason: ``stop``; every other value is an error.
        usage: its tokens.
        model: the model that answered, as named by the provider.
        latency_s: seconds at the provider, excluding the wait in our queue; None if not measured.
        source: whether tokens were spent. ``live``: yes. ``shared``: by an identical request in flight, which counts
            them. ``tape``: no, the reply was recorded earlier.
    """

    text: str
    finish_reason: str = "stop"
    usage: Usage = Usage()
    model: str = ""
    latency_s: float | None = None
    source: Literal["live", "shared", "tape"] = "live"


class ChatClient(Protocol):
    """Anything that can chat. ``close`` runs on the event loop that used the client."""

    async def chat(self, request: ChatRequest) -> ChatReply:
        """Returns the reply; raises a ``TeacherError`` (see `errors`) if there is none."""
        ...

    async def close(self) -> None: ...
