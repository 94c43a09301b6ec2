"""Chat completions through the openai SDK.

This reaches OpenAI and, with ``base_url``, every server that uses its format: vLLM, SGLang, llama.cpp, Ollama,
``ropd serve-teacher``.

The SDK's own retries are off. ``LimitedClient`` retries instead, with limits and counters. The SDK does not check a
server's output, so the reply is read from the raw body (`reply_body`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ropd_jax.teacher.clients.bounded_http import HttpFailure, bounded_client
from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest, Usage
from ropd_jax.teacher.clients.endpoint import api_key, redact, said_by, sdk_address, shown_address
from ropd_jax.teacher.clients.environment import is_direct, unreachable
from ropd_jax.teacher.clients.errors import (
    BlockedError,
    ContextError,
    MalformedError,
    TeacherError,
    TransientError,
    TruncatedError,
)
from ropd_jax.teacher.clients.failure_body import read_failure
from ropd_jax.teacher.clients.fitting import Fitting
from ropd_jax.teacher.clients.http_status import UNREADABLE, failure_of
from ropd_jax.teacher.clients.options import secrets_of, sent_headers
from ropd_jax.teacher.clients.parameters import limit_name
from ropd_jax.teacher.clients.structured_output import schema_for

if TYPE_CHECKING:
    from ropd_jax.teacher.clients.reply_body import BatchLine, CompletionChoice, CompletionUsage

_FINISHED = {
    "", "stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_token", "end", "complete", "completed",
    "finished", "finish_reason_unspecified",
}  # fmt: skip
_AT_LIMIT = {"length", "max_tokens", "max_output_tokens", "max_completion_tokens", "token_limit", "model_length"}
_BLOCKED = {
    "content_filter", "content_filtered", "safety", "sensitive", "recitation", "prohibited_content", "blocklist",
    "spii", "guardrail_intervened", "refusal",
}  # fmt: skip
_OVER_CONTEXT = {"model_context_window_exceeded", "context_window_exceeded", "context_length_exceeded"}
# Any other reason means an unfinished generation; these have their own causes.
_UNFINISHED = {"insufficient_system_resource": "unavailable", "error": "server_error", "network_error": "server_error"}


class OpenAIClient:
    """A ``ChatClient`` over OpenAI chat completions.

    Args:
        base_url: "" means OpenAI; otherwise ``http://host:port/v1``.
        api_key_env: name of the environment variable with the key; "" means OPENAI_API_KEY. A server on loopback does
            not need a key.
        timeout_s: time limit for one HTTP exchange, in seconds.
        headers: names and values sent with every request; ``env:NAME`` means the value of that environment variable.
        organization, project: the account; "" means the key's default.

    Raises:
        ConfigurationError: there is no key in the environment, it cannot be a key, or the address contains secrets.
    """

    def __init__(
        self,
        *,
        base_url: str = "",
        api_key_env: str = "",
        timeout_s: float = 120.0,
        headers: Sequence[tuple[str, str]] = (),
        organization: str = "",
        project: str = "",
    ):
        address = sdk_address(base_url, "OPENAI_BASE_URL")
        self._key = api_key("openai", ("OPENAI_API_KEY",), named=api_key_env, base_url=base_url)
        import openai

        from ropd_jax.teacher.clients import reply_body

        self._sdk, self._body = openai, reply_body
        self.sdk_client = openai.AsyncOpenAI(
            api_key=self._key,
            base_url=address,
            timeout=timeout_s,
            max_retries=0,
            default_headers=sent_headers(tuple(headers)),
            organization=organization or None,
            project=project or None,
            http_client=bounded_client(openai.DefaultAsyncHttpxClient, "openai", trust_env=not is_direct(base_url)),
        )
        # OpenAI's newer models refuse max_tokens; most other servers accept only max_tokens.
        host = self.sdk_client.base_url.host or ""
        limit = "max_completion_tokens" if host.endswith("openai.com") else "max_tokens"
        self._fitting = Fitting(limit=limit, secrets=secrets_of(tuple(headers)))

    async def chat(self, request: ChatRequest) -> ChatReply:
        return await self._fitting.chat(request, self._chat)

    async def _chat(self, request: ChatRequest, structure: str, refused: frozenset[str]) -> ChatReply:
        body = self.parameters(request, structure, refused)
        model, messages = body.pop("model"), body.pop("messages")
        with self.typed_failures(request.model, request.max_output_tokens):
            raw = self.sdk_client.chat.completions.with_raw_response
            response = await raw.create(model=model, messages=messages, extra_body=body)
        return self.read_completion(response.http_response.content, request.model, request.max_output_tokens)

    def parameters(self, request: ChatRequest, structure: str, refused: frozenset[str] = frozenset()) -> dict:
        """The body of a chat completion, without the parameters in ``refused``."""
        parameters: dict = {
            "model": request.model,
            "messages": [{"role": m.role, "content": m.content} for m in request.messages],
            "seed": request.sample_index,
            limit_name(self._fitting.limit, refused): request.max_output_tokens,
        }
        if request.temperature is not None:
            parameters["temperature"] = request.temperature
        if (schema := schema_for(request, structure)) is not None:
            named = {"name": request.purpose, "schema": schema, "strict": True}
            parameters["response_format"] = {"type": "json_schema", "json_schema": named}
        elif structure == "json_object":
            parameters["response_format"] = {"type": "json_object"}
        parameters |= request.extra
        return {name: value for name, value in parameters.items() if name not in refused}

    @contextlib.contextmanager
    def typed_failures(self, model: str, limit: int = 0) -> Iterator[None]:
        """Raises the SDK's errors as a ``TeacherError``; ``limit`` is the request's ``max_output_tokens``."""
        try:
            yield
        except HttpFailure as e:
            raise self._http_failure(e, model, limit) from None
        except self._sdk.APIError as e:
            raise self._failure(e, model, limit) from None  # the SDK's message can contain the key
        except UNREADABLE as e:
            raise MalformedError(f"openai sent an unreadable body: {redact(str(e), self._key)[:200]}") from None

    def read_completion(self, body: bytes | dict, model: str, limit: int) -> ChatReply:
        """The reply in a completion's JSON, or in the object decoded from it.

        Raises:
            TeacherError: as ``chat``.
        """
        completion = self._body.read(self._body.Completion, body, "openai", self._key)
        usage = _usage(completion.usage)
        choice = completion.choices[0] if completion.choices else None
        reason = (choice.finish_reason or "" if choice else "").strip().lower()[:80]
        broken = choice is not None and choice.error and reason not in _FINISHED - {""}
        if error := completion.error or (choice.error if choice is not None and broken else None):
            said = read_failure({"error": error}, self._key)
            if choice is None or broken or said.message or said.status:  # an empty error next to a reply means nothing
                raise self._error_inside({"error": error}, model, limit, usage)
        if choice is None:
            raise self._error_inside(completion.model_extra or {}, model, limit, usage)
        return _reply(choice, reason, usage, completion.model or model, model, limit)

    def _error_inside(self, body: dict[str, Any], model: str, limit: int, usage: Usage) -> TeacherError:
        """The failure in a reply with status 200: an error instead of, or next to, its choices."""
        said = read_failure(body, self._key)
        if not (said.message or said.status or body.get("error")):
            return TransientError(
                f"openai sent a completion without choices for model {model!r}", cause="no_choices", usage=usage
            )
        error = failure_of(200, {}, body, provider="openai", model=model, key=self._key, limit=limit)
        error.usage = None if usage == Usage() else usage
        return error

    def read_batch_line(self, line: bytes) -> BatchLine:
        """One line of a batch's results; the completion inside is not parsed yet.

        Raises:
            MalformedError: the line has another form.
        """
        try:
            return self._body.read(self._body.BatchLine, line, "openai", self._key)
        except TransientError as e:  # a downloaded file does not change if read again
            raise MalformedError(str(e)) from None

    def shown(self, error: dict | str | None) -> str:
        """The error message in a line of a batch, without the key."""
        return said_by(error, self._key)

    async def close(self) -> None:
        await self.sdk_client.close()

    def _http_failure(self, failure: HttpFailure, model: str, limit: int) -> TeacherError:
        about: dict[str, Any] = dict(provider="openai", model=model, key=self._key, limit=limit)
        return failure_of(failure.status, failure.headers, failure.body, **about)

    def _failure(self, error: Exception, model: str, limit: int) -> TeacherError:
        sdk, cause = self._sdk, error.__cause__
        if isinstance(cause, TeacherError):  # from the bounded client
            return cause
        if isinstance(cause, HttpFailure):
            return self._http_failure(cause, model, limit)
        if isinstance(error, sdk.APITimeoutError):
            return TransientError(f"openai: no answer in time for model {model!r}", cause="timeout")
        if isinstance(error, sdk.APIConnectionError):
            return unreachable(error, "openai", redact(shown_address(str(self.sdk_client.base_url)), self._key))
        return MalformedError(f"openai: {redact(str(error), self._key)[:200]}")


def _reply(choice: CompletionChoice, reason: str, usage: Usage, answered: str, model: str, limit: int) -> ChatReply:
    """The reply in a choice. ``answered`` is the model named by the server, ``model`` the requested one."""
    if reason in _BLOCKED:
        raise BlockedError(f"openai: the reply of {model!r} was stopped by the content filter ({reason})", usage=usage)
    if choice.message is not None and (refusal := choice.message.refusal):
        raise BlockedError(f"openai: {model!r} refused: {refusal[:200]}", cause="refused", usage=usage)
    if reason in _AT_LIMIT:
        raise TruncatedError(
            f"openai: the reply of {model!r} reached max_output_tokens={limit}; raise it (thinking counts too)",
            usage=usage,
        )
    if reason in _OVER_CONTEXT:
        raise ContextError(f"openai: the reply of {model!r} reached the end of its context ({reason})", usage=usage)
    if reason not in _FINISHED:
        raise TransientError(
            f"openai: the reply of {model!r} ended with {reason!r} before it was finished",
            cause=_UNFINISHED.get(reason, "unfinished"),
            usage=usage,
        )
    if choice.message is None:
        raise MalformedError(f"openai sent a choice without a message for model {model!r}", usage=usage)
    return ChatReply(choice.message.text, "stop", usage, answered)


def _usage(usage: CompletionUsage | None) -> Usage:
    """The tokens of a call. Some servers count thinking only in the total, some in neither (xAI, Gemini's own).

    prompt 14, completion 1, reasoning 386, total 401    ->    output 387
    """
    if usage is None:
        return Usage()
    output, prompt = usage.completion_tokens_details, usage.prompt_tokens_details
    sent, made, total = usage.prompt_tokens, usage.completion_tokens, usage.total_tokens
    if not (sent or made or total):
        return Usage()  # a prompt cannot have 0 tokens, so the server does not count
    thought = usage.reasoning_tokens if output is None else output.reasoning_tokens
    cached = None if prompt is None else prompt.cached_tokens
    if cached is None:
        cached = usage.prompt_cache_hit_tokens if usage.cached_tokens is None else usage.cached_tokens
    if sent is not None and total and total >= sent:
        made = max(made or 0, total - sent)
    elif made is not None and thought is not None and thought > made:
        made += thought
    elif sent is None and made is not None and total and total >= made:
        sent = total - made
    return Usage(sent, made, thought, cached)
