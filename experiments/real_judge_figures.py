"""The results of real_judge.py: figures with intervals, two tables, one picture.

    measured(study)  ->  {"problems", "answers", "accuracy", "unscored", "signals", "forms", "given"}

Every interval is a bootstrap over problems, because the answers to one problem are not independent. A figure from
fewer than five problems has no interval, because a bootstrap of so few is not reliable.

    auc             chance that a right answer has a higher value than a wrong one; equal values count half
    auc_in_group    the same over pairs of answers to one problem, which is what an advantage compares
    lead            auc_in_group of the rubric reward minus that of this signal, paired
    bad_update      share of the answers off their group's mean that are pushed in the wrong direction
    kappa_result    Cohen's kappa of the verdicts on final results and the exact grade of the answer
    kappa_study     the same with the verdicts of the study's own form, on all criteria
    true            share of the verdicts that are true
"""

from __future__ import annotations

import contextlib
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import real_judge_study as study
from ropd_jax.analysis.signal_study import REWARD, Rollouts, auc, read_scores, rollouts_of
from ropd_jax.calibration import agreement
from ropd_jax.calibration.bootstrap import UNKNOWN, Bootstrap, divided
from ropd_jax.data.grader import grade
from ropd_jax.teacher.roles.kinds import kind_of
from ropd_jax.teacher.tape.store import Tape
from ropd_jax.types import answer_of
from ropd_jax.workdir.groups import StoredGroup

LABELS = {  # signal -> label
    REWARD: "rubric reward",
    "t_judge": "T-Judge grade",
    "teacher_logprob": "mean log-prob of the judge's weights",
    "topk_overlap": "top-24 overlap",
    "topk_mass": "student's mass on the overlap",
    "shortness": "shortness (tokens)",
    "scripted": "rubric reward, scripted teacher",
}
WRITERS = {study.FORMS: "the judge's", study.GIVEN: "the scripted teacher's"}
COLUMNS = {  # of the table of forms: figure -> how it is written
    "auc_in_group": "{:.2f}",
    "bad_update": "{:.0%}",
    "kappa_result": "{:.2f}",
    "kappa_study": "{:.2f}",
    "true": "{:.0%}",
}
DIGITS = 6  # of a signal's value in the results
LEAST = 5  # problems that an interval needs
Groups = Mapping[int, StoredGroup]
Key = tuple[int, str, int]


def measured(place: pathlib.Path, *, draws: int = 2_000) -> dict[str, Any]:
    """All figures of the problems that every arm has judged so far; None for unknown values.

    Args:
        place: the study's directory.
        draws: of the bootstrap.
    """
    groups = study.judged(place)
    if not groups:
        return {"problems": 0} | {folder: {} for folder in study.RUBRICS}
    r = rollouts_of(list(groups.values()), scores_of(place, groups))
    boot = Bootstrap(len(groups), draws=draws)
    known_A = np.array([right is not None for right in r.right])
    right_A = np.array([bool(right) for right in r.right])
    counted_Q, right_Q = (np.bincount(r.group, w, len(groups)) for w in (known_A, known_A & right_A))
    return {
        "problems": len(groups),
        "answers": len(r.right),
        "accuracy": enough(boot.ratio(right_Q, counted_Q, share=True), counted_Q),
        "mixed_groups": int(((right_Q > 0) & (right_Q < counted_Q)).sum()),
        "true": true_share(groups, boot),
        "unscored": {
            name: dict(Counter(c for step in groups for c in found[step].judgement.causes if c is not None))
            for name in (study.RUBRIC, study.T_JUDGE)
            if (found := study.groups_in(place / name))
        },
        "signals": {name: signal(r, name, boot) for name in LABELS if name in r.signals},
        **{folder: forms(place, groups, draws, folder) for folder in study.RUBRICS},
    }


def values(place: pathlib.Path) -> dict[int, list[dict[str, Any]]]:
    """For each judged problem its answers: whether each is right, and the value of each signal; None if unknown."""
    groups = study.judged(place)
    if not groups:
        return {}
    r = rollouts_of(list(groups.values()), scores_of(place, groups))
    rows: dict[int, list[dict[str, Any]]] = {step: [] for step in groups}
    steps = list(rows)
    for n, (q, right) in enumerate(zip(r.group, r.right, strict=True)):
        known = {name: float(column[n]) for name, column in r.signals.items()}
        signals = {k: None if np.isnan(v) else round(v, DIGITS) for k, v in known.items()}
        rows[steps[q]].append({"right": right} | signals)
    return rows


def scores_of(place: pathlib.Path, groups: Groups) -> dict[Key, dict[str, float]]:
    """The signals besides the rubric reward, by (step, problem, sample)."""
    file = place / study.WHITEBOX
    scores = read_scores(file) if file.exists() else {}
    scores = {key: values for key, values in scores.items() if key[0] in groups}
    for name in (study.T_JUDGE, study.SCRIPTED):
        for key, reward in rewards_of(study.groups_in(place / name)).items():
            if key[0] in groups:
                scores.setdefault(key, {})[name] = reward
    for key, tokens in tokens_of(place, groups).items():
        scores.setdefault(key, {})["shortness"] = -float(tokens)
    return scores


def rewards_of(groups: Groups) -> dict[Key, float]:
    """The reward of each scored answer."""
    return {
        (step, g.prompt.id, sample): reward
        for step, g in groups.items()
        for sample, reward in enumerate(g.judgement.rewards)
        if reward is not None
    }


def tokens_of(place: pathlib.Path, groups: Groups) -> dict[Key, int]:
    """The length of each answer."""
    rows = study.stored_rollouts(place)
    return {
        (step, g.prompt.id, sample): answer["tokens"]
        for step, g in groups.items()
        for sample, answer in enumerate(rows[step]["answers"])
    }


# ---------------------------------------------------------------------------------------------------------- signals


def signal(r: Rollouts, name: str, boot: Bootstrap) -> dict[str, Any]:
    """The figures of one signal, over the answers that it scores."""
    questions = boot.weights_DQ.shape[1]
    values_A, right_A, group_A = known(r, r.signals[name])
    own = pairs(values_A, right_A, group_A, questions)
    both = ~np.isnan(r.signals[name])
    rubric = pairs(*known(r, np.where(both, r.signals[REWARD], np.nan)), questions)
    mine = pairs(*known(r, np.where(np.isnan(r.signals[REWARD]), np.nan, r.signals[name])), questions)
    bad_Q, moved_Q = updates(values_A, right_A, group_A, questions)
    return {
        "answers": len(values_A),
        "auc": enough(agreement.auc(group_A, values_A, right_A, boot, questions)["all"], np.bincount(group_A)),
        "auc_in_group": enough(boot.ratio(*own, share=True), own[1]),
        "lead": enough(lead(rubric, mine, boot), np.minimum(rubric[1], mine[1])),
        "bad_update": enough(boot.ratio(bad_Q, moved_Q, share=True), moved_Q),
    }


def enough(estimate: dict[str, Any], counted_Q: np.ndarray) -> dict[str, Any]:
    """The estimate and the number of its problems; without an interval if there are too few."""
    problems = int(np.count_nonzero(counted_Q))
    return estimate | {"problems": problems} | ({} if problems >= LEAST else {"low": None, "high": None})


def known(r: Rollouts, values_A: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(value, right, problem) of the answers that have a value and a grade."""
    here = ~np.isnan(values_A) & np.array([right is not None for right in r.right])
    return values_A[here], np.array([bool(right) for right in r.right])[here], r.group[here]


def pairs(
    values_A: np.ndarray, right_A: np.ndarray, group_A: np.ndarray, questions: int
) -> tuple[np.ndarray, np.ndarray]:
    """(pairs won, pairs) per problem, each [Q]; a pair is a right and a wrong answer."""
    won_Q, all_Q = np.zeros(questions), np.zeros(questions)
    for q in range(questions):
        mine = group_A == q
        area = auc(values_A[mine], right_A[mine])
        if area is not None:
            all_Q[q] = right_A[mine].sum() * (~right_A[mine]).sum()
            won_Q[q] = area * all_Q[q]
    return won_Q, all_Q


def lead(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], boot: Bootstrap) -> dict[str, Any]:
    """The in-group AUC of ``a`` minus that of ``b``, both as `pairs` of the same answers."""
    if not a[1].sum() or not b[1].sum():
        return dict(UNKNOWN)
    w_DQ = boot.weights_DQ
    draws = divided(w_DQ @ a[0], w_DQ @ a[1]) - divided(w_DQ @ b[0], w_DQ @ b[1])
    return boot.estimate(a[0].sum() / a[1].sum() - b[0].sum() / b[1].sum(), draws, int(np.count_nonzero(a[1])))


def updates(
    values_A: np.ndarray, right_A: np.ndarray, group_A: np.ndarray, questions: int
) -> tuple[np.ndarray, np.ndarray]:
    """(answers pushed in the wrong direction, answers off their group's mean) of each problem."""
    bad_Q, moved_Q = np.zeros(questions), np.zeros(questions)
    for q in range(questions):
        mine = group_A == q
        if mine.any():
            advantage = values_A[mine] - values_A[mine].mean()
            moved = np.abs(advantage) > 1e-9
            moved_Q[q], bad_Q[q] = moved.sum(), ((advantage > 0) != right_A[mine])[moved].sum()
    return bad_Q, moved_Q


# ------------------------------------------------------------------------------------------------------------ forms


def forms(place: pathlib.Path, groups: Groups, draws: int, folder: str) -> dict[str, Any]:
    """The figures of each form, over the problems that were verified in every form; {} without forms.

    Args:
        folder: FORMS or GIVEN. Only the first has the study's own rubrics, and thus verdicts to compare.
    """
    folders = {p.name: study.groups_in(p) for p in sorted((place / folder).glob("*")) if p.is_dir()}
    folders = {name: found for name, found in folders.items() if found}
    if not folders:
        return {}
    shared = sorted(set(groups).intersection(*folders.values()))
    boot = Bootstrap(len(shared), draws=draws)
    base = {step: groups[step] for step in shared}
    found = {}
    for name, all_groups in folders.items():
        mine = {step: all_groups[step] for step in shared}
        r = rollouts_of(list(mine.values()), {})
        one = signal(r, REWARD, boot) if shared else {}
        found[name] = {
            "judged": sorted(all_groups.keys() & groups.keys()),
            "problems": len(shared),
            **{key: one[key] for key in ("answers", "auc", "auc_in_group", "bad_update") if key in one},
            "unscored": sum(c is not None for g in mine.values() for c in g.judgement.causes),
            "kappa_result": verdict_kappa(result_verdicts(mine), boot),
            **({"kappa_study": verdict_kappa(both_verdicts(base, mine), boot)} if folder == study.FORMS else {}),
            "true": true_share(mine, boot),
            "cost": cost(place.parent / study.TAPE, mine),
        }
    return found


Verdict = tuple[int, bool, bool]  # problem's place, truth, verdict


def result_verdicts(groups: Groups) -> list[Verdict]:
    """The verdicts on criteria about the final result; the truth is the exact grade of the answer."""
    rows: list[Verdict] = []
    for place, g in enumerate(groups.values()):
        rubric = g.judgement.rubric
        wanted = [k for k, c in enumerate(rubric.criteria) if kind_of(c.category, c.text) == "final_result"]
        for text, passed in zip(g.answers, g.judgement.passed, strict=True):
            right = grade(g.prompt, answer_of(text))
            if passed is not None and right is not None:
                rows += [(place, right, passed[k]) for k in wanted]
    return rows


def true_share(groups: Groups, boot: Bootstrap) -> dict[str, Any]:
    """The share of the verdicts that are true."""
    said = [[ok for row in g.judgement.passed if row is not None for ok in row] for g in groups.values()]
    true_Q, all_Q = np.array([sum(row) for row in said], float), np.array([len(row) for row in said], float)
    if not all_Q.sum():
        return UNKNOWN | {"problems": 0}
    return enough(boot.ratio(true_Q, all_Q, share=True), all_Q)


def both_verdicts(base: Groups, groups: Groups) -> list[Verdict]:
    """The verdicts of both forms on every criterion of the answers that both have scored."""
    return [
        (place, before, after)
        for place, step in enumerate(groups)
        for one, two in zip(base[step].judgement.passed, groups[step].judgement.passed, strict=True)
        if one is not None and two is not None
        for before, after in zip(one, two, strict=True)
    ]


def verdict_kappa(rows: Sequence[Verdict], boot: Bootstrap) -> dict[str, Any]:
    if not rows:
        return UNKNOWN | {"problems": 0}
    place_V, truth_V, said_V = (np.array(column) for column in zip(*rows, strict=True))
    counts_QC = agreement.cells(place_V, truth_V, said_V, boot.weights_DQ.shape[1])
    return enough(agreement.agreement(counts_QC, boot)["kappa"], counts_QC.sum(axis=1))


def cost(tape: pathlib.Path, groups: Groups) -> dict[str, float] | None:
    """Mean calls, tokens and seconds of the verifier per group; None without the tape."""
    if not tape.exists() or not groups:
        return None
    keys = [call.key for g in groups.values() for call in g.judgement.calls if call.role == "verify"]
    with contextlib.closing(Tape(tape, read_only=True)) as reader:
        replies = [entry.reply for key in keys if (entry := reader.entry(key)).reply is not None]
    if not replies or any(r.latency_s is None or r.usage.input_tokens is None for r in replies):
        return None
    sums = {
        "calls": len(keys),
        "input_tokens": sum(r.usage.input_tokens for r in replies),
        "cached_tokens": sum(r.usage.cached_tokens or 0 for r in replies),
        "output_tokens": sum(r.usage.output_tokens or 0 for r in replies),
        "seconds": sum(r.latency_s for r in replies),
    }
    return {name: value / len(groups) for name, value in sums.items()}


# ------------------------------------------------------------------------------------------------ tables and picture


def shown(found: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    if not found["problems"]:
        return "No problem has been judged yet."
    heads = ("signal", "answers", "AUC", "AUC in a group", "lead of the rubric reward", "bad updates")
    lines = [
        f"{found['problems']} problems, {found['answers']} answers, {text_of(found['accuracy'], '{:.1%}')} right; "
        f"{found['mixed_groups']} problems have right and wrong answers. Brackets: 95 % over problems; "
        f"figures of fewer than {LEAST} problems have none. Of the judge's verdicts on its own rubrics "
        f"{text_of(found['true'], '{:.1%}')} are true.",
        "",
        *_head(heads),
    ]
    for name, one in found["signals"].items():
        ahead = "" if name == REWARD else text_of(one["lead"], "{:+.2f}")
        cells = (LABELS[name], str(one["answers"]), text_of(one["auc"]), text_of(one["auc_in_group"]), ahead,
                 text_of(one["bad_update"], "{:.0%}"))  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    causes = "; ".join(f"{name}: {causes or 'none'}" for name, causes in found["unscored"].items())
    lines += ["", f"Unscored answers by cause: {causes}."]
    rows = [(folder, name, one) for folder in study.RUBRICS for name, one in found[folder].items()]
    if not rows:
        return "\n".join(lines)
    heads = ("form", "rubrics", "problems", "answers", "AUC in a group", "bad updates", "kappa with the grade",
             "kappa with the study", "true", "unscored", "calls", "tokens in", "of them cached", "tokens out",
             "s")  # fmt: skip
    lines += ["", *_head(heads)]
    for folder, name, one in rows:
        price = one["cost"] or {}
        spent = (price.get(k) for k in ("calls", "input_tokens", "cached_tokens", "output_tokens", "seconds"))
        cells = (study.form_named(name), WRITERS[folder], str(one["problems"]), str(one.get("answers", 0)),
                 *(text_of(one[key], form) if key in one else "" for key, form in COLUMNS.items()),
                 str(one["unscored"]), *("unknown" if x is None else f"{x:,.0f}" for x in spent))  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Calls, tokens and seconds: the verifier's for one group."]
    return "\n".join(lines)


def _head(names: Sequence[str]) -> tuple[str, str]:
    return f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"


def text_of(found: Mapping[str, Any], form: str = "{:.2f}") -> str:
    if found["value"] is None:
        return "unknown"
    if found["low"] is None:
        return form.format(found["value"])
    return f"{form.format(found['value'])} [{form.format(found['low'])}, {form.format(found['high'])}]"


def draw(found: Mapping[str, Any], path: pathlib.Path) -> pathlib.Path:
    """In-group AUC and bad updates of each signal and form with their intervals."""
    rows = [(LABELS[name], one) for name, one in found["signals"].items()]
    rows += [
        (f"{WRITERS[folder]} rubrics, form {study.form_named(name)}", one)
        for folder in study.RUBRICS
        for name, one in found[folder].items()
        if "auc_in_group" in one
    ]
    figure = Figure(figsize=(10, 1.2 + 0.36 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, title in zip(panels, ("auc_in_group", "bad_update"), ("AUC in a group", "bad updates"), strict=True):
        for place, (_, one) in enumerate(rows):
            estimate = one[key]
            if estimate["value"] is not None:
                color = f"C{min(place, 9)}" if place < len(found["signals"]) else "0.4"
                axes.plot(estimate["value"], place, "o", color=color)
                if estimate["low"] is not None:
                    axes.plot([estimate["low"], estimate["high"]], [place, place], color=color, linewidth=2)
        axes.axvline(0.5, color="gray", linewidth=0.8, linestyle=":")
        axes.set(title=title, xlim=(-0.02, 1.02), yticks=range(len(rows)), yticklabels=[label for label, _ in rows])
        axes.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    figure.suptitle(f"{found['problems']} problems, {found['answers']} answers; bars: 95 % over problems", fontsize=10)
    figure.savefig(path, dpi=110)
    return path
