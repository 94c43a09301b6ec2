"""Held-out accuracy of a student."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ropd_jax.data.grader import grade
from ropd_jax.evaluation.stats import Estimate, accuracy

if TYPE_CHECKING:
    from ropd_jax.data.questions import Questions
    from ropd_jax.sampling.engine import EngineConfig
    from ropd_jax.types import RolloutGroup


def evaluate(
    sample: Callable,
    engines: dict[str, EngineConfig],
    params,
    questions: Questions,
    n: int,
    say: Callable[[str], None] = lambda text: None,
    answers: list[RolloutGroup] | None = None,
) -> dict[str, Any]:
    """Held-out accuracy of each engine on the first ``n`` questions, graded exactly.

    Args:
        sample: (engine, params, prompts, questions, seed=, step=) -> groups.
        engines: by the name that the metric gets, e.g. ``accuracy`` (greedy) and ``sampled_accuracy``.
        say: told how far it is.
        answers: the groups of the first engine are put there.

    Returns:
        ``eval/NAME`` with its 95 % interval, n, ungraded and truncated share.
    """
    metrics: dict[str, Any] = {}
    for name, engine in engines.items():
        grades, truncated = [], 0
        prompts = questions.prompts[:n]
        for done, group in enumerate(sample(engine, params, prompts, questions, seed=0, step=0)):
            say(f"evaluating {name} {done + 1}/{len(prompts)}")
            if answers is not None and not metrics:
                answers.append(group)
            grades += [grade(group.prompt, r.answer) for r in group.rollouts]
            truncated += sum(r.finish_reason == "length" for r in group.rollouts)
        estimate: Estimate = accuracy(grades)
        metrics |= {
            f"eval/{name}": estimate.value,
            f"eval/{name}_low": estimate.low,
            f"eval/{name}_high": estimate.high,
            f"eval/{name}_n": estimate.n,
            f"eval/{name}_ungraded": estimate.ungraded,
            f"eval/{name}_truncated_frac": truncated / max(len(grades), 1),
        }
    return metrics
