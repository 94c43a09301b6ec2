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

JSON that is only spelt wrongly (LaTeX's backslashes, line breaks in texts) is read everywhere. A wrong structure (a
comma too many, comments, Python's names and quotation marks) and an object that is encoded twice are read only if the
object is the whole reply, apart from one code fence, and its last key is the token (`lenient_json`).

An object that holds no text of the model's own, only verdicts or scores, can have one more key with a text, such as
``"reasoning": "..."``; it is left out. Where the form itself has texts such a key stays, and is an unknown one.
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
_MAX_WORK = 50  # times that a reply's text is looked at, so that a wall of brackets does not take quadratic time
_WALL = 10_000  # characters that are looked at in any reply
_RATIONALE = frozenset(
    {"reason", "reasons", "reasoning", "rationale", "explanation", "analysis", "thoughts", "thinking", "justification",
     "comment", "comments", "notes"}
)  # fmt: skip


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
    whole, problem = _decode(text)
    if token and not isinstance(whole, dict):
        whole = _loosely(text, key, token) or whole
    if whole is None:  # not one object as it is: skip the thinking, which can hold drafts of the object
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
    """The object without the one text beside its verdicts; itself if it has further texts, or none."""
    texts = [name for name in own if name in _RATIONALE and isinstance(own[name], str)]
    rest = {name: value for name, value in own.items() if name not in texts}
    return rest if len(texts) == 1 and not _has_text([v for k, v in rest.items() if k != "schema_version"]) else own


def _has_text(value: object) -> bool:
    todo = [value]
    while todo:  # a reply can be nested more deeply than calls can
        value = todo.pop()
        if isinstance(value, str):
            return True
        todo += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return False


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


def _decode(text: str) -> tuple[object | None, Exception | None]:
    """(the value that is the whole text, or the whole of one code fence around it; None), or (None, why not)."""
    text = _unfenced(text)
    try:
        value, end = lenient_json.raw_decode(text, 0, hook=_unique)
        if text[end:].strip():
            raise json.JSONDecodeError("Extra data", text, end)
    except (ValueError, RecursionError) as error:  # not JSON, a number of absurd length, or absurdly deep
        return None, error
    return value, None


def _unfenced(text: str) -> str:
    fenced = _FENCED.fullmatch(text)
    return fenced[1].strip() if fenced else text


def _loosely(text: str, key: str, token: str) -> dict | None:
    """The object that is the whole text in a loose structure, or encoded twice; None if it is not the one requested."""
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
    """Start of the object with the token that ends the reply, or None. Marks of thinking in its texts are quoted."""
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
    """About the number of characters that a decoder read before it gave up; its error counts lines, 64 times faster."""
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
    """Top-level objects with ``key`` inside other text. An object in a list is not top-level.

    Raises:
        MalformedError: outside these objects there is another use of ``key`` as a key, so one could not be read.
    """
    found: list[dict] = []
    unread: list[str] = []
    problem: json.JSONDecodeError | None = None
    at = work = 0
    while start := _START.search(text, at):
        if work > _MAX_WORK * len(text) + _WALL:
            raise MalformedError("too many brackets in the reply open nothing; expected one object")
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
