"""The report of a calibration: ``report.json``, one page of Markdown, and tables on the terminal.

Names of models, families and causes are foreign text: they are escaped, so that they cannot create a Markdown row, a
link or HTML.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from rich import box
from rich.table import Table

from ropd_jax.calibration.advice import compare, recommend
from ropd_jax.calibration.probes import PROBES
from ropd_jax.teacher.traffic.budget import dollars
from ropd_jax.utils import tables
from ropd_jax.utils.files import finite, write_atomic
from ropd_jax.utils.text import clock, plain

COMPARISON_VERSION = "ropd.calibration_comparison.v1"
_MEASURES = ("accuracy", "sensitivity", "specificity", "kappa")


def complete(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with its recommendation, with numbers that JSON can represent."""
    found = _jsonable(report)
    return {**found, "recommendation": recommend(found)}


def write_report(report: Mapping[str, Any], directory: str | os.PathLike[str]) -> None:
    """Writes ``report.json`` and ``report.md``."""
    directory = pathlib.Path(directory)
    write_atomic(directory / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_atomic(directory / "report.md", markdown(report))


def write_comparison(
    reports: Sequence[Mapping[str, Any]], names: Sequence[str], directory: str | os.PathLike[str]
) -> None:
    """Writes the comparison of several forms as ``report.json`` and ``report.md``."""
    directory, names = pathlib.Path(directory), list(names)[: len(reports)]
    advice = compare(reports, names)
    found = {
        "schema_version": COMPARISON_VERSION,
        "forms": [{"form": name, **_row(r)} for name, r in zip(names, reports, strict=True)],
        "recommendation": advice,
    }
    write_atomic(directory / "report.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    lines = ["# Comparison of request forms", "", *_table(_COMPARED, _comparison(reports, names)), ""]
    lines += ["## Recommendation", "", *(f"- {_safe(text)}" for text in advice), ""]
    write_atomic(directory / "report.md", "\n".join(lines))


# --------------------------------------------------------------------------------------------------------- markdown


def markdown(report: Mapping[str, Any]) -> str:
    """The report as one page of Markdown."""
    about, labels, traffic = report["verifier"], report["labels"], report["traffic"]
    lines = [
        f"# Calibration of {_safe(about['model'])}",
        "",
        f"Form {_safe(about['form'])}, template {_safe(about['template'])}, provider {_safe(about['provider'])}. "
        f"Labels: {_safe(labels['source'])} ({_safe(labels['sha'])}), {labels['asked']} of {labels['questions']} "
        f"questions, {report['answers']} answers, {report['verdicts']} verdicts read. Brackets are 95 % intervals over "
        "questions.",
        "",
        "## Recommendation",
        "",
        *(f"- {_safe(text)}" for text in report["recommendation"]),
        "",
        "## Verdicts compared with the labels",
        "",
        *_table(("", "verdicts", *_MEASURES), [_measures("all", report["overall"])]),
        "",
        *_table(
            ("kind of criterion", "verdicts", *_MEASURES, "reliability"),
            [(*_measures(k, v), _number(v["reliability"])) for k, v in report["kinds"].items()],
        ),
        "",
        *_table(
            ("family", "verdicts", *_MEASURES, "AUC of the reward"),
            [(*_measures(k, v), _estimate(v["auc"]["all"])) for k, v in report["families"].items()],
        ),
        "",
        *_table(
            ("kind of answer", "verdicts", *_MEASURES[:3]),
            [_measures(k, v)[:5] for k, v in report["answer_kinds"].items()],
        ),
        "",
        "## Rewards and biases",
        "",
        *_table(("", "value", "n"), _biases(report)),
        "",
        f"Answers without a verdict: {_unscored(report['unscored'])}.",
        "",
        *_probed(report),
        "## Cost",
        "",
        *_table(("", "all", "per 1,000 verdicts"), _costs(traffic)),
        "",
        _spending(traffic),
        "",
    ]
    return "\n".join(lines)


def _measures(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    return (name.replace("_", " "), f"{found['n']:,}", *(_estimate(found[m]) for m in _MEASURES))


def _biases(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    bias, scorer = report["bias"], report["scorer_auc"]
    rows = [
        ("AUC of the reward, all answers", report["auc"]["all"]),
        ("AUC of the reward, answers of one question", report["auc"]["within"]),
        *(
            [("AUC of the scorer, all answers", scorer["all"]), ("AUC of the scorer, one question", scorer["within"])]
            if scorer
            else []
        ),
        ("position: last place against first", bias["position"]),
        ("length: padded against plain", bias["length"]["difference"]),
        ("length: each doubling", bias["length"]["per_doubling"]),
        ("style: confident Markdown against plain", bias["style"]["difference"]),
        ("halo: the same verdict on all criteria", bias["halo"]),
        ("verdicts changed by another order", report["flips"]),
    ]
    return [(name, _estimate(found), f"{found['n']:,}") for name, found in rows]


def _probes(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of (probe or cut, gain or reward, n)."""
    rows = [(f"gain by {PROBES[name].gains_by}", gain) for name, gain in found["gains"].items()]
    for cut in found["cuts"]["rewards"]:
        left = (
            "whole" if cut["share"] == 1 else f"cut to {_percent(cut['share'])}" if cut["share"] else "cut to nothing"
        )
        rows.append((f"reward of a right answer, {left}", cut["reward"]))
    rows.append(("steps at which the reward does not rise", found["cuts"]["falls"]))
    return [(name, _estimate(value), f"{value['n']:,}") for name, value in rows]


def _probed(report: Mapping[str, Any]) -> list[str]:
    """The section on the probes; empty if there were no probes."""
    found = report["probes"]
    if found is None:
        return []
    return [
        "## Probes: what a wrong answer gains, and what a right one loses",
        "",
        *_table(("", "share of the reward", "n"), _probes(found)),
        "",
        "A gain is the weighted pass rate of a wrong answer with an addition that does not make it better, minus that "
        "of the answer without it. Criteria whose truth the added text could change are left out. Without a verdict: "
        f"{found['unscored']}.",
        "",
    ]


def _unscored(found: Mapping[str, Any]) -> str:
    causes = ", ".join(f"{cause} {n}" for cause, n in found["causes"].items())
    return f"{found['answers']} of {found['asked']}" + (f" ({_safe(causes)})" if causes else "")


def _costs(traffic: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    each = traffic["per_1000_verdicts"]
    usd = (dollars(traffic["usd"]), dollars(each["usd"]))
    return [
        ("calls", _count(traffic["calls"]), _count(each["calls"])),
        ("input tokens", _count(traffic["input_tokens"]), _count(each["input_tokens"])),
        ("output tokens", _count(traffic["output_tokens"]), _count(each["output_tokens"])),
        ("cost", *usd),
        ("seconds of all calls", _time(traffic["seconds"]), _time(each["call_seconds"])),
    ]


def _spending(traffic: Mapping[str, Any]) -> str:
    parts = [f"{traffic['taped']:,} of the {traffic['calls']:,} replies came from the tape"]
    if traffic["wall_seconds"] is not None:
        parts.append(f"it took {clock(traffic['wall_seconds'])}")
    parts.append(f"spent now: {dollars(traffic['spent_usd'])}")
    for name in ("reasks", "retries", "failures"):
        if traffic[name]:
            parts.append(f"{name}: " + _safe(", ".join(f"{k} {v}" for k, v in traffic[name].items())))
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


_COMPARED = (
    "form",
    "verdicts",
    *_MEASURES,
    "AUC, one question",
    "unscored",
    "calls",
    "tokens in",
    "tokens out",
    "cost",
)


def _row(report: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "verdicts": report["overall"]["n"],
        **{m: report["overall"][m] for m in _MEASURES},
        "auc_within": report["auc"]["within"],
        "unscored": report["unscored"]["share"],
        "per_1000_verdicts": report["traffic"]["per_1000_verdicts"],
        "kinds": {kind: found["kappa"] for kind, found in report["kinds"].items()},
        "gains": report["probes"] and report["probes"]["gains"],
    }


def _comparison(reports: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[tuple[str, ...]]:
    """A row for each form; calls, tokens and cost per 1,000 verdicts."""
    rows = []
    for name, report in zip(names, reports, strict=True):
        each, share = report["traffic"]["per_1000_verdicts"], report["unscored"]["share"]
        counts = (_count(each[key]) for key in ("calls", "input_tokens", "output_tokens"))
        _, *measures = _measures(name, report["overall"])
        within = _estimate(report["auc"]["within"])
        rows.append(
            (name, *measures, within, "unknown" if share is None else f"{share:.1%}", *counts, dollars(each["usd"]))
        )
    return rows


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    body = [f"| {' | '.join(_safe(cell) for cell in row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *body]


def _safe(text: str) -> str:
    """Foreign text escaped for Markdown: it cannot create a row, HTML, a link or a control character."""
    words = " ".join(plain(str(text)).split())[:300]
    return re.sub(r"([\\|`<>\[\]*#])", r"\\\1", words) if re.search(r"[\\|`<>*#]|\]\(", words) else words


def _estimate(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "unknown"
    if found["low"] is None:
        return f"{found['value']:.2f}"
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _count(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"


def _thousands(value: float | None) -> str:
    return "unknown" if value is None else f"{value / 1000:,.1f}k"


def _plain_table(*head: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in head:
        table.add_column(name, no_wrap=True)
    return table


def _time(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.1f}"


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    return value if value is None or isinstance(value, str | bool) else finite(value)


# --------------------------------------------------------------------------------------------------------- terminal


def show(reports: Sequence[Mapping[str, Any]], out: str, *, file: TextIO | None = None) -> None:
    """Prints the main tables and the recommendation to standard output (or ``file``)."""
    console = tables.console(file)
    names = [r["verifier"]["form"] for r in reports]
    if len(reports) > 1:
        table = _plain_table("form", "kappa", "accuracy", "AUC", "tokens", "cost")
        for name, report in zip(names, reports, strict=True):
            found, each = report["overall"], report["traffic"]["per_1000_verdicts"]
            tokens = f"{_thousands(each['input_tokens'])} + {_thousands(each['output_tokens'])}"
            scores = (_estimate(found["kappa"]), _number(found["accuracy"]["value"]))
            within = _number(report["auc"]["within"]["value"])
            table.add_row(name, *scores, within, tokens, dollars(each["usd"]))
        console.print(table)
        console.print("AUC is over answers to one question. Tokens (input + output) and cost are per 1,000 verdicts.")
        advice = compare(reports, names)
    else:
        report = reports[0]
        table = _plain_table("", "n", "accuracy", "sens.", "spec.", "kappa")
        for name, found in (("all", report["overall"]), *report["kinds"].items()):
            first, n, *_ = _measures(name, found)
            shares = (_number(found[m]["value"]) for m in _MEASURES[:3])
            table.add_row(first, n, *shares, _estimate(found["kappa"]))
        console.print(table)
        table = _plain_table("", "value")
        for name, value, _ in _biases(report):
            table.add_row(name, value)
        console.print(table)
        if report["probes"] is not None:
            table = _plain_table("probe", "reward", "n")
            for row in _probes(report["probes"]):
                table.add_row(*row)
            console.print(table)
        advice = report["recommendation"]
    for text in advice:
        console.print(f"- {text}", soft_wrap=True)
    console.print(f"The report is in {out}/report.md and {out}/report.json.", soft_wrap=True)
