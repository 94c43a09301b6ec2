"""The questions that the scripted teacher can solve: a few task families by rule, and exercises from an answer key.

A solution is a list of working lines and an answer. The arithmetic families write one line per step, in the style
``9 + 5 = 14``, which a tiny student can also write. ``slip_rate`` makes single steps slightly wrong, and later steps
continue with the wrong result, as a careless person would::

    9 + 5 - 1      9 + 5 = 14, 14 - 1 = 13          without a slip
                   9 + 5 = 15, 15 - 1 = 14          slip(0) is +1
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable

from ropd_jax.teacher.clients.errors import ConfigurationError
from ropd_jax.utils.paths import local_file

Slip = Callable[[int], int]  # step number -> the error added to its result; 0 for a correct step


@dataclasses.dataclass(frozen=True)
class Worked:
    """A worked solution.

    Attributes:
        prose: True if the lines are sentences from an answer key, not equations.
        plain_only: True if there is only one way to write it, see `write`.
    """

    lines: tuple[str, ...]
    answer: str
    prose: bool = False
    plain_only: bool = False


def uniform(*parts: object) -> float:
    """A number in [0, 1), computed as a hash of the parts."""
    data = json.dumps([str(p) for p in parts], ensure_ascii=True).encode()
    return int.from_bytes(hashlib.sha256(data).digest()[:7], "big") / 2**56


class AnswerKey:
    """Exercises with worked solutions, looked up by question.

    Questions are compared in lowercase with single spaces. A question that contains a complete question of the answer
    key, because a chat added an instruction to it, is also found.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()):
        self._solutions = {normalised(q): s for q, s in pairs if normalised(q) and s.strip()}

    @classmethod
    def read(cls, path: str) -> AnswerKey:
        """Reads JSONL with ``question`` (or ``problem``) and ``solution`` in each line.

        GSM8K's own files are also accepted; their ``answer`` is the worked solution with a ``#### `` line.

        Raises:
            ConfigurationError: a file or line is unreadable; the message names it.
        """
        pairs = []
        try:
            with local_file(path, "teacher.scripted.answer_key").open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if not line.strip():
                        continue
                    row = json.loads(line)
                    question = row.get("question", row.get("problem"))
                    solution = row.get("solution", row.get("answer"))
                    worked = isinstance(solution, str) and ("solution" in row or "####" in solution)
                    if not isinstance(question, str) or not worked:
                        raise ConfigurationError(
                            f"{path}:{number} lacks the strings 'question' and 'solution'; expected both in every "
                            "line of teacher.scripted.answer_key"
                        )
                    pairs.append((question, solution))
        except (OSError, ValueError, AttributeError) as e:
            raise ConfigurationError(f"cannot read teacher.scripted.answer_key={path!r}: {e}; expected JSONL") from e
        return cls(pairs)

    def find(self, question: str) -> str | None:
        """The worked solution, or None."""
        wanted = normalised(question)
        if wanted in self._solutions:
            return self._solutions[wanted]
        inside = [q for q in self._solutions if len(q) >= 20 and q in wanted]
        return self._solutions[max(inside, key=len)] if inside else None


def normalised(question: str) -> str:
    """The question in lowercase, with every run of whitespace as one space."""
    return " ".join(question.lower().split())


def solve(question: str, answer_key: AnswerKey, slip: Slip) -> Worked | None:
    """The worked solution of a question that the teacher knows, or None."""
    solution = answer_key.find(question)
    if solution is not None:
        return _from_answer_key(solution, slip)
    for family in (_equation, _gcd, _chain):
        if worked := family(question, slip):
            return worked
    return None


_EXPRESSION = r"-?\d+(?:\s*[-+*]\s*-?\d+)+"
_ASKED = re.compile(
    rf"(?:^|:|what is|compute|calculate|evaluate)\s*({_EXPRESSION})\s*(?:=|\?|\.|$)", re.IGNORECASE | re.MULTILINE
)


def _chain(question: str, slip: Slip) -> Worked | None:
    """``9 + 5 - 1``: running sums. ``3 * 4 * 5``: running products."""
    if not (match := _ASKED.search(question)):
        return None
    first, *rest = re.findall(r"(?:^|[-+*])\s*-?\d+", match.group(1))
    value = int(first.replace(" ", ""))
    steps = [(term[0], int(term[1:].replace(" ", ""))) for term in rest]
    operators = {op for op, _ in steps}
    if "*" in operators and operators != {"*"}:
        return None
    lines = []
    for number, (op, term) in enumerate(steps):
        result = {"+": value + term, "-": value - term, "*": value * term}[op] + slip(number)
        lines.append(f"{value} {op} {term} = {result}")
        value = result
    return Worked(tuple(lines), str(value), plain_only=True)


def _gcd(question: str, slip: Slip) -> Worked | None:
    """Euclid's algorithm, one division per line: ``641 mod 595 = 46``."""
    match = re.search(r"(?:greatest common divisor|\bgcd\b)[^:]*:\s*(\d+(?:\s*,\s*\d+)+)", question, re.IGNORECASE)
    if not match:
        return None
    first, *rest = (int(n) for n in match.group(1).split(","))
    if min(first, *rest) < 1:
        return None
    lines: list[str] = []
    value = first
    for number in rest:
        a, b = max(value, number), min(value, number)
        while b:
            r = a % b
            wrong = slip(len(lines))
            r = min(max(r + wrong, 0), b - 1) if wrong else r
            lines.append(f"{a} mod {b} = {r}")
            a, b = b, r
        value = a
    return Worked(tuple(lines), str(value))


def _equation(question: str, slip: Slip) -> Worked | None:
    """A linear equation in one unknown: move the constant, then divide."""
    match = re.search(r"(?:solve for|value of)\s+([a-z])\b[^:]*:\s*([^=:]+)=([^=?]+?)\.?\s*$", question, re.IGNORECASE)
    if not match:
        return None
    name, left, right = match.group(1), _linear(match.group(2), match.group(1)), _linear(match.group(3), match.group(1))
    if left is None or right is None:
        return None
    (a, b), (c, d) = left, right
    if a == c or (d - b) % (a - c):
        return Worked((f"The equation does not fix {name} as one integer.",), "undetermined", prose=True)
    lines: list[str] = []
    total = d
    if b:
        total = d - b + slip(0)
        lines.append(f"{d} - {b} = {total}" if b > 0 else f"{d} + {-b} = {total}")
    factor = a
    if c:
        factor = a - c
        lines.append(f"{a} - {c} = {factor}" if c > 0 else f"{a} + {-c} = {factor}")
    value = total // factor + slip(1)
    lines.append(f"{total} / {factor} = {value}")
    return Worked(tuple(lines), str(value))


def _linear(side: str, name: str) -> tuple[int, int] | None:
    """(coefficient, constant) of ``20*h + 65``; None for anything else."""
    term = rf"\s*([-+]?)\s*(?:(-?\d+)\s*\*?\s*{name}|({name})|(-?\d+))"
    if not re.fullmatch(rf"(?:{term})+\s*", side):
        return None
    factor = constant = 0
    for sign, coefficient, unknown, number in re.findall(term, side):
        s = -1 if sign == "-" else 1
        if number:
            constant += s * int(number)
        else:
            factor += s * (1 if unknown else int(coefficient))
    return factor, constant


_FINAL = re.compile(r"^\s*####\s*(.+?)\s*$", re.MULTILINE)
_RESULT = re.compile(r"(=\s*[$€£]?)(-?\d[\d,]*(?:\.\d+)?)")


def _from_answer_key(solution: str, slip: Slip) -> Worked | None:
    """A solution from the answer key, without calculator annotations (``<<16-3-4=9>>``); ``#### 9`` is its answer."""
    text = re.sub(r"<<[^<>]*>>", "", solution)
    final = _FINAL.search(text)
    text = _FINAL.sub("", text)
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    if not final and not numbers:
        return None
    answer = (final.group(1) if final else numbers[-1]).replace(",", "").lstrip("$€£")
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        wrong, results = slip(number), list(_RESULT.finditer(line))
        if not wrong or not results:
            continue
        old = results[-1].group(2)
        if not re.fullmatch(r"-?\d+", old):
            continue
        new = str(int(old) + wrong)
        start, end = results[-1].span(2)
        lines[number] = line[:start] + new + line[end:]
        swap = re.compile(rf"(?<![\d.]){re.escape(old)}(?![\d.])")
        lines[number + 1 :] = [swap.sub(new, later) for later in lines[number + 1 :]]
        answer = new if answer == old else answer
    return Worked(tuple(lines), answer, prose=True)


STYLES = ("full", "skips", "prose")


def write(worked: Worked, variant: int, style: str = "full") -> str:
    """The solution as an answer text.

    Args:
        variant: number of the sample, which determines one of four layouts. Equation lines have sentences around them
            or not. A sum or a product has only one layout, so that its samples are equal. Solutions from an answer key
            state the answer in four ways.
        style: used for solutions in equation lines. ``full`` writes every line. ``skips`` writes the first line and
            then the answer, as an expert does. ``prose`` writes all lines as one sentence.
    """
    lines, kind = worked.lines, variant % 4
    if style == "skips" and not worked.prose:
        return "\n".join((*lines[:1], f"Answer: {worked.answer}"))
    if style == "prose" and not worked.prose:
        return f"{'; '.join(lines)}. The answer is {worked.answer}."
    if worked.plain_only or (kind == 0 and not worked.prose):
        return "\n".join((*lines, f"Answer: {worked.answer}"))
    if not worked.prose:
        opening = ("Work it out step by step.",) if kind in (1, 3) else ()
        closing = (f"So the result is {worked.answer}.",) if kind in (2, 3) else ()
        return "\n".join((*opening, *lines, *closing, f"Answer: {worked.answer}"))
    if kind == 0:
        return "\n".join((*lines, f"Answer: {worked.answer}"))
    if kind == 1:
        return "\n".join((*lines, f"#### {worked.answer}"))
    if kind == 2:
        numbered = (f"Step {n}: {line}" for n, line in enumerate(lines, 1))
        return "\n".join((*numbered, f"The answer is {worked.answer}."))
    return " ".join(lines) + f"\nThe final answer is \\boxed{{{worked.answer}}}."
