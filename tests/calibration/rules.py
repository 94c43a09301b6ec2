"""Independent rules for the labels: each reads the question, the criterion and the answer's text, and does not know how
the answer was made."""

from __future__ import annotations

import contextlib
import io
import re

EQUATION = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")
OPS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def decide(question: str, criterion: str, answer: str) -> bool:
    """True if the answer meets the criterion; raises KeyError for an unknown wording."""
    for pattern, rule in RULES:
        if match := re.fullmatch(pattern, criterion):
            return bool(answer.strip()) and rule(question, answer, *match.groups())
    raise KeyError(criterion)


def result_of(question: str) -> str:
    """The correct result of a question, computed from its text."""
    if "What does this Python program print?" in question:
        program = re.search(r"```python\n(.*?)```", question, re.DOTALL)[1]
        assert not re.search(r"import|open|_", program)  # it is our own text and stays this simple
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(program, {"__builtins__": {"range": range, "print": print}})
        return out.getvalue().strip()
    if found := re.match(r"Compute \((\d+) \+ (\d+)\) \* (\d+) - (\d+)\.", question):
        a, b, c, d = map(int, found.groups())
        return str((a + b) * c - d)
    if rows := table(question):
        return max(rows, key=lambda city: rows[city][1] - rows[city][0])
    if "in the end?" in question:
        a, b, c, d = map(int, re.findall(r"\d+", question))
        return str(a * b - c + d)
    raise KeyError(question)


def table(question: str) -> dict[str, tuple[int, int]]:
    return {c: (int(a), int(b)) for c, a, b in re.findall(r"\| (\w+) \| (\d+) \| (\d+) \|", question) if c != "city"}


def equations(text: str) -> list[bool]:
    return [OPS[op](int(a), int(b)) == int(c) for a, op, b, c in EQUATION.findall(text)]


def last(text: str) -> str:
    return text.strip().splitlines()[-1].strip()


def sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.!?])\s+", text.strip()) if s]


def growths(question: str, answer: str) -> list[bool]:
    rows = table(question)
    found = re.findall(r"(\w+): (\d+) - (\d+) = (-?\d+)", answer)
    return [(int(a), int(b)) == rows[c][::-1] and int(d) == int(a) - int(b) for c, a, b, d in found]


def passes(answer: str) -> dict[int, int]:
    return {int(k): int(v) for k, v in re.findall(r"After pass (\d), \w+ is (\d+)", answer)}


def trace(question: str) -> list[int]:
    """The value after each pass, printed by the program itself."""
    program = re.search(r"```python\n(.*?)```", question, re.DOTALL)[1].strip()
    *body, end = program.splitlines()
    out = result_of(f"What does this Python program print?```python\n{chr(10).join(body)}\n    {end}\n```")
    return [int(n) for n in out.split()]


def word(text: str, wanted: str) -> bool:
    return re.search(rf"\b{re.escape(wanted)}\b", text, re.IGNORECASE) is not None


def false_statement(country: str, answer: str, truth: dict) -> bool:
    where = re.search(rf"{country} (?:lies|is located) in ([A-Z][\w ]*)\.", answer)
    capital = re.search(rf'capital of {country} is "?([A-Z][\w ]*)"?\.', answer)
    return where[1] != truth[country][1] or capital[1] != truth[country][0]


FACTS = {
    "Australia": ("Canberra", "Oceania"), "Canada": ("Ottawa", "North America"), "Switzerland": ("Bern", "Europe"),
    "New Zealand": ("Wellington", "Oceania"), "Pakistan": ("Islamabad", "Asia"), "Ecuador": ("Quito", "South America"),
    "Tunisia": ("Tunis", "Africa"), "Brazil": ("Brasilia", "South America"), "Morocco": ("Rabat", "Africa"),
    "Vietnam": ("Hanoi", "Asia"), "Nigeria": ("Abuja", "Africa"), "India": ("New Delhi", "Asia"),
    "Poland": ("Warsaw", "Europe"), "Mongolia": ("Ulaanbaatar", "Asia"),
}  # fmt: skip

RULES = (
    (r"The final answer is (\d+)\.", lambda q, a, n: re.findall(r"\d+", last(a))[-1:] == [n] and n == result_of(q)),
    (r"States that (\d+) (\w+) are left after (\d+) are taken away\.",
     lambda q, a, n, things, c: f"= {n} {things} are left" in a),
    (r"Adds the (\d+) new \w+ to what was left, rather than subtracting them\.",
     lambda q, a, d: re.search(rf"Then \d+ \+ {d} = ", a) is not None),
    (r'Has at least one calculation with "=", and .*', lambda q, a: equations(a) != [] and all(equations(a))),
    (r'The last line has a number and the word "(\w+)"\.',
     lambda q, a, w: re.search(r"\d", last(a)) is not None and word(last(a), w)),
    (r'Has some text and does not use the word "(\w+)"\.', lambda q, a, w: not word(a, w)),
    (r"Has (\d+) as the result of a step before the last one\.",
     lambda q, a, n: n in [e[3] for e in EQUATION.findall(a)][:-1]),
    (r"Adds (\d+) and (\d+) before it multiplies by (\d+)\.",
     lambda q, a, x, y, z: -1 < a.find(f"{x} + {y} =") < a.find(f"* {z} =")),
    (r'The last line is "Answer:" followed by one number and nothing else\.',
     lambda q, a: re.fullmatch(r"Answer: \d+", last(a)) is not None),
    (r"Names ([\w ]+) as the capital of ([\w ]+)\.",
     lambda q, a, city, country: re.search(rf'capital of {country} is "?{city}"?\.', a) is not None
     and FACTS[country][0] == city),
    (r"States that ([\w ]+) lies in ([\w ]+)\.",
     lambda q, a, country, where: re.search(rf"{country} (?:lies|is located) in {where}\.", a) is not None
     and FACTS[country][1] == where),
    (r"Makes a statement about ([\w ]+), and makes no false statement about it\.",
     lambda q, a, country: country in a and not false_statement(country, a, FACTS)),
    (r"Puts the name that it gives as the capital in quotation marks\.",
     lambda q, a: re.search(r'capital of [\w ]+ is "[\w ]+"', a) is not None),
    (r"Has exactly (\d) sentences\.", lambda q, a, n: len(sentences(a)) == int(n)),
    (r'Uses the word "(\w+)"\.', lambda q, a, w: word(a, w)),
    (r'The last sentence is "(.+)"', lambda q, a, s: sentences(a)[-1] == s),
    (r'The first word is "(\w+)"\.', lambda q, a, w: a.split()[0] == w),
    (r"States that the program prints (\d+)\.",
     lambda q, a, n: re.search(rf"prints `?{n}`?\.", a) is not None and result_of(q) == n),
    (r"States that \w+ is (\d+) after pass 3\.",
     lambda q, a, n: passes(a).get(3) == int(n) and trace(q)[2] == int(n)),
    (r"Gives a value of \w+ for each of the 4 passes\.", lambda q, a: set(passes(a)) == {1, 2, 3, 4}),
    (r"Gives the value of \w+ after at least one pass, and every such value is right\.",
     lambda q, a: passes(a) != {} and all(trace(q)[k - 1] == v for k, v in passes(a).items())),
    (r"Puts the value that it gives as printed in backticks\.", lambda q, a: re.search(r"prints `\d+`", a) is not None),
    (r"Gives (\w+) as the city with the largest growth\.", lambda q, a, c: word(last(a), c) and result_of(q) == c),
    (r"States that the growth of (\w+) is (\d+)\.",
     lambda q, a, c, n: re.search(rf"{c}: \d+ - \d+ = {n}\b", a) is not None
     and table(q)[c][1] - table(q)[c][0] == int(n)),
    (r"Gives a growth for each of the four cities\.",
     lambda q, a: all(re.search(rf"{c}: \d+ - \d+ = ", a) for c in table(q))),
    (r"Gives at least one growth, and every growth that it gives is right for the table\.",
     lambda q, a: growths(q, a) != [] and all(growths(q, a))),
    (r'The last line is "Answer:" followed by the name of one city and nothing else\.',
     lambda q, a: re.fullmatch(r"Answer: \w+", last(a)) is not None),
    (r"States that (.+)\.", lambda q, a, fact: f"{fact}.".lower() in a.lower().replace("**", "")),
)  # fmt: skip
