"""The ablations of judging a group: what the teacher sees, and the rewards of pairs."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from ropd_jax.teacher import ConfigurationError, MalformedError, Role, Teacher
from ropd_jax.teacher.judge_group import Design, judge, judge_pairs
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.types import Message, Prompt
from tests.teacher.helpers import content_of

PROMPT = Prompt("p1", (Message("user", "Q?"),))


class Keeping(ScriptedClient):
    """The scripted teacher, with all its requests."""

    def __init__(self, **kw):
        super().__init__(**kw)
        self.asked: dict[str, list[str]] = {}

    async def chat(self, request):
        self.asked.setdefault(request.purpose, []).append(content_of(request))
        return await super().chat(request)


def judged(prompt, answers, **design):
    client = Keeping()
    found = asyncio.run(judge(Teacher(client, references_m=2), prompt, answers, step=0, design=Design(**design)))
    return found, client.asked


def test_the_paper_asks_blind_with_references_and_rollouts_in_sight(sum_prompt, sum_answers):
    j, asked = judged(sum_prompt, sum_answers)
    assert "begin student 4 |" in asked["rubric"][0] and "gave this reference 2 times:" in asked["rubric"][0]
    assert "begin answer 6 |" in asked["verify"][0] and "wrote" not in asked["verify"][0]
    assert "Write 4 to 12 criteria" in asked["rubric"][0] and len(j.reference_passed) == 2


def test_a_verifier_that_is_not_blind_sees_the_true_authors(sum_prompt, sum_answers):
    _, asked = judged(sum_prompt, sum_answers, blind=False)
    teachers = re.search(r"The teacher wrote (\d), (\d)\.", asked["verify"][0])
    reference = "\n".join(sum_answers[0].splitlines())  # the scripted teacher's criteria for a sum
    shown = re.findall(r"begin answer \d \| \w+ \]=====\n(.*?)\n=====\[ end", asked["verify"][0], re.DOTALL)
    assert all(shown[int(n) - 1] == reference for n in teachers.groups())
    assert len(re.search(r"The student wrote ([\d, ]+)\.", asked["verify"][0])[1].split(", ")) == 4


def test_without_rollouts_the_rubricator_sees_the_references_alone(sum_prompt, sum_answers):
    j, asked = judged(sum_prompt, sum_answers, see_rollouts=False)
    assert "student" not in asked["rubric"][0] and "gave this reference 2 times:" in asked["rubric"][0]
    assert j.lineage.answers == () and j.rewards[0] == 1.0


def test_without_references_in_the_pool_only_rollouts_are_verified(sum_prompt, sum_answers):
    j, asked = judged(sum_prompt, sum_answers, pool_references=False)
    assert "begin answer 4 |" in asked["verify"][0] and "begin answer 5 |" not in asked["verify"][0]
    assert j.reference_passed == () and len(j.passed) == 4


def test_k_is_asked_for_and_held_to(sum_prompt, sum_answers, saying):
    j, asked = judged(sum_prompt, sum_answers, size=(2, 3))
    assert "Write 2 to 3 criteria" in asked["rubric"][0] and len(j.rubric.criteria) == 3
    many = [{"criterion_id": f"c{i}", "category": "x", "criterion": f"k{i}", "points": 1} for i in range(4)]
    reply = json.dumps({"schema_version": "ropd.rubric.v1", "rubrics": many})
    client = saying(reply, reply)
    with pytest.raises(MalformedError, match="4 criteria; expected 2 to 3"):
        asyncio.run(Teacher(client).induce_rubric(PROMPT, ["r"], ["s"], size=(2, 3)))


def test_k_needs_a_prompt_that_can_say_it(saying, tmp_path):
    path = tmp_path / "mine.md"
    path.write_text("{{token}} {{question}} {{references}} {{students}} Write 4 to 12 criteria.")
    teacher = Teacher(saying(), rubric=Role(template=str(path)))
    with pytest.raises(ConfigurationError, match=r"use \{\{least\}\} and \{\{most\}\}"):
        asyncio.run(teacher.induce_rubric(PROMPT, ["r"], ["s"], size=(2, 3)))


def test_pairs_have_a_rubric_each_and_fail_alone(sum_prompt, sum_answers):
    client = Keeping(fault=lambda request, n: "server_error" if "begin student" in content_of(request)
                     and "Answer: 17" in content_of(request) and "9 + 5 = 15" not in
                     content_of(request) else None)  # fmt: skip
    teacher = Teacher(client, references_m=2)
    j = asyncio.run(judge_pairs(teacher, sum_prompt, sum_answers, step=0))
    assert j.causes == (None, None, "server_error", None) and j.rewards[2] is None
    assert len(client.asked["rubric"]) == 4 and len(client.asked["verify"]) == 3
    assert [p.rubric is None for p in j.parts] == [False, False, True, False]
    assert j.rewards[1] == j.parts[1].rubric.score(j.parts[1].passed[0])
    assert j.parts[0].rubric.weights != j.parts[1].rubric.weights  # each has its own contrast
