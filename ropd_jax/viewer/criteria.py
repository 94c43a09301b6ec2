"""The criteria of a run over training, computed in the background while the page is open (`analysis.criteria`).

A thread reads new and changed group files, then clusters. Requests are answered at once, with the results of the last
pass and the progress of the current one. While a run trains, a new pass starts at most every `AGAIN_S` seconds.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ropd_jax.analysis import criteria
from ropd_jax.types import UserError
from ropd_jax.utils import tables
from ropd_jax.utils.text import plain

log = logging.getLogger(__name__)
AGAIN_S = 30.0
FIRST_S = 0.4  # time that a request waits for the first pass, so that a small run needs no second request
WHOLE_S = 600.0  # time that it waits if the complete result is required
PAGE = 100  # maximum number of criteria shown of a cluster
MOST = 500  # maximum number of clusters in a reply


class CriteriaJob:
    """The clusters of one run. Methods can be called from several threads."""

    def __init__(self, run: pathlib.Path):
        self._directory = run / "groups"
        self._files: dict[str, tuple[tuple[int, int], list[criteria.Seen]]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._progress = (0, 0)
        self._found: tuple[list[criteria.Seen], dict[str, Any]] | None = None
        self._stamp: Mapping[str, tuple[int, int]] = {}
        self._began = 0.0
        self._failed = ""

    def clusters(self, *, wait_s: float = FIRST_S) -> dict[str, Any]:
        """Clusters and categories without the members; ``found`` is None until the first pass is complete.

        ``working`` is True during a pass, in which ``read`` of ``of`` files have been read. Only the `MOST` largest
        clusters are included; ``rarer`` counts the others.

        Raises:
            UserError: the pass failed.
        """
        self._start()
        thread = self._thread
        if thread is not None and self._found is None:
            thread.join(wait_s)
        if self._failed:
            raise UserError(self._failed)
        working = thread is not None and thread.is_alive()
        about = {"working": working, "read": self._progress[0], "of": self._progress[1]}
        if self._found is None:
            return {**about, "found": None}
        found = self._found[1]
        shown = [{k: v for k, v in c.items() if k != "members"} for c in found["clusters"][:MOST]]
        return {**about, "found": {**found, "clusters": shown, "rarer": len(found["clusters"]) - len(shown)}}

    def cluster(self, name: str) -> dict[str, Any]:
        """One cluster with its criteria: first those that separate the answers, then by age, newest first.

        Raises:
            UserError: there is no such cluster.
        """
        self.clusters(wait_s=WHOLE_S)
        if self._found is None:
            raise UserError("the criteria are still being read; try again")
        seen, found = self._found
        one = next((c for c in found["clusters"] if c["id"] == name), None)
        if one is None:
            raise UserError(f"there is no cluster {name!r:.40}; open it from the list of criteria")
        own = sorted((seen[i] for i in one["members"]), key=lambda s: (not s.discriminates, -s.step, s.group))
        rows = [
            {"step": s.step, "group": s.group, "id": s.id, "points": s.points, "text": s.text, "rate": s.rate,
             "scored": s.scored, "flips": s.flips} for s in own[:PAGE]
        ]  # fmt: skip
        return {**{k: v for k, v in one.items() if k != "members"}, "criteria": rows}

    def _start(self) -> None:
        """Starts a pass if none is running and the files have changed."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            stamp = _stamp(self._directory)
            if self._found is not None and (stamp == self._stamp or time.monotonic() - self._began < AGAIN_S):
                return
            self._began, self._progress, self._failed = time.monotonic(), (0, len(stamp)), ""
            self._thread = threading.Thread(target=self._pass, args=(stamp,), name="criteria", daemon=True)
            self._thread.start()

    def _pass(self, stamp: Mapping[str, tuple[int, int]]) -> None:
        try:
            for n, (name, stat) in enumerate(stamp.items(), 1):
                if self._files.get(name, ((0, 0), []))[0] != stat:
                    with contextlib.suppress(FileNotFoundError):
                        self._files[name] = stat, criteria.read_file(self._directory / name)
                self._progress = n, len(stamp)
            for gone in self._files.keys() - stamp.keys():
                del self._files[gone]
            seen = [one for name in sorted(self._files) for one in self._files[name][1]]
            self._found = seen, criteria.measure(seen)
            self._stamp = stamp
        except Exception as error:
            log.exception("the criteria cannot be clustered")
            self._failed = f"the criteria cannot be clustered ({type(error).__name__}: {error!s:.200})"


def _stamp(directory: pathlib.Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in sorted(directory.glob("step_*.jsonl")):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            found[path.name] = (stat.st_mtime_ns, stat.st_size)
    return found


# -------------------------------------------------------------------------------------------------------- terminal


def show(run: str, *, most: int = 20, console: Console | None = None) -> None:
    """Prints the largest clusters and the categories (``ropd show RUN --criteria``); readable at 80 columns.

    Raises:
        UserError: no groups.
    """
    console = console or tables.console(sys.stdout)
    found = criteria.measure(criteria.read_run(run))
    span = "{0[0]} to {0[1]}"
    when = "" if not found["early"] else (
        f"; early: steps {span.format(found['early'])}, late: steps {span.format(found['late'])}"
    )  # fmt: skip
    console.print(f"{run}: {found['criteria']} criteria of {found['groups']} groups{when}", soft_wrap=True)
    table = Table(box=None, padding=(0, 1, 0, 0), expand=True)
    for name in ("n", "pts", "early", "late", "change", "sep"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("criterion", ratio=1, overflow="fold")
    for one in ({**found["all"], "text": "all", "category": ""}, *found["categories"]):
        table.add_row(*_cells(one), Text(plain(one.get("text") or one["category"]), "bold"))
    for one in found["clusters"][:most]:
        alike = f" (+{one['wordings'] - 1} alike)" if one["wordings"] > 1 else ""
        table.add_row(*_cells(one), f"{' '.join(one['text'].split())[:160]}{alike}")
    console.print(table)
    left = len(found["clusters"]) - most
    notes = f"{left} more clusters. " if left > 0 else ""
    console.print(
        f"{notes}Of {found['judged']} clusters with enough groups {found['learned']} were learned (pass rate up, "
        f"interval above 0) and {found['lost']} lost. sep: share that some answers pass and some fail.",
        style="dim",
        soft_wrap=True,
    )


def _cells(one: Mapping[str, Any]) -> list[Text | str]:
    percent = [("" if one[k] is None else f"{one[k]:.0%}") for k in ("early", "late", "discriminates")]
    change = "" if one["change"] is None else f"{100 * one['change']:+.0f}"
    style = {"learned": "green", "lost": "red"}.get(one["verdict"], "")
    mark = {"learned": " *", "lost": " !"}.get(one["verdict"], "  ")
    points = "" if one["points"] is None else f"{one['points']:.1f}"
    return [str(one["count"]), points, *percent[:2], Text(f"{change}{mark}", style), percent[2]]
