"""Servers on loopback, each on a thread of its own, for clients that block.

with on_own_thread(running(...)) as url:            # an asynchronous context: aiohttp, our own servers
with http_serving(Handler) as url:                  # a handler of http.server
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def on_own_thread(context: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Enters an asynchronous context on an event loop in a thread, and leaves it at the end; gives its value.

    Raises:
        BaseException: what entering it raises.
    """
    entered: concurrent.futures.Future[tuple[T, Callable[[], None]]] = concurrent.futures.Future()

    async def hold() -> None:
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        async with context as value:
            entered.set_result((value, lambda: loop.call_soon_threadsafe(over.set)))
            await over.wait()

    def work() -> None:
        try:
            asyncio.run(hold())
        except BaseException as error:
            if entered.done():
                raise
            entered.set_exception(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        value, leave = entered.result()
        try:
            yield value
        finally:
            leave()
    finally:
        thread.join()


@contextlib.contextmanager
def http_serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """A handler of `http.server` behind a free port; gives its address, without a path."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
