"""Code output: what a short Python program with one loop prints."""

from __future__ import annotations

import random

from ropd_jax.calibration.families.parts import Draft, Item, criteria, other


def _sum_even(rng: random.Random) -> tuple[str, str, list[int]]:
    values = [rng.randint(2, 19) for _ in range(4)]
    trace, total = [], 0
    for x in values:
        total += x if x % 2 == 0 else 1
        trace.append(total)
    lines = (
        "total = 0", f"for x in {values}:", "    if x % 2 == 0:", "        total = total + x", "    else:",
        "        total = total + 1", "print(total)",
    )  # fmt: skip
    return "\n".join(lines), "total", trace


def _doubling(rng: random.Random) -> tuple[str, str, list[int]]:
    n, trace = rng.randint(3, 40), []
    start = n
    for i in range(4):
        n = n * 2 - i
        trace.append(n)
    return f"n = {start}\nfor i in range(4):\n    n = n * 2 - i\nprint(n)", "n", trace


def _halving(rng: random.Random) -> tuple[str, str, list[int]]:
    n, trace = rng.randint(150, 240), []
    start = n
    for _ in range(4):
        n = n // 2 + 3
        trace.append(n)
    return f"n = {start}\nfor i in range(4):\n    n = n // 2 + 3\nprint(n)", "n", trace


PROGRAMS = (_sum_even, _doubling, _halving)


def make(rng: random.Random, i: int) -> Item:
    """Question ``i`` of the family."""
    program, name, trace = PROGRAMS[i % len(PROGRAMS)](rng)
    end, third = trace[-1], trace[2]
    question = (
        f"What does this Python program print?\n\n```python\n{program}\n```\n\nWrite the value of {name} after each "
        "pass of the loop, and put the printed value in backticks."
    )
    rows = criteria(
        ("final_result", f"States that the program prints {end}.", 5),
        ("intermediate_fact", f"States that {name} is {third} after pass 3.", 3),
        ("method", f"Gives a value of {name} for each of the 4 passes.", 2),
        ("no_error", f"Gives the value of {name} after at least one pass, and every such value is right.", 3),
        ("form", "Puts the value that it gives as printed in backticks.", 1),
    )

    def write(kind: str, rng: random.Random) -> Draft:
        shown = dict(enumerate(trace, 1))
        last = end
        if kind == "wrong" and rng.random() < 0.4:  # only a guess
            shown, last = {}, other(end, rng, (end, third))
        elif kind == "wrong":  # wrong from the second or third pass on
            since, shift = rng.choice((2, 3)), rng.choice((1, 2, 3))
            shown = {k: v + (shift if k >= since else 0) for k, v in shown.items()}
            last = shown[4]
        elif kind == "wrong_right_steps":
            last = other(end, rng, (end, third))
        elif kind == "right_wrong_steps":
            k = rng.choice((2, 3))
            shown[k] = other(shown[k], rng, (shown[k],))
            if rng.random() < 0.5:
                del shown[1]
        ticks = "`" if rng.random() < 0.55 else ""
        lines = [f"After pass {k}, {name} is {value}." for k, value in shown.items()]
        right = bool(shown) and all(trace[k - 1] == v for k, v in shown.items())
        truth = (last == end, shown.get(3) == third, len(shown) == 4, right, bool(ticks))
        return Draft((*lines, f"The program prints {ticks}{last}{ticks}."), truth, last == end)

    return Item(question, rows, write, (False,) * 5)
