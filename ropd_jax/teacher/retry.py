"""Bounded patience around any client: how many calls at once, how long each may take, how often a failure is retried.

Only ``TransientError`` is retried, after an exponential wait with full jitter, or after the server's ``Retry-After``
where that is longer, but never longer than ``max_wait_s``. The time limit of a call starts when the call starts, not
while it waits for its turn; a call that waits for its next attempt holds no slot.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

import tenacity

from ropd_jax.teacher.client import ChatClient, ChatReply, ChatRequest, TransientError
from ropd_jax.teacher.stats import TeacherStats

log = logging.getLogger(__name__)


class RetryingClient:
    """A ``ChatClient`` with ``concurrency`` slots, a time limit of ``timeout_s`` a call, and ``attempts`` tries."""

    def __init__(
        self,
        client: ChatClient,
        *,
        concurrency: int = 16,
        timeout_s: float = 120.0,
        attempts: int = 5,
        first_wait_s: float = 1.0,
        max_wait_s: float = 60.0,
        stats: TeacherStats | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        self.inner = client
        self._slots = asyncio.Semaphore(concurrency)
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._first_wait_s = first_wait_s
        self._max_wait_s = max_wait_s
        self._stats = stats if stats is not None else TeacherStats()
        self._sleep = sleep

    async def chat(self, request: ChatRequest) -> ChatReply:
        """The inner client's reply; raises its ``TeacherError``, a transient one only after the last attempt."""
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(TransientError),
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=self._wait,
            sleep=self._sleep,
            before_sleep=self._note,
            reraise=True,
        )
        return await retrying(self._once, request)

    async def close(self) -> None:
        await self.inner.close()

    async def _once(self, request: ChatRequest) -> ChatReply:
        async with self._slots:
            deadline = asyncio.timeout(self._timeout_s)
            try:
                async with deadline:
                    return await self.inner.chat(request)
            except TimeoutError as e:
                if not deadline.expired():
                    raise
                limit = f"teacher.timeout_s={self._timeout_s:g}"
                message = f"{request.model!r} ({request.purpose}) took longer than {limit}"
                raise TransientError(message, cause="timeout") from e

    def _wait(self, state: tenacity.RetryCallState) -> float:
        spread = self._first_wait_s * 2 ** (state.attempt_number - 1) * random.uniform(0.5, 1.5)
        error = state.outcome.exception() if state.outcome else None
        asked = (error.retry_after or 0.0) if isinstance(error, TransientError) else 0.0
        return min(max(spread, asked), self._max_wait_s)

    def _note(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        cause = error.cause if isinstance(error, TransientError) else "unknown"
        self._stats.count("retries", cause)
        wait = state.next_action.sleep if state.next_action else 0.0
        tried = f"{state.attempt_number} of {self._attempts}"
        log.info("teacher: attempt %s failed (%s), next in %.1f s", tried, cause, wait)
