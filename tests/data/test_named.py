"""Graders by name for JSONL files, and the rows of other libraries with their gold answers."""

from __future__ import annotations

import json

import pytest

from ropd_jax.data import named
from ropd_jax.data.golds import FREE_TEXT, check_judged, kind_of, reference_of
from ropd_jax.data.grader import grade
from ropd_jax.data.load import load_prompts
from ropd_jax.types import Message, UserError


def read(tmp_path, task, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_prompts(source="jsonl", path=str(path), task=task)


def graded(tmp_path, task, row, *texts):
    (prompt,) = read(tmp_path, task, {"question": "q"} | row)
    return [grade(prompt, text) for text in texts]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("mathh", "data.task='mathh' is not a grader; did you mean math"),
        ("Exact", "did you mean exact"),
        ("chioce", "did you mean choice"),
        ("judged", "did you mean judge"),
        ("science", "expected exact, math, choice, ifeval, judge, reasoning_gym:TASK, or ''"),
        ("reasoning_gym:chain_sun", "no task 'chain_sun'; did you mean chain_sum"),
        ("reasoning_gym", "did you mean reasoning_gym:TASK"),
    ],
)
def test_a_name_that_is_no_grader_names_the_near_ones(tmp_path, task, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        read(tmp_path, task, {"question": "q", "answer": "1"})


@pytest.mark.parametrize("task", ["", "exact", "math", "judge", "gsm8k", "chain_sum", "math_500"])
def test_a_name_of_a_grader_a_set_or_a_number_task_is_accepted(tmp_path, task):
    assert read(tmp_path, task, {"question": "q", "answer": "1"})[0].task == task


def test_a_grader_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(named.NEEDS, "math", ("no_such_package",))
    with pytest.raises(UserError, match=r"data.task='math' needs no_such_package: pip install 'ropd_jax\[eval\]'"):
        named.check_name("math")


def test_exact_takes_a_free_text_as_that_very_text(tmp_path):
    gold = {"answer": "The rate doubles because the concentration of A doubles."}
    texts = f"Answer: {gold['answer']}", "Answer: The rate doubles."
    assert graded(tmp_path, "exact", gold, *texts) == [True, False]
    assert graded(tmp_path, "", gold, *texts) == [None, None]


def test_math_compares_by_math_verify(tmp_path):
    texts = r"\boxed{\frac{\sqrt{2}}{2}}", "Answer: $1/\\sqrt{2}$", r"\boxed{\sqrt{2}}", "no answer"
    assert graded(tmp_path, "math", {"answer": r"\frac{1}{\sqrt{2}}"}, *texts) == [True, True, False, False]
    texts = r"\boxed{5}", r"\boxed{5.0}", r"\boxed{2+3}", r"\boxed{6}", r"\boxed{5 or 7}", r"\boxed{5/6}"
    assert graded(tmp_path, "math", {"answer": "5"}, *texts) == [True, True, True, False, False, False]


def test_choice_reads_a_letter_and_refuses_another_gold(tmp_path):
    assert graded(tmp_path, "choice", {"answer": "(C)"}, "Answer: C", "Answer: B", "C or D") == [True, False, False]
    for answer in ("5", None, "Paris"):
        with pytest.raises(UserError, match=r"rows.jsonl:1: answer is .* expects a letter, A to J"):
            read(tmp_path, "choice", {"question": "q", "answer": answer})


def test_ifeval_rows_are_graded_by_their_instructions(tmp_path):
    row = {
        "key": 1000,
        "prompt": "Write two words without a comma.",
        "instruction_id_list": ["punctuation:no_comma", "startend:end_checker"],
        "kwargs": [{"num_words": None}, {"end_phrase": "Peace!"}],
    }
    (prompt,) = read(tmp_path, "ifeval", row)
    assert prompt.question == row["prompt"] and kind_of(prompt) is None
    assert [grade(prompt, t) for t in ("Some words. Peace!", "Some, words. Peace!", "Some words.", "")] == [
        True, False, False, False,
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"rows.jsonl:1 has no instructions; data.task='ifeval' expects"):
        read(tmp_path, "ifeval", {"prompt": "q", "answer": "5"})


def test_judge_grades_nothing_by_comparison_and_shows_the_gold_to_the_judge(tmp_path):
    (prompt,) = read(tmp_path, "judge", {"question": "q", "answer": "5"})
    assert kind_of(prompt) == FREE_TEXT and reference_of(prompt) == "5"
    assert grade(prompt, "Answer: 5") is None
    with pytest.raises(UserError, match=r"teacher.judge.model"):
        check_judged([prompt], [prompt], judge=False)
    check_judged([prompt], [prompt], judge=True)
    with pytest.raises(UserError, match="method=rlvr"):
        check_judged([prompt], [prompt], judge=True, exact_method="rlvr")


def test_reasoning_gym_rows_are_graded_by_the_scorer_of_the_task(tmp_path):
    row = {
        "answer": "23/131",
        "metadata": {"simplified_numerator": 23, "simplified_denominator": 131, "style": "plain"},
    }
    (prompt,) = read(tmp_path, "reasoning_gym:fraction_simplification", {"question": "q"} | row)
    assert (prompt.task, kind_of(prompt)) == ("fraction_simplification", None)
    assert [grade(prompt, f"Answer: {a}") for a in ("23/131", "46/262")] == [True, False]
    assert graded(tmp_path, "reasoning_gym:gcd", {"answer": "4"}, "Answer: 4", "Answer: 5") == [True, False]
    with pytest.raises(UserError, match=r"rows.jsonl:1: reasoning-gym's scorer of .* needs the metadata of the item"):
        read(tmp_path, "reasoning_gym:n_queens", {"question": "q", "answer": "Q _"})


# ----------------------------------------------------------------------------------------- rows of other libraries

VERL_GSM8K = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": 'What is 2 + 2? Output the final answer after "####".'}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"split": "train", "index": 7, "answer": "2 + 2 = <<2+2=4>>4\n#### 4", "question": "What is 2 + 2?"},
}


def test_a_row_of_verl_loads_with_its_gold_its_solution_and_its_index(tmp_path):
    dapo = {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": "What is 34 - 0?"}],
        "reward_model": {"ground_truth": ["34"], "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": "9a9b6eb4"},
    }
    other = VERL_GSM8K | {"prompt": [{"role": "user", "content": "b"}], "extra_info": {"split": "test", "index": 7}}
    a, b, c = read(tmp_path, "", VERL_GSM8K, dapo, other)
    assert (a.id, a.answer, a.solution) == ("openai/gsm8k-train-7", "4", VERL_GSM8K["extra_info"]["answer"])
    assert (b.id, b.answer, b.solution) == ("math_dapo-9a9b6eb4", "34", "")
    assert (c.id, c.answer) == ("openai/gsm8k-test-7", "4")
    assert grade(a, "#### 4") is True and grade(b, "Answer: 35") is False


@pytest.mark.parametrize("truth", [["4", "5"], {"target": ["4"]}])
def test_a_gold_that_is_no_text_is_refused_with_its_row(tmp_path, truth):
    with pytest.raises(UserError, match=r"rows.jsonl:1: reward_model.ground_truth is .* expected one text or number"):
        read(tmp_path, "", VERL_GSM8K | {"reward_model": {"ground_truth": truth}})


@pytest.mark.parametrize(
    ("row", "answer", "solution"),
    [
        ({"solution": r"$\frac12$"}, r"$\frac12$", r"$\frac12$"),
        ({"solution": "2 + 2 = 4.\nSo it is $\\boxed{4}$."}, "4", "2 + 2 = 4.\nSo it is $\\boxed{4}$."),
        ({"solution": "First add.\nThen stop."}, None, "First add.\nThen stop."),
        ({"solution": "5", "answer": None}, None, "5"),
        ({"ground_truth": 4}, "4", ""),
        ({"completion": "It is blue."}, None, "It is blue."),
        ({"completion": [{"role": "assistant", "content": "1 + 1\n#### 2"}]}, "2", "1 + 1\n#### 2"),
        ({"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": r"\boxed{2}"}],
          "rejected": [{"role": "assistant", "content": "3"}]}, "2", r"\boxed{2}"),
    ],
)  # fmt: skip
def test_a_row_of_trl_loads_with_what_it_states_as_gold(tmp_path, row, answer, solution):
    (prompt,) = read(tmp_path, "", {"prompt": [{"role": "user", "content": "q"}]} | row)
    assert (prompt.question, prompt.answer, prompt.solution) == ("q", answer, solution)


def test_a_chat_that_ends_with_the_assistant_is_a_question_and_its_solution(tmp_path):
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    (prompt,) = read(tmp_path, "", {"messages": [*chat, {"role": "assistant", "content": "#### 3"}]})
    assert prompt.messages == (Message("system", "s"), Message("user", "u"))
    assert (prompt.answer, prompt.solution) == ("3", "#### 3")
