"""The result of a benchmark: the numbers with their intervals, their data, and what is missing.

    avg@k     mean over problems of the mean over their k samples: pass@1 as reported in the paper
    pass@j    unbiased, for j = 1, 2, 4, ... k
    maj@k     whether the most frequent final answer is right; equal answers count together, however they are written

Intervals are 95 % percentile bootstraps over problems. The shares of ungraded and truncated answers are always given.
``bounds`` holds the value if all ungraded answers were wrong, and if all were right.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import numpy as np
from rich.table import Table

from ropd_jax.evaluation.answers import Answer, by_problem, samples_of
from ropd_jax.evaluation.benchmarks import RG, Loaded
from ropd_jax.evaluation.grading import Outcome
from ropd_jax.evaluation.stats import (
    Estimate,
    clustered,
    clustered_ratio,
    maj_at_k,
    paired_difference,
    pass_at_k,
)
from ropd_jax.types import UserError
from ropd_jax.utils import tables
from ropd_jax.utils.files import write_atomic
from ropd_jax.utils.paths import local_file

VERSION = 1


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """The result of a benchmark.

    Attributes:
        data: everything as plain data, as stored in ``result.json``.
        answers: the answers that were graded, k per problem.
    """

    data: Mapping[str, Any]
    answers: tuple[Answer, ...] = ()

    @property
    def metric(self) -> str:
        """The name of `value`, such as ``avg@16``."""
        return self.data["metric"]

    @property
    def value(self) -> Estimate:
        """The benchmark's number with its 95 % interval; its ``ungraded`` counts problems."""
        return Estimate(**self.data["value"])

    @property
    def per_problem(self) -> Mapping[str, float | None]:
        """The value of each problem, by id; None if no answer to it could be graded."""
        return self.data["per_problem"]

    def pass_at(self, k: int) -> Estimate:
        """The unbiased pass@k, for k = 1, 2, 4, ... up to the number of samples.

        Raises:
            KeyError: ``k`` is not one of these.
        """
        return Estimate(**self.data["pass"][str(k)])

    def compared(self, earlier: Mapping[str, Any], name: str) -> EvalResult:
        """This result with its paired difference to an earlier one, see `compare`."""
        difference = {"against": name, **compare(earlier, self.data)}
        return dataclasses.replace(self, data={**self.data, "difference": difference})

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes the result as JSON; `read_result` reads it."""
        write_atomic(file, json.dumps(self.data, indent=1, ensure_ascii=False) + "\n")

    def show(self, *, file: TextIO | None = None) -> None:
        """Prints the result as a table to standard output, or to ``file``."""
        show(self.data, file=file)

    def __str__(self) -> str:
        return f"{self.data['title']} {self.metric}: {self.value}"


def make_result(loaded: Loaded, answers: Sequence[Answer], outcomes: Sequence[Outcome], **more: Any) -> dict[str, Any]:
    """The result as plain data for JSON.

    Args:
        more: facts that are kept with the numbers (``student``, ``sampling``, ``grader``).
    """
    groups = by_problem(answers)
    signed = loaded.benchmark.grader == "healthbench"
    rows = {i: [outcomes[n] for n in places] for i, places in groups.items()}
    per_problem = {i: _mean([o.value for o in row]) for i, row in rows.items()}
    fewest, most = samples_of(answers)
    result: dict[str, Any] = {
        "version": VERSION,
        "benchmark": loaded.benchmark.name,
        "title": loaded.benchmark.title,
        "metric": f"avg@{most}" + (" prompt_strict" if loaded.benchmark.grader == "ifeval" else ""),
        "value": _plain(clustered(list(per_problem.values()), clip=signed)),
        "problems": {"answered": len(groups), "of": loaded.found.rows},
        "answers": len(answers),
        "k": [fewest, most],
        "ungraded": _ungraded(outcomes),
        "truncated": _truncated(answers),
        "wrong": dict(Counter(o.cause for o in outcomes if o.value == 0.0 and o.cause).most_common()),
        "data": loaded.found.as_dict(),
        **more,
    }
    if signed:
        result["bootstrap_std"] = _clipped_std(list(per_problem.values()))
        result["tags"] = _tags(rows)
    else:
        result["bounds"] = [_bound(rows, 0.0), _bound(rows, 1.0)]
        result["pass"] = {str(j): _plain(_pass(rows, j)) for j in _powers(most)}
        if loaded.benchmark.grader != "ifeval":
            result["maj"] = _plain(clustered([_majority(row) for row in rows.values()]))
        result["parts"] = {name: _plain(e) for name, e in _parts(rows).items()}
    result["per_problem"] = per_problem
    return result


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """b minus a, paired over their common problems. Both must be results of one benchmark on the same data.

    Raises:
        UserError: the benchmarks or the versions of the data differ.
    """
    if a["benchmark"] != b["benchmark"]:
        raise UserError(
            f"one result is for {a['benchmark']}, the other for {b['benchmark']}; expected the same benchmark"
        )
    drawn = a["benchmark"].startswith(RG)  # generated from a seed: an id means the same question for every size
    if a["data"]["sha"] != b["data"]["sha"] and not drawn:
        raise UserError(
            f"the two results of {a['benchmark']} come from different data ({a['data']['place']}: {a['data']['sha']}, "
            f"{b['data']['place']}: {b['data']['sha']}); expected the same questions and gold answers"
        )
    return {"metric": f"{b['metric']} - {a['metric']}"} | _plain(paired_difference(a["per_problem"], b["per_problem"]))


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A result from its file.

    Raises:
        UserError: the file is unreadable or not a benchmark result.
    """
    try:
        result = json.loads(local_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); expected the JSON result of ropd grade or ropd eval") from error
    if not isinstance(result, dict) or "per_problem" not in result or "benchmark" not in result:
        raise UserError(f"{path} is not a benchmark result; expected the JSON result of ropd grade or ropd eval")
    return result


# --------------------------------------------------------------------------------------------------- the numbers

Rows = Mapping[str, Sequence[Outcome]]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _pass(rows: Rows, j: int) -> Estimate:
    """Problems with fewer than j graded samples have no pass@j; they are left out and counted."""
    values = []
    for row in rows.values():
        known = [o.value for o in row if o.value is not None]
        values.append(pass_at_k(sum(v == 1.0 for v in known), len(known), j) if len(known) >= j else None)
    return clustered(values)


def _majority(row: Sequence[Outcome]) -> float | None:
    known = [o for o in row if o.value is not None]
    if not known:
        return None
    return maj_at_k([o.answer if o.vote is None else o.vote for o in known], [o.value == 1.0 for o in known])


def _bound(rows: Rows, ungraded: float) -> float:
    means = [_mean([ungraded if o.value is None else o.value for o in row]) for row in rows.values()]
    return float(np.mean([m for m in means if m is not None]))


def _parts(rows: Rows) -> dict[str, Estimate]:
    names = {name for row in rows.values() for o in row for name in o.parts}
    found = {}
    if "instructions" in names:
        of = [sum(o.parts["instructions"] for o in row) for row in rows.values()]
        for kind in ("strict", "loose"):
            tops = [sum(o.parts[f"followed_{kind}"] for o in row) for row in rows.values()]
            found[f"instruction_{kind}"] = clustered_ratio(tops, of)
        names -= {"instructions", "followed_strict", "followed_loose"}
    for name in sorted(names):
        found[name] = clustered([_mean([o.parts.get(name) for o in row]) for row in rows.values()])
    return found


def _tags(rows: Rows) -> dict[str, dict[str, Any]]:
    """The clipped mean of each tag over the answers that carry it."""
    names = sorted({name for row in rows.values() for o in row for name in o.parts})
    per_problem = {name: [_mean([o.parts.get(name) for o in row]) for row in rows.values()] for name in names}
    return {
        name: _plain(clustered([v for v in values if v is not None], clip=True)) for name, values in per_problem.items()
    }


def _clipped_std(values: Sequence[float | None]) -> float | None:
    """Standard deviation of the clipped mean over 1,000 bootstrap draws, as the official script reports it."""
    known = np.asarray([v for v in values if v is not None], float)
    if not len(known):
        return None
    picks = np.random.default_rng(0).integers(0, len(known), size=(1_000, len(known)))
    return float(np.clip(known[picks].mean(axis=1), 0.0, 1.0).std())


def _ungraded(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    causes = Counter(o.cause for o in outcomes if o.value is None)
    return {"answers": causes.total(), "frac": causes.total() / len(outcomes), "causes": dict(causes.most_common())}


def _truncated(answers: Sequence[Answer]) -> dict[str, Any]:
    known = [a.truncated for a in answers if a.truncated is not None]
    return {
        "answers": sum(known) if known else None,
        "frac": sum(known) / len(known) if known else None,
        "unknown": len(answers) - len(known),
    }


def _powers(k: int) -> list[int]:
    return sorted({2**i for i in range(k.bit_length()) if 2**i <= k} | {k})


def _plain(estimate: Estimate) -> dict[str, Any]:
    return dataclasses.asdict(estimate)


# -------------------------------------------------------------------------------------------------------- show


def show(result: Mapping[str, Any], *, file: TextIO | None = None) -> None:
    """The result as a table on standard output (or ``file``)."""
    console = tables.console(file)
    problems, data = result["problems"], result["data"]
    partly = "" if problems["answered"] == problems["of"] else f", {problems['of']} in the data"
    console.print(f"{result['title']}: {problems['answered']} problems{partly}, {result['answers']} answers")
    table = Table("", "value", "95 % interval", "problems")
    for name, e in _lines(result):
        table.add_row(name, *_cells(e), str(e["n"]))
    if "bounds" in result and result["ungraded"]["answers"]:
        low, high = result["bounds"]
        table.add_row("ungraded as wrong / right", f"{low:.1%} / {high:.1%}", "", "")
    console.print(table)
    console.print(f"ungraded:  {_share(result['ungraded'], result['answers'])}{_causes(result['ungraded']['causes'])}")
    console.print(f"truncated: {_share(result['truncated'], result['answers'] - result['truncated']['unknown'])}")
    if result["wrong"]:
        console.print(f"wrong:     {_causes(result['wrong']).strip(' ()')}")
    if "difference" in result:
        d = result["difference"]
        value, interval = _cells(d, signed=True)
        console.print(f"difference to {d['against']}: {value} {interval}, {d['n']} problems, paired")
    if data["as_known"] is False or (data["as_known"] is None and data["rows_expected"] is not None):
        what = "are not the complete data set"
        if data["rows"] == data["rows_expected"]:
            known = data["sha_expected"]
            what = f"differ from the known text (hash {known})" if known else "cannot be checked against a known text"
        console.print(f"the {data['rows']} rows of {data['place']} (hash {data['sha']}) {what}")


def _lines(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    lines = [(result["metric"], result["value"])]
    lines += [(f"pass@{j}", e) for j, e in result.get("pass", {}).items() if j != "1"]
    if "maj" in result and result["k"][1] > 1:
        lines.append((f"maj@{result['k'][1]}", result["maj"]))
    return lines + [(name, e) for name, e in (result.get("parts") or result.get("tags") or {}).items()]


def _cells(e: Mapping[str, Any], *, signed: bool = False) -> tuple[str, str]:
    if e["value"] is None:
        return "unknown", ""
    sign = "+" if signed else ""
    return f"{100 * e['value']:{sign}.2f} %", f"{100 * e['low']:{sign}.2f} to {100 * e['high']:{sign}.2f}"


def _share(part: Mapping[str, Any], of: int) -> str:
    return "unknown" if part["answers"] is None else f"{part['answers']} of {of} answers ({part['frac']:.1%})"


def _causes(causes: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{cause} {n}' for cause, n in causes.items())})" if causes else ""
