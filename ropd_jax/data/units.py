"""Units: which words after a number are a unit, and which units are the same, however they are spelled.

A unit is any words that are not in `NO_UNIT`: "5 red apples" is 5 with the unit "red apples".
"""

from __future__ import annotations

import re

SCALES = {"hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
TOUCHING = frozenset((  # can touch its number: "5cm" is 5, "5x" and "5k" are not read
    "m", "g", "s", "h", "l", "L", "V", "A", "W", "N", "J", "K", "C", "F", "Hz", "kHz", "MHz", "GHz", "mm", "cm",
    "dm", "km", "nm", "um", "kg", "mg", "min", "sec", "hr", "hrs", "ml", "mL", "dl", "cl", "lb", "lbs", "oz",
    "ft", "in", "yd", "mi", "mph", "kph", "kW", "MW", "kWh", "Pa", "kPa", "MPa", "kJ", "eV", "keV", "MeV",
    "mol", "mmol", "mM", "rad", "deg", "cents", "am", "pm", "AM", "PM", "usd", "USD", "px", "GB", "MB", "KB",
    "TB",
))  # fmt: skip
SINGLE = frozenset((  # single letters that are units; any other is a variable
    "m", "g", "s", "h", "l", "L", "V", "A", "W", "N", "J", "K", "C", "F", "M", "T",
))  # fmt: skip
NO_UNIT = frozenset((  # continues a calculation, adds another value, or begins an explanation
    "or", "and", "plus", "minus", "times", "over", "to", "vs", "versus", "than", "half", "halves", "third",
    "thirds", "quarter", "quarters", "fourth", "fourths", "fifth", "fifths", "sixth", "sixths", "tenth",
    "tenths", "squared", "cubed", "factorial", "point", "through", "divided", "multiplied", "by", "choose",
    "mod", "modulo", "base", "remainder", "rem", "r", "R", "x", "y", "z", "pi", "e", "i", "sqrt", "root",
    "radical", "log", "ln", "sin", "cos", "tan", "power", "raised", "unless", "if", "except", "either",
    "neither", "maybe", "possibly", "perhaps", "probably", "could", "might", "may", "not", "but", "however",
    "is", "are", "was", "were", "equals", "one", "two", "three", "four", "five", "six", "seven", "eight",
    "nine", "ten", "eleven", "twelve", "twenty", "thirty", "forty", "fifty", "hundred", "thousand", "million",
    "billion", "trillion", "dozen", "because", "since", "as", "so", "which", "where", "given", "from", "due",
    "therefore", "thus", "hence", "when", "after",
))  # fmt: skip

_SPELLED = {
    "meter": "m", "metre": "m", "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "millimetre": "mm",
    "kilometer": "km", "kilometre": "km", "nanometer": "nm", "nanometre": "nm", "gram": "g", "kilogram": "kg",
    "milligram": "mg", "second": "s", "sec": "s", "minute": "min", "hour": "h", "hr": "h", "liter": "L", "litre": "L",
    "l": "L", "milliliter": "mL", "millilitre": "mL", "ml": "mL", "joule": "J", "watt": "W", "volt": "V",
    "ampere": "A", "amp": "A", "newton": "N", "kelvin": "K", "pascal": "Pa", "hertz": "Hz", "mole": "mol",
    "degree": "degrees", "deg": "degrees", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "pound": "lb",
    "percent": "%", "dollar": "dollars", "usd": "dollars", "cent": "cents", "micrometer": "\u00b5m", "um": "\u00b5m",
}  # fmt: skip


_MEASURED = re.compile(r"\s+(?:long|wide|tall|high|deep|old|away|each|left|total|in total)$")


def same_unit(a: str, b: str) -> bool:
    """The same unit, however it is spelled: ``nm`` and ``nanometers``."""
    return _unit_key(a) == _unit_key(b)


def _unit_key(unit: str) -> str:
    if unit.startswith("%"):  # "50 % of the cake"
        return "%"
    unit = _MEASURED.sub("", unit)
    unit = unit.replace("\u03bc", "\u00b5").replace("{", "").replace("}", "").rstrip(".")
    words = re.split(r"([ /*^]|\d+)", unit)
    return "".join(_one_unit(w) for w in words if w.strip() and w != "^")


def _one_unit(word: str) -> str:
    if word in SINGLE or len(word) <= 2:
        return _SPELLED.get(word, word)
    low = word.lower()
    singular = low[:-1] if low.endswith("s") and len(low) > 3 else low
    return _SPELLED.get(low, _SPELLED.get(singular, singular))
