"""The accuracies of a run grade a rollout's answer, never its thoughts."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ropd_jax.core.advantages import Advantages
from ropd_jax.methods.rlvr import outcome
from ropd_jax.training.heldout import grade_heldout
from ropd_jax.training.metrics import exact_grades, step_metrics
from ropd_jax.types import Judgement, Message, Prompt, Rollout, RolloutGroup

UNSURE = "<think>\nAnswer: 4\n</think> I am not sure."
ANSWERS = {UNSURE: False, "<think>5?</think> Answer: 4": True, "<think>\nAnswer: 4": False, "Answer: 4": True}


def group(texts):
    rollouts = tuple(Rollout(np.zeros(1, np.int32), np.zeros(1, np.float32), text, "stop") for text in texts)
    return RolloutGroup(Prompt("p", (Message("user", "2+2?"),), answer="4"), np.zeros(1, np.int32), rollouts, 0, 0)


@pytest.mark.parametrize("text, right", ANSWERS.items())
def test_held_out_accuracy_and_rlvr_agree_on_every_answer(text, right):
    found = grade_heldout({"accuracy": [group([text])]}, 1, lambda text: None, [])
    assert found["eval/accuracy"] == float(right)
    assert outcome(group([text])).rewards == (float(right),)


def test_sample_accuracy_grades_the_answer():
    groups = [group([text]) for text in ANSWERS]
    n = len(groups)
    ones = np.ones((n, 1), bool)
    advantages = Advantages(*(ones.copy() for _ in Advantages._fields))
    tokenizer = SimpleNamespace(render=lambda m: "", encode=lambda t: [0], decode=lambda ids: "")
    judgements = [Judgement((1.0,), (None,))] * n
    grades = exact_grades(groups, judgements)
    found = step_metrics(groups, judgements, advantages, np.ones((n, 1)), ones, 1.0, tokenizer, grades)
    assert found["sample/accuracy"] == 0.5
