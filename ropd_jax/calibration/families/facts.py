"""Factual short answers: the capital of a country, and its continent."""

from __future__ import annotations

import random

from ropd_jax.calibration.families.parts import Draft, Item, criteria

COUNTRIES = (  # (country, capital, continent, a larger or better known city); even rows for dev, odd rows for heldout
    ("Australia", "Canberra", "Oceania", "Sydney"),
    ("Brazil", "Brasilia", "South America", "Rio de Janeiro"),
    ("Canada", "Ottawa", "North America", "Toronto"),
    ("Morocco", "Rabat", "Africa", "Casablanca"),
    ("Switzerland", "Bern", "Europe", "Zurich"),
    ("Vietnam", "Hanoi", "Asia", "Ho Chi Minh City"),
    ("New Zealand", "Wellington", "Oceania", "Auckland"),
    ("Nigeria", "Abuja", "Africa", "Lagos"),
    ("Pakistan", "Islamabad", "Asia", "Karachi"),
    ("India", "New Delhi", "Asia", "Mumbai"),
    ("Ecuador", "Quito", "South America", "Guayaquil"),
    ("Poland", "Warsaw", "Europe", "Krakow"),
    ("Tunisia", "Tunis", "Africa", "Sfax"),
    ("Mongolia", "Ulaanbaatar", "Asia", "Erdenet"),
)
CONTINENTS = ("Africa", "Asia", "Europe", "North America", "Oceania", "South America")


def make(rng: random.Random, i: int) -> Item:
    """Question ``i`` of the family; even numbers and odd numbers have different countries."""
    country, capital, continent, decoy = COUNTRIES[i % len(COUNTRIES)]
    question = (
        f"What is the capital of {country}, and in which continent does {country} lie? Put the name of the capital in "
        'quotation marks, and do not use the word "located".'
    )
    rows = criteria(
        ("final_result", f"Names {capital} as the capital of {country}.", 5),
        ("intermediate_fact", f"States that {country} lies in {continent}.", 3),
        ("no_error", f"Makes a statement about {country}, and makes no false statement about it.", 3),
        ("constraint", 'Has some text and does not use the word "located".', 1),
        ("form", "Puts the name that it gives as the capital in quotation marks.", 1),
    )

    def write(kind: str, rng: random.Random) -> Draft:
        name = capital if kind.startswith("right") else decoy
        lost = kind == "right_wrong_steps" or (kind == "wrong" and rng.random() < 0.5)
        where = rng.choice([c for c in CONTINENTS if c != continent]) if lost else continent
        keeps, quotes = rng.random() < 0.55, rng.random() < 0.55
        sentences = (
            f"{country} {'lies' if keeps else 'is located'} in {where}.",
            f"The capital of {country} is {f'{chr(34)}{name}{chr(34)}' if quotes else name}.",
        )
        right = name == capital
        return Draft(sentences, (right, not lost, right and not lost, keeps, quotes), right and not lost, " ")

    return Item(question, rows, write, (False, False, False, True, False))
