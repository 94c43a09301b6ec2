"""An unfinished thought that the chat template opened is not an answer for grader, judge and file."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from ropd_jax.evaluation.answers import append
from ropd_jax.sampling.rollouts import make_rollout, opens_thought
from ropd_jax.sampling.slots import Job
from ropd_jax.training.carryover import restored, stored
from ropd_jax.types import Judgement, Message, Prompt, RolloutGroup, answer_of
from ropd_jax.viewer.summary import graded
from ropd_jax.workdir.groups import group_from, group_row

CUT, WHOLE = "So the result is 4.\nAnswer: 4", "2 + 2 is 4.</think>\nAnswer: 4"


class Letters:
    """A token is a character."""

    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def rollout(text, prompt):
    job = Job(0, 0, 99, Letters().encode(text), [0.0] * len(text), [0.0] * len(text))
    opened = opens_thought(Letters(), np.array(Letters().encode(prompt), np.int32))
    return make_rollout(Letters(), (0,), (), job, opened=opened)


@pytest.mark.parametrize(("prompt", "opened"), [
    ("user: 2 + 2\nassistant: <think>\n", True), ("assistant: <think>", True), ("assistant: ", False),
    ("assistant: <think>\n\n</think>\n\n", False), ("user: what is <think> for?\nassistant:", False), ("", False),
])  # fmt: skip
def test_the_end_of_the_prompt_tells_whether_a_thought_is_open(prompt, opened):
    assert rollout(CUT, prompt).opened is opened
    assert rollout(CUT, prompt).answer == ("" if opened else CUT)
    assert rollout(WHOLE, prompt).answer == "Answer: 4"
    assert answer_of(CUT, opened=opened) == rollout(CUT, prompt).answer


def test_it_stays_known_in_checkpoints_groups_and_answers_of_an_evaluation(tmp_path):
    prompt = Prompt("q", (Message("user", "2 + 2"),), answer="4")
    rollouts = tuple(rollout(text, "assistant: <think>") for text in (CUT, WHOLE))
    group = RolloutGroup(prompt, np.array([1], np.int32), rollouts, 0, 0)
    (back,) = restored(json.loads(json.dumps(stored([group]))), {"q": prompt}, {"q": group.prompt_tokens_T})
    assert [r.answer for r in back.rollouts] == ["", "Answer: 4"]
    row = json.loads(json.dumps(group_row(group, Judgement((0.0, 1.0), (None, None)), [0.0, 0.0])))
    assert [a["text"] for a in row["answers"]] == [CUT, WHOLE]  # as sampled
    assert [answer_of(text) for text in group_from(row).answers] == ["", "Answer: 4"]
    assert graded(row).right == (False, True)
    plain = dataclasses.replace(group, rollouts=(rollout(CUT, ""),))
    assert "opened" not in group_row(plain, Judgement((0.0,), (None,)), [0.0])["answers"][0]
    with (tmp_path / "answers.jsonl").open("w") as file:
        for r in rollouts:
            append(file, prompt, 0, r)
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [answer_of(row["response"]) for row in rows] == ["", "Answer: 4"]
