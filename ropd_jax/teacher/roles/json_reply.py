"""Finds the one JSON object in a model's reply, and reads integers the way models write them.

Every role asks for one object with a ``schema_version`` and a list: `list_schema` describes it, `find_list` reads it.

Accepted around the object, because it stays unambiguous: a byte-order mark, a code fence of any kind, prose, a closed
``<think>`` block before it. Refused: a reply without an object, two different objects, a list at top level, anything
that is not JSON. Nothing is repaired by guessing.
"""

from __future__ import annotations

import json
import re

from ropd_jax.teacher.clients.errors import MalformedError

_DECODER = json.JSONDecoder()
_ENDED = "</think>"
_MAX_STARTS = 1_000  # braces tried in one reply, so that a wall of braces does not take quadratic time


def find_object(text: str, key: str) -> dict:
    """The single JSON object in ``text`` that has ``key`` at its top level.

    Raises:
        MalformedError: there is none, or there are several that differ.
    """
    text = text.removeprefix("\ufeff").strip()
    if not text:
        raise MalformedError("the reply was empty; expected one JSON object", cause="empty")
    whole = _decode(text)
    if whole is None:  # not JSON as it is: skip the thinking, which can hold drafts of the object
        ended = text.lower().rfind(_ENDED)
        after = text[ended + len(_ENDED) :].strip() if ended >= 0 else text
        if not after or (ended < 0 and text.lower().startswith("<think>")):  # cut off: its drafts do not count
            raise MalformedError("the reply ended inside its thinking; expected one JSON object after it")
        whole = _decode(after)
        text = after
    if isinstance(whole, dict):
        if key not in whole:
            raise MalformedError(f"the JSON object has no key {key!r}; it has {_names(whole)}")
        return whole
    if whole is not None:
        raise MalformedError(f"the top level of the JSON is a {type(whole).__name__}; expected one object with {key!r}")
    found = _scan(text, key)
    if not found:
        raise MalformedError(f"no complete JSON object with the key {key!r} in the reply")
    if any(other != found[0] for other in found[1:]):  # repeated equal objects are harmless
        raise MalformedError(f"{len(found)} different JSON objects with the key {key!r}; expected exactly one")
    return found[0]


def list_schema(version: str, key: str, item: dict[str, dict], **more: dict) -> dict:
    """JSON schema of one object: ``schema_version``, a list ``key`` of objects with all of ``item``, and ``more``."""
    of_item = {"type": "object", "properties": item, "required": list(item), "additionalProperties": False}
    properties = {
        "schema_version": {"type": "string", "enum": [version]},
        key: {"type": "array", "items": of_item},
        **more,
    }
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def find_list(
    text: str, key: str, version: str, *, where: str, of: str = "", also: frozenset[str] = frozenset()
) -> list:
    """The list ``key`` of the one object in a reply of this schema version.

    Args:
        where: name of the object in messages: "the rubric".
        of: what the list holds, for messages: " of criteria".
        also: further keys that the object can have; they are not read.

    Raises:
        MalformedError: not such an object, or other keys, version or type. The message describes the problem.
    """
    reply = find_object(text, key)
    only_keys(reply, {"schema_version", key, *also}, {"schema_version", key}, where)
    if reply["schema_version"] != version:
        raise MalformedError(f"schema_version is {str(reply['schema_version'])[:60]!r}; expected {version!r}")
    if not isinstance(reply[key], list):
        raise MalformedError(f"{key} is a {type(reply[key]).__name__}; expected a list{of}")
    return reply[key]


def _decode(text: str) -> object | None:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # not JSON, a number of absurd length, or absurdly deep
        return None


def _scan(text: str, key: str) -> list[dict]:
    """Top-level objects with ``key`` inside other text. An object in a list is not top-level."""
    found: list[dict] = []
    at = tries = 0
    while (start := re.compile(r"[{\[]").search(text, at)) and tries < _MAX_STARTS:
        tries += 1
        try:
            value, at = _DECODER.raw_decode(text, start.start())
        except RecursionError:
            raise MalformedError("the reply is nested too deeply to be read") from None
        except ValueError:
            at = start.end()
            continue
        if isinstance(value, dict) and key in value:
            found.append(value)
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
