"""``log.trackers``: where a run's metrics are sent in addition to ``metrics.jsonl``. Imports no jax.

base.py          the tracker interface; `Trackers` calls those of a run, and a failure never ends the run
board.py         TensorBoard: event files in RUN/tensorboard
weights.py       Weights & Biases (extra ``wandb``)
flow.py          MLflow (extra ``mlflow``)

A new tracker is one file with a `Tracker` and one line in `KNOWN`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence

from ropd_jax.types import UserError
from ropd_jax.utils.suggest import near
from ropd_jax.workdir.trackers.base import Background, Start, Tracker, Trackers
from ropd_jax.workdir.trackers.board import TensorBoard
from ropd_jax.workdir.trackers.flow import MLflow
from ropd_jax.workdir.trackers.weights import WeightsAndBiases

__all__ = ["KNOWN", "Start", "Tracker", "Trackers", "check_trackers", "make_trackers"]

KNOWN: Mapping[str, tuple[str, Callable[[], Tracker]]] = {  # name -> (its package beyond the core, the tracker)
    "tensorboard": ("", TensorBoard),
    "wandb": ("wandb", lambda: Background(WeightsAndBiases())),
    "mlflow": ("mlflow", lambda: Background(MLflow())),
}


def check_trackers(names: Sequence[str]) -> None:
    """Reject unknown names, and trackers whose package is missing.

    Raises:
        UserError: with the name, and the known names or what to install.
    """
    for name in names:
        if name not in KNOWN:
            raise UserError(f"log.trackers has {name!r:.40}; {near(name, KNOWN)}")
        package = KNOWN[name][0]
        if package and importlib.util.find_spec(package) is None:
            raise UserError(f"log.trackers has {name!r}, which needs {package}; run pip install 'ropd_jax[{name}]'")


def make_trackers(names: Sequence[str], start: Start) -> Trackers:
    """The trackers of a run, started.

    Raises:
        UserError: see `check_trackers`.
    """
    check_trackers(names)
    return Trackers({name: KNOWN[name][1]() for name in dict.fromkeys(names)}, start)
