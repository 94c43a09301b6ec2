"""Does the training signal agree with correctness? The paper's signal study on stored rollouts (``ropd analyze``).

    auc          probability that a right answer scores higher than a wrong one, ties counted half (Mann and Whitney);
                 ``auc_in_group`` uses only pairs of one prompt and step, which is what an advantage compares
    bad_update   among the rollouts with a nonzero advantage, the share that pushes the wrong way: a right answer below
                 its group's mean, or a wrong one above (the paper's Table A4 gives no formula)
    pass rate    of the rubric's criteria by category, step by step (Table 5)
    agreement    share of criteria with the same verdict on a rollout and on most references (similarity to the teacher)

The signals are the rubric reward and those in a scores file: a teacher's log-prob, top-k overlap. Right and wrong are
decided by the gold answer; rollouts without one, and unscored ones, are left out and counted. Intervals are bootstraps
over prompts.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

import numpy as np
from rich.table import Table

from ropd_jax.data.grader import grade
from ropd_jax.types import UserError, answer_of
from ropd_jax.utils import tables
from ropd_jax.utils.files import numbered_rows, write_atomic
from ropd_jax.utils.paths import written
from ropd_jax.workdir.groups import StoredGroup, read_groups

log = logging.getLogger(__name__)
REWARD = "rubric"
_KEYS = ("step", "prompt_id", "sample")


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Every stored rollout, as arrays of length N.

    Attributes:
        step, group, prompt: of each; a group is one prompt at one step.
        right: True, False, or None if the gold answer is unknown.
        signals: values of each rollout by signal name, NaN if missing.
    """

    step: np.ndarray
    group: np.ndarray
    prompt: np.ndarray
    right: tuple[bool | None, ...]
    signals: dict[str, np.ndarray]


def rollouts_of(groups: Sequence[StoredGroup], scores: Mapping[tuple[int, str, int], Mapping[str, float]]) -> Rollouts:
    """The rollouts of stored groups; ``scores`` by (step, prompt id, sample) add signals."""
    names = sorted({name for row in scores.values() for name in row})
    prompts = {p: i for i, p in enumerate(dict.fromkeys(g.prompt.id for g in groups))}
    step, group, prompt, right = [], [], [], []
    signals: dict[str, list[float]] = {name: [] for name in (REWARD, *names)}
    for number, g in enumerate(groups):
        for sample, (text, reward) in enumerate(zip(g.answers, g.judgement.taught, strict=True)):
            step.append(g.step)
            group.append(number)
            prompt.append(prompts[g.prompt.id])
            right.append(grade(g.prompt, answer_of(text)))
            signals[REWARD].append(np.nan if reward is None else reward)
            more = scores.get((g.step, g.prompt.id, sample), {})
            for name in names:
                signals[name].append(more.get(name, np.nan))
    arrays = {name: np.asarray(values, float) for name, values in signals.items()}
    return Rollouts(np.asarray(step), np.asarray(group), np.asarray(prompt), tuple(right), arrays)


def read_scores(path: str | os.PathLike[str]) -> dict[tuple[int, str, int], dict[str, float]]:
    """More signals from JSONL: ``{"step": 3, "prompt_id": "p", "sample": 0, "teacher_logprob": -0.4}``.

    Raises:
        UserError: a row without the three keys, or with a value that is not a number.
    """
    found: dict[tuple[int, str, int], dict[str, float]] = {}
    for n, (_, row) in enumerate(numbered_rows(path), 1):
        values = {k: v for k, v in row.items() if k not in _KEYS and v is not None}
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values.values())
        if any(k not in row for k in _KEYS) or not numbers:
            raise UserError(f"{path}: row {n} is {row!r:.100}; expected {', '.join(_KEYS)} and numbers by name")
        found[int(row["step"]), str(row["prompt_id"]), int(row["sample"])] = values
    return found


# ---------------------------------------------------------------------------------------------------- numbers


def auc(values: np.ndarray, right: np.ndarray) -> float | None:
    """Area under the ROC curve; None if all are right or all are wrong.

    The probability that a right answer has a higher value than a wrong one, ties counted half. With values 1 2 2 3 and
    right = no no yes yes, three of the four pairs are won and one (2 against 2) is a tie: 3.5 / 4.
    """
    n_right, n_wrong = int(right.sum()), int((~right).sum())
    if not n_right or not n_wrong:
        return None
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]  # equal values share the mean of their ranks, from 1
    return float((rank[right].sum() - n_right * (n_right + 1) / 2) / (n_right * n_wrong))


def auc_in_group(values: np.ndarray, right: np.ndarray, group: np.ndarray) -> float | None:
    """`auc` over pairs within one group; None without a group that has both right and wrong answers."""
    won = pairs = 0.0
    for g in np.unique(group):
        mine = group == g
        area = auc(values[mine], right[mine])
        if area is not None:
            n = float(right[mine].sum() * (~right[mine]).sum())
            won, pairs = won + area * n, pairs + n
    return won / pairs if pairs else None


def bad_update(values: np.ndarray, right: np.ndarray, group: np.ndarray) -> float | None:
    """Among rollouts that differ from their group's mean, the share whose sign contradicts their correctness."""
    _, place, count = np.unique(group, return_inverse=True, return_counts=True)
    advantage = values - (np.bincount(place, values) / count)[place]
    moved = np.abs(advantage) > 1e-9
    return float(((advantage > 0) != right)[moved].mean()) if moved.any() else None


def signal_study(r: Rollouts, name: str, *, draws: int = 500, seed: int = 0) -> dict[str, Any]:
    """The study of one signal; unknown values are None."""
    known = np.array([x is not None for x in r.right]) & ~np.isnan(r.signals[name])
    right = np.array([bool(x) for x in r.right])[known]
    values, group, prompt = r.signals[name][known], r.group[known], r.prompt[known]
    area = auc(values, right) if len(values) else None
    found: dict[str, Any] = {
        "rollouts": int(known.sum()),
        "left_out": int((~known).sum()),
        "accuracy": float(right.mean()) if len(right) else None,
        "auc": area,
        "auc_interval": None,
        "auc_in_group": auc_in_group(values, right, group),
        "bad_update": bad_update(values, right, group),
    }
    if area is not None:
        members = [np.flatnonzero(prompt == p) for p in np.unique(prompt)]
        rng = np.random.default_rng(seed)
        areas = []
        for _ in range(draws):
            at = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
            if (drawn := auc(values[at], right[at])) is not None:
                areas.append(drawn)
        found["auc_interval"] = [float(x) for x in np.percentile(areas, [2.5, 97.5])] if areas else None
    return found


def over_training(r: Rollouts, name: str) -> list[dict[str, Any]]:
    """The study of each step separately, without intervals."""
    rows = []
    for step in np.unique(r.step):
        mine = r.step == step
        known = mine & np.array([x is not None for x in r.right]) & ~np.isnan(r.signals[name])
        right = np.array([bool(x) for x in r.right])[known]
        values, group = r.signals[name][known], r.group[known]
        rows.append(
            {
                "step": int(step),
                "mean": float(values.mean()) if len(values) else None,
                "accuracy": float(right.mean()) if len(right) else None,
                "auc": auc(values, right) if len(values) else None,
                "bad_update": bad_update(values, right, group) if len(values) else None,
            }
        )
    return rows


def criteria_over_training(groups: Sequence[StoredGroup]) -> list[dict[str, Any]]:
    """For each step: pass rate by category, agreement with the references, and the references' own pass rate."""
    rows = []
    for step in sorted({g.step for g in groups}):
        rates: dict[str, list[bool]] = {}
        alike: list[bool] = []
        teacher: list[bool] = []
        for g in groups:
            if g.step != step or g.judgement.rubric is None:
                continue
            references = [v for v in g.judgement.reference_passed if v is not None]
            teacher += [ok for v in references for ok in v]
            for k, criterion in enumerate(g.judgement.rubric.criteria):
                verdicts = [v[k] for v in g.judgement.passed if v is not None]
                rates.setdefault(criterion.category or "none", []).extend(verdicts)
                yes = sum(v[k] for v in references)
                if references and 2 * yes != len(references):  # a tie has no majority
                    alike += [v == (2 * yes > len(references)) for v in verdicts]
        rows.append(
            {
                "step": step,
                "pass_rate": {name: _mean(v) for name, v in sorted(rates.items())},
                "agreement": _mean(alike),
                "reference_pass_rate": _mean(teacher),
            }
        )
    return rows


def _mean(values: Iterable[bool]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


# --------------------------------------------------------------------------------------------------- the command


def main(run: str, *, steps: tuple[int, int] | None = None, scores: str = "", out: str = "") -> dict[str, Any]:
    """Analyses a run, prints and returns the study; writes ``analysis.json`` and ``analysis.png`` to ``out``.

    Raises:
        UserError: no groups, or a scores file that matches none of them.
    """
    found, r = analyse(list(read_groups(run, steps=steps)), read_scores(scores) if scores else {})
    found = {"run": str(run), **found}
    named = out or f"{run.rstrip('/')}/analysis"
    with written(named, "--out") as place:
        place.mkdir(parents=True, exist_ok=True)
        write_atomic(place / "analysis.json", json.dumps(found, indent=1) + "\n")
        draw(found, r, place / "analysis.png")
    show(found)
    log.info("data and figures: %s/analysis.json, %s/analysis.png", named, named)
    return found


def analyse(
    groups: Sequence[StoredGroup], scores: Mapping[tuple[int, str, int], Mapping[str, float]]
) -> tuple[dict[str, Any], Rollouts]:
    """(the study as plain data, its rollouts)."""
    r = rollouts_of(groups, scores)
    if scores and not any((~np.isnan(v)).any() for name, v in r.signals.items() if name != REWARD):
        raise UserError("the scores file matches no stored rollout; expected step, prompt_id and sample of this run")
    return {
        "groups": len(groups),
        "signals": {name: signal_study(r, name) for name in r.signals},
        "over_training": {name: over_training(r, name) for name in r.signals},
        "criteria": criteria_over_training(groups),
    }, r


def show(found: Mapping[str, Any], *, file: TextIO | None = None) -> None:
    """The signals as a table, and the pass rates of the first and the last third of the steps."""
    console = tables.console(file)
    table = Table("signal", "AUC", "95 %", "in group", "bad updates", "rollouts", "left out")
    for name, s in found["signals"].items():
        interval = "" if s["auc_interval"] is None else "{:.3f} to {:.3f}".format(*s["auc_interval"])
        numbers = [_text(s["auc"]), interval, _text(s["auc_in_group"]), _text(s["bad_update"], "{:.1%}")]
        table.add_row(name.replace("_", " "), *numbers, str(s["rollouts"]), str(s["left_out"]))
    console.print(table)
    rows = found["criteria"]
    third = max(1, len(rows) // 3)
    table = Table("criteria", "first third", "last third")
    for name in sorted({n for row in rows for n in row["pass_rate"]}):
        parts = (_average([row["pass_rate"].get(name) for row in part]) for part in (rows[:third], rows[-third:]))
        table.add_row(f"pass rate, {name}", *(_text(x, "{:.1%}") for x in parts))
    for key, label in (
        ("agreement", "agreement with the references"),
        ("reference_pass_rate", "references' pass rate"),
    ):
        parts = (_average([row[key] for row in part]) for part in (rows[:third], rows[-third:]))
        table.add_row(label, *(_text(x, "{:.1%}") for x in parts))
    console.print(table)


def _average(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _text(value: float | None, form: str = "{:.3f}") -> str:
    return "unknown" if value is None else form.format(value)


def draw(found: Mapping[str, Any], r: Rollouts, path: pathlib.Path) -> pathlib.Path:
    """Four panels: ROC curves, AUC over training, pass rates, agreement. The JSON file next to it has the data."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    roc, areas, rates, agreement = figure.subplots(2, 2).flat
    for name in r.signals:
        known = np.array([x is not None for x in r.right]) & ~np.isnan(r.signals[name])
        right = np.array([bool(x) for x in r.right])[known]
        if right.any() and not right.all():
            order = np.argsort(-r.signals[name][known], kind="stable")
            ends = np.append(np.diff(r.signals[name][known][order]) != 0, True)  # equal values are one point
            hits, false = (np.cumsum(x[order])[ends] / x.sum() for x in (right, ~right))
            label = tables.chart_label(f"{name} {found['signals'][name]['auc']:.3f}")
            roc.plot(np.append(0, false), np.append(0, hits), label=label, linewidth=1.6)
        rows = [row for row in found["over_training"][name] if row["auc"] is not None]
        areas.plot(
            [row["step"] for row in rows], [row["auc"] for row in rows], label=tables.chart_label(name), linewidth=1.6
        )
    roc.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle=":")
    steps = [row["step"] for row in found["criteria"]]
    for name in sorted({n for row in found["criteria"] for n in row["pass_rate"]}):
        values = [np.nan if (v := row["pass_rate"].get(name)) is None else v for row in found["criteria"]]
        rates.plot(steps, values, label=tables.chart_label(name), linewidth=1.6)
    for key, label in (("agreement", "rollouts' verdicts as the references'"), ("reference_pass_rate", "references")):
        values = [np.nan if row[key] is None else row[key] for row in found["criteria"]]
        agreement.plot(steps, values, label=label, linewidth=1.6)
    titles = ("right above wrong: ROC", "AUC by step", "criteria met, by category", "agreement with the teacher")
    for axes, title in zip((roc, areas, rates, agreement), titles, strict=True):
        axes.set_title(title, fontsize=11)
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=9, frameon=False)
    part = path.with_name(f".{path.name}.part.png")
    figure.savefig(part, dpi=110)
    os.replace(part, path)
    return path
