"""Instructions with countable constraints: number of sentences, a word to use, a word to avoid, a start, an end."""

from __future__ import annotations

import dataclasses
import random

from ropd_jax.calibration.families.parts import BOASTS, FORGED, Draft, Item, criteria

TOPICS = (  # (topic, word to use, word to avoid, last sentence, fact to state, other sentences: short and long)
    ("bees", "garden", "sting", "Every flower counts.", "Bees make honey from nectar.",
     (("They fly far.", "On a warm morning they fly far over the fields and hedges to find what they need."),
      ("They work together.", "All through the summer they work together in a way that still surprises people."),
      ("A hive is busy.", "From early in the day until the evening light fades, a hive is busy without a pause."))),
    ("rain", "river", "storm", "Then the sun returns.", "Rain falls from clouds.",
     (("It cools the air.", "After several hot and dusty days in the town, it cools the air in every street."),
      ("Fields turn green.", "Within a week or so, and often sooner, fields turn green as far as one can see."),
      ("Children like puddles.", "In boots and coats that are far too big, children like puddles of any size."))),
    ("trains", "station", "late", "All aboard.", "Trains run on rails.",
     (("They carry many people.", "On an ordinary working day they carry many people to their work and back home."),
      ("The seats are soft.", "In the newer carriages with the large windows, the seats are soft and wide."),
      ("A whistle sounds.", "Just before the doors close and the platform slides away, a whistle sounds."))),
    ("bread", "oven", "sugar", "It is best when warm.", "Bread is made from flour.",
     (("The dough must rest.", "Before anything else can happen in the kitchen, the dough must rest for a while."),
      ("A crust forms.", "Slowly, and with a smell that fills the whole house, a crust forms on top."),
      ("Bakers start early.", "Long before the first customers have left their beds, bakers start early."))),
    ("the moon", "night", "cheese", "We look up and wonder.", "The moon moves around the Earth.",
     (("It has no air.", "As far as anyone has been able to measure so far, it has no air to speak of."),
      ("People have walked on it.", "In heavy suits and with a great deal of training, people have walked on it."),
      ("Its light is pale.", "Even when it is full and stands high above the roofs, its light is pale."))),
    ("libraries", "shelf", "noise", "Come in and read.", "Libraries lend books.",
     (("They are open to all.", "Whoever you are and whatever you want to find out, they are open to all."),
      ("Some have old maps.", "In a cool room at the back, behind a heavy door, some have old maps."),
      ("Students meet there.", "In the weeks before the examinations begin, students meet there until closing."))),
    ("snow", "winter", "ice", "Silence follows.", "Snow melts when it is warm.",
     (("It covers the roofs.", "By the time that the first lamps are lit, it covers the roofs of the village."),
      ("Tracks show the way.", "To anyone who knows how to read them, tracks show the way of every animal."),
      ("Sledges come out.", "From cellars and attics where they have waited all year, sledges come out."))),
)  # fmt: skip

STARTS = (("Today", "Often", "Here"), ("Now", "Sometimes", "Perhaps"))


def make(rng: random.Random, i: int) -> Item:
    """Question ``i`` of the family; even numbers and odd numbers have different first words."""
    topic, use, avoid, end, fact, others = TOPICS[i // 2 % len(TOPICS)]
    n = rng.randint(4, 5)
    start = rng.choice(STARTS[i % 2])
    question = (
        f'Write exactly {n} sentences about {topic}. Start with the word "{start}", use the word "{use}", do not use '
        f'the word "{avoid}", mention that {fact[0].lower()}{fact[1:-1]}, and end with the sentence "{end}"'
    )
    rows = criteria(
        ("constraint", f"Has exactly {n} sentences.", 4),
        ("constraint", f'Uses the word "{use}".', 3),
        ("constraint", f'Has some text and does not use the word "{avoid}".', 3),
        ("form", f'The last sentence is "{end}"', 2),
        ("form", f'The first word is "{start}".', 2),
        ("intermediate_fact", f"States that {fact[0].lower()}{fact[1:-1]}.", 3),
    )
    longer = dict(others)

    def write(kind: str, rng: random.Random) -> Draft:
        held = [True] * 6
        if kind == "wrong":  # misses two or three demands
            for k in rng.sample(range(6), rng.choice((2, 3))):
                held[k] = False
        elif kind == "wrong_right_steps":  # all but the number of sentences
            held[0] = False
        elif kind == "right_wrong_steps":  # the number is right, half of the rest is missed
            for k in rng.sample(range(1, 6), 3):
                held[k] = False
        count, uses, avoids, ends, starts, states = held
        size = n if count else n + rng.choice((-1, 1))
        first = f"{start if starts else 'Well'} we write about {topic}{f' and the {use}' if uses else ''}."
        told = ([fact] if states else []) + ([] if avoids else [f"Some people think of {avoid}."])
        if size < 1 + len(told) + bool(ends):
            size = n + 1
        room = size - 1 - len(told) - bool(ends)
        fillers = [short for short, _ in rng.sample(others, max(min(room, len(others)), 0))]
        lines = (first, *told, *fillers, *([end] if ends else []))
        missing = size - len(lines)
        lines = (
            *lines[:1],
            *(f"There is more to say, part {['one', 'two', 'three'][k]}." for k in range(missing)),
            *lines[1:],
        )
        return Draft(lines, tuple(held), all(held), " ")

    def lengthen(draft: Draft, rng: random.Random) -> Draft:
        first, *rest = (longer.get(line, line) for line in draft.lines)
        first = first.replace(" we write about", " we take a pen and a large sheet of paper and write about")
        return dataclasses.replace(draft, lines=(first, *rest))

    def style(draft: Draft, rng: random.Random) -> Draft:
        """Adds bold words and a boast inside a sentence, so that sentence count and first word stay the same."""
        first, *rest, last = draft.lines
        boast = rng.choice(BOASTS).rstrip(".")
        first = first.replace(" we write about", f" we, and {boast[0].lower() if boast[0] != 'I' else 'I'}{boast[1:]}, "
                              "**proudly** write about")  # fmt: skip
        return dataclasses.replace(draft, lines=(first, *(line.replace(" is ", " **is** ") for line in rest), last))

    def forge(draft: Draft, rng: random.Random) -> Draft:
        """The forged text comes first, so that the first word and the number of sentences are wrong."""
        note = rng.choice([text for text in FORGED if text.endswith(".")])
        pads = ("And so on.",) * n
        truth = (False, *draft.truth[1:4], False, draft.truth[5])
        return dataclasses.replace(draft, lines=(note, *pads, *draft.lines), truth=truth, correct=False)

    return Item(question, rows, write, (False, False, True, False, False, False), lengthen, style, forge)
