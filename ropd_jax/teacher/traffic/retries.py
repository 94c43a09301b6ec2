"""Limits and patience: the one place that every request to a provider passes.

    identical requests in flight share one call
      -> a failed try is repeated: transient ones after a growing, jittered wait (or the server's Retry-After),
         a reply cut at the token limit once, at once, with twice the limit
        -> the queue: the earliest step, then the longest way to go (``Limits.order``), then first come
          -> slots that adapt to the server, requests and tokens a minute (``admission``)
            -> the time limit of one try, which starts when the try starts: our own queue does not count
              -> a second copy of a straggler, if hedging is on

Everything else (blocked, malformed, over the context, wrong configuration) is not repeated here.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import json
import logging
import math
import random
from collections.abc import Awaitable, Callable

import tenacity

from ropd_jax.teacher.clients.client import (
    ChatClient,
    ChatReply,
    ChatRequest,
    ConfigurationError,
    RequestError,
    TeacherError,
    TransientError,
    TruncatedError,
    Usage,
)
from ropd_jax.teacher.tape.client import STEP
from ropd_jax.teacher.traffic.admission import AdaptiveLimit, Admission, Rate
from ropd_jax.teacher.traffic.stats import TeacherStats

log = logging.getLogger(__name__)

_STAGES = {"reference": 0, "rubric": 1, "verify": 2, "score": 2, "judge": 0}  # of a group: each waits for the last
ORDERS = ("longest_first", "finished_first")
_HEDGE_PRIORITY = (math.inf, 0)  # after everything else
_OVERLOAD = {"rate_limited": "429", "unavailable": "503", "overloaded": "529", "timeout": "timeout"}
_LARGER = 2  # times the token limit, in the one try after a truncated reply
_LOG_EVERY_S = 5.0
_SAID_AGAIN_S = 60.0  # between two lines about calls given up for the same cause
_STORM = 3  # so many requests between two tries, or one for longer than _LONG_S, is a warning
_LONG_S = 30.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """The numbers, named as in ``cfg.teacher``.

    Attributes:
        concurrency, min_concurrency: bounds of the slots that adapt; it starts at ``concurrency``.
        requests_per_minute, tokens_per_minute: of the job; None for no bound. Tokens are those that the provider
            reports, input and output; before the first reply, the request's own limit stands for its output.
        timeout_s: seconds that one try may take, from the moment it is sent.
        attempts: tries of a request with transient failures.
        first_wait_s, max_wait_s: the wait doubles from the first to the longest; also bounds Retry-After.
        hedge_after_s: seconds after which a second copy of a try is sent if a slot is free; 0 never.
        order: who goes first where slots are scarce. ``longest_first``: of the earliest step, references before
            rubrics before verifications, so that the last group starts early and the step ends early.
            ``finished_first``: verifications before rubrics before references, so that the first groups end early.
        share: this host's part of the limits, 1/N with N hosts.
    """

    concurrency: int = 64
    min_concurrency: int = 4
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout_s: float = 120.0
    attempts: int = 5
    first_wait_s: float = 1.0
    max_wait_s: float = 60.0
    hedge_after_s: float = 0.0
    order: str = "longest_first"
    share: float = 1.0

    def __post_init__(self):
        for name in ("concurrency", "min_concurrency", "attempts"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"teacher.{name} is {getattr(self, name)}; expected at least 1")
        for name in ("requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigurationError(f"teacher.{name} is {value}; expected a number above 0, or None for no bound")
        for name in ("timeout_s", "max_wait_s"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"teacher.{name} is {getattr(self, name)}; expected seconds above 0")
        if self.hedge_after_s < 0:
            raise ConfigurationError(f"teacher.hedge_after_s is {self.hedge_after_s}; expected seconds, 0 for never")
        if self.order not in ORDERS:
            raise ConfigurationError(f"teacher.order is {self.order!r}; expected {' or '.join(ORDERS)}")
        if not 0 < self.share <= 1:
            raise ConfigurationError(f"the share of this host is {self.share}; expected 1/N of N hosts")

    @property
    def slots(self) -> tuple[int, int]:
        """(fewest, most) calls in flight on this host; at least 1, and the bounds in order."""
        most = max(1, int(self.concurrency * self.share))
        return min(most, max(1, int(self.min_concurrency * self.share))), most

    def priority(self, request: ChatRequest, step: int) -> tuple[float, int]:
        """The place of a request in the queue; smaller goes first."""
        stage = _STAGES[request.purpose]
        return (step, stage) if self.order == "longest_first" else (0, -stage)


class LimitedClient:
    """A ``ChatClient`` around another one that keeps the limits and has the patience.

    Args:
        client: does one try.
        limits: see ``Limits``.
        stats: where retries, hedges and shared calls are counted.
        sleep: waits for retries and rates.
        clock: seconds; None for the event loop's own.
    """

    def __init__(
        self,
        client: ChatClient,
        limits: Limits | None = None,
        *,
        stats: TeacherStats | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] | None = None,
    ):
        self.inner = client
        self.limits = limits or Limits()
        self._stats = stats if stats is not None else TeacherStats()
        self._sleep = sleep
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._admission_: Admission | None = None
        self._flights: dict[tuple, _Flight] = {}
        self._numbers = itertools.count()
        self._retrying: dict[int, tuple[float, str]] = {}  # number -> since when, the latest cause
        self._logged_at: float | None = None
        self._given_up: dict[str, float] = {}  # cause -> when it was last said
        self._output: dict[str, tuple[int, int]] = {}  # purpose -> replies, output tokens

    async def chat(self, request: ChatRequest) -> ChatReply:
        """The inner client's reply; raises its ``TeacherError``, a transient one only after the last try."""
        key = _identity(request)
        flight = self._flights.get(key)
        first = flight is None
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(self._persist(request)))
        else:
            self._stats.count("shared", request.purpose)
        flight.askers += 1
        try:
            reply = await asyncio.shield(flight.task)
        finally:
            flight.askers -= 1
            if not flight.askers:  # the last one that cared has its answer, or has gone
                flight.task.cancel()
                if self._flights.get(key) is flight:
                    del self._flights[key]
        return reply if first else dataclasses.replace(reply, source="shared")

    async def close(self) -> None:
        self._admission.close()
        await self.inner.close()

    @property
    def concurrency(self) -> float:
        """The slots of the moment."""
        return self._admission.limit.value

    @property
    def _admission(self) -> Admission:
        if self._admission_ is None:  # here and not in __init__: the clock is the loop's
            limits = self.limits
            rates = [
                None if per_minute is None else Rate(per_minute * limits.share, self._clock)
                for per_minute in (limits.requests_per_minute, limits.tokens_per_minute)
            ]
            self._admission_ = Admission(
                AdaptiveLimit(*limits.slots), requests=rates[0], tokens=rates[1], sleep=self._sleep
            )
        return self._admission_

    # ------------------------------------------------------------------------------------------------- again

    async def _persist(self, request: ChatRequest) -> ChatReply:
        try:
            return await self._larger(request, next(self._numbers))
        except ConfigurationError:
            raise  # it stops the run with its own words
        except TeacherError as e:
            now = self._clock()
            if now - self._given_up.get(e.cause, -math.inf) >= _SAID_AGAIN_S:
                self._given_up[e.cause] = now
                log.warning("teacher: a %s call is given up (%s): %s", request.purpose, e.cause, e)
            raise

    async def _larger(self, request: ChatRequest, number: int) -> ChatReply:
        try:
            return await self._retried(request, number)
        except TruncatedError as truncated:
            self._stats.count("retries", truncated.cause)
            larger = dataclasses.replace(request, max_output_tokens=_LARGER * request.max_output_tokens)
            try:
                return await self._retried(larger, number)
            except (RequestError, ConfigurationError) as e:
                if e.cause not in ("bad_request", "unsupported"):
                    raise
                raise truncated from e  # the model allows no larger limit
            except TruncatedError as e:
                message = f"{truncated} (a second try reached {larger.max_output_tokens})"
                raise TruncatedError(message, cause=e.cause, usage=e.usage) from e

    async def _retried(self, request: ChatRequest, number: int) -> ChatReply:
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(TransientError),
            stop=tenacity.stop_after_attempt(self.limits.attempts),
            wait=self._wait,
            sleep=self._sleep,
            before_sleep=lambda state: self._note(state, number),
            reraise=True,
        )
        try:
            return await retrying(self._try, request, self.limits.priority(request, STEP.get()), number)
        finally:
            self._retrying.pop(number, None)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        spread = self.limits.first_wait_s * 2 ** (state.attempt_number - 1) * random.uniform(0.5, 1.5)
        error = state.outcome.exception() if state.outcome else None
        asked = (error.retry_after or 0.0) if isinstance(error, TransientError) else 0.0
        if asked > spread:
            spread = asked + random.uniform(0, 0.1 * asked)  # never before the time asked for, and not all at once
        return min(spread, self.limits.max_wait_s)

    def _note(self, state: tenacity.RetryCallState, number: int) -> None:
        error = state.outcome.exception() if state.outcome else None
        cause = error.cause if isinstance(error, TeacherError) else "unknown"
        self._stats.count("retries", cause)
        now = self._clock()
        since = self._retrying.get(number, (now, ""))[0]
        self._retrying[number] = (since, cause)
        if self._logged_at is not None and now - self._logged_at < _LOG_EVERY_S:
            return
        self._logged_at = now
        oldest = now - min(since for since, _ in self._retrying.values())
        causes = collections.Counter(cause for _, cause in self._retrying.values())
        common = causes.most_common(1)[0][0]
        log.log(
            logging.WARNING if len(self._retrying) >= _STORM or oldest > _LONG_S else logging.INFO,
            "teacher: retrying %d, oldest %s, cause %s; %d in flight, %d waiting, limit %d",
            len(self._retrying),
            f"{oldest / 60:.0f} m" if oldest >= 60 else f"{oldest:.0f} s",
            _OVERLOAD.get(common, common),
            self._admission.in_flight,
            self._admission.waiting,
            self._admission.limit.slots,
        )

    # --------------------------------------------------------------------------------------------- one try

    async def _try(self, request: ChatRequest, priority: tuple[float, int], number: int) -> ChatReply:
        admission = self._admission
        expected = self._expected(request)
        epoch = await admission.enter(priority, number, expected)
        start = self._clock()
        used = float(_input(request))  # of a failed call, as far as we know
        try:
            reply = await self._in_time(request, number)
            used = self._settle(request, reply.usage, expected)
            admission.limit.succeeded(epoch, in_demand=admission.in_demand)
            return dataclasses.replace(reply, latency_s=self._clock() - start)
        except TransientError as e:
            if e.cause in _OVERLOAD:
                admission.limit.overloaded(epoch)
            raise
        except TeacherError as e:  # the server works, only this call gave nothing
            used = self._settle(request, e.usage, used)
            admission.limit.succeeded(epoch, in_demand=admission.in_demand)
            raise
        finally:
            admission.leave(used=used, expected=expected)
            self._stats.gauges["concurrency"] = admission.limit.value

    async def _in_time(self, request: ChatRequest, number: int) -> ChatReply:
        deadline = asyncio.timeout(self.limits.timeout_s)
        try:
            async with deadline:
                if self.limits.hedge_after_s and number >= 0:
                    return await self._hedged(request)
                return await self.inner.chat(request)
        except TimeoutError as e:
            if not deadline.expired():
                raise
            limit = f"teacher.timeout_s={self.limits.timeout_s:g}"
            message = f"{request.model!r} ({request.purpose}) took longer than {limit}"
            raise TransientError(message, cause="timeout") from e

    async def _hedged(self, request: ChatRequest) -> ChatReply:
        """The first good reply of the call and, if it is late and a slot is free, of a second copy of it."""
        first = asyncio.create_task(self.inner.chat(request))
        tasks = {first}
        try:
            await asyncio.wait(tasks, timeout=self.limits.hedge_after_s)
            if not first.done():
                self._stats.count("hedges", request.purpose)
                tasks.add(asyncio.create_task(self._try(request, _HEDGE_PRIORITY, -1)))
            while not first.done():
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {first}:
                    tasks.discard(task)
                    if task.exception() is None:
                        return task.result()
            return first.result()
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError, TeacherError):
                    await task

    def _expected(self, request: ChatRequest) -> float:
        """Tokens that the call will probably use: its text, and the mean output of its role so far."""
        replies, tokens = self._output.get(request.purpose, (0, 0))
        return _input(request) + (tokens / replies if replies else request.max_output_tokens)

    def _settle(self, request: ChatRequest, usage: Usage | None, otherwise: float) -> float:
        """Tokens that the call used, as the provider says; ``otherwise`` where it says nothing."""
        if usage is None or usage.input_tokens is None or usage.output_tokens is None:
            return otherwise
        sent, output = usage.input_tokens, usage.output_tokens
        replies, tokens = self._output.get(request.purpose, (0, 0))
        self._output[request.purpose] = (replies + 1, tokens + output)
        return float(sent + output)


@dataclasses.dataclass
class _Flight:
    task: asyncio.Task[ChatReply]
    askers: int = 0


def _input(request: ChatRequest) -> int:
    """Tokens of the request, at four characters each: what is assumed until the provider says better."""
    return sum(len(m.content) for m in request.messages) // 4


def _identity(request: ChatRequest) -> tuple:
    """What makes two requests the same. ``purpose`` is in it although it is not on the wire: it sets the priority."""
    schema = None if request.json_schema is None else json.dumps(request.json_schema)
    return (request.purpose, request.messages, request.model, request.temperature, request.max_output_tokens, schema,
            request.sample_index)  # fmt: skip
