"""Several clients as one: each request goes to its role's client, and references alternate between clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ropd_jax.teacher.clients.chat import ChatClient, ChatReply, ChatRequest


class Routes:
    """A ``ChatClient`` that forwards each request by its purpose.

    Args:
        clients: the clients of each purpose. With n clients, sample i goes to number i % n.
    """

    def __init__(self, clients: Mapping[str, Sequence[ChatClient]]):
        self._clients = {purpose: tuple(several) for purpose, several in clients.items()}

    def client_of(self, request: ChatRequest) -> ChatClient:
        """The client for this request."""
        several = self._clients[request.purpose]
        return several[request.sample_index % len(several)]

    async def chat(self, request: ChatRequest) -> ChatReply:
        """The reply from the request's client."""
        return await self.client_of(request).chat(request)

    async def close(self) -> None:
        """Closes each client once."""
        for client in {id(c): c for several in self._clients.values() for c in several}.values():
            await client.close()
