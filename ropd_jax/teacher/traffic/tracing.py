"""A client that opens a span around each call of another client."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from ropd_jax.teacher.clients.chat import ChatClient, ChatReply, ChatRequest


class ObservedClient:
    """A ``ChatClient`` that opens ``around(purpose)`` around each call of the inner client."""

    def __init__(self, client: ChatClient, around: Callable[[str], AbstractContextManager]):
        self.inner = client
        self._around = around

    async def chat(self, request: ChatRequest) -> ChatReply:
        """Returns the inner client's reply, or raises its error."""
        with self._around(request.purpose):
            return await self.inner.chat(request)

    async def close(self) -> None:
        await self.inner.close()
