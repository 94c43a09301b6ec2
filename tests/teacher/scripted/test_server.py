"""The scripted teacher over HTTP: addresses, models, faults as status codes, clean starts and stops."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import threading
import urllib.request

import aiohttp
import pytest

from ropd_jax.teacher import ConfigurationError
from ropd_jax.teacher.scripted.client import FAULTS, ScriptedClient
from ropd_jax.teacher.scripted.server import running, serve

BODY = {"model": "m", "messages": [{"role": "user", "content": "2 + 7 ="}]}


def post(path, body, *, options=None, **server):
    async def run():
        data = io.BytesIO(json.dumps(body).encode())
        async with (
            running(ScriptedClient(**(options or {})), **server) as root,
            aiohttp.ClientSession() as session,
            session.post(root + path, data=data, headers={"Content-Type": "application/json"}) as response,
        ):
            return response.status, dict(response.headers), await response.json()

    return asyncio.run(run())


def test_openai_format():
    status, _, body = post("/v1/chat/completions", BODY | {"max_tokens": 100})
    assert status == 200
    assert body["choices"][0]["message"]["content"] == "2 + 7 = 9\nAnswer: 9"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {
        "prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0},
    }  # fmt: skip


def test_gemini_format():
    body = {"contents": [{"role": "user", "parts": [{"text": "2 + 7 ="}]}], "generationConfig": {"maxOutputTokens": 3}}
    status, _, reply = post("/v1beta/models/any:generateContent", body)
    assert status == 200 and reply["modelVersion"] == "any"
    assert reply["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert reply["candidates"][0]["content"]["parts"] == [{"text": "2 + 7 = 9\nAn"}]


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_faults_are_status_codes(kind):
    status, headers, body = post("/v1/chat/completions", BODY, options=dict(fault=lambda r, a: kind))
    assert (status, body["error"]["code"] or "", body["error"]["message"]) == FAULTS[kind]
    assert headers.get("Retry-After") == ("0.05" if status == 429 else None)


@pytest.mark.parametrize(
    "body", [{}, {"messages": "x", "model": "m"}, {"messages": [{"role": "user"}], "model": "m"}, []]
)
def test_what_is_no_request_is_a_400(body):
    assert post("/v1/chat/completions", body)[0] == 400
    assert post("/v1beta/models/m:generateContent", body)[0] == 400


def test_a_body_of_many_megabytes_is_taken():
    content = "2 + 7 =" + " " * 8_000_000
    status, _, body = post("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": content}]})
    assert status == 200 and body["choices"][0]["message"]["content"].endswith("Answer: 9")


def test_a_larger_body_than_the_limit_is_refused_with_the_remedy():
    body = {"model": "m", "messages": [{"role": "user", "content": "2 + 7 =" + " " * 2**20}]}
    status, _, reply = post("/v1/chat/completions", body, max_body_mb=1)
    assert status == 413 and "more than 1 MiB; raise --max_body_mb" in reply["error"]["message"]
    gemini = {"contents": [{"role": "user", "parts": [{"text": " " * 9 * 2**20}]}]}
    assert post("/v1beta/models/m:generateContent", gemini)[0] == 413  # 8 MiB by default


def test_a_body_nested_too_deeply_is_a_400():
    async def run():
        async with (
            running(ScriptedClient()) as root,
            aiohttp.ClientSession() as session,
            session.post(root + "/v1/chat/completions", data=b"[" * 200_000) as response,
        ):
            return response.status

    assert asyncio.run(run()) == 400


@pytest.mark.parametrize("key", ["", "another", "k\xe9y"])
def test_with_a_key_every_path_asks_for_it(key):
    async def run():
        found = []
        async with running(ScriptedClient(), api_key="sk-right") as root, aiohttp.ClientSession() as session:
            for sent in (key, "sk-right"):
                headers = {"Authorization": f"Bearer {sent}", "x-goog-api-key": sent}
                gemini = {"contents": [{"role": "user", "parts": [{"text": "2 + 7 ="}]}]}
                for path, body in (("chat/completions", BODY), ("models/m:generateContent", gemini)):
                    async with session.post(f"{root}/v1/{path}", json=body, headers=headers) as response:
                        found.append(response.status)
                async with session.get(f"{root}/v1/models", headers=headers) as response:
                    found.append(response.status)
        return found

    assert asyncio.run(run()) == [401] * 3 + [200] * 3


def test_a_taken_port_is_one_line():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve(ScriptedClient(), port=port)


def test_models_and_ready():
    """``serve`` blocks, so it runs on a daemon thread that ends with the tests."""
    ready: list[str] = []
    event = threading.Event()
    args = dict(port=0, ready=lambda root: (ready.append(root), event.set()))
    threading.Thread(target=serve, args=(ScriptedClient(),), kwargs=args, daemon=True).start()
    assert event.wait(10)
    assert ready[0].startswith("http://127.0.0.1:")
    with urllib.request.urlopen(ready[0] + "/v1/models", timeout=10) as response:
        assert b'"id": "scripted"' in response.read()
