"""Which criteria of a rubric must not count, found by rules.

The verifier sees only the question, one or more answers and a criterion. So a criterion must not do this:

    mentions     "Reaches the same total as the reference."     names a text or an author that the verifier cannot see
    undecidable  "Is more detailed than the other answers."     needs another answer, or has no words
    repeats      "The total is 42." after "States that the total is 42."     counts one thing twice

The rules are careful, because a criterion dropped without need costs more than one that slips through:

- A word that the question itself uses in that sense is allowed: in a question about a reference frame or about
  students, a criterion can mention them. Texts in quotation marks are what an answer should contain, so they are not
  examined.
- "Repeats" requires the same words in the same order, apart from those that only frame a statement ("states that", "the
  answer", "correctly"). Texts in quotation marks must be equal. Two criteria that differ in one number, one
  negation or one other word are two criteria.

English is covered best. For German, French, Spanish and Chinese there are short lists of mentions and comparisons, and
only texts with the same words count as repeats.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Sequence

from ropd_jax.teacher.roles import screening_rules
from ropd_jax.types import Criterion, Rubric

MENTIONS, UNDECIDABLE, REPEATS = "mentions", "undecidable", "repeats"
REASONS = (MENTIONS, UNDECIDABLE, REPEATS)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A criterion that must not count.

    Attributes:
        criterion_id: the criterion's id.
        reason: one of ``REASONS``.
        detail: the criterion's words that show the problem, or the id of the criterion that it repeats.
    """

    criterion_id: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return {
            MENTIONS: f"{self.criterion_id} mentions what a grader does not see ({self.detail!r})",
            UNDECIDABLE: f"{self.criterion_id} cannot be decided from one answer ({self.detail!r})",
            REPEATS: f"{self.criterion_id} repeats {self.detail}",
        }[self.reason]


def screen(rubric: Rubric, question: str) -> tuple[Problem, ...]:
    """The criteria that must not count, each once, in the rubric's order.

    Of two criteria that repeat each other, the one with fewer points is the repetition; if their points are equal, the
    later one.
    """
    found = {c.id: problem for c in rubric.criteria if (problem := _problem(c, question))}
    first: dict[tuple[str, ...], Criterion] = {}  # the criterion that stays, by content
    # stable, so the earlier one comes first if points are equal
    best_first = sorted(rubric.criteria, key=lambda c: -c.points)
    for criterion in best_first:
        content = tuple(_content(criterion.text))
        if criterion.id not in found and content:
            kept = first.setdefault(content, criterion)
            if kept is not criterion:
                found[criterion.id] = Problem(criterion.id, REPEATS, kept.id)
    return tuple(found[c.id] for c in rubric.criteria if c.id in found)


def about_the_answer(rubric: Rubric, question: str) -> Rubric:
    """The rubric with "the answer" for "the student" where a criterion demands something of the student.

    "The student's answers must name Paris" means "The answer must name Paris", and a grader who sees one answer can
    decide it. Small models often write so, whatever the prompt says. Unchanged: what the student lacks ("The student's
    answers do not name Paris" demands nothing), and every criterion of a question about students.
    """
    if screening_rules.ABOUT_STUDENTS.search(_plain(question)):
        return rubric
    return Rubric(tuple(dataclasses.replace(c, text=_about_the_answer(c.text)) for c in rubric.criteria))


def _about_the_answer(text: str) -> str:
    plain = text.strip().replace("\u2019", "'")
    for start, instead in screening_rules.SUBJECTS:
        reworded = start.sub(instead, plain)
        if reworded != plain:
            return screening_rules.OWN_ANSWER.sub("", reworded)
    return text


def explained(problems: Sequence[Problem]) -> str:
    """The problems in one sentence, for the re-ask."""
    return (
        "; ".join(map(str, problems))
        + "; expected criteria that a grader can decide from the question and one answer, "
        "without any other text, and each only once"
    )


def without(rubric: Rubric, problems: Sequence[Problem]) -> Rubric | None:
    """The rubric without these criteria; None if none is left."""
    bad = {p.criterion_id for p in problems}
    kept = tuple(c for c in rubric.criteria if c.id not in bad)
    return Rubric(kept) if kept else None


def _problem(criterion: Criterion, question: str) -> Problem | None:
    if not re.search(r"\w", criterion.text):
        return Problem(criterion.id, UNDECIDABLE, criterion.text[:40])
    text, asked = _unquoted(criterion.text), _plain(question)
    for reason, rules in ((MENTIONS, screening_rules.MENTIONS), (UNDECIDABLE, screening_rules.COMPARISONS)):
        for pattern, excuse in rules:
            match = pattern.search(text)
            if match and not (excuse is not None and excuse.search(asked)):
                return Problem(criterion.id, reason, " ".join(match.group().split())[:80])
    return None


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("\u2019", "'")


_QUOTED = re.compile(r'"[^"\n]*"|“[^”\n]*”|«[^»\n]*»|„[^“”\n]*[“”]|「[^」\n]*」|『[^』\n]*』|`[^`\n]*`')


def _unquoted(text: str) -> str:
    """The text with everything between quotation marks or backticks removed."""
    return _plain(_QUOTED.sub(' "" ', text))


_FRAMING = frozenset(  # words that frame a statement and add nothing to it
    re.findall(
        r"\w+",
        """
        the a A an that this is are was be being it its as must should
        answer answers response reply solution text
        state states stated stating say says said mention mentions mentioned mentioning give gives given giving
        write writes written writing name names named naming report reports reported
        include includes included including contain contains contained containing
        provide provides provided providing present presents presented presenting
        correctly explicitly clearly accurately properly explicit clear
        """,
    )
)
_NEGATIONS = frozenset({"no", "not", "never", "cannot", "none"})
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_WORDS = {word: str(n) for n, word in enumerate(_NUMBERS)}
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_TOKEN = re.compile(rf"(?<![\w.)])[-+]{_NUMBER}|{_NUMBER}|[^\W\d_]+|[^\w\s]|_")


def same_content(a: str, b: str) -> bool:
    """True if two criteria ask for the same thing: the texts are equal, apart from words that only frame the statement.

    >>> same_content("States that the total is 42.", "The total is stated to be 42")
    False
    >>> same_content("States that the total is 42.", "The answer gives the total as 42")
    True
    >>> same_content("Is at most 40 words long.", "Is at most 50 words long.")
    False
    """
    x, y = _content(a), _content(b)
    return bool(x) and x == y


def _content(text: str) -> list[str]:
    """The words, numbers and signs of a text that carry its content, in order."""
    text = unicodedata.normalize("NFC", text).replace("\u2019", "'").replace("\u2212", "-")
    text = re.sub(r"[.,;:。，；：、](?=\s|$)|\*\*", " ", text)
    found = []
    for quoted, part in _parts(text):
        for token in _TOKEN.findall(part if quoted else re.sub(r"n't\b", " not", part)):
            word = token.casefold() if len(token) > 1 and not token.isupper() and not quoted else token
            if token[-1].isdigit():
                found.append(token.replace(",", ""))
            elif word in _NEGATIONS:
                found.append("not")
            elif quoted or word not in _FRAMING:
                plural = not quoted and len(word) > 3 and word.endswith("s") and not word.endswith("ss")
                found.append(_WORDS.get(word, word[:-1] if plural else word))
    return found


def _parts(text: str) -> list[tuple[bool, str]]:
    """The text in parts: (True if in quotation marks, text)."""
    parts, at = [], 0
    for match in _QUOTED.finditer(text):
        parts += [(False, text[at : match.start()]), (True, match.group()[1:-1])]
        at = match.end()
    return [*parts, (False, text[at:])]
