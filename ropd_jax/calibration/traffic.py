"""Calls, tokens, cost and time of a calibration. Replies from a tape count as if they had been paid for."""

from __future__ import annotations

import dataclasses
from typing import Any

from ropd_jax.teacher import ChatClient, ChatReply, ChatRequest
from ropd_jax.teacher.traffic.prices import Price


@dataclasses.dataclass
class Traffic:
    """Sums over the replies of one role.

    Attributes:
        calls: the number of replies; ``taped`` of these came from the tape.
        unmetered, untimed: replies whose tokens, or whose seconds, are unknown.
        usd: dollars, None if the price or the tokens of any reply are unknown.
        seconds: the sum of the calls' seconds, as if made one after the other.
    """

    calls: int = 0
    taped: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    unmetered: int = 0
    untimed: int = 0
    usd: float | None = 0.0
    seconds: float = 0.0

    def add(self, reply: ChatReply, price: Price | None) -> None:
        """Counts one reply."""
        usage = reply.usage
        self.calls += 1
        self.taped += reply.source == "tape"
        self.unmetered += usage.input_tokens is None or usage.output_tokens is None
        self.untimed += reply.latency_s is None
        self.seconds += reply.latency_s or 0.0
        for name in ("input_tokens", "output_tokens", "cached_tokens"):
            setattr(self, name, getattr(self, name) + (getattr(usage, name) or 0))
        usd = None if price is None else price.cost(usage)
        if price is not None and price.input == price.output == 0:
            usd = 0.0
        self.usd = None if usd is None or self.usd is None else self.usd + usd

    def per_1000(self, verdicts: int) -> dict[str, float | None]:
        """Traffic per 1,000 verdicts, given the number of requested verdicts. Unknown figures are None."""
        if not verdicts or not self.calls:
            return dict.fromkeys(("calls", "input_tokens", "output_tokens", "usd", "call_seconds"))
        each = 1000 / verdicts
        metered, timed = not self.unmetered, not self.untimed
        return {
            "calls": self.calls * each,
            "input_tokens": self.input_tokens * each if metered else None,
            "output_tokens": self.output_tokens * each if metered else None,
            "usd": None if self.usd is None else self.usd * each,
            "call_seconds": self.seconds * each if timed else None,
        }

    def as_dict(self) -> dict[str, Any]:
        """The sums. Unknown figures are None."""
        found = dataclasses.asdict(self)
        for name in ("input_tokens", "output_tokens", "cached_tokens"):
            found[name] = None if self.unmetered else found[name]
        found["seconds"] = None if self.untimed else self.seconds
        return found


class CountingClient:
    """A ``ChatClient`` that counts the replies of its inner client by role.

    Args:
        prices: by (purpose, model); None if unknown.
    """

    def __init__(self, client: ChatClient, prices: dict[tuple[str, str], Price | None]):
        self.inner = client
        self.roles: dict[str, Traffic] = {}
        self._prices = prices

    async def chat(self, request: ChatRequest) -> ChatReply:
        """Returns the inner client's reply, or raises its error."""
        reply = await self.inner.chat(request)
        if reply.source != "shared":
            traffic = self.roles.setdefault(request.purpose, Traffic())
            traffic.add(reply, self._prices.get((request.purpose, request.model)))
        return reply

    async def close(self) -> None:
        await self.inner.close()
