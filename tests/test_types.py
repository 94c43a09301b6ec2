"""The one definition of a rollout's answer."""

from __future__ import annotations

import numpy as np
import pytest

from ropd_jax.types import Rollout, answer_of


@pytest.mark.parametrize(
    "text, answer",
    [
        ("<think>x</think> ans", "ans"),
        ("x</think> ans", "ans"),  # the template has opened <think> in the prompt
        ("a</think>b</think> c", "c"),
        ("<think>a</think> b <think>c</think> d", "d"),
        ("<think>x</think>", ""),
        ("<think>x</think> \n", ""),
        ("<think>unterminated", ""),
        ("\n <think>unterminated\nAnswer: 4", ""),
        ("<think>a</think> <think>unterminated", ""),
        ("the <think> tag opens a thought", "the <think> tag opens a thought"),
        (" no thought at all ", " no thought at all "),
        ("", ""),
    ],
)
def test_the_answer_is_what_follows_the_last_thought_and_empty_if_the_thinking_never_ends(text, answer):
    assert answer_of(text) == answer
    assert Rollout(np.zeros(1, np.int32), np.zeros(1, np.float32), text, "stop").answer == answer
