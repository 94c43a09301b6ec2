"""``ropd tape``."""

from __future__ import annotations

import json

import pytest

from ropd_jax.cli import main as cli
from ropd_jax.teacher import BlockedError, ChatReply, ChatRequest, Tape, Usage
from ropd_jax.teacher.asking import REASK_TEMPLATE
from ropd_jax.teacher.roles import templates
from ropd_jax.teacher.tape.inspect import reasked
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


@pytest.fixture
def recorded(tmp_path):
    """A tape with an answered verification, a rubric that was asked for again, and a failed reference."""
    tape = Tape(tmp_path / "run" / "tape.sqlite")
    question = Message("user", "Q")
    tape.put("openai", ChatRequest("verify", (Message("user", "V"),), "m"), ChatReply("fine"))
    tape.put("openai", ChatRequest("rubric", (question,), "m"), ChatReply("bad \x1b[2J"))
    asked = templates.fill(REASK_TEMPLATE, problem="3 criteria; expected 4 to 12")
    again = (question, Message("assistant", "bad \x1b[2J"), Message("user", asked))
    tape.put("openai", ChatRequest("rubric", again, "m"), ChatReply("good"))
    tape.put_failure(
        "openai", ChatRequest("reference", (Message("user", "R"),), "m"), BlockedError("blocked by a filter"), step=3
    )
    tape.close()
    return str(tmp_path / "run")


def test_show_failed_has_the_reason_the_reply_and_what_came_next(recorded, capsys):
    assert cli.main(["tape", "show", recorded, "--role", "rubric", "--failed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("rubric: malformed (openai: m, ")
    assert lines[1:] == [
        "    problem: 3 criteria; expected 4 to 12",
        "    reply: bad \\x1b[2J",
        "    after the re-ask: good",
    ]
    assert cli.main(["tape", "show", recorded, "--failed", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["replies"]
    assert [(r["role"], r["cause"], r["step"]) for r in rows] == [
        ("reference", "blocked", 3),
        ("rubric", "malformed", None),
    ]


def test_show_without_failed_has_the_newest_replies(recorded, capsys):
    assert cli.main(["tape", "show", recorded, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["replies"]
    assert [(r["role"], r["reply"], r["next"]) for r in rows] == [
        ("reference", None, None), ("rubric", "bad \x1b[2J", "good"), ("rubric", "bad \x1b[2J", None),
        ("verify", "fine", None),
    ]  # fmt: skip
    assert cli.main(["tape", "show", recorded, "--n", "1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["replies"]) == 1
    assert cli.main(["tape", "show", recorded, "--role", "verify", "--failed"]) == 0
    assert "has no such replies" in capsys.readouterr().out
    assert cli.main(["tape", "show", recorded, "--role", "rubrik"]) == 2
    assert "did you mean rubric" in capsys.readouterr().err


def test_an_empty_reply_is_not_quoted_in_a_re_ask_and_a_question_of_that_form_is_none(tmp_path):
    asked = templates.fill(REASK_TEMPLATE, problem="the reply was empty")
    assert reasked([["user", "Q"], ["user", asked]]) == ("the reply was empty", "")
    assert reasked([["user", asked]]) is None and reasked([["system", "S"], ["user", "Q"]]) is None
