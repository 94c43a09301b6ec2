"""The rehearsal's parts, and one cell of a table from its footnote to its number."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shlex

import pytest

from benchmarks import rehearsal
from benchmarks import rehearsal_world as world
from ropd_jax.analysis.tables import collect, load_spec
from ropd_jax.cli.flags import parse
from ropd_jax.cli.table import TRAIN_FLAGS
from ropd_jax.configs import default, leaves
from ropd_jax.training.setup import check_config

FLAGS = rehearsal.ROOT / "experiments" / "rehearsal.flags"
SIZE = re.compile(r"(steps|size|tokens|rollouts|row_len|every|_k|tp|fsdp|at_once|per_step|benchmarks)$")
TABLE = """
| | AIME24 | AIME25 |
|---|---|---|
| Teacher | – *80.83* <sup>1</sup> | – *67.08* <sup>1</sup> |
| Base | 0.0 [0.0, 49.0] (n=4, k=2) *24.17* | – *20.83* <sup>2</sup> |
| ROPD | – *65.02* <sup>3</sup> | – *58.75* <sup>3</sup> |

Ours in percent; the paper's number in italics.
1. answers of an API: store them and use ropd grade
2. `ropd eval Qwen/Qwen3-4B --benchmark aime_2025 --nothinking --out evals/Qwen3-4B/aime_2025_nothinking`
3. `not trained: ropd train --config a.py:thinking --config.method=ropd --workdir runs/a; {}`
""".format("not trained: ropd train --config b.py --workdir runs/b")


def test_the_commands_are_those_of_the_printed_footnotes():
    assert rehearsal.commands_of(TABLE) == [
        "ropd eval Qwen/Qwen3-4B --benchmark aime_2025 --nothinking --out evals/Qwen3-4B/aime_2025_nothinking",
        "ropd train --config a.py:thinking --config.method=ropd --workdir runs/a",
        "ropd train --config b.py --workdir runs/b",
    ]


def test_a_cell_that_no_command_fills_is_not_missing():
    assert rehearsal.empty_cells(TABLE) == 3 and rehearsal.empty_cells(TABLE, "Base") == 1


def test_the_flags_change_sizes_and_addresses_only():
    flags = rehearsal.Flags(FLAGS, "http://127.0.0.1:1/v1")
    known = set(leaves(default()))
    for section in ("train", "paper", "judge", "curve"):
        for flag in flags[section]:
            key, _, value = flag.removeprefix("--config.").partition("=")
            assert key in known and value, flag
            assert SIZE.search(key) or key == "teacher.base_url", key


def test_flags_follow_what_is_printed_and_a_placeholder_becomes_the_teacher():
    flags = rehearsal.Flags(FLAGS, "http://127.0.0.1:1/v1")
    server = f"--config.teacher.base_url={rehearsal.SERVER}"
    train = flags.added(f"ropd train --config a.py:thinking,released {server} --workdir runs/a")
    address = "--config.teacher.base_url=http://127.0.0.1:1/v1"
    assert train[:6] == ["ropd", "train", "--config", "a.py:thinking,released", address, "--workdir"]
    assert "--config.steps=3" in train and "--config.optim.warmup_steps=1" not in train
    assert "--config.optim.warmup_steps=1" in flags.added("ropd train --config a.py --workdir runs/a")
    assert flags.added("ropd eval a --benchmark aime_2024")[-5:] == flags["eval"]
    judged = flags.added("ropd eval a --benchmark healthbench --config.teacher.verifier.model=m")
    assert judged[-1] == address


@pytest.mark.parametrize("column", rehearsal.COLUMNS)
@pytest.mark.parametrize("name", rehearsal.TABLES)
def test_both_columns_of_a_table_train_runs_of_their_own(name, column):
    spec = load_spec(f"experiments/{name}.py:{column}")
    trains = [row.train for row in spec.rows if row.train]
    assert trains and all(("released" in train) == (column == "released") for train in trains)
    assert all(run.endswith("_released") == (column == "released") for row in spec.rows for run in row.runs)


@pytest.mark.parametrize("name", rehearsal.TABLES)
def test_every_run_of_a_table_has_a_config_that_can_work(name):
    """Those that think differ in one key, see tests/test_experiments.py."""
    for column in rehearsal.COLUMNS:
        for row in load_spec(f"experiments/{name}.py:{column}").rows:
            for train in [row.train, *(train for _, train in row.special.values())]:
                if train and ":thinking" not in train:
                    check_config(parse(TRAIN_FLAGS, shlex.split(train)).config)


def test_the_cells_of_healthbench_name_a_judge():
    spec = load_spec("experiments/table1_blackbox.py")
    missing = collect(spec, runs="none", evals="none").cells[1][spec.columns.index("healthbench")].missing
    words = shlex.split(missing)
    assert "--config.teacher.verifier.model=gpt-4.1-2025-04-14" in words and "--config.teacher.provider=openai" in words


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A rehearsal's directory with data and students; environment and directory are put back."""
    monkeypatch.chdir(tmp_path)
    for name in ("ROPD_DATA", "OPENAI_API_KEY", "HF_HUB_OFFLINE", "XLA_FLAGS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    rehearsal.prepare(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_row_is_filled_from_its_footnotes_and_nothing_runs_twice(here, capfd):
    """Table 3's ROPD row on one benchmark: train, then eval, as printed; a second pass finds nothing to do."""
    spec = load_spec("experiments/table3_gemma.py:released")
    row = dataclasses.replace(spec.rows[-1], paper=spec.rows[-1].paper[:1])
    (here / "table.py").write_text(
        "from ropd_jax.analysis.tables import Row, TableSpec\n\n\n"
        f"def get_table():\n    row = Row({row.label!r}, {row.paper!r}, {row.runs!r}, {row.train!r})\n"
        "    return TableSpec('One row', ('aime_2024',), (row,))\n"
    )
    with world.serving(here / "data" / "answer_key.jsonl", here / "port") as teacher:
        flags = rehearsal.Flags(FLAGS, teacher)
        flags["train"].extend(["--config.steps=1", *flags["curve"]])
        first, second = rehearsal.Rehearsal(flags), rehearsal.Rehearsal(flags)
        table = first.fill("table.py")
        assert second.fill("table.py") == table and second.ran == []
    assert [(command.split()[1], code) for command, code, _ in first.ran] == [("train", 0), ("eval", 0)]
    assert rehearsal.empty_cells(table) == 0 and "(n=4, k=2" in table
    logged = pathlib.Path("runs/gemma3_4b_it_ropd_released/metrics.jsonl").read_text()
    rows = [json.loads(line) for line in logged.splitlines()]
    assert [row["eval/aime_2024_n"] for row in rows if "eval/aime_2024_n" in row] == [4, 4]  # before and after
    assert any(row.get("update/count") == 4 for row in rows)  # the released code's mini-batches, all with a gradient
    assert "train --config experiments/gemma3_4b_it.py:released" in capfd.readouterr().out
