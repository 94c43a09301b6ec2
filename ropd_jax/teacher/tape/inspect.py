"""Statistics of a tape, its replies, export and import as JSONL, and explanations of missing requests."""

from __future__ import annotations

import json
import os
import pathlib
import re
import statistics
from typing import Any

from ropd_jax.teacher.asking import REASK_TEMPLATE
from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest, Usage
from ropd_jax.teacher.clients.errors import ConfigurationError
from ropd_jax.teacher.roles import templates
from ropd_jax.teacher.tape.store import Entry, Failure, Tape, body_key, request_body, request_row
from ropd_jax.utils.files import create_private

FORMAT = "ropd.tape.v1"
_CANDIDATES = 64  # entries that a miss is compared with
_SHOWN = 40  # characters of text around the first difference
# The places where a fence's token can occur: in a marker, in an escaped character, in the instructions.
_TOKEN = re.compile(r'(\| |\[\[U\+[0-9A-F]{4,6} |token |`|"token": "|"enum": \[")[0-9a-f]{12}\b')


# ------------------------------------------------------------------------------------------------------- stats


def tape_stats(tape: Tape) -> list[dict[str, Any]]:
    """One row for each (role, provider, model): replies, failures, tokens, seconds; None if unknown."""
    rows = []
    groups = tape.query("SELECT DISTINCT role, provider, model FROM requests ORDER BY role, provider, model")
    for role, provider, model in groups:
        found = tape.query(
            "SELECT input_tokens, output_tokens, thought_tokens, cached_tokens, latency_s, length(text), length(body) "
            "FROM requests JOIN replies USING(key) WHERE role = ? AND provider = ? AND requests.model = ?",
            (role, provider, model),
        )
        causes = tape.query(
            "SELECT cause, count(*) FROM requests JOIN failures USING(key) "
            "WHERE role = ? AND provider = ? AND model = ? GROUP BY cause ORDER BY cause",
            (role, provider, model),
        )
        columns = list(zip(*found, strict=True)) if found else [()] * 7
        known = [[x for x in column if x is not None] for column in columns[:5]]
        row: dict[str, Any] = {"role": role, "provider": provider, "model": model, "replies": len(found)}
        row["failures"] = dict(causes)
        row["bytes"] = sum(columns[5]) + sum(columns[6])
        for name, values in zip(("input", "output", "thought", "cached"), known, strict=False):
            row[f"{name}_tokens"] = sum(values) if values else None
            row[f"{name}_tokens_mean"] = statistics.fmean(values) if values else None
        row["latency_s_mean"] = statistics.fmean(known[4]) if known[4] else None
        rows.append(row)
    return rows


# -------------------------------------------------------------------------------------------------- one by one


def tape_replies(tape: Tape, *, role: str = "", failed: bool = False, most: int = 10) -> list[dict[str, Any]]:
    """The newest requests on a tape with their replies, newest first.

    Args:
        role: reference, rubric, verify, score or judge; "" means all.
        failed: only failures: requests that failed, and replies that could not be used. The tape has the latter as the
            text quoted in a re-ask, with the reason.
        most: maximum number of rows.

    Returns:
        Rows with the keys key, role, provider, model, step, cause, problem, reply, next. ``next`` is the reply to the
        re-ask, or None if there was none.
    """
    keys = tape.query(
        "SELECT key FROM requests " + ("WHERE role = ? " if role else "") + "ORDER BY rowid DESC", (role,) * bool(role)
    )
    rows: list[dict[str, Any]] = []
    for (key,) in keys:
        if len(rows) >= most:
            break
        entry = tape.entry(key)
        about = {"key": key, "role": entry.role, "provider": entry.body["provider"], "model": entry.body["model"]}
        text = None if entry.reply is None else entry.reply.text
        asked_again = reasked(entry.body["messages"])
        for failure in reversed(entry.failures):
            wrong = {"step": failure.step, "cause": failure.cause, "problem": failure.message}
            rows.append(about | wrong | {"reply": None, "next": None})
        if asked_again is not None:
            problem, quoted = asked_again
            wrong = {"step": None, "cause": "malformed", "problem": problem}
            rows.append(about | wrong | {"reply": quoted, "next": text})
        elif not failed and text is not None:
            rows.append(about | {"step": None, "cause": None, "problem": None, "reply": text, "next": None})
    return rows[:most]


def reasked(messages: list[list[str]]) -> tuple[str, str] | None:
    """(problem, unusable reply) if these messages end with a re-ask, else None; an empty reply is not quoted."""
    before, after = templates.fill(REASK_TEMPLATE, problem="\0").split("\0")
    role, text = messages[-1]
    if len(messages) < 2 or role != "user" or not (text.startswith(before) and text.endswith(after)):
        return None
    quoted = messages[-2]
    return text[len(before) : len(text) - len(after)], quoted[1] if quoted[0] == "assistant" else ""


# -------------------------------------------------------------------------------------------- export and import


def export_tape(tape: Tape, path: str | pathlib.Path) -> int:
    """Writes the tape as JSONL: a line with the format, then one line per request, sorted by key. Returns the count.

    The file is readable only by its owner.
    """
    path, n = pathlib.Path(path), 0
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with create_private(part, encoding="ascii") as f:
        f.write(json.dumps({"format": FORMAT}) + "\n")
        for entry in tape.entries():
            f.write(json.dumps(_entry_dict(entry)) + "\n")
            n += 1
        f.flush()
        os.fsync(f.fileno())
    os.replace(part, path)  # so that a kill leaves the old file or the new one
    return n


def import_tape(tape: Tape, path: str | pathlib.Path) -> tuple[int, int]:
    """Copies the entries of an exported file. Returns (number of entries with new data, number without).

    A reply that is already on the tape stays.

    Raises:
        ConfigurationError: the file is not an exported tape, or the request in a line does not match its key.
    """
    added = known = 0
    try:
        with open(path, encoding="utf-8") as f:
            if json.loads(f.readline() or "null") != {"format": FORMAT}:
                raise ConfigurationError(f"{str(path)!r} does not start with {{'format': {FORMAT!r}}}; expected a file "
                                         "written by `ropd tape export`")  # fmt: skip
            for number, line in enumerate(f, 2):
                entry = _entry(json.loads(line))
                if body_key(entry.body) != entry.key:
                    raise ConfigurationError(
                        f"{path}:{number}: the request does not match its key: the line was changed; delete it"
                    )
                if tape.add(entry):
                    added += 1
                else:
                    known += 1
    except OSError as e:
        raise ConfigurationError(f"cannot read {str(path)!r}: {e.strerror}; expected an exported tape") from e
    except (ValueError, KeyError, TypeError) as e:
        raise ConfigurationError(f"{str(path)!r} is not an exported tape ({e!r}); expected JSONL") from e
    return added, known


def _entry_dict(entry: Entry) -> dict[str, Any]:
    reply = entry.reply
    return {
        "key": entry.key,
        "role": entry.role,
        "request": entry.body,
        "prompts": entry.prompts,
        "reply": None
        if reply is None
        else {
            "text": reply.text,
            "finish_reason": reply.finish_reason,
            "model": reply.model,
            "usage": vars(reply.usage),
            "latency_s": reply.latency_s,
            "created": entry.created,
            "address": entry.address,
        },
        "failures": [vars(f) for f in entry.failures],
    }


def _entry(line: dict[str, Any]) -> Entry:
    reply, created, address = line["reply"], None, None
    if reply is not None:
        created, address = reply["created"], reply.get("address")
        reply = ChatReply(
            reply["text"],
            reply["finish_reason"],
            Usage(**reply["usage"]),
            reply["model"],
            latency_s=reply["latency_s"],
        )
    failures = tuple(Failure(**f) for f in line["failures"])
    return Entry(line["key"], line["role"], line["request"], line["prompts"], reply, created, failures, address)


# ------------------------------------------------------------------------------------------------------ misses


def explain_miss(tape: Tape, provider: str, request: ChatRequest) -> str:
    """One line about a request in a replay and how it differs from the nearest entry."""
    head = f"the tape {str(tape.path)!r} has no answer to this {request.purpose} request"
    remedy = "replay with the config and the code of the recorded run, or set teacher.tape.mode=record to request it"
    found = _nearest(tape, provider, request)
    if found is None:
        return f"{head}: it has no {request.purpose} requests; {remedy}"
    asked = request_body(provider, request)
    differs = [
        f"{name}: {_short(found.body[name])} there, {_short(asked[name])} here"
        for name in ("provider", "model", "temperature", "max_output_tokens", "sample_index")
        if found.body[name] != asked[name]
    ]
    if found.role != request.purpose:
        differs.insert(0, f"role: {found.role} there, {request.purpose} here")
    extras = [body.get("extra", {}) for body in (found.body, asked)]
    if extras[0] != extras[1]:
        differs.append(f"extra: {_short(extras[0])} there, {_short(extras[1])} here")
    there, here = (_plain(json.dumps(body["json_schema"], sort_keys=True)) for body in (found.body, asked))
    if there != here:
        differs.append("json_schema: a different one")
    place = _first_difference(found.body["messages"], asked["messages"])
    if place:
        differs.append(place)
    if not differs:
        return f"{head}: it was submitted in a batch job whose answer is not on the tape; {remedy}"
    return f"{head}. Differences from the nearest entry ({found.key[:12]}): {'; '.join(differs)}. To continue, {remedy}"


def _nearest(tape: Tape, provider: str, request: ChatRequest) -> Entry | None:
    """The most similar entry among those with the same messages, else the same question, else the same role."""
    asked = request_body(provider, request)
    *_, messages_sha, question, _, _ = request_row(body_key(asked), request.purpose, asked, {})
    for where, values in (
        ("messages_sha = ?", (messages_sha,)),
        ("role = ? AND question = ?", (request.purpose, question)),
        ("role = ?", (request.purpose,)),
    ):
        keys = tape.query(f"SELECT key FROM requests WHERE {where} ORDER BY key LIMIT {_CANDIDATES}", values)
        if keys:
            entries = [tape.entry(key) for (key,) in keys]
            return max(entries, key=lambda e: _agreement(e.body, asked))
    return None


def _agreement(there: dict[str, Any], here: dict[str, Any]) -> tuple[int, int]:
    """(length of the messages' common prefix, number of equal parameters)."""
    a, b = (_plain(_flat(x["messages"])) for x in (there, here))
    same = sum(there[k] == here[k] for k in here if k != "messages")
    return _common_prefix(a, b), same


def _first_difference(there: list[list[str]], here: list[list[str]]) -> str:
    for i, (a, b) in enumerate(zip(there, here, strict=False)):
        if a[0] != b[0]:
            return f"messages[{i}] is from the {a[0]} there, from the {b[0]} here"
        plain_a, plain_b = _plain(a[1]), _plain(b[1])
        if plain_a != plain_b:
            at = _common_prefix(plain_a, plain_b)
            cut = slice(max(0, at - _SHOWN // 2), at + _SHOWN)
            return f"messages[{i}] from character {at}: {plain_a[cut]!r} there, {plain_b[cut]!r} here"
        if a[1] != b[1]:
            return f"messages[{i}]: only the fences' token"
    if len(there) != len(here):
        return f"{len(there)} messages there, {len(here)} here"
    return ""


def _plain(text: str) -> str:
    """The text without the fences' token, which changes with every text in the request."""
    return _TOKEN.sub(r"\1............", text)


def _flat(messages: list[list[str]]) -> str:
    return "\x00".join(f"{role}\x01{content}" for role, content in messages)


def _short(value: Any) -> str:
    return f"{value!r:.60}"


def _common_prefix(a: str, b: str) -> int:
    """The length of the common prefix of two texts."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # bisection, because slices are compared in C and 400,000 single characters in Python
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
