"""Each of the 25 checks on a text that follows the instruction and one that does not; strict and loose readings."""

from __future__ import annotations

import random

import pytest

from ropd_jax.data.ifeval import CHECKS, follows, follows_loosely, variants
from ropd_jax.evaluation.answers import Answer
from ropd_jax.evaluation.benchmarks import benchmark_of
from ropd_jax.evaluation.grading import Outcome, grade_answers
from ropd_jax.types import Message, Prompt, UserError
from tests.helpers import local_rows

CASES = [
    ("change_case:capital_word_frequency", {"capital_relation": "at least", "capital_frequency": 2}, "A BC d", "A bc"),
    ("change_case:capital_word_frequency", {"capital_relation": "less than", "capital_frequency": 3}, "IT'S", "A B C"),
    ("change_case:english_capital", {}, "THIS IS A SENTENCE IN ENGLISH.", "This is a sentence in English."),
    ("change_case:english_capital", {}, "THE WEATHER IS FINE TODAY", "DAS IST EIN GANZ NORMALER SATZ AUF DEUTSCH"),
    ("change_case:english_lowercase", {}, "this is a sentence in english.", "This is a sentence in english."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, " say HI. Hi!", "Hi! Say hi."),
    ("combination:two_responses", {}, "one\n******\ntwo", "one ****** one"),
    ("combination:two_responses", {}, "******one******two******", "one******  ******two"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b c]", "[a] (b)"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye\nP. S. more", "Bye\nPS more"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "p.p.s. more", "P.S. more"),
    ("detectable_format:constrained_response", {}, "Hm. My answer is maybe.", "My answer is perhaps."),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{'a': 1}"),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2},
     "Section 1\na\nSection2 b", "Section 1\nsection 2"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b\n** c", "* a\n* b\n- c"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b c*", "*a* and * *"),
    ("detectable_format:title", {}, "<<The end>>\ntext", "<< >> text"),
    ("keywords:existence", {"keywords": ["Mother", "c++"]}, "motherboards in C++", "fathers in C++"),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "Rocket", "a ROCK."),
    ("keywords:frequency", {"relation": "at least", "keyword": "war", "frequency": 2}, "War and warm", "a war"),
    ("keywords:letter_frequency", {"let_relation": "less than", "letter": "E", "let_frequency": 2}, "eat", "Every"),
    ("keywords:letter_frequency", {"let_relation": "at least", "letter": "#", "let_frequency": 3}, "#a#b#c", "#a hhhh"),
    ("language:response_language", {"language": "fr"}, "Bonjour tout le monde.", "Good morning to you all."),
    ("language:response_language", {"language": "sw"}, "12345", "Good morning to everybody out there."),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
     'First.\n\n"Then, we', "First.\n\nThence we"),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "a"},
     "A\n\nb", "A\n\nb\n\nc"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***a\n***\nb***", "a\n\nb"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a***b", "a*** ***b"),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2}, "Dr. Smith came. He left.",
     "Dr. Smith came by car."),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 3}, "don't", "one two three"),
    ("punctuation:no_comma", {}, "one; two", "one, two"),
    ("startend:end_checker", {"end_phrase": "Peace!"}, 'So long. peace!"', "Peace! So long."),
    ("startend:quotation", {}, '"Yes."', '"Yes.'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kwargs", "good", "bad"), CASES)
def test_a_check_takes_what_follows_and_refuses_what_does_not(name, kwargs, good, bad):
    assert follows([(name, kwargs)], good) == [True]
    assert follows([(name, kwargs)], bad) == [False]


def test_every_check_has_a_case():
    assert {name for name, *_ in CASES} == set(CHECKS)
    assert len(CHECKS) == 25


def test_a_double_asterisk_counts_twice_as_in_the_published_checker():
    how = "detectable_format:number_highlighted_sections"
    assert follows([(how, {"num_highlights": 1})], "**a**") == [True]
    assert follows([(how, {"num_highlights": 2})], "**a**") == [False]
    assert follows([(how, {"num_highlights": 2})], "**a** *b*") == [True]


def test_loosely_any_of_the_eight_variants_will_do():
    wanted = [("startend:quotation", {}), ("punctuation:no_comma", {})]
    response = 'Sure, here it is:\n"**yes**"\nAnything else, sir?'
    assert follows(wanted, response) == [False, False]
    assert follows_loosely(wanted, response) == [True, True]
    assert len(variants(response)) == 8
    assert follows_loosely([("detectable_format:number_bullet_lists", {"num_bullets": 0})], "* a") == [True]


def test_an_empty_response_follows_nothing():
    wanted = [("punctuation:no_comma", {})]
    assert follows(wanted, " \n") == [False]
    assert follows_loosely(wanted, "one, two") == [False]
    assert follows_loosely(wanted, "***\n") == follows(wanted, "***") == [True]


def test_no_random_number_decides_anything():
    text = "bonjour und hello, ciao"
    wanted = [("language:response_language", {"language": "fr"})]
    wanted += [("keywords:letter_frequency", {"let_relation": "at least", "letter": "!", "let_frequency": 1})]
    seen = []
    for seed in range(5):
        random.seed(seed)
        seen.append(follows(wanted, text))
    assert all(s == seen[0] for s in seen)


def test_an_unknown_instruction_or_argument_is_said():
    with pytest.raises(UserError, match="did you mean punctuation:no_comma"):
        follows([("punctuation:no_commas", {})], "a")
    with pytest.raises(UserError, match="num_words"):
        follows([("length_constraints:number_words", {"relation": "at least"})], "a")


def test_all_834_published_instructions_can_be_checked():
    rows = local_rows("ifeval")
    checked = [
        v for r in rows for v in follows(list(zip(r["instruction_id_list"], r["kwargs"], strict=True)), "A text.")
    ]
    assert len(checked) == 834
    assert 0 < sum(checked) < 834


def graded(instructions, *texts):
    prompt = Prompt("p", (Message("user", "q"),), task="ifeval", metadata={"instructions": instructions})
    return grade_answers(benchmark_of("ifeval"), {"p": prompt}, [Answer("p", text) for text in texts])


def test_responses_are_graded_in_a_child_without_their_thoughts():
    pytest.importorskip("langdetect")
    rules = [
        ("punctuation:no_comma", {}),
        ("language:response_language", {"language": "en"}),
        ("change_case:capital_word_frequency", {"capital_relation": "at least", "capital_frequency": 1}),
    ]
    right, wrong, deep = graded(
        rules, "<think>a, b</think>THIS is an English sentence about nothing.", "no, nothing", "[" * 100_000
    )
    assert (right.value, right.parts["followed_strict"], right.parts["instructions"]) == (1.0, 3.0, 3.0)
    assert (wrong.value, wrong.cause) == (0.0, "not_followed")
    assert isinstance(deep, Outcome)


def test_a_row_with_unknown_instructions_is_a_mistake_of_the_data():
    pytest.importorskip("langdetect")
    with pytest.raises(UserError, match="did you mean punctuation:no_comma"):
        graded([("punctuation:no_coma", {})], "x")
