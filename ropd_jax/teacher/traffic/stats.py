"""Counters of the teacher's traffic: calls, tokens, failures by cause."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ropd_jax.teacher.clients.chat import ChatReply, Purpose
from ropd_jax.teacher.traffic.unusable import Unusable

Counts = dict[str, int]


def _add(counts: Counts, key: str, amount: int = 1) -> None:
    counts[key] = counts.get(key, 0) + amount


@dataclasses.dataclass
class TeacherStats:
    """Counts since the start of the run (restored on resume). Written on the teacher's loop, read anywhere.

    Attributes:
        calls: calls that returned a reply, by purpose.
        input_tokens, output_tokens, thought_tokens, cached_tokens: known tokens by purpose (see ``Usage``).
        usage_unknown: calls for which the provider did not report tokens, by purpose.
        retries: attempts that were repeated, by the cause of the failure.
        reasks: second requests after an unusable or incomplete reply, by purpose.
        failures: calls given up, by cause.
        unscored: answers that ended without a verdict or score, by cause.
        shared: calls answered by an identical one in flight, by purpose; they cost nothing.
        taped: requests answered from the tape, by purpose; they cost nothing.
        outages: how often a server was unreachable, by cause; nothing was given up while calls waited for it.
        hedges: second copies of a straggler, by purpose. The slower copy's tokens are not counted, because it is
            cancelled before its reply.
        waiting_for: the message for each model that is unreachable now; not kept in a checkpoint.
        cut: answers shown to the teacher with their middle cut out, by purpose.
        screened: criteria dropped from a rubric, by reason (`roles.screening`).
        gauges: current values, not counts: ``concurrency``, the slots.
        duplicate_references: references equal to an earlier one of the same prompt (they are kept).
        unusable: failures by role, with samples. Not a counter: not part of checkpoints or metrics.
    """

    calls: Counts = dataclasses.field(default_factory=dict)
    input_tokens: Counts = dataclasses.field(default_factory=dict)
    output_tokens: Counts = dataclasses.field(default_factory=dict)
    thought_tokens: Counts = dataclasses.field(default_factory=dict)
    cached_tokens: Counts = dataclasses.field(default_factory=dict)
    usage_unknown: Counts = dataclasses.field(default_factory=dict)
    retries: Counts = dataclasses.field(default_factory=dict)
    reasks: Counts = dataclasses.field(default_factory=dict)
    failures: Counts = dataclasses.field(default_factory=dict)
    unscored: Counts = dataclasses.field(default_factory=dict)
    shared: Counts = dataclasses.field(default_factory=dict)
    taped: Counts = dataclasses.field(default_factory=dict)
    outages: Counts = dataclasses.field(default_factory=dict)
    hedges: Counts = dataclasses.field(default_factory=dict)
    cut: Counts = dataclasses.field(default_factory=dict)
    screened: Counts = dataclasses.field(default_factory=dict)
    gauges: dict[str, float] = dataclasses.field(default_factory=dict)
    duplicate_references: int = 0

    def __post_init__(self) -> None:
        self.unusable = Unusable()
        self.waiting_for: dict[str, str] = {}  # not a field, so that it is not part of `as_dict`

    def called(self, purpose: Purpose, reply: ChatReply) -> None:
        """Counts one reply, unless it was shared or came from the tape."""
        if reply.source != "live":
            return
        _add(self.calls, purpose)
        if reply.usage.input_tokens is None or reply.usage.output_tokens is None:
            _add(self.usage_unknown, purpose)
        for name in ("input_tokens", "output_tokens", "thought_tokens", "cached_tokens"):
            amount = getattr(reply.usage, name)
            if amount is not None:
                _add(getattr(self, name), purpose, amount)

    def count(self, which: str, key: str) -> None:
        """Adds one to ``retries``, ``reasks``, ``failures``, ``unscored``, ... under ``key``."""
        _add(getattr(self, which), key)

    def as_dict(self) -> dict:
        """A JSON-serializable copy."""
        return {f.name: _copy(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def restore(self, state: dict) -> None:
        """Sets the counters from the result of ``as_dict``."""
        for f in dataclasses.fields(self):
            if f.name in state:
                setattr(self, f.name, _copy(state[f.name]))

    def plus(self, others: Iterable[TeacherStats]) -> TeacherStats:
        """The sum of this host's counts and those of other hosts."""
        total = TeacherStats()
        for stats in (self, *others):
            for name, value in stats.as_dict().items():
                if isinstance(value, dict):
                    for key, amount in value.items():
                        _add(getattr(total, name), key, amount)
                else:
                    setattr(total, name, getattr(total, name) + value)
        return total

    def as_metrics(self) -> dict[str, float]:
        """Flat totals for the metrics, e.g. ``teacher/calls``, ``teacher/calls_verify``, ``teacher/failed_timeout``."""
        out: dict[str, float] = {"teacher/duplicate_references": float(self.duplicate_references)}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name == "gauges":
                out |= {f"teacher/{k}": v for k, v in dict(value).items()}
            elif isinstance(value, dict):
                out[f"teacher/{f.name}"] = float(sum(value.values()))
                out |= {f"teacher/{f.name}_{k}": float(v) for k, v in dict(value).items()}
        return out


def _copy(value: Counts | int) -> Counts | int:
    return dict(value) if isinstance(value, dict) else value
