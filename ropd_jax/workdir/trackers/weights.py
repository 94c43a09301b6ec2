"""Weights & Biases (extra ``wandb``): metrics, the config, and the groups of each step as a table.

The user's environment sets the destination: WANDB_PROJECT (by default ropd_jax), WANDB_ENTITY, WANDB_MODE=offline, ...
Code, git state, the command line and system metrics are not sent. Offline files are in ``RUN/wandb``.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ropd_jax.workdir.trackers.base import Start

NAME = "wandb"


class WeightsAndBiases:
    """One run at W&B; a resumed run continues it under its id. A step is logged as the metric ``step``, the x-axis of
    all others, because W&B's own counter cannot go back to a repeated step."""

    def __init__(self) -> None:
        self._run: Any = None

    def start(self, run: Start) -> None:
        import wandb

        known = run.known_id(NAME)
        name = known or uuid.uuid4().hex[:12]
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        config = dict(run.config) | ({"forked_from": dict(run.forked_from)} if run.forked_from else {})
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ropd_jax"),
            id=name,
            name=run.name,
            resume="allow" if known else None,
            dir=str(run.files),
            config=config,
            settings=settings,
            reinit="create_new",
        )
        run.keep_id(NAME, name)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        self._run.log({"step": step} | {name: value for name, value in values.items() if value is not None})

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        if rows:
            table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            self._run.log({"step": step, "groups": table})

    def finish(self, code: int) -> None:
        self._run.finish(exit_code=code)
