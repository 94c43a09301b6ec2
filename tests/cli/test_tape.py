"""``ropd tape``."""

from __future__ import annotations

import json

import pytest

from ropd_jax.cli import main as cli
from ropd_jax.teacher import ChatReply, ChatRequest, Tape, Usage
from ropd_jax.types import Message


def test_stats_export_and_import(tmp_path, capsys):
    tape = Tape(tmp_path / "run" / "tape.sqlite")
    ask = ChatRequest("verify", (Message("user", "x"),), "gpt-4.1")
    tape.put("openai", ask, ChatReply("ok", usage=Usage(1_000_000, 0)))
    tape.close()
    run, out, other = str(tmp_path / "run"), str(tmp_path / "a.jsonl"), str(tmp_path / "b.sqlite")
    assert cli.main(["tape", "stats", run]) == 0
    assert "$2.00" in capsys.readouterr().out
    assert cli.main(["tape", "export", run, out]) == 0
    assert cli.main(["tape", "import", other, out]) == 0
    assert "1 entries added" in capsys.readouterr().out
    assert cli.main(["tape", "stats", other, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["input_tokens"] == 1_000_000


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "needs an action"),
        (["stat"], "did you mean stats"),
        (["stats", "/nowhere"], "there is no tape '/nowhere'"),
        (["export", "x"], "takes TAPE FILE.jsonl"),
        (["stats", "--jsn"], "no flag --jsn"),
    ],
)
def test_wrong_use_is_one_line(args, words, capsys):
    assert cli.main(["tape", *args]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
