"""``ropd show``: the matrix of a group, lists of groups; hostile text stays text, at any width and encoding."""

from __future__ import annotations

import io
import re
import unicodedata

import pytest

from ropd_jax.cli.main import main as ropd
from ropd_jax.types import Criterion, Rubric
from ropd_jax.utils import tables
from ropd_jax.viewer import terminal
from tests.hostile.test_corpus import ANSWERS
from tests.hostile.test_markup import OBEYED, TEXTS
from tests.viewer.stored import F, T, write_group


@pytest.fixture
def run(tmp_path):
    write_group(tmp_path, 0)
    write_group(tmp_path, 1, ((F, F), (F, F), (F, F)), question="A worse one")
    write_group(tmp_path, 1, ((T, T), (T, T), (T, F)), index=1, finish="length")
    return tmp_path


def shown(run, width=80, encoding="utf-8", **how):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    terminal.show(str(run), console=tables.console(file, width=width), **how)
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def test_a_group_is_a_matrix_of_criteria_and_answers(run):
    text = shown(run, step=0, group=0)
    assert "What is 2 + 3?" in text and "gold answer: 5" in text
    lines = [line.rstrip() for line in text.splitlines()]
    assert [re.sub(r"\s+", " ", line).strip() for line in lines if "Adds" in line or "Ends" in line] == [
        "1 c1 Adds the first two numbers. 100% ✓ ✓ · ✓",
        "3 c2 Ends with 5. 50% ✓ ✗ · ✓",
    ]
    answers = [re.sub(r"\s+", " ", line).strip() for line in lines]
    assert "0 1.00 +0.38 ██████ right 2 + 3 = 5 Answer: 5" in answers
    assert "1 0.25 -0.38 ██████ wrong 2 + 3 = 6 Answer: 6" in answers
    assert "2 right [unscored: malformed] Answer: 5" in answers
    assert "R0 1.00 So 5. Answer: 5" in answers


def test_the_worst_and_the_unscored_are_listed_with_the_command_that_opens_them(run, capsys):
    assert ropd(["show", str(run), "--worst", "2"]) == 0
    out = capsys.readouterr().out
    rows = [line.split()[:3] for line in out.splitlines() if re.match(r"\s+\d", line)]
    assert rows == [["1", "0", "0.00"], ["0", "0", "0.62"]]
    assert f"ropd show {run} --step 1 --group 0" in out and "flat" in out
    assert ropd(["show", str(run), "--unscored"]) == 0
    out = capsys.readouterr().out
    assert "1 unscored" in out and "A worse one" not in out
    assert ropd(["show", str(run), "--unscored", "--step", "1"]) == 0
    assert "no groups with unscored answers" in capsys.readouterr().out
    assert ropd(["show", str(run)]) == 0
    out = capsys.readouterr().out
    assert "step 1: groups" in out and "3 cut" in out and "\x1b" not in out
    assert ropd(["show", str(run), "--group", "1"]) == 0
    assert "step 1, group 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args, message",
    [
        (["--step", "7"], "has no step 7; it has 0 to 1"),
        (["--step", "0", "--group", "5"], "step 0 has no group 5; it has 0 to 0"),
        (["--group", "0", "--worst", "3"], "--group 0 shows one group"),
        (["--worst", "0"], "--worst=0"),
    ],
)
def test_a_group_that_is_not_there_is_one_line(run, capsys, args, message):
    assert ropd(["show", str(run), *args]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_directory_without_groups_is_one_line(tmp_path, capsys):
    for args in ([], ["--worst", "1"], ["--step", "0"]):
        assert ropd(["show", str(tmp_path), *args]) == 2
        err = capsys.readouterr().err
        assert "expected the directory of a run" in err and err.count("\n") == 1


HOSTILE = list(dict.fromkeys([*TEXTS, *OBEYED, *ANSWERS[::7], *ANSWERS[-6:]]))


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_hostile_text_stays_text_and_no_line_is_wider_than_the_console(tmp_path, encoding):
    hostile = HOSTILE if encoding == "utf-8" else HOSTILE[::3]
    for i, text in enumerate(hostile):
        rubric = Rubric((Criterion("c1", text, 1, text),))
        write_group(tmp_path, i, ((T,), (F,), None), texts=(text, f"x {text}", "y"), question=f"q {text}", gold=text,
                    rubric=rubric, reference=text, reference_passed=((T,),), causes=(None, None, text))  # fmt: skip
        out = shown(tmp_path, step=i, group=0, encoding=encoding)
        assert not {c for c in out if unicodedata.category(c) in ("Cc", "Cs")} - {"\n", "\t"}, ascii(text)
        assert max(map(cells, out.splitlines())) <= 80, ascii(text)
        assert text not in TEXTS or f"q {text}" in out, ascii(text)
    shown(tmp_path, worst=len(hostile), encoding=encoding)


def cells(line):
    return sum(
        0
        if unicodedata.combining(c) or unicodedata.category(c) == "Cf"
        else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in line
    )


@pytest.mark.parametrize("answers", [1, 12, 64])
@pytest.mark.parametrize("width", [40, 80, 140])
def test_many_answers_take_several_tables_and_every_verdict_is_shown(tmp_path, answers, width):
    write_group(tmp_path, 0, ((T, F),) * answers, texts=("Answer: 5",) * answers)
    out = shown(tmp_path, width, step=0, group=0)
    assert max(map(len, out.splitlines())) <= width
    matrix = out[: out.index(" met,")]
    assert matrix.count("✗") == answers and matrix.count("✓") == answers + 2 + 1  # the references, and the legend
