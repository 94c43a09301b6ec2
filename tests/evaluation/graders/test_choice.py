from __future__ import annotations

import pytest

from ropd_jax.evaluation.graders.choice import first_choice_original, last_choice


@pytest.mark.parametrize(
    ("text", "ours", "original"),
    [
        ("Answer: C", "C", "C"),
        ("Answer: A\nNo, wait.\nAnswer: D", "D", "A"),
        ("Answer: Both are right", None, "B"),
        ("Answer: Dunno", None, "D"),
        ("**Answer:** C", "C", None),
        ("**Answer: C**", "C", "C"),
        ("Answer: (C)", "C", None),
        (r"Answer: \boxed{C}", "C", None),
        (r"Answer: $\boxed{\text{B}}$", "B", None),
        (r"so \boxed{B}", "B", None),
        ("Answer: $D$", "D", "D"),
        ("answer: b", "B", "B"),
        ("answer: a good question", None, "A"),
        ("The answer is C.", "C", None),
        ("Answer: E", None, None),
        ("C", None, None),
        ("<think>Answer: A</think> Answer: B", "B", "A"),
    ],
)
def test_the_last_letter_that_is_a_word_counts_and_the_original_is_kept_beside_it(text, ours, original):
    assert (last_choice(text), first_choice_original(text)) == (ours, original)
