"""One event loop on one thread for the whole run, so that connections are pooled once and steps do not start loops."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class TeacherLoop:
    """Runs coroutines on a daemon thread.

    Args:
        closers: async functions that are called on the loop when it closes, e.g. ``client.close``.
    """

    def __init__(self, *closers: Callable[[], Awaitable[None]]):
        self._closers = list(closers)
        self._loop = asyncio.new_event_loop()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="teacher-loop", daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Starts the coroutine on the loop. Cancelling the future cancels the coroutine.

        Raises:
            RuntimeError: the loop is closed.
        """
        with self._lock:
            if not self._closed:
                return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        coroutine.close()
        raise RuntimeError("the teacher loop is closed; expected submissions only before TeacherLoop.close()")

    def on_close(self, closer: Callable[[], Awaitable[None]]) -> None:
        """Calls ``closer`` on the loop when it closes."""
        self._closers.append(closer)

    def is_current_thread(self) -> bool:
        """True if the caller runs on the loop's thread."""
        return threading.current_thread() is self._thread

    def stacks(self) -> str:
        """The line at which each coroutine on the loop waits, to find a hanging one. Can be called from any thread."""
        lines = []
        for task in asyncio.all_tasks(self._loop):
            lines.append(f"\n{task.get_name()}\n")
            waits: Any = task.get_coro()
            while (frame := getattr(waits, "cr_frame", None)) is not None:  # from outermost to innermost
                lines += traceback.format_list(traceback.extract_stack(frame, limit=1))
                waits = waits.cr_await
        return "".join(lines)

    def close(self, timeout_s: float = 10.0) -> None:
        """Cancels all coroutines, closes the clients on the loop and ends the thread. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        future = asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop)
        try:
            future.result(timeout_s)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout_s)

    def __enter__(self) -> TeacherLoop:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _shut_down(self) -> None:
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for closer in self._closers:
            await closer()
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()
