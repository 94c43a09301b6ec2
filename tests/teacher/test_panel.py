"""Votes and panels through the whole teacher: requests to each verifier, the majority, the cost of a failure."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import numpy as np
import pytest

from ropd_jax import configs
from ropd_jax.teacher import ChatReply, ConfigurationError, Role, Teacher, TransientError, build_teacher, health
from ropd_jax.teacher.build import panel_sources
from ropd_jax.teacher.judge_group import judge
from ropd_jax.teacher.roles.verifier import Asking
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.types import Criterion, Message, Prompt, Rollout, RolloutGroup, Rubric
from ropd_jax.workdir.groups import GroupsLog, read_groups
from tests.teacher.helpers import bound, content_of, fenced, keyed

PROMPT = Prompt("q", (Message("user", "2 + 2?"),))
RUBRIC = Rubric((Criterion("c1", "one", 3), Criterion("c2", "two", 1)))
ANSWERS = ("right", "wrong", "unclear")
WARM = Role(model="m", temperature=0.7)


class Says:
    """A judge with the verdicts ``says(model, vote, answer)``: two as "10", or None to omit this answer."""

    def __init__(self, says, n=1):
        self.says, self.n, self.requests = says, n, []

    async def chat(self, request):
        self.requests.append(request)
        vote = request.sample_index // self.n // 2
        rows = [(i, self.says(request.model, vote, text)) for i, text in enumerate(fenced(content_of(request)), 1)]
        return ChatReply(bound(request, keyed(*[(i, row) for i, row in rows if row is not None])))

    async def close(self):
        pass


def verify(client, *, verify=WARM, answers=ANSWERS, look=0, **asking):
    teacher = Teacher(client, verify=verify, asking=Asking(**asking))
    return asyncio.run(teacher.verify(PROMPT, RUBRIC, answers, key="k", look=look)), teacher


def test_three_votes_have_three_seeds_and_three_orders_and_the_majority_counts():
    said = {"right": ("11", "11", "01"), "wrong": ("00", "00", "00"), "unclear": ("10", "01", "10")}
    client = Says(lambda model, vote, answer: said[answer][vote])
    verdicts, _ = verify(client, votes=3)
    assert verdicts.passed == ((True, True), (False, False), (True, False))
    assert verdicts.agreement == pytest.approx((7 / 9, 8 / 9))
    assert sorted(r.sample_index for r in client.requests) == [0, 2, 4]
    assert len({tuple(fenced(content_of(r))) for r in client.requests}) > 1
    assert len({r.messages[0].content for r in client.requests}) == 1  # the system message is shared


def test_one_vote_asks_what_it_always_asked():
    client = Says(lambda model, vote, answer: "10")
    verdicts, _ = verify(client)
    assert verdicts.agreement == () and [r.sample_index for r in client.requests] == [0]


def test_a_panel_votes_and_its_tie_is_unscored_and_counted():
    panel = (Role(model="a", temperature=0.0), Role(model="b", temperature=0.0))
    client = Says(lambda model, vote, answer: "11" if answer != "unclear" or model == "a" else "10", n=2)
    verdicts, teacher = verify(client, verify=panel)
    assert verdicts.passed == ((True, True), (True, True), None) and verdicts.causes == (None, None, "tie")
    assert teacher.stats.unscored == {"tie": 1}
    assert sorted((r.model, r.sample_index) for r in client.requests) == [("a", 0), ("b", 1)]


def test_a_split_beyond_the_threshold_is_unscored():
    client = Says(lambda model, vote, answer: "11" if vote else "01")
    assert None not in verify(client, votes=3)[0].passed
    assert verify(client, votes=3, min_agreement=0.8)[0].causes == ("split",) * 3


def test_a_missing_vote_is_asked_for_again_with_a_seed_of_its_own():
    client = Says(lambda model, vote, answer: None if answer == "wrong" and vote == 1 else "11")
    verdicts, _ = verify(client, votes=3)
    assert verdicts.causes == (None,) * 3  # two of three votes exist
    assert sorted(r.sample_index for r in client.requests) == [0, 2, 3, 4]


def test_a_vote_that_fails_costs_only_itself_and_no_vote_costs_the_group():
    class Down(Says):
        async def chat(self, request):
            if request.sample_index // 2 in self.down:
                raise TransientError("busy", cause="overloaded")
            return await super().chat(request)

    client = Down(lambda model, vote, answer: "11")
    client.down = {1}
    assert verify(client, votes=3)[0].causes == (None,) * 3
    client.down = {1, 2}
    assert verify(client, votes=3)[0].causes == ("overloaded",) * 3
    client.down = {0, 1, 2}
    with pytest.raises(TransientError):
        verify(client, votes=3)


def test_a_second_look_at_single_answers_is_not_the_first_one_again():
    client = Says(lambda model, vote, answer: "11")
    verify(client, answers_per_call=1)
    verify(client, answers_per_call=1, look=1)
    assert sorted(r.sample_index for r in client.requests) == [0] * 3 + [2] * 3
    verify(client, look=1)
    assert client.requests[-1].sample_index == 0  # another order is already another request


@pytest.mark.parametrize(
    ("asking", "role", "said"),
    [
        (dict(votes=2), WARM, "votes is 2; expected 1, 3, 5"),
        (dict(votes=0), WARM, "votes is 0"),
        (dict(votes=True), WARM, "votes is True"),
        (dict(min_agreement=0.4), WARM, "min_agreement is 0.4; expected a share from 0.5 to 1"),
        (dict(votes=3), Role(model="m", temperature=0.0), "votes is 3 at temperature 0.*set teacher.verifier.temp"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_named(asking, role, said):
    with pytest.raises(ConfigurationError, match=said):
        verify(Says(None), verify=role, **asking)


def config(**changes):
    cfg = configs.default()
    cfg.update_from_flattened_dict({f"teacher.verifier.{key}": value for key, value in changes.items()})
    return cfg.teacher


def test_the_config_names_a_panel():
    found = panel_sources(
        config(panel=("a", {"model": "b", "provider": "openai", "base_url": "http://127.0.0.1:1/v1"}))
    )
    assert [(endpoint.provider, role.model) for endpoint, role in found] == [("scripted", "a"), ("openai", "b")]
    assert [role.model for role in build_teacher(config(panel=("a", "b"), votes=1)).panel.members] == ["a", "b"]
    assert [role.model for _, role in panel_sources(config())] == ["scripted"]
    for panel, said in (
        (("a", "a"), "lists a verifier twice"),
        ((3,), "entry 1 is 3"),
        (({"votes": 3},), "unknown keys votes"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            panel_sources(config(panel=panel))


def test_agreement_reaches_the_judgement_the_file_and_the_metrics(tmp_path, sum_prompt, sum_answers):
    noise = json.dumps({"kinds": {"other": {"false_positive": 0.4, "false_negative": 0.4}}, "redraw": 1.0})
    teacher = Teacher(ScriptedClient(noise=noise), verify=WARM, asking=Asking(votes=3))
    judgement = asyncio.run(judge(teacher, sum_prompt, sum_answers, step=0))
    agreement = judgement.agreement
    assert len(agreement) == len(judgement.rubric.criteria) and 0.5 < min(agreement) < 1.0
    rollouts = tuple(Rollout(np.zeros(3, np.int32), np.zeros(3, np.float32), t, "stop") for t in sum_answers)
    group = RolloutGroup(sum_prompt, np.zeros(2, np.int32), rollouts, 0, 0)
    GroupsLog(tmp_path).write(0, [group], [judgement], [[0.0] * 4])
    (stored,) = read_groups(tmp_path)
    assert stored.judgement == judgement
    found = health.step_health([judgement])
    assert found["health/agreement"] == pytest.approx(np.mean(agreement))
    assert found["health/contested_frac"] == np.mean([a < 0.75 for a in agreement])
    assert "health/agreement" not in health.step_health([dataclasses.replace(judgement, agreement=())])
