"""The teacher's questions over any client: blinding, failures, counters, state."""

from __future__ import annotations

import asyncio
import json

import pytest

from ropd_jax.teacher import BlockedError, ConfigurationError, Role, Teacher, TransientError
from ropd_jax.teacher.roles.marks import shuffled
from ropd_jax.teacher.roles.references import SEED_STRIDE
from ropd_jax.teacher.scripted.client import OWN_SOLUTION
from ropd_jax.teacher.tape.reference_index import IndexRow, TeacherIndex, prompt_hash
from ropd_jax.types import Criterion, Message, Prompt, Rubric
from tests.teacher.helpers import content_of, fenced
from tests.teacher.helpers import keyed as verdicts

RUBRIC = Rubric(tuple(Criterion(f"c{n}", f"criterion {n}", p) for n, p in enumerate((5, 4, 2, 1), 1)))


PROMPT = Prompt("p1", (Message("user", "Q?"),), answer="GOLD")


def test_answers_are_shown_shuffled_and_verdicts_come_home(saying):
    texts = [f"text {i}" for i in range(6)]
    order = shuffled(texts, seed=7, key="k")
    assert sorted(order) == list(range(6)) and order != list(range(6))
    rows = [(place, f"{index % 2}{index // 2 % 2}{index // 4 % 2}1") for place, index in enumerate(order, 1)]
    client = saying(verdicts(*rows))
    result = asyncio.run(Teacher(client, seed=7).verify(PROMPT, RUBRIC, texts, key="k"))
    assert result.passed == tuple((bool(i % 2), bool(i // 2 % 2), bool(i // 4 % 2), True) for i in range(6))
    assert fenced(content_of(client.requests[0])) == [texts[i] for i in order]
    assert "GOLD" not in content_of(client.requests[0])


def test_references_are_m_samples_without_thinking(saying):
    client = saying("<think>hm</think> one", "two\ud800", "hm\n</think>\n\nthree", "4")
    teacher = Teacher(client, reference=Role("big", 0.7, 55))
    result = asyncio.run(teacher.references(PROMPT))
    assert result == ("one", "two\ufffd", "three", "4")
    assert [r.sample_index for r in client.requests] == [0, 1, 2, 3]
    assert {(r.model, r.temperature, r.max_output_tokens, r.json_schema) for r in client.requests} == {
        ("big", 0.7, 55, None)
    }
    assert teacher.stats.calls == {"reference": 4} and teacher.stats.thought_tokens == {"reference": 8}


def test_lost_references_are_left_out_and_counted(saying):
    teacher = Teacher(saying("a", TransientError("x", cause="timeout"), " ", "<think>", "...", "a"))
    assert asyncio.run(teacher.references(PROMPT)) == ("a", "a")
    assert teacher.stats.failures == {"timeout": 1, "empty": 1, "thinking": 1, "junk": 1}
    assert teacher.stats.duplicate_references == 1 and teacher.stats.reasks == {"reference": 2}


def test_an_unusable_reference_is_asked_for_again_with_another_seed_of_the_same_model(saying):
    client = saying("<think>no end", "", "no\n" * 300, "b", "c")
    teacher = Teacher(client, references_m=3, reference=[Role("m0"), Role("m1")])
    samples = asyncio.run(teacher.reference_samples(PROMPT))
    assert [(s.text, s.model) for s in samples] == [("b", "m1"), ("c", "m0")]
    again = [r for r in client.requests if r.sample_index >= SEED_STRIDE]
    assert [(r.sample_index, r.model) for r in again] == [(SEED_STRIDE, "m0"), (2 * SEED_STRIDE, "m0")]
    assert teacher.stats.failures == {"thinking": 1, "empty": 1, "junk": 1}


def test_references_of_an_index_hold_no_thinking_either(saying):
    texts = ("<think>hm</think>\none", "two", "<think>no end")
    index = TeacherIndex([IndexRow("p1", prompt_hash(PROMPT.messages), texts, {"model": "m"})])
    teacher = Teacher(saying(), index=index, references_m=3)
    assert asyncio.run(teacher.reference_samples(PROMPT)) == (("one", "m"), ("two", "m"))
    assert teacher.stats.failures == {"thinking": 1}


def test_the_seeds_of_a_second_question_are_used_by_nothing_else():
    others = {*range(1_000), OWN_SOLUTION}  # references, their replacements (collect_references), the scripted teacher
    again = {i + attempt * SEED_STRIDE for i in range(1_000) for attempt in (1, 2)}
    assert len(again) == 2_000 and not others & again and max(again) < 2**31


@pytest.mark.parametrize("text", ["Paris", "4", "no", "-1", "x", "是", "∞", "\U0001f600", "$x$", "1/2"])
def test_one_short_word_or_number_is_a_reference(saying, text):
    assert asyncio.run(Teacher(saying(text), references_m=1).references(PROMPT)) == (text,)


@pytest.mark.parametrize("error", [TransientError("x", cause="timeout"), BlockedError("x"), ConfigurationError("x")])
def test_no_reference_at_all_is_a_typed_failure(saying, error):
    with pytest.raises(type(error)):
        asyncio.run(Teacher(saying(error, error), references_m=2).references(PROMPT))


def test_a_configuration_error_in_any_role_is_raised(saying):
    wrong = ConfigurationError("no such model")
    with pytest.raises(ConfigurationError):
        asyncio.run(Teacher(saying("a", wrong), references_m=2).references(PROMPT))
    with pytest.raises(ConfigurationError):
        asyncio.run(Teacher(saying(verdicts((1, "1111")), wrong)).verify(PROMPT, RUBRIC, ["a", "b"], key="k"))


def test_cancellation_passes_through(saying):
    class Slow(saying):
        async def chat(self, request):
            await asyncio.sleep(60)

    async def run(call):
        task = asyncio.ensure_future(call)
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    teacher = Teacher(Slow())
    asyncio.run(run(teacher.references(PROMPT)))
    asyncio.run(run(teacher.verify(PROMPT, RUBRIC, ["a"], key="k")))
    assert teacher.stats.failures == {}


def test_the_state_is_json_and_counters_continue_after_a_restore(saying):
    teacher = Teacher(saying("a", "a"), references_m=2)
    asyncio.run(teacher.references(PROMPT))
    state = json.loads(json.dumps(teacher.state()))
    other = Teacher(saying("a", "b"), references_m=2)
    other.restore(state)
    asyncio.run(other.references(PROMPT))
    metrics = other.stats.as_metrics()
    assert metrics["teacher/calls_reference"] == 4.0 and metrics["teacher/input_tokens"] == 40.0
    assert metrics["teacher/duplicate_references"] == 1.0
    assert teacher.stats.calls == {"reference": 2}  # a copy was restored, not shared


def test_prompt_hashes_are_known():
    shas = Teacher(None).prompt_shas
    assert set(shas) == {"reference.v1", "rubricator.v4", "verifier.v3", "score_judge.v3", "reask.v1"}
    assert all(len(sha) == 16 for sha in shas.values())
    assert len(set(shas.values())) == 5
