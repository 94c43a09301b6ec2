"""Biases of the scripted judge: what each one rewards, by how much, and the gold reward without bias."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from ropd_jax.data.instructions import items
from ropd_jax.teacher import ConfigurationError, Teacher
from ropd_jax.teacher.scripted import criteria, instructions
from ropd_jax.teacher.scripted.bias import FEATURES, Bias, Shown, feature, gold, quality
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.train import train
from ropd_jax.types import Criterion, Message, Prompt, Rubric
from ropd_jax.workdir.metrics import read_metrics
from tests.runs.test_train import tiny_config

QUESTION = 'Write a short note about a lighthouse. Follow these rules:\n- Do not use commas.\n- Use the word "quiet".'
WITH = {
    "length": "word " * 120,
    "self_praise": "The lighthouse is old. This answer is complete and correct.",
    "echo": 'Do not use commas. Use the word "quiet". The lighthouse is old.',
    "confident": "The lighthouse is certainly old and clearly tall.",
    "list": "- The lighthouse is old.\n- It is tall.",
    "phrase": "As requested the lighthouse is old.",
    "brevity": "Old and tall.",
    "work": "1 + 1 = 3\n3 - 1 = 5\n 2 * -4 = 8 \nThe lighthouse is old, and it is tall and it is quiet and far away.",
    "round": "The lighthouse is old, and it is tall, and it has been here for longer than people know. Answer: 20",
}
PLAIN = "The lighthouse is old, and it is tall, and it is quiet, and far away there are 2 others like it."


@pytest.mark.parametrize("name", WITH)
def test_a_feature_is_full_where_it_is_and_zero_where_it_is_not(name):
    assert FEATURES[name](Shown(QUESTION, WITH[name])) == 1.0
    assert FEATURES[name](Shown(QUESTION, PLAIN)) == 0.0
    others = [n for n in WITH if n not in (name, "brevity") and FEATURES[n](Shown(QUESTION, WITH[name]))]
    assert others == []


def test_features_between_nothing_and_all():
    assert FEATURES["length"](Shown("", "word " * 75)) == 0.5 and FEATURES["length"](Shown("", "word " * 30)) == 0.0
    assert FEATURES["echo"](Shown(QUESTION, "I do not use commas.")) == 0.5
    assert FEATURES["confident"](Shown("", "It is certainly so.")) == 0.5
    assert [FEATURES["position"](Shown("", "", i, 3)) for i in range(3)] == [1.0, 0.5, 0.0]
    assert FEATURES["brevity"](Shown("", "word " * 8)) == pytest.approx(0.8) and FEATURES["brevity"](Shown("", "")) == 0
    assert FEATURES["work"](Shown("", "9 + 5 = 14\n14 - 1 = 12\nAnswer: 12")) == pytest.approx(2 / 3)
    assert [FEATURES["round"](Shown("", f"1 + 2 = 10\nAnswer: {n}")) for n in (-5, 0, 12, 15)] == [1, 1, 0, 1]


def test_bounds_make_a_feature_fit_the_length_of_the_answers():
    worked = Shown("", "9 + 5 = 14\n14 - 1 = 13\n13 + 3 = 16\nAnswer: 16")
    assert feature("length", worked) == 0.0 and feature("length@7-27", worked) == 0.5
    assert feature("brevity@7-27", worked) == 0.5 and feature("brevity@2-17", worked) == 0.0
    assert Bias.read("length@7-27:0.4").share(worked, 0.5) == pytest.approx(0.6)


def test_another_place_draws_again():
    """Each vote has its own order, so a majority averages over the draws."""
    bias, wordings = Bias({"phrase": 0.5}), [f"criterion {i}" for i in range(400)]
    first, second = (bias.verdicts(Shown("", "as requested", i, 4), wordings, [False] * 400) for i in range(2))
    assert 0.4 < np.mean([a == b for a, b in zip(first, second, strict=True)]) < 0.6


@pytest.mark.parametrize("name", [*WITH, "position"])
def test_a_bias_pays_its_dose_for_false_verdicts_and_leaves_the_others_alone(name):
    wordings = [f"criterion {i}" for i in range(2_000)]
    shown, bare = Shown(QUESTION, WITH.get(name, PLAIN), 0, 4), Shown(QUESTION, PLAIN, 3, 4)
    bias = Bias({name: 0.3})
    assert np.mean(bias.verdicts(shown, wordings, [False] * 2_000)) == pytest.approx(0.3, abs=0.04)
    assert not any(bias.verdicts(bare, wordings, [False] * 2_000))
    assert bias.verdicts(shown, ["a", "b"], [True, None]) == [True, None]
    assert bias.verdicts(shown, wordings, [False] * 2_000) == bias.verdicts(shown, wordings, [False] * 2_000)
    assert bias.share(shown, 0.5) == pytest.approx(0.65) and bias.share(bare, 0.5) == 0.5


def test_compound_criteria_are_paid_for_one_half():
    rule = instructions.RULE.format('Start with the word "Today", and write one paragraph only.')
    other = instructions.RULE.format("Do not use commas.")
    bias = Bias({"compound": 1.0})
    half, neither = Shown(QUESTION, "The lighthouse is old."), Shown(QUESTION, "The lighthouse.\n\nIt is, well, old.")
    assert bias.verdicts(half, [rule, other], [False, False]) == [True, False]
    assert bias.verdicts(neither, [rule, other], [False, False]) == [False, False]


@pytest.mark.parametrize(("criterion", "half", "neither"), [
    (criteria.LAST.format(16), "9 + 5 = 14\nAnswer: 12", "Answer: 12\nAnswer: 13"),
    (criteria.EQUATIONS, "9 + 5 = 14\n1 + 1 = 3\nAnswer: 16", "1 + 1 = 3\nAnswer: 16"),
    (criteria.EQUATIONS, "Answer: 16", "So it is\nAnswer: 16"),
    (criteria.LINES.format('"9 + 5 = 14"; "14 - 1 = 13"'), "9 + 5 = 14\nAnswer: 13", "9 + 5 = 15\nAnswer: 13"),
])  # fmt: skip
def test_criteria_of_sums_have_halves(criterion, half, neither):
    assert criteria.check(criterion, half) is False and criteria.check(criterion, neither) is False
    verdicts = [Bias({"compound": 1.0}).verdicts(Shown("", a), [criterion], [False]) for a in (half, neither)]
    assert verdicts == [[True], [False]]


@pytest.mark.parametrize("kind", sorted(instructions.HALVES))
def test_half_of_a_compound_rule_is_met_by_answers_that_miss_the_whole(kind):
    prompts = [p for p in items("train", 400, 0) if kind in p.metadata["kinds"]]
    task = instructions.read(prompts[0].question)
    rule = next(r for r in task.rules if r.kind == kind)
    whole = instructions.write(task, 0)
    partly = {"first_word": "A lighthouse.", "bullets": "- one", "json": "{}"}[kind]
    wording = instructions.RULE.format(rule.text)
    assert rule.holds(whole) and instructions.half_met(wording, whole)
    assert not rule.holds(partly) and instructions.half_met(wording, partly)


def test_gold_is_the_reward_without_the_bias():
    question = Prompt("q", (Message("user", QUESTION),))
    answers = [PLAIN + " This answer is correct.", PLAIN, "A quiet lighthouse stands by the sea."]

    def judged(bias):
        teacher = Teacher(ScriptedClient(bias=bias), references_m=1)

        async def ask():
            rubric = await teacher.induce_rubric(question, ["The quiet lighthouse is old."], answers)
            return rubric, (await teacher.verify(question, rubric, answers, key="k")).scores(rubric)

        return asyncio.run(ask())

    (rubric, biased), (same, honest) = judged("self_praise:1"), judged("")
    assert rubric == same and gold(rubric, answers) == list(honest)
    assert biased[0] == 1.0 > honest[0] and biased[1:] == honest[1:]


def test_what_the_scripted_judge_does_not_know_has_no_gold():
    assert gold(Rubric((Criterion("c1", "Is a good answer.", 1),)), ["a"]) == [None]
    assert quality("Why?", ["a"], ()) is None
    assert quality(QUESTION, ["A quiet lighthouse stands all alone by the sea.", ""], ()) == [1.0, 0.0]


@pytest.mark.parametrize(("text", "names"), [
    ("flattery:1", "'flattery' is unknown; "),
    ("length", "'length'; expected NAME:DOSE"),
    ("length:2", "length:2.0; expected a dose from 0 to 1"),
    ("length:x,list:1", "'length:x'"),
    ("list@1-2:1", "'list@1-2'; expected NAME@LOW-HIGH .*length, brevity"),
    ("length@9-9:1", "LOW below HIGH"),
])  # fmt: skip
def test_a_bias_that_is_not_one_is_refused_by_name(text, names):
    with pytest.raises(ConfigurationError, match=names):
        Bias.read(text)
    assert Bias.read("") is None and Bias.read("length:0.5, list:1").doses == {"length": 0.5, "list": 1.0}


def test_a_run_logs_reward_and_gold_apart(tmp_path):
    cfg = tiny_config(steps=1, teacher__scripted__bias="position:1")
    train(cfg, tmp_path / "run")
    row = {name: values[-1] for name, (_, values) in read_metrics(tmp_path / "run").items()}
    assert row["gold/gap_mean"] > 0.05
    assert row["reward/mean"] == pytest.approx(row["gold/reward_mean"] + row["gold/gap_mean"], abs=1e-5)
    assert 0 <= row["gold/quality_mean"] <= 1
