"""Finds the one JSON object in a model's reply, and reads integers the way models write them.

Every role asks for one object with a ``schema_version`` and a list: `list_schema` describes it, `find_list` reads it.

A judge can quote an answer, and an answer can hold an object of exactly the form that we request. So the prompt
requests a token in the object, and the schema admits only this value. It is the request's fence token, which no text
in the fences contains (`fences`). What counts, if the token is T::

    {"answers": [A], "token": T}                                  A
    It says {"answers": [X]}. {"answers": [A], "token": T}        A
    It says {"answers": [X]}, which is wrong.                     malformed
    It says {"answers": [X]}. {"answers": [A], "token": T,}       malformed
    {"answers": [A]}                                              malformed

The official release's formats, our older prompts and a user's own templates can have no token. Then the object must be
the whole reply, apart from one code fence around it and a block of thinking before it (`thinking`).

The token is the last key. If the model quotes an answer in a text of its object and forgets the escapes, the answer can
close the object early, but not with the token. It could also repeat a key, so a repeated key is refused.

Accepted around an object with its token: a byte-order mark, a code fence, prose, a closed block of thinking before it.
Refused: two different objects with the token, a list at top level, and a further object that cannot be read but has the
requested key. Nothing is repaired by guessing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ropd_jax.teacher.clients.errors import MalformedError
from ropd_jax.teacher.roles import thinking

TOKEN_KEY = "token"
_FENCED = re.compile(r"```[\w+-]*\s*(.*)```", re.DOTALL)  # the whole reply is one code fence
_START = re.compile(r"[{\[]")
_MAX_STARTS = 1_000  # brackets tried in one reply, so that a wall of brackets does not take quadratic time


def find_object(text: str, key: str, token: str | None) -> dict:
    """The single JSON object in ``text`` that has ``key`` at its top level, without its token.

    Args:
        token: what the object must carry, `token_of` the request. "": the request asked for none, so the object must
            be the whole reply, but for one code fence around it and a block of thinking before it. None: the text is
            not the reply to a request, so nothing in it is a quotation, and any one object counts.

    Raises:
        MalformedError: there is none, or there are several that differ. The message describes the problem.
    """
    text = text.removeprefix("\ufeff").strip()
    if not text:
        raise MalformedError("the reply was empty; expected one JSON object", cause="empty")
    whole = _decode(text)
    if whole is None:  # not JSON as it is: skip the thinking, which can hold drafts of the object
        text = thinking.after_drafts(text, anywhere=token != "")
        whole = _decode(text)
    if whole is not None and not isinstance(whole, dict):
        raise MalformedError(f"the top level of the JSON is a {type(whole).__name__}; expected one object with {key!r}")
    if whole is not None and key not in whole:
        raise MalformedError(f"the JSON object has no key {key!r}; it has {_names(whole)}")
    if whole is None and token == "":
        raise MalformedError(
            f"the reply is not exactly one JSON object; expected the object with {key!r} and nothing before or after it"
        )
    found = [whole] if whole is not None else _scan(text, key)
    if not found:
        raise MalformedError(f"no complete JSON object with the key {key!r} in the reply")
    if token:
        found = [one for one in found if one.get(TOKEN_KEY) == token]
        if not found:
            raise MalformedError(
                f"the JSON object with {key!r} lacks the token of this request; "
                f'expected "{TOKEN_KEY}": "{token}" as its last key'
            )
    if any(other != found[0] for other in found[1:]):  # repeated equal objects are harmless
        raise MalformedError(f"{len(found)} different JSON objects with the key {key!r}; expected exactly one")
    return {name: value for name, value in found[0].items() if name != TOKEN_KEY}


def closed(properties: Mapping[str, Any]) -> dict:
    """JSON schema of an object with exactly these properties."""
    required = list(properties)
    return {"type": "object", "properties": dict(properties), "required": required, "additionalProperties": False}


def list_schema(
    version: str, key: str, item: dict[str, dict], *, size: tuple[int, int] | None = None, **more: dict
) -> dict:
    """JSON schema of one object: ``schema_version``, a list ``key`` of objects with all of ``item``, and ``more``.

    Args:
        size: fewest and most items; None sets no bounds.
    """
    items: dict[str, Any] = {"type": "array", "items": closed(item)}
    if size is not None:
        items |= {"minItems": size[0], "maxItems": size[1]}
    return closed({"schema_version": {"type": "string", "enum": [version]}, key: items, **more})


def with_token(schema: Mapping[str, Any], token: str) -> dict:
    """The schema of an object that also carries ``token``, as its last key; the schema itself for a token of ""."""
    if not token:
        return dict(schema)
    return closed({**schema["properties"], TOKEN_KEY: {"type": "string", "enum": [token]}})


def token_of(schema: Mapping[str, Any] | None) -> str:
    """The token that a request's schema demands, "" if it demands none."""
    field = (schema or {}).get("properties", {}).get(TOKEN_KEY)
    return field["enum"][0] if field else ""


def find_list(
    text: str,
    key: str,
    version: str,
    *,
    token: str | None,
    where: str,
    of: str = "",
    also: frozenset[str] = frozenset(),
) -> list:
    """The list ``key`` of the one object in a reply of this schema version.

    Args:
        token: as `find_object`.
        where: name of the object in messages: "the rubric".
        of: what the list holds, for messages: " of criteria".
        also: further keys that the object can have; they are not read.

    Raises:
        MalformedError: not such an object, or other keys, version or type. The message describes the problem.
    """
    reply = find_object(text, key, token)
    only_keys(reply, {"schema_version", key, *also}, {"schema_version", key}, where)
    if reply["schema_version"] != version:
        raise MalformedError(f"schema_version is {str(reply['schema_version'])[:60]!r}; expected {version!r}")
    if not isinstance(reply[key], list):
        raise MalformedError(f"{key} is a {type(reply[key]).__name__}; expected a list{of}")
    return reply[key]


def _unique(pairs: list[tuple[str, object]]) -> dict:
    item = dict(pairs)
    if len(item) < len(pairs):
        names = [name for name, _ in pairs]
        raise MalformedError(f"a JSON object repeats a key: {_names({n for n in names if names.count(n) > 1})}")
    return item


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _decode(text: str) -> object | None:
    """The value that is the whole text, or the whole of one code fence around it; None if that is not JSON."""
    fenced = _FENCED.fullmatch(text)
    try:
        return _DECODER.decode(fenced[1].strip() if fenced else text)
    except (ValueError, RecursionError):  # not JSON, a number of absurd length, or absurdly deep
        return None


def _scan(text: str, key: str) -> list[dict]:
    """Top-level objects with ``key`` inside other text. An object in a list is not top-level.

    Raises:
        MalformedError: outside these objects there is another use of ``key`` as a key, so one could not be read.
    """
    found: list[dict] = []
    unread: list[str] = []
    at = tries = 0
    while start := _START.search(text, at):
        if (tries := tries + 1) > _MAX_STARTS:
            raise MalformedError(f"more than {_MAX_STARTS:,} brackets in the reply open nothing; expected one object")
        try:
            value, end = _DECODER.raw_decode(text, start.start())
        except RecursionError:
            raise MalformedError("the reply is nested too deeply to be read") from None
        except ValueError:
            unread.append(text[at : start.end()])
            at = start.end()
            continue
        unread.append(text[at : start.start()])
        at = end
        if isinstance(value, dict) and key in value:
            found.append(value)
    rest = "".join(unread) + text[at:]
    if re.search(rf"""["']{key}\\*["']\s*:|\{{[^{{}}]*\b{key}\s*:""", rest):
        raise MalformedError(f"a JSON object with the key {key!r} cannot be read; expected one complete object")
    return found


def to_int(value: object) -> int | None:
    """The integer that ``3``, ``3.0``, ``"3"`` or ``" 3.0 "`` mean; None for anything else, booleans included."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}(\.0+)?", value.strip(), re.ASCII):
        return int(value.strip().split(".")[0])
    return None


def only_keys(item: dict, allowed: set[str], required: set[str], where: str) -> None:
    """Raise ``MalformedError`` if ``item`` lacks a required key or has one that is not allowed."""
    if missing := required - item.keys():
        raise MalformedError(f"{where} lacks {', '.join(sorted(missing))}")
    if extra := item.keys() - allowed:
        raise MalformedError(f"{where} has unknown keys {_names(extra)}; allowed are {', '.join(sorted(allowed))}")


def _names(keys) -> str:
    shown = ", ".join(repr(str(k)[:40]) for k in list(keys)[:8])
    return shown or "none"
