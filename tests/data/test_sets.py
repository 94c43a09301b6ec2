from __future__ import annotations

import json
from collections import Counter

import pytest

from ropd_jax.cli.main import main
from ropd_jax.data.load import load_prompts
from ropd_jax.data.published import PUBLISHED, TRAINING
from ropd_jax.data.reading import read_source
from ropd_jax.data.sets import (
    RarCriterion,
    SetOptions,
    load_set,
    rar_criterion,
    rar_score,
    same_key,
    without_overlap,
)
from ropd_jax.data.stream import PromptStream
from ropd_jax.data.tfds import prepare, read_prepared
from ropd_jax.evaluation.benchmarks import load_benchmark
from ropd_jax.types import Message, Prompt, UserError
from tests.helpers import local_data


def write(directory, name, rows):
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(directory)


LONG = "A train leaves at noon with a speed of 40 miles an hour and meets another one, which left at two, on a bridge. "
ROWS = [
    {"id": "a", "problem": "What is $1+1$?", "answer": "2"},
    {"id": "b", "problem": "What is $1+1$", "answer": "2"},  # a duplicate
    {"id": "c", "problem": "What is 2+2?", "answer": "4"},
    {"id": "d", "problem": "what is 2+2", "answer": "5"},  # a conflict: c and d are dropped
    {"id": "e", "problem": "求 $1+1$ 的值", "answer": "2"},
    {"id": "f", "problem": "What is x - 1 at x = 3?", "answer": "2"},
    {"id": "g", "problem": "What is x + 1 at x = 3?", "answer": "4"},  # not the same as f
    {"id": "h", "problem": LONG + "When?", "answer": "1"},  # a benchmark's, with another end
    {"id": "i", "problem": "Find the roots of $ x^2 = 4 $", "answer": "2"},  # a benchmark's, spaced differently
]


@pytest.fixture
def place(tmp_path):
    write(tmp_path, "math_500", [{"problem": LONG + "Where do they meet?", "answer": "0"},
                                 {"problem": "Find the roots of $x^2=4$.", "answer": "2"}])  # fmt: skip
    return write(tmp_path, "dapo_math_17k", ROWS)


def test_what_is_dropped_from_dapo_is_counted_by_cause(place):
    prompts, dropped, found = load_set("dapo_math_17k", place)
    assert [p.id for p in prompts] == ["a", "f", "g"]
    assert dropped == {"language": 1, "duplicate": 1, "conflict": 2, "in_benchmark": 2}
    assert (found.rows, found.as_known) == (9, False)
    assert [p.id for p in load_set("dapo_math_17k", place, SetOptions("zh"))[0]] == ["e"]
    kept, dropped, _ = load_set("dapo_math_17k", place, SetOptions("all", overlap="keep"))
    assert [p.id for p in kept] == ["a", "e", "f", "g", "h", "i"] and "in_benchmark" not in dropped


def test_the_hubs_rows_lose_their_wrapper_and_their_copies(tmp_path):
    text = (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        "$Answer (without quotes) where $Answer is the answer to the problem.\n\nWhat is 6?\nReally?\n\n"
        'Remember to put your answer on its own line after "Answer:".'
    )
    row = {"data_source": "math_dapo", "prompt": [{"content": text, "role": "user"}], "ability": "MATH",
           "reward_model": {"ground_truth": "6", "style": "rule"}, "extra_info": {"index": "u-1"}}  # fmt: skip
    prompts, dropped, found = load_set("dapo_math_17k", write(tmp_path, "dapo_math_17k", [row] * 3))
    assert [(p.id, p.question, p.answer) for p in prompts] == [("u-1", "What is 6?\nReally?", "6")]
    assert dropped == {"copy": 2} and found.rows == 1


def test_overlap_is_found_whatever_the_notation_but_not_by_a_short_beginning():
    prompts = [Prompt(i, (Message("user", q),)) for i, q in (("a", "Find  X."), ("b", "Find x and y."), ("c", LONG))]
    dropped = Counter()
    kept = without_overlap(prompts, {"bench": ["find $x$", LONG + "More?", "Find"]}, dropped)
    assert [p.id for p in kept] == ["b"] and dropped == {"in_benchmark": 2}
    assert same_key("$\\frac{1}{2}$ of X?") == same_key("frac{1}{2} OF x") == "frac12ofx"


def test_a_run_draws_training_and_held_out_questions_from_one_set(place):
    common = dict(source="published", task="dapo_math_17k", path=place, options={"language": "all"})
    everything = load_prompts(**common, size=0)
    two = load_prompts(**common, size=2, seed=1)
    assert len(everything) == 4 and len(two) == 2  # a, e, f, g
    assert {p.id for p in two} < {p.id for p in everything}
    assert two.prompts == load_prompts(**common, size=2, seed=1).prompts
    assert {load_prompts(**common, size=2, seed=s).prompts[0].id for s in range(20)} == {"a", "e", "f", "g"}
    assert everything.dropped["conflict"] == 2


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("dapo_math", {}, "did you mean dapo_math_17k"),
        ("dapo_math_17k", {"lang": "en"}, "no option 'lang'; did you mean language"),
        ("dapo_math_17k", {"language": "de"}, "language='de'; expected en, zh, all"),
        ("gsm8k_train", {}, "GSM8K train is not in"),
    ],
)
def test_a_wrong_name_or_option_is_said(place, task, options, message):
    with pytest.raises(UserError, match=message):
        load_prompts(source="published", task=task, path=place, options=options)


def test_the_hosts_of_a_run_share_each_batch():
    prompts = [Prompt(str(i), (Message("user", str(i)),)) for i in range(10)]
    stream = PromptStream(prompts, 4, seed=0)
    for step in range(5):
        whole = stream.batch(step)
        parts = [stream.batch(step, shard=i, shards=2) for i in range(2)]
        assert [len(p) for p in parts] == [2, 2]
        assert sorted(p.id for part in parts for p in part) == sorted(p.id for p in whole)


# --------------------------------------------------------------------------------------------------------- RaR


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("The response must not imply that energy is created.", True),  # as in Science: a virtue, weight -1
        ("Avoids suggesting that the reaction is reversible.", True),
        ("Should not confuse mass with weight.", True),
        ("Does not claim that heat is lost.", True),
        ("Incorrectly states that the dose is safe.", False),  # as in Medicine: a fault, weight -2
        ("Fails to mention the allergy.", False),
        ("Does not mention the need for imaging.", False),
        ("Suggests surgery as the first step.", None),
    ],
)
def test_the_polarity_of_a_pitfall_is_read_from_its_words_or_unknown(text, good):
    assert rar_criterion("Pitfall", text, -2) == RarCriterion("Pitfall", text, 2, good)
    assert rar_criterion("Essential", text, 5) == RarCriterion("Essential", text, 5, True)


def test_no_good_answer_is_punished_for_a_virtue_with_a_negative_weight():
    criteria = [rar_criterion("Essential", "Names the law.", 5), rar_criterion("Pitfall", "Must not imply a gain.", -1)]
    assert rar_score(criteria, [True, True]) == 1.0  # a signed sum gives (5 - 1) / 5
    assert rar_score(criteria, [True, False]) == 5 / 6
    fault = [criteria[0], rar_criterion("Pitfall", "Incorrectly states a gain.", -1)]
    assert rar_score(fault, [True, False]) == 1.0
    assert rar_score(fault, [True, None]) is None
    unknown = [criteria[0], rar_criterion("Pitfall", "Suggests a gain.", -1)]
    assert rar_score(unknown, [True, True]) == rar_score(unknown, [True, None]) == 1.0
    assert rar_score(unknown[1:], [True]) is None


def test_rar_rows_become_prompts_with_their_criteria(tmp_path):
    rubric = [{"title": "Essential", "description": "Names it.", "weight": 5}]
    rows = [{"question": "Why?", "reference_answer": "Because.", "rubric": rubric, "rubric_count": 1}]
    (prompt,) = load_set("rar_science", write(tmp_path, "rar_science", rows))[0]
    assert (prompt.question, prompt.solution, prompt.answer) == ("Why?", "Because.", None)
    assert prompt.metadata["criteria"] == (RarCriterion("Essential", "Names it.", 5, True),)
    with pytest.raises(UserError, match="not a row of RaR"):
        load_set("rar_medicine", write(tmp_path, "rar_medicine", [{"question": "q", "rubric": [{"weight": 1}]}]))


# -------------------------------------------------------------------------------------------------------- TFDS


def test_a_prepared_set_is_read_back_row_for_row_in_order(place, tmp_path):
    source = PUBLISHED["dapo_math_17k"]
    path = prepare(source, tmp_path / "tfds", lambda: read_source(source, place)[0])
    assert list(path.glob("*.array_record*"))
    rows, where = read_prepared(source, tmp_path / "tfds")
    assert rows == ROWS == read_source(source, place)[0]
    assert where == f"tfds:{path}"
    again = load_set("dapo_math_17k", f"tfds:{tmp_path / 'tfds'}")
    assert [p.id for p in again[0]] == ["a", "f", "g", "h", "i"]  # the benchmark is not prepared here
    assert prepare(source, tmp_path / "tfds", lambda: pytest.fail("it read")) == path  # already there: nothing is read


def test_a_benchmark_can_be_read_from_prepared_files(tmp_path):
    rows = [{"problem": f"{n}?", "answer": str(n)} for n in range(40)]
    place = write(tmp_path, "aime_2025", rows)
    source = PUBLISHED["aime_2025"]
    prepare(source, tmp_path / "tfds", lambda: read_source(source, place)[0])
    a, b = load_benchmark("aime_2025", place), load_benchmark("aime_2025", f"tfds:{tmp_path / 'tfds'}")
    assert a.prompts == b.prompts and a.found.sha == b.found.sha


def test_a_set_that_is_not_prepared_is_said_with_the_command(tmp_path):
    with pytest.raises(UserError, match=r"RaR-Science is not prepared.*ropd data"):
        read_prepared(PUBLISHED["rar_science"], tmp_path)


# ------------------------------------------------------------------------------------------------------ ropd data


def test_the_command_says_what_is_there_and_what_is_left(place, tmp_path, capsys):
    assert main(["data", "--data", place]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("dapo_math_17k", "rar_medicine", "aime_2024"))
    assert main(["data", "dapo_math_17k", f"--data={place}", f"--prepare={tmp_path / 't'}"]) == 2  # as it is incomplete
    shown = capsys.readouterr().out
    assert "9 (expected 17,917)" in shown and "NOT as known" in shown and "dropped: conflict      2" in shown
    assert main(["data", "dapo_math"]) == 2
    assert "did you mean dapo_math_17k" in capsys.readouterr().err


def test_a_list_of_the_sets_downloads_nothing(monkeypatch, capsys):
    monkeypatch.delenv("ROPD_DATA", raising=False)
    monkeypatch.setattr("ropd_jax.data.reading.read_source", lambda *a: pytest.fail("it read"))
    assert main(["data"]) == 0
    assert "no --data" in capsys.readouterr().out


def test_the_published_dapo_is_what_it_was_when_it_was_counted():
    place = str(local_data())
    prompts, dropped, found = load_set("dapo_math_17k", place)
    assert found.as_known is True
    assert dropped["language"] == 3_432 and dropped["conflict"] == 22 and dropped["duplicate"] == 508
    assert len(prompts) == 17_917 - dropped.total()
    if (local_data() / "math_500.jsonl").exists():
        assert dropped["in_benchmark"] == 17


def test_every_training_set_has_its_facts():
    for source in TRAINING.values():
        assert source.rows and source.hub and source.licence and source.files
