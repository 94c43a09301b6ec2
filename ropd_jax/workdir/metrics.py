"""``metrics.jsonl``: one line of metrics per step, also sent to the run's trackers. Imports no jax.

Metric names are ``room/name``: ``reward/mean``, ``eval/accuracy``, ``teacher/unscored_frac``,
``sample/tokens_per_s`` ... An unknown value is None, written as ``null``; it is never replaced by a number.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ropd_jax.utils.files import finite, whole_rows, write_atomic
from ropd_jax.utils.paths import local_run
from ropd_jax.utils.writing import essential
from ropd_jax.workdir.trackers import Trackers


class Metrics:
    """``metrics.jsonl`` of one run.

    Args:
        workdir: the run's directory.
        start_step: the first step that will be logged; lines that an earlier process wrote from there on are removed.
        trackers: receive the same metrics.
        write: True on exactly one of several hosts.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        start_step: int = 0,
        trackers: Trackers | None = None,
        write: bool = True,
    ):
        self.path = pathlib.Path(workdir) / "metrics.jsonl"
        kept = [row for row in _rows(self.path) if row["step"] < start_step]
        self._held = {(row["step"], name) for row in kept for name in row}
        if write:
            with essential(self.path):
                write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = open(self.path if write else os.devnull, "a", encoding="utf-8")  # noqa: SIM115 - see close()
        self._trackers = trackers if write else None

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one line. Values are numbers or None; NaN and infinities are written as ``null``.

        Raises:
            WriteError: the file cannot be written.
        """
        row = {name: finite(value) for name, value in metrics.items()}
        with essential(self.path):
            self._file.write(json.dumps({"step": step, **row}) + "\n")
            self._file.flush()
        if self._trackers:
            self._trackers.log(step, row)

    def holds(self, step: int, name: str) -> bool:
        """Whether an earlier process of this run has logged the metric at that step."""
        return (step, name) in self._held

    def close(self) -> None:
        with contextlib.suppress(OSError):  # `log` has already flushed every line and reported errors
            self._file.close()


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``."""
    return whole_rows(path, lambda row: isinstance(row.get("step"), int))


def read_metrics(workdir: str | os.PathLike[str]) -> dict[str, tuple[list[int], list[float | None]]]:
    """Each metric of a run as (steps, values), ascending in step; an unknown value is None."""
    series: dict[str, dict[int, float | None]] = {}
    for row in _rows(local_run(workdir) / "metrics.jsonl"):
        for name, value in row.items():
            if name != "step":
                series.setdefault(name, {})[row["step"]] = value
    return {name: (sorted(points), [points[s] for s in sorted(points)]) for name, points in series.items()}
