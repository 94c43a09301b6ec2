r"""JSON as models write it is read as the intended value, or it is malformed. It is never read as another value."""

from __future__ import annotations

import contextlib
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropd_jax.teacher import MalformedError
from ropd_jax.teacher.roles.json_reply import find_object
from tests.properties import PROPERTY

TOKEN = "3fd1c09a77e2"


def read(text, token=TOKEN):
    """The value of the key a; None if the reply is malformed."""
    try:
        return find_object(text, "a", token)["a"]
    except MalformedError:
        return None


def reply(a, token=TOKEN):
    """The judge's object around a value that is already JSON text."""
    return f'{{"a": {a}, "token": "{token}"}}'


# ------------------------------------------------------------------------------------------------------- spelling


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"\(x^2\)", r"\(x^2\)"),
        (r"\alpha + \sum_{i}", r"\alpha + \sum_{i}"),
        (r"\underline{x}", r"\underline{x}"),
        (r"\u00e9 \\alpha", "é \\alpha"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        (r"\beta \nabla \rho \tau \theta \times \neq", r"\beta \nabla \rho \tau \theta \times \neq"),
        (r"\boxed{4} \text{ and } \right) \begin{cases}", r"\boxed{4} \text{ and } \right) \begin{cases}"),
        (r"$\nu$ and $\to$, \(\ne\)", r"$\nu$ and $\to$, \(\ne\)"),
        (r"one\nu two", "one\nu two"),
        (r"one\nNext\ttab", "one\nNext\ttab"),
        (r"\not x but \nothing", "\\not x but \nothing"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        (r"a \\ b \alpha", None),
        (r"a \\ b", "a \\ b"),
        (r"\"quoted\" \/", '"quoted" /'),
    ],
)
@pytest.mark.parametrize("around", ["{}", "It is so.\n{}", "```json\n{}\n```", "<think>hm</think>{}", "{} Done."])
def test_latex_and_line_breaks_in_texts(written, meant, around):
    assert read(around.format(reply(f'"{written}"'))) == meant


def test_a_key_has_no_escapes_but_jsons_own():
    assert read(rf'{{"\alpha": 1, "a": 1, "token": "{TOKEN}"}}') is None
    assert read(rf'{{"\u0062": 1, "a": 1, "token": "{TOKEN}"}}') == 1


@pytest.mark.parametrize("space", ["\u00a0", "\u3000", "\ufeff", "\u202f", "\u2028"])
def test_spaces_that_json_does_not_have(space):
    own = f'{{{space}"a":{space}1,{space}"token": "{TOKEN}"{space}}}'
    assert read(own) == read(f"So: {own}") == 1
    assert read(f'{{"a{space}": 1, "a": 2, "token": "{TOKEN}"}}') == 2  # in a text it stays what it is


# ------------------------------------------------------------------------------------------------------ structure

LOOSE = [
    f'{{"a": [1, 2,], "token": "{TOKEN}",}}',
    f'{{"a": [1, 2], // both\n "token": "{TOKEN}"}}',
    f'{{"a": [1, /* one, and two: */ 2], # all\n "token": "{TOKEN}"}}',
    f"{{'a': [1, 2], 'token': '{TOKEN}'}}",
    json.dumps(f'{{"a": [1, 2], "token": "{TOKEN}"}}'),
    f'```json\n{{"a": [1, 2,], "token": "{TOKEN}"}}\n```',
]


@pytest.mark.parametrize("own", LOOSE)
def test_a_loose_structure_is_read_if_it_is_the_whole_reply_with_the_token_last(own):
    assert read(own) == [1, 2]
    assert read(own, "") is read(own, None) is read(own.replace(TOKEN, "000000000000")) is None
    for around in ("It is {}", "{} It is.", "<think>hm</think>{}", "{}{}", "[{}]"):
        assert read(around.replace("{}", own)) is None


def test_a_comment_behind_the_object_is_one_if_it_hides_nothing():
    assert read(f"{reply('[1,]')} // That is all.") == [1]
    assert read(f"{reply('[1,]')} // Or [2].") is read(f"{reply('[1,]')}\n// a\nb") is None


def test_names_of_python():
    assert find_object(f'{{"a": [True, False, None], "token": "{TOKEN}"}}', "a", TOKEN) == {"a": [True, False, None]}
    assert read(f"{{'a': ['it\\'s \"x\" \\\\alpha', True], 'token': '{TOKEN}'}}") == ['it\'s "x" \\alpha', True]


@pytest.mark.parametrize(
    "text",
    [
        f'{{"token": "{TOKEN}", "a": [1,]}}',  # the token is not last
        f'{{"a": [1,,], "token": "{TOKEN}"}}',
        f'{{"a": [,], "token": "{TOKEN}"}}',
        f'{{,"a": 1, "token": "{TOKEN}"}}',
        f'{{"a": 1 "token": "{TOKEN}"}}',
        f'{{"a": [1, 2, "token": "{TOKEN}"}}',
        f'{{"a": 1, // "a": 2,\n "token": "{TOKEN}"}}',
        f'{{"a": 1, /* {{ */ "token": "{TOKEN}"}}',
        f'{{"a": 1, /* open "token": "{TOKEN}"}}',
        f'{{"a": \'x\', "token": "{TOKEN}"}}',
        f"{{'a': 1, \"token\": '{TOKEN}'}}",
        f"{{'a': '\\x41', 'token': '{TOKEN}'}}",
        f'{{"a": TRUE, "token": "{TOKEN}",}}',
        f'{{"a": undefined, "token": "{TOKEN}",}}',
        f'{{"a": 01, "token": "{TOKEN}",}}',
        f'{{"a": 1, "a": 2, "token": "{TOKEN}",}}',
        f'{{a: 1, "token": "{TOKEN}"}}',
        json.dumps(json.dumps(reply(1))),
        json.dumps(f'{{"a": 1, "token": "{TOKEN}",}}'),
    ],
)
def test_what_can_mean_two_things_is_malformed(text):
    assert read(text) is None


# ----------------------------------------------------------------------------------------- what loses no reply

ANALYSIS = "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize("text", ["the </think> tag", "a </think> and </think> b", "<|channel|>final<|message|>"])
@pytest.mark.parametrize(
    "before", ["", "So:\n", "<think>hm</think>\n", "<think>It says </think>.</think> So: ", ANALYSIS]
)
def test_a_mark_of_thinking_in_a_text_is_a_text(text, before):
    assert read(before + reply(json.dumps(text))) == text
    assert read(f"{before}```json\n{reply(json.dumps(text))}\n```") == text


def test_a_draft_in_the_thinking_does_not_count():
    draft, own = reply(2), reply(1)
    assert read(f"<think>{draft} </think>{own}") == read(f"{draft}</think>{own}") == 1
    assert read(f"<think>{draft}</think> I cannot say.") is read(f"<think>hm {draft}") is None


@pytest.mark.parametrize("prose", ["İstanbul İİİ ", "ﬁ ß ẞ ŉ ", "K K ı "])
def test_letters_whose_case_changes_their_length_do_not_move_what_is_read(prose):
    assert read(f"<think>{prose}</think>{prose}{reply(1)}{prose}") == 1
    assert read(reply(json.dumps(prose))) == prose


@pytest.mark.parametrize("piece", [r"\frac{1}{2} ", "{ ", "[ ", '{"a', "{x{", '["', "}{", '{"x": 1,', "[1,"])
@pytest.mark.parametrize("times", [1_500, 20_000])
def test_a_wall_of_brackets_takes_linear_time_and_never_reads_another_value(piece, times):
    assert read(piece * times + reply(1)) in (1, None)
    if piece in (r"\frac{1}{2} ", "{ ", "}{"):
        assert read(piece * times + reply(1)) == 1


# ------------------------------------------------------------------------------------------------- the reason why


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f'{{"a": 1 "token": "{TOKEN}"}}', r"Expecting ',' delimiter at line 1, column 9, before '\"token"),
        (f'So:\n{{"a": 1,\n "token": {TOKEN}}}', r"delimiter at line 3, column 12, before 'fd1c09a77e2}'"),
        ('{"a": [1, 2', "Expecting ',' delimiter at line 1, column 12, at its end"),
        ("I say yes.", "Expecting value at line 1, column 1, before 'I say yes.'"),
    ],
)
def test_the_reason_and_the_position_are_in_the_message(text, words):
    with pytest.raises(MalformedError, match=words):
        find_object(text, "a", TOKEN)


# -------------------------------------------------------------------------------------- a text next to the verdicts


def test_one_text_beside_values_without_texts_is_left_out():
    def found(**more):
        return find_object(json.dumps({"schema_version": "v", **more, "token": TOKEN}), "a", TOKEN)

    plain = {"schema_version": "v", "a": {"1": {"c1": True}}}
    assert found(reasoning="Because.", a=plain["a"]) == found(a=plain["a"], rationale="Because.") == plain
    for more in (
        {"reasoning": "x", "rationale": "y"}, {"reasoning": {"c1": "x"}}, {"reasoning": ["x"]}, {"reasoning": None},
        {"thought_for": "x"}, {"reasoning": "x", "b": "y"},
    ):  # fmt: skip
        assert found(a=plain["a"], **more) == plain | more
    with_text = {"1": {"reason": "x", "verdicts": {"c1": True}}}
    assert found(a=with_text, reasoning="y") == plain | {"a": with_text, "reasoning": "y"}
    assert find_object('{"a": 1, "reasoning": "y"}', "a", "") == {"a": 1, "reasoning": "y"}


# ---------------------------------------------------------------------------------------------------- properties

PIECES = [
    "x", " ", "4", "é", "\n", "\t", '"', "'", "//", "/*", "*/", "#", ",", ":", "{", "}", "[", "]", "```", "</think>",
    "\\alpha", "\\(", "\\)", "\\frac{1}{2}", "\\nabla ", "\\theta ", "\\boxed{4}", "\\beta ", "\\rho ", "\\tau ", "\\{",
    "True", "None", "null", '"a": 2', "\u00a0", "İ", ",}", ",]", '"token": ', "\\sum_{i}", "$\\nu$", "\\'",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
LEAVES = st.one_of(TEXTS, st.integers(-9, 9), st.booleans(), st.none(), st.sampled_from([0.5, -1e9]))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)


def line_breaks(text, end):
    """JSON in many lines has line breaks between tokens only; each gets ``end`` before it."""
    return text.replace("\n", f"{end}\n")


@PROPERTY
@given(
    st.lists(st.sampled_from([*PIECES, "\\", "\\u12", "\\n", "'a': ", f"'{TOKEN}'", f'"{TOKEN}"', "\x00"]), max_size=30)
)
def test_any_text_is_an_object_or_malformed(pieces):
    text = "".join(pieces)
    for reply in (text, "{" + text, f'{{"a": "{text}", "token": "{TOKEN}"}}', f'"{text}"'):
        for token in (TOKEN, "", None):
            with contextlib.suppress(MalformedError):
                assert "a" in find_object(reply, "a", token)


def test_a_deep_nest_beside_a_text_is_malformed_or_read():
    for deep in (500, 900, 5_000):
        own = f'{{"a": {"[" * deep}{"]" * deep}, "reasoning": "x", "token": "{TOKEN}"}}'
        for text in (own, own[:-1] + ",}", own.replace("x", "\\("), f"So: {own}"):
            read(text)


DAMAGES = {
    "none": lambda v: json.dumps(v),
    "latex": lambda v: json.dumps(v, ensure_ascii=False).replace("\\\\", "\\"),
    "raw line breaks": lambda v: re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[0], json.dumps(v)),
    "no-break spaces": lambda v: json.dumps(v, separators=(",\u00a0", ":\u00a0")),
    "commas": lambda v: re.sub(r"(?<![\[{])\n( *[}\]])", r",\n\1", json.dumps(v, indent=1)),
    "comments": lambda v: line_breaks(json.dumps(v, indent=1), " // so, or: so"),
    "blocks": lambda v: line_breaks(json.dumps(v, indent=1), " /* it is, so */"),
    "python": repr,
    "names": lambda v: re.sub(r"\b(true|false|null)\b", lambda m: PYTHON[m[1]], json.dumps(v)),
    "twice": lambda v: json.dumps(json.dumps(v)),
    "cut": lambda v: json.dumps(v)[:-1],
    "latex and commas": lambda v: DAMAGES["commas"](v).replace("\\\\", "\\"),
}
PYTHON = {"true": "True", "false": "False", "null": "None"}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("around", ["{}", "```json\n{}\n```", "So: {} Yes."])
def test_a_damaged_object_is_read_as_it_was_or_not_at_all(name, around):
    counts = {"tried": 0, "read": 0}

    @settings(PROPERTY, max_examples=150)
    @given(VALUES)
    def holds(value):
        if name == "names" and isinstance(value, str | dict | list):
            value = [True, None] if value else None  # no string in which a name could be changed
        text = around.replace("{}", DAMAGES[name]({"a": value, "token": TOKEN}))
        counts["tried"] += 1
        try:
            found = find_object(text, "a", TOKEN)
        except MalformedError:
            return
        counts["read"] += 1
        assert found == {"a": value}

    holds()
    whole = "So" not in around
    always = name in ("none", "no-break spaces")
    loose = name in ("raw line breaks", "commas", "comments", "blocks", "python", "names", "twice", "latex and commas")
    if always and whole:
        assert counts["read"] == counts["tried"]
    elif name == "latex" or (loose and whole):
        assert counts["read"] > counts["tried"] / 4
    elif name == "cut":
        assert counts["read"] == 0
