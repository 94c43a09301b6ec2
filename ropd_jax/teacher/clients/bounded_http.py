"""An HTTP client that does not trust the server: no redirects, no compressed bodies, a limit on a reply's bytes.

Both SDKs accept such a client. It checks its rules when the headers arrive and while the body comes in, before anything
is parsed:

    a redirect          would send our prompts, and with some SDKs our key, to an address that is not in the config
    a compressed body   not requested; 3 MB of gzip can hold 3 GB
    a body too long     a chat reply has a few kilobytes
    another charset     ignored
    a status over 400   raised as an `HttpFailure`; its body can have any form, so no SDK parses it
"""

from __future__ import annotations

import contextlib
import importlib
import urllib.parse
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from ropd_jax.teacher.clients.environment import environment
from ropd_jax.teacher.clients.errors import ConfigurationError, MalformedError

MAX_REPLY_BYTES = 16 * 2**20  # 64,000 tokens of output are about 0.3 MB
MAX_DOWNLOAD_BYTES = 2**30  # for the results of a batch
MAX_FAILURE_BYTES = 2**18  # for the body of a failure; the rest is not read
_CHAT = ("/chat/completions", ":generateContent")  # path endings of chat requests


class HttpFailure(Exception):
    """An answer with a status of 400 or more; ``headers`` have lowercase names, ``body`` can be truncated."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes):
        super().__init__(f"HTTP status {status}")
        self.status, self.headers, self.body = status, headers, body


class Response(Protocol):
    """The part of a response that we use, from httpx or a library with its interface."""

    status_code: int
    headers: Mapping[str, str]
    request: Any
    encoding: str
    stream: Any


def bounded_client(client: type, provider: str, **options: Any) -> Any:
    """An ``AsyncClient`` of httpx, or of a library with its interface, with the rules of this module.

    Args:
        client: the class, for example ``httpx.AsyncClient``.
        provider: for messages.
        options: arguments of the class.

    The client raises, from a request:
        ConfigurationError: a redirect; the message names both hosts.
        HttpFailure: a status of 400 or more.
        MalformedError: a compressed body, or one that is too long.

    Raises:
        ConfigurationError: this machine's environment does not allow a client, see `environment`.
    """
    base = next(c for c in client.__mro__ if c.__name__ == "AsyncClient")
    library = importlib.import_module(base.__module__.partition(".")[0])

    class Bounded(library.AsyncByteStream):  # type: ignore[name-defined]
        """A body that raises an error after ``limit`` bytes."""

        def __init__(self, body: Any, limit: int):
            self._body, self._limit = body, limit

        async def __aiter__(self) -> AsyncIterator[bytes]:
            seen = 0
            async for part in self._body:
                seen += len(part)
                if seen > self._limit:
                    raise _too_long(provider, self._limit)
                yield part

        async def aclose(self) -> None:
            await self._body.aclose()

    async def beginning(stream: Any) -> bytes:
        """The first bytes of a body, as far as they came before the connection broke."""
        found = b""
        with contextlib.suppress(library.TransportError):
            async for part in stream:
                found += part
                if len(found) >= MAX_FAILURE_BYTES:
                    break
        return found[:MAX_FAILURE_BYTES]

    async def check(response: Response) -> None:
        url, headers = response.request.url, response.headers
        if 300 <= response.status_code < 400:
            to = _host(headers.get("location", "")) or url.host  # for a path on the same host
            raise ConfigurationError(
                f"{provider}: {url.host} redirects to {to}, and redirects are not followed, because the prompts would "
                f"go to {to}; set teacher.base_url to the intended address",
                cause="redirect",
            )
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if response.status_code >= 400:
            body = b"" if encoding != "identity" else await beginning(response.stream)
            raise HttpFailure(response.status_code, {k.lower(): v for k, v in headers.items()}, body)
        if encoding != "identity":
            raise MalformedError(f"{provider} sent a body compressed as {encoding[:40]!r}; none was requested")
        limit = MAX_REPLY_BYTES if url.path.endswith(_CHAT) else MAX_DOWNLOAD_BYTES
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > limit:
            raise _too_long(provider, limit)
        response.encoding = "utf-8"  # as JSON is; a charset "hex" or "bz2" would run another Python codec
        response.stream = Bounded(response.stream, limit)

    with environment(provider, proxies=options.get("trust_env", True)):
        return client(
            headers={"Accept-Encoding": "identity"},
            follow_redirects=False,
            event_hooks={"response": [check]},
            **options,
        )


def _host(address: str) -> str:
    try:
        return urllib.parse.urlsplit(address).hostname or ""
    except ValueError:  # one bracket too many
        return "an unreadable address"


def _too_long(provider: str, limit: int) -> MalformedError:
    return MalformedError(f"{provider} sent more than {limit:,} bytes; expected one reply of a chat model")
