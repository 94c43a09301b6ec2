"""Helpers of the teacher's tests: prompts, a client with given replies, providers against a local server."""

from __future__ import annotations

import contextlib
import socket

import pytest
from aiohttp import web

from ropd_jax.teacher import ChatReply, ChatRequest, TeacherError, Usage, make_client
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.teacher.scripted.server import running
from tests.teacher.helpers import bound


class Saying:
    """A client that returns (or raises) the given items in order, and keeps the requests. Objects get the token."""

    def __init__(self, *replies: str | TeacherError):
        self.replies = list(replies)
        self.requests: list[ChatRequest] = []
        self.closed = False

    async def chat(self, request: ChatRequest) -> ChatReply:
        self.requests.append(request)
        reply = self.replies.pop(0)
        if isinstance(reply, TeacherError):
            raise reply
        return ChatReply(bound(request, reply), usage=Usage(10, 5, 2, 1))

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def saying():
    return Saying


@pytest.fixture
def provider_client():
    """An async context manager: a client of the named provider, through its real SDK, to a local scripted teacher."""

    @contextlib.asynccontextmanager
    async def open_client(provider: str, *, api_key: str = "", stats=None, attempts=1, timeout_s=20.0, **options):
        if provider == "scripted":
            client = make_client(
                provider=provider, scripted=options, stats=stats, attempts=attempts, first_wait_s=0.01,
                timeout_s=timeout_s,
            )  # fmt: skip
            yield client
            await client.close()
            return
        async with running(ScriptedClient(**options), api_key=api_key) as root:
            client = make_client(
                provider=provider,
                base_url=root + "/v1" if provider == "openai" else root,
                attempts=attempts,
                first_wait_s=0.01,
                timeout_s=timeout_s,
                stats=stats,
            )
            try:
                yield client
            finally:
                await client.close()

    return open_client


@pytest.fixture
def unused_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def web_page():
    """A server that answers everything with a web page and 200, as a captive portal does."""

    @contextlib.asynccontextmanager
    async def serve():
        async def page(request):
            return web.Response(text="<html>Please log in</html>", content_type="text/html")

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", page)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    return serve
