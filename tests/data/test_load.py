"""Prompts of each source: reasoning-gym, JSONL files."""

from __future__ import annotations

import json

import pytest

from ropd_jax.data.load import load_prompts
from ropd_jax.data.prompts import normalise
from ropd_jax.data.reasoning_gym import check_seeds
from ropd_jax.types import Message, UserError


def chain(size=50, seed=1, **kw):
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    return load_prompts(source="reasoning_gym", task="chain_sum", size=size, seed=seed, options=options, **kw)


def jsonl(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def read(path, **kw):
    return load_prompts(source="jsonl", path=path, **kw)


def test_reasoning_gym_items_are_unique_and_duplicates_are_counted():
    got = chain(size=300)
    keys = {normalise(p.question) for p in got}
    assert len(keys) == len(got) == len({p.id for p in got})
    assert got.dropped == {"duplicate": 300 - len(got)}
    assert got.dropped["duplicate"] > 100  # two one-digit terms: at most 9 * 9 * 2 questions
    a, op, b = got[0].metadata["reasoning_gym"]["metadata"]["expression"].split()
    assert int(got[0].answer) == (int(a) + int(b) if op == "+" else int(a) - int(b))
    assert got[0].task == "chain_sum"


def test_same_arguments_give_the_same_prompts():
    assert chain() == chain()
    assert chain(seed=1000) != chain()


def test_template_and_system_message_surround_the_question_and_braces_stay():
    got = chain(size=1, template="{question}\nUse {braces}.", system="Be brief.")[0]
    bare = got.metadata["question"]
    assert got.messages == (Message("system", "Be brief."), Message("user", f"{bare}\nUse {{braces}}."))


def test_template_without_question_is_refused():
    with pytest.raises(UserError, match=r"has no \{question\}"):
        chain(template="solve")


def test_gsm_symbolic_solutions_end_in_the_gold_answer_and_the_others_are_counted():
    got = load_prompts(source="reasoning_gym", task="gsm_symbolic", size=100, seed=42)
    assert all(p.solution.rpartition("#### ")[2] == p.answer for p in got)
    assert got.dropped["solution_mismatch"] >= 1
    assert len(got) + sum(got.dropped.values()) == 100


@pytest.mark.parametrize(
    "task, options, message",
    [
        ("chain_sun", {}, "did you mean chain_sum"),
        ("chain_sum", {"min_term": 2}, "no option 'min_term'; did you mean min_terms"),
        ("chain_sum", {"min_terms": 5, "max_terms": 2}, "rejects the options"),
        ("chain_sum", {"seed": 3}, "no option 'seed'"),
    ],
)
def test_a_wrong_task_or_option_names_the_near_ones(task, options, message):
    with pytest.raises(UserError, match=message):
        load_prompts(source="reasoning_gym", task=task, size=3, options=options)


def test_unknown_source_and_missing_size_are_refused():
    with pytest.raises(UserError, match="expected reasoning_gym, instructions, jsonl or published"):
        load_prompts(source="tfds")
    with pytest.raises(UserError, match="size None"):
        load_prompts(source="reasoning_gym", task="gcd")


def test_jsonl_reads_each_key_and_the_published_gsm8k_form(tmp_path):
    path = jsonl(
        tmp_path / "rows.jsonl",
        {"id": "a", "problem": "one?", "answer": 1, "solution": "1 = 1", "level": 3},
        "",
        {"question": "two?", "answer": "1 + 1 = 2\n#### 1,002"},
        {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "three?"}], "answer": None},
    )
    a, b, c = read(path, task="gsm8k")
    assert (a.id, a.answer, a.solution, a.metadata["level"], a.task) == ("a", "1", "1 = 1", 3, "gsm8k")
    assert (b.id, b.answer, b.solution) == ("rows-3", "1002", "1 + 1 = 2\n#### 1,002")
    assert (c.messages, c.answer) == ((Message("system", "s"), Message("user", "three?")), None)


def test_jsonl_patterns_are_read_in_sorted_order_and_size_keeps_the_first(tmp_path):
    jsonl(tmp_path / "part1.jsonl", {"question": "b"}, {"question": "c"})
    jsonl(tmp_path / "part0.jsonl", {"question": "a"}, {"question": "A ?"})
    got = read(str(tmp_path / "part*.jsonl"), size=2)
    assert [p.question for p in got] == ["a", "b"]
    assert got.dropped == {"duplicate": 1, "over_size": 1}


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", r"rows.jsonl:2: not JSON"),
        ("[1]", r"rows.jsonl:2: a JSON list"),
        ('{"text": "x"}', r"rows.jsonl:2: no question; expected one of the keys problem, question, prompt"),
        ('{"question": "x", "answer": true}', r"rows.jsonl:2: answer is True"),
        ('{"question": "x", "solution": 3}', r"rows.jsonl:2: solution is a int"),
        ('{"question": 5}', r"rows.jsonl:2: question is 5"),
        ('{"prompt": [{"role": "user"}]}', r"rows.jsonl:2: prompt: a message without role and content"),
        ('{"prompt": [{"role": "assistant", "content": "x"}]}', r"last is the user's"),
        ('{"id": "a", "question": "other"}', r"two different questions have the id 'a'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        read(jsonl(tmp_path / "rows.jsonl", {"id": "a", "question": "q"}, line))


def test_missing_empty_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read(str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="no file matches"):
        read(str(tmp_path / "*.jsonl"))
    with pytest.raises(UserError, match="no prompt left"):
        read(jsonl(tmp_path / "empty.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "caf\xe9"}')
    with pytest.raises(UserError, match="byte 17 is not UTF-8"):
        read(str(tmp_path / "latin.jsonl"))


@pytest.mark.parametrize("seeds, ok", [((0, 101), True), ((0, 100), False), ((500, 0), True), ((50, 0), False)])
def test_seeds_closer_than_the_size_are_refused(seeds, ok):
    sizes = {"train_size": 100, "heldout_size": 60}
    if ok:
        check_seeds(train_seed=seeds[0], heldout_seed=seeds[1], **sizes)
    else:
        with pytest.raises(UserError, match="item i is drawn from seed"):
            check_seeds(train_seed=seeds[0], heldout_seed=seeds[1], **sizes)
