"""IFEval's instructions (Zhou et al. 2023, arXiv 2311.07911): 25 checks that need no judge.

An instruction is (id, arguments), such as ``("startend:end_checker", {"end_phrase": "Peace!"})``.
``follows`` checks the response itself (*strict*). ``follows_loosely`` accepts it if one of eight variants passes: the
whole, without its first line, without its last, without both; each with and without asterisks.
The checks do the same as the published ones, including their oddities (a highlighted ``**word**`` counts twice,
keywords are found inside words); the tests have examples of each. Two differences make them deterministic: langdetect
is seeded, and if the letter to count is not a letter (``#``, ``!``: keys 1122 and 1129), the sign itself is counted,
while the published checker draws a random letter.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ropd_jax.types import UserError
from ropd_jax.utils.suggest import near

Instruction = tuple[str, Mapping[str, Any]]


def follows(instructions: Sequence[Instruction], response: str) -> list[bool]:
    """For each instruction whether the response follows it; an empty response follows none.

    Raises:
        UserError: an instruction that is not among the 25, or has wrong arguments.
    """
    return [bool(response.strip()) and _check(name, kwargs, response) for name, kwargs in instructions]


def follows_loosely(instructions: Sequence[Instruction], response: str) -> list[bool]:
    """For each instruction whether any of the eight variants of the response follows it."""
    kept = [v for v in variants(response) if v.strip()]
    return [any(_check(name, kwargs, v) for v in kept) for name, kwargs in instructions]


def variants(response: str) -> list[str]:
    """The eight variants, the response itself first."""
    lines = response.split("\n")
    cuts = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cuts, *(cut.replace("*", "") for cut in cuts)]


def _check(name: str, kwargs: Mapping[str, Any], response: str) -> bool:
    if name not in CHECKS:
        raise UserError(f"IFEval instruction {name!r} is unknown; {near(name, CHECKS)}")
    try:
        return bool(CHECKS[name](response, **kwargs))
    except TypeError as error:
        raise UserError(f"IFEval instruction {name} with the arguments {dict(kwargs)}: {error}") from error


def _compare(count: int, relation: str, threshold: int) -> bool:
    if relation not in ("less than", "at least"):
        raise UserError(f"IFEval relation {relation!r} is unknown; expected 'less than' or 'at least'")
    return count < threshold if relation == "less than" else count >= threshold


# ------------------------------------------------------------------------------------------- words and languages


def _language(text: str) -> str | None:
    """The language that langdetect finds, seeded; None if the text has no words, such as digits only."""
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0
    try:
        return detect(text)
    except LangDetectException:
        return None


def _response_language(text: str, *, language: str) -> bool:
    return _language(text) in (language, None)


def _english_capital(text: str) -> bool:
    return text.isupper() and _language(text) in ("en", None)


def _english_lowercase(text: str) -> bool:
    return text.islower() and _language(text) in ("en", None)


def _sentences(text: str) -> list[str]:
    import punkt

    return punkt.sent_tokenize(text)


@functools.cache
def _word_tokenizer():
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()


def _capital_word_frequency(text: str, *, capital_relation: str, capital_frequency: int) -> bool:
    words = [word for sentence in _sentences(text) for word in _word_tokenizer().tokenize(sentence)]
    return _compare(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def _number_words(text: str, *, relation: str, num_words: int) -> bool:
    return _compare(len(re.findall(r"\w+", text)), relation, num_words)


def _number_sentences(text: str, *, relation: str, num_sentences: int) -> bool:
    return _compare(len(_sentences(text)), relation, num_sentences)


def _existence(text: str, *, keywords: Sequence[str]) -> bool:
    return all(re.search(re.escape(k), text, re.IGNORECASE) for k in keywords)


def _frequency(text: str, *, relation: str, keyword: str, frequency: int) -> bool:
    return _compare(len(re.findall(re.escape(keyword.strip()), text, re.IGNORECASE)), relation, frequency)


def _forbidden_words(text: str, *, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(w)}\b", text, re.IGNORECASE) for w in forbidden_words)


def _letter_frequency(text: str, *, let_relation: str, letter: str, let_frequency: int) -> bool:
    return _compare(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


# ------------------------------------------------------------------------------------------- paragraphs and parts


def _number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Parts between ``***``; an empty first or last one does not count, an empty one in between fails."""
    first, *rest = re.split(r"\s?\*\*\*\s?", text)
    parts = [first, *rest]
    if any(not part.strip() for part in parts[1:-1]):
        return False
    return sum(bool(part.strip()) for part in parts) == num_paragraphs


def _nth_paragraph_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Parts between blank lines; n includes the empty ones, the number of paragraphs does not."""
    parts = text.split("\n\n")
    filled = sum(bool(part.strip()) for part in parts)
    if filled != num_paragraphs or nth_paragraph > filled or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def _multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?", text)) >= num_sections


def _two_responses(text: str) -> bool:
    parts = text.split("******")
    if any(not part.strip() for part in parts[1:-1]):
        return False
    answers = [part.strip() for part in parts if part.strip()]
    return len(answers) == 2 and answers[0] != answers[1]


def _repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _postscript(text: str, *, postscript_marker: str) -> bool:
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    marker = postscript_marker.strip()
    return re.search(known.get(marker, re.escape(marker.lower())), text.lower()) is not None


# ------------------------------------------------------------------------------------------------------ formats


def _number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def _number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    """``*so*`` counts once, ``**so**`` too: its inner pair of asterisks is empty, or it counts as a double pair."""
    single = [h for h in re.findall(r"\*[^\n*]*\*", text) if h.strip("*").strip()]
    double = [h for h in re.findall(r"\*\*[^\n*]*\*\*", text) if h[2:-2].strip()]
    return len(single) + len(double) >= num_highlights


def _number_placeholders(text: str, *, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _title(text: str) -> bool:
    return any(t.lstrip("<").rstrip(">").strip() for t in re.findall(r"<<[^\n]+>>", text))


def _constrained_response(text: str) -> bool:
    return any(f"My answer is {word}." in text for word in ("yes", "no", "maybe"))


def _json_format(text: str) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _no_comma(text: str) -> bool:
    return "," not in text


def _end_checker(text: str, *, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


CHECKS: dict[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": _capital_word_frequency,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "combination:repeat_prompt": _repeat_prompt,
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": _number_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": _constrained_response,
    "detectable_format:json_format": _json_format,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:number_bullet_lists": _number_bullet_lists,
    "detectable_format:number_highlighted_sections": _number_highlighted_sections,
    "detectable_format:title": _title,
    "keywords:existence": _existence,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _response_language,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_words": _number_words,
    "punctuation:no_comma": _no_comma,
    "startend:end_checker": _end_checker,
    "startend:quotation": _quotation,
}
