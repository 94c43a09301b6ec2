"""The labelled set that ships with the package, made from a seed; every label follows from how its answer is built.

    python -m ropd_jax.calibration.generate          writes labels/dev.jsonl and labels/heldout.jsonl

Each part has 7 questions from each of 6 families and 7 answers to each question: two pairs that differ only in length
or in style, right results with wrong steps, wrong results with right steps, and one answer that is empty, off-topic or
hostile. The parts have different seeds and numbers and, if it matters, different facts.
"""

from __future__ import annotations

import json
import pathlib
import random
import sys

from ropd_jax.calibration.families import arithmetic, code_output, facts, instructions, tables, word_problems
from ropd_jax.calibration.families.parts import OFF_TOPIC, Draft, Item
from ropd_jax.teacher.labels import LabelledAnswer, LabelledQuestion
from ropd_jax.utils.files import write_atomic

LABELS = pathlib.Path(__file__).with_name("labels")
SEEDS = {"dev": 20_261, "heldout": 90_417}
FAMILIES = {
    "word_problems": word_problems.make,
    "arithmetic": arithmetic.make,
    "facts": facts.make,
    "instructions": instructions.make,
    "code_output": code_output.make,
    "tables": tables.make,
}
BY_PARITY = ("facts", "instructions")  # even questions go to dev, odd ones to heldout
QUESTIONS = 7  # questions per family
ODD = ("empty", "off_topic", "hostile", "hostile")  # the last answer of each question, in rotation
PLANS = (  # (kind of the first pair, how it differs, kind of the second pair, how it differs, two more kinds)
    ("right", "length", "wrong", "style", "wrong_right_steps", "right_wrong_steps"),
    ("right", "style", "wrong", "length", "right_wrong_steps", "wrong_right_steps"),
    ("wrong_right_steps", "length", "right", "style", "wrong", "right_wrong_steps"),
    ("right_wrong_steps", "style", "wrong", "length", "right", "right"),
)


def generate(part: str, seed: int | None = None) -> list[LabelledQuestion]:
    """The questions of a part, ``dev`` or ``heldout``, alternating between families.

    ``seed`` None means the part's own.
    """
    seed = SEEDS[part] if seed is None else seed
    questions = []
    for i in range(QUESTIONS):
        for f, (family, make) in enumerate(FAMILIES.items()):
            rng = random.Random(f"{seed}:{family}:{i}")
            item = make(rng, 2 * i + (part == "heldout") if family in BY_PARITY else i)
            answers = _answers(item, rng, i + f)
            questions.append(
                LabelledQuestion(f"{family}-{part}-{i + 1}", item.question, item.criteria, answers, family, part)
            )
    return questions


def _answers(item: Item, rng: random.Random, turn: int) -> tuple[LabelledAnswer, ...]:
    first, how, second, other_how, *more = PLANS[turn % len(PLANS)]
    written: list[tuple[str, Draft, int | None, str]] = []  # (kind, answer, index of its twin, how it differs)
    for kind, differs in ((first, how), (second, other_how)):
        draft = item.write(kind, rng)
        change = item.longer if differs == "length" else item.styled
        written += [(kind, draft, None, ""), (kind, change(draft, rng), len(written), differs)]
    written += [(kind, item.write(kind, rng), None, "") for kind in more]
    odd = ODD[turn % len(ODD)]
    if odd == "empty":
        draft = Draft(("",), (False,) * len(item.criteria), False)
    elif odd == "off_topic":
        draft = Draft((rng.choice(OFF_TOPIC),), item.without_content, False)
    else:
        draft = item.hostile(item.write("wrong", rng), rng)
    written.append((odd, draft, None, ""))
    order = rng.sample(range(len(written)), len(written))
    number = {index: n for n, index in enumerate(order, 1)}
    answers = [
        LabelledAnswer(
            f"a{number[index]}",
            draft.text,
            kind,
            draft.correct,
            draft.truth,
            *(("", "") if twin is None else (f"a{number[twin]}", differs)),
        )
        for index, (kind, draft, twin, differs) in enumerate(written)
    ]
    return tuple(sorted(answers, key=lambda a: a.id))


def as_jsonl(questions: list[LabelledQuestion]) -> str:
    """These questions as JSONL."""
    return "".join(json.dumps(q.as_row(), ensure_ascii=False) + "\n" for q in questions)


def main() -> None:
    """Writes both parts into the package and reports their size."""
    for part in SEEDS:
        questions = generate(part)
        write_atomic(LABELS / f"{part}.jsonl", as_jsonl(questions))
        n = sum(len(a.truth) for q in questions for a in q.answers)
        sys.stdout.write(f"{part}: {len(questions)} questions, {n} verdicts\n")


if __name__ == "__main__":
    main()
