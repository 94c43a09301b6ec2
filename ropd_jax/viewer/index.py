"""The position of each group of a run in its file, so that a group is opened without the others.

    groups/step_000012.jsonl  --listed (stat)-->  read once, line by line  -->  (file, byte offset, length, `Summary`)

`GroupIndex` holds only summaries, about 1 KB per group; texts are read from disk when a group is opened or searched.
A file is read again only if its size or time has changed: a training run adds files, a resumed one replaces some.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import re
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeAlias

from ropd_jax.types import UserError
from ropd_jax.viewer.summary import Summary, summary

BAD = (AttributeError, KeyError, TypeError, ValueError, RecursionError)  # raised for a line that is not a group


Key: TypeAlias = tuple[str, int, int]  # file, time of its last change, offset


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A group in its file: its line is the bytes ``offset`` to ``offset + length``, with this ``number`` (from 0);
    ``changed`` is the file's time of change in ns."""

    file: str
    changed: int
    offset: int
    length: int
    summary: Summary
    number: int  # of its line in the file, from 0

    @property
    def key(self) -> Key:
        """Identifies this content of the group; it changes when the file is replaced."""
        return self.file, self.changed, self.offset


@dataclasses.dataclass(frozen=True)
class _Read:
    stat: tuple[int, int]
    places: tuple[Place, ...]
    unreadable: int


class GroupIndex:
    """The groups of one run's directory. Methods can be called from several threads.

    Attributes:
        directory: ``RUN/groups``; it does not need to exist yet.
    """

    def __init__(self, run: pathlib.Path):
        self.directory = run / "groups"
        self._files: dict[str, _Read] = {}
        self._waiting = 0
        self._lock = threading.Lock()

    def refresh(self, *, seconds: float | None = None) -> bool:
        """Reads files that are new or have changed; returns whether all are read.

        Args:
            seconds: stop after the file that exceeds this time; the next call continues.
        """
        began = time.monotonic()
        with self._lock:
            found = _listed(self.directory)
            for name in self._files.keys() - found.keys():
                del self._files[name]
            todo = [n for n, stat in found.items() if n not in self._files or self._files[n].stat != stat]
            self._waiting = len(todo)
            for name in todo:
                with contextlib.suppress(FileNotFoundError):
                    self._files[name] = _read(self.directory / name, found[name])
                self._waiting -= 1
                if seconds is not None and time.monotonic() - began > seconds:
                    break
            return not self._waiting

    @property
    def progress(self) -> tuple[int, int]:
        """(files read, files found by the last refresh)."""
        return len(self._files), len(self._files) + self._waiting

    @property
    def unreadable(self) -> int:
        """Number of lines that are not groups; they are left out."""
        return sum(f.unreadable for f in list(self._files.values()))

    def places(self) -> list[Place]:
        """All groups read so far, by step and place in the step."""
        files = dict(self._files)
        return [place for name in sorted(files, key=_step) for place in files[name].places]

    def step(self, step: int) -> list[Place]:
        """The groups of one step, in their order; no other file is read.

        Raises:
            UserError: there is no such step.
        """
        name = f"step_{step:06d}.jsonl"
        with self._lock:
            stat = _listed(self.directory, name).get(name)
            if stat is None:
                raise UserError(f"{self.directory} has no step {step}; {self._steps()}")
            if name not in self._files or self._files[name].stat != stat:
                self._files[name] = _read(self.directory / name, stat)
            return list(self._files[name].places)

    def row(self, step: int, group: int) -> dict[str, Any]:
        """The line of one group, as data.

        Raises:
            UserError: there is no such group.
        """
        return self.read(self.place(step, group))

    def place(self, step: int, group: int) -> Place:
        """The place of one group. A deferred group is in the file of the next step.

        Raises:
            UserError: there is no such group.
        """
        places = self.step(step)
        if found := next((p for p in places if _name(p) == (step, group)), None):
            return found
        later = self.step(step + 1) if _listed(self.directory, f"step_{step + 1:06d}.jsonl") else []
        if found := next((p for p in later if _name(p) == (step, group)), None):
            return found
        known = [p.summary.group for p in places]
        has = f"it has {min(known)} to {max(known)}" if known else "its file holds no readable group"
        raise UserError(f"step {step} has no group {group}; {has}")

    def read(self, place: Place) -> dict[str, Any]:
        """The line of a place, as data.

        Raises:
            UserError: the file has changed or is missing.
        """
        try:
            return json.loads(self._bytes(place))
        except (OSError, *BAD) as error:
            raise UserError(f"{self.directory / place.file} changed while it was read; try again") from error

    def matches(self, place: Place, text: str) -> bool:
        """Whether the question, a criterion, an answer or a reference contains the text, ignoring letter case."""
        wanted = text.casefold()
        with contextlib.suppress(OSError, *BAD):
            raw = self._bytes(place)
            escaped = json.dumps(wanted, ensure_ascii=False)[1:-1]
            if escaped in raw.decode("utf-8", "replace").casefold():  # most groups end here without being parsed
                return any(wanted in one.casefold() for one in _texts(json.loads(raw)))
        return False

    def newest_step(self) -> int:
        """The last step with groups.

        Raises:
            UserError: there are none.
        """
        names = _listed(self.directory)
        if not names:
            raise UserError(f"{self.directory} holds no groups; expected the directory of a run with log.groups=True")
        return _step(max(names, key=_step))

    def neighbours(self, place: Place) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
        """(step, group) of the groups before and after a place."""
        step = _step(place.file)
        here = self.step(step)
        at = next((i for i, p in enumerate(here) if p.offset == place.offset), 0)
        steps = [_step(name) for name in _listed(self.directory)]
        before, after = [s for s in steps if s < step], [s for s in steps if s > step]
        last = here[:at] or (self.step(before[-1]) if before else [])
        first = here[at + 1 :] or (self.step(after[0]) if after else [])
        return _name(last[-1]) if last else None, _name(first[0]) if first else None

    def _bytes(self, place: Place) -> bytes:
        with open(self.directory / place.file, "rb") as file:
            file.seek(place.offset)
            return file.read(place.length)

    def _steps(self) -> str:
        steps = [_step(name) for name in _listed(self.directory)]
        return (
            f"it has {min(steps)} to {max(steps)}" if steps else "expected the directory of a run with log.groups=True"
        )


def _name(place: Place) -> tuple[int, int]:
    return place.summary.step, place.summary.group


def _step(name: str) -> int:
    found = re.fullmatch(r"step_(\d+)\.jsonl", name)
    return int(found[1]) if found else -1


def _listed(directory: pathlib.Path, pattern: str = "step_*.jsonl") -> dict[str, tuple[int, int]]:
    """Name -> (time of the last change, size) of the step files, in the order of their steps."""
    found = {}
    for path in directory.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            if _step(path.name) >= 0:
                found[path.name] = (stat.st_mtime_ns, stat.st_size)
    return dict(sorted(found.items(), key=lambda one: _step(one[0])))


def _read(path: pathlib.Path, stat: tuple[int, int]) -> _Read:
    places, unreadable, offset, number = [], 0, 0, 0
    with open(path, "rb") as lines:
        for line in lines:
            if line.strip():
                try:
                    places.append(Place(path.name, stat[0], offset, len(line), summary(json.loads(line)), number))
                except BAD:
                    unreadable += 1
                number += 1
            offset += len(line)
    return _Read(stat, tuple(sorted(places, key=_name)), unreadable)


def _texts(row: dict[str, Any]) -> Iterator[str]:
    yield str(row["question"])
    yield str(row["prompt_id"])
    for item in (*row["rubric"], *row["answers"], *row["references"]):
        yield str(item["text"])
        yield from (str(c["text"]) for c in item.get("rubric", ()))
