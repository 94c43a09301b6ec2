"""Whatever a server sends becomes a reply or a typed error: both providers, through their SDKs."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time

import pytest
from aiohttp import web

from ropd_jax.teacher import (
    ChatReply,
    ChatRequest,
    ConfigurationError,
    MalformedError,
    TeacherError,
    TransientError,
    Usage,
    make_client,
)
from ropd_jax.teacher.clients import bounded_http
from ropd_jax.teacher.clients.batch import OpenAIBatch
from ropd_jax.teacher.clients.openai import OpenAIClient
from ropd_jax.types import Message

DEEP = "[" * 100_000 + "]" * 100_000
ODD = [None, "", "x", 7, -1, 1.5, True, [], ["x"], [[]], {}, {"a": 1}, 10**30, float("nan")]  # a value of any type
COUNTS = ["12 tokens", -1, 10**30, 10**9 + 1, [], {}, 1.5, float("inf")]


def openai_body(**changes):
    choice = {"index": 0, "message": {"role": "assistant", "content": "four"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 2}}
    return {"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage, "model": "m-1"} | changes


def openai_message(content, **more):
    return openai_body(choices=[{"message": {"content": content} | more, "finish_reason": "stop"}])


def gemini_body(**changes):
    candidate = {"content": {"role": "model", "parts": [{"text": "four"}]}, "finishReason": "STOP"}
    usage = {"promptTokenCount": 10, "candidatesTokenCount": 3, "thoughtsTokenCount": 2}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m-1"} | changes


def gemini_parts(parts, **more):
    return gemini_body(candidates=[{"content": {"parts": parts}, "finishReason": "STOP"} | more])


RAW = ["", "null", "true", "7", '"four"', "[]", "{}", DEEP, '{"choices":' + DEEP + "}", '{"candidates":' + DEEP + "}",
       "{", "<html>", "\ufeff{}", "{}{}", "data: {}\n\n", "\x00", "9" * 5_000]  # fmt: skip
ANY = [("choices", v) for v in ODD] + [("model", v) for v in ODD if not isinstance(v, str) and v is not None]
BODIES = {
    "openai": [
        *RAW,
        b"\xff\xfe{}",
        *(openai_body(**{key: value}) for key, value in ANY),
        *(openai_body(choices=[value]) for value in ODD),
        *(openai_body(choices=[{"message": value}]) for value in ODD if value != {} and value != {"a": 1}),
        *(openai_message(value) for value in (7, True, {}, {"text": "x"}, [7], [[]], [{"type": "text", "text": 7}])),
        *(openai_message("x", refusal=value) for value in (7, [], {})),
        *(openai_body(choices=[{"message": {}, "finish_reason": value}]) for value in (7, [], {})),
        *(openai_body(usage=value) for value in ("x", 7, [], ["x"], True)),
        *(openai_body(usage={"prompt_tokens": value}) for value in COUNTS),
        *(openai_body(usage={"completion_tokens": value}) for value in COUNTS),
        *(openai_body(usage={"completion_tokens_details": value}) for value in ("x", [], {"reasoning_tokens": -1})),
    ],
    "gemini": [
        *RAW,
        b"\xff\xfe{}",
        *(gemini_body(candidates=value) for value in ODD),
        *(gemini_body(modelVersion=value) for value in ODD if not isinstance(value, str) and value is not None),
        *(gemini_body(candidates=[value]) for value in ODD if value != {} and value != {"a": 1}),
        *(gemini_body(candidates=[{"content": value}]) for value in ("x", 7, [], True)),
        *(gemini_parts(value) for value in ("x", 7, {}, ["x"], [7], [None], [[]], [{"text": 7}], [{"text": ["x"]}])),
        *(gemini_parts([{"text": "x", "thought": value}]) for value in ("perhaps", [], {})),
        *(gemini_parts([{"text": "x"}], finishReason=value) for value in (7, [], {}, "NEW_REASON")),
        *(gemini_body(promptFeedback=value) for value in ("x", 7, [])),
        *(gemini_body(usageMetadata=value) for value in ("x", 7, [], ["x"], True)),
        *(gemini_body(usageMetadata={"promptTokenCount": value}) for value in COUNTS),
        *(gemini_body(usageMetadata={"thoughtsTokenCount": value}) for value in COUNTS),
    ],
}
FINE = {
    "openai": [
        (openai_body(), "four", Usage(10, 5, 2, None), "m-1"),
        (openai_body(usage=None, model=None), "four", Usage(), "asked"),
        (openai_body(usage={}, extra={"a": [1]}), "four", Usage(), "m-1"),
        (openai_message([{"type": "text", "text": "fo"}, {"type": "text", "text": "ur"}]), "four", None, "m-1"),
        (openai_message(["fo", {"text": "ur"}, {"type": "thinking", "thinking": []}]), "four", None, "m-1"),
        (openai_message([]), "", None, "m-1"),
        (openai_message(None), "", None, "m-1"),
        (openai_message("\ud800"), "\ud800", None, "m-1"),
    ],
    "gemini": [
        (gemini_body(), "four", Usage(10, 5, 2, None), "m-1"),
        (gemini_body(usageMetadata=None, modelVersion=None), "four", Usage(), "asked"),
        (gemini_parts([{"text": "hm", "thought": True}, {"text": "fo"}, {"text": "ur"}]), "four", None, "m-1"),
        (gemini_parts([{"inlineData": {}}, {"text": "four", "new": 1}]), "four", None, "m-1"),
        (gemini_parts([]), "", None, "m-1"),
        (gemini_body(candidates=[{"finishReason": "STOP"}]), "", None, "m-1"),
    ],
}


def encoded(body):
    return body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()


@contextlib.asynccontextmanager
async def asking(provider, answer):
    """An ``ask()`` of a client of the provider; the server answers every request with ``await answer(request)``."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        root = f"http://127.0.0.1:{runner.addresses[0][1]}"
        client = make_client(provider=provider, base_url=root + ("/v1" if provider == "openai" else ""), attempts=1)

        async def ask():
            try:
                return await client.chat(ChatRequest("verify", (Message("user", "Q?"),), "asked", 0.0, 100))
            except TeacherError as error:
                return error

        try:
            yield ask
        finally:
            await client.close()
    finally:
        await runner.cleanup()


def asked(provider, answers):
    """The outcome of each of the answers ``(status, headers, body)``."""

    async def run():
        at = iter(answers)

        async def answer(request):
            status, headers, body = next(at)
            return web.Response(status=status, headers=headers, body=body)

        async with asking(provider, answer) as ask:
            return [await ask() for _ in answers]

    return asyncio.run(run())


JSON = {"Content-Type": "application/json"}
# Bodies for which a retry can help: not JSON, or without any generated text.
PASSING = {"cut_off", "empty_body", "web_page", "not_json", "no_choices", "no_candidates", "unfinished"}


@pytest.mark.parametrize("provider", BODIES)
def test_a_body_of_another_form_is_malformed_or_worth_another_try_with_a_sample(provider):
    bodies = [encoded(body) for body in BODIES[provider]]
    assert len(bodies) >= 60
    for body, outcome in zip(bodies, asked(provider, [(200, JSON, body) for body in bodies]), strict=True):
        passing = isinstance(outcome, TransientError) and outcome.cause in PASSING
        assert passing or isinstance(outcome, MalformedError), (body[:200], outcome)
        assert len(str(outcome)) < 700 and str(outcome).startswith(provider)


@pytest.mark.parametrize("provider", BODIES)
def test_the_sample_shows_no_part_of_the_key(provider, monkeypatch):
    key = "sk-hostile-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("GEMINI_API_KEY", key)
    bodies = [b"x" * n + key.encode() + b"x" * 300 for n in range(170, 205)]
    for outcome in asked(provider, [(200, JSON, body) for body in bodies]):
        assert outcome.cause == "not_json" and "x" * 170 in str(outcome) and "sk-" not in str(outcome)


@pytest.mark.parametrize("provider", FINE)
def test_what_is_valid_is_read(provider):
    for case, outcome in zip(
        FINE[provider], asked(provider, [(200, JSON, encoded(body)) for body, *_ in FINE[provider]]), strict=True
    ):
        body, text, usage, model = case
        assert isinstance(outcome, ChatReply), (body, outcome)
        assert (outcome.text, outcome.model) == (text, model)
        assert usage is None or outcome.usage == usage


@pytest.mark.parametrize("provider", BODIES)
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_an_error_of_any_form_is_a_typed_error(provider, status):
    inner = [{"error": value} for value in ODD] + [{"error": {"message": v, "code": v, "details": v}} for v in ODD]
    bodies = [encoded(body) for body in (*RAW, b"\xff", *inner)]
    headers = JSON | {"Retry-After": "9" * 400}
    for outcome in asked(provider, [(status, headers, body) for body in bodies]):
        assert isinstance(outcome, TeacherError) and len(str(outcome)) < 1_000


CHARSETS = [
    "hex",
    "base64",
    "idna",
    "undefined",
    "rot13",
    "utf-16",
    "unicode_escape",
    "bz2",
    "zlib",
    "none",
    "x" * 300,
    "punycode",
]


@pytest.mark.parametrize("provider", BODIES)
def test_a_charset_of_the_server_executes_and_breaks_nothing(provider):
    types = [{"Content-Type": f"application/json; charset={name}"} for name in CHARSETS]
    for outcome in asked(provider, [(status, kind, b'{"a": "\\x"}') for status in (200, 400, 500) for kind in types]):
        assert isinstance(outcome, TeacherError)


@pytest.mark.parametrize("provider", BODIES)
def test_a_compressed_body_is_refused_before_it_is_unpacked(provider):
    bomb = gzip.compress(b" " * 2**26)
    answers = [(status, JSON | {"Content-Encoding": name}, bomb) for status in (200, 500) for name in ("gzip", "br")]
    reply, other, *failures = asked(provider, answers)
    for outcome in (reply, other):
        assert isinstance(outcome, MalformedError) and "compressed as" in str(outcome)
    for outcome in failures:  # the status is enough
        assert isinstance(outcome, TransientError) and outcome.cause == "server_error"


@pytest.mark.parametrize("provider", BODIES)
@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("status", [200, 500])
def test_no_more_than_the_bound_is_taken_of_a_body(provider, announced, status, monkeypatch):
    monkeypatch.setattr(bounded_http, "MAX_REPLY_BYTES", 2**20)
    sent = 0

    async def answer(request):
        nonlocal sent
        headers = {"Content-Length": str(200 * 2**20)} if announced else {}
        response = web.StreamResponse(status=status, headers=JSON | headers)
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                await response.write(b" " * 2**20)
                sent += 1
        return response

    async def run():
        async with asking(provider, answer) as ask:
            return await ask()

    began = time.monotonic()
    outcome = asyncio.run(run())
    if status == 200:
        assert isinstance(outcome, MalformedError) and "more than 1,048,576 bytes" in str(outcome)
    else:
        assert isinstance(outcome, TransientError) and outcome.cause == "server_error"
    assert sent < 100 and time.monotonic() - began < 20


@pytest.mark.parametrize("provider", BODIES)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_names_both_hosts(provider, status):
    to = "http://elsewhere.invalid/v1/steal?token=secret"
    (outcome,) = asked(provider, [(status, {"Location": to}, b"")])
    assert isinstance(outcome, ConfigurationError) and outcome.cause == "redirect"
    assert "127.0.0.1 redirects to elsewhere.invalid" in str(outcome) and "secret" not in str(outcome)


@pytest.mark.parametrize("provider", BODIES)
def test_a_redirect_to_an_address_that_cannot_be_read_is_typed_too(provider):
    odd = ["", "/v2", "http://[::1", "//", "http://:99999999", "javascript:alert(1)", "\x80", "http://a b/"]
    for outcome in asked(provider, [(302, {"Location": to}, b"") for to in odd]):
        assert isinstance(outcome, ConfigurationError) and outcome.cause == "redirect"


def test_a_line_of_a_batch_that_cannot_be_read_costs_only_itself(caplog):
    good = {"custom_id": "k", "response": {"status_code": 200, "body": openai_body()}}
    lines = [
        *(encoded(line) for line in (*RAW[1:], *({"custom_id": v} for v in ODD), {"custom_id": "k", "response": 7}))
    ]
    content = b"\n".join([*lines, b"\xff", encoded(good)])

    async def answer(request):
        if request.path.endswith("/content"):
            return web.Response(body=content)
        batch = {"id": "b", "status": "completed", "output_file_id": "f", "object": "batch"}
        return web.json_response(batch)

    async def run():
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            batch = OpenAIBatch(OpenAIClient(base_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1"))
            found = await batch.answers("b", {"k": ChatRequest("reference", (), "asked", None, 100)}, last_look=True)
            await batch.close()
            return found
        finally:
            await runner.cleanup()

    found = asyncio.run(run())
    assert {key: reply.text for key, reply in found.items()} == {"k": "four"}
    assert len(caplog.records) > 20 and all(len(r.getMessage()) < 700 for r in caplog.records)
