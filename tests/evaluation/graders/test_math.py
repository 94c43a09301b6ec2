r"""The math grader: every known way of fooling math-verify 0.9, and its timeouts."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time

import pytest

from ropd_jax.data.grader import last_box
from ropd_jax.evaluation.graders.math import boxed, decide, grade_math
from ropd_jax.evaluation.graders.math_pool import MathPoolError, Verdict, verify_all
from ropd_jax.utils import sandbox
from tests.helpers import local_rows


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (r"\boxed{5}. Wait, no: \boxed{7}", "7"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\left\{ 1, 2 \right.}", r"\left\{ 1, 2 \right."),
        (r"\boxed{\boxed{5}}", "5"),
        (r"first \boxed{5} but \boxed{6", "5"),
        (r"\boxed {5}", "5"),
        (r"$$\boxed{ 5\,000. }$$", "5 000"),
        (r"line\\\boxed{5}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{5", None),
        (r"\boxed5", None),
        (r"\fbox{5}", None),
        ("so 3 cases giving 5", None),
        ("7. Also $x=9$", None),
        (r"<think>\boxed{4}</think> It is \boxed{5}", "5"),
        (r"<think>\boxed{4}</think> I do not know", None),
    ],
)
def test_only_the_last_balanced_box_is_the_answer(text, want):
    assert boxed(text) == want


def test_a_wall_of_boxes_costs_no_time():
    begin = time.process_time()
    assert last_box("\\boxed{" * 50_000) == (-1, None)
    assert last_box("\\boxed{" * 50_000 + "}" * 50_000)[0] == 0
    assert boxed("{" * 200_000 + r"\boxed{5}") == "5"
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("gold", "answer", "want"),
    [
        ("5", None, Verdict(False, "no_box")),
        ("5", "", Verdict(False, "empty")),
        ("5", "5" * 201, Verdict(False, "too_long")),
        ("204", "204", Verdict(True)),
        ("204", "204.0", Verdict(True)),
        ("-5", "-5", Verdict(True)),
        ("1000", "1,000", Verdict(True)),
        ("1000", "1 000", Verdict(True)),
        ("0.5", "1/2", Verdict(True)),
        ("1e-7", "2e-7", Verdict(False, "different")),
        ("1e-7", "0.0000001", Verdict(True)),
        ("0.3333333", "0.33333331", Verdict(False, "different")),
        (r"\frac{1}{2}", r"\frac{1}{2}", Verdict(True)),
        ("3", boxed(r"\boxed{3,}"), Verdict(True)),
        ("x", "5", ("x", "5")),
        ("11/2", "1 1/2", Verdict(False, "different")),
        ("3/2", "1 1/2", Verdict(True)),
        ("3400", "3, 400", ("3400", "3, 400")),
        ("100121", "100, 121", ("100121", "100, 121")),
        ("0.00001", "1e-05", Verdict(True)),
    ],
)
def test_what_needs_no_algebra_is_decided_exactly(gold, answer, want):
    assert decide(gold, answer) == want


PAIRS = {
    # algebra
    (r"\frac{1}{2}", r"\dfrac12"): True,
    (r"2^{25} \cdot 26!", r"26! \cdot 2^{25}"): True,
    (r"\sqrt{23}-2 \sqrt{3}", r"-2\sqrt3+\sqrt{23}"): True,
    (r"\frac{-1+\sqrt{17}}{2}, \frac{-1-\sqrt{17}}{2}", r"\frac{-1-\sqrt{17}}{2},\frac{-1+\sqrt{17}}{2}"): True,
    (r"\frac{-1+\sqrt{17}}{2}, \frac{-1-\sqrt{17}}{2}", r"\frac{-1+\sqrt{17}}{2}"): False,
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"): True,
    ("204", r"\frac{408}{2}"): True,
    ("204", r"\frac{407}{2}"): False,
    # lenient, accepted
    ("50", r"50\%"): True,
    (r"10\%", "10"): True,
    ("5", "x=5"): True,
    ("10", "1+2+3+4"): True,
    (r"\frac13", "0.333333"): True,
    (r"\frac13", "0.3333"): False,
    (r"\{1,2\}", "(1,2)"): True,
    ("(1,2)", r"\{1,2\}"): True,
    (r"0\le x<1", "[0,1)"): True,
    # strict, accepted
    ("[0,1)", r"0\le x<1"): False,
    (r"\frac{-1+\sqrt{17}}{2}, \frac{-1-\sqrt{17}}{2}", r"\frac{-1\pm\sqrt{17}}{2}"): False,
    ("11", r"\mathrm{11~m/s}"): False,
    ("11", r"11\text{ m/s}"): True,
    # lists and matrices: the spaces and backslashes count
    ("3400", "3, 400"): False,
    ("100121", "100, 121"): False,
    ("100, 121", "121, 100"): True,
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\left(\begin{array}{c} 1 \\ 2 \end{array}\right)"): True,
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix} 1\\[2pt] 2 \end{bmatrix}"): True,
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"): False,
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"): False,
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 12 \end{pmatrix}"): False,
}


def test_math_verify_forgives_and_refuses_what_it_is_known_for():
    golds, answers = zip(*PAIRS, strict=True)
    got = grade_math(golds, [rf"It is \boxed{{{a}}}" for a in answers], workers=1, timeout_s=30)
    assert {pair: v.right for pair, v in zip(PAIRS, got, strict=True)} == PAIRS


def test_a_hostile_answer_is_ungraded_in_bounded_time_and_the_others_are_graded():
    pairs = [("7", "9^{9^{9^9}}"), ("7", "(10^6)!"), (r"\frac12", r"\frac{2}{4}"), ("x", "y")]
    begin = time.monotonic()
    got = verify_all(pairs, workers=1, timeout_s=2)
    assert [v.right for v in got] == [None, None, True, False]
    assert {v.cause for v in got[:2]} <= {"timeout", "memory"}
    assert time.monotonic() - begin < 60


def test_it_grades_in_any_thread_and_takes_no_alarm_away():
    fired = []
    old = signal.signal(signal.SIGALRM, lambda *_: fired.append(1))
    signal.alarm(100)
    try:
        found = []
        thread = threading.Thread(target=lambda: found.extend(verify_all([(r"\frac12", r"\frac24")], timeout_s=30)))
        thread.start()
        thread.join()
        assert found == [Verdict(True)]
        assert 0 < signal.alarm(0) <= 100
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def test_an_unreadable_gold_is_ungraded():
    assert verify_all([(r"\text{}", "5")], timeout_s=30) == [Verdict(None, "gold")]


def test_a_process_that_dies_is_replaced(monkeypatch):
    ask = sandbox.Child.ask
    asked = []

    def shot_first(self, request, stopped=None):
        asked.append(self.pid)
        if len(asked) == 1:
            os.kill(self.pid, signal.SIGKILL)
            self._process.wait()
        return ask(self, request, stopped)

    monkeypatch.setattr(sandbox.Child, "ask", shot_first)
    got = verify_all([(r"\frac12", r"\frac24"), (r"\frac13", r"\frac26")], workers=1, timeout_s=30)
    assert got == [Verdict(None, "crashed"), Verdict(True)]
    assert len(set(asked)) == 2


def test_without_math_verify_the_remedy_is_said(monkeypatch):
    started = subprocess.Popen

    def broken(command, **options):
        return started([command[0], "-c", "raise SystemExit('No module named math_verify')"], **options)

    monkeypatch.setattr(subprocess, "Popen", broken)
    with pytest.raises(MathPoolError, match=r"No module named math_verify.*ropd_jax\[eval\]"):
        verify_all([("x", "y")])


@pytest.mark.parametrize("name", ["aime_2024", "hmmt_feb_2025", "math_500"])
def test_every_gold_is_accepted_by_math_verify_itself(name):
    golds = [row["answer"] for row in local_rows(name)]
    assert verify_all([(g, g) for g in golds], workers=2, timeout_s=30) == [Verdict(True)] * len(golds)
    assert all(v.right for v in grade_math(golds, [rf"\boxed{{{g}}}" for g in golds], workers=1))


@pytest.mark.parametrize(
    "name", ["gsm8k_test", *(f"gsm8k_train_part{i}" for i in (0, 1)), *(f"dapo_math_17k_part{i}" for i in (0, 1, 2))]
)
def test_every_gold_of_the_larger_sets_is_accepted_when_boxed(name):
    golds = [str(row["answer"]) for row in local_rows(name)]
    assert len(golds) > 1_000
    assert [g for g in golds if decide(g, boxed(rf"So it is \boxed{{{g}}}.")) != Verdict(True)] == []


@pytest.mark.parametrize(("answer", "gold"), [("0", "0"), ("7", "7"), ("999", "999"), ("007", "7"), ("25.0", "25")])
def test_an_integer_of_aime_is_accepted_alone(answer, gold):
    golds = [str(n) for n in range(1_000)]  # AIME 2025's answers are among them; its file can be absent
    verdicts = grade_math(golds, [rf"\boxed{{{answer}}}"] * 1_000, workers=1)
    assert [g for g, v in zip(golds, verdicts, strict=True) if v.right] == [gold]


def matrix(rows, *, between=r" \\ ", kind="pmatrix"):
    inside = between.join(" & ".join(row) for row in rows)
    return rf"\begin{{{kind}}} {inside} \end{{{kind}}}"


def test_every_matrix_is_right_however_it_is_spaced_and_every_changed_one_is_wrong():
    golds = [row["answer"] for row in local_rows("math_500") if "pmatrix" in row["answer"]]
    assert len(golds) == 7
    good, bad = [], []
    for gold in golds:
        rows = [[c.strip() for c in r.split("&")] for r in gold.partition("}")[2].partition(r"\end")[0].split(r"\\")]
        good += [
            (gold, matrix(rows, between=between, kind=kind))
            for between in (r"\\", r" \\ ", r"\\ ", r" \\[2pt] ")
            for kind in ("pmatrix", "bmatrix")
        ]
        changed = [rows[::-1], rows + rows[:1], rows[1:], [[f"{c}1" for c in row] for row in rows]]
        changed += [[list(column) for column in zip(*rows, strict=True)], [[*rows[0], "1"], *rows[1:]]]
        bad += [(gold, matrix(other)) for other in changed if other != rows and len({len(row) for row in other}) == 1]
        bad += [(gold, rows[0][0]), (gold, ", ".join(c for row in rows for c in row))]
    for pairs, right in ((good, True), (bad, False)):
        got = grade_math([a for a, _ in pairs], [rf"\boxed{{{b}}}" for _, b in pairs], workers=1, timeout_s=30)
        assert [p for p, v in zip(pairs, got, strict=True) if v.right is not right] == []
    assert len(good) == 56 and len(bad) >= 34


def test_no_gold_of_another_problem_is_accepted():
    golds = [row["answer"] for row in local_rows("math_500")]
    rng, pairs = random.Random(0), []
    while len(pairs) < 500:
        a, b = rng.sample(golds, 2)
        if a != b:
            pairs.append((a, b))
    got = grade_math([a for a, _ in pairs], [rf"\boxed{{{b}}}" for _, b in pairs], workers=2, timeout_s=30)
    assert [p for p, v in zip(pairs, got, strict=True) if v.right is not False] == []
