"""Limits and retries: every request to a provider passes through this module.

    identical requests in flight share one call
      -> while the server is unreachable, nothing is sent and nothing is given up (``outage``)
      -> a failed attempt is repeated: a transient one after a growing, jittered wait (or the server's Retry-After),
         a reply truncated at the token limit once, immediately, with twice the limit,
         a request over the context once, immediately, with the limit that fits with its prompt
        -> the queue: the earliest step, then the longest remaining path (``Limits.order``), then first come
          -> slots that adapt to the server, requests and tokens per minute (``admission``)
            -> the time limit for one attempt, which starts with the attempt: time in our own queue does not count;
               twice as long with twice the token limit, or if the server is so slow that a single call has reached it
              -> a second copy of a straggler, if hedging is on

All other failures (blocked, malformed, over the context, wrong configuration) are not repeated here.
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

from ropd_jax.teacher.clients.chat import ChatClient, ChatReply, ChatRequest, Usage
from ropd_jax.teacher.clients.errors import (
    ConfigurationError,
    ContextError,
    RequestError,
    TeacherError,
    TransientError,
    TruncatedError,
)
from ropd_jax.teacher.step import STEP
from ropd_jax.teacher.traffic.admission import AdaptiveLimit, Admission, Rate, Slot
from ropd_jax.teacher.traffic.limits import Limits
from ropd_jax.teacher.traffic.outage import Outage
from ropd_jax.teacher.traffic.stats import TeacherStats

log = logging.getLogger(__name__)

_HEDGE_PRIORITY = (math.inf, 0)  # after everything else
_OVERLOAD = {"rate_limited": "429", "unavailable": "503", "overloaded": "529", "timeout": "timeout"}
MOST_TIME = 8  # maximum growth factor of an attempt's time limit, for a slow server or a larger token limit
_FORGET = 0.95  # decay of the slowest reply so far, with each reply
_LARGER = 2  # factor on the token limit for the single attempt after a truncated reply
_LEAST_ROOM = 256  # output tokens; if fewer fit with the prompt, it is better to ask in parts
_LOG_EVERY_S = 5.0
_GIVEN_UP_EVERY_S = 60.0  # between two log lines about calls given up for the same cause
_STORM = 3  # warn if this many requests wait for their next attempt, or one waits longer than _LONG_S
_LONG_S = 30.0


class LimitedClient:
    """A ``ChatClient`` around another one that enforces the limits and repeats failed attempts.

    Args:
        client: makes one attempt.
        limits: see ``Limits``.
        stats: where retries, hedges and shared calls are counted.
        sleep: waits for retries and rates.
        clock: returns seconds; None means the event loop's own.
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
        self._in_flight: dict[tuple, _InFlight] = {}
        self._numbers = itertools.count()
        self._retrying: dict[int, tuple[float, str]] = {}  # request number -> (time of its first failure, latest cause)
        self._logged_at: float | None = None
        self._given_up: dict[str, float] = {}  # cause -> time of its last log line
        self._most_output: dict[str, int] = {}  # model -> the largest max_output_tokens that it allows, once reported
        self._output: dict[str, tuple[int, int]] = {}  # purpose -> (replies, output tokens)
        self._outages: dict[str, Outage] = {}  # by model
        self._first_limit: dict[int, int] = {}  # request number -> token limit of its first attempt
        self._more_time: dict[str, float] = {}  # purpose -> factor on the time limit, because its replies are slow here
        self._slowest: dict[str, float] = {}  # purpose -> seconds of the slowest of its latest replies
        self._late: collections.Counter[int] = collections.Counter()  # request number -> attempts over the time limit
        self._try_began: dict[int, float] = {}  # request number -> start of its latest attempt

    async def chat(self, request: ChatRequest) -> ChatReply:
        """The inner client's reply, shared by identical requests in flight.

        Raises:
            TeacherError: the inner client's error; a transient one only after the last attempt.
        """
        key = _identity(request)
        call = self._in_flight.get(key)
        first = call is None
        if call is None:
            call = self._in_flight[key] = _InFlight(asyncio.create_task(self._persist(request)))
        else:
            self._stats.count("shared", request.purpose)
        call.askers += 1
        try:
            # The task belongs to all callers, so a cancelled caller must not cancel it: `shield`.
            reply = await asyncio.shield(call.task)
        finally:
            call.askers -= 1
            if not call.askers:  # every caller has its reply or was cancelled
                call.task.cancel()
                if self._in_flight.get(key) is call:
                    del self._in_flight[key]
        return reply if first else dataclasses.replace(reply, source="shared")

    async def close(self) -> None:
        """Stops waiting for rates and unreachable servers, and closes the inner client."""
        self._admission.close()
        for outage in self._outages.values():
            outage.close()
        await self.inner.close()

    @property
    def concurrency(self) -> float:
        """The current number of slots."""
        return self._admission.limit.value

    @property
    def _admission(self) -> Admission:
        if self._admission_ is None:  # created at the first call, because its clock is the event loop's
            limits = self.limits
            rates = [
                None if per_minute is None else Rate(per_minute * limits.share, self._clock)
                for per_minute in (limits.requests_per_minute, limits.tokens_per_minute)
            ]
            self._admission_ = Admission(
                AdaptiveLimit(*limits.slots, limits.timeout_s), requests=rates[0], tokens=rates[1], sleep=self._sleep
            )
        return self._admission_

    # ----------------------------------------------------------------------------------------------- retries

    async def _persist(self, request: ChatRequest) -> ChatReply:
        number = next(self._numbers)
        self._first_limit[number] = request.max_output_tokens
        try:
            return await self._larger(request, number)
        except ConfigurationError:
            raise  # it stops the run and is reported there
        except TeacherError as e:
            now = self._clock()
            if now - self._given_up.get(e.cause, -math.inf) >= _GIVEN_UP_EVERY_S:
                self._given_up[e.cause] = now
                log.warning("teacher: gave up on a %s call (%s): %s", request.purpose, e.cause, e)
            raise
        finally:
            del self._first_limit[number]
            self._try_began.pop(number, None)
            self._late.pop(number, None)

    async def _larger(self, request: ChatRequest, number: int) -> ChatReply:
        request = self._allowed(request, request.max_output_tokens)
        try:
            return await self._fitted(request, number)
        except TruncatedError as truncated:
            tried = self._allowed(request, request.max_output_tokens)
            larger = self._allowed(request, _LARGER * tried.max_output_tokens)
            if larger.max_output_tokens <= tried.max_output_tokens:
                raise  # the model does not allow more
            self._stats.count("retries", truncated.cause)
            try:
                return await self._fitted(larger, number, more_than=tried.max_output_tokens)
            except (RequestError, ConfigurationError) as e:
                if e.cause not in ("bad_request", "unsupported"):  # a failure unrelated to the larger limit
                    raise
                raise truncated from e  # the model does not allow a larger limit
            except TruncatedError as e:
                message = f"{truncated} (a second attempt reached {larger.max_output_tokens})"
                raise TruncatedError(message, cause=e.cause, usage=e.usage) from e

    async def _fitted(self, request: ChatRequest, number: int, *, more_than: int = 0) -> ChatReply:
        """The reply; if prompt and output do not fit into the context, the reply with the limit that fits::

            context 8,192, prompt 6,000    limit 4,096    refused    limit 2,192    reply

        Args:
            more_than: a limit that has already been tried.
        """
        try:
            return await self._retried(request, number)
        except (ContextError, RequestError) as e:
            room = e.room
            least = max(more_than + 1, _LEAST_ROOM if isinstance(e, ContextError) else 1)
            if room is None or not least <= room < request.max_output_tokens:
                raise
            refused = e
        self._stats.count("retries", refused.cause)
        if isinstance(refused, RequestError):  # a limit of the model, not of this prompt
            self._most_output[request.model] = room
            log.warning("teacher: %r allows at most %d max_output_tokens; requests use no more", request.model, room)
        try:
            return await self._retried(dataclasses.replace(request, max_output_tokens=room), number)
        except TruncatedError as e:
            if isinstance(refused, RequestError):
                raise
            # All the room was used. Split into parts, or with its middle cut, the question leaves more room for the
            # reply.
            message = f"{refused} (the reply did not end within the {room} tokens that fit)"
            raise ContextError(message, usage=e.usage) from e

    def _allowed(self, request: ChatRequest, limit: int) -> ChatRequest:
        """The request with that limit, or with the largest that its model is known to allow."""
        return dataclasses.replace(request, max_output_tokens=min(limit, self._most_output.get(request.model, limit)))

    async def _retried(self, request: ChatRequest, number: int) -> ChatReply:
        """The reply from one of several attempts. An outage does not use them up: they start over when it is over."""
        outage = self._outage(request)
        while True:
            await outage.over()
            try:
                return await self._tries(request, number)
            except TransientError as error:
                if not await outage.waited(error, request, self._try_began[number]):
                    raise

    def _outage(self, request: ChatRequest) -> Outage:
        if request.model not in self._outages:
            self._outages[request.model] = Outage(
                self.inner,
                request.model,
                self.limits.outage_wait_s,
                timeout_s=self.limits.timeout_s,
                clock=self._clock,
                sleep=self._sleep,
                stats=self._stats,
                ended=self._admission.limit.restart,
            )
        return self._outages[request.model]

    async def _tries(self, request: ChatRequest, number: int) -> ChatReply:
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
        # 1, 2, 4, ... seconds, each times 0.5 to 1.5, so that requests that failed together are not retried together.
        spread = self.limits.first_wait_s * 2 ** (state.attempt_number - 1) * random.uniform(0.5, 1.5)
        error = state.outcome.exception() if state.outcome else None
        retry_after = (error.retry_after or 0.0) if isinstance(error, TransientError) else 0.0
        if retry_after > spread:  # never before the server's time, and not all at once
            spread = retry_after + random.uniform(0, 0.1 * retry_after)
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
        slot = await admission.enter(priority, number, expected)
        start = self._try_began[number] = self._clock()
        used = float(_input(request))  # assumed usage of a failed call
        try:
            reply = await self._in_time(request, number)
            used = self._settle(request, reply.usage, expected)
            self._answered(request, slot, self._clock() - start)
            return dataclasses.replace(reply, latency_s=self._clock() - start)
        except TransientError as e:
            self._late[number] += e.cause == "timeout"
            if e.cause in _OVERLOAD:  # a refused connection or a 500 is unrelated to the load
                self._overloaded(request, slot, self._clock() - start, late=e.cause == "timeout")
            self._outage(request).failed(e)
            raise
        except TeacherError as e:  # the server works, and only this call failed
            used = self._settle(request, e.usage, used)
            self._answered(request, slot, None if e.usage is None else self._clock() - start)
            raise
        finally:
            admission.leave(used=used, expected=expected)
            self._stats.gauges["concurrency"] = admission.limit.value

    def _answered(self, request: ChatRequest, slot: Slot, seconds: float | None) -> None:
        self._outage(request).answered()
        admission, role = self._admission, request.purpose
        admission.limit.succeeded(slot.epoch, in_demand=admission.in_demand, load=slot.load, seconds=seconds, role=role)
        if seconds is not None:
            self._slowest[role] = slowest = max(seconds, _FORGET * self._slowest.get(role, 0.0))
            less = self._more_time.get(role, 1.0) / 2
            if less >= 1 and 2 * slowest < less * self.limits.timeout_s:
                self._more_time[role] = less

    def _overloaded(self, request: ChatRequest, slot: Slot, seconds: float, *, late: bool) -> None:
        limit, role = self._admission.limit, request.purpose
        more = 2 * self._more_time.get(role, 1.0)
        if late and max(slot.load, limit.slots) <= 2 and more <= MOST_TIME:
            # Our other calls took almost none of the server's time, so fewer calls would not help.
            self._more_time[role] = more
            log.warning(
                "teacher: a %s call took longer than %.0f s, with at most one other in flight; the next ones get up to "
                "%.0f s. If the model is that slow, raise teacher.timeout_s or lower the role's max_output_tokens",
                role, seconds, more * self.limits.timeout_s,
            )  # fmt: skip
        limit.overloaded(
            slot.epoch, in_flight=self._admission.in_flight, load=slot.load, seconds=seconds, role=role, late=late
        )

    def _time_limit_s(self, request: ChatRequest, number: int) -> float:
        """The time limit for one attempt, in seconds.

        It grows with the request's token limit, with the time that this server needs for the role, and if this request
        was late twice, because it can be a long one.
        """
        larger = request.max_output_tokens / self._first_limit.get(number, request.max_output_tokens)
        larger = max(1.0, larger) * 2 ** max(0, self._late[number] - 1)
        return self.limits.timeout_s * min(MOST_TIME, larger * self._more_time.get(request.purpose, 1.0))

    async def _in_time(self, request: ChatRequest, number: int) -> ChatReply:
        limit_s = self._time_limit_s(request, number)
        deadline = asyncio.timeout(limit_s)
        try:
            # An SDK's own limit can be per read, so a server that sends a byte now and then outlasts it.
            async with deadline:
                if self.limits.hedge_after_s and number >= 0:
                    return await self._hedged(request)
                return await self.inner.chat(request)
        except TimeoutError as e:
            if not deadline.expired():  # a TimeoutError from the client itself
                raise
            limit = f"teacher.timeout_s={self.limits.timeout_s:g}"
            more = f" (here {limit_s:g} s)" if limit_s > self.limits.timeout_s else ""
            message = f"{request.model!r} ({request.purpose}) took longer than {limit}{more}"
            raise TransientError(message, cause="timeout") from e

    async def _hedged(self, request: ChatRequest) -> ChatReply:
        """The first good reply to the call or, if it is late and a slot is free, to a second copy of it."""
        first = asyncio.create_task(self.inner.chat(request))
        tasks = {first}  # tasks that can still give the reply
        try:
            await asyncio.wait(tasks, timeout=self.limits.hedge_after_s)
            if not first.done():
                self._stats.count("hedges", request.purpose)
                # Goes through the queue, behind everything else. Number -1 marks a copy, which is not hedged itself.
                tasks.add(asyncio.create_task(self._try(request, _HEDGE_PRIORITY, -1)))
            while not first.done():
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {first}:
                    tasks.discard(task)
                    if task.exception() is None:  # if the copy failed, keep waiting for the first
                        return task.result()
            return first.result()
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:  # awaited, so that the copy's slot is released
                with contextlib.suppress(asyncio.CancelledError, TeacherError):
                    await task

    def _expected(self, request: ChatRequest) -> float:
        """Expected tokens of the call: its text, plus the mean output of its role so far."""
        replies, tokens = self._output.get(request.purpose, (0, 0))
        return _input(request) + (tokens / replies if replies else request.max_output_tokens)

    def _settle(self, request: ChatRequest, usage: Usage | None, otherwise: float) -> float:
        """Tokens of the call as reported by the provider, else ``otherwise``."""
        if usage is None or usage.input_tokens is None or usage.output_tokens is None:
            return otherwise
        sent, output = usage.input_tokens, usage.output_tokens
        replies, tokens = self._output.get(request.purpose, (0, 0))
        self._output[request.purpose] = (replies + 1, tokens + output)
        return float(sent + output)


@dataclasses.dataclass
class _InFlight:
    task: asyncio.Task[ChatReply]
    askers: int = 0


def _input(request: ChatRequest) -> int:
    """Tokens of the request, assuming four characters each until the provider reports the actual number."""
    return sum(len(m.content) for m in request.messages) // 4


def _identity(request: ChatRequest) -> tuple:
    """The identity of a request. It includes ``purpose``, which is not sent but sets the priority."""
    schema = None if request.json_schema is None else json.dumps(request.json_schema)
    return (request.purpose, request.messages, request.model, request.temperature, request.max_output_tokens, schema,
            request.sample_index, json.dumps(dict(request.extra), sort_keys=True))  # fmt: skip
