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
        ("Answer: E", "E", None),
        ("Answer:\nC", "C", None),
        (r"Answer: \textbf{C}", "C", None),
        (r"Answer: $\mathbf{C}$", "C", None),
        (r"Answer: \(C\)", "C", None),
        (r"\boxed{C. 5 m/s}", "C", None),
        ('Answer: "C"', "C", None),
        ("Answer: `C`", "C", None),
        ("Answer：C", "C", None),
        ("The correct option is C", "C", None),
        ("Option C", "C", None),
        ("So option C is correct.", "C", None),
        (r"$\boxed{C}$ or $\boxed{D}$", None, None),
        ("Answer: C or D", None, "C"),
        ("Answer: A and B", None, "A"),
        ("Answer: A good estimate is 5", None, "A"),
        ("Answer: B+", None, "B"),
        ("Answer: C\nWait.\nAnswer: C or D", None, "C"),
        ("I do not think the answer is C", None, None),
        ("<think>Answer: C", None, None),
        ("<think>a</think> Hm. <think> Answer: C", None, None),
        ("C", None, None),
        ("<think>Answer: A</think> Answer: B", "B", "A"),
    ],
)
def test_the_last_letter_that_is_a_word_counts_and_the_original_is_kept_beside_it(text, ours, original):
    assert (last_choice(text), first_choice_original(text)) == (ours, original)


def test_a_letter_beyond_the_options_is_not_a_choice():
    assert last_choice("Answer: E", "ABCD") is None and last_choice("Answer: J") == "J"
