"""Criteria that must not count: those to find, and those to keep."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropd_jax.teacher import MalformedError, Teacher, TransientError
from ropd_jax.teacher.roles import screening
from ropd_jax.teacher.roles.screening import (
    MENTIONS,
    REPEATS,
    UNDECIDABLE,
    about_the_answer,
    same_content,
    screen,
    without,
)
from ropd_jax.teacher.scripted import criteria as scripted
from ropd_jax.types import Criterion, Message, Prompt, Rubric
from tests.helpers import local_rows
from tests.properties import PROPERTY

PROMPT = Prompt("p", (Message("user", "What is 40 + 2?"),))


def rubric(*texts, points=()):
    given = points or (1,) * len(texts)
    return Rubric(tuple(Criterion(f"c{i}", t, p) for i, (t, p) in enumerate(zip(texts, given, strict=True), 1)))


def reason(text, question="What is 40 + 2?"):
    return next((p.reason for p in screen(rubric(text), question)), None)


MENTIONING = [
    "Reaches the same total as the reference.", "Matches the reference answer.", "Equals the reference's result.",
    "Is consistent with the reference solution.", "Uses the method of the references.",
    "Follows the reference's approach.", "As in the references, each step is shown.",
    "Both references state 12, and so does this answer.", "Agrees with Reference 2.", "Like reference 1, names it.",
    "Is based on the references provided.", "Says how the references support the claim.",
    "Includes what the reference includes.", "States the answer given in the reference.", "Matches the ground truth.",
    "The student states 42.", "The student's answer shows each step.", "Avoids the mistake of student 3.",
    "Does not repeat the error in the students' answers.", "States 42, which student answers miss.",
    "Student correctly adds the numbers.", "Is as complete as the teacher's answer.", "Matches the gold answer.",
    "Stimmt mit der Referenzantwort überein.", "Nennt dasselbe Ergebnis wie die Referenz.",
    "Die Antwort des Schülers nennt 42.", "Correspond à la réponse de référence.", "La réponse de l'élève donne 42.",
    "Coincide con la respuesta de referencia.", "La respuesta del estudiante indica 42.", "与参考答案一致。",
    "学生的答案给出了42。",
]  # fmt: skip
COMPARING = [
    "Is better than the other answers.", "The shortest of the answers.", "Gives the same result as the others.",
    "Is more detailed than the other answers.", "Is more detailed than others.", "Is clearer than the rest.",
    "Is the most complete of all the answers.", "Agrees with the majority of the answers.",
    "Differs from the other responses.", "Unlike the other answers, it names the source.",
    "Is longer than the average answer.", "The response is more detailed than other responses.",
    "Reaches the same conclusion as most of the others.", "Ist ausführlicher als die anderen Antworten.",
    "Est plus claire que les autres réponses.", "Es más clara que las otras respuestas.", "比其他答案更详细。",
    "在所有回答中最简洁的。", "...", "?!",
]  # fmt: skip
FINE = [  # (criterion, question)
    ("States that 42 is the answer.", ""),
    ("The final answer is 42.", ""),
    ("Gives no other answer than 42.", ""),
    ("Refers to the law of cosines.", ""),
    ("Contains a reference to the book.", ""),
    ("Lists the references at the end in APA style.", "Write an essay with sources."),
    ("Includes bibliographical references with dates.", ""),
    ("Uses the ground as the reference point.", ""),
    ("Compares the pH with the reference range.", ""),
    ("States that the speed is measured in the reference frame of the train.", ""),
    ("With reference to the map, names the river.", ""),
    ("Names the reference by its author.", "Which reference supports the claim?"),
    ("States the student's age as 12.", "A student is 12 years old. How old is he?"),
    ("The student has 12 apples left.", "A student has 15 apples and eats 3. How many are left?"),
    ("Finds the error in the student's proof.", "A student wrote this proof. Where is the error?"),
    ("Finds that each student gets 2 pens.", "How many pens does each student get?"),
    ("Explains it so that a student of ten years understands it.", ""),
    ("The teacher pays 12 euros.", "A teacher buys 4 pens at 3 euros each."),
    ("Shows that no other solution of the equation exists.", ""),
    ("Finds the other solution x = -2.", ""),
    ("Explains why the other answers are wrong.", "Which option is right? A ... B ..."),
    ("States that some foods are healthier than others.", ""),
    ("States that electric cars are more efficient than most.", ""),
    ("Names the shortest of the three paths.", ""),
    ("States that Anna is older than the others.", "Who is older than the others?"),
    ("Shows that the fifth term has the same value as the others.", ""),
    ("Is at most 100 words long.", ""),
    ("Is longer than 100 words.", ""),
    ("The working is more detailed than a bare result: at least two steps.", ""),
    ('Contains the sentence "The student matches the reference answer."', ""),
    ("Contains `better than the other answers`.", ""),
    ("Nennt 42 als Referenzwert.", ""),
    ("Nennt das Alter des Schülers.", "Wie alt ist der Schüler?"),
    ("Donne l'âge de l'élève.", "Quel est l'âge de l'élève ?"),
    ("给出学生的人数。", "学生有多少人？"),
    ("没有其他答案。", ""),
]


@pytest.mark.parametrize("text", MENTIONING)
def test_a_criterion_that_names_what_the_grader_does_not_see_is_found(text):
    assert reason(text) == MENTIONS


@pytest.mark.parametrize(("text", "reworded"), [
    ("The student's answers must name Paris.", "The answer must name Paris."),
    ("The student\u2019s answer must not contain any commas.", "The answer must not contain any commas."),
    ("Student's answer states 42.", "The answer states 42."),
    ("The student's final answer is 42.", "The final answer is 42."),
    ("Each student's response has to name Paris.", "The answer has to name Paris."),
    ("The students' answers should name Paris.", "The answer should name Paris."),
    ("The student should not use commas in their answer.", "The answer should not use commas."),
    ("The student correctly calculates the total.", "The answer correctly calculates the total."),
    ("the pupil needs to name Paris", "The answer needs to name Paris"),
])  # fmt: skip
def test_a_demand_on_the_student_is_one_on_the_answer(text, reworded):
    found = about_the_answer(rubric(text), "What is 40 + 2?")
    assert found == rubric(reworded) and not screen(found, "What is 40 + 2?")
    for question in ("A student has 3 pens. How many are 2 pens more?", "Find the learner's mistake."):
        assert about_the_answer(rubric(text), question) == rubric(text)


@pytest.mark.parametrize("text", [
    "The student's answers do not name Paris.", "The student's answers omit the unit.", "The student forgot the unit.",
    "The student's answer does not state the unit.", "The student's answer fails to state the unit.",
    "The student's answer isn't finished.", "Avoids the mistake of student 3.", "The student's answer was cut.",
    "States 42, which student answers miss.", "The students agree on 42.", "The answer must name Paris.",
    'Contains the sentence "The student must name Paris."', "", "The student", "The student's answer",
])  # fmt: skip
def test_what_the_student_lacks_is_not_made_a_demand(text):
    assert about_the_answer(rubric(text), "What is 40 + 2?") == rubric(text)


def test_a_reworded_criterion_can_still_name_what_the_grader_does_not_see():
    found = about_the_answer(rubric("The student's answer matches the reference answer."), "What is 40 + 2?")
    assert [p.reason for p in screen(found, "What is 40 + 2?")] == [MENTIONS]


@pytest.mark.parametrize("text", COMPARING)
def test_a_criterion_that_needs_another_answer_is_found(text):
    assert reason(text) == UNDECIDABLE


@pytest.mark.parametrize(("text", "question"), FINE)
def test_a_criterion_that_can_be_decided_is_left_alone(text, question):
    assert reason(text, question) is None


def test_no_criterion_of_healthbench_is_called_a_mention_or_a_comparison():
    """1,157 criteria by physicians; three of them occur twice in their rubric, word for word."""
    found = []
    for row in local_rows("healthbench_sample100"):
        question = "\n".join(m["content"] for m in row["prompt"])
        texts = [c["criterion"] for c in row["rubrics"]]
        problems = screen(rubric(*texts), question)
        assert all(p.reason == REPEATS for p in problems)
        found += [p for p in problems if texts.count(texts[int(p.criterion_id[1:]) - 1]) == 1]
    assert found == []


SAME = [
    ("The total is 42.", "the total is 42"),
    ("The total is 42.", "States that the total is 42."),
    ("States that the total is 42.", "The answer gives the total as 42"),
    ("Mentions Paris.", "Explicitly names Paris."),
    ("Doesn't mention a doctor.", "Does not mention a doctor."),
    ("Contains two steps.", "Includes 2 steps"),
    ("Costs 1,000 euros.", "costs 1000 euros"),
    ("Nennt die Stadt Paris.", "Nennt die Stadt Paris"),
    ("给出 42。", "给出 42"),
]
DIFFERENT = [
    ("The total is 42.", "The total is 43."),
    ("The total is 42.", "The total is -42."),
    ("The total is 42.", "The total is not 42."),
    ("Mentions a doctor.", "Does not mention a doctor."),
    ("Names the first step.", "Names the last step."),
    ("Is at least 40 words long.", "Is at most 40 words long."),
    ("A is greater than B.", "B is greater than A."),
    ("Subtracts 4 from 9.", "Subtracts 9 from 4."),
    ("The dog bites the man.", "The man bites the dog."),
    ('Contains "Yes".', 'Contains "yes".'),
    ('Contains the line "a + b".', 'Contains the line "a - b".'),
    ("The ratio is 3:4.", "The ratio is 34."),
    ("The domain is (0, 1).", "The domain is [0, 1]."),
    ("Computes 5!.", "Computes 5."),
    ("Uses x.", "Uses X."),
    ("Every line before the last is an equation.", "At least one line before the last is an equation."),
    ("Is correct.", "States that."),
    ("12.5 kg", "125 kg"),
    ("10 % of 50", "10 of 50"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_the_same_content_in_other_framing_words_is_a_repetition(a, b):
    assert same_content(a, b) and same_content(b, a)
    assert [p.reason for p in screen(rubric(a, b), "")] == [REPEATS]


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_two_criteria_that_differ_in_a_number_a_negation_or_a_word_are_two(a, b):
    assert not same_content(a, b) and not same_content(b, a)


WORDS = st.sampled_from(
    ["total", "is", "42", "43", "not", "the", "states", "first", "last", "-", "of", '"x"', "sum", "."]
)


@PROPERTY
@given(st.lists(WORDS, min_size=1, max_size=7), st.lists(WORDS, min_size=1, max_size=7))
def test_same_content_is_symmetric_and_needs_the_same_numbers_and_negations(a, b):
    one, two = " ".join(a), " ".join(b)
    assert same_content(one, two) == same_content(two, one)
    if same_content(one, two):
        for word in ("42", "43", "not", "first", "last", '"x"'):
            assert a.count(word) == b.count(word)


def test_of_two_repetitions_the_one_with_more_points_stays():
    texts = ("The total is 42.", "Names Paris.", "States that the total is 42", "The answer is: the total is 42")
    assert [(p.criterion_id, p.detail) for p in screen(rubric(*texts, points=(1, 1, 5, 5)), "")] == [
        ("c1", "c3"), ("c4", "c3"),
    ]  # fmt: skip
    assert [(p.criterion_id, p.detail) for p in screen(rubric(*texts), "")] == [("c3", "c1"), ("c4", "c1")]
    left = without(rubric(*texts), screen(rubric(*texts), ""))
    assert [c.id for c in left.criteria] == ["c1", "c2"]
    assert without(rubric("..."), screen(rubric("..."), "")) is None


def test_no_wording_of_the_scripted_teacher_is_found():
    texts = [
        scripted.LINE.format("9 + 5 = 14"), scripted.LINE.format("14 - 1 = 13"), scripted.LAST.format(16),
        scripted.LINES.format('"9 + 5 = 14"; "14 - 1 = 13"'), scripted.EQUATIONS, scripted.EQUATION,
        scripted.RESULT.format(16), scripted.FINAL.format(16), scripted.VALUE.format(14), scripted.VALUE.format(13),
        scripted.VALUES.format("14; 13"), scripted.CORRECT, scripted.ONE_FINAL, scripted.SHOWN, scripted.REASON,
        scripted.SHORT,
    ]  # fmt: skip
    assert screen(rubric(*texts), "9 + 5 - 1 + 3 =") == ()


# --- how the teacher handles them -------------------------------------------------------------------------------

GOOD = ("The total is 42.", "Adds 40 and 2.", "Names no other number.", "Is one sentence.")
BAD = ("The total is 42.", "Matches the reference answer.", "Is clearer than the rest.", "States that the total is 42.")


def written(*texts):
    rows = [{"criterion_id": f"c{i}", "category": "x", "criterion": t, "points": 2} for i, t in enumerate(texts, 1)]
    return json.dumps({"schema_version": "ropd.rubric.v1", "rubrics": rows, "maximum_score": 2 * len(rows)})


def induced(client, **more):
    teacher = Teacher(client, **more)
    return teacher, asyncio.run(teacher.induce_rubric(PROMPT, ["42"], ["43"]))


def texts_of(rubric):
    return tuple(c.text for c in rubric.criteria)


def test_bad_criteria_are_asked_for_again_with_their_problems_named(saying):
    client = saying(written(*BAD), written(*GOOD))
    teacher, found = induced(client)
    assert texts_of(found) == GOOD
    asked = client.requests[1].messages[-1].content
    assert all(what in asked for what in ("c2 mentions", "'reference answer'", "c3 cannot be decided", "c4 repeats c1"))
    assert teacher.stats.reasks == {"rubric": 1} and teacher.stats.screened == {} and teacher.stats.failures == {}


def test_a_demand_on_the_student_costs_no_second_request(saying):
    client = saying(written("The student's answers must state 42.", *GOOD[1:]))
    teacher, found = induced(client)
    assert texts_of(found) == ("The answer must state 42.", *GOOD[1:])
    assert len(client.requests) == 1 and teacher.stats.screened == {}


def test_criteria_that_stay_bad_are_dropped_and_counted(saying):
    teacher, found = induced(saying(written(*BAD), written(*BAD)))
    assert texts_of(found) == BAD[:1]
    assert teacher.stats.screened == {"mentions": 1, "undecidable": 1, "repeats": 1}
    metrics = teacher.metrics()
    assert metrics["teacher/screened"] == 3.0 and metrics["teacher/screened_mentions"] == 1.0


@pytest.mark.parametrize("second", ["no JSON", TransientError("x", cause="timeout"), written(*BAD[1:3], "?", "!")])
def test_a_second_reply_that_cannot_be_used_costs_only_the_bad_criteria(saying, second):
    teacher, found = induced(saying(written(*BAD), second))
    assert texts_of(found) == BAD[:1]
    assert sum(teacher.stats.screened.values()) == 3


def test_a_rubric_is_asked_for_twice_at_most(saying):
    client = saying("no JSON", written(*BAD))
    _, found = induced(client)
    assert texts_of(found) == BAD[:1] and len(client.requests) == 2


def test_a_rubric_without_any_criterion_that_counts_is_a_typed_failure(saying):
    none = written("?", "!", "Matches the reference answer.", "Is clearer than the rest.")
    teacher = Teacher(saying(none, none))
    with pytest.raises(MalformedError, match="no criterion of the rubric counts") as error:
        asyncio.run(teacher.induce_rubric(PROMPT, ["42"], ["43"]))
    assert error.value.cause == "screened" and teacher.stats.failures == {"screened": 1}


def test_the_switch_keeps_every_criterion(saying):
    teacher, found = induced(saying(written(*BAD)), screen_criteria=False)
    assert texts_of(found) == BAD and teacher.stats.screened == {}


def test_a_static_rubric_is_screened_too(saying):
    rows = [{"criterion_id": f"c{i}", "category": "Essential", "criterion": f"Names fact {i}."} for i in range(1, 8)]
    rows[3]["criterion"] = "Matches the reference answer."
    reply = json.dumps({"schema_version": "ropd.static_rubric.v1", "rubrics": rows})
    teacher = Teacher(saying(reply, reply))
    found = asyncio.run(teacher.static_rubric(PROMPT, ["42"]))
    assert [c.id for c in found.criteria] == ["c1", "c2", "c3", "c5", "c6", "c7"]
    assert teacher.stats.screened == {"mentions": 1}


def test_a_long_criterion_is_read_fast():
    parts = (
        "the ",
        "than the other ",
        "as the references ",
        "the student ",
        '"',
        "1,234",
        "the same as ",
        "réponse ",
        "比",
    )
    texts = [part * (30_000 // len(part)) for part in parts]
    start = time.process_time()
    screen(rubric(*texts), "the student's " * 2_000)
    assert time.process_time() - start < 10  # measured: 1.2 s


def test_every_reason_has_a_sentence():
    for why in screening.REASONS:
        assert "c1" in str(screening.Problem("c1", why, "x"))
