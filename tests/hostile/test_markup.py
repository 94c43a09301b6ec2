"""Foreign text in a table or a page is shown unchanged: never parsed as markup, never interpreted by a terminal."""

from __future__ import annotations

import ast
import io
import logging
import pathlib
import re

import numpy as np
import pytest
from rich.progress import TextColumn
from rich.table import Table

from ropd_jax.analysis import rejudge, signal_study, timeline
from ropd_jax.evaluation import results
from ropd_jax.types import Criterion, Judgement, Message, Prompt, Rollout, RolloutGroup, Rubric
from ropd_jax.utils import tables
from ropd_jax.utils.logs import StderrHandler
from ropd_jax.utils.tracing import Span
from ropd_jax.workdir.groups import GroupsLog, read_groups
from ropd_jax.workdir.result import Result

PACKAGE = pathlib.Path(tables.__file__).parents[1]
TEXTS = [
    "Final [/b] result", "[a, b]", "[/]", "[bold red]x[/bold red]", "[link=http://x]y[/link]", "[@click=f]x[/]",
    "\\[b]", "[b", "b]", "[[b]]", ":cat:", ":warning:", "[#ff0000]x", "[not a style]x[/not a style]",
    "a [/a] [/b] [/c]", "[1, 2]", "<script>alert(1)</script>", "&lt;b&gt;", "$\\frac{$", "$x$", "_hidden", "{braces}",
    "%s %d", "100 %", "'\"`",
]  # fmt: skip
OBEYED = {
    "\x1b[2J\x1b[31mred": "\\x1b[2J\\x1b[31mred", "\x1b]0;title\x07": "\\x1b]0;title\\x07", "a\rb": "a\\x0db",
    "a\x08b": "a\\x08b", "\x9b31m": "\\x9b31m", "\x00": "\\x00", "\u202eabc": "\\u202eabc", "\ud800": "\\ud800",
    "\u2066x\u2069": "\\u2066x\\u2069", "\x0b\x0c": "\\x0b\\x0c",
}  # fmt: skip


def printed(*things, **how):
    file = io.StringIO()
    console = tables.console(file, width=200, **how)
    for thing in things:
        console.print(thing)
    return file.getvalue()


@pytest.mark.parametrize("text", [*TEXTS, *OBEYED], ids=ascii)
def test_a_text_is_shown_as_it_is_wherever_it_enters(text):
    seen = OBEYED.get(text, text)
    table = Table(f"head {text}", title=f"title {text}", caption=f"caption {text}")
    table.add_row(f"cell {text}")
    shown = printed(table, f"line {text}")
    for place in ("head", "title", "caption", "cell", "line"):
        assert f"{place} {seen}" in shown
    coloured = printed(table, f"line {text}", force_terminal=True, color_system="truecolor", highlight=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).count(seen) >= 5 and "\x1b]" not in coloured


def test_no_file_has_a_console_of_its_own_and_no_bar_reads_markup():
    assert "markup" in TextColumn.__init__.__annotations__
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rich":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            if path.name != "tables.py" or path.parent.name != "utils":
                ours = {"rich.box", "rich.table.Table", "rich.text.Text", "rich.console.Console"}
                ours |= {n for n in names if n.startswith("rich.progress.")}
                assert not {n for n in names if n.split(".")[0] == "rich"} - ours, path
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                assert call.split(".")[-1] not in ("Console", "from_markup"), path
                if call == "TextColumn":
                    assert any(k.arg == "markup" and ast.unparse(k.value) == "False" for k in node.keywords), path


@pytest.fixture
def run(tmp_path):
    """A stored run in which every foreign text is hostile."""
    criteria = tuple(Criterion(f"c{n}", text, 1, text) for n, text in enumerate(TEXTS))
    rubric = Rubric(criteria)
    passed = tuple((i % 2 == 0,) * len(criteria) for i in range(3))
    rollouts = tuple(Rollout(np.zeros(1, np.int32), np.zeros(1, np.float32), f"Answer: {i}", "stop") for i in range(3))
    group = RolloutGroup(Prompt(TEXTS[0], (Message("user", "q"),), answer="0"), np.zeros(1, np.int32), rollouts, 0, 0)
    judgement = Judgement(
        tuple(rubric.score(p) for p in passed), (None,) * 3, references=("r",), rubric=rubric, passed=passed,
        reference_passed=(passed[0],),
    )  # fmt: skip
    GroupsLog(tmp_path).write(0, [group], [judgement], [[0.0] * 3])
    return tmp_path


def test_a_category_with_markup_is_analysed(run, tmp_path):
    """The reproducer: `ropd analyze` ended with rich's MarkupError; a category ``[a, b]`` vanished."""
    found, r = signal_study.analyse(list(read_groups(run)), {})
    file = io.StringIO()
    signal_study.show(found, file=file)
    shown = " ".join(file.getvalue().split())
    assert "pass rate, Final [/b] result" in shown and "pass rate, [a, b]" in shown
    assert signal_study.draw(found, r, tmp_path / "signals.png").stat().st_size > 10_000


@pytest.mark.parametrize("text", TEXTS[:15], ids=ascii)
def test_every_table_of_results_shows_it(text, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    file = io.StringIO()
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 4}
    results.show(
        {
            "title": text, "problems": {"answered": 4, "of": 4}, "answers": 4, "metric": text, "value": estimate,
            "ungraded": {"answers": 1, "frac": 0.25, "causes": {text: 1}},
            "truncated": {"answers": 0, "frac": 0.0, "unknown": 0}, "k": [1, 1],
            "wrong": {}, "data": {"as_known": True}, "parts": {text: estimate},
        },
        file=file,
    )  # fmt: skip
    assert file.getvalue().count(text) >= 3
    assert text in str(Result(pathlib.Path("."), {"seed": text}))


@pytest.mark.parametrize("text", TEXTS[:15], ids=ascii)
def test_a_comparison_of_verifiers_shows_it(text, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    both = {"before": 0.5, "after": 0.5}
    rates = {f"health/{k}": 0.5 for k in ("pass_rate", "discriminative_frac")}
    criterion = {"agreement": 0.5, "kappa": 0.1, "answers": 4, "true_before": 1, "true_after": 2, "points": 1}
    found = {
        "run": text, "groups": 1, "steps": [0], "rubric": "stored", "groups_skipped": 0, "reward_mean": both,
        "verifier": {side: {"model": text} for side in both}, "zero_variance_frac": both,
        "health": dict.fromkeys(both, rates), "kappa": 0.1, "pearson": 0.5, "spearman_within_groups": None,
        "unscored": {side: {"rollouts": 1, "causes": {text: 1}} for side in both}, "reward_changed_frac": 0.5,
        "advantage_signs": {"flipped": 0, "rollouts": 4, "vanished": 0, "appeared": 0}, "rank_changed_frac": 0.5,
        "best_changed_frac": 0.5, "kappa_by_points": {1: 0.1},
        "criteria": [criterion | {"text": text, "prompt_id": text, "step": 0}],
    }  # fmt: skip
    file = io.StringIO()
    rejudge.show(found, file=file)
    assert file.getvalue().count(text) >= 6


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "$\\frac{$", '"><b>', "&lt;"])
def test_a_chart_shows_it(text, tmp_path):
    labels, bars = timeline.lanes([Span("step", 0.0, 2.0, 0, None), Span("sample", 0.0, 1.0, 0, None)])
    timeline.chart_png(tmp_path / "t.png", labels, bars, f"{text} $\\frac{{$")
    assert (tmp_path / "t.png").stat().st_size > 1_000


def test_no_file_writes_a_page():
    """The viewer's page gets its texts as data (tests/viewer); a page built from strings would need `html.escape`."""
    pages = {p.name for p in PACKAGE.rglob("*.py") if re.search(r"<(!doctype|html|p|div|table)\b", p.read_text())}
    assert pages == set()


def test_a_log_line_moves_no_cursor(capsys):
    handler = StderrHandler()
    record = logging.LogRecord("ropd_jax", logging.WARNING, "f", 1, "group %s\nfailed", ("p\x1b[2J\u202e1",), None)
    handler.emit(record)
    assert capsys.readouterr().err == "warning: group p\\x1b[2J\\u202e1\nfailed\n"
