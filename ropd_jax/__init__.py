"""ropd_jax: rubric-based on-policy distillation (arXiv 2605.07396) in JAX.

    import ropd_jax as ropd

    cfg = ropd.load_config("quickstart")
    result = ropd.train(cfg, "runs/quickstart")

The names below are documented (docs/api.md) and stable; everything else can change. They are loaded when they are first
used, so that ``import ropd_jax`` takes no time and jax is not imported before it is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_HOME = {  # public name -> its module; "module:name" if its name there is different
    "BudgetError": "teacher.clients.errors",
    "Interrupted": "utils.interrupt",
    "Judgement": "types",
    "Message": "types",
    "Method": "methods.base",
    "Prompt": "types",
    "Rollout": "types",
    "RolloutGroup": "types",
    "Rubric": "types",
    "Teacher": "teacher",
    "TeacherError": "teacher.clients.errors",
    "TooManyFailures": "training.failure_gate",
    "UserError": "types",
    "default_config": "configs:default",
    "evaluate": "evaluation.run",
    "judge": "training.by_hand",
    "load_config": "configs",
    "load_student": "workdir.policy",
    "make_teacher": "training.setup",
    "open_run": "workdir.run",
    "sample": "sampling.sample",
    "train": "train",
    "update": "training.by_hand",
}

if TYPE_CHECKING:
    from ropd_jax.configs import default as default_config  # noqa: F401 - public under this name
    from ropd_jax.configs import load_config as load_config
    from ropd_jax.evaluation.run import evaluate as evaluate
    from ropd_jax.methods.base import Method as Method
    from ropd_jax.sampling.sample import sample as sample
    from ropd_jax.teacher import BudgetError as BudgetError
    from ropd_jax.teacher import Teacher as Teacher
    from ropd_jax.teacher import TeacherError as TeacherError
    from ropd_jax.train import train as train
    from ropd_jax.training.by_hand import judge as judge
    from ropd_jax.training.by_hand import update as update
    from ropd_jax.training.failure_gate import TooManyFailures as TooManyFailures
    from ropd_jax.training.setup import make_teacher as make_teacher
    from ropd_jax.types import Judgement as Judgement
    from ropd_jax.types import Message as Message
    from ropd_jax.types import Prompt as Prompt
    from ropd_jax.types import Rollout as Rollout
    from ropd_jax.types import RolloutGroup as RolloutGroup
    from ropd_jax.types import Rubric as Rubric
    from ropd_jax.types import UserError as UserError
    from ropd_jax.utils.interrupt import Interrupted as Interrupted
    from ropd_jax.workdir.policy import load_student as load_student
    from ropd_jax.workdir.run import open_run as open_run

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ropd_jax' has no attribute {name!r}")
    module, _, other = _HOME[name].partition(":")
    value = getattr(importlib.import_module(f"ropd_jax.{module}"), other or name)
    globals()[name] = value  # skips this function from now on, and replaces the module ropd_jax.train of the same name
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
