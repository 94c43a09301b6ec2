from __future__ import annotations

import pytest

from ropd_jax.text.trim import after_think


@pytest.mark.parametrize(
    "text, kept",
    [
        ("<think>x</think> ans", "ans"),
        ("<think>x</think>", "<think>x</think>"),
        ("<think>x</think> \n", "<think>x</think> \n"),
        ("<think>unterminated", "<think>unterminated"),
        ("a</think>b</think> c", "c"),
        (" no thought at all ", " no thought at all "),
        ("", ""),
    ],
)
def test_answer_is_what_stands_behind_the_last_thought(text, kept):
    assert after_think(text) == kept
