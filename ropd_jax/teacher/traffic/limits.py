"""The limits of the requests to a provider: how many at a time and per minute, how long, how often, and in which order.

`traffic.retries` enforces them.
"""

from __future__ import annotations

import dataclasses

from ropd_jax.teacher.clients.chat import ChatRequest
from ropd_jax.teacher.clients.errors import ConfigurationError

# Stages of a group; each waits for the previous one. The held-out judge waits for none.
_STAGES = {"reference": 0, "rubric": 1, "verify": 2, "score": 2, "judge": 0}
ORDERS = ("longest_first", "finished_first")


@dataclasses.dataclass(frozen=True)
class Limits:
    """The numbers, named as in ``cfg.teacher``.

    Attributes:
        concurrency, min_concurrency: bounds of the adaptive slots; they start at ``min_concurrency``.
        requests_per_minute, tokens_per_minute: for the whole job; None means no limit. Tokens are input plus output as
            the provider reports them. Before a role's first reply, a request's output limit counts as its output.
        timeout_s: time limit in seconds for one attempt, from the moment it is sent. It grows in proportion if an
            attempt has a larger token limit than the first one, and if a request was late twice. If a call is late with
            at most one other in flight, the limit doubles for its role. The total growth is at most 8 times.
        attempts: maximum attempts for a request with transient failures.
        first_wait_s, max_wait_s: the wait doubles from the first to the maximum. The maximum also bounds Retry-After.
        outage_wait_s: seconds that calls wait while the server is unreachable, see `outage`; 0 means no wait
            (the config's default is 1,800).
        hedge_after_s: seconds after which a second copy of an attempt is sent if a slot is free; 0 means never.
        order: which request goes first if slots are scarce. ``longest_first``: within the earliest step, references
            before rubrics before verifications, so that the last group starts early and the step ends early.
            ``finished_first``: verifications before rubrics before references, so that the first groups end early.
        share: this host's share of the limits, 1/N with N hosts.

    Raises:
        ConfigurationError: a number out of range.
    """

    concurrency: int = 64
    min_concurrency: int = 1
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout_s: float = 120.0
    attempts: int = 5
    first_wait_s: float = 1.0
    max_wait_s: float = 60.0
    outage_wait_s: float = 0.0
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
        for name in ("hedge_after_s", "outage_wait_s"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"teacher.{name} is {getattr(self, name)}; expected seconds, 0 for never")
        if self.order not in ORDERS:
            raise ConfigurationError(f"teacher.order is {self.order!r}; expected {' or '.join(ORDERS)}")
        if not 0 < self.share <= 1:
            raise ConfigurationError(f"the share of this host is {self.share}; expected 1/N with N hosts")

    @property
    def slots(self) -> tuple[int, int]:
        """(minimum, maximum) calls in flight on this host, at least 1 and in this order."""
        most = max(1, int(self.concurrency * self.share))
        return min(most, max(1, int(self.min_concurrency * self.share))), most

    def priority(self, request: ChatRequest, step: int) -> tuple[float, int]:
        """The priority of a request in the queue; smaller goes first."""
        stage = _STAGES[request.purpose]
        return (step, stage) if self.order == "longest_first" else (0, -stage)
