"""Gemini through the async client of the google-genai SDK.

The SDK's own retries are off (one attempt). ``LimitedClient`` retries instead, with limits and counters. The reply is
read from the raw body (`reply_body`), because the SDK passes on many unexpected values.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ropd_jax.teacher.clients.bounded_http import HttpFailure, bounded_client
from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest, Usage
from ropd_jax.teacher.clients.endpoint import api_key, redact, said_by, sdk_address, shown_address
from ropd_jax.teacher.clients.environment import environment, is_direct, unreachable
from ropd_jax.teacher.clients.errors import (
    BlockedError,
    ConfigurationError,
    MalformedError,
    TransientError,
    TruncatedError,
)
from ropd_jax.teacher.clients.fitting import Fitting
from ropd_jax.teacher.clients.http_status import UNREADABLE, failure_of
from ropd_jax.teacher.clients.options import secrets_of, sent_headers
from ropd_jax.teacher.clients.structured_output import schema_for
from ropd_jax.teacher.clients.vertex import VertexAccount, account_errors, account_failure
from ropd_jax.utils.suggest import near

if TYPE_CHECKING:
    from google.genai.types import GenerateContentResponse

    from ropd_jax.teacher.clients.reply_body import GeneratedLine, UsageMetadata

_BLOCKED = {
    "SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR", "JAILBREAK",
    "ESCALATION", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION",
}  # fmt: skip

# fields of the request that are not in its generation_config
_OUTSIDE = ("system_instruction", "safety_settings", "tools", "tool_config", "cached_content", "labels")


class GeminiClient:
    """A ``ChatClient`` over Gemini's generateContent.

    Args:
        base_url: "" means Google's own address; otherwise the root, ``http://host:port``.
        api_key_env: name of the environment variable with the key; "" means GEMINI_API_KEY, else GOOGLE_API_KEY. A
            server on loopback does not need a key.
        timeout_s: time limit for one HTTP exchange, in seconds.
        headers: names and values sent with every request; ``env:NAME`` means the value of that environment variable.
        vertexai: use Vertex AI, with Google's application-default credentials instead of a key.
        project, location: for Vertex AI; "" means GOOGLE_CLOUD_PROJECT and GOOGLE_CLOUD_LOCATION, else the credentials'
            project and ``global``.

    Raises:
        ConfigurationError: there is no key in the environment, or it cannot be a key; the address contains secrets;
            there are no application-default credentials, or there is no project.
    """

    def __init__(
        self,
        *,
        base_url: str = "",
        api_key_env: str = "",
        timeout_s: float = 120.0,
        headers: Sequence[tuple[str, str]] = (),
        vertexai: bool = False,
        project: str = "",
        location: str = "",
    ):
        address = sdk_address(base_url, "GOOGLE_VERTEX_BASE_URL" if vertexai else "GOOGLE_GEMINI_BASE_URL")
        names = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
        self.vertexai = vertexai
        account = VertexAccount.found(project=project, location=location) if vertexai else None
        self._key = "" if vertexai else api_key("gemini", names, named=api_key_env, base_url=base_url)
        from google import genai
        from google.genai import errors, types

        from ropd_jax.teacher.clients import reply_body

        self._types, self._errors, self._body = types, errors, reply_body
        self._root, self._headers = address or "https://generativelanguage.googleapis.com", sent_headers(tuple(headers))
        self._fitting = Fitting(secrets=secrets_of(tuple(headers)))
        self._connection_errors = _connection_errors()
        http = _http_library()
        through_proxies = not is_direct(base_url)
        limits = http.Limits(max_connections=1000, max_keepalive_connections=100)
        self._http_client = bounded_client(
            http.AsyncClient, "gemini", limits=limits, timeout=timeout_s, trust_env=through_proxies
        )
        options = types.HttpOptions(
            base_url=address,
            timeout=int(timeout_s * 1000),
            httpx_async_client=self._http_client,
            client_args={"trust_env": through_proxies},  # for a client that is created but never used
            retry_options=types.HttpRetryOptions(attempts=1),
            headers=self._headers,
        )
        how: dict[str, Any] = {"api_key": self._key} if account is None else account.client_options()
        with environment("gemini", proxies=through_proxies):
            self.sdk_client = genai.Client(vertexai=vertexai, http_options=options, **how)
        own = "Vertex AI" if vertexai else "the Gemini API"
        self._where = redact(shown_address(base_url), self._key) or own

    async def chat(self, request: ChatRequest) -> ChatReply:
        return await self._fitting.chat(request, self._chat)

    async def _chat(self, request: ChatRequest, structure: str, refused: frozenset[str]) -> ChatReply:
        contents, config = self.content(request, structure, refused)
        config.should_return_http_response = True
        with self.typed_failures(request.model, request.max_output_tokens):
            response = await self.sdk_client.aio.models.generate_content(
                model=request.model, contents=contents, config=config
            )
        body = (response.sdk_http_response and response.sdk_http_response.body) or ""
        return self._read(body, request.model, request.max_output_tokens)

    def content(self, request: ChatRequest, structure: str, refused: frozenset[str] = frozenset()) -> tuple:
        """The contents and the config of a request, as the SDK's types, without ``refused`` parameters.

        Raises:
            ConfigurationError: the request's ``extra`` has a key that is not a field of the SDK's config, or a value of
                the wrong type.
        """
        types = self._types
        system = "\n\n".join(m.content for m in request.messages if m.role == "system")
        contents = [
            types.Content(role="model" if m.role == "assistant" else "user", parts=[types.Part(text=m.content)])
            for m in request.messages
            if m.role != "system"
        ]
        extra = self._extra(request.extra)
        config = types.GenerateContentConfig(
            temperature=request.temperature,
            max_output_tokens=request.max_output_tokens,
            seed=request.sample_index,
            system_instruction=system or None,
            response_mime_type=None if structure == "text" else "application/json",
            response_json_schema=schema_for(request, structure),
            **extra,
        )
        for name in refused & set(types.GenerateContentConfig.model_fields):
            setattr(config, name, None)
        return contents, config

    def _extra(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        """``extra`` as fields of the SDK's config."""
        if not extra:
            return {}
        known = set(self._types.GenerateContentConfig.model_fields)
        for name in extra:
            if name not in known:
                hint = "use thinking_config={'thinking_level': 'high'}" if name == "reasoning_effort" else ""
                raise ConfigurationError(
                    f"the gemini teacher does not have the parameter {name!r}; {hint or near(name, known)}. Expected "
                    "fields of google.genai.types.GenerateContentConfig in the role's extra"
                )
        try:
            self._types.GenerateContentConfig(**extra)
        except ValueError as error:
            first = str(error).split("\n")[1:3]
            raise ConfigurationError(
                f"the gemini teacher cannot use the role's extra: {': '.join(s.strip() for s in first)[:300]}"
            ) from None
        return dict(extra)

    @contextlib.contextmanager
    def typed_failures(self, model: str, limit: int = 0) -> Iterator[None]:
        """Raises the errors of the SDK and its transport as a ``TeacherError``; ``limit`` is ``max_output_tokens``."""
        about: dict[str, Any] = dict(provider="gemini", model=model, key=self._key, limit=limit)
        try:
            yield
        except HttpFailure as e:
            raise failure_of(e.status, e.headers, e.body, **about) from None
        except self._errors.APIError as e:  # the SDK's message can contain the key
            code = e.code if isinstance(e.code, int) and e.code >= 400 else 200
            raise failure_of(code, {}, e.details or e.message or "", **about) from None
        except account_errors() as e:
            raise account_failure(e) from None
        except TimeoutError:
            raise TransientError(f"gemini: no answer in time for model {model!r}", cause="timeout") from None
        except self._connection_errors as e:
            raise unreachable(e, "gemini", self._where) from None
        except UNREADABLE as e:
            if isinstance(e, json.JSONDecodeError):
                self._body.read(self._body.Generated, e.doc, "gemini", self._key)  # raises an error for its form
            raise MalformedError(f"gemini sent an unreadable body: {redact(str(e), self._key)[:200]}") from None

    def batch_request(self, request: ChatRequest) -> dict[str, Any]:
        """The request as in a line of a batch file, in the form of the REST API."""
        contents, config = self.content(request, "text")
        fields = config.model_dump(mode="json", exclude_none=True)
        outside = {name: fields.pop(name) for name in _OUTSIDE if name in fields}
        if system := outside.get("system_instruction"):
            outside["system_instruction"] = {"parts": [{"text": system}]}
        parts = [c.model_dump(mode="json", exclude_none=True) for c in contents]
        return {"contents": parts, **outside, "generation_config": fields}

    def read_batch_line(self, line: bytes) -> GeneratedLine:
        """One line of a batch's results; the reply inside is not parsed yet.

        Raises:
            MalformedError: the line has another form.
        """
        try:
            return self._body.read(self._body.GeneratedLine, line, "gemini", self._key)
        except TransientError as e:  # a downloaded file does not change if read again
            raise MalformedError(str(e)) from None

    def read_completion(self, body: dict[str, Any], model: str, limit: int) -> ChatReply:
        """The reply in an object decoded from JSON.

        Raises:
            TeacherError: as ``chat``.
        """
        return self._read(json.dumps(body), model, limit)

    async def job_error(self, job: str) -> str:
        """Why a batch job failed, or "" if not reported. The SDK does not return this.

        Raises:
            TransientError, MalformedError: as ``chat``.
        """
        with self.typed_failures(job):
            url = f"{self._root.rstrip('/')}/v1beta/{job}"
            response = await self._http_client.get(url, headers={"x-goog-api-key": self._key} | self._headers)
            body = self._body.read(self._body.GeminiJob, response.content, "gemini", self._key)
        return self.shown(body.error)

    def shown(self, error: dict | str | None) -> str:
        """The error message in a line of a batch, without the key."""
        return said_by(error, self._key)

    async def close(self) -> None:
        await self.sdk_client.aio.aclose()
        self.sdk_client.close()
        await self._http_client.aclose()

    def read_response(self, response: GenerateContentResponse, model: str, limit: int) -> ChatReply:
        """The reply in the SDK's response, as in a batch.

        Raises:
            TeacherError: as ``chat``.
        """
        return self._read(response.model_dump_json(by_alias=True), model, limit)

    def _read(self, body: str, model: str, limit: int) -> ChatReply:
        reply = self._body.read(self._body.Generated, body, "gemini", self._key)
        feedback = reply.prompt_feedback
        blocked = feedback.block_reason[:80] if feedback is not None and feedback.block_reason is not None else None
        usage = _usage(reply.usage_metadata, nothing_made=blocked is not None and not reply.candidates)
        if reply.error:
            inside = {"error": reply.error}
            error = failure_of(200, {}, inside, provider="gemini", model=model, key=self._key, limit=limit)
            error.usage = None if usage == Usage() else usage
            raise error
        if blocked is not None:
            raise BlockedError(f"gemini: the prompt for {model!r} was blocked ({blocked})", usage=usage)
        if not reply.candidates:
            raise TransientError(
                f"gemini sent a reply without candidates for model {model!r}", cause="no_candidates", usage=usage
            )
        candidate = reply.candidates[0]
        reason = (candidate.finish_reason or "").upper()[:80]
        if reason in _BLOCKED:
            raise BlockedError(f"gemini: the reply of {model!r} was blocked ({reason})", usage=usage)
        if reason == "MAX_TOKENS":
            raise TruncatedError(
                f"gemini: the reply of {model!r} reached max_output_tokens={limit}; raise it (thinking counts too)",
                usage=usage,
            )
        if reason not in ("STOP", ""):
            raise TransientError(
                f"gemini: the reply of {model!r} ended with {reason} before it was finished",
                cause="unfinished",
                usage=usage,
            )
        parts = (candidate.content.parts if candidate.content else None) or []
        text = "".join(p.text for p in parts if p.text and not p.thought)
        return ChatReply(text, "stop", usage, reply.model_version or model)


def _usage(usage: UsageMetadata | None, *, nothing_made: bool = False) -> Usage:
    """The tokens of a call. Gemini omits counts of 0, and counts thinking separately from the visible candidates.

    prompt 100, total 190                    ->    output 90: thinking used up the whole limit
    prompt 100, candidates 10, thoughts 80   ->    output 90

    Args:
        nothing_made: the prompt was blocked, so a missing output count means 0 and not unknown.
    """
    if usage is None:
        return Usage()
    sent, total = usage.prompt_token_count, usage.total_token_count
    thought, output = usage.thoughts_token_count, usage.candidates_token_count
    if sent is not None and total and total >= sent:
        output = total - sent
    elif output is not None or thought is not None:
        output = (output or 0) + (thought or 0)
    elif nothing_made and sent is not None:
        output = 0
    return Usage(sent, output, thought, usage.cached_content_token_count)


def _http_library() -> Any:
    """The HTTP library whose clients the SDK accepts: httpx2 if present, else httpx."""
    try:
        return importlib.import_module("httpx2")
    except ModuleNotFoundError:
        return importlib.import_module("httpx")


def _connection_errors() -> tuple[type[Exception], ...]:
    """The errors of the HTTP library; batch uploads can use aiohttp."""
    found: list[type[Exception]] = [ConnectionError]
    for module, name in (("aiohttp", "ClientError"), ("httpx2", "RequestError"), ("httpx", "RequestError")):
        try:
            found.append(getattr(importlib.import_module(module), name))
        except ModuleNotFoundError:
            continue
    return tuple(found)
