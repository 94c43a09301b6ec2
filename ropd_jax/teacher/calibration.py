"""Reads a run's calibration report (``report.json`` of ``ropd calibrate-judge``), set by `teacher.calibration`."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from ropd_jax.teacher.roles.kinds import KINDS
from ropd_jax.types import UserError
from ropd_jax.utils.files import finite, one_line, read_json
from ropd_jax.utils.paths import local_file

SCHEMA_VERSION = "ropd.calibration.v1"


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The report at ``path``.

    Raises:
        UserError: the file is unreadable or not a report.
    """
    file = local_file(path, "teacher.calibration")
    if not file.is_file():
        raise UserError(f"teacher.calibration: no file {str(path)!r}; expected report.json of calibrate-judge")
    report = read_json(file)
    if report.get("schema_version") != SCHEMA_VERSION:
        seen = report.get("schema_version")
        raise UserError(
            f"{path}: schema_version is {seen!r:.60}; expected {SCHEMA_VERSION!r}, a report of ropd calibrate-judge"
        )
    return report


def summary(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Kappa and accuracy with intervals, form, model and labels from the report at ``path``; None if "".

    Raises:
        UserError: as `read_report`, or the report does not have the expected structure.
    """
    if not path:
        return None
    report = read_report(path)
    with one_line(path):
        overall, labels = report["overall"], report["labels"]
        return {
            "report": str(path),
            "sha": hashlib.sha256(local_file(path).read_bytes()).hexdigest()[:16],
            "model": str(report["verifier"]["model"])[:200],
            "form": str(report["verifier"]["form"])[:100],
            "template": str(report["verifier"]["template"])[:200],
            "labels": str(labels["source"])[:200],
            "labels_sha": str(labels["sha"])[:64],
            "verdicts": int(report["verdicts"]),
            **{name: _estimate(overall[name]) for name in ("kappa", "accuracy")},
        }


def reliability(path: str | os.PathLike[str]) -> dict[str, float | None]:
    """The reliability of each kind of criterion (`roles.kinds`), 0 to 1, or None if the report does not have it.

    Raises:
        UserError: as `summary`.
    """
    report = read_report(path)
    with one_line(path):
        found = {kind: report["kinds"].get(kind, {}).get("reliability") for kind in KINDS}
        for kind, value in found.items():
            if value is not None and not 0 <= float(value) <= 1:
                raise ValueError(f"reliability of {kind} is {value!r:.40}")
        return found


def _estimate(found: dict[str, Any]) -> dict[str, Any]:
    return {key: finite(found[key]) for key in ("value", "low", "high")}
