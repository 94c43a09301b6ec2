"""MLflow (extra ``mlflow``): metrics, the config as parameters, and the groups of each step as a JSON artifact.

MLFLOW_TRACKING_URI is the server; without it, files are in ``RUN/mlruns``. MLFLOW_EXPERIMENT_NAME is the experiment,
by default ropd_jax. ``mlflow ui --backend-store-uri RUN/mlruns`` shows them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ropd_jax.workdir.trackers.base import Start

NAME = "mlflow"
BATCH = 100  # parameters per request; MLflow accepts no more
LONGEST = 500  # characters of a parameter's value


class MLflow:
    """One run at MLflow; a resumed run continues it under its id, and its repeated steps are written again."""

    def __init__(self) -> None:
        self._client: Any = None
        self._id = ""

    def start(self, run: Start) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri:  # MLflow's file store must be requested; a database would need more packages
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (run.files / "mlruns").resolve().as_uri()
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        self._id = run.known_id(NAME)
        if self._id:
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(self._experiment(), run_name=run.name).info.run_id
        run.keep_id(NAME, self._id)
        known = dict(_flat(run.config)) | dict(_flat({"forked_from": run.forked_from}))
        params = [Param(name, str(value)[:LONGEST]) for name, value in known.items()]
        for i in range(0, len(params), BATCH):
            self._client.log_batch(self._id, params=params[i : i + BATCH])

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ropd_jax")
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in values.items() if value is not None]
        self._client.log_batch(self._id, metrics=metrics)

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = list(rows[0]) if rows else []
        data = [list(row.values()) for row in rows]
        self._client.log_dict(self._id, {"columns": columns, "data": data}, f"groups/step_{step:06d}.json")

    def finish(self, code: int) -> None:
        self._client.set_terminated(self._id, "FAILED" if code else "FINISHED")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
