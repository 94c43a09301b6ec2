"""The progress display of a run: a bar on a terminal, plain lines elsewhere. Imports no jax."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from ropd_jax.utils import tables
from ropd_jax.utils.files import finite
from ropd_jax.utils.text import clock
from ropd_jax.utils.writing import Dispensable

log = logging.getLogger(__name__)

SHOWN = (  # (metric, label, format)
    ("reward/mean", "reward", "{:.3f}"),
    ("eval/accuracy", "accuracy", "{:.1%}"),
    ("teacher/unscored_frac", "unscored", "{:.1%}"),
    ("sample/tokens_per_s", "tok/s", "{:,.0f}"),
)


class Progress:
    """One bar on a terminal; plain lines elsewhere, at least ``every_s`` seconds apart (but always for the last step).

    Shows step, reward, held-out accuracy (the latest value), unscored share, tokens per second and time left. Time
    left comes from the median of the last 20 steps, so the compilation in the first step does not affect it.
    """

    def __init__(self, total: int, *, start: int = 0, every_s: float = 5.0, file: TextIO | None = None):
        self._total, self._done, self._every_s = total, start, every_s
        self._file = file
        self._guard = Dispensable("progress")
        self._seen: dict[str, Any] = {}
        self._durations: list[float] = []
        self._last_step = self._last_line = time.monotonic()
        console = tables.console(file or sys.stderr)
        self._bar = None
        if console.is_terminal:
            count = TextColumn("{task.completed}/{task.total}", markup=False)
            values = TextColumn("{task.description}", markup=False)
            self._bar = RichProgress(count, BarColumn(bar_width=24), values, console=console)
            self._task = self._bar.add_task("", total=total, completed=start)

    def __enter__(self) -> Progress:
        with self._guard:
            if self._bar:
                self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._guard:
            if self._bar:
                self._bar.stop()

    def note(self, metrics: Mapping[str, Any]) -> None:
        """Show values, such as those of an evaluation, without counting a step."""
        self._seen.update({k: v for k, v in metrics.items() if k.startswith("eval/")})
        self._last_step = time.monotonic()  # an evaluation does not count towards a step's duration
        self._update(description=self.line())

    def step(self, done: int, metrics: Mapping[str, Any]) -> None:
        """Show that ``done`` steps of the run are finished, with the metrics of the last one."""
        now = time.monotonic()
        self._durations = [*self._durations[-19:], (now - self._last_step) / max(1, done - self._done)]
        self._last_step, self._done = now, done
        self._seen = {k: v for k, v in self._seen.items() if k.startswith("eval/")} | dict(metrics)
        if self._bar:
            self._update(completed=done, description=self.line())
        elif now - self._last_line >= self._every_s or done >= self._total or len(self._durations) == 1:
            self._last_line = now
            self._print(f"step {done}/{self._total}  {self.line()}")

    def report(self, what: str) -> None:
        """Show what the run is doing within a step: on the bar immediately, as a line at most every ``every_s``."""
        if self._bar:
            self._update(description=f"{self.line()}  {what}")
        elif time.monotonic() - self._last_line >= self._every_s:
            self._last_line = time.monotonic()
            self._print(f"step {self._done}/{self._total}  {what}")

    def line(self) -> str:
        """The values as one line; unknown ones are shown as ``-``."""
        parts = []
        for name, label, form in SHOWN:
            value = finite(self._seen.get(name))
            parts.append(f"{label} {'-' if value is None else form.format(value)}")
        if self._seen.get("eval/drift"):
            parts.append(f"DRIFT since step {self._seen['eval/drift_since']:.0f}")
        if self._durations:
            usual = sorted(self._durations[1:] or self._durations)
            middle = usual[len(usual) // 2]
            parts.append(f"{clock(middle * (self._total - self._done))} left")
        return "  ".join(parts)

    def _update(self, **what: Any) -> None:
        """Show it on the bar, if there is one."""
        if self._bar and not self._guard.lost:
            with self._guard:
                self._bar.update(self._task, **what)

    def _print(self, text: str) -> None:
        if self._file is None:
            log.info("%s", text)
        elif not self._guard.lost:
            with self._guard:
                self._file.write(text + "\n")
                self._file.flush()
