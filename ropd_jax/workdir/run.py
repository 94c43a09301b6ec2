"""A run's directory, opened for reading: ``run = open_run("runs/quickstart")``."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from etils import epath
from ml_collections import ConfigDict

from ropd_jax.types import UserError
from ropd_jax.utils.paths import as_path
from ropd_jax.workdir.config import stored_config
from ropd_jax.workdir.groups import StoredGroup, read_groups
from ropd_jax.workdir.metrics import read_metrics
from ropd_jax.workdir.result import Result, read_result

if TYPE_CHECKING:
    import jax
    import pandas

    from ropd_jax.weights.student import Student


@dataclasses.dataclass(frozen=True)
class StoredRun:
    """The files of a run, finished or not. Each access reads from disk or from the run's bucket."""

    directory: epath.Path

    @property
    def config(self) -> ConfigDict:
        """The config, unlocked; missing keys get their defaults."""
        return stored_config(self.directory)

    @property
    def result(self) -> Result:
        """The numbers of the finished run.

        Raises:
            UserError: the run has not finished.
        """
        return Result(self.directory, read_result(self.directory))

    def groups(self, steps: tuple[int, int] | None = None) -> list[StoredGroup]:
        """Every group with its references, rubric, verdicts, rewards and advantages.

        Args:
            steps: (first, end) of the steps to read, end excluded; None for all.
        """
        return list(read_groups(self.directory, steps=steps))

    def metrics(self) -> Mapping[str, tuple[list[int], list[float | None]]]:
        """Each metric as (steps, values); an unknown value is None."""
        return read_metrics(self.directory)

    def metrics_frame(self) -> pandas.DataFrame:
        """The metrics as a table: one row per step, one column per metric; an unknown value is NaN.

        Raises:
            UserError: pandas is not installed.
        """
        series = {name: dict(zip(*points, strict=True)) for name, points in self.metrics().items()}
        return _pandas().DataFrame(series).sort_index().rename_axis("step")

    def groups_frame(self, steps: tuple[int, int] | None = None) -> pandas.DataFrame:
        """The groups as a table: one row per rollout, with step, prompt, question, answer, reward, advantage, cause.

        Raises:
            UserError: pandas is not installed.
        """
        rows: list[dict[str, Any]] = [
            {
                "step": group.step,
                "prompt_id": group.prompt.id,
                "rollout": i,
                "question": group.prompt.question,
                "gold_answer": group.prompt.answer,
                "answer": text,
                "reward": group.judgement.rewards[i],
                "advantage": group.advantages[i],
                "unscored": group.judgement.causes[i],
            }
            for group in self.groups(steps)
            for i, text in enumerate(group.answers)
        ]
        return _pandas().DataFrame(rows).astype({"reward": float, "advantage": float})

    def student(self, step: int | None = None, *, mesh: jax.sharding.Mesh | None = None) -> Student:
        """The student after ``step`` steps; None is the newest checkpoint. See `policy.load_student`."""
        from ropd_jax.workdir.policy import load_student

        return load_student(self.directory, step=step, mesh=mesh)


def open_run(directory: str | os.PathLike[str]) -> StoredRun:
    """The run in a directory that `train` wrote, or in a bucket (``gs://bucket/runs/a``).

    Raises:
        UserError: the directory does not hold a run.
    """
    path = as_path(directory)
    if not (path / "config.json").is_file():
        raise UserError(f"{path} has no config.json; expected the directory of a run (ropd train --workdir)")
    return StoredRun(path)


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise UserError("this table needs pandas: pip install 'ropd_jax[notebooks]'") from error
    return pandas
