"""The cost of the teacher so far, by role and step, and the caps that end a run.

``MeteredClient`` is the innermost client, inside limits and retries, so every attempt is counted: a truncated or
refused reply costs what the provider reports, and an answer from the tape costs nothing. The caps are checked before
each call. If one is reached, ``BudgetError`` stops the run with a checkpoint. Calls in flight at that moment still
finish and are recorded. So they can exceed the caps on dollars and tokens, but never the cap on calls.

Unknown costs stay unknown: a call to a model without a price makes the cost None, and a cap in dollars is refused at
the start if a role's model has no price. A reply without token counts is bounded: it used at most one token per byte of
the request, and at most the request's output limit. These bounds count toward the caps::

    1,000 replies with counts                       2.50 dollars
    1 reply without: 8,000 bytes, limit 4,096       0.00 to 0.05 dollars
    the run                                         2.50 dollars, with at most 0.05 more

With n hosts, each one may spend 1/n of the amount left at the last sync::

    cap 100 calls, 2 hosts          host 0    host 1    left at the sync
    first sync                                          100, so 50 for each
    until the second sync             50         0      50, so 25 for each
    until the third sync              25        25      0
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ropd_jax.teacher.clients.chat import ChatClient, ChatReply, ChatRequest, Usage
from ropd_jax.teacher.clients.errors import BudgetError, ConfigurationError, TeacherError
from ropd_jax.teacher.step import STEP
from ropd_jax.teacher.traffic.prices import Prices
from ropd_jax.utils.files import create_private
from ropd_jax.utils.writing import Dispensable

_STEPS_KEPT = 8
_TEMPLATE_TOKENS = 32  # tokens of a chat template around one message


@dataclasses.dataclass(frozen=True)
class Caps:
    """Caps for a whole run, including all its resumes; 0 means no cap.

    Raises:
        ConfigurationError: a negative cap.
    """

    usd: float = 0.0
    tokens: int = 0
    calls: int = 0

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if not value >= 0:
                raise ConfigurationError(f"teacher.budget.{f.name} is {value}; expected 0 (no cap) or more")


@dataclasses.dataclass
class Spent:
    """Calls, tokens and dollars.

    Attributes:
        unmetered: replies whose token counts are fully or partly unknown.
        unmetered_tokens, unmetered_usd: upper bounds of the unknown part; not included in the other numbers.
        unpriced: calls whose cost is unknown and unbounded, because their model has no price.
        usd: the known part of the cost.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    thought_tokens: int = 0
    cached_tokens: int = 0
    unmetered: int = 0
    unpriced: int = 0
    usd: float = 0.0
    unmetered_tokens: int = 0
    unmetered_usd: float = 0.0

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    @property
    def cost_usd(self) -> float | None:
        """Upper bound of the calls' cost in dollars, or None if the cost of any call is unbounded."""
        return None if self.unpriced else self.usd + self.unmetered_usd

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def add(self, usage: Usage, usd: float | None, most: Usage | None = None, most_usd: float | None = None) -> None:
        """Adds the tokens and dollars of one call.

        Args:
            usd: None means unknown.
            most, most_usd: upper bounds of the tokens and the dollars if they are unknown; None if there is no bound.
        """
        if usage.input_tokens is None or usage.output_tokens is None:
            self.unmetered += 1
            if most is not None:
                unknown = (usage.input_tokens is None, usage.output_tokens is None)
                bounds = (most.input_tokens or 0, most.output_tokens or 0)
                self.unmetered_tokens += sum(
                    bound for bound, is_unknown in zip(bounds, unknown, strict=True) if is_unknown
                )
        if usd is None and most_usd is not None:
            self.unmetered_usd += most_usd
            usd = 0.0
        for name in ("input_tokens", "output_tokens", "thought_tokens", "cached_tokens"):
            setattr(self, name, getattr(self, name) + (getattr(usage, name) or 0))
        self.unpriced += usd is None
        self.usd += usd or 0.0


class Budget:
    """The spending of one run. Thread-safe.

    Args:
        caps: the caps of the run.
        prices: the prices of the tokens.
        path: a JSON file that keeps the spending between two checkpoints, because a killed run has also spent it. It is
            written at most once a second; None keeps the spending in memory only.

    Raises:
        ConfigurationError: the file at ``path`` is damaged.
    """

    def __init__(
        self, caps: Caps | None = None, prices: Prices | None = None, path: str | os.PathLike[str] | None = None
    ):
        self.caps = caps or Caps()
        self.prices = prices or Prices.load()
        self.roles: dict[str, Spent] = {}
        self.steps: dict[int, Spent] = {}
        self._remote: dict[str, Spent] = {}  # of the other hosts, at the last sync
        self._remote_steps: dict[int, Spent] = {}
        self._hosts = 1
        self._synced, self._own_synced = Spent(), Spent()  # at the last sync: of all hosts, of this host
        self._lock = threading.Lock()
        self._path = None if path is None else pathlib.Path(path)
        self._written = 0.0
        self._guard = Dispensable(str(self._path))
        if self._path is not None and self._path.exists():
            try:
                self.restore(json.loads(self._path.read_text(encoding="utf-8")))
            except (ValueError, TypeError, AttributeError) as e:
                raise ConfigurationError(
                    f"{str(self._path)!r} is damaged ({e}); expected JSON with the run's spending. Fix it, or "
                    "delete it to count from the last checkpoint"
                ) from e

    def require_price(self, role: str, provider: str, model: str, base_url: str, *, batch: bool = False) -> None:
        """Raises ``ConfigurationError`` if there is a cap in dollars and the model has no price (for batch jobs)."""
        price = self.prices.find(provider, model, base_url)
        if self.caps.usd and (price is None or (batch and price.batch is None)):
            at, what = " at this base_url" if base_url else "", "price of batch jobs" if batch else "price"
            raise ConfigurationError(
                f"teacher.budget.usd is {self.caps.usd:g}, but no {what} is known for {role}'s model {model!r} from "
                f"{provider}{at}; give its price in a TOML file (teacher.prices), or cap tokens or calls instead"
            )

    def begin(self, role: str) -> None:
        """Counts a call that is about to be sent.

        Raises:
            BudgetError: a cap is reached. Nothing more may be sent.
        """
        with self._lock:
            self._check_caps()
            self._of(self.roles, role).calls += 1
            if (step := STEP.get()) >= 0:
                self._of(self.steps, step).calls += 1
                while len(self.steps) > _STEPS_KEPT:  # only the latest steps can still get calls
                    del self.steps[min(self.steps)]

    def _check_caps(self) -> None:
        total, counted = self.total(), self._against_caps()
        reached = [
            text
            for cap, spent, text in (
                (self.caps.usd, counted.usd + counted.unmetered_usd, f"usd={self.caps.usd:g}"),
                (self.caps.tokens, counted.tokens + counted.unmetered_tokens, f"tokens={self.caps.tokens}"),
                (self.caps.calls, counted.calls, f"calls={self.caps.calls}"),
            )
            if cap and spent >= cap
        ]
        blind = self._blind(total)
        if reached or blind:
            self._write(every_s=0.0)
        if reached:
            raise BudgetError(
                f"teacher.budget.{' and '.join(reached)} is reached. {self._so_far(total)} To continue, use the same "
                f"command and --workdir with a larger teacher.budget{_instead(total)}; all answers so far are on the "
                "tape"
            )
        if blind:
            raise BudgetError(
                f"the cost of {total.unpriced:,} calls is unknown, so teacher.budget.{' and '.join(blind)} cannot "
                f"be checked; give the model's price (teacher.prices), or set teacher.budget.calls instead. "
                f"{self._so_far(total)}"
            )

    def end(
        self, role: str, provider: str, model: str, base_url: str, usage: Usage, most: Usage | None = None
    ) -> float | None:
        """Counts the cost of a call. Returns its dollars, or None if unknown. ``most`` bounds unknown tokens."""
        price = self.prices.find(provider, model, base_url)
        usd = None if price is None else price.cost(usage)
        if price is not None and price.input == price.output == 0:
            usd = 0.0  # free, even if the tokens are unknown
        most_usd = None
        if usd is None and price is not None and most is not None:
            most_usd = price.cost(_filled(usage, most))
        with self._lock:
            self._of(self.roles, role).add(usage, usd, most, most_usd)
            if (step := STEP.get()) >= 0:
                self._of(self.steps, step).add(usage, usd, most, most_usd)
            self._write(every_s=1.0)
        return usd

    def set_spent(self, role: str, spent: Spent) -> None:
        """Sets the spending under a name, for costs that are counted elsewhere, such as batch jobs."""
        with self._lock:
            self.roles[role] = spent
            self._write(every_s=0.0)

    def room(self, estimates: Iterable[Spent]) -> int:
        """The number of these calls, in order, that fit into the caps by estimate."""
        total, n = self.total(), 0
        if self._blind(total):
            return 0
        for estimate in estimates:
            total = total + estimate
            usd, tokens = total.usd + total.unmetered_usd, total.tokens + total.unmetered_tokens
            caps = ((self.caps.usd, usd), (self.caps.tokens, tokens), (self.caps.calls, total.calls))
            if any(cap and spent > cap for cap, spent in caps):
                break
            n += 1
        return n

    def no_room(self, left: int, each: Spent) -> BudgetError:
        """The error for ``left`` requests that are not submitted; ``each`` is the estimate for the next one."""
        caps = ", ".join(f"{f.name}={v:g}" for f in dataclasses.fields(Caps) if (v := getattr(self.caps, f.name)))
        return BudgetError(
            f"teacher.budget ({caps}) has no room for another request in a batch job (about {each.tokens:,} tokens, "
            f"{dollars(each.cost_usd)}, estimated); {left:,} are not submitted. {self._so_far(self.total())} To "
            "continue, use the same command with a larger teacher.budget; all answers so far are on the tape"
        )

    def _blind(self, total: Spent) -> list[str]:
        """The caps that cannot be checked, because the cost of some calls is unknown and unbounded."""
        return ["usd"] if self.caps.usd and total.unpriced else []

    def total(self) -> Spent:
        """The total of all roles and hosts."""
        return _sum([*list(self.roles.values()), *self._remote.values()])

    def _against_caps(self) -> Spent:
        """The amount that counts toward the caps: the total at the last sync, plus n times this host's spending since.

        It reaches the cap when this host has spent 1/n of the rest, so n hosts together never exceed it.
        """
        own = _sum(list(self.roles.values()))
        since = [n - m for n, m in zip(dataclasses.astuple(own), dataclasses.astuple(self._own_synced), strict=True)]
        return self._synced + Spent(*(n * self._hosts for n in since))

    def merge(self, roles: Sequence[Mapping[str, Spent]], steps: Sequence[Mapping[int, Spent]]) -> None:
        """Takes over the spending of each other host so far, by role and by step."""
        with self._lock:
            self._remote, self._remote_steps = _merged(roles), _merged(steps)
            self._hosts, self._synced = len(roles) + 1, self.total()
            self._own_synced = _sum(list(self.roles.values()))

    def absorb(self) -> None:
        """Takes over the spending that other hosts of an earlier start wrote to ``spent.1.json`` and so on."""
        if self._path is None:
            return
        names = sorted(self._path.parent.glob(f"{self._path.stem}.*{self._path.suffix}"))
        files = [p for p in names if p.stem.removeprefix(f"{self._path.stem}.").isdigit()]
        for path in files:
            left = {role: Spent(**spent) for role, spent in json.loads(path.read_text(encoding="utf-8")).items()}
            with self._lock:
                self.roles = _merged([self.roles, left])
                self._write(every_s=0.0)  # before the unlink: a kill in between counts them twice, not zero times
            path.unlink()

    def forget(self) -> None:
        """Starts from zero: host 0 has taken over this host's spending."""
        with self._lock:
            self.roles = {}

    def as_metrics(self, step: int | None = None) -> dict[str, float | None]:
        """``teacher/cost_usd`` and similar metrics, also by role; with ``step``, that step's cost.

        Unknown values are None.
        """
        total, roles = self.total(), _merged([self.roles, self._remote])
        out: dict[str, float | None] = {
            "teacher/cost_usd": total.cost_usd,
            "teacher/spent_calls": float(total.calls),
            "teacher/spent_tokens": float(total.tokens),
            "teacher/unpriced_calls": float(total.unpriced),
            "teacher/unmetered_calls": float(total.unmetered),
            "teacher/unmetered_usd": total.unmetered_usd,
        }
        out |= {f"teacher/cost_usd_{role}": spent.cost_usd for role, spent in roles.items()}
        if step is not None:
            here, there = (steps.get(step, Spent()) for steps in (self.steps, self._remote_steps))
            out["teacher/step_cost_usd"] = (here + there).cost_usd
        return out

    def state(self) -> dict[str, Any]:
        """The spending of all hosts, JSON-serializable."""
        return _plain(_merged([self.roles, self._remote]))

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state()`` or from the spending that is already known, whichever is larger."""
        for role, spent in state.items():
            # The file at `path` is newer than the checkpoint if the run was killed after it, and older otherwise.
            known, other = self._of(self.roles, role), Spent(**spent)
            for f in dataclasses.fields(Spent):
                setattr(known, f.name, max(getattr(known, f.name), getattr(other, f.name)))

    def save(self) -> None:
        """Writes the spending now."""
        with self._lock:
            self._write(every_s=0.0)

    def _write(self, *, every_s: float) -> None:
        now = time.monotonic()
        if self._path is None or (self._written and now - self._written < every_s):
            return
        self._written = now
        part = self._path.with_name(f".{self._path.name}.part")
        with self._guard:  # after a paid reply, which must reach the tape; checkpoints also hold the spending
            with create_private(part, encoding="utf-8") as file:
                file.write(json.dumps(_plain(self.roles), indent=1) + "\n")
            os.replace(part, self._path)

    def _so_far(self, total: Spent) -> str:
        parts = []
        for role, spent in sorted(_merged([self.roles, self._remote]).items()):
            parts.append(f"{role} {spent.calls:,} calls {spent.tokens:,} tokens {dollars(spent.cost_usd)}")
        most = ""
        if total.unmetered:
            usd = dollars(total.unmetered_usd)
            most = f", of which at most {usd} for {total.unmetered:,} replies without token counts"
        whole = f"{total.calls:,} calls, {total.tokens:,} tokens, {dollars(total.cost_usd)}{most}"
        return f"Spent: {whole} ({'; '.join(parts)})."

    @staticmethod
    def _of(table: dict, key: Any) -> Spent:
        return table.setdefault(key, Spent())


def _filled(usage: Usage, most: Usage) -> Usage:
    """The usage with bounds for the unknown values."""
    sent = most.input_tokens if usage.input_tokens is None else usage.input_tokens
    made = most.output_tokens if usage.output_tokens is None else usage.output_tokens
    return dataclasses.replace(usage, input_tokens=sent, output_tokens=made)


def most_of(request: ChatRequest) -> Usage:
    """Upper bound of a call's tokens: one per byte of the request, plus its output limit."""
    schema = "" if request.json_schema is None else json.dumps(request.json_schema)
    texts = [*(m.content for m in request.messages), schema]
    sent = sum(len(t.encode("utf-8", "surrogatepass")) for t in texts) + _TEMPLATE_TOKENS * len(texts)
    return Usage(sent, request.max_output_tokens)


def _bound(request: ChatRequest, usage: Usage) -> Usage | None:
    """The upper bound `most_of` the request, or None if its usage is fully known."""
    return most_of(request) if usage.input_tokens is None or usage.output_tokens is None else None


def _instead(total: Spent) -> str:
    """The hint for a provider that often does not report tokens."""
    return ", or set teacher.budget.calls instead" if total.unmetered > total.calls / 2 else ""


def _sum(several: Iterable[Spent]) -> Spent:
    total = Spent()
    for spent in several:
        total = total + spent
    return total


def _merged(tables: Sequence[Mapping[Any, Spent]]) -> dict[Any, Spent]:
    """The sum of several spending tables, key by key."""
    total: dict[Any, Spent] = {}
    for table in tables:
        for key, spent in list(table.items()):
            total[key] = total.get(key, Spent()) + spent
    return total


def _plain(roles: Mapping[str, Spent]) -> dict[str, Any]:
    return {role: dataclasses.asdict(spent) for role, spent in roles.items()}


def dollars(usd: float | None) -> str:
    """``$1.23``, or ``unknown cost``.

    >>> dollars(0.0012), dollars(12), dollars(None)
    ('$0.0012', '$12.00', 'unknown cost')
    """
    if usd is None:
        return "unknown cost"
    return f"${usd:,.2f}" if usd == 0 or usd >= 0.1 else f"${usd:.2g}"


class MeteredClient:
    """The innermost ``ChatClient``, around a provider's: counts the cost of each call and measures its duration."""

    def __init__(self, client: ChatClient, budget: Budget, *, provider: str, base_url: str = ""):
        self.inner = client
        self._budget, self._provider, self._base_url = budget, provider, base_url

    async def chat(self, request: ChatRequest) -> ChatReply:
        """The client's reply.

        Raises:
            BudgetError: a cap is reached.
        """
        self._budget.begin(request.purpose)
        about = (request.purpose, self._provider, request.model, self._base_url)
        start = time.monotonic()
        try:
            reply = await self.inner.chat(request)
        except TeacherError as e:
            if e.usage is not None:  # an unusable reply can also be billed
                self._budget.end(*about, e.usage, _bound(request, e.usage))
            raise
        self._budget.end(*about, reply.usage, _bound(request, reply.usage))
        return dataclasses.replace(reply, latency_s=time.monotonic() - start)

    async def close(self) -> None:
        await self.inner.close()
