from __future__ import annotations

import csv
import json
import pathlib
import time

import pytest

from ropd_jax.analysis.tables import Row, TableSpec, collect, load_spec, paper_rows, render
from ropd_jax.cli.main import main
from ropd_jax.types import UserError

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
GSM = "gsm8k"


def result(place, values, *, rule="last", k=4, ungraded=0.0, truncated=0.0):
    place.mkdir(parents=True)
    row = {"benchmark": GSM, "per_problem": values, "k": [k, k], "checkpoint": {"rule": rule}, "data": {"sha": "x"},
           "ungraded": {"frac": ungraded}, "truncated": {"frac": truncated}}  # fmt: skip
    (place / "result.json").write_text(json.dumps(row))


@pytest.fixture
def spec():
    rows = (
        Row("ROPD", (65.02, 1.0), ("a0", "a1"), "--config c.py --config.seed={seed}", method="ropd"),
        Row("other", (60.0, None), ("b0",), "--config c.py", {"math_500": (("m0",), "--config m.py")}),
        Row("base", checkpoint="org/tiny", thinking=False),
        Row("teacher", note="an API"),
        Row("new", (1.0, 2.0), ("n0",), "--config c.py", method="nosuch"),
    )
    return TableSpec("T", (GSM, "math_500"), rows, eval_flags="--k 4")


def test_a_cell_is_the_mean_over_seeds_with_its_interval_over_problems(spec, tmp_path):
    result(tmp_path / "a0" / "eval" / "gsm8k_step2", {"p": 0.0, "q": 0.0})  # an older checkpoint
    result(tmp_path / "a0" / "eval" / "gsm8k_step10", {"p": 1.0, "q": 0.0})
    result(tmp_path / "a0" / "eval" / "gsm8k_step20", {"p": 1.0, "q": 1.0}, rule="heldout")  # another rule
    result(tmp_path / "a1" / "eval" / "gsm8k_step10", {"p": 1.0, "q": None})
    cell = collect(spec, runs=str(tmp_path)).cells[0][0]
    assert (cell.ours.value, cell.ours.n, cell.k, cell.seeds, cell.missing) == (0.5, 2, 4, 2, "")
    assert (cell.ours.low, cell.ours.high) == (0.0, 1.0) and cell.paper == 65.02


def test_an_empty_cell_says_what_is_missing_and_the_command(spec, tmp_path):
    (tmp_path / "b0").mkdir()
    (tmp_path / "b0" / "result.json").write_text("{}")
    cells = collect(spec, runs=str(tmp_path), evals="evals").cells
    runs = [f"not trained: ropd train --config c.py --config.seed={s} --workdir {tmp_path}/a{s}" for s in (0, 1)]
    assert cells[0][0].missing == "; ".join(runs)
    assert cells[1][0].missing == f"not evaluated: ropd eval {tmp_path}/b0 --pick last --benchmark gsm8k --k 4"
    assert cells[1][1].missing == f"not trained: ropd train --config m.py --workdir {tmp_path}/m0"
    place = "evals/tiny/gsm8k_nothinking"
    assert cells[2][0].missing == f"ropd eval org/tiny --benchmark gsm8k --k 4 --nothinking --out {place}"
    assert cells[3][0].missing == "an API"
    assert cells[4][0].missing == "the method nosuch is not in this version"


def test_a_command_to_train_says_what_it_costs_once_a_run(spec, tmp_path):
    asked = {}
    cells = collect(spec, runs=str(tmp_path), cost=lambda t, like: asked.setdefault(t, like) and f"${len(asked)}").cells
    assert cells[1][1].missing.endswith(f"--workdir {tmp_path}/m0 ($4)")
    seeds = (f"{tmp_path}/a0", f"{tmp_path}/a1")
    assert asked == {"--config c.py --config.seed=0": seeds, "--config c.py --config.seed=1": seeds,
                     "--config c.py": (f"{tmp_path}/b0",), "--config m.py": (f"{tmp_path}/m0",)}  # fmt: skip


def test_one_seed_of_two_is_shown_and_the_other_named(spec, tmp_path):
    result(tmp_path / "a0" / "eval" / "gsm8k_step10", {"p": 1.0})
    cell = collect(spec, runs=str(tmp_path)).cells[0][0]
    assert cell.seeds == 1 and "--config.seed=1" in cell.missing and "--config.seed=0" not in cell.missing


def test_three_formats_hold_the_same_numbers(spec, tmp_path):
    result(tmp_path / "b0" / "eval" / "gsm8k_step3", {"p": 1.0, "q": 0.0, "r": 1.0, "s": 1.0}, truncated=None)
    result(tmp_path / "evals" / "tiny" / "gsm8k_nothinking", {"p": 1.0}, ungraded=0.125)
    table = collect(spec, runs=str(tmp_path), evals=str(tmp_path / "evals"))
    text = render(table, "markdown")
    assert "| other | 75.0 [25.0, 100.0] (n=4, k=4, truncated unknown) *60.00* |" in text
    assert "| base | 100.0 [20.7, 100.0] (n=1, k=4, 12.5% ungraded) |" in text
    assert "| | GSM8K | MATH-500 |" in text
    rows = list(csv.DictReader(render(table, "csv").splitlines()))
    numbers = [rows[2][name] for name in ("value", "low", "high", "n", "k", "seeds", "paper", "missing")]
    assert numbers == ["75.0000", "25.0000", "100.0000", "4", "4", "1", "60.0", ""]
    assert r"other & $75.0^{+25.0}_{-50.0}$ \textit{60.00} &" in render(table, "latex")
    with pytest.raises(UserError, match="expected one of markdown, csv, latex"):
        render(table, "html")


def test_the_papers_numbers_are_read_by_label():
    assert paper_rows("a b | 1.5 - 3\nc | 4 5 6\n") == {"a b": (1.5, None, 3.0), "c": (4.0, 5.0, 6.0)}
    with pytest.raises(UserError, match="2 numbers of the paper for 1 columns"):
        TableSpec("T", (GSM,), (Row("x", (1.0, 2.0)),))


@pytest.mark.parametrize(
    "name", ["table1_blackbox", "table2_whitebox", "table3_gemma", "table6_ablation", "table_quickstart", "table_mini"]
)
def test_every_table_of_experiments_renders_and_names_configs_that_exist(name, tmp_path):
    begin = time.process_time()
    spec = load_spec(str(EXPERIMENTS / f"{name}.py"))
    for form in ("markdown", "csv", "latex"):
        assert render(collect(spec, runs=str(tmp_path), evals=str(tmp_path)), form)
    assert time.process_time() - begin < 5
    trained = [t for row in spec.rows for t in (row.train, *(s[1] for s in row.special.values())) if t]
    for flags in trained:
        file = flags.removeprefix("--config ").split()[0].partition(":")[0]
        assert (EXPERIMENTS.parent / file).is_file(), flags


def test_table_1_has_the_papers_numbers():
    rows = {row.label: row.paper for row in load_spec(str(EXPERIMENTS / "table1_blackbox.py")).rows}
    assert len(rows) == 11
    assert rows["non-thinking: ROPD"] == (65.02, 58.75, 31.69, 41.67, 36.50, 84.92, 85.28)
    assert rows["thinking: base"][3:5] == (48.75, 53.59)


def test_the_command_writes_the_table(tmp_path, capsys):
    out = tmp_path / "t.csv"
    file = str(EXPERIMENTS / "table3_gemma.py")
    assert main(["table", file, "--format=csv", f"--out={out}", f"--runs={tmp_path}"]) == 0
    assert out.read_text().count("\n") == 17
    assert main(["table", "nosuch.py"]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["table", str(EXPERIMENTS / "quickstart.py")]) == 2
    assert "has no get_table()" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_table(:\n", r"t\.py:1: SyntaxError: .*; fix this line"),
        ("import nothing_like_it\n", r"t\.py:1: ModuleNotFoundError"),
        ("def get_table():\n    return 1 / 0\n", r"t\.py:2: ZeroDivisionError"),
        ("def get_table():\n    return 3\n", r"t\.py: get_table\(\) returned a int; expected a TableSpec"),
        ("x = 1\n", r"t\.py has no get_table\(\); define one that returns a TableSpec"),
        ("def get_config():\n    pass\n", r"t\.py has no get_table\(\); ropd train takes it"),
    ],
)
def test_a_broken_table_file_is_one_line(tmp_path, text, message):
    (tmp_path / "t.py").write_text(text)
    with pytest.raises(UserError, match=message) as e:
        load_spec(str(tmp_path / "t.py"))
    assert "\n" not in str(e.value)


def test_a_table_file_can_hold_a_dataclass(tmp_path):
    (tmp_path / "t.py").write_text(
        "from __future__ import annotations\nimport dataclasses\nfrom ropd_jax.analysis.tables import TableSpec\n\n"
        "@dataclasses.dataclass\nclass A:\n    x: int = 1\n\ndef get_table():\n    return TableSpec('T', (), ())\n"
    )
    assert load_spec(str(tmp_path / "t.py")).title == "T"


def test_what_follows_a_colon_chooses_the_column_and_a_wrong_one_is_named(tmp_path):
    file = str(EXPERIMENTS / "table3_gemma.py")
    assert load_spec(file) == load_spec(f"{file}:paper") and "released settings" in load_spec(f"{file}:released").title
    with pytest.raises(UserError, match="variant 'release' is unknown; did you mean released"):
        load_spec(f"{file}:release")
    (tmp_path / "t.py").write_text("def get_table():\n    return None\n")
    with pytest.raises(UserError, match=r"get_table\(\) takes no argument, but 'x' was given"):
        load_spec(f"{tmp_path / 't.py'}:x")


def test_a_column_has_flags_of_its_own(tmp_path):
    spec = TableSpec("T", (GSM, "math_500"), (Row("a", checkpoint="org/tiny"),), "--k 2", column_flags={GSM: "--x 1"})
    first, second = collect(spec, runs=str(tmp_path), evals=str(tmp_path)).cells[0]
    assert "--benchmark gsm8k --k 2 --x 1 --out" in first.missing
    assert "--benchmark math_500 --k 2 --out" in second.missing
