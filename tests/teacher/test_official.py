"""Failures of the released code, and what must happen here instead.

Other failures are tested with their parts: scores that the judge reports (test_replies), keys that are
missing (test_providers), indices (test_index, test_index_teach), rates (test_limits), the gate that stops a run
(test_limits_failures), injections (test_fences).
"""

from __future__ import annotations

import asyncio
import collections
import json
import re

import pytest

from benchmarks import virtual_time
from ropd_jax.configs import default
from ropd_jax.teacher import Teacher, TransientError, build_teacher, judge_group
from ropd_jax.teacher.build import reference_sources
from ropd_jax.teacher.collect_references import fingerprint
from ropd_jax.teacher.roles import templates
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.teacher.traffic.limits import Limits
from ropd_jax.teacher.traffic.retries import LimitedClient
from ropd_jax.types import Message, Prompt

N = 32  # groups of a step


def group(i):
    a, b, c = i % 90 + 3, i % 7 + 2, i % 11 + 4
    question = f"State the final answer to the following problem: {a} + {b} - {c} ="
    full = f"{a} + {b} = {a + b}\n{a + b} - {c} = {a + b - c}\nAnswer: {a + b - c}"
    return Prompt(f"g{i}", (Message("user", question),)), [full, "Answer: 1", f"Answer: {a + b - c}", full]


def judged(client, n=N, **limits):
    """(judgements, seconds of virtual time) of n groups at once."""

    async def run():
        teacher = Teacher(LimitedClient(client, Limits(**limits)), references_m=2)
        groups = [group(i) for i in range(n)]
        found = await asyncio.gather(*(judge_group.judge(teacher, p, answers, step=0) for p, answers in groups))
        return found, asyncio.get_running_loop().time()

    return virtual_time.run(run())


def test_a_burst_of_errors_at_the_start_costs_seconds_and_no_group():
    """Released code: after 5 of them in a row all 32 groups are zero."""
    calls = []

    def fault(request, attempt):
        calls.append(request)
        return "unavailable" if len(calls) <= 15 else None

    found, seconds = judged(ScriptedClient(latency_s=1.0, fault=fault))
    assert all(None not in j.rewards and set(j.causes) == {None} for j in found)
    assert seconds < 60.0


def test_a_teacher_that_never_answers_gives_causes_and_not_one_zero():
    """Released code: every reward is 0.0, and the training continues."""
    found, _ = judged(ScriptedClient(fault=lambda request, attempt: "server_error"), n=4)
    assert [j.rewards for j in found] == [(None,) * 4] * 4
    assert [j.causes for j in found] == [("server_error",) * 4] * 4


class Always:
    """The scripted teacher, which always fails one role in one way; counts calls by role."""

    def __init__(self, role, what):
        self.calls, inner = collections.Counter(), ScriptedClient()
        self._inner, self._role, self._what = inner, role, what

    async def chat(self, request):
        self.calls[request.purpose] += 1
        if request.purpose != self._role:
            return await self._inner.chat(request)
        reply = await self._inner.chat(request)
        return self._what(reply)

    async def close(self):
        pass


def down(reply):
    raise TransientError("503", cause="unavailable")


def short(reply):
    """The first answer has one verdict too few."""
    body = json.loads(reply.text)
    body["answers"]["1"].popitem()
    return type(reply)(json.dumps(body))


@pytest.mark.parametrize(
    ("role", "what", "rubric", "verify", "cause"),
    [
        ("rubric", lambda reply: type(reply)("no JSON here"), 2, 0, "malformed"),  # the question and one re-ask
        ("rubric", lambda reply: type(reply)(""), 2, 0, "empty"),
        ("rubric", down, 5, 0, "unavailable"),  # teacher.attempts
        ("verify", lambda reply: type(reply)("no JSON here"), 1, 2, "malformed"),
        ("verify", down, 1, 5, "unavailable"),
    ],
)
def test_a_lasting_fault_is_asked_a_bounded_number_of_times_and_named(role, what, rubric, verify, cause):
    client = Always(role, what)
    ((found,), _) = judged(client, n=1, attempts=5)
    assert found.rewards == (None,) * 4 and set(found.causes) == {cause}
    assert (client.calls["reference"], client.calls["rubric"], client.calls["verify"]) == (2, rubric, verify)


def test_one_short_judgement_costs_one_answer_and_one_more_call():
    """Released code: one short judgement among twelve makes all eight rewards zero."""
    client = Always("verify", short)
    ((found,), _) = judged(client, n=1)
    assert client.calls["verify"] == 2
    unscored = [r for r in (*found.rewards, *found.reference_passed) if r is None]
    assert len(unscored) == 1 and sum(r is not None for r in found.rewards) >= 3


def test_no_bound_on_requests_is_no_bound():
    """Released code: ``max_rpm: null`` becomes 1920."""
    n = 1_000

    async def run():
        client = LimitedClient(
            ScriptedClient(latency_s=1.0), Limits(concurrency=100, min_concurrency=100, requests_per_minute=None)
        )
        prompt, _ = group(0)
        teacher = Teacher(client, references_m=n)
        await teacher.references(prompt)
        return asyncio.get_running_loop().time()

    assert n / virtual_time.run(run()) > 80  # per second; 1,920 per minute are 32


def test_what_does_not_change_an_answer_is_not_in_the_fingerprint_of_an_index():
    """Released code: building and training resolve other time limits, and the load aborts."""

    def of(**changes):
        cfg = default()
        cfg.update_from_flattened_dict(changes)
        return fingerprint(build_teacher(cfg.teacher, needs=("reference",)), reference_sources(cfg.teacher))

    same = {"teacher.timeout_s": 480.0, "teacher.concurrency": 3, "teacher.attempts": 9,
            "teacher.order": "finished_first", "teacher.budget.calls": 7, "teacher.verifier.provider": "openai",
            "teacher.verifier.base_url": "http://x/v1",
            "teacher.verifier.model": "m", "teacher.api_key_env": "SOME_KEY"}  # fmt: skip
    for key, value in same.items():
        assert of(**{key: value}) == of(), key
    for key, value in {"teacher.reference.model": "m", "teacher.reference.temperature": 0.1}.items():
        assert of(**{key: value}) != of(), key


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("rubricator.v4", "Write {{least}} to {{most}} criteria, in the language of the question"),
        ("rubricator.v4", "decidable as true or false from the text of one answer alone"),
        ("rubricator.v4", "a correct answer by another method must be able to pass"),
        ("rubricator.v4", "free of any mention of references"),
        ("rubricator.v4", "Do not write a criterion that only favours the references"),
        ("rubricator.v4", "- 5: decisive"),
        ("rubricator.v4", "- 4: strong"),
        ("rubricator.v4", "- 3: rarely"),
        ("rubricator.v4", "- 2: supporting"),
        ("rubricator.v4", "- 1: routine"),
        ("rubricator.v4", "form or layout alone never has more than 1"),
        ("rubricator.v4", "one or two decisive differences should hold most of the points"),
        ("verifier.v3", "Judge each answer by its own text alone"),
        ("verifier.v3", "Judge each criterion by itself"),
        ("verifier.v3", "There is no partial credit"),
        ("verifier.v3", "Look for nothing that the rubric does not name"),
    ],
)
def test_the_prompts_ask_for_what_they_must(template, said):
    assert said in templates.load(template)
    assert not re.search("[\u4e00-\u9fff]", templates.load(template))  # English, unlike the released ones
