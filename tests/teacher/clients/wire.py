"""A local server with both wire formats and configurable refusals; requests go through the real SDKs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json

from aiohttp import web

from ropd_jax.teacher import make_client


@dataclasses.dataclass
class Seen:
    path: str
    headers: dict
    body: dict


class Server:
    """``refuse(body)`` is the message of a 400, or (status, JSON body), or None."""

    def __init__(self, *, refuse=None, text="fine", token_status=200):
        self.refuse, self.text, self.token_status = refuse or (lambda body: None), text, token_status
        self.seen: list[Seen] = []
        self.root = ""

    async def answer(self, http):
        if http.path == "/token":
            self.seen.append(Seen(http.path, {}, {}))
            answer = {"access_token": "token-of-the-account", "expires_in": 3600, "token_type": "Bearer"}
            return web.json_response(answer if self.token_status == 200 else {"error": "invalid_grant"},
                                     status=self.token_status)  # fmt: skip
        body = await http.json()
        self.seen.append(Seen(http.path, {k.lower(): v for k, v in http.headers.items()}, body))
        if (no := self.refuse(body)) is not None:
            status, error = (400, {"error": {"message": no, "code": 400}}) if isinstance(no, str) else no
            return web.json_response(error, status=status)
        if "contents" in body:
            part = {"content": {"role": "model", "parts": [{"text": self.text}]}, "finishReason": "STOP"}
            return web.json_response({"candidates": [part]})
        choice = {"index": 0, "message": {"role": "assistant", "content": self.text}, "finish_reason": "stop"}
        return web.json_response(
            {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        )

    async def chat(self, provider, request, **options):
        return (await self.chats(provider, [request], **options))[0]

    async def chats(self, provider, requests, *, together=False, **options):
        address = self.root + ("/v1" if provider == "openai" else "")
        client = make_client(provider=provider, base_url=address, attempts=1, **options)
        try:
            if together:
                return await asyncio.gather(*(client.chat(r) for r in requests))
            return [await client.chat(r) for r in requests]
        finally:
            await client.close()

    def service_account(self, path):
        """A service account's file whose tokens come from this server."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        pem = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        about = {
            "type": "service_account", "project_id": "owner", "private_key_id": "1", "private_key": pem.decode(),
            "client_email": "a@owner.example", "token_uri": f"{self.root}/token",
        }  # fmt: skip
        path.write_text(json.dumps(about))
        return path


@contextlib.asynccontextmanager
async def serving(**options):
    server = Server(**options)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.root = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()


def wire(provider, requests, *, refuse=None, text="fine", **options):
    """(the texts of the replies, the requests that the server saw)."""

    async def main():
        async with serving(refuse=refuse, text=text) as server:
            replies = await server.chats(provider, requests, **options)
            return [r.text for r in replies], server.seen

    return asyncio.run(main())
