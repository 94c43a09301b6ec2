"""Metrics of a step and of a run: those of rollouts and rewards, and the contents of ``result.json``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ropd_jax.core.advantages import Advantages
from ropd_jax.data.grader import grade
from ropd_jax.evaluation.stats import accuracy
from ropd_jax.teacher.health import step_health
from ropd_jax.teacher.scripted.bias import gold, quality
from ropd_jax.text.retokenize import retokenized
from ropd_jax.text.tokenizer import Tokenizer
from ropd_jax.types import Judgement, Rollout, RolloutGroup


def step_metrics(
    groups: Sequence[RolloutGroup],
    judgements: Sequence[Judgement],
    advantages: Advantages,
    reward_PG: np.ndarray,
    valid_PG: np.ndarray,
    sample_s: float,
    tokenizer: Tokenizer,
    grades: Sequence[Sequence[bool | None]],
) -> dict[str, Any]:
    """Metrics of the step's rollouts, rewards and failures; the mean of an empty set is None.

    Args:
        grades: `exact_grades` of the groups.
    """
    rollouts = [r for g in groups for r in g.rollouts]
    scored = reward_PG[valid_PG]
    reference = [j.rubric.score(v) for j in judgements if j.rubric for v in j.reference_passed if v is not None]
    valid_P, informative_P = (np.asarray(x).any(axis=1) for x in (advantages.valid_PG, advantages.informative_PG))
    metrics = {
        "reward/mean": float(scored.mean()) if scored.size else None,
        "reward/std": float(scored.std()) if scored.size else None,
        "reward/reference_mean": float(np.mean(reference)) if reference else None,
        "teacher/unscored_frac": float(1 - valid_PG.mean()),
        "group/invalid_frac": float(1 - valid_P.mean()),
        "group/zero_variance_frac": float((valid_P & ~informative_P).mean()),
        "sample/accuracy": accuracy([g for row in grades for g in row]).value,
    }
    if rollouts:
        metrics["sample/tokens_per_s"] = sum(len(r.tokens_T) for r in rollouts) / sample_s
        metrics["sample/length_mean"] = float(np.mean([len(r.tokens_T) for r in rollouts]))
        differ, total = retokenized(tokenizer, groups)
        metrics["sample/retokenized_frac"] = differ / total
        metrics["sample/cut_mass"] = cut_mass(rollouts)
        metrics["sample/truncated_frac"] = float(np.mean([r.finish_reason == "length" for r in rollouts]))
    metrics |= reward_parts(judgements)
    if any(j.weights for j in judgements):
        whole = [j.rubric.score(row) for j in judgements if j.rubric for row in j.passed if row is not None]
        metrics["reward/all_criteria_mean"] = float(np.mean(whole)) if whole else None
    causes = Counter(c for j in judgements for c in j.causes if c is not None)
    if any(j.rubric for j in judgements):
        metrics |= step_health(judgements)
    return metrics | {f"reward/unscored_{cause}": n for cause, n in causes.items()}


def exact_grades(groups: Sequence[RolloutGroup], judgements: Sequence[Judgement]) -> list[list[bool | None]]:
    """The exact grade of each answer of each group, taken from the judgement if it has one."""
    return [
        list(j.exact)
        if any(right is not None for right in j.exact)
        else [grade(g.prompt, r.answer) for r in g.rollouts]
        for g, j in zip(groups, judgements, strict=True)
    ]


def pass_rates(
    groups: Sequence[RolloutGroup], judgements: Sequence[Judgement], grades: Sequence[Sequence[bool | None]]
) -> dict[str, float]:
    """The pass rate of each group's prompt, by prompt id: the share of right answers if exact grades are known, else
    the mean reward, clipped to 0..1. A group for which neither is known is left out."""
    found = {}
    for group, judgement, row in zip(groups, judgements, grades, strict=True):
        exact = [float(right) for right in row if right is not None]
        known = exact or [r for r in judgement.taught if r is not None]
        if known:
            found[group.prompt.id] = min(max(float(np.mean(known)), 0.0), 1.0)
    return found


def source_metrics(
    names: Sequence[str], groups: Sequence[RolloutGroup], reward_PG: np.ndarray, valid_PG: np.ndarray
) -> dict[str, Any]:
    """For each source of a mixture: its groups in the step, their share, and the mean reward (None without rewards)."""
    metrics: dict[str, Any] = {}
    for name in names:
        own_P = np.array([g.prompt.source == name for g in groups], bool)
        rewards = reward_PG[own_P][valid_PG[own_P]]
        metrics |= {
            f"source/{name}_groups": int(own_P.sum()),
            f"source/{name}_share": float(own_P.mean()),
            f"source/{name}_reward_mean": float(rewards.mean()) if rewards.size else None,
        }
    return metrics


def reward_parts(judgements: Sequence[Judgement]) -> dict[str, float | None]:
    """The components of the rewards (``rewards.exact_weight``): the mean of the method's part and of the exact part,
    and the share of answers without an exact grade. Empty if no reward has an exact part."""
    exact = [right for j in judgements for right in j.exact]
    if not exact:
        return {}
    taught = [r for j in judgements for r in j.taught if r is not None]
    known = [right for right in exact if right is not None]
    return {
        "reward/rubric_mean": float(np.mean(taught)) if taught else None,
        "reward/exact_mean": float(np.mean(known)) if known else None,
        "reward/without_exact_frac": 1.0 - len(known) / len(exact),
    }


def gold_metrics(groups: Sequence[RolloutGroup], judgements: Sequence[Judgement]) -> dict[str, float | None]:
    """What the scripted judge would report without its biases (``teacher.scripted.bias``). ``gold/reward_mean`` is the
    mean reward under the truths of the same rubrics; ``gold/gap_mean``, how far the rewards are above it;
    ``gold/quality_mean``, the quality of the answers independent of any rubric. None if nothing is known."""
    true, gaps, good = list[float](), list[float](), list[float]()
    for group, judgement in zip(groups, judgements, strict=True):
        answers = [r.answer for r in group.rollouts]
        good += quality(group.prompt.question, answers, judgement.references) or []
        if judgement.rubric is None or not judgement.passed:
            continue
        for known, reward in zip(gold(judgement.rubric, answers), judgement.passed, strict=True):
            if known is not None and reward is not None:
                true.append(known)
                gaps.append(judgement.rubric.score(reward) - known)
    means = {"reward": true, "gap": gaps, "quality": good}
    return {f"gold/{name}_mean": float(np.mean(x)) if x else None for name, x in means.items()}


def cut_mass(rollouts: Sequence[Rollout]) -> float:
    """The probability that ``sampling.top_k`` and ``top_p`` cut off, mean over the tokens; 0 if they keep all."""
    cut = [1.0 - np.exp(r.logp_T - r.drawn_logp_T) for r in rollouts if r.drawn_logp_T is not None]
    return max(float(sum(x.sum() for x in cut)) / sum(len(r.tokens_T) for r in rollouts), 0.0)  # rounding: -1e-8


def make_result(
    *,
    method: str,
    seed: int,
    steps: int,
    heldout_n: int,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    seconds: float,
    groups_total: int,
    groups_unscored: int,
    teacher: Mapping[str, Any],
    calibration: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The numbers of ``result.json``.

    Args:
        before, after: the held-out metrics (`training.heldout`) before the first and after the last step.
        teacher: `Teacher.metrics`.
        calibration: the verifier's measured reliability (`teacher.calibration.summary`); None if not measured.
    """
    result: dict[str, Any] = {"method": method, "seed": seed, "steps": steps, "heldout_n": heldout_n}
    for when, metrics in (("before", before), ("after", after)):
        for name in ("accuracy", "sampled_accuracy"):
            if f"eval/{name}" in metrics:
                result[f"{name}_{when}"] = metrics[f"eval/{name}"]
                result[f"{name}_{when}_interval"] = [metrics[f"eval/{name}_low"], metrics[f"eval/{name}_high"]]
                result[f"{name}_{when}_ungraded"] = metrics[f"eval/{name}_ungraded"]
                result[f"{name}_{when}_truncated_frac"] = metrics[f"eval/{name}_truncated_frac"]
    return result | {
        "seconds": round(seconds, 1),
        "groups_total": groups_total,
        "groups_unscored": groups_unscored,
        "teacher": dict(teacher),
        "calibration": None if calibration is None else dict(calibration),
        "jax": jax.__version__,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
