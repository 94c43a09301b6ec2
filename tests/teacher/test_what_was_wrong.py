"""The problems with a teacher's replies reach the user: in the log, in the failure gate's table, by cause."""

from __future__ import annotations

import asyncio
import logging

import pytest

from ropd_jax.teacher import MalformedError, Teacher, TransientError
from ropd_jax.teacher.roles.references import refuses
from ropd_jax.training.failure_gate import FailureGate, TooManyFailures
from ropd_jax.types import Message, Prompt
from tests.teacher.test_asking import rubric_text

PROMPT = Prompt("p1", (Message("user", "Q?"),))


def rubrics(teacher, n=1):
    for _ in range(n):
        with pytest.raises(MalformedError) as e:
            asyncio.run(teacher.induce_rubric(PROMPT, ["r"], ["a"]))
    return e.value


def test_the_first_unusable_reply_of_a_role_is_logged_once_with_its_beginning(saying, caplog):
    caplog.set_level(logging.WARNING)
    teacher = Teacher(saying(*["\x1b[31mno\nrubric"] * 4))
    rubrics(teacher, 2)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "ropd_jax.teacher.asking"]
    assert "rubric, model scripted" in line and line.endswith("It begins: \\x1b[31mno\\nrubric")
    assert "(Expecting value at line 1, column 1, before " in line


def test_the_gates_table_has_role_reason_and_sample(saying):
    teacher = Teacher(saying(rubric_text(3), rubric_text(2), TransientError("x", cause="timeout")))
    rubrics(teacher)
    with pytest.raises(TransientError):
        asyncio.run(teacher.induce_rubric(PROMPT, ["r"], ["a"]))
    gate = FailureGate(0.0, 4)
    gate.add(["malformed"] * 2, failed=True)
    with pytest.raises(TooManyFailures) as e:
        gate.check(teacher.stats.unusable.table())
    lines = str(e.value).splitlines()
    assert lines[-3].split() == ["role", "unusable", "times", "commonest", "reason"]
    assert lines[-2].split()[:5] == ["rubric", "3", "2", "3", "criteria;"]
    assert 'a reply begins: {"schema_version": "ropd.rubric.v1"' in lines[-1]


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot evaluate these answers because they contain harmful content. " * 9,
        "Sorry, I'm unable to grade this.",
        "<think>Hm. </think>\nI must decline.",
    ],
)
def test_a_refusal_in_plain_words_has_the_cause_refused(saying, text):
    teacher = Teacher(saying(text, text))
    error = rubrics(teacher)
    assert error.cause == "refused" and "the model refused: " in str(error)
    assert teacher.stats.failures == {"refused": 1} and teacher.stats.reasks == {"rubric": 1}


@pytest.mark.parametrize(
    "text",
    [
        "It cannot be graded.",
        "",
        "I can do that.",
        "Unfortunately the answer is wrong.",
        'I cannot say more: {"rubrics": [',
        "The answer says: I can't help with that.",
    ],
)
def test_other_words_are_no_refusal(saying, text):
    assert not refuses(text)
    assert rubrics(Teacher(saying(text, text))).cause in ("malformed", "empty")


def test_criteria_that_are_screened_are_no_unusable_reply(saying, caplog):
    bad = rubric_text().replace("k1", "Is better than the other answers.")
    teacher = Teacher(saying(bad, rubric_text()))
    asyncio.run(teacher.induce_rubric(PROMPT, ["r"], ["a"]))
    assert teacher.stats.reasks == {"rubric": 1} and teacher.stats.unusable.table() == ""
    assert not [r for r in caplog.records if r.name == "ropd_jax.teacher.asking"]


def test_a_refusal_that_becomes_a_rubric_is_no_failure(saying):
    teacher = Teacher(saying("I can't help with that.", rubric_text()))
    assert len(asyncio.run(teacher.induce_rubric(PROMPT, ["r"], ["a"])).criteria) == 4
    assert teacher.stats.failures == {}


def test_samples_are_in_no_checkpoint_and_in_no_metric(saying):
    teacher = Teacher(saying("no", "no"))
    rubrics(teacher)
    assert "unusable" not in teacher.stats.as_dict() and not [k for k in teacher.metrics() if "unusable" in k]
