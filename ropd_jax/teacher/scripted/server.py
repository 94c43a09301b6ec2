"""The scripted teacher over HTTP, in the two wire formats of real teachers.

    POST /v1/chat/completions                      OpenAI (vLLM, SGLang, llama.cpp, Ollama)
    GET  /v1/models
    POST /v1beta/models/{model}:generateContent    Gemini

The request's ``seed`` is the sample index. Faults are sent as real status codes, including ``Retry-After``. The server
listens on loopback by default, and checks the key only if one is set.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import logging
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest
from ropd_jax.teacher.clients.errors import ConfigurationError, TeacherError
from ropd_jax.teacher.scripted.client import FAULTS, RETRY_AFTER_S, ScriptedClient, corrupted
from ropd_jax.types import Message

log = logging.getLogger(__name__)
MODEL = "scripted"
MAX_BODY_MB = 8  # a request with 12 answers of 8,192 tokens has about 0.5 MB
_GEMINI_STATUS = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE",
}  # fmt: skip


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


def make_app(scripted: ScriptedClient, *, api_key: str = "", max_body_mb: float = MAX_BODY_MB) -> web.Application:
    """The aiohttp application.

    With ``api_key``, requests without that key get a 401. A body of more than ``max_body_mb`` MiB gets
    a 413.
    """
    app = web.Application(client_max_size=int(max_body_mb * 2**20))
    numbers = itertools.count(1)

    async def completions(http: web.Request) -> web.Response:
        n = next(numbers)
        try:
            _authorize(_bearer(http), api_key)
            request = await _from_openai(http)
            kind, reply = await _answer(scripted, request)
        except _Refused as e:
            return _openai_error(e)
        return web.json_response(_to_openai(reply, kind, n))

    async def generate(http: web.Request) -> web.Response:
        try:
            _authorize(http.headers.get("x-goog-api-key") or http.query.get("key", ""), api_key)
            request = await _from_gemini(http)
            kind, reply = await _answer(scripted, request)
        except _Refused as e:
            details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": e.code}] if e.code else []
            error = {"code": e.status, "message": str(e), "status": _GEMINI_STATUS.get(e.status, "UNKNOWN")}
            return web.json_response(
                {"error": error | {"details": details}}, status=e.status, headers=_headers(e.status)
            )
        return web.json_response(_to_gemini(reply, kind))

    async def models(http: web.Request) -> web.Response:
        try:
            _authorize(_bearer(http), api_key)
        except _Refused as e:
            return _openai_error(e)
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "ropd"}]})

    app.router.add_post("/v1/chat/completions", completions)
    app.router.add_get("/v1/models", models)
    for version in ("v1beta", "v1"):  # the SDK's release determines which one is used
        app.router.add_post(rf"/{version}/models/{{model:[^:]+}}:generateContent", generate)
    return app


@contextlib.asynccontextmanager
async def running(
    scripted: ScriptedClient,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    api_key: str = "",
    max_body_mb: float = MAX_BODY_MB,
) -> AsyncIterator[str]:
    """Runs a server during the ``async with``. Yields its root, ``http://127.0.0.1:PORT``. Port 0 means any free port.

    Raises:
        ConfigurationError: the server cannot listen on the address.
    """
    app = make_app(scripted, api_key=api_key, max_body_mb=max_body_mb)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as e:
            raise ConfigurationError(
                f"cannot listen on {host}:{port}: {e.strerror or e}; expected a free port (0 means any free port)"
            ) from e
        bound = runner.addresses[0]
        yield f"http://{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}"
    finally:
        await runner.cleanup()


def serve(
    scripted: ScriptedClient,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    api_key: str = "",
    max_body_mb: float = MAX_BODY_MB,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serves until interrupted (``ropd serve-teacher``). ``ready`` is called once with the root address.

    Raises:
        ConfigurationError: the server cannot listen on the address.
    """

    async def forever() -> None:
        async with running(scripted, host=host, port=port, api_key=api_key, max_body_mb=max_body_mb) as root:
            log.info("scripted teacher: OpenAI format at %s/v1, Gemini format at %s", root, root)
            if ready is not None:
                ready(root)
            await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(forever())


def _bearer(http: web.Request) -> str:
    return http.headers.get("Authorization", "").removeprefix("Bearer ")


def _openai_error(error: _Refused) -> web.Response:
    body = {"error": {"message": str(error), "type": "error", "code": error.code or None, "param": None}}
    return web.json_response(body, status=error.status, headers=_headers(error.status))


def _authorize(key: str, wanted: str) -> None:
    if wanted and not hmac.compare_digest(key.encode("utf-8", "surrogateescape"), wanted.encode()):
        raise _Refused(401, "invalid_api_key", f"Incorrect API key provided: {key}.")


def _headers(status: int) -> dict[str, str]:
    return {"Retry-After": str(RETRY_AFTER_S)} if status == 429 else {}


async def _answer(scripted: ScriptedClient, request: ChatRequest) -> tuple[str | None, ChatReply]:
    kind = await scripted.begin(request)
    if kind in FAULTS:
        status, code, message = FAULTS[kind]
        raise _Refused(status, code, message)
    try:
        return kind, corrupted(scripted.reply(request), kind)
    except TeacherError as e:
        raise _Refused(400, e.cause, str(e)) from e


async def _body(http: web.Request) -> dict:
    try:
        body = await http.json()
    except web.HTTPRequestEntityTooLarge as e:
        limit = http.client_max_size / 2**20
        raise _Refused(413, "request_too_large", f"the body has more than {limit:g} MiB; raise --max_body_mb") from e
    except RecursionError as e:
        raise _Refused(400, "invalid_json", "the body is nested too deeply") from e
    except ValueError as e:
        raise _Refused(400, "invalid_json", f"the body is not JSON: {e}") from e
    if not isinstance(body, dict):
        raise _Refused(400, "invalid_json", "the body is not a JSON object")
    return body


async def _from_openai(http: web.Request) -> ChatRequest:
    body = await _body(http)
    try:
        messages = tuple(Message(m["role"], m["content"]) for m in body["messages"])
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 10**9
        schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema")
        model, seed = body["model"], int(body.get("seed") or 0)
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise _Refused(400, "invalid_request_error", f"not a chat completion request: {e!r}") from e
    return ChatRequest("reference", messages, model, body.get("temperature"), limit, schema, seed)


def _to_openai(reply: ChatReply, kind: str | None, n: int) -> dict:
    reason = "length" if kind == "truncated" else "content_filter" if kind == "blocked" else reply.finish_reason
    message: dict = {"role": "assistant", "content": None if kind in ("blocked", "refused") else reply.text}
    message["refusal"] = "I cannot help with that." if kind == "refused" else None
    sent, out = reply.usage.input_tokens or 0, reply.usage.output_tokens or 0
    return {
        "id": f"chatcmpl-{n}",
        "object": "chat.completion",
        "created": 0,
        "model": reply.model,
        "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}],
        "usage": {
            "prompt_tokens": sent,
            "completion_tokens": out,
            "total_tokens": sent + out,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


async def _from_gemini(http: web.Request) -> ChatRequest:
    body = await _body(http)
    try:
        config = body.get("generationConfig") or {}
        messages = [
            Message("assistant" if c.get("role") == "model" else "user", "".join(p["text"] for p in c["parts"]))
            for c in body["contents"]
        ]
        if system := body.get("systemInstruction"):
            messages.insert(0, Message("system", "".join(p["text"] for p in system["parts"])))
        limit, seed = int(config.get("maxOutputTokens") or 10**9), int(config.get("seed") or 0)
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise _Refused(400, "", f"not a generateContent request: {e!r}") from e
    schema = config.get("responseJsonSchema")
    model = http.match_info["model"]
    return ChatRequest("reference", tuple(messages), model, config.get("temperature"), limit, schema, seed)


def _to_gemini(reply: ChatReply, kind: str | None) -> dict:
    sent, out = reply.usage.input_tokens or 0, reply.usage.output_tokens or 0
    usage = {
        "promptTokenCount": sent,
        "candidatesTokenCount": out,
        "thoughtsTokenCount": 0,
        "cachedContentTokenCount": 0,
        "totalTokenCount": sent + out,
    }
    body: dict = {"modelVersion": reply.model, "usageMetadata": usage}
    if kind == "blocked":
        return body | {"promptFeedback": {"blockReason": "SAFETY"}}
    reason = "MAX_TOKENS" if kind == "truncated" or reply.finish_reason == "length" else "STOP"
    if kind == "refused":
        return body | {"candidates": [{"index": 0, "finishReason": "SAFETY"}]}
    content = {"role": "model", "parts": [{"text": reply.text}]}
    return body | {"candidates": [{"index": 0, "content": content, "finishReason": reason}]}
