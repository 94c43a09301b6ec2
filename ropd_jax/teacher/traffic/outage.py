"""Outages: while a model's server is unreachable, calls wait for it instead of being given up.

A call that has used up its attempts is given up if the server is otherwise working. If no other call was answered
during its last attempt, one small request of our own decides::

    the call's attempts end with a refused connection, a DNS failure, 502, 503, 504 or a timeout
      others were answered meanwhile    -> given up: only this call fails
      the small request is answered     -> given up: only this call fails
      it is not answered either         -> an outage: all calls to this model wait; the request is sent every few
                                           seconds, and when it is answered every call starts over
                                        -> after ``teacher.outage_wait_s`` the run saves and stops (``OutageError``)

A 429 is an answer, and so are a 400, a 401 and a 500. The small request does not hold a slot and is not on the tape.
Its few tokens count in the budget.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable

from ropd_jax.teacher.clients.chat import ChatClient, ChatRequest
from ropd_jax.teacher.clients.errors import OutageError, TeacherError, TransientError
from ropd_jax.teacher.traffic.stats import TeacherStats
from ropd_jax.types import Message
from ropd_jax.utils import tracing
from ropd_jax.utils.text import clock as clock_text

log = logging.getLogger(__name__)

CAUSES = ("connection", "unavailable", "timeout")
QUESTION = (Message("user", "Reply with the word ready."),)
_TOKENS = 16
_FIRST_POLL_S, _LONGEST_POLL_S = 1.0, 15.0
_REPORT_EVERY_S = 5.0


class Outage:
    """Tracks whether one model is reachable, and waits until it is. All methods run on one event loop.

    Args:
        client: sends the small request, once each time and without retries.
        model: the model's name at the provider.
        wait_s: maximum wait; 0 means no wait.
        timeout_s: time limit for one small request.
        clock, sleep: the event loop's.
        stats: counts outages; its ``waiting_for`` shows them.
        ended: called when an outage is over, before any call starts over.
    """

    def __init__(
        self,
        client: ChatClient,
        model: str,
        wait_s: float,
        *,
        timeout_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        stats: TeacherStats,
        ended: Callable[[], None] = lambda: None,
    ):
        self._client, self._model, self._wait_s, self._timeout_s = client, model, wait_s, timeout_s
        self._clock, self._sleep, self._stats = clock, sleep, stats
        self._ended = ended
        self._answered_at = -math.inf
        self._poll: asyncio.Task[bool] | None = None
        self._waiting = 0
        self._failed_since: float | None = None  # the first failure not followed by an answer

    def answered(self) -> None:
        """The server has answered a call."""
        self._answered_at, self._failed_since = self._clock(), None

    def failed(self, error: TransientError) -> None:
        """An attempt has failed. An error such as 429 is an answer: the server is there."""
        if error.cause not in CAUSES:
            self.answered()
        elif self._failed_since is None:
            self._failed_since = self._clock()

    async def over(self) -> None:
        """Waits while there is an outage.

        Raises:
            OutageError: the outage lasts too long.
        """
        if self._poll is not None:
            await self._join(self._poll)

    async def waited(self, error: TransientError, request: ChatRequest, begin: float) -> bool:
        """True if the call failed in an outage that is over now; False if only this call failed.

        Args:
            error: the error of its last attempt.
            begin: start of its last attempt.

        Raises:
            OutageError: the outage lasts too long.
        """
        if not self._wait_s or error.cause not in CAUSES:
            return False
        if self._poll is None:
            if self._answered_at >= begin:
                return False
            self._poll = asyncio.create_task(self._until_answered(error, request))
        return await self._join(self._poll)

    def close(self) -> None:
        """Stops polling."""
        if self._poll is not None:
            self._poll.cancel()

    async def _join(self, poll: asyncio.Task[bool]) -> bool:
        self._waiting += 1
        try:
            return await asyncio.shield(poll)  # it belongs to all waiting calls
        finally:
            self._waiting -= 1
            if not self._waiting and not poll.done():  # all were cancelled
                poll.cancel()
                self._forget(poll)

    def _forget(self, poll: asyncio.Task[bool] | None) -> None:
        if self._poll is poll:
            self._poll = None
            self._stats.waiting_for.pop(self._model, None)

    async def _until_answered(self, error: TransientError, request: ChatRequest) -> bool:
        question = ChatRequest(request.purpose, QUESTION, self._model, max_output_tokens=_TOKENS)
        try:
            if await self._answers(question):
                return False
            begin = self._clock() if self._failed_since is None else self._failed_since
            self._stats.count("outages", error.cause)
            await self._poll_until_answered(question, error, begin)
            log.warning("teacher: %r answers again, after %s", self._model, clock_text(self._clock() - begin))
            self._ended()
            return True
        finally:
            self._forget(asyncio.current_task())

    async def _poll_until_answered(self, question: ChatRequest, error: TransientError, begin: float) -> None:
        pause, reported = _FIRST_POLL_S, -math.inf
        since = time.strftime("%H:%M:%S", time.localtime(time.time() - (self._clock() - begin)))
        next_at = self._clock() + pause
        while True:
            now = self._clock()
            lasted, left = clock_text(now - begin), self._wait_s - (now - begin)
            if left <= 0:
                raise OutageError(
                    f"{self._model!r} could not be reached for {lasted} (teacher.outage_wait_s={self._wait_s:g}). "
                    f"The last error: {error}. Nothing is lost: run the same command when the server is back"
                )
            self._stats.waiting_for[self._model] = (
                f"waiting for {self._model} since {since} ({lasted}, at most {clock_text(left)} more): {error.cause}"
            )
            if now - reported >= _REPORT_EVERY_S:
                reported = now
                log.warning(
                    "teacher: %r has been unreachable since %s (%s). %d calls wait, for up to another %s. "
                    "%s", self._model, since, lasted, self._waiting, clock_text(left), error,
                )  # fmt: skip
            tracing.moved()  # waiting is intended
            if now < next_at:
                await self._sleep(min(_REPORT_EVERY_S, next_at - now, left))
                continue
            if await self._answers(question) or self._answered_at > begin:
                return
            pause = min(2 * pause, _LONGEST_POLL_S)
            next_at = self._clock() + pause

    async def _answers(self, question: ChatRequest) -> bool:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._client.chat(question)
        except TimeoutError:
            return False
        except TeacherError as error:  # any other error comes from a server that is there
            if isinstance(error, TransientError) and error.cause in CAUSES:
                return False
        self.answered()
        return True
