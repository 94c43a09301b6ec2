"""Arithmetic with steps: (a + b) * c - d."""

from __future__ import annotations

import random

from ropd_jax.calibration.families.parts import CALCULATIONS, Draft, Item, criteria, other


def make(rng: random.Random, i: int) -> Item:
    """Question ``i`` of the family."""
    a, b, c, d = rng.randint(11, 39), rng.randint(11, 39), rng.randint(3, 9), rng.randint(11, 59)
    first, second = a + b, (a + b) * c
    end = second - d
    question = (
        f"Compute ({a} + {b}) * {c} - {d}. Write each step on a line of its own, and end with a line "
        'of the form "Answer: N".'
    )
    rows = criteria(
        ("final_result", f"The final answer is {end}.", 5),
        ("intermediate_fact", f"Has {second} as the result of a step before the last one.", 3),
        ("method", f"Adds {a} and {b} before it multiplies by {c}.", 2),
        ("no_error", CALCULATIONS, 3),
        ("form", 'The last line is "Answer:" followed by one number and nothing else.', 1),
    )

    def write(kind: str, rng: random.Random) -> Draft:
        brackets = sums = True
        two = second
        if kind == "wrong" and rng.random() < 0.5:  # overlooks the brackets; all calculations are right
            brackets = False
            two, last = a + b * c, a + b * c - d
            steps = [f"{b} * {c} = {b * c}", f"{a} + {b * c} = {two}", f"{two} - {d} = {last}"]
        else:
            if kind in ("wrong", "right_wrong_steps"):
                two, sums = other(second, rng, (second, first, end, d)), False
            last = two - d if kind == "wrong" else end
            steps = [f"{a} + {b} = {first}", f"{first} * {c} = {two}", f"{two} - {d} = {last}"]
        if kind == "wrong_right_steps":
            last = other(end, rng, (end, second))
        form = rng.random() < 0.55
        closing = f"Answer: {last}" if form else f"So the result is {last}."
        truth = (last == end, two == second, brackets, sums, form)
        return Draft((*steps, closing), truth, last == end)

    return Item(question, rows, write, (False,) * 5)
