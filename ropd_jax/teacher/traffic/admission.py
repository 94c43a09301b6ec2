"""Admission: a priority queue in front of an adaptive number of slots and two per-minute rates.

A limit on the calls in flight works with every server, whatever the server's own limit and whether or not it reports
it. The number of slots follows the rules of TCP. It starts at one and doubles with each round of replies (slow start).
If more than a quarter of a round is refused, it is cut to half of the calls in flight, or by 15 % if at least half a
round succeeded before. From there it grows by one per round, and after five rounds by 2, 3, 4, ... per round. One
refusal is not enough for a cut: some servers refuse a call occasionally at any load, and a lower limit would not help.
Calls that were in flight at the last cut are not evidence about the new limit, so they do not change it.

    server that refuses more than 32 calls:   1 2 4 8 16 32 64 -> 32 are refused -> 32 33 34 -> 29 30 31 32 33 ...

A small server does not refuse. It lets calls wait until they reach our time limit, and its work on them is lost. So the
limit grows slowly if replies could take more than half of the time limit with a server that answers one call after
another, unless `Pace` shows that it works on several at once::

    one slot, 20 s per reply, time limit 120 s:   1 2 3 slots, then one more after each ``_PATIENCE`` replies
    it takes 40 s with 2 calls, 60 s with 3:      one more after each ``_QUEUEING_PATIENCE`` replies
    a timeout at 6 slots:                         3 slots, one more after 4 times as many replies as before

A rate is a bucket that holds one second's worth, and at least one unit. A call takes its expected usage, and the
difference to its actual usage is settled when it ends. So the bucket can be in debt, and no call starts before the debt
is paid.
"""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

GENTLE_CUT = 0.85  # at least half a round of replies since the last cut
STEEP_CUT = 0.5  # fewer replies: the limit is far above the server's
TOLERATED = 0.25  # share of a round that can be refused without a cut
_TOLERATED_CALLS = 3  # refusals allowed in the smallest rounds
_TIMEOUT_WEIGHT = 4  # refusals that a timeout counts as: it wastes the server's work and minutes of ours
_ROOM = 0.5  # share of the time limit; if replies can take longer, the limit grows slowly
_PATIENCE = 4  # replies between two steps of slow growth
_PATIENCE_FACTOR = 4  # for the patience after a timeout has cut the limit
_QUEUEING_PATIENCE = 64  # if the server answers one call after another, so that more slots gain nothing
_LONGEST_PATIENCE = 1024
_CALM_ROUNDS = 4  # rounds after a cut with growth by one per round; then by 1, 2, 3, ... per round
_NEW = 0.3  # weight of the newest reply in a mean


@dataclasses.dataclass
class Pace:
    """The duration of one role's replies and the calls in flight: now, and at the smallest load.

    Attributes:
        seconds, load: means over the latest replies; the load counts the calls in flight when a call starts, including
            it.
        least_seconds, least_load: the same for the replies at the smallest load so far.
    """

    seconds: float
    load: float
    least_seconds: float
    least_load: float

    def add(self, seconds: float, load: float) -> None:
        """Adds one reply."""
        self.seconds += _NEW * (seconds - self.seconds)
        self.load += _NEW * (load - self.load)
        if load < self.least_load:
            self.least_seconds, self.least_load = seconds, load
        elif load == self.least_load:
            self.least_seconds += _NEW * (seconds - self.least_seconds)

    def expected(self, load: float) -> float:
        """Seconds per reply at this load, if the server answers one call after another."""
        return self.seconds * load / self.load

    @property
    def queueing(self) -> float | None:
        """How the seconds per reply grow with the load.

        0.0: not at all, because the server works on all calls at the same time. 1.0: in proportion, because it answers
        one call after another. None: unknown.
        """
        more = self.load / self.least_load
        if more <= 1.5 or not self.seconds or not self.least_seconds:
            return None
        return math.log(self.seconds / self.least_seconds) / math.log(more)


class AdaptiveLimit:
    """The number of slots, between ``low`` and ``high``. ``epoch`` counts the cuts.

    Each call remembers the epoch in which it was admitted. Only calls of the current epoch change the limit, so that a
    burst of errors cuts it once::

        epoch 0, limit 64    64 calls in flight, 32 of them fail: the 17th failure cuts to 32 and starts epoch 1
        epoch 1, limit 32    the other 15 failures belong to epoch 0 and change nothing

    Args:
        timeout_s: the time limit of a call, in seconds.
    """

    def __init__(self, low: int, high: int, timeout_s: float = math.inf):
        self._low, self._high, self._timeout_s = float(low), float(high), timeout_s
        self._paces: dict[str, Pace] = {}
        self._patience, self._failed_at = float(_PATIENCE), math.inf
        self.value, self._slow_start = self._low, True
        self.epoch = -1
        self._since_cut, self._rounds, self._peak = 0, 1, 1
        self._ended, self._refused = 0, 0
        self._new_epoch()

    def restart(self) -> None:
        """Starts again from the lowest number of slots: the server was down."""
        self.value, self._slow_start = self._low, True
        self._new_epoch()

    @property
    def slots(self) -> int:
        return int(self.value)

    def succeeded(
        self, epoch: int, *, in_demand: bool, load: int = 1, seconds: float | None = None, role: str = ""
    ) -> None:
        """The server answered a call of ``epoch``.

        Args:
            in_demand: more slots would have been used.
            load: calls in flight when this one started, including it.
            seconds: duration of the reply; None if it is not representative, such as a refusal.
            role: the purpose of the call; replies of different roles take different times.
        """
        if seconds is not None:
            self._add_pace(role, seconds, load)
        if epoch != self.epoch:
            return
        self._since_cut += 1
        self._peak = max(self._peak, load)
        if in_demand:  # otherwise the limit would grow without having been tried
            self.value = min(self._high, self.value + self._step())
        self._end_call()

    def overloaded(
        self,
        epoch: int,
        *,
        in_flight: int = 1,
        load: int = 1,
        seconds: float = 0.0,
        role: str = "",
        late: bool = False,
    ) -> None:
        """The server refused a call of ``epoch``, or did not answer it in time (``late``).

        Args:
            in_flight: calls in flight now, including this one.
            load, seconds, role: as in `succeeded`.
        """
        if late:
            self._add_pace(role, seconds, load)
        if epoch != self.epoch or (late and load == 1):  # a single call is late because it is long
            return
        self._peak = max(self._peak, load, in_flight)
        queueing = self._queueing
        self._refused += _TIMEOUT_WEIGHT if late and (queueing is None or queueing >= 0.5) else 1
        if self._refused <= max(_TOLERATED_CALLS, TOLERATED * self.value):
            self._end_call()
            return
        # Many replies since the last cut: the limit has slowly passed the server's. Few: it is far above the server's.
        gentle = not self._slow_start and 2 * self._since_cut >= self.value
        if late:
            self._failed_at = self.value
            self._patience = min(_PATIENCE_FACTOR * self._patience, _LONGEST_PATIENCE)
        # The calls in flight failed, not the allowed number: 64 slots with 4 calls in flight become 2.
        self.value = max(self._low, min(self.value, self._peak) * (GENTLE_CUT if gentle else STEEP_CUT))
        self._slow_start = False
        self._new_epoch()

    def _new_epoch(self) -> None:
        self.epoch += 1
        self._since_cut, self._rounds, self._peak = 0, 1, 1
        self._new_round()

    def _new_round(self) -> None:
        self._ended, self._refused = 0, 0

    def _end_call(self) -> None:
        self._ended += 1
        if self._ended >= self.value:
            if self.value > self._failed_at:  # a round went well at a limit that had timeouts before
                self._patience, self._failed_at = float(_PATIENCE), math.inf
            self._rounds += 1
            self._peak = 1
            self._new_round()

    def _add_pace(self, role: str, seconds: float, load: int) -> None:
        if role in self._paces:
            self._paces[role].add(seconds, load)
        else:
            self._paces[role] = Pace(seconds, load, seconds, load)

    @property
    def _queueing(self) -> float | None:
        """`Pace.queueing` of the server: the maximum, because roles whose first replies had to wait show too little."""
        return max((pace.queueing for pace in self._paces.values() if pace.queueing is not None), default=None)

    def _step(self) -> float:
        """The growth of the limit per reply."""
        step = 1.0 if self._slow_start else max(1, self._rounds - _CALM_ROUNDS) / self.value
        slowest = max((pace.expected(self.slots + 1) for pace in self._paces.values()), default=0.0)
        if slowest <= _ROOM * self._timeout_s:
            return step
        queueing = self._queueing
        if queueing is None or queueing < 0.5:
            return min(step, 1 / self._patience) if queueing is None or self._patience > _PATIENCE else step
        return min(step, 1 / max(self._patience, _PATIENCE if queueing < 0.75 else _QUEUEING_PATIENCE))


class Rate:
    """At most ``per_minute`` units per minute on average, with bursts of one second's worth (at least one unit)."""

    def __init__(self, per_minute: float, clock: Callable[[], float]):
        self._per_s = per_minute / 60
        self._capacity = max(1.0, self._per_s)
        self._level = self._capacity
        self._clock = clock
        self._at = clock()

    def ready_in(self) -> float:
        """Seconds until a call can start; 0.0 means now."""
        self._refill()
        # One unit must be available, although a call can take more: the rest becomes debt, and later calls wait for it.
        return max(0.0, 1.0 - self._level) / self._per_s if self._level < 1.0 - 1e-9 else 0.0

    def take(self, amount: float) -> None:
        """Takes ``amount``; a negative amount gives units back."""
        self._refill()
        self._level = min(self._capacity, self._level - amount)

    def _refill(self) -> None:
        now = self._clock()
        self._level = min(self._capacity, self._level + (now - self._at) * self._per_s)
        self._at = now


class Slot(NamedTuple):
    """A call's record of its admission: the epoch of the limit, and the calls in flight including it."""

    epoch: int
    load: int


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
        self._queue: list[tuple[tuple[float, int], int, int, float, asyncio.Future[Slot]]] = []
        self._tie = itertools.count()
        self._alarm: asyncio.Task | None = None

    @property
    def waiting(self) -> int:
        return sum(not turn.cancelled() for *_, turn in self._queue)

    @property
    def in_demand(self) -> bool:
        return bool(self._queue) or self.in_flight >= self.limit.slots

    async def enter(self, priority: tuple[float, int], number: int, tokens: float) -> Slot:
        """Waits for a slot: the lowest priority first, then the lowest number.

        Every slot must be given back with ``leave``. ``tokens`` is the expected usage of the call.
        """
        turn: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (priority, number, next(self._tie), tokens, turn))
        self._grant()
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the slot was granted in the same moment
                self.leave(used=0.0, expected=tokens)
            raise

    def leave(self, *, used: float, expected: float) -> None:
        """Gives the slot back, and settles the tokens that were actually used."""
        self.in_flight -= 1
        if self._tokens is not None:
            self._tokens.take(used - expected)
        self._grant()

    def close(self) -> None:
        """Stops waiting for a rate."""
        if self._alarm is not None:
            self._alarm.cancel()

    def _grant(self) -> None:
        while self._queue and self.in_flight < self.limit.slots:
            *_, tokens, turn = self._queue[0]
            if not turn.cancelled():  # a cancelled one is only removed
                rates: Sequence[Rate] = [r for r in (self._requests, self._tokens) if r is not None]
                if delay := max((r.ready_in() for r in rates), default=0.0):
                    self._wake_in(delay)  # nothing overtakes the first in the queue while a rate is used up
                    return
                if self._requests is not None:
                    self._requests.take(1.0)
                if self._tokens is not None:
                    self._tokens.take(tokens)
                self.in_flight += 1
                turn.set_result(Slot(self.limit.epoch, self.in_flight))
            heapq.heappop(self._queue)

    def _wake_in(self, delay: float) -> None:
        if self._alarm is not None and not self._alarm.done():
            return

        async def wake() -> None:
            await self._sleep(delay)
            self._alarm = None
            self._grant()

        self._alarm = asyncio.get_running_loop().create_task(wake())
