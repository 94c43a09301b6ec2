"""Worked examples for the verifier's prompt: a criterion, an answer, the verdict and the reason.

They are our own, short, and about other questions than those that are verified. They alternate between true and false,
because examples of one kind pull a judge toward that verdict (Autorubric, arXiv 2603.00077, calibrates with
verdict-balanced examples). Each one shows something that judges get wrong: a right result with a wrong step, a value
that is only named and not computed, a property and not just the look of it, an absent error.
"""

from __future__ import annotations

from typing import NamedTuple

from ropd_jax.teacher.clients.errors import ConfigurationError


class Worked(NamedTuple):
    """One example. ``met`` is the verdict, ``why`` the reason."""

    criterion: str
    answer: str
    met: bool
    why: str


WORKED = (
    Worked("Ends with the final answer 21.", "12 + 9 = 20, and then 20 + 1. Answer: 21", True,
           "the last line names 21; the wrong step before it is not asked about"),
    Worked("Contains no wrong calculation.", "12 + 9 = 20, and then 20 + 1. Answer: 21", False,
           "12 + 9 is 21, not 20"),
    Worked("Computes that 7 boxes hold 84 pencils.", "Each box has 12, so 7 * 12 = 84. She gives away 4: 80.", True,
           "84 is reached from 7 * 12, although it is not the final answer"),
    Worked("Computes that 7 boxes hold 84 pencils.", "There could be 84 pencils, or 90. I take 90.", False,
           "84 is named as a guess and not computed"),
    Worked("Uses at most two sentences.", "Water boils at 100 degrees. At sea level, that is.", True,
           "there are two sentences"),
    Worked("Names the capital of Australia.", "Sydney is the largest city of Australia, on the east coast.", False,
           "the capital is Canberra, and it is not named"),
    Worked("Contains no wrong calculation.", "5 * 6 = 30 and 30 - 4 = 26. Answer: 25", True,
           "both calculations are right; the final answer is not a calculation"),
    Worked("Gives the result as a fraction in lowest terms.", "The share is 6/8.", False,
           "6/8 can be reduced to 3/4"),
)  # fmt: skip


def check(n: int) -> None:
    """Raises ``ConfigurationError`` unless ``n`` examples can be shown, half of them true and half false."""
    if n not in range(0, len(WORKED) + 1, 2) or isinstance(n, bool):
        raise ConfigurationError(
            f"teacher.verifier.examples is {n!r}; expected an even number from 0 to {len(WORKED)}, because half of the "
            "examples are true and half are false"
        )


def shown(n: int) -> str:
    """The first ``n`` examples for the prompt, followed by a blank line; "" for 0."""
    if not n:
        return ""
    lines = (
        f"- Criterion: {e.criterion} Answer: {e.answer!r} Verdict: {'true' if e.met else 'false'}, because {e.why}."
        for e in WORKED[:n]
    )
    return "Examples of verdicts, on other questions:\n" + "\n".join(lines) + "\n\n"
