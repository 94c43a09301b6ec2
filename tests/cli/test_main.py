"""Dispatch, exit codes and logging."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import io
import logging
import pathlib
import sys

import pytest

from ropd_jax.cli import grade
from ropd_jax.cli import main as cli
from ropd_jax.types import UserError
from ropd_jax.utils.logs import show_all_logs


@pytest.mark.parametrize(
    "error, code, message",
    [
        (UserError("the key OPENAI_API_KEY is missing"), 2, "ropd: error: the key OPENAI_API_KEY is missing\n"),
        (OSError(errno.ENOSPC, "No space left on device", "w/x"), 2, "ropd: error: no space left for w/x; free some"),
        (KeyboardInterrupt(), 130, "ropd: stopped\n"),
    ],
)
def test_errors_of_a_run_become_one_line(runs, monkeypatch, capsys, error, code, message):
    def fail(config, workdir):
        raise error

    monkeypatch.setattr(sys.modules["ropd_jax.train"], "train", fail)
    assert cli.main(["train", "--config", runs[0], "--workdir", "w"]) == code
    assert capsys.readouterr().err.startswith(message)


def test_a_finished_run_names_the_command_that_shows_why_each_reward(runs, capsys):
    assert cli.main(["train", "--config", runs[0], "--workdir", "my run"]) == 0
    assert "why each reward: ropd show 'my run' --worst 5\n" in capsys.readouterr().err
    assert cli.main(["train", "--config", runs[0], "--workdir", "w", "--config.log.groups=False"]) == 0
    assert "ropd show" not in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(runs, monkeypatch):
    def fail(config, workdir):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(sys.modules["ropd_jax.train"], "train", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "--config", runs[0], "--workdir", "w"])


def test_other_libraries_chatter_is_not_shown(capsys):
    show_all_logs()
    logging.getLogger("httpx").info("HTTP Request: POST")
    logging.getLogger("ropd_jax.train").info("training prompts: 12")
    logging.getLogger("ropd_jax.train").warning("slow")
    err = capsys.readouterr().err
    assert "HTTP Request" not in err
    assert "training prompts: 12\n" in err
    assert "warning: slow\n" in err


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("ropd_jax.training.failure_gate:TooManyFailures", 3),
        ("ropd_jax.teacher:BudgetError", 4),
        ("ropd_jax.utils.interrupt:Interrupted", 130),
        ("builtins:FloatingPointError", 6),
    ],
)
def test_an_exception_of_a_run_becomes_its_exit_code(runs, monkeypatch, capsys, place, code):
    module, name = place.split(":")
    error = getattr(importlib.import_module(module), name)

    def fail(config, workdir):
        raise error("enough of it")

    monkeypatch.setattr(sys.modules["ropd_jax.train"], "train", fail)
    assert cli.main(["train", "--config", runs[0], "--workdir", "w"]) == code
    err = capsys.readouterr().err
    assert err.endswith("error: stopped: enough of it\n")
    assert ("to resume: the same command with the same --workdir w" in err) == (code != 6)  # the same NaN again


def test_output_that_cannot_be_written_is_no_success(monkeypatch, capsys):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    assert cli.main(["--version"]) == 2
    assert "no space left" in capsys.readouterr().err


def test_a_grade_of_nothing_is_no_success(caplog):
    class Graded:
        def __init__(self, ungraded):
            self.data = {"ungraded": {"answers": ungraded}, "answers": 4}

        def show(self):
            pass

    assert [grade.shown(Graded(n)) for n in (0, 3, 4)] == [0, 0, 3]
    assert "none of the 4 answers could be graded" in caplog.text


def test_the_old_name_of_a_command_works_and_names_the_new_one(monkeypatch, capsys):
    found = []
    command = dataclasses.replace(cli.COMMANDS["collect-references"], run=lambda args: found.append(args["out"]))
    monkeypatch.setitem(cli.COMMANDS, "collect-references", command)
    args = ["--config", "experiments/quickstart.py", "--out", "r.jsonl"]
    assert cli.main(["teach", *args]) == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "ropd teach is now ropd collect-references" in err
    assert cli.main(["collect-references", *args]) == cli.main(["collect_references", *args]) == 0
    assert capsys.readouterr().err == "" and found == ["r.jsonl"] * 3


def test_every_file_of_the_folder_is_a_command():
    folder = pathlib.Path(cli.__file__).parent
    files = {p.stem for p in folder.glob("*.py")} - {"__init__", "main", "flags", "help"}
    assert {c.run.__module__.rpartition(".")[2] for c in cli.COMMANDS.values()} == files
