"""Questions with checkable rules: the scripted teacher reads the rules out of the text, follows them, and checks them.

A question names a topic and two to four rules, one per line::

    Write a short note about a lighthouse. Follow these rules:
    - Write fewer than 30 words.
    - Do not use commas.

`read` finds topic and rules only by their wordings. `write` makes a reference that follows all of them, `induce` one
criterion for each rule and some for sense (names its topic, reads as ordinary text, is finished), and `check` decides
such a criterion from an answer's text. `ropd_jax.data.instructions` draws such questions; IFEval's own checks grade
them, so that the teacher is never its own examiner.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence

from ropd_jax.teacher.scripted.sentences import ENGLISH, OTHERS, Topic, topic_named
from ropd_jax.teacher.scripted.tasks import uniform

LONGEST = 20_000  # characters of an answer that are read
OPENING = "Write {form} about {topic}. Follow these rules:"
_QUESTION = re.compile(r"Write (?P<form>[^.\n]{3,60}?) about (?P<topic>[^.\n]{3,60})\. Follow these rules:\n")
LANGUAGES = {"Spanish": "es", "French": "fr", "German": "de"}
_FUNCTION_WORDS = {
    "Spanish": "el la los las de del que y en un una es con por para se su al lo como más pero muy",
    "French": "le la les de des du que et en un une est avec pour par se sa son au il elle plus mais dans",
    "German": "der die das und ist ein eine mit für von zu im den dem des nicht auch wie aber sehr in auf",
    "English": "the a an of to and in is it for on with as at by from that this are was be its or many",
}


# ------------------------------------------------------------------------------------------------ what a text has


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _sentence_count(text: str) -> int:
    return len([s for s in re.split(r"(?<=[.!?])[\"')\]]*\s+", text.strip()) if re.search(r"\w", s)])


def _bullets(text: str) -> int:
    return len(re.findall(r"^\s*(?:\*[^*]|-).*$", text, re.MULTILINE))


def _in_language(text: str, language: str) -> bool:
    """Whether the text's short words are more often of that language than of the others."""
    found = [w.lower() for w in _words(text)]
    share = {name: sum(w in own.split() for w in found) for name, own in _FUNCTION_WORDS.items()}
    return share[language] > 0 and share[language] == max(share.values())


def _is_json(text: str, key_a: str, key_b: str) -> bool:
    try:
        value = json.loads(text.strip())
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.keys() == {key_a, key_b} and all(value.values())


def _first_word(text: str) -> str:
    found = _words(text[:200])
    return found[0].lower() if found else ""


def _times(text: str, word: str) -> int:
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))


# ---------------------------------------------------------------------------------------------------------- rules


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of rule.

    Attributes:
        wording: a line of the question, with ``{}`` for each value.
        holds: (answer, *values as texts) -> whether an answer follows it.
    """

    wording: str
    holds: Callable[..., bool]

    def text(self, *values: object) -> str:
        """The rule in words."""
        return self.wording.format(*values)

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile("(.+?)".join(re.escape(part) for part in self.wording.split("{}")))


KINDS: dict[str, Kind] = {
    "fewer_words": Kind("Write fewer than {} words.", lambda a, n: len(_words(a)) < int(n)),
    "more_words": Kind("Write at least {} words.", lambda a, n: len(_words(a)) >= int(n)),
    "fewer_sentences": Kind("Write fewer than {} sentences.", lambda a, n: _sentence_count(a) < int(n)),
    "no_comma": Kind("Do not use commas.", lambda a: "," not in a),
    "first_word": Kind(
        'Start with the word "{}", and write one paragraph only.',
        lambda a, w: _first_word(a) == w.lower() and "\n\n" not in a.strip(),
    ),
    "title": Kind(
        "Begin with a title in double angle brackets, like <<title>>.",
        lambda a: re.match(r"\s*<<[^\n<>]*\w[^\n<>]*>>", a) is not None,
    ),
    "keyword": Kind('Use the word "{}".', lambda a, w: _times(a, w) >= 1),
    "bullets": Kind('Write exactly {} bullet points. Start each with "- ".', lambda a, n: _bullets(a) == int(n)),
    "json": Kind('Answer with JSON only, with the keys "{}" and "{}".', _is_json),
    "language": Kind("Write in {}, and in no other language.", _in_language),
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule of a question: its kind and its values, as texts."""

    kind: str
    values: tuple[str, ...]

    @property
    def text(self) -> str:
        return KINDS[self.kind].text(*self.values)

    def holds(self, answer: str) -> bool:
        """Whether an answer follows it; an empty one follows none."""
        return bool(answer.strip()) and KINDS[self.kind].holds(answer[:LONGEST], *self.values)


@dataclasses.dataclass(frozen=True)
class Task:
    """What a question asks for. ``language`` is the one to write in."""

    topic: Topic
    rules: tuple[Rule, ...]

    @property
    def language(self) -> str:
        return next((r.values[0] for r in self.rules if r.kind == "language"), "English")


def rule_in(line: str) -> Rule | None:
    """The rule that a line states, or None."""
    for name, kind in KINDS.items():
        if match := kind.pattern.fullmatch(line.strip()):
            if name == "language" and match[1] not in LANGUAGES:
                return None
            return Rule(name, match.groups())
    return None


@functools.lru_cache(maxsize=512)
def read(question: str) -> Task | None:
    """The task that a question states; None if it is not of this family, or has a rule or topic that is not known."""
    match = _QUESTION.search(question)
    topic = topic_named(match["topic"]) if match else None
    if match is None or topic is None:
        return None
    lines = re.findall(r"^- (.+)$", question[match.end() :], re.MULTILINE)
    rules = [rule_in(line) for line in lines]
    return Task(topic, tuple(r for r in rules if r is not None)) if rules and None not in rules else None


# ------------------------------------------------------------------------------------------------------- writing


def write(task: Task, variant: int, slip: Callable[[int], int] = lambda step: 0) -> str:
    """An answer that follows all rules of the task.

    Args:
        variant: number of the sample; other variants are other texts.
        slip: step -> not 0 to leave that rule out, by its place.

    Raises:
        ValueError: no text that follows all rules was found.
    """
    wanted = dataclasses.replace(task, rules=tuple(r for i, r in enumerate(task.rules) if not slip(i)))
    for attempt in range(60):
        text = _draft(wanted, variant, attempt)
        if all(check(criterion, text) for _, criterion in criteria_of(wanted)):
            return text
    raise ValueError(f"no text found that follows {[r.text for r in wanted.rules]}")


FEELINGS = ("and familiar", "and friendly", "but also a little sad")


def _draft(task: Task, variant: int, attempt: int) -> str:
    value = {r.kind: r.values for r in task.rules}
    pool = _drawn(OTHERS[task.language] if task.language != "English" else ENGLISH, task, variant, attempt)
    name = task.topic.named(task.language)
    turn = variant + attempt
    count = 1 + turn % 2
    if "more_words" in value:
        count = max(count, -(-int(value["more_words"][0]) // 8) + attempt % 3)
    if "fewer_sentences" in value:
        count = min(count, int(value["fewer_sentences"][0]) - 1)
    if "bullets" in value:
        count = int(value["bullets"][0])
    if attempt > 30 and not value.keys() & {"more_words", "bullets"}:
        count = 1
    sentences = [_capital(s.format(topic=name)) for s in pool[: max(count, 1)]]
    if "keyword" in value:
        word, end = value["keyword"][0], FEELINGS[turn % len(FEELINGS)]
        subject = "It" if len(sentences) > 1 else _capital(name)
        sentences[-1] = f"{subject} feels {word} {end} to everyone here."
    if "first_word" in value:
        sentences[0] = f"{value['first_word'][0]} {sentences[0][0].lower()}{sentences[0][1:]}"
    if "json" in value:
        first, second = value["json"]
        return json.dumps({first: name, second: " ".join(sentences)}, ensure_ascii=False)
    text = "\n".join(f"- {s}" for s in sentences) if "bullets" in value else " ".join(sentences)
    return f"<<{_capital(task.topic.word(task.language))}>>\n{text}" if "title" in value else text


def _drawn(pool: Sequence[str], task: Task, variant: int, attempt: int) -> list[str]:
    """The sentences of a language in an order that depends on task, variant and attempt."""
    return sorted(
        pool, key=lambda s: uniform("sentence", task.topic.phrase, *(r.text for r in task.rules), variant, attempt, s)
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# ------------------------------------------------------------------------------------------------------ criteria

RULE = "Follows the rule: {}"
TOPIC = 'Is about its topic: it names "{}".'
FLUENT = "Reads as ordinary text: no word stands twice in a row, no three words come again, and no word is overused."
FINISHED = "Is a finished text and does not break off."
CONTENT = "Says something about its topic in at least {} words."


def _is_fluent(answer: str) -> bool:
    """Three words at least, none twice in a row or more often than every fifth, and no three words that come again."""
    found = [w.lower() for w in re.findall(r"[^\W\d_]+", answer)]
    if len(found) < 3 or any(a == b for a, b in itertools.pairwise(found)):
        return False
    threes = list(zip(found, found[1:], found[2:], strict=False))
    most = Counter(found).most_common(1)[0][1]
    return len(set(threes)) == len(threes) and most <= max(3, len(found) // 5)


def _is_finished(answer: str) -> bool:
    text = answer.strip()
    last = text.splitlines()[-1].strip() if text else ""
    return (
        last[-1:] in tuple('.!?"}»”)') or last.startswith(("- ", "* ")) or (last.endswith("*") and last.count("*") > 1)
    )


def _follows(answer: str, line: str) -> bool | None:
    rule = rule_in(line)
    return None if rule is None else rule.holds(answer)


def _names(answer: str, words: str) -> bool:
    return any(re.search(rf"\b{re.escape(w)}", answer, re.IGNORECASE) for w in words.split('" or "'))


_CHECKS: tuple[tuple[re.Pattern[str], Callable[..., bool | None]], ...] = tuple(
    (re.compile("(.+)".join(re.escape(part) for part in wording.split("{}")), re.DOTALL), decide)
    for wording, decide in (
        (RULE, _follows),
        (TOPIC, _names),
        (FLUENT, _is_fluent),
        (FINISHED, _is_finished),
        (CONTENT, lambda answer, n: len(_words(answer)) >= int(n) if n.isdigit() and len(n) < 5 else None),
    )
)


def check(criterion: str, answer: str) -> bool | None:
    """Whether the answer fulfils the criterion; None if the criterion is not one of this family's wordings."""
    for pattern, decide in _CHECKS:
        if match := pattern.fullmatch(criterion.strip()):
            held = decide(answer[:LONGEST], *match.groups())
            return held if held is None else held and bool(answer.strip())
    return None


# Kinds whose wording asks for two things: checks of which any holds where one of the two is done.
HALVES: dict[str, Callable[..., bool]] = {
    "first_word": lambda a, w: _first_word(a) == w.lower() or "\n\n" not in a.strip(),
    "bullets": lambda a, n: _bullets(a) > 0,
    "json": lambda a, x, y: _is_object(a) or (f'"{x}"' in a and f'"{y}"' in a),
}


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text.strip()), dict)
    except (ValueError, RecursionError):
        return False


def half_met(criterion: str, answer: str) -> bool:
    """Whether a criterion that asks for two things is met in one of them at least."""
    prefix = RULE.format("")
    rule = rule_in(criterion.strip().removeprefix(prefix)) if criterion.strip().startswith(prefix) else None
    return rule is not None and rule.kind in HALVES and HALVES[rule.kind](answer[:LONGEST], *rule.values)


def criteria_of(task: Task) -> list[tuple[str, str]]:
    """(category, criterion) of a task: each rule, then sense."""
    names = '" or "'.join(dict.fromkeys((task.topic.word(task.language), *task.topic.other_words(task.language))))
    return [
        *(("Rule", RULE.format(r.text)) for r in task.rules),
        ("Topic", TOPIC.format(names)),
        ("Sense", FLUENT),
        ("Sense", FINISHED),
        ("Sense", CONTENT.format(8)),
    ]


def points_of(held: Sequence[bool]) -> int:
    """Points of a criterion by how many students meet it: 4 if few do, 2 if many, 1 if all."""
    if held and all(held):
        return 1
    return 4 if 2 * sum(held) < len(held) else 2


def induce(task: Task, students: Sequence[str], most: int) -> list[dict]:
    """At most ``most`` criteria as rows (``criterion_id``, ``category``, ``criterion``, ``points``), rules first."""
    return [
        {
            "criterion_id": f"c{n}",
            "category": category,
            "criterion": text,
            "points": points_of([bool(check(text, s)) for s in students]),
        }
        for n, (category, text) in enumerate(criteria_of(task)[:most], 1)
    ]


def quality(task: Task, answer: str) -> float:
    """The quality of a whole answer, 0 to 1: the share of the task's criteria that it meets."""
    held = [bool(check(text, answer)) for _, text in criteria_of(task)]
    return sum(held) / len(held)
