"""The runs that a viewer shows, and the data about them. No HTTP here.

A viewer is opened on one run, or on a folder of runs; a run is a directory with ``config.json``. Nothing is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ropd_jax.analysis.missed import missed
from ropd_jax.types import UserError
from ropd_jax.utils.files import finite, read_json
from ropd_jax.viewer.calls import call_of, calls_of
from ropd_jax.viewer.criteria import CriteriaJob
from ropd_jax.viewer.index import GroupIndex, Key, Place
from ropd_jax.viewer.overview import changes, config_of
from ropd_jax.viewer.summary import Graded, Summary, graded, pass_rate, sources
from ropd_jax.viewer.tokens import tokens_of
from ropd_jax.workdir.metrics import read_metrics
from ropd_jax.workdir.status import read_status

PAGE, MOST = 50, 500  # groups per page: default and maximum
SORTS: Mapping[str, Callable[[Summary], float | None]] = {
    "step": lambda s: s.step,
    "reward": lambda s: s.reward,
    "spread": lambda s: s.spread,
    "reference": lambda s: s.reference,
    "unscored": lambda s: s.unscored,
    "truncated": lambda s: s.truncated,
    "unexplored": lambda s: s.unexplored,
    "suppressed": lambda s: s.suppressed,
}
FILTERS: Mapping[str, Callable[[Summary], bool]] = {
    "unscored": lambda s: s.unscored > 0,
    "truncated": lambda s: s.truncated > 0,
    "zero_variance": lambda s: s.zero_variance,
    "below": lambda s: s.below,
    "flipped": lambda s: s.flipped,
    "unexplored": lambda s: s.unexplored > 0,
    "suppressed": lambda s: s.suppressed > 0,
}
GOLD_FILTERS: Mapping[str, Callable[[Graded], bool]] = {
    "punished": lambda g: g.punished > 0,
    "rewarded": lambda g: g.rewarded > 0,
}
HIDES = ("dropout", "references_pass", "variance_weights", "reliability_weights")
SLICE_S = 0.3  # a request reads files and grades answers for this long, then returns partial results
FIRST_S = 0.05  # for the first request, so that the page has something to show


@dataclasses.dataclass(frozen=True)
class Query:
    """The sort order, filters and page of a list of groups.

    Raises:
        UserError: an unknown sort order or filter.
    """

    filters: tuple[str, ...] = ()
    sort: str = "step"
    descending: bool = False
    text: str = ""
    step: int | None = None
    offset: int = 0
    limit: int = PAGE

    def __post_init__(self) -> None:
        if self.sort not in SORTS:
            raise UserError(f"sort={self.sort!r:.40} is unknown; expected one of {', '.join(SORTS)}")
        for name in self.filters:
            if name not in FILTERS and name not in GOLD_FILTERS:
                known = ", ".join((*FILTERS, *GOLD_FILTERS))
                raise UserError(f"filter={name!r:.40} is unknown; expected some of {known}")
        if self.offset < 0 or not 0 < self.limit <= MOST:
            raise UserError(f"offset={self.offset}, limit={self.limit}; expected offset >= 0 and limit 1 to {MOST}")


class Run:
    """One run: its index of groups, and results that are cached until their files change."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        self.index = GroupIndex(directory)
        self.criteria = CriteriaJob(directory)
        self._lock = threading.Lock()
        self._graded: dict[Key, Graded] = {}
        self._text = ""
        self._matches: dict[Key, bool] = {}  # for `_text`

    def about(self) -> dict[str, Any]:
        """Config, the keys that differ from the defaults, result (if it has finished), and current status."""
        config = config_of(self.directory)
        return {
            "name": self.directory.name,
            "config": config,
            "changes": changes(config),
            "result": read_json(self.directory / "result.json", optional=True) or None,
            "status": read_status(self.directory),
        }

    def metrics(self) -> dict[str, Any]:
        """Each metric as ``[steps, values]``; an unknown value is None."""
        known = read_metrics(self.directory)
        return {name: [steps, [finite(v) for v in values]] for name, (steps, values) in sorted(known.items())}

    def groups(self, query: Query) -> dict[str, Any]:
        """A page of the list. ``read`` of ``of`` step files have been read: repeat the request until all are.

        ``counts`` are the numbers of groups that each further filter would leave; they are unknown for gold filters,
        which would require comparing every group. With a gold filter, ``graded`` of the candidate groups have been
        compared with their gold answers.
        """
        self.index.refresh(seconds=SLICE_S if self.index.progress[0] else FIRST_S)
        places = self.index.places()
        found = [p for p in places if all(FILTERS[f](p.summary) for f in query.filters if f in FILTERS)]
        if query.step is not None:
            found = [p for p in found if p.summary.step == query.step]
        if query.text:
            found = self._holding(found, query.text)
        gold = [f for f in query.filters if f in GOLD_FILTERS]
        candidates = len(found)
        compared = candidates
        if gold:
            known = self._grade(found)
            compared = len(known)
            found = [p for p in found if p.key in known and all(GOLD_FILTERS[f](known[p.key]) for f in gold)]
        found = _sorted(found, SORTS[query.sort], query.descending)
        read, of = self.index.progress
        return {
            "total": len(found),
            "groups": [dataclasses.asdict(p.summary) for p in found[query.offset : query.offset + query.limit]],
            "counts": {name: sum(holds(p.summary) for p in found) for name, holds in FILTERS.items()},
            "read": read,
            "of": of,
            "graded": [compared, candidates],
            "unreadable": self.index.unreadable,
        }

    def group(self, step: int, group: int) -> dict[str, Any]:
        """One group as stored, with derived values and its neighbours.

        Raises:
            UserError: there is no such group.
        """
        place = self.index.place(step, group)
        row = self.index.read(place)
        known, hidden = graded(row), missed(row)
        previous, following = self.index.neighbours(place)
        return {
            "row": row,
            "right": known.right,
            "reference_scores": [finite(pass_rate(row["rubric"], r["verdicts"])) for r in row["references"]],
            "sources": sources(row),
            "unexplored": hidden.unexplored,
            "suppressed": hidden.suppressed,
            "hidden_by": hides(self.config()),
            "previous": previous,
            "next": following,
        }

    def calls(self, step: int, group: int) -> dict[str, Any]:
        """The requests to the teacher about one group, see `calls.calls_of`.

        Raises:
            UserError: there is no such group, or the tape cannot be read.
        """
        return calls_of(self.directory, self.config(), self.index.row(step, group))

    def call(self, key: str) -> dict[str, Any]:
        """One request and its reply, see `calls.call_of`.

        Raises:
            UserError: the tape does not contain it, or cannot be read.
        """
        return call_of(self.directory, self.config(), key)

    def tokens(self, step: int, group: int) -> dict[str, Any]:
        """The log-probabilities of the tokens of a group's answers, see `tokens.tokens_of`.

        Raises:
            UserError: there is no such group.
        """
        place = self.index.place(step, group)
        answers = len(self.index.read(place)["answers"])
        return tokens_of(self.index.directory / place.file, place.number, answers)

    def config(self) -> dict[str, Any]:
        return read_json(self.directory / "config.json", optional=True)

    def _holding(self, places: list[Place], text: str) -> list[Place]:
        """The groups that contain the text; each group is searched once per text."""
        with self._lock:
            if text != self._text:
                self._text, self._matches = text, {}
            for p in places:
                if p.key not in self._matches:
                    self._matches[p.key] = self.index.matches(p, text)
            return [p for p in places if self._matches[p.key]]

    def _grade(self, places: list[Place]) -> dict[Key, Graded]:
        """The grades of the groups that have been compared with their gold answers; each call adds more."""
        began = time.monotonic()
        with self._lock:
            for p in places:
                if time.monotonic() - began > SLICE_S:
                    break
                if p.key not in self._graded:
                    with contextlib.suppress(UserError):  # its file was just replaced
                        self._graded[p.key] = graded(self.index.read(p))
            return {p.key: self._graded[p.key] for p in places if p.key in self._graded}


def hides(config: Mapping[str, Any]) -> list[str]:
    """The settings of a run that can remove a criterion from the rewards of a group (its weight is then 0)."""
    how = config.get("ropd")
    return [f"ropd.{name}" for name in HIDES if how.get(name)] if isinstance(how, Mapping) else []


def _sorted(places: list[Place], key: Callable[[Summary], float | None], descending: bool) -> list[Place]:
    """Sorted; groups without a value come last in both directions."""
    known = [p for p in places if key(p.summary) is not None]
    unknown = [p for p in places if key(p.summary) is None]
    return sorted(known, key=lambda p: key(p.summary) or 0.0, reverse=descending) + unknown


def runs_in(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """Name -> directory of each run: the directory itself, or the runs in it.

    Raises:
        UserError: there is none.
    """
    if (directory / "config.json").is_file():
        return {directory.resolve().name: directory}
    found = {p.parent.name: p.parent for p in sorted(directory.glob("*/config.json"))}
    if not found:
        raise UserError(
            f"{directory} holds no runs; expected a run's directory (ropd train --workdir), or a folder of them"
        )
    return found
