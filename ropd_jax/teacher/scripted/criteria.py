"""How the scripted teacher writes criteria, and how it decides each one from its wording and one answer.

``induce`` sees only texts. It takes the steps and the final answer shared by most references, checks which of them the
students' answers have, and writes one criterion for each::

    9 + 5 = 14         fewer than half of the students' answers have it            4 points
    14 - 1 = 13        some have it                                                2 points
    13 + 3 = 16        all have it                                                 1 point
    Answer: 16         the final answer                                            5 points
    (form)             every line is an equation                                   1 point

``check`` decides a criterion by parsing its wording, so the verifier uses only information from its prompt.
"""

from __future__ import annotations

import functools
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from ropd_jax.teacher.scripted import instructions

MAX_CRITERIA, MIN_CRITERIA = 12, 4
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[-+*/%()]")
_MARK = re.compile(r"\\boxed\{|####|answer\s*:|answer is", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def evaluate(expression: str) -> Fraction | None:
    """The exact value of an arithmetic expression with numbers, + - * / mod and brackets; None for anything else."""
    text = expression.strip().replace(" mod ", " % ").replace(",", "")
    tokens = _TOKEN.findall(text)
    if len(text) > 120 or not tokens or "".join(tokens) != text.replace(" ", ""):
        return None
    try:
        value, rest = _sum(tokens)
    except (ValueError, ZeroDivisionError):
        return None
    return value if not rest else None


def _sum(tokens: list[str]) -> tuple[Fraction, list[str]]:
    value, rest = _product(tokens)
    while rest and rest[0] in "+-":
        right, after = _product(rest[1:])
        value, rest = (value + right if rest[0] == "+" else value - right), after
    return value, rest


def _product(tokens: list[str]) -> tuple[Fraction, list[str]]:
    value, rest = _atom(tokens)
    while rest and rest[0] in "*/%":
        right, after = _atom(rest[1:])
        value, rest = {"*": operator.mul, "/": operator.truediv, "%": operator.mod}[rest[0]](value, right), after
    return value, rest


def _atom(tokens: list[str]) -> tuple[Fraction, list[str]]:
    if not tokens:
        raise ValueError("the expression ends too early")
    head, rest = tokens[0], tokens[1:]
    if head in "+-":
        value, rest = _atom(rest)
        return (value if head == "+" else -value), rest
    if head == "(":
        value, rest = _sum(rest)
        if not rest or rest[0] != ")":
            raise ValueError("a bracket stays open")
        return value, rest[1:]
    return Fraction(head), rest  # ValueError for an operator or a closing bracket


def number(text: str) -> Fraction | None:
    """The number written as ``1,234.50``, ``$70`` or ``70.``, or None."""
    match = re.fullmatch(r"[$€£]?\s*(-?\d[\d,]*(?:\.\d+)?)\.?\s*%?", text.strip())
    return Fraction(match.group(1).replace(",", "")) if match else None


def lines_of(text: str) -> list[str]:
    """The lines that are not blank, stripped."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def is_equation(line: str) -> bool:
    """True if the line is one correct equation with an operation on its left side: ``9 + 5 = 14``."""
    left, equals, right = line.partition("=")
    if not equals or len(line) > 240 or not re.search(r"\d\s*(?:[-+*/]|mod\b)\s*[-(]?\d", left):
        return False
    value = evaluate(left)
    return value is not None and value == evaluate(right)


@functools.lru_cache(maxsize=64)
def calculations(text: str) -> tuple[tuple[str, Fraction], ...]:
    """(left side, result) of each ``... = 24`` in prose; the left side is the arithmetic text before the sign.

    Only the first 50,000 characters are read.
    """
    text = text[:50_000]
    text = text.translate(str.maketrans("−–×·÷", "--**/"))
    text = re.sub(r"(?<=\d)\s*x\s*(?=[$€£]?\d)", " * ", text)
    found: list[tuple[str, Fraction]] = []
    start = 0
    for match in re.finditer(r"=\s*[$€£]?\s*(-?\d[\d,]*(?:\.\d+)?)", text):
        before = text[max(start, match.start() - 80) : match.start()]
        left = re.search(r"[-+*/%()\d.,$€£ ]*$", before)
        result = number(match.group(1).rstrip(","))
        if result is not None:
            found.append((re.sub(r"[$€£]", "", left.group() if left else "").strip(" ,."), result))
        start = match.start() + 1
    return tuple(found)


def final_answer(text: str) -> str | None:
    """An answer's result: after the last ``\\boxed{}``, ``#### ``, ``Answer:`` or ``answer is``, else the last number.

    None if the text has none of these.
    """
    patterns = (
        r"\\boxed\{([^{}]*)\}", r"####\s*([^\n]+)", r"(?:^|\n)\s*(?:final )?answer\s*:\s*([^\n]+)",
        r"answer is:?\s*([^\n]+)",
    )  # fmt: skip
    for pattern in patterns:
        if found := re.findall(pattern, text, re.IGNORECASE):
            named = found[-1].strip().strip("*")
            inside = _NUMBER.search(named)
            return inside.group().rstrip(",").replace(",", "") if inside else named.rstrip(".")
    numbers = _NUMBER.findall(text)
    return numbers[-1].rstrip(",").replace(",", "") if numbers else None


def same(a: str | None, b: str | None) -> bool:
    """True if two final answers are the same number or the same words."""
    if a is None or b is None:
        return False
    x, y = number(a), number(b)
    return x == y if x is not None and y is not None else a.strip().lower() == b.strip().lower()


# --- wordings: each is written by `induce` and decided by the function next to it in `_CHECKS` --------------------


def _line_once(answer: str, line: str) -> bool:
    forms = {line}
    if match := re.fullmatch(r"(-?\d+) ([+*]) (-?\d+) = (-?\d+)", line):
        a, op, b, c = match.groups()
        forms.add(f"{b} {op} {a} = {c}")
    return sum(seen in forms for seen in lines_of(answer)) == 1


def _last_line(answer: str, line: str) -> bool:
    lines = lines_of(answer)
    label = line.split(":")[0] + ":"
    return bool(lines) and lines[-1] == line and sum(seen.startswith(label) for seen in lines) == 1


def _all_equations(answer: str) -> bool:
    working = lines_of(answer)[:-1]
    return bool(working) and all(is_equation(line) for line in working)


def _some_equation(answer: str) -> bool:
    return any(is_equation(line) for line in lines_of(answer)[:-1])


def _equation_result(answer: str, value: str) -> bool:
    wanted = number(value)
    return any(is_equation(line) and evaluate(line.partition("=")[2]) == wanted for line in lines_of(answer)[:-1])


def _has_result(answer: str, value: str) -> bool:
    wanted = number(value)
    return any(result == wanted for _, result in calculations(answer))


def _all_correct(answer: str) -> bool:
    values = [(evaluate(left), result) for left, result in calculations(answer) if re.search(r"\d.*[-+*/].*\d", left)]
    known = [(value, result) for value, result in values if value is not None]
    return bool(known) and all(abs(value - result) <= abs(result) / 1000 for value, result in known)


def _one_final(answer: str) -> bool:
    marked = [bool(_MARK.search(line)) for line in lines_of(answer)]
    return sum(marked) == 1 and marked[-1]


_QUOTED = re.compile(r'"([^"]+)"')

LINE = 'Contains the line "{}" exactly once, as a whole line.'
LINES = "Contains each of these lines exactly once, as a whole line: {}."
LAST = 'The last line is "Answer: {}", and no other line starts with "Answer:".'
EQUATIONS = "Every line before the last is a correct equation, and there is at least one."
EQUATION = "At least one line before the last is a correct equation."
RESULT = "A line before the last is a correct equation whose result is {}."
FINAL = 'Ends with the final answer "{}".'
VALUE = 'Contains a calculation whose result is {0} (written "= {0}").'
VALUES = 'Contains calculations with each of these results, written with "=": {}.'
CORRECT = 'Every calculation of numbers written with "=" is correct, and there is at least one.'
ONE_FINAL = "Names its final answer exactly once, in the last line."
SHOWN = 'Shows at least one calculation with "=".'
REASON = "Says something before its last line."
SHORT = "Is at most 2,000 characters long."

_CHECKS: tuple[tuple[str, Callable[..., bool]], ...] = (
    (LINE, _line_once),
    (LINES, lambda answer, listed: all(_line_once(answer, line) for line in _QUOTED.findall(listed))),
    (LAST, lambda answer, result: _last_line(answer, f"Answer: {result}")),
    (EQUATIONS, _all_equations),
    (EQUATION, _some_equation),
    (RESULT, _equation_result),
    (FINAL, lambda answer, result: same(final_answer(answer), result)),
    (VALUE, _has_result),
    (VALUES, lambda answer, listed: all(_has_result(answer, v) for v in listed.split("; "))),
    (CORRECT, _all_correct),
    (ONE_FINAL, _one_final),
    (SHOWN, lambda answer: bool(calculations(answer))),
    (REASON, lambda answer: len(lines_of(answer)) > 1),
    (SHORT, lambda answer: 0 < len(answer.strip()) <= 2000),
)


def _pattern(wording: str) -> re.Pattern[str]:
    parts = re.split(r"\{0?\}", wording)
    if len(parts) == 3:  # the same value twice
        return re.compile(re.escape(parts[0]) + "(.+?)" + re.escape(parts[1]) + r"\1" + re.escape(parts[2]))
    return re.compile("(.+)".join(re.escape(p) for p in parts))


_PATTERNS = tuple((_pattern(wording), decide) for wording, decide in _CHECKS)


@functools.lru_cache(maxsize=512)
def check(criterion: str, answer: str) -> bool | None:
    """True if the answer meets the criterion; None if the criterion is not one of this teacher's wordings."""
    for pattern, decide in _PATTERNS:
        if match := pattern.fullmatch(criterion.strip()):
            return decide(answer, *match.groups())
    return instructions.check(criterion, answer)


def induce(
    references: Sequence[str], students: Sequence[str], least: int = MIN_CRITERIA, most: int = MAX_CRITERIA
) -> list[dict]:
    """Criteria (``criterion_id``, ``category``, ``criterion``, ``points``) from the contrast of the texts.

    Args:
        least, most: minimum and maximum number; fewer than ``least`` if there are not enough wordings for the texts.
    """
    answers = [a for a in (final_answer(r) for r in references) if a is not None]
    final = Counter(answers).most_common(1)[0][0] if answers else ""
    if _most(references, _is_line_style):
        steps = _shared([[x for x in lines_of(r)[:-1] if _looks_like_step(x)] for r in references], references, final)
        # Drop steps that references repeat: the references would fail their criterion.
        steps = [s for s in steps if _most(references, functools.partial(_line_once, line=s))]
        rows = [("Step", _listed(g, LINE, LINES, '"{}"'), 0) for g in _grouped(steps, max(most - 2, 1))]
        rows.append(("Final result", LAST.format(final), 5))
        rest = [("Form", EQUATIONS, 1), ("Form", EQUATION, 1), ("Reasoning", RESULT.format(final), 2)]
        wanted = min(max(least, len(rows) + 1), most)
    else:
        values = [[_plain(v) for _, v in calculations(r) if not same(_plain(v), final)] for r in references]
        steps = _shared(values, references, final)
        rows = [("Step", _listed(g, VALUE, VALUES, "{}"), 0) for g in _grouped(steps, max(most - 3, 1))]
        rows.append(("Final result", FINAL.format(final or "none"), 5))
        rest = [("Reasoning", CORRECT, 2), ("Form", ONE_FINAL, 1), ("Reasoning", SHOWN, 2)]
        wanted = min(max(least, len(rows) + 2), most)
    rest += [("Form", ONE_FINAL, 1), ("Reasoning", REASON, 1), ("Form", SHORT, 1), ("Reasoning", SHOWN, 2)]
    rest = list(dict.fromkeys(rest))
    # Criteria that the references fail come last.
    rest.sort(key=lambda row: not _most(references, lambda r: bool(check(row[1], r))))
    if EQUATIONS in (row[1] for row in rest[:2]):
        rest = [row for row in rest if row[1] != EQUATION]  # the strict criterion implies it
    rows = (rows + rest[: max(wanted - len(rows), 0)])[-most:]
    return [
        {"criterion_id": f"c{n}", "category": category, "criterion": text, "points": points or _points(text, students)}
        for n, (category, text, points) in enumerate(rows, 1)
    ]


RAR_CATEGORIES = {
    "Final result": "Essential", "Step": "Important", "Reasoning": "Optional", "Form": "Optional",
    "Rule": "Essential", "Topic": "Important", "Sense": "Optional",
}  # fmt: skip
PITFALLS = (EQUATIONS, CORRECT)  # criteria that a careless writer fails


def induce_static(references: Sequence[str], least: int, most: int) -> list[dict]:
    """The same criteria in RaR's categories, without points, from only the references."""
    return static_rows(induce(references, (), least, most))


def static_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict]:
    """Induced criteria in RaR's categories, without points."""
    return [
        {
            "criterion_id": row["criterion_id"],
            "category": "Pitfall" if row["criterion"] in PITFALLS else RAR_CATEGORIES[row["category"]],
            "criterion": row["criterion"],
        }
        for row in rows
    ]


def quality(answer: str, references: Sequence[str]) -> float:
    """The quality of a whole answer, 0 to 1: 0.5 for the final result, 0.4 for the share of steps, 0.1 for form.

    The criteria are those that ``induce`` writes for the references. The number does not show which of them failed.
    """
    shares: dict[str, list[bool]] = {"Final result": [], "Step": [], "": []}
    for row in induce(references, ()):
        kind = row["category"] if row["category"] in shares else ""
        shares[kind].append(bool(check(row["criterion"], answer)))
    weights = {"Final result": 0.5, "Step": 0.4, "": 0.1}
    known = {kind: sum(held) / len(held) for kind, held in shares.items() if held}
    return sum(weights[kind] * share for kind, share in known.items()) / sum(weights[kind] for kind in known)


def _most(texts: Sequence[str], holds: Callable[[str], bool]) -> bool:
    return 2 * sum(holds(t) for t in texts) > len(texts)


def _points(criterion: str, students: Sequence[str]) -> int:
    return instructions.points_of([bool(check(criterion, s)) for s in students])


def _is_line_style(text: str) -> bool:
    lines = lines_of(text)
    return bool(lines) and lines[-1].startswith("Answer: ") and any(_looks_like_step(line) for line in lines[:-1])


def _looks_like_step(line: str) -> bool:
    return re.fullmatch(r"-?\d+ (?:[-+*/]|mod) -?\d+ = -?\d+", line) is not None


def _plain(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.12g}"


def _shared(steps: Sequence[list[str]], references: Sequence[str], final: str) -> list[str]:
    """Steps that more than half of the references have, in order; else those of the first one with that answer."""
    counts = Counter(step for own in steps for step in set(own))
    kept = list(dict.fromkeys(step for own in steps for step in own if 2 * counts[step] > len(steps)))
    if kept:
        return kept
    agreeing = (own for own, text in zip(steps, references, strict=True) if own and same(final_answer(text), final))
    return list(dict.fromkeys(next(agreeing, [])))


def _grouped(steps: Sequence[str], most: int) -> list[list[str]]:
    """The steps, in order, in at most ``most`` groups of nearly equal size."""
    n = min(most, len(steps))
    return [list(steps[i * len(steps) // n : (i + 1) * len(steps) // n]) for i in range(n)]


def _listed(group: Sequence[str], one: str, several: str, each: str) -> str:
    return one.format(group[0]) if len(group) == 1 else several.format("; ".join(each.format(s) for s in group))
