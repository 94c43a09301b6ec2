from __future__ import annotations

import json
import sys
import types

import pytest

from ropd_jax.data.reading import read_source
from ropd_jax.evaluation.answers import Answer
from ropd_jax.evaluation.benchmarks import BENCHMARKS, benchmark_of, load_benchmark
from ropd_jax.evaluation.grading import grade_answers
from ropd_jax.teacher.scripted import instructions as rules
from ropd_jax.types import UserError
from tests.helpers import local_data


def write(directory, name, rows):
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(directory)


def gpqa(n):
    wrong = {f"Incorrect Answer {j}": f"wrong {n}{j}" for j in (1, 2, 3)}
    return {"Record ID": f"rec{n}", "Question": f"Which {n}?", "Correct Answer": f"right {n}", **wrong}


def test_every_benchmark_of_the_paper_is_there_with_its_sampling():
    assert set(BENCHMARKS) == {
        "aime_2024", "aime_2025", "hmmt_feb_2025", "hmmt_nov_2025", "math_500", "gsm8k", "gpqa_diamond",
        "healthbench", "healthbench_hard", "healthbench_consensus", "ifeval",
    }  # fmt: skip
    for b in BENCHMARKS.values():
        assert (b.sampling.k, b.sampling.temperature, b.sampling.top_p, b.sampling.max_tokens) == (16, 1.0, 0.95, 32768)
        assert b.source.rows and b.source.licence and b.source.hub
    assert [BENCHMARKS[n].source.rows for n in ("aime_2025", "gpqa_diamond", "ifeval")] == [30, 198, 541]


def test_an_unknown_benchmark_is_answered_with_near_names():
    with pytest.raises(UserError, match="did you mean aime_2025"):
        benchmark_of("aime25")


@pytest.mark.parametrize("row", [{"problem": "1+1?", "answer": 2}, {"Problem": "1+1?", "Answer": "2"}])
def test_math_rows_are_read_in_the_columns_of_either_publisher(tmp_path, row):
    loaded = load_benchmark("aime_2025", write(tmp_path, "aime_2025", [row | {"problem_idx": 7}]))
    (prompt,) = loaded.prompts
    assert (prompt.id, prompt.answer, prompt.metadata["question"]) == ("aime_2025-7", "2", "1+1?")
    assert prompt.question.startswith("1+1?") and "\\boxed{}" in prompt.question
    assert (loaded.found.rows, loaded.found.rows_expected, loaded.found.as_known) == (1, 30, False)


def test_gsm8k_is_read_as_published(tmp_path):
    rows = [{"question": "How many?", "answer": "10 * 100 = <<10*100=1000>>1000\n#### 1,000"}]
    assert load_benchmark("gsm8k", write(tmp_path, "gsm8k_test", rows)).prompts[0].answer == "1000"


def test_a_root_without_its_backslash_is_repaired_and_the_original_kept(tmp_path):
    rows = [{"problem": "p", "answer": r"\frac{sqrt{7}+1}{2}"}, {"problem": "q", "answer": r"\sqrt{7}"}]
    first, second = load_benchmark("hmmt_nov_2025", write(tmp_path, "hmmt_nov_2025", rows)).prompts
    assert (first.answer, first.metadata["answer_raw"]) == (r"\frac{\sqrt{7}+1}{2}", r"\frac{sqrt{7}+1}{2}")
    assert second.answer == r"\sqrt{7}" and "answer_raw" not in second.metadata


def test_choices_stand_in_the_order_of_simple_evals(tmp_path):
    place = write(tmp_path, "gpqa_diamond", [gpqa(n) for n in range(3)])
    prompts = load_benchmark("gpqa_diamond", place).prompts
    # random.Random(0): sample(range(4), 4) three times is [3, 1, 0, 2], [2, 3, 1, 0], [1, 3, 0, 2]
    assert [p.answer for p in prompts] == ["C", "D", "C"]
    assert prompts[0].question.endswith("Which 0?\n\nA) wrong 03\nB) wrong 01\nC) right 0\nD) wrong 02")
    other = load_benchmark("gpqa_diamond", place, seed=1).prompts
    assert [p.question for p in other] != [p.question for p in prompts]


def test_arguments_that_are_null_are_dropped_and_zero_is_kept(tmp_path):
    row = {"key": 7, "prompt": "p", "instruction_id_list": ["a:b"], "kwargs": [{"n": 0, "relation": None}]}
    (prompt,) = load_benchmark("ifeval", write(tmp_path, "ifeval", [row])).prompts
    assert prompt.metadata["instructions"] == [("a:b", {"n": 0})]
    assert (prompt.id, prompt.question) == ("ifeval-7", "p")


def test_a_conversation_is_asked_turn_by_turn(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    turns += [{"role": "user", "content": "help"}]
    rubric = [{"criterion": "helps", "points": 5, "tags": ["axis:x"]}]
    row = {"prompt_id": "h1", "prompt": turns, "rubrics": rubric, "example_tags": ["theme:y"]}
    (prompt,) = load_benchmark("healthbench_hard", write(tmp_path, "healthbench_hard", [row])).prompts
    assert [m.content for m in prompt.messages] == ["hi", "yes?", "help"]
    assert prompt.metadata["rubrics"] == [("helps", 5.0, ("axis:x",))]


def test_any_task_of_reasoning_gym_is_a_benchmark_of_different_questions():
    loaded = load_benchmark("reasoning_gym:chain_sum", limit=20)
    assert len({p.question for p in loaded.prompts}) == 20
    assert loaded.benchmark.grader == "exact"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        ([{"problem": "p"}], "row 1 has none of answer, Answer"),
        (
            [{"id": "a", "problem": "p", "answer": "1"}, {"id": "a", "problem": "q", "answer": "1"}],
            "two rows have the id 'a'",
        ),
    ],
)
def test_rows_of_another_kind_are_refused_with_their_place(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        load_benchmark("aime_2024", write(tmp_path, "aime_2024", rows))


def test_without_data_it_is_said_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.delenv("ROPD_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"MathArena/aime_2025.*--data DIR or ROPD_DATA"):
        load_benchmark("aime_2025")
    with pytest.raises(UserError, match=r"not in .*put aime_2025\.jsonl"):
        load_benchmark("aime_2025", str(tmp_path))


def test_the_hub_is_asked_for_the_set_its_config_and_its_split(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return [gpqa(0)]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    rows, place = read_source(BENCHMARKS["gpqa_diamond"].source, "hub")
    assert asked == [(("Idavidrein/gpqa", "gpqa_diamond"), {"split": "train"})]
    assert rows == [gpqa(0)] and place == "hub:Idavidrein/gpqa"


@pytest.mark.parametrize("name", ["aime_2024", "hmmt_feb_2025", "math_500", "gsm8k", "ifeval"])
def test_the_published_files_are_known_by_their_hash(name):
    if not (local_data() / BENCHMARKS[name].source.files[0]).exists():
        pytest.skip(f"no {name} here")
    assert load_benchmark(name, str(local_data())).found.as_known is True


def test_a_changed_answer_changes_the_hash(tmp_path):
    a = load_benchmark("aime_2024", write(tmp_path, "aime_2024", [{"problem": "p  q", "answer": "1"}])).found
    b = load_benchmark("aime_2024", write(tmp_path, "aime_2024", [{"problem": "p q", "answer": "1"}])).found
    c = load_benchmark("aime_2024", write(tmp_path, "aime_2024", [{"problem": "p q", "answer": "2"}])).found
    assert a.sha == b.sha != c.sha


def test_drawn_instructions_are_graded_by_ifevals_checks_rule_by_rule():
    loaded = load_benchmark("instructions", limit=12)
    assert len(loaded.prompts) == 12 and loaded.prompts == load_benchmark("instructions", limit=12).prompts
    good = [(p.id, rules.write(rules.read(p.question), 0)) for p in loaded.prompts]
    answers = [Answer(name, text) for name, right in good for text in (right, "")]
    outcomes = grade_answers(loaded.benchmark, {p.id: p for p in loaded.prompts}, answers)
    assert [o.value for o in outcomes] == [1.0, 0.0] * 12
    assert all(o.parts["followed_strict"] == o.value * o.parts["instructions"] >= 0 for o in outcomes)
