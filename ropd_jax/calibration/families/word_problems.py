"""Word problems of three steps: a boxes of b things, c are given away, d more come in."""

from __future__ import annotations

import random

from ropd_jax.calibration.families.parts import CALCULATIONS, Draft, Item, criteria, other

STORIES = (  # (things, question with a, b, c, d)
    ("pens", "A school buys {a} boxes with {b} pens each. It gives {c} pens to a class, and then finds {d} more pens."),
    ("apples", "A farmer fills {a} crates with {b} apples each, sells {c} apples, and then picks {d} more apples."),
    ("chairs", "A hall has {a} rows of {b} chairs. {c} chairs are lent to a neighbour, and {d} chairs are brought in."),
    ("tickets", "A theatre prints {a} books of {b} tickets, sells {c} tickets, and gets {d} tickets back."),
    ("bricks", "A mason has {a} stacks of {b} bricks, uses {c} bricks for a wall, and orders {d} more bricks."),
    ("stamps", "Mia has {a} pages with {b} stamps each. She trades {c} stamps away, and is given {d} stamps."),
    ("eggs", "A bakery gets {a} trays of {b} eggs, breaks {c} eggs for dough, and buys {d} eggs at the market."),
)


def make(rng: random.Random, i: int) -> Item:
    """Question ``i`` of the family."""
    things, story = STORIES[i % len(STORIES)]
    a, b, c, d = rng.randint(4, 12), rng.randint(12, 30), rng.randint(15, 39), rng.randint(6, 19)
    first, left = a * b, a * b - c
    end = left + d
    unit = i % 2 == 0  # the last criterion: a form, or a constraint of the question
    demand = f' End with a line that has the number and the word "{things}".' if unit else ' Do not use "total".'
    question = f"{story.format(a=a, b=b, c=c, d=d)} How many {things} are there in the end?{demand}"
    rows = criteria(
        ("final_result", f"The final answer is {end}.", 5),
        ("intermediate_fact", f"States that {left} {things} are left after {c} are taken away.", 3),
        ("method", f"Adds the {d} new {things} to what was left, rather than subtracting them.", 2),
        ("no_error", CALCULATIONS, 3),
        ("form", f'The last line has a number and the word "{things}".', 1)
        if unit
        else ("constraint", 'Has some text and does not use the word "total".', 1),
    )

    def write(kind: str, rng: random.Random) -> Draft:
        one, two, three = first, left, end
        adds, sums = True, True
        if kind == "wrong" and rng.random() < 0.5:  # a slip, carried through to the result
            two, sums = other(left, rng, (left, first)), False
            three = two + d
        elif kind == "wrong":  # subtracts the new things; all calculations are right
            three, adds = left - d, False
        elif kind == "right_wrong_steps":  # two slips that cancel
            two, sums = other(left, rng, (left, first)), False
        last = other(end, rng, (left, end)) if kind == "wrong_right_steps" else three
        keeps = rng.random() < 0.55
        opening = f"The {'' if unit or keeps else 'total '}start is {a} * {b} = {one} {things}."
        lines = (
            opening,
            f"{c} are taken away: {one} - {c} = {two} {things} are left.",
            f"Then {two} {'+' if adds else '-'} {d} = {three} {things}.",
            f"The final answer is {last}{f' {things}' if unit and keeps else ''}.",
        )
        return Draft(lines, (last == end, two == left, adds, sums, keeps), last == end)

    return Item(question, rows, write, (False, False, False, False, not unit))
