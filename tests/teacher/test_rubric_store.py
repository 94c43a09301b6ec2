"""Reused rubrics: by policy, only from earlier steps, through a checkpoint."""

from __future__ import annotations

import asyncio
import json

import pytest

from ropd_jax.teacher import ConfigurationError, Teacher
from ropd_jax.teacher.judge_group import judge
from ropd_jax.teacher.rubric_store import RubricStore, lineage_of, text_sha
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.types import Criterion, Rubric


def rubric(n):
    return Rubric(tuple(Criterion(f"c{i}", f"rubric {n}", i) for i in range(1, 5)))


def visit(store, step, *, saturated=False):
    """One group of prompt p: the rubric that judged it, new or found."""
    found = store.find("p", step)
    known, lineage = found or (rubric(step), lineage_of(step, "m", "t@1", ["r"], ["a", "b"]))
    store.add("p", step, known, lineage, saturated=saturated)
    return lineage.step


def test_fresh_reuses_nothing_and_keeps_nothing():
    store = RubricStore("fresh")
    assert [visit(store, s) for s in range(4)] == [0, 1, 2, 3]
    assert store.state() == {"rubrics": [], "visits": {}, "buffers": {}}


@pytest.mark.parametrize("epochs, made", [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 0, 2, 2, 4, 4]), (3, [0, 0, 0, 3, 3, 3])])
def test_per_epoch_replaces_a_rubric_after_so_many_visits(epochs, made):
    store = RubricStore("per_epoch", epochs=epochs)
    assert [visit(store, s) for s in range(6)] == made


def test_until_saturated_replaces_it_once_all_rollouts_scored_the_same():
    store = RubricStore("until_saturated")
    assert [visit(store, s, saturated=s in (2, 3)) for s in range(6)] == [0, 0, 0, 3, 4, 4]


def test_prompts_do_not_share_rubrics():
    store = RubricStore("until_saturated")
    visit(store, 0)
    assert store.find("q", 1) is None


@pytest.mark.parametrize("policy", ["per_epoch", "until_saturated"])
@pytest.mark.parametrize("killed_at", [1, 2, 3, 4])
def test_a_step_repeated_after_a_kill_decides_the_same(policy, killed_at):
    def run(store, steps):
        return [visit(store, s, saturated=s in (1, 3)) for s in steps]

    whole = run(RubricStore(policy), range(6))
    store = RubricStore(policy)
    run(store, range(killed_at + 1))  # the step in which it was killed was judged, but not finished
    resumed = RubricStore(policy)
    resumed.restore(json.loads(json.dumps(store.state())))
    assert run(resumed, range(killed_at, 6)) == whole[killed_at:]


def test_the_state_is_json_and_holds_content_and_lineage():
    store = RubricStore("until_saturated")
    visit(store, 7)
    other = RubricStore("until_saturated")
    other.restore(json.loads(json.dumps(store.state())))
    known, lineage = other.find("p", 8)
    assert known == rubric(7)
    assert (lineage.step, lineage.model, lineage.template) == (7, "m", "t@1")
    assert lineage.references == (text_sha("r"),) and lineage.answers == (text_sha("a"), text_sha("b"))
    assert other.state() == store.state()


def test_equal_rubrics_are_stored_once():
    store = RubricStore("per_epoch", epochs=1)
    for step, prompt in enumerate(["p", "q", "p"]):
        store.add(prompt, step, rubric(0), lineage_of(step, "m", "t@1", [], []), saturated=False)
    assert len(store.state()["rubrics"]) == 1


@pytest.mark.parametrize(
    "policy, epochs, message",
    [
        ("often", 2, "teacher.rubric_reuse is 'often'; expected one of fresh, per_epoch"),
        ("per_epoch", 0, "rubric_epochs is 0"),
    ],
)
def test_an_unknown_policy_is_reported(policy, epochs, message):
    with pytest.raises(ConfigurationError, match=message):
        RubricStore(policy, epochs=epochs)


def test_a_reused_rubric_saves_the_call_and_judges_alike(sum_prompt, sum_answers):
    async def run(policy):
        teacher = Teacher(ScriptedClient(), references_m=2, store=RubricStore(policy))
        judgements = [await judge(teacher, sum_prompt, sum_answers, step=s) for s in range(3)]
        return teacher, judgements

    fresh, _ = asyncio.run(run("fresh"))
    assert fresh.stats.calls["rubric"] == 3
    teacher, judgements = asyncio.run(run("until_saturated"))
    assert teacher.stats.calls["rubric"] == 1  # four different answers: it discriminates each time
    assert [j.lineage.step for j in judgements] == [0, 0, 0]
    assert judgements[0].rubric == judgements[2].rubric and judgements[0].rewards == judgements[2].rewards
    again = Teacher(ScriptedClient(), references_m=2, store=RubricStore("until_saturated"))
    again.restore(json.loads(json.dumps(teacher.state())))
    asyncio.run(judge(again, sum_prompt, sum_answers, step=3))
    assert again.stats.calls["rubric"] == 1


def test_a_saturated_rubric_is_replaced(sum_prompt, sum_answers):
    async def run():
        teacher = Teacher(ScriptedClient(), references_m=2, store=RubricStore("until_saturated"))
        steps = []
        for step, answers in enumerate([sum_answers, [sum_answers[0]] * 4, sum_answers]):
            steps.append((await judge(teacher, sum_prompt, answers, step=step)).lineage.step)
        return steps

    assert asyncio.run(run()) == [0, 0, 2]
