"""The forms of a verifier's reply: the schema, the example in the prompt and the parser of each.

For two answers and the criteria c1 and c2 (T is the token of the request)::

    lists           {"schema_version": "ropd.batch_verifier.v2", "answers": [
                        {"answer_index": 1, "judgement": [true, false]}, {"answer_index": 2, ...}], "token": T}
    keyed           {"schema_version": "ropd.verdicts.v1", "answers": {
                        "1": {"c1": true, "c2": false}, "2": {...}}, "token": T}
    keyed_reason        "1": {"reason": "...", "verdicts": {"c1": true, "c2": false}}
    keyed_reasons       "1": {"c1": {"reason": "...", "met": true}, "c2": {...}}
    by_criterion    {"schema_version": "ropd.verdicts.v1", "criteria": {
                        "c1": {"1": true, "2": false}, "c2": {...}}, "token": T}

``lists`` is the official release's format. The other forms bind each verdict to its answer and its criterion by keys,
so a model cannot lose count. Their schemas require every key and allow no others; the schema of ``lists`` fixes the
lengths. So a server that enforces schemas returns exactly N answers with exactly K verdicts each.

Without such a server, the parser decides. A verdict is ``true`` or ``false``. If an answer's entry does not fit the
schema, only this answer is unscored. An unexpected answer or criterion invalidates the whole reply, because then no key
can be trusted.

In the two forms with reasons, every wrong or missing key invalidates the reply; a wrong value leaves only its answer
unscored. The reason: a text can quote an answer, and if the model forgets the escapes, the quoted text can close the
entry and add its own verdicts. The model's own keys then repeat existing ones, and a repeated key also invalidates the
reply (`json_reply`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ropd_jax.teacher.clients.errors import ConfigurationError, MalformedError
from ropd_jax.teacher.roles.json_reply import TOKEN_KEY, closed, find_object, list_schema, only_keys, with_token
from ropd_jax.teacher.roles.marks import Marks, marks_of
from ropd_jax.types import Rubric
from ropd_jax.utils.suggest import near

DEFAULT = "keyed"
LISTS_VERSION = "ropd.batch_verifier.v2"
VERSION = "ropd.verdicts.v1"
CHOICE = "true/false"  # a verdict in an example; not valid JSON
WHY = "what decides, in a few words"  # a reason in an example

Row = tuple[bool, ...]
Cell = Mapping[str, Any]  # a JSON schema

_BOOLEAN: dict[str, Any] = {"type": "boolean"}
_REASON: dict[str, Any] = {"type": "string"}
_TRUE = {"true", "yes", "on", "1", "t", "y"}
_FALSE = {"false", "no", "off", "0", "f", "n"}
_ABSENT = object()
_ID = re.compile(r"c[0-9]{1,6}", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Form:
    """One form of the reply, for N answers numbered from 1 and K criterion ids.

    Attributes:
        name: its name in the config.
        schema: (ids, N) -> the JSON schema of the object, without its token.
        write: (ids, rows, reason) -> the object, without its token; ``rows`` has K verdicts for each answer. A verdict
            can be None, which no parser accepts.
        read: (reply, ids, N, token) -> a row of K verdicts for each answer, or None and the cause. Raises
            ``MalformedError`` if the whole reply is unusable.
    """

    name: str
    schema: Callable[[Sequence[str], int], dict]
    write: Callable[[Sequence[str], Sequence[Sequence[bool | None]], str], dict]
    read: Callable[[str, Sequence[str], int, str], Marks]

    def example(self, ids: Sequence[str], n: int, token: str) -> str:
        """The reply on one line, as shown in the prompt, with `CHOICE` instead of each verdict.

        So it does not suggest a verdict, and a model that copies it does not give one.
        """
        reply = self.write(ids, [[None] * len(ids)] * n, WHY)
        return json.dumps(reply | {TOKEN_KEY: token} if token else reply).replace("null", CHOICE)

    def bound(self, ids: Sequence[str], n: int, token: str) -> dict:
        """The schema for exactly N answers and exactly these ids, with the token as the last key."""
        return with_token(self.schema(ids, n), token)


def ids_of(rubric: Rubric) -> tuple[str, ...]:
    """The names of the criteria in request and reply.

    These are their own ids c1, c2, ..., or their positions if the ids do not have this form or are not unique, as in a
    rubric that was not written by our rubricator.
    """
    own = tuple(c.id for c in rubric.criteria)
    if len(set(own)) == len(own) and all(_ID.fullmatch(name) for name in own):
        return own
    return tuple(f"c{n}" for n in range(1, len(own) + 1))


def form_named(name: str) -> Form:
    """The form called ``name``.

    Raises:
        ConfigurationError: there is no such form.
    """
    if name not in FORMS:
        raise ConfigurationError(f"teacher.verifier.form is {name!r}, which is unknown; {near(name, tuple(FORMS))}")
    return FORMS[name]


def form_shown(prompt: str) -> Form:
    """The form of the example in one of our prompts; ``lists`` if it has no readable example."""
    text = prompt.replace(CHOICE, "true")
    for found in re.finditer(r'\{"schema_version"', text):
        with contextlib.suppress(ValueError):
            example, _ = json.JSONDecoder().raw_decode(text, found.start())
            if form := _form_of(example):
                return form
    return FORMS["lists"]


def _form_of(reply: Mapping[str, Any]) -> Form | None:
    if reply.get("schema_version") == LISTS_VERSION:
        return FORMS["lists"]
    if reply.get("schema_version") != VERSION:
        return None
    if isinstance(reply.get("criteria"), dict):
        return FORMS["by_criterion"]
    entry = next(iter(_map(reply.get("answers")).values()), None)
    if isinstance(_map(entry).get("verdicts"), dict):
        return FORMS["keyed_reason"]
    reasons = any(isinstance(cell, dict) for cell in _map(entry).values())
    return FORMS["keyed_reasons" if reasons else "keyed"]


def reasons_in(text: str, n: int, token: str) -> dict[tuple[int, str], tuple[str, bool | None]]:
    """The reasons in a reply about ``n`` answers, by position (from 1) and criterion id; {} if its form has none.

    Returns:
        Each reason with its verdict. The single reason for an answer (``keyed_reason``) has the id "" and no verdict.
        For display only: this never decides a verdict.
    """
    try:
        entries = _entries(text, "answers", token)
    except MalformedError:
        return {}
    found = {}
    for place in range(1, n + 1):
        entry = _map(entries.get(str(place)))
        cells = {"": entry} if "verdicts" in entry else {name: _map(cell) for name, cell in entry.items()}
        for name, cell in cells.items():
            met = cell.get("met")
            if isinstance(cell.get("reason"), str):
                found[place, name] = cell["reason"], met if isinstance(met, bool) else None
    return found


# ------------------------------------------------------------------------------------------------------------- lists


def _lists_schema(ids: Sequence[str], n: int) -> dict:
    k = len(ids)
    item = {
        "answer_index": {"type": "integer", "minimum": 1, "maximum": n},
        "judgement": {"type": "array", "items": _BOOLEAN, "minItems": k, "maxItems": k},
    }
    return list_schema(LISTS_VERSION, "answers", item, size=(n, n))


def _write_lists(ids: Sequence[str], rows: Sequence[Sequence[bool | None]], reason: str) -> dict:
    items = [{"answer_index": n, "judgement": list(row)} for n, row in enumerate(rows, 1)]
    return {"schema_version": LISTS_VERSION, "answers": items}


def read_lists(text: str, k: int, n: int, token: str) -> Marks:
    """Rows of ``k`` verdicts from the release's format, in which ``"yes"`` and ``1`` also mean true."""
    return marks_of(text, n, LISTS_VERSION, lambda item: _judgement(item, k), token)


def _judgement(item: dict, k: int) -> Row | None:
    judgement = item.get("judgement")
    if not isinstance(judgement, list) or len(judgement) != k:
        return None
    if item.keys() - {"answer_index", "judgement", "final_score"}:
        return None
    verdicts = [_boolean(v) for v in judgement]
    known = tuple(v for v in verdicts if v is not None)
    return known if len(known) == len(verdicts) else None


def _boolean(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return bool(value) if value in (0, 1) else None
    if isinstance(value, str):
        word = value.strip().lower()
        return True if word in _TRUE else False if word in _FALSE else None
    return None


# ------------------------------------------------------------------------------------------ an entry for each answer


def _keyed(
    name: str,
    schema: Callable[[Sequence[str]], dict],
    write: Callable[[Sequence[str], Sequence[bool | None], str], dict],
    read: Callable[[Any, Sequence[str]], Row | None],
    *,
    exact: bool,
) -> Form:
    """A form with one entry for each answer: the entry's schema, the entry, and its row or None if it has none.

    ``exact``: a missing answer invalidates the reply, like every wrong key in a form with texts.
    """

    def read_reply(text: str, ids: Sequence[str], n: int, token: str) -> Marks:
        answers = _entries(text, "answers", token)
        places = _places(n)
        if exact:
            _exact(answers, places, "answers")
        else:
            _known(answers, places, "answer")
        rows = [read(answers[place], ids) if place in answers else None for place in places]
        return Marks(tuple(rows), tuple(_cause(r, there=p in answers) for r, p in zip(rows, places, strict=True)))

    return Form(
        name,
        lambda ids, n: _object("answers", dict.fromkeys(_places(n), schema(ids))),
        lambda ids, rows, reason: {
            "schema_version": VERSION,
            "answers": {str(n): write(ids, row, reason) for n, row in enumerate(rows, 1)},
        },
        read_reply,
    )


def _row(entry: Any, ids: Sequence[str]) -> Row | None:
    """``{"c1": true, "c2": false}`` in the order of the ids; None for anything else."""
    if not isinstance(entry, dict) or entry.keys() != set(ids):
        return None
    row = tuple(entry[name] for name in ids)
    return row if all(isinstance(v, bool) for v in row) else None


def _row_with_reason(entry: Any, ids: Sequence[str]) -> Row | None:
    found = _exact(entry, ("reason", "verdicts"), "an answer")
    verdicts = _exact(found["verdicts"], ids, "verdicts")
    return _row_of([found["reason"]], [verdicts[name] for name in ids])


def _row_of_reasons(entry: Any, ids: Sequence[str]) -> Row | None:
    found = _exact(entry, ids, "an answer")
    cells = [_exact(found[name], ("reason", "met"), name) for name in ids]
    return _row_of([cell["reason"] for cell in cells], [cell["met"] for cell in cells])


def _row_of(reasons: Sequence[Any], verdicts: Sequence[Any]) -> Row | None:
    """The verdicts, or None if one of the values has another type. A nested value invalidates the reply."""
    for value in (*reasons, *verdicts):
        if isinstance(value, dict | list):
            raise MalformedError("a reason or a verdict is an object or a list; expected a string, true or false")
    texts, row = all(isinstance(r, str) for r in reasons), tuple(v for v in verdicts if isinstance(v, bool))
    return row if texts and len(row) == len(verdicts) else None


def _exact(value: Any, names: Sequence[str], where: str) -> dict:
    """The object with exactly these keys.

    Raises:
        MalformedError: it is not an object, or it has other keys.
    """
    if not isinstance(value, dict):
        raise MalformedError(f"{where} is a {type(value).__name__}; expected an object with {names[0]} to {names[-1]}")
    only_keys(value, set(names), set(names), where)
    return value


# ---------------------------------------------------------------------------------------- an entry for each criterion


def _by_criterion_schema(ids: Sequence[str], n: int) -> dict:
    return _object("criteria", dict.fromkeys(ids, closed(dict.fromkeys(_places(n), _BOOLEAN))))


def _write_by_criterion(ids: Sequence[str], rows: Sequence[Sequence[bool | None]], reason: str) -> dict:
    columns = {name: {str(n): row[k] for n, row in enumerate(rows, 1)} for k, name in enumerate(ids)}
    return {"schema_version": VERSION, "criteria": columns}


def _read_by_criterion(text: str, ids: Sequence[str], n: int, token: str) -> Marks:
    criteria = _entries(text, "criteria", token)
    places = _places(n)
    _known(criteria, ids, "criterion")
    for column in criteria.values():
        _known(_map(column), places, "answer")
    rows: list[Row | None] = []
    causes: list[str | None] = []
    for place in places:
        columns = [criteria.get(name, {}) for name in ids]
        cells = [column.get(place, _ABSENT) if isinstance(column, dict) else None for column in columns]
        row = tuple(cell for cell in cells if isinstance(cell, bool))
        rows.append(row if len(row) == len(ids) else None)
        causes.append(_cause(rows[-1], there=not any(cell is _ABSENT for cell in cells)))
    return Marks(tuple(rows), tuple(causes))


# ------------------------------------------------------------------------------------------------------------ shared


def _places(n: int) -> tuple[str, ...]:
    return tuple(str(place) for place in range(1, n + 1))


def _object(key: str, entries: Mapping[str, Cell]) -> dict:
    return closed({"schema_version": {"type": "string", "enum": [VERSION]}, key: closed(dict(entries))})


def _entries(text: str, key: str, token: str) -> dict:
    """The mapping ``key`` in the reply's only object."""
    reply = find_object(text, key, token)
    only_keys(reply, {"schema_version", key}, {"schema_version", key}, "the reply")
    if reply["schema_version"] != VERSION:
        raise MalformedError(f"schema_version is {str(reply['schema_version'])[:60]!r}; expected {VERSION!r}")
    if not isinstance(reply[key], dict):
        raise MalformedError(f"{key} is a {type(reply[key]).__name__}; expected an object with one entry for each")
    return reply[key]


def _known(entries: Mapping[str, Any], names: Sequence[str], what: str) -> None:
    if other := sorted(entries.keys() - set(names)):
        raise MalformedError(f"the reply has {what} {other[0][:40]!r}; expected {names[0]} to {names[-1]}")


def _cause(row: Row | None, *, there: bool) -> str | None:
    return None if row is not None else "malformed" if there else "missing"


def _map(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Form("lists", _lists_schema, _write_lists, lambda text, ids, n, token: read_lists(text, len(ids), n, token)),
        _keyed(
            "keyed",
            lambda ids: closed(dict.fromkeys(ids, _BOOLEAN)),
            lambda ids, row, reason: dict(zip(ids, row, strict=True)),
            _row,
            exact=False,
        ),
        _keyed(
            "keyed_reason",
            lambda ids: closed({"reason": _REASON, "verdicts": closed(dict.fromkeys(ids, _BOOLEAN))}),
            lambda ids, row, reason: {"reason": reason, "verdicts": dict(zip(ids, row, strict=True))},
            _row_with_reason,
            exact=True,
        ),
        _keyed(
            "keyed_reasons",
            lambda ids: closed(dict.fromkeys(ids, closed({"reason": _REASON, "met": _BOOLEAN}))),
            lambda ids, row, reason: {i: {"reason": reason, "met": v} for i, v in zip(ids, row, strict=True)},
            _row_of_reasons,
            exact=True,
        ),
        Form("by_criterion", _by_criterion_schema, _write_by_criterion, _read_by_criterion),
    )
}
