"""Reports of other commands about a run: benchmark results, calibrations and second judgements. Plain data.

    ropd eval, ropd grade --out       results of benchmarks (``per_problem``)
    ropd calibrate-judge --out        reports of a verifier (``ropd.calibration.v1``)
    ropd rejudge --out                two verifiers on the same answers (``advantage_signs``)

They are found by their content, in the run's directory and in the viewed folder. A page names a report by its path
below that folder; only paths that were found are read. A file is read again only if it has changed.
"""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ropd_jax.teacher.calibration import SCHEMA_VERSION
from ropd_jax.types import UserError
from ropd_jax.utils.files import whole_rows
from ropd_jax.viewer.index import GroupIndex

PATTERNS = ("*.json", "*/*.json", "eval/*/*.json", "*/eval/*/*.json", "*/*/*.json", "*/*/*/result.json")
LARGEST = 64 << 20  # bytes of a report
SKIPPED = {"config.json", "provenance.json", "status.json", "spent.json", "settings.json"}
MOST = 500  # maximum number of cells, problems and criteria shown
SHORT = 4_000  # characters of an answer
BENCHMARK, CALIBRATION, REJUDGE = "benchmark", "calibration", "rejudge"


class Reports:
    """The reports below a folder. Methods can be called from several threads."""

    def __init__(self, root: pathlib.Path):
        self._root = root
        self._read: dict[pathlib.Path, tuple[tuple[int, int], str, Any]] = {}

    def of_kind(self, kind: str) -> dict[str, tuple[pathlib.Path, dict[str, Any]]]:
        """Name -> (file, content) of each report of a kind, by name."""
        found = {}
        for path in self._files():
            with contextlib.suppress(OSError):
                stat = path.stat()
                stamp = (stat.st_mtime_ns, stat.st_size)
                if path not in self._read or self._read[path][0] != stamp:
                    self._read[path] = (stamp, *_content(path, stat.st_size))
                if self._read[path][1] == kind:
                    found[path.relative_to(self._root).as_posix()] = (path, self._read[path][2])
        return dict(sorted(found.items()))

    def _files(self) -> Iterator[pathlib.Path]:
        seen: set[pathlib.Path] = set()
        for pattern in PATTERNS:
            for path in self._root.glob(pattern):
                if path not in seen and path.name not in SKIPPED and "checkpoints" not in path.parts:
                    seen.add(path)
                    yield path


def _content(path: pathlib.Path, size: int) -> tuple[str, Any]:
    """(kind, content) of a file; ("", None) if it is not one of these."""
    if size > LARGEST:
        return "", None
    try:
        value = json.loads(path.read_bytes(), parse_constant=lambda name: None)
    except (OSError, ValueError, RecursionError):
        return "", None
    if not isinstance(value, dict):
        return "", None
    if isinstance(value.get("per_problem"), dict) and isinstance(value.get("benchmark"), str) and "value" in value:
        return BENCHMARK, value
    if value.get("schema_version") == SCHEMA_VERSION:
        return CALIBRATION, value
    if "advantage_signs" in value and "verifier" in value:
        return REJUDGE, value
    return "", None


# ------------------------------------------------------------------------------------------------------ benchmarks


def benchmarks(reports: Reports, run: pathlib.Path) -> dict[str, Any]:
    """Every result: ``name``, ``own`` (inside this run), benchmark, metric, value, counts; those of this run first."""
    rows = []
    for name, (path, r) in reports.of_kind(BENCHMARK).items():
        rows.append(
            {
                "name": name,
                "own": run in path.parents,
                "benchmark": r["benchmark"],
                "title": str(r.get("title", r["benchmark"])),
                "metric": r.get("metric"),
                "value": r["value"],
                "k": r.get("k"),
                "problems": r.get("problems"),
                "ungraded": (r.get("ungraded") or {}).get("frac"),
                "truncated": (r.get("truncated") or {}).get("frac"),
                "student": str(r.get("student", ""))[:200],
                "checkpoint": r.get("checkpoint"),
            }
        )
    return {"results": sorted(rows, key=lambda r: (not r["own"], r["benchmark"], r["name"]))}


def problems(reports: Reports, name: str, against: str = "") -> dict[str, Any]:
    """A result problem by problem, next to another one if ``against`` names it.

    Returns:
        ``result`` and ``earlier`` (without the problems), ``rows`` (``id``, ``value``, ``before``), ``others``: results
        that it can be compared with; with ``against`` also ``paired``: the difference with its interval, the problems
        that are better and worse, and the p-value of the exact sign test on them (McNemar's, if k is 1).

    Raises:
        UserError: an unknown name, or results that cannot be compared.
    """
    from ropd_jax.evaluation.results import compare  # importing it takes time and 40 MB, and few pages need it

    known = reports.of_kind(BENCHMARK)
    result = _one(known, name)
    earlier = _one(known, against) if against else None
    before = earlier["per_problem"] if earlier else {}
    rows = [{"id": i, "value": v, "before": before.get(i)} for i, v in result["per_problem"].items()]
    paired = None
    if earlier is not None:
        both = [(r["before"], r["value"]) for r in rows if r["before"] is not None and r["value"] is not None]
        better, worse = sum(b > a for a, b in both), sum(b < a for a, b in both)
        p = _sign_test(better, worse)
        paired = {**compare(earlier, result), "better": better, "worse": worse, "p": p}
    return {
        "result": _without_problems(result),
        "earlier": None if earlier is None else _without_problems(earlier),
        "rows": rows,
        "paired": paired,
        "others": [n for n, (_, r) in known.items() if n != name and r["benchmark"] == result["benchmark"]],
    }


def _sign_test(better: int, worse: int) -> float | None:
    """The two-sided p-value of this outcome in ``better + worse`` tosses of a coin; None without any.

    >>> _sign_test(5, 0)
    0.0625
    """
    n = better + worse
    if not n:
        return None
    tail = sum(math.comb(n, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**n)


def answers(reports: Reports, name: str, problem: str) -> dict[str, Any]:
    """The stored answers to one problem, from ``answers.jsonl`` next to the result; [] if there are none.

    Raises:
        UserError: an unknown name.
    """
    known = reports.of_kind(BENCHMARK)
    _one(known, name)
    rows = whole_rows(known[name][0].with_name("answers.jsonl"), lambda row: str(row.get("id")) == problem)
    return {
        "answers": [
            {"text": str(r.get("response", ""))[:SHORT], "truncated": r.get("finish_reason") == "length"}
            for r in rows[:64]
        ]
    }


def _one(known: Mapping[str, tuple[pathlib.Path, dict[str, Any]]], name: str) -> dict[str, Any]:
    if name not in known:
        raise UserError(f"{name!r:.120} is not a result of this folder; choose one from the list")
    return known[name][1]


def _without_problems(result: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k != "per_problem"}


# ----------------------------------------------------------------------------------------------------------- judge


def judge(reports: Reports, run: pathlib.Path, index: GroupIndex) -> dict[str, Any]:
    """Calibrations of verifiers, and this run's second judgements with the verdicts on which they differ.

    A report of ``ropd rejudge`` belongs to the run whose directory it names. Each cell has the ``group`` it links to.
    """
    calibrations = [{"name": n, **r} for n, (_, r) in reports.of_kind(CALIBRATION).items()]
    rejudged = []
    for name, (path, r) in reports.of_kind(REJUDGE).items():
        if run in path.parents or pathlib.PurePath(str(r.get("run", ""))).name == run.resolve().name:
            cells = r.get("cells") or []
            rejudged.append(
                {
                    "name": name,
                    **{k: v for k, v in r.items() if k not in ("cells", "criteria", "health", "calls", "prompts")},
                    "criteria": _placed(r.get("criteria") or [], index)[:MOST],
                    "cells": cells[:MOST],
                    "cells_total": len(cells) if "cells" in r else None,
                }
            )
    return {"calibrations": calibrations, "rejudged": rejudged}


def _placed(criteria: list[dict[str, Any]], index: GroupIndex) -> list[dict[str, Any]]:
    """Criteria on which the verifiers differ, with the place of their group; older reports have only the prompt."""
    differ = [c for c in criteria if c.get("agreement") is not None and c["agreement"] < 1][:MOST]
    places: dict[tuple[int, str], int] = {}
    for step in {c["step"] for c in differ if "group" not in c}:
        with contextlib.suppress(UserError):
            places |= {(step, p.summary.prompt_id): p.summary.group for p in index.step(step)}
    return [{**c, "group": c.get("group", places.get((c["step"], c["prompt_id"])))} for c in differ]
