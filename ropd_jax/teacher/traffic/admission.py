"""Admission: a queue by priority in front of an adaptive number of slots and two rates per minute.

A limit on the calls in flight works with every server, whatever the server's own limit is and whether it reports it.
The number of slots follows the rule of TCP: plus one for each full round of replies while the slots are in demand,
times a factor below one when the server is overloaded. Calls that were already in flight at the last cut are not
evidence about the new limit, so they change nothing.

    server's hidden capacity 32:  64 -> 32 (a burst at the start is halved) -> 33 -> 28 -> 29 ... 33 -> 28

A rate is a bucket that holds one second's worth, at least one unit. A call takes what it is expected to use, and the
difference to its real use is settled when it ends. So the bucket can be in debt, and nothing starts before the debt is
paid.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Sequence

GENTLE_CUT = 0.85  # at least half a round of replies came since the last cut
STEEP_CUT = 0.5  # fewer came: the limit is far above the server's


class AdaptiveLimit:
    """The number of slots, between ``low`` and ``high``; it starts at ``high``. ``epoch`` counts the cuts.

    Each call remembers the epoch in which it was admitted. Only calls of the current epoch change the limit, so that a
    burst of errors cuts it once::

        epoch 0, limit 64    64 calls in flight, 32 of them fail: the first failure cuts to 32 and starts epoch 1
        epoch 1, limit 32    the other 31 failures belong to epoch 0 and change nothing
    """

    def __init__(self, low: int, high: int):
        self._low, self._high = float(low), float(high)
        self.value = self._high
        self.epoch = 0
        self._since_cut = 0

    @property
    def slots(self) -> int:
        return int(self.value)

    def succeeded(self, epoch: int, *, in_demand: bool) -> None:
        """The server answered a call of ``epoch``. ``in_demand``: more slots would have been used."""
        if epoch != self.epoch:
            return
        self._since_cut += 1
        if in_demand:  # otherwise the limit would grow without having been tried
            self.value = min(self._high, self.value + 1 / self.value)

    def overloaded(self, epoch: int) -> None:
        """The server refused, or did not answer, a call of ``epoch``."""
        if epoch != self.epoch:
            return
        # Many replies since the last cut: the limit has grown slowly past the server's. Few: it is far above it.
        cut = GENTLE_CUT if 2 * self._since_cut >= self.value else STEEP_CUT
        self.value = max(self._low, self.value * cut)
        self.epoch += 1
        self._since_cut = 0


class Rate:
    """At most ``per_minute`` units per minute on average, with bursts of one second's worth (at least one unit)."""

    def __init__(self, per_minute: float, clock: Callable[[], float]):
        self._per_s = per_minute / 60
        self._capacity = max(1.0, self._per_s)
        self._level = self._capacity
        self._clock = clock
        self._at = clock()

    def ready_in(self) -> float:
        """Seconds until a call can start; 0.0 is now."""
        self._refill()
        # One unit must be there, although a call can take more: the rest becomes debt, which later calls wait for.
        return max(0.0, 1.0 - self._level) / self._per_s if self._level < 1.0 - 1e-9 else 0.0

    def take(self, amount: float) -> None:
        """Use up ``amount``; a negative amount gives units back."""
        self._refill()
        self._level = min(self._capacity, self._level - amount)

    def _refill(self) -> None:
        now = self._clock()
        self._level = min(self._capacity, self._level + (now - self._at) * self._per_s)
        self._at = now


class Admission:
    """The queue. All methods run on one event loop.

    Args:
        limit: the slots.
        requests, tokens: rates, or None for no bound.
        sleep: waits for a rate.
    """

    def __init__(
        self,
        limit: AdaptiveLimit,
        *,
        requests: Rate | None = None,
        tokens: Rate | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        self.limit = limit
        self.in_flight = 0
        self._requests, self._tokens = requests, tokens
        self._sleep = sleep
        self._queue: list[tuple[tuple[float, int], int, int, float, asyncio.Future[int]]] = []
        self._tie = itertools.count()
        self._alarm: asyncio.Task | None = None

    @property
    def waiting(self) -> int:
        return sum(not turn.cancelled() for *_, turn in self._queue)

    @property
    def in_demand(self) -> bool:
        return bool(self._queue) or self.in_flight >= self.limit.slots

    async def enter(self, priority: tuple[float, int], number: int, tokens: float) -> int:
        """Wait for a slot: the lowest priority first, then the lowest number. Returns the epoch of the limit.

        ``leave`` must give every slot back. ``tokens`` is what the call is expected to use.
        """
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (priority, number, next(self._tie), tokens, turn))
        self._grant()
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the slot was granted in the same moment
                self.leave(used=0.0, expected=tokens)
            raise

    def leave(self, *, used: float, expected: float) -> None:
        """Give the slot back, and settle the tokens that were really used."""
        self.in_flight -= 1
        if self._tokens is not None:
            self._tokens.take(used - expected)
        self._grant()

    def close(self) -> None:
        """Stop waiting for a rate."""
        if self._alarm is not None:
            self._alarm.cancel()

    def _grant(self) -> None:
        while self._queue and self.in_flight < self.limit.slots:
            *_, tokens, turn = self._queue[0]
            if not turn.cancelled():  # a cancelled one is only removed
                rates: Sequence[Rate] = [r for r in (self._requests, self._tokens) if r is not None]
                if delay := max((r.ready_in() for r in rates), default=0.0):
                    self._wake_in(delay)  # nothing overtakes the first of the queue while a rate is used up
                    return
                if self._requests is not None:
                    self._requests.take(1.0)
                if self._tokens is not None:
                    self._tokens.take(tokens)
                self.in_flight += 1
                turn.set_result(self.limit.epoch)
            heapq.heappop(self._queue)

    def _wake_in(self, delay: float) -> None:
        if self._alarm is not None and not self._alarm.done():
            return

        async def wake() -> None:
            await self._sleep(delay)
            self._alarm = None
            self._grant()

        self._alarm = asyncio.get_running_loop().create_task(wake())
