"""``ropd rejudge``: rescores the stored rollouts of a run with another verifier, prompt or rubric.

    1. read     the groups of RUN/groups/*.jsonl, and the config of the run with the changes of the command line
    2. judge    each group again: stored references, stored rubric (or a new one), new verdicts
    3. compare  rewards, ranks and signs of advantages, verdict by verdict, before you pay for a training run

With the same seed the answers are shown in the same order as in the run, so differences come from the verifier.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

import numpy as np
from ml_collections import ConfigDict
from rich.table import Table
from scipy import stats

from ropd_jax.teacher import Teacher, build_teacher
from ropd_jax.teacher.health import cohens_kappa, step_health
from ropd_jax.teacher.judge_group import judge
from ropd_jax.types import Judgement, UserError, answer_of
from ropd_jax.utils import tables
from ropd_jax.utils.every import Every
from ropd_jax.utils.files import write_atomic
from ropd_jax.utils.paths import as_path
from ropd_jax.workdir.config import stored_config
from ropd_jax.workdir.groups import StoredGroup, read_groups

log = logging.getLogger(__name__)

RUBRICS = ("stored", "fresh")
PROGRESS_S = 5.0  # seconds between two lines of progress
_EPS = 1e-9  # two rewards closer than this are equal


def run_config(run: str | os.PathLike[str]) -> ConfigDict:
    """The config of a run, unlocked; missing keys get their defaults.

    The tape is off, because the run's own must not be changed; ``teacher.tape.path`` and ``.mode`` select another one.

    Raises:
        UserError: ``run`` is not the directory of a run.
    """
    cfg = stored_config(run)
    cfg.teacher.tape.mode, cfg.teacher.tape.path = "off", ""
    cfg.teacher.index = ""  # the stored references are used
    cfg.teacher.rubric_reuse = "fresh"
    return cfg


def main(
    run: str | os.PathLike[str],
    teacher_cfg: ConfigDict,
    *,
    seed: int,
    steps: tuple[int, int] | None,
    rubric: str,
    out: str = "",
) -> dict[str, Any]:
    """Judges again, prints and returns the changes.

    Args:
        teacher_cfg: the section ``teacher`` of `run_config`, with the changes.
        seed: the seed for the order in which answers are shown.
        steps: (first, end) of the steps, the end not included; None for all.
        rubric: ``stored`` or ``fresh``.
        out: a JSON file for the whole comparison, "" for none.

    Raises:
        UserError: no groups, a teacher that cannot work, or ``out`` inside the run.
    """
    if rubric not in RUBRICS:
        raise UserError(f"--rubric={rubric} is unknown; expected {' or '.join(RUBRICS)}")
    if out and as_path(out).resolve().is_relative_to(as_path(run).resolve()):
        raise UserError(f"--out {out} is inside the run, which rejudge does not modify; choose another place")
    groups = list(read_groups(run, steps=steps))
    if not any(g.judgement.references for g in groups):
        raise UserError(f"{run}: no group has references to judge by; expected a run of method=ropd")
    needs = ("verify",) if rubric == "stored" else ("rubric", "verify")
    teacher = build_teacher(teacher_cfg, seed=seed, needs=needs)
    judged, after = asyncio.run(_judge_all(teacher, groups, fresh=rubric == "fresh", at_once=teacher_cfg.concurrency))
    found = compare(judged, after, same_rubric=rubric == "stored")
    found = {
        "run": str(run),
        "steps": sorted({g.step for g in judged}),
        "rubric": rubric,
        "prompts": teacher.prompt_shas,
        "verifier": {"before": run_config(run).teacher.verifier.to_dict(), "after": teacher_cfg.verifier.to_dict()},
        "groups_skipped": len(groups) - len(judged),
        **found,
        "calls": teacher.stats.as_metrics(),
    }
    if out:
        write_atomic(out, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    show(found)
    return found


async def _judge_all(
    teacher: Teacher, groups: Sequence[StoredGroup], *, fresh: bool, at_once: int
) -> tuple[list[StoredGroup], list[Judgement]]:
    """The groups that can be judged again (with references, and a rubric unless ``fresh``), and their judgements."""
    able = [g for g in groups if g.judgement.references and (fresh or g.judgement.rubric)]
    slots, done, progress = asyncio.Semaphore(max(1, 2 * at_once)), 0, Every(PROGRESS_S)

    async def one(group: StoredGroup) -> Judgement:
        nonlocal done
        old = group.judgement
        models = old.reference_models or ("unknown",) * len(old.references)
        async with slots:
            judgement = await judge(
                teacher,
                group.prompt,
                tuple(answer_of(text) for text in group.answers),
                step=group.step,
                references=list(zip(old.references, models, strict=True)),
                rubric=None if fresh or old.rubric is None else (old.rubric, old.lineage),
            )
        done += 1
        if progress():
            log.info("judged %d of %d groups", done, len(able))
        return judgement

    tasks = [asyncio.ensure_future(one(group)) for group in able]
    try:
        return able, list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await teacher.close()


# ---------------------------------------------------------------------------------------------------- compare


def compare(groups: Sequence[StoredGroup], after: Sequence[Judgement], *, same_rubric: bool) -> dict[str, Any]:
    """The differences between two judgements of the same groups, as plain data. Unknown values are None."""
    before = [g.judgement for g in groups]
    pairs = [_rewards(b, a) for b, a in zip(before, after, strict=True)]
    both = np.array([p for pair in pairs for p in pair], float).reshape(-1, 2)
    spearman = [r for pair in pairs if (r := _spearman(pair)) is not None]
    return {
        "groups": len(groups),
        "rollouts": sum(len(g.answers) for g in groups),
        "rollouts_scored_both": len(both),
        "reward_mean": {"before": _reward_mean(before), "after": _reward_mean(after)},
        "reward_changed_frac": _mean(abs(x - y) > _EPS for x, y in both),
        "pearson": _pearson(both),
        "spearman_within_groups": _mean(spearman),
        "spearman_groups": len(spearman),
        "rank_changed_frac": _mean(c for pair in pairs for c in _rank_changes(pair)),
        "best_changed_frac": _mean(c for pair in pairs if (c := _best_changed(pair)) is not None),
        "advantage_signs": _signs(pairs),
        "zero_variance_frac": {
            name: _mean(len({round(p[i], 9) for p in pair}) == 1 for pair in pairs if len(pair) > 1)
            for i, name in enumerate(("before", "after"))
        },
        "unscored": {name: _unscored(js) for name, js in (("before", before), ("after", after))},
        "health": {"before": step_health(before), "after": step_health(after)},
        **(
            _agreement(groups, after)
            if same_rubric
            else {"kappa": None, "kappa_by_points": {}, "criteria": [], "cells": []}
        ),
    }


Pair = list[tuple[float, float]]


def _rewards(before: Judgement, after: Judgement) -> Pair:
    pairs = zip(before.taught, after.taught, strict=True)
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _spearman(pair: Pair) -> float | None:
    """Rank correlation of one group; None if the rewards of a side are all equal."""
    x, y = np.array(pair, float).reshape(-1, 2).round(9).T
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(stats.spearmanr(x, y).statistic)


def _pearson(both: np.ndarray) -> float | None:
    if len(both) < 2 or np.ptp(both[:, 0]) < _EPS or np.ptp(both[:, 1]) < _EPS:
        return None
    return float(np.corrcoef(both.T)[0, 1])


def _rank_changes(pair: Pair) -> list[bool]:
    """For each rollout scored in both: whether its rank in the group changed (equal rewards share the mean rank)."""
    if len(pair) < 2:
        return []
    x, y = (stats.rankdata(column) for column in np.array(pair, float).round(9).T)
    return [bool(c) for c in x != y]


def _best_changed(pair: Pair) -> bool | None:
    """Whether none of the best rollouts before is among the best after; None with fewer than two."""
    if len(pair) < 2:
        return None
    x, y = np.array(pair, float).round(9).T
    return not bool(((x == x.max()) & (y == y.max())).any())


def _signs(pairs: Iterable[Pair]) -> dict[str, Any]:
    """The change in sign of each advantage, reward minus the group's mean (dividing by the std changes no sign)."""
    changes: Counter[tuple[int, int]] = Counter()
    for pair in pairs:
        if len(pair) > 1:
            x, y = (column - column.mean() for column in np.array(pair, float).T)
            sign = [np.where(np.abs(a) < _EPS, 0, np.sign(a)).astype(int) for a in (x, y)]
            changes.update(zip(sign[0].tolist(), sign[1].tolist(), strict=True))
    n = sum(changes.values())
    flipped = changes[1, -1] + changes[-1, 1]
    return {
        "rollouts": n,
        "flipped": flipped,
        "flipped_frac": flipped / n if n else None,
        "vanished": sum(c for (a, b), c in changes.items() if a and not b),
        "appeared": sum(c for (a, b), c in changes.items() if b and not a),
    }


def _unscored(judgements: Sequence[Judgement]) -> dict[str, Any]:
    causes = Counter(c for j in judgements for c in j.causes if c is not None)
    return {"rollouts": sum(causes.values()), "causes": dict(sorted(causes.items()))}


def _agreement(groups: Sequence[StoredGroup], after: Sequence[Judgement]) -> dict[str, Any]:
    """Cohen's kappa of both verifiers over all verdicts, by points, and of each criterion (rollouts and references).

    ``cells`` are the differing verdicts on answer 0, 1, ... or reference R0, R1, ...
    """
    everything: list[tuple[bool, bool, int]] = []
    criteria: list[dict[str, Any]] = []
    cells: list[dict[str, Any]] = []
    for group, new in zip(groups, after, strict=True):
        old = group.judgement
        assert old.rubric is not None
        if not new.passed:
            continue
        names = [*(str(i) for i in range(len(old.passed))), *(f"R{i}" for i in range(len(old.reference_passed)))]
        both = zip(names, (*old.passed, *old.reference_passed), (*new.passed, *new.reference_passed), strict=True)
        named = [(name, x, y) for name, x, y in both if x is not None and y is not None]
        rows = [(x, y) for _, x, y in named]
        for k, c in enumerate(old.rubric.criteria):
            a, b = [x[k] for x, _ in rows], [y[k] for _, y in rows]
            everything += [(x, y, c.points) for x, y in zip(a, b, strict=True)]
            criteria.append(
                {
                    "step": group.step, "group": group.group, "prompt_id": group.prompt.id,
                    "id": c.id, "points": c.points, "text": c.text,
                    "answers": len(rows), "agreement": _mean(x == y for x, y in zip(a, b, strict=True)),
                    "kappa": cohens_kappa(a, b), "true_before": sum(a), "true_after": sum(b),
                }
            )  # fmt: skip
            cells += [
                {"step": group.step, "group": group.group, "answer": name, "id": c.id, "points": c.points,
                 "text": c.text, "before": x[k], "after": y[k]}
                for name, x, y in named if x[k] != y[k]
            ]  # fmt: skip
    criteria.sort(key=lambda c: (c["agreement"] is None, c["agreement"], -c["points"]))
    points = sorted({p for _, _, p in everything}, reverse=True)
    return {
        "verdicts_changed_frac": _mean(x != y for x, y, _ in everything),
        "kappa": cohens_kappa([x for x, _, _ in everything], [y for _, y, _ in everything]),
        "kappa_by_points": {
            str(p): cohens_kappa([x for x, _, q in everything if q == p], [y for _, y, q in everything if q == p])
            for p in points
        },
        "criteria": criteria,
        "cells": cells,
    }


def _reward_mean(judgements: Sequence[Judgement]) -> float | None:
    return _mean(r for j in judgements for r in j.taught if r is not None)


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


# ------------------------------------------------------------------------------------------------------- show


def show(found: Mapping[str, Any], *, file: TextIO | None = None) -> None:
    """The comparison as tables on standard output (or ``file``)."""
    console = tables.console(file)
    steps = found["steps"]
    console.print(
        f"{found['run']}: {found['groups']} groups of steps {steps[0]} to {steps[-1]}, {found['rubric']} rubric"
        + (f"; {n} groups without references or rubric left out" if (n := found["groups_skipped"]) else "")
    )
    table = Table("", "before", "after")
    table.add_row("verifier", *(found["verifier"][side]["model"] for side in ("before", "after")))
    for label, key, form in (
        ("reward, mean", "reward_mean", "{:.3f}"),
        ("groups without variance", "zero_variance_frac", "{:.1%}"),
    ):
        table.add_row(label, *(_text(found[key][side], form) for side in ("before", "after")))
    for label, key in (("verdicts true", "pass_rate"), ("criteria that separate", "discriminative_frac")):
        table.add_row(label, *(_text(found["health"][s][f"health/{key}"], "{:.1%}") for s in ("before", "after")))
    table.add_row("rollouts unscored", *(_causes(found["unscored"][side]) for side in ("before", "after")))
    console.print(table)
    changes = Table("changes", "")
    signs = found["advantage_signs"]
    rows = (
        ("rewards", _text(found["reward_changed_frac"], "{:.1%}")),
        ("correlation of rewards (Pearson)", _text(found["pearson"], "{:.3f}")),
        ("rank correlation within groups (Spearman)", _text(found["spearman_within_groups"], "{:.3f}")),
        ("ranks within the group", _text(found["rank_changed_frac"], "{:.1%}")),
        ("groups with another best answer", _text(found["best_changed_frac"], "{:.1%}")),
        ("advantages with the opposite sign", f"{signs['flipped']} of {signs['rollouts']}"),
        ("advantages that vanished / appeared", f"{signs['vanished']} / {signs['appeared']}"),
        ("verdicts", _text(found.get("verdicts_changed_frac"), "{:.1%}")),
        ("agreement of verdicts (Cohen's kappa)", _text(found["kappa"], "{:.3f}")),
        *((f"  criteria of {p} points", _text(k, "{:.3f}")) for p, k in found["kappa_by_points"].items()),
    )
    for row in rows:
        changes.add_row(*row)
    console.print(changes)
    worst = [c for c in found["criteria"] if c["agreement"] is not None and c["agreement"] < 1][:5]
    if worst:
        console.print("criteria on which the two verifiers differ most:")
        table = Table("agreement", "kappa", "true before", "after", "points", "criterion")
        for c in worst:
            of = f"{{}} of {c['answers']}"
            counts = of.format(c["true_before"]), of.format(c["true_after"])
            known = _text(c["agreement"], "{:.1%}"), _text(c["kappa"], "{:.2f}")
            table.add_row(*known, *counts, str(c["points"]), f"{c['text'][:100]} ({c['prompt_id']}, step {c['step']})")
        console.print(table)


def _text(value: float | None, form: str) -> str:
    return "unknown" if value is None else form.format(value)


def _causes(unscored: Mapping[str, Any]) -> str:
    causes = ", ".join(f"{cause} {n}" for cause, n in unscored["causes"].items())
    return f"{unscored['rollouts']}" + (f" ({causes})" if causes else "")
