"""What counts as the teacher's own answer."""

from __future__ import annotations

import pytest

from ropd_jax.teacher import MalformedError
from ropd_jax.teacher.roles import references, templates
from ropd_jax.teacher.roles.references import check_reply, junk, parse_reference, reference_request
from ropd_jax.teacher.roles.special_tokens import FIRST
from tests.helpers import local_rows

HOW = dict(model="m", temperature=0.7, max_output_tokens=100, sample_index=0)
LOOP = "The number is even, so we continue. "
REFUSALS = [
    "I'm sorry, but I can't help with that.", "I’m sorry, I can’t assist with that request.",
    "I cannot help with this.", "Sorry, I cannot provide that information.", "I won't comply.",
    "As an AI language model, I am unable to assist with this question.", "Unfortunately, I can't answer that.",
    "Es tut mir leid, aber ich kann dabei nicht helfen.", "Je suis désolé, mais je ne peux pas répondre.",
    "Lo siento, pero no puedo ayudar con eso.", "抱歉，我无法回答这个问题。",
]  # fmt: skip


def cause(text, prompt=""):
    try:
        parse_reference(text, prompt)
    except MalformedError as error:
        return error.cause
    return None


@pytest.mark.parametrize("text", ["", " \n\t ", "\ufeff", "\r\n"])
def test_nothing_is_empty(text):
    assert cause(text) == "empty"


@pytest.mark.parametrize(
    "text",
    ["...", "?", "—", "```\n```", "$$", "* * *", "=====", "\u200b", "\ud800", "<think>4</think>...", *REFUSALS,
     LOOP * 40, "no " * 400, "a" * 900, "Answer: 4\n" * 100, "Let me see.\n" + "我不知道。" * 200, "4\n\n" * 400,
     "x" + ", x" * 500],
)  # fmt: skip
def test_junk_is_no_answer(text):
    assert cause(text) == "junk"


@pytest.mark.parametrize(
    "text",
    ["4", "no", "x", "Paris", "-1/2", "∞", "是", "\U0001f600", "π", "ha ha ha ha ha ha ha ha ha ha", "no. " * 100,
     "I cannot swim, so the answer is 4.", "I can't help but notice that 4 is even.",
     "I'm sorry, but I can't give the exact date; however, it was in 1990.",
     "\n".join(f"Step {i}: the number {7 * i} is odd." for i in range(200)),
     "\n".join(f"{i} + {i} = {2 * i}" for i in range(200)),
     "A long text. " * 20 + " ".join(f"word{i}" for i in range(200)),
     "I'm sorry, but I can't help with that. " + "Here is what is known: " + " ".join(f"fact{i}" for i in range(60))],
)  # fmt: skip
def test_an_answer_is_an_answer(text):
    assert parse_reference(text) == text.strip()


def test_what_the_question_asks_to_repeat_is_an_answer():
    asked = reference_request("Write 'I will not talk.' 60 times.", **HOW).messages[0].content
    assert cause("I will not talk. " * 60, asked) is None
    assert cause("I will talk. " * 60, asked) == "junk"
    asked = (
        reference_request("Say in English: Es tut mir leid, ich kann dabei nicht helfen.", **HOW).messages[0].content
    )
    assert cause("I'm sorry, I can't help with that.", asked) is None


def test_an_echo_of_the_prompt_is_junk_and_an_answer_about_markers_is_not():
    request = reference_request("Q?", **HOW)
    marker = next(line for line in request.messages[0].content.splitlines() if line.startswith("====="))
    for text in (request.messages[0].content, f"4\n{marker}", f"{marker}\n4"):
        with pytest.raises(MalformedError, match="echo of the prompt") as error:
            check_reply(request, text)
        assert error.value.cause == "junk"
    check_reply(request, "=====[ begin question | 000000000000 ]=====\n4")
    assert junk("4", token="") == ""


def test_the_question_of_the_request_decides_about_a_tag():
    answer = "Write\n<think>\nyour thoughts\n</think>\nand the answer."
    asked = reference_request("How do models use <think>?", **HOW).messages[0].content
    assert parse_reference(answer, asked) == answer
    assert parse_reference(answer) == "Write\nand the answer."


def test_the_plain_template_asks_for_no_steps_and_both_fence_the_question():
    plain, steps = (templates.load(name) for name in (references.PLAIN_TEMPLATE, references.TEMPLATE))
    assert "calculation" in steps and "calculation" not in plain and "step" not in plain
    for name in (references.PLAIN_TEMPLATE, references.TEMPLATE):
        templates.check("reference", name)
        request = reference_request("<|im_end|> Q?", template=name, **HOW)
        assert "U+003C" in request.messages[0].content and FIRST


@pytest.mark.parametrize("name", ["gsm8k_test", "math_500", "aime_2024"])
def test_no_worked_solution_of_a_data_set_is_junk(name):
    for row in local_rows(name)[:500]:
        for text in (row.get("solution"), row["answer"]):
            if text:
                assert junk(text, row["problem"]) == "", text
