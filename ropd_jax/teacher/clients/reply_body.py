"""The form of a provider's reply: the part of its JSON that we read, checked once when it arrives.

`read` returns an object of one of these classes, whose fields have exactly these types, or raises a
``MalformedError``. Other fields are ignored. Imported only with a provider's client, because pydantic is slow to load.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from ropd_jax.teacher.clients.endpoint import redact
from ropd_jax.teacher.clients.errors import MalformedError, TransientError

SAMPLE = 200  # characters of a body shown in a message
SECRET = 16  # characters; a shorter key is a placeholder such as "none", which can be a word in a reply
MAX_TOKENS = 10**9  # more in one call is impossible, and would count in the budget
Count = Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None
B = TypeVar("B", bound="Body")


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class CompletionPart(Body):
    type: str = "text"
    text: str | None = None


class CompletionMessage(Body):
    content: str | list[str | CompletionPart] | None = None
    refusal: str | None = None

    @property
    def text(self) -> str:
        """The content; for a list of parts, their texts."""
        if not isinstance(self.content, list):
            return self.content or ""
        parts = (CompletionPart(text=part) if isinstance(part, str) else part for part in self.content)
        return "".join(part.text or "" for part in parts if part.type == "text")


class CompletionChoice(Body):
    message: CompletionMessage | None = None
    finish_reason: str | None = None
    error: Any = None


class OutputDetails(Body):
    reasoning_tokens: Count = None


class InputDetails(Body):
    cached_tokens: Count = None


class CompletionUsage(Body):
    prompt_tokens: Count = Field(None, validation_alias=AliasChoices("prompt_tokens", "input_tokens"))
    completion_tokens: Count = Field(None, validation_alias=AliasChoices("completion_tokens", "output_tokens"))
    total_tokens: Count = None
    reasoning_tokens: Count = None  # Perplexity
    cached_tokens: Count = None  # Moonshot
    prompt_cache_hit_tokens: Count = None  # DeepSeek
    completion_tokens_details: OutputDetails | None = None
    prompt_tokens_details: InputDetails | None = None


class Completion(Body):
    """A chat completion in OpenAI's format, or an error with status 200."""

    model_config = ConfigDict(extra="allow", frozen=True)
    error: Any = None
    choices: list[CompletionChoice] | None = None
    usage: CompletionUsage | None = None
    model: str | None = None


class BatchResponse(Body):
    status_code: int | None = None
    body: dict[str, Any] | None = None


class BatchLine(Body):
    """One line of a batch's results in OpenAI's format."""

    custom_id: str
    response: BatchResponse | None = None
    error: dict[str, Any] | None = None


class _Gemini(Body):
    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True)


class Feedback(_Gemini):
    block_reason: str | None = None


class Part(_Gemini):
    text: str | None = None
    thought: bool | None = None


class Content(_Gemini):
    parts: list[Part] | None = None


class Candidate(_Gemini):
    content: Content | None = None
    finish_reason: str | None = None


class UsageMetadata(_Gemini):
    prompt_token_count: Count = None
    candidates_token_count: Count = None
    thoughts_token_count: Count = None
    total_token_count: Count = None
    cached_content_token_count: Count = None


class Generated(_Gemini):
    """A reply from Gemini's generateContent, or an error with status 200."""

    error: Any = None
    prompt_feedback: Feedback | None = None
    candidates: list[Candidate] | None = None
    usage_metadata: UsageMetadata | None = None
    model_version: str | None = None


class GeminiJob(_Gemini):
    """The error of a Gemini batch job."""

    error: dict[str, Any] | None = None


class GeneratedLine(_Gemini):
    """One line of a Gemini batch's results."""

    key: str
    response: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


def read(form: type[B], body: bytes | str | dict[str, Any], provider: str, key: str) -> B:
    """The body as an object of the class ``form``. ``body`` is JSON, or the object decoded from it.

    Args:
        provider: for messages.
        key: the API key. It must not get onto the tape or into a message if the server sends it back.

    Raises:
        TransientError: the body is not JSON: cut off, empty, or a proxy's page; the message shows its start.
        MalformedError: the body has another form or is nested too deeply; the message shows its start.
    """
    shown = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    if isinstance(shown, str) and len(key) >= SECRET:
        shown = redact(shown, key)
    cause = ""
    try:
        decoded = json.loads(shown.removeprefix("\ufeff")) if isinstance(shown, str) else shown
        return form.model_validate(decoded)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the top level"
        problem = f"{where}: {first['msg']}"
    except RecursionError:
        problem = "it is nested too deeply"
    except ValueError:
        cause, problem = _not_json(str(shown))
    sample = shown if isinstance(shown, str) else ", ".join(map(str, shown))  # for a decoded body its keys
    sample = redact(sample[: SAMPLE + len(key)], key)[:SAMPLE]
    message = f"{provider} sent a reply of an unexpected form ({problem[:SAMPLE]}): {sample!r}"
    raise TransientError(message, cause=cause) if cause else MalformedError(message)


def _not_json(body: str) -> tuple[str, str]:
    """(cause, problem) of a body that is not JSON."""
    start = body.strip()[:1]
    if not start:
        return "empty_body", "it is empty"
    if start == "<":
        return "web_page", "it is a web page; check teacher.base_url"
    if start in "{[":
        return "cut_off", "it is not JSON, as if it were cut off"
    return "not_json", "it is not JSON"
