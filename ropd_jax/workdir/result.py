"""``result.json``: the numbers of a finished run, and the table that shows them. Imports no jax."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from ropd_jax.types import UserError
from ropd_jax.utils import tables
from ropd_jax.utils.files import finite, write_atomic
from ropd_jax.utils.paths import AnyPath, as_path
from ropd_jax.utils.writing import essential

RESULT_ROWS = (  # (key, label, format)
    ("accuracy_before", "held-out accuracy before (greedy)", "{:.1%}"),
    ("accuracy_after", "held-out accuracy after (greedy)", "{:.1%}"),
    ("sampled_accuracy_before", "held-out accuracy before (sampled)", "{:.1%}"),
    ("sampled_accuracy_after", "held-out accuracy after (sampled)", "{:.1%}"),
    ("heldout_n", "held-out questions", "{:,}"),
    ("steps", "optimizer steps", "{:,}"),
    ("seconds", "seconds", "{:,.1f}"),
    ("groups_total", "groups", "{:,}"),
    ("groups_unscored", "groups unscored", "{:,}"),
    ("seed", "seed", "{}"),
    ("drift_alarms", "drift alarm at steps", "{}"),
)


@dataclasses.dataclass(frozen=True)
class Result:
    """The numbers of a finished run. Prints as a table; values are accessed as ``result["accuracy_after"]``.

    Attributes:
        workdir: the run's directory.
        values: the contents of ``result.json``.
        written: False on the hosts that do not write the run's files.
    """

    workdir: pathlib.PurePath
    values: Mapping[str, Any]
    written: bool = True

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @property
    def accuracy_before(self) -> float | None:
        """Held-out accuracy (greedy) before the first step; None if nothing could be graded."""
        return self.values.get("accuracy_before")

    @property
    def accuracy_after(self) -> float | None:
        """Held-out accuracy (greedy) after the last step; None if nothing could be graded."""
        return self.values.get("accuracy_after")

    def __str__(self) -> str:
        console = tables.console(io.StringIO(), width=100)
        console.print(final_table(self.values))
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]

    __repr__ = __str__


def final_table(result: Mapping[str, Any]) -> Table:
    """The result as a table; ``KEY_interval`` ([low, high]) is shown after KEY, an unknown value as ``unknown``."""
    table = Table(title="result", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for key, label, form in RESULT_ROWS:
        if key not in result or result[key] == []:
            continue
        value = result[key]
        text = "unknown" if value is None else form.format(value)
        interval = result.get(f"{key}_interval")
        if value is not None and interval is not None:
            text += f"  [{form.format(interval[0])}, {form.format(interval[1])}]"
        table.add_row(label, text)
    if (judge := result.get("calibration")) and judge["kappa"]["value"] is not None:
        table.add_row("kappa of the verifier, as calibrated", f"{judge['kappa']['value']:.2f}")
    return table


def write_result(workdir: str | os.PathLike[str], result: Mapping[str, Any]) -> pathlib.Path:
    """Writes ``result.json`` atomically; NaN and infinities, at any depth, become ``null``."""
    path = pathlib.Path(workdir) / "result.json"
    with essential(path):
        write_atomic(path, json.dumps(_plain(result), indent=2, ensure_ascii=False) + "\n")
    return path


def read_result(workdir: AnyPath) -> dict[str, Any]:
    """The numbers that `write_result` wrote.

    Raises:
        UserError: there is no ``result.json``, or it is not JSON.
    """
    path = as_path(workdir) / "result.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); expected the result of a finished run") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | bool):
        return value
    return finite(value)
