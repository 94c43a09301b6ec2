"""TensorBoard: scalars in ``RUN/tensorboard``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ropd_jax.workdir.tensorboard import Board
from ropd_jax.workdir.trackers.base import Start


class TensorBoard:
    """Event files; a resumed run hides the steps that it repeats. Tables are not written."""

    def __init__(self) -> None:
        self._board: Board | None = None

    def start(self, run: Start) -> None:
        self._board = Board(run.files / "tensorboard", purge_step=run.first_step)

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        if self._board:
            self._board.log(step, values)

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        pass

    def finish(self, code: int) -> None:
        if self._board:
            self._board.close()
