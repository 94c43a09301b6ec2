"""The runs of a folder next to each other: the progress of each, and the differences of several, as plain data."""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ropd_jax.types import UserError
from ropd_jax.utils.files import finite, read_json
from ropd_jax.workdir.changes import flat_defaults, flatten
from ropd_jax.workdir.config import with_new_names
from ropd_jax.workdir.metrics import read_metrics
from ropd_jax.workdir.status import read_status

SILENT_S = 60.0  # a run that has written nothing for this long does not count as running
Stat = tuple[int, int]


def config_of(run: pathlib.Path) -> dict[str, Any]:
    """The run's config with current names of keys, and without secrets in addresses; {} if it cannot be read."""
    try:
        stored = read_json(run / "config.json", optional=True)
    except UserError:
        return {}
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        return with_new_names(stored)
    return {}


def changes(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The keys that differ from the defaults; ``known`` is False for a key that this version does not have."""
    defaults = flat_defaults()
    flat = flatten(config)
    return [
        {"key": key, "value": value, "default": defaults.get(key), "known": key in defaults}
        for key, value in sorted(flat.items())
        if key not in defaults or value != defaults[key]
    ]


class Overview:
    """The progress of each run. A run's metrics are read again only if they have changed."""

    def __init__(self) -> None:
        self._read: dict[pathlib.Path, tuple[Stat, dict[str, Any]]] = {}

    def of(self, name: str, run: pathlib.Path) -> dict[str, Any]:
        """One run: method, seed, steps, step, newest reward and accuracy, number of drift alarms, and its state.

        The state is ``finished``, ``running``, ``ended`` (stopped before its last step), ``silent`` (nothing written
        for `SILENT_S` seconds: probably killed) or ``unknown``; ``age_s`` is the seconds since its last write.
        """
        config, status = config_of(run), read_status(run)
        numbers, wrote = self._numbers(run)
        times = [status.get("at"), wrote]
        age = min((max(0.0, time.time() - t) for t in times if t is not None), default=None)
        state = "unknown" if age is None else "silent" if age > SILENT_S else "running"
        if status.get("state") == "ended":
            state, age = "ended", status["age_s"]
        if (run / "result.json").is_file():
            state = "finished"
        return {
            "name": name,
            "method": config.get("method"),
            "seed": config.get("seed"),
            "steps": config.get("steps"),
            "state": state,
            "age_s": age,
            **numbers,
        }

    def _numbers(self, run: pathlib.Path) -> tuple[dict[str, Any], float | None]:
        path = run / "metrics.jsonl"
        try:
            found = path.stat()
        except OSError:
            return {"done": None, "reward": None, "accuracy": None, "alarms": 0}, None
        stat = (found.st_mtime_ns, found.st_size)
        if self._read.get(path, ((0, 0), {}))[0] != stat:
            metrics = read_metrics(run)
            steps, rewards = metrics.get("reward/mean", ([], []))
            accuracies = [v for v in metrics.get("eval/accuracy", ((), ()))[1] if v is not None]
            self._read[path] = (
                stat,
                {
                    "done": max(steps, default=None),
                    "reward": finite(rewards[-1]) if rewards else None,
                    "accuracy": finite(accuracies[-1]) if accuracies else None,
                    "alarms": sum(bool(v) for v in metrics.get("eval/drift", ((), ()))[1]),
                },
            )
        return self._read[path][1], found.st_mtime


def compare(runs: Mapping[str, pathlib.Path]) -> dict[str, Any]:
    """Lines and differences of several runs.

    Runs whose configs differ only in ``seed`` form one line. A key that a run does not have has its default.

    Returns:
        ``lines``: ``label`` and ``runs`` of each; ``differences``: ``key``, the ``values`` of the lines, ``default``;
        ``running``: whether one of the runs has no result.
    """
    defaults = flat_defaults()
    flat = {name: {**defaults, **flatten(config_of(run))} for name, run in runs.items()}
    lines: dict[str, list[str]] = {}
    for name, config in flat.items():
        same = json.dumps({k: v for k, v in config.items() if k != "seed"}, sort_keys=True)
        lines.setdefault(same, []).append(name)
    configs = [flat[names[0]] for names in lines.values()]
    keys = sorted(set().union(*configs) - {"seed"}) if configs else []
    return {
        "lines": [{"label": _label(names), "runs": names} for names in lines.values()],
        "differences": [
            {"key": k, "values": [c.get(k) for c in configs], "default": defaults.get(k), "known": k in defaults}
            for k in keys
            if any(c.get(k) != configs[0].get(k) for c in configs)
        ],
        "running": any(not (run / "result.json").is_file() for run in runs.values()),
    }


def _label(names: Sequence[str]) -> str:
    """``a`` for one run; ``a (3 seeds)`` for a_s0, a_s1 and a_s2."""
    if len(names) == 1:
        return names[0]
    shared = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = re.sub(r"[_\-.=](s|seed)?[_\-.=]*$", "", "".join(letters[0] for letters in shared))
    return f"{common or names[0]} ({len(names)} seeds)"
