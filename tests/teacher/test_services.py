"""Real service behaviour: each row of `services.rows` through the real SDKs, against one local server."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import re

import pytest
from aiohttp import web

from ropd_jax.teacher import ChatReply, ChatRequest, TeacherError, TransientError
from ropd_jax.teacher.clients.gemini import GeminiClient
from ropd_jax.teacher.clients.openai import OpenAIClient
from ropd_jax.teacher.traffic.limits import Limits
from ropd_jax.teacher.traffic.retries import LimitedClient
from ropd_jax.types import Message
from tests.teacher.services.forms import LIMIT, Fails, Row, Says
from tests.teacher.services.rows import GROUPS, ROWS, api_of, meaning

BY_NAME = {row.name: row for row in ROWS}


class Services:
    """A server that plays the row that the request names as its model; it records the limit of each request."""

    def __init__(self):
        self.limits: dict[str, list[int]] = collections.defaultdict(list)

    async def answer(self, http: web.Request) -> web.StreamResponse:
        body = await http.json()
        found = re.search(r"/models/([^:]+):", http.path)
        model = found[1] if found else body["model"]
        limit = body.get("max_tokens") or body["generationConfig"]["maxOutputTokens"]
        sent = BY_NAME[model.removesuffix("-again")].sent
        answer = sent[min(len(self.limits[model]), len(sent) - 1)]
        self.limits[model].append(limit)
        headers = {"Content-Type": "application/json"} | answer.headers
        if not answer.cut:
            return web.Response(status=answer.status, headers=headers, body=answer.data)
        response = web.StreamResponse(status=answer.status, headers=headers | {"Content-Length": str(len(answer.data))})
        await response.prepare(http)
        await response.write(answer.data[: len(answer.data) // 2])
        assert http.transport is not None
        http.transport.close()
        return response


@contextlib.asynccontextmanager
async def serving():
    """(the server, its root address)."""
    services = Services()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", services.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield services, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def outcome(client, model: str) -> ChatReply | TeacherError:
    try:
        return await client.chat(ChatRequest("verify", (Message("user", "2 + 2"),), model, 0.0, LIMIT))
    except TeacherError as error:
        return error


async def play() -> dict:
    """(first outcome, last outcome, limits of the requests with two attempts) for each row."""

    async def no_wait(seconds):
        await asyncio.sleep(0)

    async with serving() as (services, root):
        found = {}
        for provider in ("openai", "gemini"):
            rows = [row for row in ROWS if api_of(row) == provider]
            one = OpenAIClient(base_url=root + "/v1") if provider == "openai" else GeminiClient(base_url=root)
            many = LimitedClient(one, Limits(attempts=2, concurrency=4, min_concurrency=4), sleep=no_wait)
            first = [await outcome(one, row.name) for row in rows]
            last = await asyncio.gather(*(outcome(many, row.name + "-again") for row in rows))
            for row, before, after in zip(rows, first, last, strict=True):
                found[row.name] = (before, after, tuple(services.limits[row.name + "-again"]))
            await many.close()
        return found


@pytest.fixture(scope="module")
def played():
    return asyncio.run(play())


def check(row: Row, expected: Says | Fails, found: ChatReply | TeacherError) -> None:
    if isinstance(expected, Says):
        assert isinstance(found, ChatReply), found
        assert found.text == expected.text and expected.usage in (None, found.usage)
        return
    assert type(found) is expected.type and found.cause == expected.cause, repr(found)
    text = str(found)
    assert expected.says in text and "\n" not in text and len(text) < 900
    if isinstance(found, TransientError):
        assert found.retry_after == (None if expected.wait is None else pytest.approx(expected.wait))
    assert expected.room in (None, getattr(found, "room", None)), found.room
    assert expected.usage in (None, found.usage)


@pytest.mark.parametrize("name", list(BY_NAME))
def test_the_first_answer_is_read_as_what_it_means(played, name):
    row = BY_NAME[name]
    check(row, row.outcome, played[name][0])


@pytest.mark.parametrize("name", list(BY_NAME))
def test_it_is_tried_again_if_that_can_help(played, name):
    row = BY_NAME[name]
    _, last, limits = played[name]
    assert limits == row.requests
    if row.last is not None:
        check(row, row.last, last)


def test_the_table_is_whole():
    assert len(ROWS) == len(BY_NAME) >= 80
    assert sum(api_of(row) == "gemini" for row in ROWS) >= 25
    for rows in GROUPS.values():
        for row in rows:
            assert row.thread == "" or re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", row.thread), row.name
            assert row.service and row.what and "\n" not in row.what


def test_each_row_has_a_meaning_for_the_documentation():
    assert meaning(BY_NAME["wait-gemini"]) == "sent again after 38 s (rate_limited)"
    assert meaning(BY_NAME["context-tgi"]) == "sent again with a limit of 1,988 tokens, which fits"
    assert meaning(BY_NAME["finish-length"]) == "sent again with a limit of 8,192 tokens"
    assert meaning(BY_NAME["xai-403"]) == "no reply for this prompt (blocked)"
    assert meaning(BY_NAME["region-400"]) == "the run stops (region)"
    assert meaning(BY_NAME["context-zhipu"]) == "asked for again in parts"
    assert all(meaning(row) for row in ROWS)
