"""Which object in a reply counts: the one with the request's token, or the one that is the whole reply."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropd_jax.teacher import MalformedError, parse_rubric, parse_verdicts
from ropd_jax.teacher.roles import rubricator, scorer, static_rubric, verifier
from ropd_jax.teacher.roles.json_reply import find_object, token_of, with_token
from ropd_jax.teacher.tape.store import body_key, request_body
from ropd_jax.types import Criterion, Rubric
from tests.properties import PROPERTY
from tests.teacher.helpers import content_of
from tests.teacher.roles.test_rubricator import rows, rubric_text
from tests.teacher.roles.test_verifier import rubric_of

TOKEN = "3fd1c09a77e2"
HOW = dict(model="m", temperature=0.0, max_output_tokens=100, seed=0)
RUBRIC = Rubric(tuple(Criterion(f"c{n}", f"States fact {n}.", p) for n, p in enumerate((5, 4, 2, 1), 1)))


def signed(text, token=TOKEN):
    """The reply with the token in each of its objects of the schema."""
    return text.replace('"rubrics":', f'"token": "{token}", "rubrics":')


def test_the_schema_demands_the_token_as_the_last_key_and_admits_no_other():
    schema = with_token(verifier.VERDICT_SCHEMA, TOKEN)
    assert list(schema["properties"]) == schema["required"] == ["schema_version", "answers", "token"]
    assert schema["properties"]["token"] == {"type": "string", "enum": [TOKEN]}
    assert token_of(schema) == TOKEN and token_of(verifier.VERDICT_SCHEMA) == token_of(None) == ""
    assert with_token(verifier.VERDICT_SCHEMA, "") == verifier.VERDICT_SCHEMA


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        (f'{{"a": 1, "token": "{TOKEN}"}}', 1),
        (f'It says {{"a": 2}}, so {{"a": 1, "token": "{TOKEN}"}}', 1),
        (f'{{"a": 1, "token": "{TOKEN}"}} It says {{"a": 2, "token": "000000000000"}}', 1),
        (f'{{"a": 1, "token": "{TOKEN}"}} {{"a": 1, "token": "{TOKEN}"}}', 1),
        (f'{{"a": 1, "token": "{TOKEN}"}} {{"a": 2, "token": "{TOKEN}"}}', "2 different JSON objects"),
        ('{"a": 1}', f'lacks the token of this request; expected "token": "{TOKEN}" as its last key'),
        ('{"a": 1, "token": "000000000000"}', "lacks the token"),
        (f'{{"a": 1, "token": ["{TOKEN}"]}}', "lacks the token"),
        (f'{{"a": 1, "token": "[[U+0000 {TOKEN}]]"}}', "lacks the token"),
        (f'{{"quote": {{"a": 2}}, "token": "{TOKEN}"}}', "no key 'a'"),
        (f'{{"a": 1, "a": 2, "token": "{TOKEN}"}}', "repeats a key: 'a'"),
        (f'{{"a": 2,}} {{"a": 1, "token": "{TOKEN}"}}', "with the key 'a' cannot be read"),
        (f'{{"a": 1, "token": "{TOKEN}"}} {{"b": 1, "a": [1', "with the key 'a' cannot be read"),
        (f'{{\'a\': 2}} {{"a": 1, "token": "{TOKEN}"}}', "with the key 'a' cannot be read"),
        (f'{{a: 2}} {{"a": 1, "token": "{TOKEN}"}}', "with the key 'a' cannot be read"),
        (f'{{\\"a\\": 2}} {{"a": 1, "token": "{TOKEN}"}}', "with the key 'a' cannot be read"),
        (f'Braces {{like these}} and [a: b] {{"a": 1, "token": "{TOKEN}"}} {{}}', 1),
        ("{ " * 1_001 + f'{{"a": 1, "token": "{TOKEN}"}}', 1),
        (r"\frac{1}{2} " * 5_000 + f'{{"a": 1, "token": "{TOKEN}"}}', 1),
    ],
)
def test_the_object_with_the_token_counts(reply, read):
    if isinstance(read, int):
        assert find_object(reply, "a", TOKEN) == {"a": read}
        return
    with pytest.raises(MalformedError, match=read.replace("[", r"\[")):
        find_object(reply, "a", TOKEN)


@pytest.mark.parametrize("row", rows("rubric"))
def test_a_rubric_vector_with_its_token_is_read_as_without(row):
    text = signed(row["text"])
    if row["expect"] == "reject":
        with pytest.raises(MalformedError):
            parse_rubric(text, token=TOKEN)
        return
    assert parse_rubric(text, token=TOKEN) == parse_rubric(row["text"])
    with pytest.raises(MalformedError, match="lacks the token"):
        parse_rubric(row["text"], token=TOKEN)


@pytest.mark.parametrize("row", rows("verdict"))
def test_a_verdict_vector_without_the_token_that_was_asked_for_is_refused(row):
    with pytest.raises(MalformedError):
        parse_verdicts(row["text"], rubric_of(row["weights"]), row["n_answers"], TOKEN)


def older(template):
    """The request from an earlier prompt, for which the test's keys were computed."""
    if template == "rubric_static.v2":
        return static_rubric.request("Q?", ["4", "4"], template=template, **HOW)
    if template == "rubricator_references.v2":
        return rubricator.rubric_request("Q?", ["4", "4"], [], template=template, **HOW)
    if template.startswith("rubricator.v3"):
        size = (2, 3) if template.endswith("sized") else (4, 12)
        return rubricator.rubric_request("Q?", ["4", "4"], ["5"], template="rubricator.v3", size=size, **HOW)
    if template.startswith("rubricator"):
        return rubricator.rubric_request("Q?", ["4"], ["5"], template=template, **HOW)
    if template.startswith("verifier"):
        authors = ("student", "teacher") if "labelled" in template else None
        return verifier.verify_request("Q?", RUBRIC, ["4", "5"], template=template, authors=authors, **HOW)
    shown = dict(references=["4"], rubric=RUBRIC, lowest=1, highest=10)
    return scorer.score_request("Q?", ["4", "5"], template=template, **shown, **HOW)


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("rubricator.v2", "1dfa064e2d4d7bdb"),
        ("rubricator.v3", "b09a6bba05ba3e68"), ("rubricator.v3 sized", "84e406cd0794c3a5"),
        ("rubricator_references.v2", "28c1af9667e0fe46"), ("rubric_static.v2", "292ef92d9042555a"),
        ("verifier.v1", "f475d5ea5b615d3f"), ("verifier.v2", "3d9be963322cc8b7"),
        ("verifier_labelled.v1", "26d1b2643c80831d"), ("verifier_labelled.v2", "b95835910375e8a9"),
        ("score_judge.v1", "2115b7ec779b4521"), ("score_judge.v2", "e53b3fbd80c57eb3"),
        ("score_judge_references.v1", "90a3820c070d3663"), ("score_judge_references.v2", "bfab3da0ff025405"),
        ("score_verbal.v1", "61c53acdf3ff2617"), ("score_verbal.v2", "17b9fc7ff4cb9d3b"),
        ("score_rubric.v1", "9c1e390ce6ed5e34"), ("score_rubric.v2", "2610b01e03349f33"),
    ],
)  # fmt: skip
def test_a_request_by_an_older_prompt_is_the_request_that_older_tapes_hold(template, key):
    """The keys were computed by the versions in which these prompts were the newest."""
    request = older(template)
    assert body_key(request_body("openai", request))[:16] == key
    has_token = template not in ("rubricator.v2",) and template[-2:] != "v1"
    assert bool(token_of(request.json_schema)) == has_token


@pytest.mark.parametrize("template", ["", "verifier.v1", "verifier_labelled.v1"])
def test_the_prompt_and_the_schema_ask_for_the_same_token(template):
    request = verifier.verify_request("Q?", RUBRIC, ["4"], template=template, **HOW)
    token = token_of(request.json_schema)
    assert bool(token) == (not template)
    assert f'"token": "{token}"}}' in content_of(request) or template


PIECES = st.sampled_from(
    ['{"a": 2}', '{"a": 2, "token": "000000000000"}', '"a"', ": ", "{", "}", "[", "]", '"', "'", "\\", ",", "```json\n",
     "```", "<think>", "</think>", "\ufeff", "\n", "a", "2", '"token": ', "token", "{}", "null", "[[U+0000 ", "]]", "é"]
)  # fmt: skip


@PROPERTY
@given(st.lists(PIECES, max_size=12), st.lists(PIECES, max_size=12))
def test_no_text_around_it_changes_what_is_read(before, after):
    """Pieces of JSON before and after the judge's own object: it is read, or the reply is malformed."""
    own = f'{{"a": 1, "token": "{TOKEN}"}}'
    for reply in ("".join(before) + own + "".join(after), "".join(before + after)):
        with contextlib.suppress(MalformedError):
            assert find_object(reply, "a", TOKEN) == {"a": 1} and own in reply


@PROPERTY
@given(st.lists(PIECES, max_size=16))
def test_without_a_token_only_a_whole_reply_is_read(pieces):
    text = "".join(pieces)
    try:
        read = find_object(text, "a", "")
    except MalformedError:
        return
    inner = text.strip().removeprefix("\ufeff").strip()
    if inner.lower().startswith("<think>"):
        inner = inner[inner.lower().rindex("</think>") + 8 :].strip()
    start, end = inner.index("{"), inner.rindex("}") + 1
    assert json.loads(inner[start:end])["a"] == read["a"]
    assert inner[:start].strip() in ("", "```", "```json", "```a", "```2", "```token", "```null")
    assert inner[end:].strip() in ("", "```")


def test_the_text_of_no_request_holds_no_quotation():
    text = rubric_text()
    assert parse_rubric(f"Here is the rubric: {text}") == parse_rubric(text) == parse_rubric(signed(text))
    with pytest.raises(MalformedError, match="not exactly one JSON object"):
        parse_rubric(f"Here is the rubric: {text}", token="")
