"""Stops a run in which too many groups fail, with a table of causes over a window of recent groups.

A group fails if it has too few scored rollouts to be trained on. The gate closes when more than ``max_frac * window``
of the last ``window`` groups failed. The number is the same for runs younger than the window. So a bad first step does
not stop a run, and a dead teacher does, after roughly ``max_frac * window`` groups.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

from ropd_jax.types import UserError

_REMEDIES = {
    "rate_limited": "lower teacher.concurrency, or set teacher.requests_per_minute / tokens_per_minute",
    "unavailable": "the provider is overloaded: resume later, or raise teacher.attempts and teacher.max_wait_s",
    "overloaded": "the provider is overloaded: resume later, or raise teacher.attempts and teacher.max_wait_s",
    "server_error": "the provider fails: check its status page or the server's log",
    "timeout": "raise teacher.timeout_s or lower teacher.concurrency",
    "connection": "the server cannot be reached: is teacher.base_url right, and is the server running?",
    "truncated": "raise max_output_tokens of the role (thinking counts too)",
    "context": "lower teacher.max_answer_chars, or use a model with a longer context",
    "malformed": "the model does not keep to the format: look at the tape, or use another model for the role",
    "thinking": "thinking but no answer: start the server with the model's reasoning parser, or raise "
    "teacher.reference.max_output_tokens",
    "empty": "the model returns nothing: look at the tape, or use another model for the role",
    "junk": "the references are loops, refusals or echoes: look at the tape, or use another model as the reference",
    "screened": "no criterion could be decided from a single answer: look at the tape, or use another rubricator",
    "missing": "the model leaves answers out: look at the tape, or use another model as the verifier",
    "blocked": "a safety filter stopped it: use another model or provider for the role",
    "refused": "the model refused: use another model or provider for the role",
    "bad_request": "the server refused the request: its message is in the log",
}


class TooManyFailures(UserError):
    """More than ``teacher.max_failed_frac`` of the last groups failed. The run saves and ends with exit code 3."""


class FailureGate:
    """Counts failed groups over a sliding window.

    Args:
        max_frac: share of the window's groups that can fail; 1.0 never stops a run.
        window: number of groups.

    Raises:
        UserError: the share is outside 0..1, or the window below 1.
    """

    def __init__(self, max_frac: float, window: int):
        if not 0 <= max_frac <= 1:
            raise UserError(f"teacher.max_failed_frac is {max_frac}; expected a share from 0 to 1 (1 never stops)")
        if window < 1:
            raise UserError(f"teacher.failed_window is {window}; expected at least 1 group")
        self._max_frac, self._window = max_frac, window
        self._groups: collections.deque[tuple[bool, dict[str, int]]] = collections.deque(maxlen=window)

    def add(self, causes: Sequence[str | None], *, failed: bool) -> None:
        """Add a group: each rollout's cause of failure (None: scored), and whether the group cannot be trained on."""
        self._groups.append((failed, dict(collections.Counter(c for c in causes if c is not None))))

    @property
    def failed(self) -> int:
        return sum(failed for failed, _ in self._groups)

    def as_metrics(self) -> dict[str, float]:
        """Share of failed groups among those in the window."""
        return {"teacher/failed_frac": self.failed / len(self._groups)} if self._groups else {}

    def check(self, replies: str = "") -> None:
        """Raises TooManyFailures with the table of causes, and starts a new window, so that the run can continue.

        Args:
            replies: the unusable replies by role (`Unusable.table`); shown below the causes.
        """
        if self.failed <= self._max_frac * self._window:
            return
        message = (
            f"{self.failed} of the last {len(self._groups)} groups could not be scored "
            f"(teacher.max_failed_frac={self._max_frac:g} of teacher.failed_window={self._window})\n{self.table()}"
            + (f"\n{replies}" if replies else "")
        )
        self._groups.clear()
        raise TooManyFailures(message)

    def check_run(self, groups: int, unscored: int) -> None:
        """Raises TooManyFailures if no group of a finished run was scored, so that nothing was trained on.

        Args:
            groups, unscored: counts of the whole run.
        """
        if groups and unscored >= groups:
            raise TooManyFailures(
                f"none of the run's {groups} groups could be scored, so the student has learned nothing\n{self.table()}"
            )

    def table(self) -> str:
        """The causes of the window's unscored rollouts, the most frequent first, with a remedy for each."""
        rollouts: collections.Counter[str] = collections.Counter()
        groups: collections.Counter[str] = collections.Counter()
        for _, causes in self._groups:
            rollouts.update(causes)
            groups.update(causes.keys())
        width = max([len("cause"), *map(len, rollouts)])
        lines = [f"  {'cause':<{width}}  rollouts  groups  what helps"]
        for cause, n in rollouts.most_common():
            lines.append(f"  {cause:<{width}}  {n:>8}  {groups[cause]:>6}  {_REMEDIES.get(cause, 'see the log')}")
        return "\n".join(lines)

    def state(self) -> list:
        """The window, as JSON values."""
        return [[failed, causes] for failed, causes in self._groups]

    def restore(self, state: Sequence) -> None:
        """Continue from ``state()``."""
        self._groups.clear()
        self._groups.extend((bool(failed), dict(causes)) for failed, causes in state)
