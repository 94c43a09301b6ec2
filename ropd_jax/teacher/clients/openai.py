"""Chat completions through the openai SDK.

This reaches OpenAI and, by ``base_url``, every server that speaks its format: vLLM, SGLang, llama.cpp, Ollama,
``ropd serve-teacher``.

The SDK's own retries are off. ``LimitedClient`` retries, where retries are bounded and counted. The SDK does not check
what a server sends, so its reply is read from the raw body (`reply_body`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ropd_jax.teacher.clients.bounded_http import bounded_client
from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest, Usage
from ropd_jax.teacher.clients.endpoint import api_key, redact, said_by, sdk_address, shown_address
from ropd_jax.teacher.clients.errors import BlockedError, MalformedError, TeacherError, TransientError, TruncatedError
from ropd_jax.teacher.clients.fitting import Fitting
from ropd_jax.teacher.clients.http_status import UNREADABLE, error_for_status, parse_retry_after
from ropd_jax.teacher.clients.options import secrets_of, sent_headers
from ropd_jax.teacher.clients.parameters import limit_name
from ropd_jax.teacher.clients.structured_output import schema_for

if TYPE_CHECKING:
    from ropd_jax.teacher.clients.reply_body import BatchLine, Completion, CompletionUsage


class OpenAIClient:
    """A ``ChatClient`` over OpenAI chat completions.

    Args:
        base_url: "" for OpenAI; otherwise ``http://host:port/v1``.
        api_key_env: name of the environment variable with the key; "" means OPENAI_API_KEY. A server on loopback needs
            no key.
        timeout_s: time limit of one HTTP exchange, in seconds.
        headers: names and values, sent with every request; ``env:NAME`` is the value of that environment variable.
        organization, project: of the account; "" is the key's own.

    Raises:
        ConfigurationError: no key in the environment, or one that cannot be; an address that holds secrets.
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
            http_client=bounded_client(openai.DefaultAsyncHttpxClient, "openai"),
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
        with self.typed_failures(request.model):
            raw = self.sdk_client.chat.completions.with_raw_response
            response = await raw.create(model=model, messages=messages, extra_body=body)
        return self.read_completion(response.http_response.content, request.model, request.max_output_tokens)

    def parameters(self, request: ChatRequest, structure: str, refused: frozenset[str] = frozenset()) -> dict:
        """The body of a chat completion, without the parameters that the model's server has ``refused``."""
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
    def typed_failures(self, model: str) -> Iterator[None]:
        """Raises the SDK's errors as a ``TeacherError``."""
        try:
            yield
        except self._sdk.APIError as e:
            raise self._failure(e, model) from None  # the SDK's text can quote the key
        except UNREADABLE as e:
            raise MalformedError(f"openai sent an unreadable body: {redact(str(e), self._key)[:200]}") from None

    def read_completion(self, body: bytes | dict, model: str, limit: int) -> ChatReply:
        """The reply in a completion's JSON, or in what was decoded from it.

        Raises:
            TeacherError: as ``chat``.
        """
        return _reply(self._body.read(self._body.Completion, body, "openai", self._key), model, limit)

    def read_batch_line(self, line: bytes) -> BatchLine:
        """One line of a batch's results; its completion is not read yet.

        Raises:
            MalformedError: of another form.
        """
        return self._body.read(self._body.BatchLine, line, "openai", self._key)

    def shown(self, error: dict | str | None) -> str:
        """What the error of a batch's line says, without the key."""
        return said_by(error, self._key)

    async def close(self) -> None:
        await self.sdk_client.close()

    def _failure(self, error: Exception, model: str) -> TeacherError:
        sdk = self._sdk
        if isinstance(error.__cause__, TeacherError):  # of the bounded client
            return error.__cause__
        if isinstance(error, sdk.APITimeoutError):
            return TransientError(f"openai: no answer in time for model {model!r}", cause="timeout")
        if isinstance(error, sdk.APIStatusError):
            # Servers send {"error": {"message", "code"}}, and some only the inner object.
            body = error.body if isinstance(error.body, dict) else {}
            body = body.get("error", body) if isinstance(body.get("error", body), dict) else body
            said = body.get("message") or (json.dumps(error.body)[:2000] if error.body else error.message)
            message = redact(str(said), self._key)  # without a message: all of it, such as {"detail": [...]} or a list
            after = parse_retry_after(error.response.headers.get("retry-after"))
            code = str(body.get("code") or "")
            return error_for_status(
                error.status_code, message, provider="openai", model=model, code=code, retry_after=after
            )
        if isinstance(error, sdk.APIConnectionError):
            where = redact(shown_address(str(self.sdk_client.base_url)), self._key)
            return TransientError(f"openai: cannot reach {where}", cause="connection")
        return MalformedError(f"openai: {redact(str(error), self._key)[:200]}")


def _reply(completion: Completion, model: str, limit: int) -> ChatReply:
    usage = _usage(completion.usage)
    if not completion.choices:
        raise MalformedError("openai sent a completion without choices", usage=usage)
    choice = completion.choices[0]
    if choice.finish_reason == "content_filter":
        raise BlockedError(f"openai: the reply of {model!r} was stopped by the content filter", usage=usage)
    if refusal := choice.message.refusal:
        raise BlockedError(f"openai: {model!r} refused: {refusal[:200]}", cause="refused", usage=usage)
    if choice.finish_reason == "length":
        raise TruncatedError(
            f"openai: the reply of {model!r} reached max_output_tokens={limit}; raise it (thinking counts too)",
            usage=usage,
        )
    return ChatReply(choice.message.text, "stop", usage, completion.model or model)


def _usage(usage: CompletionUsage | None) -> Usage:
    if usage is None:
        return Usage()
    output, prompt = usage.completion_tokens_details, usage.prompt_tokens_details
    thought = None if output is None else output.reasoning_tokens
    cached = None if prompt is None else prompt.cached_tokens
    return Usage(usage.prompt_tokens, usage.completion_tokens, thought, cached)
