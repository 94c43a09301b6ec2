"""`benchmarks.oracles`: its arithmetic, and how it talks to the other interpreter (small fakes of the packages)."""

from __future__ import annotations

import asyncio
import sys

import pytest

from benchmarks import known_outputs, oracles
from benchmarks.known_outputs import Output
from benchmarks.oracles import Judged
from ropd_jax.teacher.labels import LabelledAnswer, LabelledCriterion, LabelledQuestion, verdict_rows
from tests.calibration.helpers import question
from tests.calibration.test_run import teacher_cfg

FAKES = {
    "autorubric/__init__.py": """
import types
class LLMConfig:
    def __init__(self, **how):
        assert how["temperature"] == 0.0 and how["max_parallel_requests"] == 1 and how["model"] == "openai/judge"
class Rubric:
    @classmethod
    def from_dict(cls, rows):
        one = cls()
        one.rows = rows
        return one
    async def grade(self, text, *, grader, query):
        names = [("MET" if row["requirement"] in text else "CANNOT_ASSESS" if row["weight"] == 9 else "UNMET")
                 for row in self.rows]
        space = types.SimpleNamespace
        votes = [space(votes=[space(error=None, verdict=space(name=name))]) for name in names]
        return space(report=votes, token_usage=space(prompt_tokens=100, completion_tokens=10))
""",
    "autorubric/graders.py": "class CriterionGrader:\n    def __init__(self, **how): pass\n",
    "rubric_reward_lens/__init__.py": "",
    "rubric_reward_lens/models.py": """
class Rubric:
    @classmethod
    def from_dict(cls, row): return row["criteria"]
class Response:
    def __init__(self, id, text): self.id, self.text = id, text
""",
    "rubric_reward_lens/probes.py": """
import types
NAMES = ("keyword_stuff", "verbosity_pad", "confident_wrong", "format_mimic")
def probe(name):
    twin = lambda response, rubric: types.SimpleNamespace(text=f"{response.text} {name}")
    return types.SimpleNamespace(name=name, apply=twin)
HACK_PROBES = [probe(name) for name in NAMES]
def degradation_ladder(response): return [response]
""",
    "reward_doctor/__init__.py": "",
    "reward_doctor/corpus.py": """
import types
def case(id, kind, attack, answer, right, tags=()):
    return types.SimpleNamespace(id=id, category=kind, attack=attack, reference="5", prompt="?", completion=answer,
                                 expect=right, tags=tags)
ALL_CASES = [case("eq", "equivalence", None, "5.0", True), case("x", "exploit", "shotgun", "Answer: 5 or 7", False),
             case("c", "equivalence", None, "five", True, ("contested",))]
""",
}


@pytest.fixture
def python(tmp_path):
    """An interpreter whose packages are the fakes."""
    for name, text in FAKES.items():
        path = tmp_path / "fakes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    shell = tmp_path / "python"
    shell.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}/fakes" exec "{sys.executable}" -S "$@"\n', encoding="utf-8")
    shell.chmod(0o755)
    return str(shell)


def labelled(id, *, points=(1, 1)):
    """Criteria "red" and "blue"; a right answer with both, and a wrong one with "blue" only."""
    criteria = tuple(
        LabelledCriterion(f"c{k}", text, "", kind, points[k])
        for k, (text, kind) in enumerate((("red", "final_result"), ("blue", "form")))
    )
    answers = (
        LabelledAnswer("a1", f"{id}: blue", "wrong", False, (False, True)),
        LabelledAnswer("a2", f"{id}: red blue", "right", True, (True, True)),
    )
    return LabelledQuestion(id, f"Question {id}?", criteria, answers)


def test_kappa_difference_and_missing_verdicts_by_hand():
    questions = [question([[True, False], [True, False]], id="q1"), question([[True, True], [False, False]], id="q2")]
    right = {oracles.key_of(q, a): a.truth for q in questions for a in q.answers}
    yes = dict.fromkeys(right, (True, None))  # all true, one half missing
    first, second = oracles.agreement_rows(
        [Judged("ours", right, calls=8, input_tokens=80, output_tokens=8, seconds=4.0), Judged("theirs", yes)],
        questions,
    )
    assert first["kappa"]["value"] == 1.0 and first["difference"]["value"] == 0.0 and first["verdicts"] == 8
    assert (first["calls"], first["input_tokens"], first["seconds"]) == (1000, 10_000, 500)
    # criterion 1 of four answers: three true and one false, all called true: observed 3/4, expected 3/4
    assert second["kappa"]["value"] == 0.0 and second["accuracy"]["value"] == 0.75 and second["verdicts"] == 4
    assert second["difference"]["value"] == -1.0 and second["called_true"] == 1.0


def test_right_and_wrong_answers_take_turns():
    q = question([[True]] * 5, correct=[False, False, True, False, True])
    assert [a.id for a in oracles.chosen([q], 3)[0].answers] == ["a2", "a0", "a4"]
    assert oracles.chosen([q], 0) == [q] and len(oracles.chosen([q], 9)[0].answers) == 5


def test_autorubric_is_asked_once_per_answer_and_resumes(tmp_path, python):
    questions, stored = [labelled("q1", points=(9, 1)), labelled("q2")], tmp_path / "rows.jsonl"
    found = oracles.theirs(python, "http://127.0.0.1:1/v1", "judge", "per_criterion", questions[:1], stored)
    assert found.verdicts == {"q1/a1": (None, True), "q1/a2": (True, True)} and found.causes == {"cannot_assess": 1}
    assert (found.calls, found.input_tokens, found.output_tokens) == (4, 200, 20)
    found = oracles.theirs(python, "http://127.0.0.1:1/v1", "judge", "per_criterion", questions, stored)
    assert found.verdicts["q2/a1"] == (False, True) and len(stored.read_text().splitlines()) == 4
    again = oracles.theirs("no such python", "", "judge", "per_criterion", questions, stored)  # nothing left to ask
    assert again == found


def test_our_verifier_and_the_probes_with_a_judge_that_pays_for_one_of_them(python):
    questions = [labelled("q1"), labelled("q2")]
    teacher = teacher_cfg(tape__mode="off")
    rows = list(verdict_rows(questions))
    for name in oracles.MAPPING:  # only padding gains: it meets "red", which is not a criterion on form
        rows += [(q.question, f"{q.answers[0].text} {name}", "red", name == "verbosity_pad", None) for q in questions]
        rows += [(q.question, f"{q.answers[0].text} {name}", "blue", True, None) for q in questions]
    teacher["scripted"]["labels"] = rows
    judged = asyncio.run(oracles.ours(teacher, "keyed/1/1", questions))
    assert judged.verdicts == {oracles.key_of(q, a): a.truth for q in questions for a in q.answers}
    assert judged.calls == 8 and not judged.causes
    found = asyncio.run(oracles.gains(teacher, python, questions))
    assert {name: row["all"]["value"] for name, row in found["gains"].items()} == {
        "keyword_stuff": 0.0,
        "verbosity_pad": 0.5,
        "confident_wrong": 0.0,
        "format_mimic": 0.0,
    }
    assert found["gains"]["verbosity_pad"]["counted"]["value"] == 1.0  # without the criterion on form
    assert found["order"]["flips"]["value"] == 0.0 and found["order"]["drift"]["value"] == 0.0


def test_the_confusion_table_counts_each_output_and_keeps_each_disagreement():
    outputs = [Output("a", "", "5", "Answer: 5", True), Output("b", "", "5", "Answer: 7", True),
               Output("c", "", "5", "Answer: 7", False)]  # fmt: skip
    table, rows = oracles.graded(outputs)
    assert table == {"exact": {"right": {"right": 1, "wrong": 1, "ungraded": 0},
                               "wrong": {"right": 0, "wrong": 1, "ungraded": 0}}}  # fmt: skip
    assert [(row["kind"], row["found"]) for row in rows] == [("b", "wrong")]


def test_bare_answers_of_reward_doctor_are_stated_and_contested_ones_apart(python):
    clear, contested = oracles.doctored(python)
    assert [one.text for one in clear] == ["Answer: 5.0", "Answer: 5 or 7"]
    assert [one.text for one in contested] == ["Answer: five"]
    assert oracles.graded(clear)[1] == []


def test_a_missing_package_and_a_missing_interpreter_are_named(tmp_path):
    shell = tmp_path / "python"
    shell.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n', encoding="utf-8")
    shell.chmod(0o755)
    with pytest.raises(SystemExit, match="no package 'reward_doctor'; pip install autorubric"):
        list(oracles.child(str(shell), "cases"))
    with pytest.raises(SystemExit, match="expected a Python with autorubric"):
        list(oracles.child("no such python", "cases"))


def test_outputs_of_every_kind_exist_and_are_distinct():
    outputs = list(known_outputs.outputs())
    assert len({(o.task, o.gold, o.text) for o in outputs}) > 0.9 * len(outputs)
    assert {o.task for o in outputs} == {"", "math"} and {o.right for o in outputs} == {True, False}
    assert {o.kind for o in outputs} >= set(known_outputs.HACKS)


@pytest.mark.slow
def test_the_graders_agree_with_the_known_grades():
    _, rows = oracles.graded(known_outputs.outputs())
    assert [(row["task"], row["gold"], row["text"]) for row in rows] == [("", "Evelyn", "Answer: Tom = Evelyn")]


def test_the_page_shows_every_part():
    one = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}
    row = {"name": "ours", "verdicts": 4, "missing": {"cut": 1}, "kappa": one, "accuracy": one, "called_true": 0.5,
           "difference": {**one, "value": None}, "calls": 1000.0, "input_tokens": None, "output_tokens": 7.0,
           "seconds": 3.0}  # fmt: skip
    gains = {name: {"all": one, "counted": one} for name in oracles.MAPPING}
    page = oracles.shown(
        {
            "kappa": [row],
            "probes": {"gains": gains, "order": {"flips": one, "drift": one}},
            "outputs": {"built here": {"exact": {"right": {"right": 3, "wrong": 2, "ungraded": 1}}}},
        }
    )
    assert (
        "| ours | 4 | 1 cut | 0.50 [0.25, 0.75] | 0.50 [0.25, 0.75] | 0.50 | unknown | 1,000 | unknown | 7 | 3 |"
        in page
    )
    assert "| format_mimic | format_mimicry |" in page and "| exact | right | 3 | 2 | 1 |" in page
