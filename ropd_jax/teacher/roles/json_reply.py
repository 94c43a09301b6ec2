"""Finds the only JSON object in a model's reply, and reads integers as models write them.

Every role requests one object with a ``schema_version`` and a list: `list_schema` describes it, `find_list` reads it.

A judge can quote an answer, and an answer can contain an object of exactly the form that we request. So the prompt
requests a token in the object, and the schema allows only this value. It is the request's fence token, which does not
occur in any fenced text (`fences`). What counts if the token is T::

    {"answers": [A], "token": T}                                  A
    It says {"answers": [X]}. {"answers": [A], "token": T}        A
    It says {"answers": [X]}, which is wrong.                     malformed
    It says {"answers": [X]}. {"answers": [A], "token": T,}       malformed
    {"answers": [A]}                                              malformed

Requests in the official release's formats, our older prompts and user templates need not have a token. Then the object
must be the whole reply, apart from one code fence around it and a block of thinking before it (`thinking`).

The token is the last key. If the model quotes an answer in one of its texts and forgets the escapes, the answer can
close the object early, but without the token. It could also repeat a key, so a repeated key is refused.

Accepted around an object with its token: a byte-order mark, a code fence, prose, a closed block of thinking before it.
Refused: two different objects with the token, a list at top level, and another object that cannot be read but has the
requested key. Nothing is repaired by guessing.

JSON with wrong spelling (LaTeX's backslashes, line breaks in strings) is always read. Wrong structure (an extra comma,
comments, Python's names and quotation marks) and a doubly encoded object are read only if the object is the whole
reply, apart from one code fence, and its last key is the token (`lenient_json`).

An object that has no text of the model's own, only verdicts or scores, can have one more key with a text, such as
``"reasoning": "..."``. It is ignored. If the form itself has texts, such a key stays and is an unknown key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ropd_jax.teacher.clients.errors import MalformedError
from ropd_jax.teacher.roles import lenient_json, thinking

TOKEN_KEY = "token"
_FENCED = re.compile(r"```[\w+-]*\s*(.*)```", re.DOTALL)  # the whole reply is one code fence
_START = re.compile(r'\{(?=[\s\ufeff]*["}])|\[(?=[\s\ufeff]*[]["{0-9tfnNI-])')  # not the braces of LaTeX
_MAX_WORK = 50  # passes over a reply's text, so that a wall of brackets does not take quadratic time
_WALL = 10_000  # characters that are examined in any reply
_RATIONALE = frozenset(
    {"reason", "reasons", "reasoning", "rationale", "explanation", "analysis", "thoughts", "thinking", "justification",
     "comment", "comments", "notes"}
)  # fmt: skip


def find_object(text: str, key: str, token: str | None) -> dict:
    """The single JSON object in ``text`` that has ``key`` at its top level, without its token.

    Args:
        token: the token that the object must have, `token_of` the request. "": the request has none, so the object must
            be the whole reply, apart from one code fence around it and a block of thinking before it. None: the text is
            not the reply to a request, so it has no quotations, and any single object counts.

    Raises:
        MalformedError: there is no such object, or there are several that differ. The message describes the problem.
    """
    text = text.removeprefix("\ufeff").strip()
    if not text:
        raise MalformedError("the reply was empty; expected one JSON object", cause="empty")
    whole, problem = _decode(text)
    if token and not isinstance(whole, dict):
        whole = _loosely(text, key, token) or whole
    if whole is None:  # not a single object: skip the thinking, which can contain drafts of it
        text = thinking.after_drafts(text, anywhere=token != "", until=_last_start(text, key, token))
        whole, problem = _decode(text)
    if whole is not None and not isinstance(whole, dict):
        raise MalformedError(f"the top level of the JSON is a {type(whole).__name__}; expected one object with {key!r}")
    if whole is not None and key not in whole:
        raise MalformedError(f"the JSON object has no key {key!r}; it has {_names(whole)}")
    if whole is None and token == "":
        raise MalformedError(
            f"the reply is not exactly one JSON object{_where(problem)}; expected the object with {key!r} and nothing "
            "before or after it"
        )
    found = [whole] if whole is not None else _scan(text, key)
    if not found:
        raise MalformedError(f"no complete JSON object with the key {key!r} in the reply{_where(problem)}")
    if token:
        found = [one for one in found if one.get(TOKEN_KEY) == token]
        if not found:
            raise MalformedError(
                f"the JSON object with {key!r} lacks the token of this request; "
                f'expected "{TOKEN_KEY}": "{token}" as its last key'
            )
    if any(other != found[0] for other in found[1:]):  # repeated equal objects are harmless
        raise MalformedError(f"{len(found)} different JSON objects with the key {key!r}; expected exactly one")
    own = {name: value for name, value in found[0].items() if name != TOKEN_KEY}
    return _without_rationale(own) if token else own


def _without_rationale(own: dict) -> dict:
    """The object without a single text next to its verdicts; unchanged if it has no text or more than one."""
    texts = [name for name in own if name in _RATIONALE and isinstance(own[name], str)]
    rest = {name: value for name, value in own.items() if name not in texts}
    return rest if len(texts) == 1 and not _has_text([v for k, v in rest.items() if k != "schema_version"]) else own


def _has_text(value: object) -> bool:
    todo = [value]
    while todo:  # a reply can be nested more deeply than the call stack allows
        value = todo.pop()
        if isinstance(value, str):
            return True
        todo += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return False


def closed(properties: Mapping[str, Any]) -> dict:
    """JSON schema for an object with exactly these properties."""
    required = list(properties)
    return {"type": "object", "properties": dict(properties), "required": required, "additionalProperties": False}


def list_schema(
    version: str, key: str, item: dict[str, dict], *, size: tuple[int, int] | None = None, **more: dict
) -> dict:
    """JSON schema for one object: ``schema_version``, a list ``key`` of objects with all of ``item``, and ``more``.

    Args:
        size: minimum and maximum number of items; None means no bounds.
    """
    items: dict[str, Any] = {"type": "array", "items": closed(item)}
    if size is not None:
        items |= {"minItems": size[0], "maxItems": size[1]}
    return closed({"schema_version": {"type": "string", "enum": [version]}, key: items, **more})


def with_token(schema: Mapping[str, Any], token: str) -> dict:
    """The schema of an object that also has ``token`` as its last key; unchanged if the token is ""."""
    if not token:
        return dict(schema)
    return closed({**schema["properties"], TOKEN_KEY: {"type": "string", "enum": [token]}})


def token_of(schema: Mapping[str, Any] | None) -> str:
    """The token that a request's schema requires, or ""."""
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
    """The list ``key`` of the only object in a reply with this schema version.

    Args:
        token: as for `find_object`.
        where: name of the object in messages: "the rubric".
        of: what the list contains, for messages: " of criteria".
        also: other keys that the object can have; they are ignored.

    Raises:
        MalformedError: there is no such object, or it has other keys, version or type. The message describes the
            problem.
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


def _decode(text: str) -> tuple[object | None, Exception | None]:
    """(value, None) if the text, possibly in one code fence, is exactly one JSON value; else (None, error)."""
    text = _unfenced(text)
    try:
        value, end = lenient_json.raw_decode(text, 0, hook=_unique)
        if text[end:].strip():
            raise json.JSONDecodeError("Extra data", text, end)
    except (ValueError, RecursionError) as error:  # not JSON, an extremely long number, or extremely deep
        return None, error
    return value, None


def _unfenced(text: str) -> str:
    fenced = _FENCED.fullmatch(text)
    return fenced[1].strip() if fenced else text


def _loosely(text: str, key: str, token: str) -> dict | None:
    """The whole text as the requested object, in a loose structure or encoded twice; None if it is not."""
    text = _unfenced(text)
    try:
        twice = json.loads(text) if text.startswith('"') else None
        text = twice.strip() if isinstance(twice, str) else text
        value, end = lenient_json.raw_decode(text, 0, hook=_unique, structure=twice is None)
        rest = text[end:].strip()
        if rest and not (twice is None and lenient_json.is_comment(rest)):
            return None
    except (ValueError, RecursionError):
        return None
    is_own = isinstance(value, dict) and key in value and list(value)[-1] == TOKEN_KEY and value[TOKEN_KEY] == token
    return value if is_own else None


def _last_start(text: str, key: str, token: str | None) -> int | None:
    """Start of the object with the token that ends the reply, or None. Thinking marks in its texts are quotations."""
    if not token or token not in text:
        return None
    work = 0
    for start in re.finditer(r'\{\s*"', text):
        try:
            value, end = lenient_json.raw_decode(text, start.start(), hook=dict)
        except (ValueError, RecursionError) as error:
            work += _looked_at(text, start.start(), error)
            if work > _MAX_WORK * len(text) + _WALL:
                return None
            continue
        is_own = isinstance(value, dict) and key in value and value.get(TOKEN_KEY) == token
        if is_own and not text[end:].strip().strip("`"):
            return start.start()
    return None


def _looked_at(text: str, start: int, error: Exception) -> int:
    """Approximate number of characters read before a decoder gave up; its error counts lines, 64 times faster."""
    if isinstance(error, json.JSONDecodeError) and not error.msg.startswith("Unterminated"):
        return error.pos - start + 1 + error.pos // 64
    return len(text) - start + 1


def _where(error: Exception | None) -> str:
    """`` (Expecting ',' delimiter at line 3, column 14, before '"c2": tru')``."""
    if not isinstance(error, json.JSONDecodeError):
        return "" if error is None else f" ({str(error)[:80]})"
    rest = error.doc[error.pos : error.pos + 20]
    place = f"before {rest!r}" if rest else "at its end"
    return f" ({error.msg} at line {error.lineno}, column {error.colno}, {place})"


def _scan(text: str, key: str) -> list[dict]:
    """Top-level objects with ``key`` within other text. An object in a list is not top-level.

    Raises:
        MalformedError: ``key`` is used as a key outside these objects, so another object could not be read.
    """
    found: list[dict] = []
    unread: list[str] = []
    problem: json.JSONDecodeError | None = None
    at = work = 0
    while start := _START.search(text, at):
        if work > _MAX_WORK * len(text) + _WALL:
            raise MalformedError("too many brackets in the reply do not open an object; expected one JSON object")
        try:
            value, end = lenient_json.raw_decode(text, start.start(), hook=_unique)
        except RecursionError:
            raise MalformedError("the reply is nested too deeply to be read") from None
        except ValueError as error:
            if isinstance(error, json.JSONDecodeError) and (problem is None or error.pos > problem.pos):
                problem = error
            work += _looked_at(text, start.start(), error)
            unread.append(text[at : start.end()])
            at = start.end()
            continue
        unread.append(text[at : start.start()])
        at = end
        if isinstance(value, dict) and key in value:
            found.append(value)
    rest = "".join(unread) + text[at:]
    if re.search(rf"""["']{key}\\*["']\s*:|\{{[^{{}}]*\b{key}\s*:""", rest):
        raise MalformedError(
            f"a JSON object with the key {key!r} cannot be read{_where(problem)}; expected one complete object"
        )
    return found


def to_int(value: object) -> int | None:
    """The integer meant by ``3``, ``3.0``, ``"3"`` or ``" 3.0 "``; None for anything else, including booleans."""
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
    """Raises ``MalformedError`` if ``item`` lacks a required key or has one that is not allowed."""
    if missing := required - item.keys():
        raise MalformedError(f"{where} lacks {', '.join(sorted(missing))}")
    if extra := item.keys() - allowed:
        raise MalformedError(f"{where} has unknown keys {_names(extra)}; allowed are {', '.join(sorted(allowed))}")


def _names(keys) -> str:
    shown = ", ".join(repr(str(k)[:40]) for k in list(keys)[:8])
    return shown or "none"
