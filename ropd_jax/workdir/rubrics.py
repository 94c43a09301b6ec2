"""The rubrics of a run as a data set: one row for each rubric of each prompt, with its origin.

    {"id": "chain_sum-1-7", "question": "...", "answer": "16", "rubric": [{"criterion": "...", "points": 5, ...}],
     "sha": "...", "steps": [0, 12], "reward_mean": 0.61, "lineage": {"step": 0, "model": "...", ...}}

A row is also a question for `ropd_jax.data.jsonl`: another run can train on it with ``rar.rubrics="published"``.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from ropd_jax.types import Judgement, UserError
from ropd_jax.utils import paths
from ropd_jax.utils.files import write_atomic
from ropd_jax.workdir.groups import StoredGroup, read_groups


def rubric_rows(groups: Iterable[StoredGroup], *, latest: bool = False) -> list[dict[str, Any]]:
    """The rubrics of these groups, in the order in which they were first used.

    Args:
        latest: keep only the last rubric of each prompt.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    rewards: dict[tuple[str, str], list[float]] = {}
    for group in groups:
        for judgement in group.judgement.parts or (group.judgement,):
            if judgement.rubric is None:
                continue
            key = group.prompt.id, judgement.rubric.sha
            if latest:
                found = {k: v for k, v in found.items() if k[0] != key[0] or k == key}
            row = found.setdefault(key, _row(group, judgement))
            if group.step not in row["steps"]:
                row["steps"].append(group.step)
            rewards.setdefault(key, []).extend(r for r in judgement.taught if r is not None)
    for key, row in found.items():
        known = rewards[key]
        row["reward_mean"] = sum(known) / len(known) if known else None
    return list(found.values())


def _row(group: StoredGroup, judgement: Judgement) -> dict[str, Any]:
    assert judgement.rubric is not None
    return {
        "id": group.prompt.id,
        "question": group.prompt.question,
        "answer": group.prompt.answer,
        "rubric": [
            {"criterion": c.text, "points": c.points, "category": c.category} for c in judgement.rubric.criteria
        ],
        "sha": judgement.rubric.sha,
        "steps": [],
        "reward_mean": None,
        "lineage": None if judgement.lineage is None else dataclasses.asdict(judgement.lineage),
    }


def export_rubrics(
    run: str | os.PathLike[str], out: str = "", *, steps: tuple[int, int] | None = None, latest: bool = False
) -> tuple[int, list[str]]:
    """(number of rubrics, files written).

    Args:
        out: a ``.jsonl`` or ``.parquet`` file; "" writes ``rubrics.jsonl`` into the run's directory, and
            ``rubrics.parquet`` if pyarrow is installed.
        steps, latest: see `read_groups` and `rubric_rows`.

    Raises:
        UserError: no groups, no rubrics, an unsupported file ending, or pyarrow is missing.
    """
    ending = pathlib.PurePath(out).suffix
    if out and ending not in (".jsonl", ".parquet"):
        raise UserError(f"{out}: rubrics are written as .jsonl or .parquet, not {ending or 'without an ending'}")
    parquet = importlib.util.find_spec("pyarrow") is not None
    if ending == ".parquet" and not parquet:
        raise UserError(f"{out} needs pyarrow: pip install pyarrow, or name a .jsonl file")
    rows = rubric_rows(read_groups(run, steps=steps), latest=latest)
    if not rows:
        raise UserError(f"{run} has no rubrics; expected a run of a method that has them, e.g. ropd or rar")
    base = os.fspath(run).rstrip("/")
    files = [out] if out else [f"{base}/rubrics.jsonl", *([f"{base}/rubrics.parquet"] if parquet else [])]
    for name in files:
        with paths.written(name) as target:
            if name.endswith(".parquet"):
                _write_parquet(rows, target)
            else:
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                write_atomic(target, lines, private=True)
    return len(rows), files


def _write_parquet(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path.touch(mode=0o600)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
