"""Gemini through the async client of the google-genai SDK.

The SDK's own retries are off (one attempt). ``LimitedClient`` retries, where retries are bounded and counted.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator

from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest, Usage
from ropd_jax.teacher.clients.endpoint import api_key, redact
from ropd_jax.teacher.clients.errors import BlockedError, MalformedError, TeacherError, TransientError, TruncatedError
from ropd_jax.teacher.clients.http_status import error_for_status, parse_retry_after
from ropd_jax.teacher.clients.structured_output import Structures

_BLOCKED = {
    "SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR", "JAILBREAK",
    "ESCALATION", "IMAGE_SAFETY",
}  # fmt: skip


class GeminiClient:
    """A ``ChatClient`` over Gemini's generateContent.

    Args:
        base_url: "" for Google's own address; otherwise the root, ``http://host:port``.
        api_key_env: name of the environment variable with the key; "" means GEMINI_API_KEY, else GOOGLE_API_KEY. A
            server on loopback needs no key.
        timeout_s: time limit of one HTTP exchange, in seconds.

    Raises:
        ConfigurationError: no key in the environment.
    """

    def __init__(self, *, base_url: str = "", api_key_env: str = "", timeout_s: float = 120.0):
        names = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
        self._key = api_key("gemini", names, named=api_key_env, base_url=base_url)
        from google import genai
        from google.genai import errors, types

        self._types, self._errors = types, errors
        self._structures = Structures()
        self._connection_errors = _connection_errors()
        options = types.HttpOptions(
            base_url=base_url or None,
            timeout=int(timeout_s * 1000),
            retry_options=types.HttpRetryOptions(attempts=1),
        )
        self.sdk_client = genai.Client(api_key=self._key, vertexai=False, http_options=options)
        self._where = base_url or "the Gemini API"

    async def chat(self, request: ChatRequest) -> ChatReply:
        return await self._structures.chat(request, self._chat)

    async def _chat(self, request: ChatRequest, structure: str) -> ChatReply:
        contents, config = self.content(request, structure)
        with self.typed_failures(request.model):
            response = await self.sdk_client.aio.models.generate_content(
                model=request.model, contents=contents, config=config
            )
        return self.read_response(response, request.model, request.max_output_tokens)

    def content(self, request: ChatRequest, structure: str) -> tuple:
        """The contents and the config of a request, as the SDK's types."""
        types = self._types
        system = "\n\n".join(m.content for m in request.messages if m.role == "system")
        contents = [
            types.Content(role="model" if m.role == "assistant" else "user", parts=[types.Part(text=m.content)])
            for m in request.messages
            if m.role != "system"
        ]
        config = types.GenerateContentConfig(
            temperature=request.temperature,
            max_output_tokens=request.max_output_tokens,
            seed=request.sample_index,
            system_instruction=system or None,
            response_mime_type=None if structure == "text" else "application/json",
            response_json_schema=request.json_schema if structure == "json_schema" else None,
        )
        return contents, config

    @contextlib.contextmanager
    def typed_failures(self, model: str) -> Iterator[None]:
        """Raises the errors of the SDK and of its transport as a ``TeacherError``."""
        try:
            yield
        except self._errors.APIError as e:
            raise self._failure(e, model) from None  # the SDK's text can quote the key
        except TimeoutError:
            raise TransientError(f"gemini: no answer in time for model {model!r}", cause="timeout") from None
        except self._connection_errors as e:
            slow = "timeout" in type(e).__name__.lower()
            message = f"gemini: cannot reach {self._where} ({type(e).__name__})"
            raise TransientError(message, cause="timeout" if slow else "connection") from None
        except ValueError as e:  # a body that is not JSON, or not the expected shape, under a 200
            raise MalformedError(f"gemini sent an unreadable body: {redact(str(e), self._key)[:200]}") from None

    async def close(self) -> None:
        await self.sdk_client.aio.aclose()
        self.sdk_client.close()

    def _failure(self, error, model: str) -> TeacherError:
        details = error.details if isinstance(error.details, dict) else {}
        inner = details.get("error", details)
        items = inner.get("details", []) if isinstance(inner, dict) else []
        items = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
        code = next((str(i["reason"]) for i in items if i.get("reason")), "")
        headers = getattr(error.response, "headers", None) or {}
        after = parse_retry_after(headers.get("retry-after"))
        for item in items:  # RetryInfo: {"retryDelay": "12s"}
            if after is None and item.get("retryDelay"):
                after = parse_retry_after(str(item["retryDelay"]))
        message = redact(str(error.message or error.status or ""), self._key)
        # A wrong key is a 400 at Google, which would count as a bad request of this one call.
        if re.search(r"api key not valid", message, re.IGNORECASE):
            code = "api_key_invalid"
        return error_for_status(error.code, message, provider="gemini", model=model, code=code, retry_after=after)

    def read_response(self, response, model: str, limit: int) -> ChatReply:
        """The reply in the SDK's response.

        Raises:
            TeacherError: as ``chat``.
        """
        feedback = response.prompt_feedback
        if feedback is not None and feedback.block_reason is not None:
            what = f"gemini: the prompt for {model!r} was blocked ({_name(feedback.block_reason)})"
            raise BlockedError(what, usage=_usage(response.usage_metadata))
        if not response.candidates:
            raise MalformedError("gemini sent a reply without candidates")
        candidate = response.candidates[0]
        reason = _name(candidate.finish_reason)
        if reason in _BLOCKED:
            what = f"gemini: the reply of {model!r} was blocked ({reason})"
            raise BlockedError(what, usage=_usage(response.usage_metadata))
        if reason == "MAX_TOKENS":
            raise TruncatedError(
                f"gemini: the reply of {model!r} reached max_output_tokens={limit}; raise it (thinking counts too)",
                usage=_usage(response.usage_metadata),
            )
        if reason not in ("STOP", ""):
            what = f"gemini: the reply of {model!r} ended with {reason}"
            raise MalformedError(what, usage=_usage(response.usage_metadata))
        parts = (candidate.content.parts if candidate.content else None) or []
        text = "".join(p.text for p in parts if p.text and not p.thought)
        return ChatReply(text, "stop", _usage(response.usage_metadata), response.model_version or model)


def _name(reason) -> str:
    if reason is None:
        return ""
    return str(getattr(reason, "value", reason)).upper()


def _usage(usage) -> Usage:
    if usage is None:
        return Usage()
    thought, output = usage.thoughts_token_count, usage.candidates_token_count
    # Gemini counts thinking separately from the visible candidates, and leaves out a count of 0: if thinking used up
    # the whole limit, candidates_token_count is None.
    if output is not None or thought is not None:
        output = (output or 0) + (thought or 0)
    return Usage(usage.prompt_token_count, output, thought, usage.cached_content_token_count)


def _connection_errors() -> tuple[type[Exception], ...]:
    """Transport errors of the HTTP library that the SDK uses (aiohttp if present, else httpx2 or httpx)."""
    found: list[type[Exception]] = [ConnectionError]
    for module, name in (("aiohttp", "ClientError"), ("httpx2", "TransportError"), ("httpx", "TransportError")):
        try:
            found.append(getattr(importlib.import_module(module), name))
        except ModuleNotFoundError:
            continue
    return tuple(found)
