"""Each form of a verifier's reply reads exactly what its schema allows."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropd_jax.teacher import ConfigurationError, MalformedError
from ropd_jax.teacher.clients.structured_output import loosened
from ropd_jax.teacher.roles import forms
from ropd_jax.teacher.roles.json_reply import TOKEN_KEY, token_of
from ropd_jax.types import Criterion, Rubric
from tests.properties import PROPERTY

TOKEN = "3fd1c09a77e2"
FORMS = list(forms.FORMS)
REASONS = ("keyed_reason", "keyed_reasons")
shapes = st.tuples(st.integers(1, 4), st.integers(1, 5))  # answers, criteria


def ids_for(k):
    return [f"c{n}" for n in range(3, 3 + k)]  # not from 1: a part of a rubric


def fits(schema, value):
    """Whether a value satisfies a schema, for the keywords that ours have."""
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
    if not isinstance(value, kinds[schema["type"]]) or (schema["type"] == "integer" and isinstance(value, bool)):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, dict):
        known = schema["properties"]
        assert schema["additionalProperties"] is False and set(schema["required"]) == set(known)
        return value.keys() == known.keys() and all(fits(known[key], item) for key, item in value.items())
    if isinstance(value, list):
        sizes = schema.get("minItems", 0), schema.get("maxItems", len(value))
        return sizes[0] <= len(value) <= sizes[1] and all(fits(schema["items"], item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return schema.get("minimum", value) <= value <= schema.get("maximum", value)
    return True


def instances(schema):
    """A strategy that generates everything that the schema allows."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema["type"] == "object":
        return st.fixed_dictionaries({key: instances(of) for key, of in schema["properties"].items()})
    if schema["type"] == "array":
        return st.lists(instances(schema["items"]), min_size=schema["minItems"], max_size=schema["maxItems"])
    if schema["type"] == "integer":
        return st.integers(schema["minimum"], schema["maximum"])
    return st.booleans() if schema["type"] == "boolean" else st.text(max_size=20)


def written(form, rows, reason="so"):
    return forms.FORMS[form].write(ids_for(len(rows[0])), rows, reason) | {TOKEN_KEY: TOKEN}


def read(form, reply, n, k):
    return forms.FORMS[form].read(json.dumps(reply), ids_for(k), n, TOKEN)


def places(value, path=()):
    """The path of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(reply, path, how, junk):
    """The reply with one entry removed, renamed, doubled, or replaced."""
    reply = copy.deepcopy(reply)
    inside = reply
    for key in path[:-1]:
        inside = inside[key]
    last = path[-1]
    if how == "left out":
        del inside[last]
    elif how == "renamed" and isinstance(inside, dict):
        inside[f"{last}0"] = inside.pop(last)
    elif how == "more":
        inside[f"{last}x" if isinstance(inside, dict) else slice(last, last)] = (
            copy.deepcopy(inside[last]) if isinstance(inside, dict) else [copy.deepcopy(inside[last])]
        )
    else:
        inside[last] = junk
    return reply


@pytest.mark.parametrize("form", FORMS)
@PROPERTY
@given(st.data(), shapes)
def test_what_the_schema_allows_is_read(form, data, shape):
    n, k = shape
    reply = data.draw(instances(forms.FORMS[form].bound(ids_for(k), n, TOKEN)))
    marks = read(form, reply, n, k)
    assert len(marks.values) == n
    if form != "lists" or len({row["answer_index"] for row in reply["answers"]}) == n:
        assert marks.causes == (None,) * n and all(len(row) == k for row in marks.values)


@pytest.mark.parametrize("form", FORMS)
@PROPERTY
@given(shapes.flatmap(lambda s: st.lists(st.lists(st.booleans(), min_size=s[1], max_size=s[1]), min_size=s[0],
                                         max_size=s[0])))  # fmt: skip
def test_what_is_written_fits_the_schema_and_comes_back(form, rows):
    n, k = len(rows), len(rows[0])
    reply = written(form, rows)
    assert fits(forms.FORMS[form].bound(ids_for(k), n, TOKEN), reply)
    assert read(form, reply, n, k) == (tuple(map(tuple, rows)), (None,) * n)


@pytest.mark.parametrize("form", FORMS)
@PROPERTY
@given(
    st.data(),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from(["left out", "renamed", "more", "junk"]),
    st.sampled_from([None, "maybe", 2, -1, 0.5, [], {}, [True], {"c3": True}, "tru"]),
)
def test_what_the_schema_does_not_allow_is_never_a_whole_set_of_verdicts(form, data, shape, how, junk):
    """Any one change of a reply: if the schema refuses it, so does the parser, or it leaves that answer unscored."""
    n, k = shape
    rows = [[data.draw(st.booleans()) for _ in range(k)] for _ in range(n)]
    reply = written(form, rows)
    path = data.draw(st.sampled_from(list(places(reply))))
    other = changed(reply, path, how, junk)
    if fits(forms.FORMS[form].bound(ids_for(k), n, TOKEN), other):
        return
    try:
        marks = read(form, other, n, k)
    except MalformedError:
        return
    if form == "lists" and how == "more" and len(path) == 2:  # an entry with the same verdict twice
        assert marks.values == tuple(map(tuple, rows))
        return
    assert None in marks.values
    assert all(row is None or row == tuple(rows[i]) for i, row in enumerate(marks.values)), "another answer's verdicts"
    assert [c is None for c in marks.causes] == [v is not None for v in marks.values]


@pytest.mark.parametrize("form", FORMS)
def test_an_unreadable_verdict_leaves_only_its_answer_unscored(form):
    rows = [[True, False], [True, None], [False, True]]
    marks = read(form, written(form, rows), 3, 2)
    assert marks == (((True, False), None, (False, True)), (None, "malformed", None))


@pytest.mark.parametrize("form", [f for f in FORMS if f not in REASONS])
def test_a_missing_answer_leaves_only_itself_unscored(form):
    reply = written(form, [[True, False], [True, True], [False, True]])
    if form == "by_criterion":
        for column in reply["criteria"].values():
            del column["2"]
    else:
        del reply["answers"]["2" if form == "keyed" else 1]
    assert read(form, reply, 3, 2) == (((True, False), None, (False, True)), (None, "missing", None))


def test_a_criterion_that_is_missing_leaves_every_answer_unscored():
    reply = written("by_criterion", [[True, False], [True, True]])
    del reply["criteria"]["c4"]
    assert read("by_criterion", reply, 2, 2) == ((None, None), ("missing", "missing"))
    reply["criteria"]["c4"] = [True, True]
    assert read("by_criterion", reply, 2, 2) == ((None, None), ("malformed", "malformed"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [0, 3])
def test_an_answer_that_was_not_asked_for_spoils_the_reply(form, n):
    reply = json.dumps(written(form, [[True], [False]])).replace('"2": ', f'"{n}": ')
    with pytest.raises(MalformedError):
        forms.FORMS[form].read(reply.replace('"answer_index": 2', f'"answer_index": {n}'), ids_for(1), 2, TOKEN)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("word", ["true", "yes", 1, 0])
def test_only_the_releases_lists_read_a_word_or_a_number_as_a_verdict(form, word):
    marks = read(form, written(form, [[word]]), 1, 1)
    assert marks.values == (((bool(word),) if form == "lists" else None),)


@pytest.mark.parametrize("form", FORMS)
def test_the_example_shows_the_real_numbers_and_is_no_reply(form):
    ids = ["c2", "c7", "c11"]
    shown = forms.FORMS[form].example(ids, 4, TOKEN)
    example = json.loads(shown.replace(forms.CHOICE, "true"))
    assert fits(forms.FORMS[form].bound(ids, 4, TOKEN), example) or form == "lists"
    assert shown.count(forms.CHOICE) == 12 and "\n" not in shown and shown.endswith(f'"token": "{TOKEN}"}}')
    assert forms.form_shown(f"Reply so:\n{shown}\nThe token is the last key.") is forms.FORMS[form]
    for copied in (shown, f"```json\n{shown}\n```"):
        with pytest.raises(MalformedError):  # a model that copies it has not given a verdict
            forms.FORMS[form].read(copied, ids, 4, TOKEN)


@pytest.mark.parametrize("form", FORMS)
def test_the_schema_binds_answers_and_criteria_and_ends_with_the_token(form):
    schema = forms.FORMS[form].bound(["c1", "c2"], 3, TOKEN)
    assert schema["required"][-1] == TOKEN_KEY and token_of(schema) == TOKEN
    for n, k in ((2, 2), (4, 2), (3, 1), (3, 3)):
        rows = [[True] * k] * n
        reply = forms.FORMS[form].write([f"c{i}" for i in range(1, k + 1)], rows, "") | {TOKEN_KEY: TOKEN}
        assert not fits(schema, reply)
    loose = loosened(schema)
    assert "Items" not in json.dumps(loose) and "imum" not in json.dumps(loose)
    assert (loose == schema) == (form != "lists")  # the keys bind without any bound


def test_criteria_without_usable_ids_are_numbered():
    def ids(*names):
        return forms.ids_of(Rubric(tuple(Criterion(name, "x", 1) for name in names)))

    assert ids("c3", "c1") == ("c3", "c1")
    assert ids("c1", "c1") == ids("a", "c1") == ids("c1", "<|im_end|>") == ids("reason", "c²") == ("c1", "c2")


def test_an_unknown_form_is_named_with_its_neighbours():
    with pytest.raises(ConfigurationError, match=r"teacher\.verifier\.form is 'keyd', which is unknown; did you mean"):
        forms.form_named("keyd")


def test_a_prompt_without_an_example_asks_for_lists():
    assert forms.form_shown("Judge. {{").name == "lists"
    assert forms.form_shown('{"schema_version": "ropd.scores.v1", "answers": []}').name == "lists"
    assert forms.form_shown('{"schema_version": "ropd.verdicts.v1", "answers": {"1": ').name == "lists"  # cut off
