"""Questions with two to four rules that can be checked, drawn from a seed: ``data.source="instructions"``.

    Write a short note about a lighthouse. Follow these rules:
    - Write fewer than 30 words.
    - Do not use commas.

Each item is graded by IFEval's own checks of the same rules (`data.ifeval`; Zhou et al. 2023, arXiv
2311.07911): right if all are followed. The scripted teacher reads the rules from the text
(`teacher.scripted.instructions`).

The *part* keeps training and held-out apart: of the topics every fourth, and of the combinations of kinds of rules
every fourth (by a hash), are held-out only. A held-out item has a held-out topic *and* a held-out combination, and no
training item has either.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ropd_jax.data import named
from ropd_jax.teacher.scripted.instructions import KINDS, LANGUAGES, OPENING, Rule
from ropd_jax.teacher.scripted.sentences import TOPICS, Topic
from ropd_jax.teacher.scripted.tasks import uniform
from ropd_jax.types import Message, Prompt, UserError

PARTS = ("train", "heldout")
TASK = named.IFEVAL  # the grader
FORMS = ("a short note", "a few lines", "a short description", "a message to a friend", "a small text")
KEYWORDS = ("quiet", "bright", "gentle", "busy", "warm", "strange", "simple", "peaceful", "lively", "cosy")
FIRST = ("Today", "Sometimes", "Often", "Usually", "Lately", "Somehow")
KEYS = (("title", "text"), ("topic", "note"), ("name", "description"), ("subject", "message"))


class _Way(NamedTuple):
    """How a kind of rule is drawn and graded.

    Attributes:
        aspects: no two rules of a question share one.
        draw: rng -> values.
        ifeval: values as texts -> (instruction, arguments).
    """

    aspects: str
    draw: Callable[[random.Random], tuple[Any, ...]]
    ifeval: Callable[..., tuple[str, dict[str, Any]]]


def _length(unit: str, relation: str) -> Callable[..., tuple[str, dict[str, Any]]]:
    return lambda n: (f"length_constraints:number_{unit}", {"relation": relation, f"num_{unit}": int(n)})


def _plain(name: str) -> Callable[..., tuple[str, dict[str, Any]]]:
    return lambda: (name, {})


def _none(rng: random.Random) -> tuple[Any, ...]:
    return ()


WAYS: dict[str, _Way] = {
    "fewer_words": _Way("length", lambda r: (r.choice((15, 20, 25, 30)),), _length("words", "less than")),
    "more_words": _Way("length sentences", lambda r: (r.choice((15, 20, 25)),), _length("words", "at least")),
    "fewer_sentences": _Way("sentences", lambda r: (r.choice((2, 3)),), _length("sentences", "less than")),
    "no_comma": _Way("comma", _none, _plain("punctuation:no_comma")),
    "first_word": _Way(
        "start layout english",
        lambda r: (r.choice(FIRST),),
        lambda w: (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": w.lower()},
        ),
    ),
    "title": _Way("start", _none, _plain("detectable_format:title")),
    "keyword": _Way(
        "keyword english", lambda r: (r.choice(KEYWORDS),), lambda w: ("keywords:existence", {"keywords": [w]})
    ),
    "bullets": _Way(
        "layout length sentences start",
        lambda r: (r.choice((2, 3, 4)),),
        lambda n: ("detectable_format:number_bullet_lists", {"num_bullets": int(n)}),
    ),
    "json": _Way(
        "layout sentences start comma",
        lambda r: r.choice(KEYS),
        lambda a, b: ("detectable_format:json_format", {}),
    ),
    "language": _Way(
        "english",
        lambda r: (r.choice(tuple(LANGUAGES)),),
        lambda name: ("language:response_language", {"language": LANGUAGES[name]}),
    ),
}


def items(part: str, size: int | None, seed: int) -> Iterator[Prompt]:
    """The ``size`` items of a part, item i drawn from seed + i.

    Raises:
        UserError: another part than train or heldout, no size, or a package that the grader needs is not installed.
    """
    named.check_name(TASK)
    if part not in PARTS:
        raise UserError(f"data.path={part!r}: data.source='instructions' has the parts {' and '.join(PARTS)}")
    if size is None or size < 1:
        raise UserError(f"instructions: size {size!r}; give how many items to draw, at least 1")
    topics = topics_of(part)
    return (_item(part, topics, seed + i, f"instructions-{part}-{seed}-{i}") for i in range(size))


def topics_of(part: str) -> list[Topic]:
    """The topics of a part."""
    return [t for i, t in enumerate(TOPICS) if (i % 4 == 3) == (part == "heldout")]


def is_heldout(kinds: Sequence[str]) -> bool:
    """Whether a combination of kinds of rules, in any order, is held-out."""
    return uniform("combination", *sorted(kinds)) < 0.25


def _item(part: str, topics: Sequence[Topic], seed: int, name: str) -> Prompt:
    rng = random.Random(f"{part} {seed}")
    kinds = _kinds(rng, heldout=part == "heldout")
    rules = [Rule(kind, tuple(str(v) for v in WAYS[kind].draw(rng))) for kind in kinds]
    opening = OPENING.format(form=rng.choice(FORMS), topic=rng.choice(topics).phrase)
    question = "\n".join((opening, *(f"- {r.text}" for r in rules)))
    instructions = [WAYS[r.kind].ifeval(*r.values) for r in rules]
    return Prompt(
        id=name,
        messages=(Message("user", question),),
        task=TASK,
        metadata={"instructions": instructions, "kinds": list(kinds)},
    )


def _kinds(rng: random.Random, *, heldout: bool) -> list[str]:
    """Two to four kinds of rules that go together, of a combination that is held-out or is not."""
    while True:
        count, chosen = rng.choice((2, 3, 3, 4)), list[str]()
        taken: set[str] = set()
        for kind in rng.sample(sorted(WAYS), len(WAYS)):
            aspects = set(WAYS[kind].aspects.split())
            if not aspects & taken and len(chosen) < count:
                chosen.append(kind)
                taken |= aspects
        if len(chosen) >= 2 and is_heldout(chosen) == heldout:
            return chosen


assert WAYS.keys() == KINDS.keys(), "a kind of rule without a way to draw it"
