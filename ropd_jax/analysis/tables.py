"""A table of the paper from finished runs: our value with its interval and n, and the paper's number next to it.

A table is data: ``get_table()`` of a file in ``experiments/`` returns a `TableSpec`. Rows name run directories (several
are seeds of one row) or an untrained checkpoint; columns name benchmarks. ``collect`` looks for results of ``ropd
eval``; a cell without one shows what is missing and the command that produces it. Nothing is run.

The interval of several seeds is the bootstrap over problems of the mean over seeds: it measures the uncertainty of
these runs over problems, not the spread between seeds.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
import inspect
import io
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from ropd_jax.evaluation.benchmarks import benchmark_of, slug
from ropd_jax.evaluation.results import read_result
from ropd_jax.evaluation.stats import Estimate, clustered
from ropd_jax.types import UserError
from ropd_jax.utils import shipped
from ropd_jax.utils.paths import only_local
from ropd_jax.utils.user_module import load_user_module, user_code

FORMATS = ("markdown", "csv", "latex")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        label: as in the paper.
        paper: the paper's numbers in percent, one per column; None if it has none.
        runs: names of run directories below ``--runs``; several are seeds.
        train: flags of ``ropd train`` for such a run, except ``--workdir``; ``{seed}`` is the run's index.
        special: columns filled by other runs: (runs, train).
        checkpoint: an untrained student, instead of runs.
        thinking: the mode of its chat template; None is the template's own.
        method: the required file of ``ropd_jax/methods``; "" for none.
        note: why we cannot have a value for the row ("" if we can).
    """

    label: str
    paper: tuple[float | None, ...] = ()
    runs: tuple[str, ...] = ()
    train: str = ""
    special: Mapping[str, tuple[tuple[str, ...], str]] = dataclasses.field(default_factory=dict)
    checkpoint: str = ""
    thinking: bool | None = None
    method: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class TableSpec:
    """A table.

    Attributes:
        columns: benchmarks.
        eval_flags: flags of ``ropd eval`` for every cell, in addition to the benchmark.
        column_flags: further flags for a column, e.g. for HealthBench's judge.
        pick: the rule that chooses a run's checkpoint; results by another rule are not shown.
        caption: the source of the paper's numbers, and special remarks.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    eval_flags: str = ""
    pick: str = "last"
    caption: str = ""
    column_flags: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for column in (*self.columns, *self.column_flags):
            benchmark_of(column)
        for row in self.rows:
            if row.paper and len(row.paper) != len(self.columns):
                raise UserError(f"{row.label}: {len(row.paper)} numbers of the paper for {len(self.columns)} columns")


@dataclasses.dataclass(frozen=True)
class Cell:
    """``ours`` is None without a result; then ``missing`` says what is missing, with the command.

    ``ungraded`` and ``truncated`` are shares of the answers; None if a result lacks them.
    """

    ours: Estimate | None
    paper: float | None
    k: int | None = None
    seeds: int = 0
    missing: str = ""
    ungraded: float | None = None
    truncated: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A spec with its cells, one list per row."""

    spec: TableSpec
    cells: tuple[tuple[Cell, ...], ...]


def load_spec(spec: str) -> TableSpec:
    """The result of ``get_table()`` of a Python file, or of a table that comes with the package, by its name.

    Args:
        spec: ``FILE.py`` or NAME; with ``:arg`` behind it ``get_table(arg)`` is called.

    Raises:
        UserError: no such file or name, an error in it (with its line), no ``get_table``, an argument that it does not
            take, or not a TableSpec.
    """
    path, arg = shipped.split(spec, "get_table", "table")
    module = load_user_module(path, what="table file")
    get_table = getattr(module, "get_table", None)
    if not callable(get_table):
        remedy = "ropd train takes it" if hasattr(module, "get_config") else "define one that returns a TableSpec"
        raise UserError(f"{path} has no get_table(); {remedy}")
    if arg is not None and not inspect.signature(get_table).parameters:
        raise UserError(f"{path}: get_table() takes no argument, but {arg!r} was given; leave out :{arg}")
    with user_code(path):
        table = get_table() if arg is None else get_table(arg)
    if not isinstance(table, TableSpec):
        raise UserError(f"{path}: get_table() returned a {type(table).__name__}; expected a TableSpec")
    return table


def collect(
    spec: TableSpec,
    *,
    runs: str = "runs",
    evals: str = "evals",
    cost: Callable[[str, tuple[str, ...]], str] | None = None,
) -> Table:
    """All cells; reads only result files.

    Args:
        runs: directory of the rows' runs.
        evals: directory of the results of ``ropd eval CHECKPOINT``.
        cost: (flags of ``ropd train``, directories of the row's other seeds) -> the cost of the run as text, which
            follows each training command.
    """
    priced = functools.cache(cost) if cost else lambda train, like: ""
    cells = []
    for row in spec.rows:
        papers = row.paper or (None,) * len(spec.columns)
        cells.append(
            tuple(
                _cell(spec, row, name, paper, runs, evals, priced)
                for name, paper in zip(spec.columns, papers, strict=True)
            )
        )
    return Table(spec, tuple(cells))


def _cell(spec: TableSpec, row: Row, name: str, paper: float | None, runs: str, evals: str, cost) -> Cell:
    if row.note:
        return Cell(None, paper, missing=row.note)
    flags = " ".join(filter(None, [f"--benchmark {name}", spec.eval_flags, spec.column_flags.get(name)]))
    if row.checkpoint:
        mode = {None: "", True: " --thinking", False: " --nothinking"}[row.thinking]
        place = only_local(evals, "--evals") / pathlib.Path(row.checkpoint).name / slug(name, row.thinking)
        found = [_result(place)]
        missing = "" if found[0] else f"ropd eval {row.checkpoint} {flags}{mode} --out {place}"
    else:
        names, train = row.special.get(name, (row.runs, row.train))
        places = [only_local(runs, "--runs") / run for run in names]
        found = [_of_run(place, name, spec.pick) for place in places]
        priced = functools.partial(cost, like=tuple(map(str, places)))
        missing = "; ".join(
            _command(spec, row, place, train.replace("{seed}", str(seed)), flags, priced)
            for seed, (place, result) in enumerate(zip(places, found, strict=True))
            if result is None
        )
    known = [r for r in found if r is not None]
    if not known:
        return Cell(None, paper, missing=missing)
    per_problem: dict[str, list[float]] = {}
    for result in known:
        for i, value in result["per_problem"].items():
            if value is not None:
                per_problem.setdefault(i, []).append(value)
    values = [sum(v) / len(v) for v in per_problem.values()]
    ours = clustered(values, clip="tags" in known[0])
    shares = [_share([r[part]["frac"] for r in known]) for part in ("ungraded", "truncated")]
    return Cell(ours, paper, known[0]["k"][1], len(known), missing, *shares)


def _share(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _of_run(run: pathlib.Path, name: str, pick: str) -> dict[str, Any] | None:
    """The result of the newest checkpoint chosen by the rule."""
    steps = {}
    for place in run.glob(f"eval/{slug(name)}_step*"):
        step, result = re.fullmatch(r".*_step(\d+)", place.name), _result(place)
        if step and result is not None and (result.get("checkpoint") or {}).get("rule") == pick:
            steps[int(step[1])] = result
    return steps[max(steps)] if steps else None


def _result(place: pathlib.Path) -> dict[str, Any] | None:
    return read_result(place / "result.json") if (place / "result.json").is_file() else None


def _command(spec: TableSpec, row: Row, run: pathlib.Path, train: str, flags: str, cost) -> str:
    """The next command for a run without a result."""
    methods = importlib.resources.files("ropd_jax") / "methods"
    if row.method and not (methods / f"{row.method}.py").is_file():
        return f"the method {row.method} is not in this version"
    if not (run / "result.json").is_file():
        price = f" ({words})" if train and (words := cost(train)) else ""
        return f"not trained: ropd train {train} --workdir {run}{price}" if train else f"no run {run}"
    return f"not evaluated: ropd eval {run} --pick {spec.pick} {flags}"


# ------------------------------------------------------------------------------------------------------- render


def render(table: Table, form: str) -> str:
    """The table as text.

    Raises:
        UserError: an unknown format.
    """
    if form not in FORMATS:
        raise UserError(f"--format={form} is unknown; expected one of {', '.join(FORMATS)}")
    return {"markdown": _markdown, "csv": _csv, "latex": _latex}[form](table)


def _ours(cell: Cell) -> str:
    """``61.2 [57.8, 64.6]``, with n, k and the number of seeds."""
    e = cell.ours
    if e is None or e.value is None or e.low is None or e.high is None:
        return ""
    more = f", {cell.seeds} seeds" if cell.seeds > 1 else ""
    for name, share in (("ungraded", cell.ungraded), ("truncated", cell.truncated)):
        more += f", {name} unknown" if share is None else f", {share:.1%} {name}" if share else ""
    return f"{100 * e.value:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}] (n={e.n}, k={cell.k}{more})"


def _heads(spec: TableSpec) -> list[str]:
    return [benchmark_of(c).title for c in spec.columns]


def _markdown(table: Table) -> str:
    spec = table.spec
    notes: dict[str, int] = {}  # note -> its number
    lines = [f"**{spec.title}**", "", f"| | {' | '.join(_heads(spec))} |", f"|---{'|---' * len(spec.columns)}|"]
    for row, cells in zip(spec.rows, table.cells, strict=True):
        texts = []
        for cell in cells:
            mark = f" <sup>{notes.setdefault(cell.missing, len(notes) + 1)}</sup>" if cell.missing else ""
            paper = "" if cell.paper is None else f" *{cell.paper:.2f}*"
            texts.append(f"{_ours(cell) or '–'}{paper}{mark}")
        lines.append(f"| {row.label} | {' | '.join(texts)} |")
    lines += ["", _legend(spec)]
    lines += [f"{n}. `{note}`" if note.startswith(("ropd", "not")) else f"{n}. {note}" for note, n in notes.items()]
    return "\n".join(lines) + "\n"


def _legend(spec: TableSpec) -> str:
    text = (
        "Ours in percent with the 95 % interval over problems; the paper's number in italics; – is missing. "
        "Shares of ungraded and truncated answers are shown unless they are 0."
    )
    return f"{text} {spec.caption}".strip()


def _csv(table: Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["row", "benchmark", "value", "low", "high", "n", "k", "seeds", "ungraded", "truncated", "paper", "missing"]
    )
    for row, cells in zip(table.spec.rows, table.cells, strict=True):
        for name, cell in zip(table.spec.columns, cells, strict=True):
            e = cell.ours or Estimate(None, None, None, 0)
            numbers = ["" if v is None else f"{100 * v:.4f}" for v in (e.value, e.low, e.high)]
            shares = ["" if v is None else f"{v:.6f}" for v in (cell.ungraded, cell.truncated)]
            known = [*numbers, e.n or "", cell.k or "", cell.seeds or "", *shares]
            writer.writerow([row.label, name, *known, "" if cell.paper is None else cell.paper, cell.missing])
    return out.getvalue()


def _latex(table: Table) -> str:
    spec = table.spec
    lines = [f"% {spec.title}", f"\\begin{{tabular}}{{l{'c' * len(spec.columns)}}}", "\\toprule"]
    lines.append(" & ".join(["", *map(_tex, _heads(spec))]) + " \\\\ \\midrule")
    for row, cells in zip(spec.rows, table.cells, strict=True):
        lines.append(" & ".join([_tex(row.label), *map(_tex_cell, cells)]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", f"% {_legend(spec)}"]) + "\n"


def _tex_cell(cell: Cell) -> str:
    paper = "" if cell.paper is None else f" \\textit{{{cell.paper:.2f}}}"
    e = cell.ours
    if e is None or e.value is None or e.low is None or e.high is None:
        return f"--{paper}"
    up, down = 100 * (e.high - e.value), 100 * (e.value - e.low)
    return f"${100 * e.value:.1f}^{{+{up:.1f}}}_{{-{down:.1f}}}${paper}"


def _tex(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def paper_rows(text: str) -> dict[str, tuple[float | None, ...]]:
    """The paper's numbers by label, from lines ``label | 1.0 2.0 -``; ``-`` is a missing number."""
    found = {}
    for line in filter(str.strip, text.splitlines()):
        label, _, numbers = line.partition("|")
        found[label.strip()] = tuple(None if x == "-" else float(x) for x in numbers.split())
    return found
