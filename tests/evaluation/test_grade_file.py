"""``ropd grade`` from the command line: output, files, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ropd_jax.cli.main import main
from ropd_jax.evaluation.results import compare
from ropd_jax.types import UserError

ROWS = [{"id": f"t{n}", "problem": f"What is {n}+{n}?", "answer": str(2 * n)} for n in range(4)]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "aime_2024.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    return tmp_path


def answers(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def box(n, id_, **more):
    return {"id": id_, "response": rf"It is \boxed{{{n}}}", **more}


def grade(data, rows, *flags, out="r.json"):
    file = answers(data / f"{out}.answers.jsonl", rows)
    base = ["grade", "--benchmark=aime_2024", f"--answers={file}", f"--data={data}", f"--out={data / out}"]
    assert main([*base, *flags]) == 0
    return json.loads((data / out).read_text())


MIXED = [
    box(0, "t0", finish_reason="stop"), box(0, "t0", finish_reason="stop"),
    box(2, "t1", finish_reason="stop"), box(3, "t1", finish_reason="length"),
    box(5, "t2"), {"id": "t2", "response": "it is 4"},
    box(6, "t3"), box(r"\frac{12}{2}", "t3"),
]  # fmt: skip


def test_the_numbers_of_a_small_file_by_hand(data, capsys):
    result = grade(data, MIXED)
    assert result["per_problem"] == {"t0": 1.0, "t1": 0.5, "t2": 0.0, "t3": 1.0}
    assert (result["metric"], result["value"]["value"], result["value"]["n"]) == ("avg@2", 2.5 / 4, 4)
    assert {j: e["value"] for j, e in result["pass"].items()} == {"1": 0.625, "2": 0.75}
    assert result["maj"]["value"] == 0.625  # t1 is a tie between a right and a wrong answer
    assert result["ungraded"] == {"answers": 0, "frac": 0.0, "causes": {}}
    assert result["truncated"] == {"answers": 1, "frac": 0.25, "unknown": 4}
    assert result["wrong"] == {"different": 2, "no_box": 1}
    assert result["bounds"] == [0.625, 0.625]
    assert result["problems"] == {"answered": 4, "of": 4}
    shown = capsys.readouterr().out
    assert "avg@2" in shown and "62.50 %" in shown and "truncated: 1 of 4 answers (25.0%)" in shown
    assert "ungraded:  0 of 8" in shown and "are not the complete data set" in shown


def test_an_answer_that_the_grader_gives_up_on_is_in_no_number(data):
    rows = [box("9^{9^{9^9}}", "t1"), box(2, "t1"), box("9^{9^{9^9}}", "t2"), box(6, "t3")]
    result = grade(data, rows, "--timeout_s=1", "--workers=1")
    assert result["per_problem"] == {"t1": 1.0, "t2": None, "t3": 1.0}
    assert (result["value"]["value"], result["value"]["ungraded"]) == (1.0, 1)
    assert result["ungraded"]["answers"] == 2 and sum(result["ungraded"]["causes"].values()) == 2
    assert result["bounds"] == [0.5, 1.0]
    assert result["k"] == [1, 2]


def test_the_paired_difference_to_an_earlier_result(data, capsys):
    grade(data, [box(2 * n, f"t{n}") if n < 2 else box(1, f"t{n}") for n in range(4)], out="a.json")
    result = grade(data, [box(2 * n, f"t{n}") for n in range(4)], f"--against={data / 'a.json'}", out="b.json")
    assert (result["difference"]["value"], result["difference"]["n"]) == (0.5, 4)
    assert result["difference"]["low"] <= 0.5 <= result["difference"]["high"]
    assert "difference to" in capsys.readouterr().out


def test_two_results_of_different_questions_are_not_compared(data):
    a = grade(data, MIXED)
    with pytest.raises(UserError, match="different data"):
        compare(a, a | {"data": a["data"] | {"sha": "x"}})
    with pytest.raises(UserError, match="one result is for aime_2024, the other for gsm8k"):
        compare(a, a | {"benchmark": "gsm8k"})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([box(1, "t9")], "row 1 answers 't9'.*expected ids like 't0'"),
        ([{"id": "t0"}], "row 1 has the keys id; expected id and response"),
        ([], "is empty"),
    ],
)
def test_answers_that_fit_no_problem_are_refused(data, capsys, rows, message):
    file = answers(data / "a.jsonl", rows)
    assert main(["grade", "--benchmark=aime_2024", f"--answers={file}", f"--data={data}"]) == 2
    import re

    assert re.search(message, capsys.readouterr().err)


def test_missing_flags_and_a_missing_judge_are_said(data, capsys):
    assert main(["grade", "--benchmark=aime_2024"]) == 2
    assert "--answers is missing" in capsys.readouterr().err
    assert main(["grade", "--benchmark=aime", "--answers=x"]) == 2
    assert "did you mean aime_20" in capsys.readouterr().err
    row = {"prompt_id": "h", "prompt": [{"role": "user", "content": "q"}], "rubrics": [{"criterion": "c", "points": 1}]}
    (data / "healthbench.jsonl").write_text(json.dumps(row) + "\n")
    file = answers(data / "a.jsonl", [{"id": "h", "response": "x"}])
    assert main(["grade", "--benchmark=healthbench", f"--answers={file}", f"--data={data}"]) == 2
    assert "which the scripted teacher is not" in capsys.readouterr().err


def test_grading_never_imports_jax(data):
    file = answers(data / "a.jsonl", [{"id": "t1", "response": r"\boxed{\frac42}"}])
    program = (
        "import sys; from ropd_jax.cli.main import main; "
        f"code = main(['grade', '--benchmark=aime_2024', '--answers={file}', '--data={data}']); "
        "sys.exit(code or ('jax' in sys.modules and 9))"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": root}, check=False)
    assert done.returncode == 0


def test_a_vote_is_over_equal_answers_wrong_ones_included(data):
    rows = [box(a, "t1") for a in (r"\frac12", "0.5", "1/2", "2", "2.0")]  # 3 : 2 for a wrong value in three spellings
    rows += [box(a, "t2") for a in (r"\sqrt{2}", "2^{1/2}", r"\frac{2}{\sqrt 2}", "4", r"\frac{8}{2}")]  # needs algebra
    rows += [box(a, "t3") for a in ("6", "6.0", r"\frac{12}{2}", "7", "8")]
    assert grade(data, rows)["maj"]["value"] == pytest.approx(1 / 3)


def test_a_thought_that_was_cut_is_no_answer(data):
    thought = "2 + 2 is 5, \\boxed{5}, no"
    rows = [{"id": "t2", "response": f"{thought} </think> \\boxed{{4}}"}, {"id": "t2", "response": "so \\boxed{4}, or"}]
    result = grade(data, rows)  # the first line shows that the template opened <think>
    assert result["value"]["value"] == 0.5 and result["wrong"] == {"no_box": 1}
    assert grade(data, rows[1:], out="alone.json")["value"]["value"] == 1.0
