"""The answer in a reply that contains the model's thinking as text."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropd_jax.teacher import MalformedError
from ropd_jax.teacher.roles.thinking import KINDS, after_drafts, answer_of
from tests.properties import PROPERTY

MARKS = (  # start and end of each kind, as models write them
    ("<think>", "</think>"), ("<THINK>", "</Think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"),
    ("<thoughts>", "</thoughts>"), ("<reasoning>", "</reasoning>"), ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"), ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"), ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"), ("<|channel>thought", "<channel|>"), ("<unused94>", "<unused95>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|start|>assistant<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final <|message|>"),
    ("analysisWe ", "assistantfinal"),
)  # fmt: skip
ANSWER = "It is 4.\n\n```python\nprint(4)\n```"


@pytest.mark.parametrize(("start", "end"), MARKS, ids=[m[0] for m in MARKS])
def test_a_block_of_each_kind_is_removed_and_one_without_an_end_is_refused(start, end):
    for space in ("", "\n", "\n\n", " "):
        assert answer_of(f"{start}{space}2 + 2 is 4, a draft.{space}{end}{space}{ANSWER}") == ANSWER
    assert answer_of(f"\ufeff\n {start}\nhm\n{end}\n{ANSWER}\n") == ANSWER
    for text in (f"{start}\n2 + 2 is", f"{start}2", f"{start}\nhm\n{end}", f"{start}\nhm\n{end}\n \n"):
        with pytest.raises(MalformedError) as error:
            answer_of(text)
        assert error.value.cause == "thinking"


def test_every_kind_has_a_row_above():
    assert all(any(kind.start.match(start) for start, _ in MARKS) for kind in KINDS)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 2\n</think>\n\nIt is 4.", "It is 4."),  # the chat template wrote the start
        ("2 + 2</think>It is 4.", "It is 4."),
        ("</think>\n\nIt is 4.", "It is 4."),  # thinking is off
        ("<think>\n\n</think>\n\nIt is 4.", "It is 4."),
        ("2 + 2<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|return|>", "It is 4."),
        ("<|channel|>final<|message|>It is 4.<|return|>", "It is 4."),
        ("<think>a</think>\n<think>b</think>It is 4.", "It is 4."),
        ("<think>a <think>b</think> c</think>\nIt is 4.", "It is 4."),
        ("First.\n<think>\nhm\n</think>\nSecond.", "First.\nSecond."),
        ("Sure. <think>hm\nhm</think>\nIt is 4.", "Sure.\nIt is 4."),
        ('<think>So I say "Paris".</think>Paris', "Paris"),
        ("<think>The end is `</think>`, I know.\n</think>\nIt is 4.", "It is 4."),
        ('<think>The end is "</think>".</think>It is 4.', "It is 4."),
        ("<think>hm</think>\n<answer>4</answer>", "4"),
        ("<|begin_of_thought|>a<|end_of_thought|>\n<|begin_of_solution|>4<|end_of_solution|>", "4"),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>4<|END_RESPONSE|>", "4"),
    ],
)
def test_what_follows_the_thinking_is_the_answer(text, answer):
    assert answer_of(text) == answer


ABOUT = [
    "Such models write `<think>` before and `</think>` after their thoughts.",
    "The tag </think> ends the thinking.",
    'They are called "<think>" and "</think>".',
    'Write "<think>a</think>" first, then the answer.',
    "The template:\n\n```xml\n<think>\n...\n</think>\n<answer>...</answer>\n```\n\nFill it in.",
    "~~~\n</think>\n~~~",
    "- <think>a</think>: for thoughts\n- <answer>b</answer>: for answers",
    "The <think> tag opens.\nThe </think> tag closes.",
    "In harmony: `<|end|><|start|>assistant<|channel|>final<|message|>` starts the answer.",
    "Magistral writes [THINK], Kimi writes ◁think▷.",
    "analysis of variance compares means.",
    "An analysis: the assistant final round.",
    "<b>4</b>",
    "I think </b> it is 4.",
    "x < think > y",
]


@pytest.mark.parametrize("text", ABOUT)
def test_an_answer_about_the_tags_is_left_as_it_is(text):
    assert answer_of(text) == text
    assert answer_of(f"<think>\nhm, `</think>`\n</think>\n{text}") == text


def test_a_tag_that_the_question_names_counts_at_the_start_only():
    text = "Write\n<think>\nyour thoughts\n</think>\nand then the answer."
    assert answer_of(text) == "Write\nand then the answer."
    assert answer_of(text, "What do <think> tags look like?") == text
    assert answer_of(f"<think>\nhm\n</think>\n{text}", "What do <think> tags look like?") == text
    form = "<reasoning>\n2 + 2\n</reasoning>\n<answer>\n4\n</answer>"
    assert answer_of(form) == "4"
    assert answer_of(form, "Reply with <reasoning> and <answer>.") == form
    assert answer_of(form, "Put your reasoning and your answer into tags.") == form
    assert answer_of("analysisResult = 4") == "analysisResult = 4"


PIECES = st.sampled_from(
    [m for pair in MARKS for m in pair] + ["\n", " ", "`", "```\n", '"', "a", "4.", "analysis", "<", "|", "\ufeff"]
)


@PROPERTY
@given(st.lists(PIECES, max_size=12))
def test_any_text_is_an_answer_or_refused_and_an_answer_needs_no_second_look(pieces):
    text = "".join(pieces)
    with contextlib.suppress(MalformedError):
        answer = answer_of(text)
        assert answer_of(answer) == answer == answer.strip() and len(answer) <= len(text)
        assert not answer.lower().startswith(tuple(start.lower() for start, _ in MARKS))


@PROPERTY
@given(st.lists(st.sampled_from(["x", "2 + 2", "\n", " ", "so", "`x`", "(y)"]), min_size=1, max_size=20))
def test_no_word_of_a_closed_block_is_in_the_answer(words):
    secret = "".join(words)
    for start, end in MARKS:
        assert answer_of(f"{start}\nSECRET{secret}\n{end}\nANSWER") == "ANSWER"


def test_a_long_text_of_marks_is_read_fast():
    for text in (
        "<think>" * 20_000,
        "</think>\n" * 20_000,
        "a <think>b</think>\n" * 5_000,
        "`" * 50_000,
        "```\n" * 9_999,
    ):
        with contextlib.suppress(MalformedError):
            answer_of(text)


def test_drafts_of_an_object_count_for_no_kind_of_thinking():
    for start, end in MARKS[:-1]:
        assert after_drafts(f'{start}{{"a": 2}}{end}\n{{"a": 1}}', anywhere=False) == '{"a": 1}'
        with pytest.raises(MalformedError):
            after_drafts(f'{start}{{"a": 2}}', anywhere=True)
    assert after_drafts('{"a": 2}</think>{"a": 1}', anywhere=True) == '{"a": 1}'
    assert after_drafts('{"a": 2}</think>{"a": 1}', anywhere=False) == '{"a": 2}</think>{"a": 1}'
    text = '<|channel|>analysis<|message|>It reads <|channel|>final<|message|>{"a": 2}<|end|>'
    with pytest.raises(MalformedError, match="2 final channels"):
        after_drafts(f'{text}<|start|>assistant<|channel|>final<|message|>{{"a": 1}}', anywhere=True)
