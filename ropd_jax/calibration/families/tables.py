"""Reading a table: which of four cities grew most, and the growth of each."""

from __future__ import annotations

import random

from ropd_jax.calibration.families.parts import Draft, Item, criteria

CITIES = ("Arden", "Belmont", "Corvin", "Dunholm", "Elmsted", "Farrow", "Glenby", "Harwick")


def make(rng: random.Random, i: int) -> Item:
    """Question ``i`` of the family."""
    cities = rng.sample(CITIES, 4)
    growths = rng.sample(range(4, 25), 4)
    growths.sort()
    growths[3] += 3  # one city is clearly the first
    rng.shuffle(growths)
    before = [rng.randint(30, 79) for _ in cities]
    table = {c: (b, b + g) for c, b, g in zip(cities, before, growths, strict=True)}
    best = cities[growths.index(max(growths))]
    asked = next(c for c in cities if c != best)
    rows_text = "\n".join(f"| {c} | {b} | {a} |" for c, (b, a) in table.items())
    ending = i % 2 == 0  # the last criterion: a form, or a constraint of the question
    demand = 'End with a line of the form "Answer: CITY".' if ending else 'Do not use the word "most".'
    question = (
        f"| city | 2021 | 2023 |\n|---|---|---|\n{rows_text}\n\nThe table has thousands of inhabitants. Which city had "
        f"the largest growth from 2021 to 2023? Give the growth of each city as a calculation. {demand}"
    )
    growth = table[asked][1] - table[asked][0]
    rows = criteria(
        ("final_result", f"Gives {best} as the city with the largest growth.", 5),
        ("intermediate_fact", f"States that the growth of {asked} is {growth}.", 3),
        ("method", "Gives a growth for each of the four cities.", 2),
        ("no_error", "Gives at least one growth, and every growth that it gives is right for the table.", 3),
        ("form", 'The last line is "Answer:" followed by the name of one city and nothing else.', 1)
        if ending
        else ("constraint", 'Has some text and does not use the word "most".', 1),
    )

    def write(kind: str, rng: random.Random) -> Draft:
        read = dict(table)
        slip: dict[str, int] = {}
        named = best
        if kind == "wrong" and rng.random() < 0.4:  # only a guess
            read, named = {}, rng.choice([c for c in cities if c != best])
        elif kind == "wrong":  # misreads a number, so that another city seems to be first
            named = rng.choice([c for c in cities if c != best])
            read[named] = (read[named][0], read[named][0] + max(growths) + rng.randint(2, 9))
        elif kind == "wrong_right_steps":
            named = rng.choice([c for c in cities if c != best])
        elif kind == "right_wrong_steps":
            slip[asked] = growth + rng.choice((-2, -1, 1, 2))
            if rng.random() < 0.5:
                del read[rng.choice([c for c in cities if c != asked])]
        given = {c: slip.get(c, a - b) for c, (b, a) in read.items()}
        keeps = rng.random() < 0.55
        lines = [f"{c}: {a} - {b} = {given[c]}" for c, (b, a) in read.items()]
        if ending:
            closing = f"Answer: {named}" if keeps else f"So {named} had the largest growth."
        else:
            closing = f"{named} {'had the largest growth' if keeps else 'grew most'}."
        right = bool(given) and all(v == table[c][1] - table[c][0] for c, v in given.items())
        truth = (named == best, given.get(asked) == growth, len(given) == 4, right, keeps)
        return Draft((*lines, closing), truth, named == best)

    return Item(question, rows, write, (False, False, False, False, not ending))
