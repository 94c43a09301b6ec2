"""The requests to the teacher about one group and their replies, from the run's tape. Nothing is written.

    a group whose line has calls               role and key of each request
    an older one                              requests with the same question that show its answers or its rubric

A tape can be large. Requests are found by key, or by the tape's index of questions; only those of one group are read.
At most `MOST` are listed.

Reasons are read from the verifier's replies, if the requested form has them (`roles.forms`). They explain the verdicts;
the verdicts themselves are those in the group's line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ropd_jax.teacher.clients.chat import PURPOSES
from ropd_jax.teacher.clients.errors import ConfigurationError
from ropd_jax.teacher.roles import fences, forms
from ropd_jax.teacher.roles.json_reply import token_of
from ropd_jax.teacher.tape.inspect import reasked
from ropd_jax.teacher.tape.store import TAPE_NAME, Entry, Tape
from ropd_jax.teacher.traffic.prices import Prices
from ropd_jax.types import UserError, answer_of

MOST = 200  # requests of one group
_LOOKED = 400  # older groups: maximum number of requests with its question that are checked
_CUT = re.compile(r"\n\[\.\.\. ([0-9]{1,9}) characters cut \.\.\.\]\n")


@dataclasses.dataclass(frozen=True)
class Texts:
    """The answers and references of a group as the teacher reads them: without the student's thoughts."""

    labels: tuple[str, ...]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Texts:
        answers = [(str(i), answer_of(a["text"])) for i, a in enumerate(row["answers"])]
        references = [(f"R{i}", r["text"]) for i, r in enumerate(row["references"])]
        labels, texts = zip(*answers, *references, strict=True) if answers or references else ((), ())
        return cls(labels, texts)

    def shown(self, blocks: Sequence[tuple[str, str]]) -> list[tuple[str, str | None]]:
        """(label in the request, label of this group or None) of each text among the blocks of a request.

        Equal texts are labelled in order, each once.
        """
        free = list(range(len(self.texts)))
        found: list[tuple[str, str | None]] = []
        for label, text in blocks:
            if label.partition(" ")[0] in ("answer", "student", "reference"):
                wanted = "R" if label.startswith("reference") else "" if label.startswith("answer") else "0123456789"
                place = next((i for i in free if self.labels[i][0] in (wanted or "R0123456789")
                              and _same(self.texts[i], text)), None)  # fmt: skip
                if place is not None:
                    free.remove(place)
                found.append((label, None if place is None else self.labels[place]))
        return found


@dataclasses.dataclass(frozen=True)
class Request:
    """An entry of the tape, with its texts (see `Texts.shown`) and its criteria as (id, text)."""

    entry: Entry
    shown: Sequence[tuple[str, str | None]]
    criteria: Sequence[tuple[str, str]]

    @classmethod
    def of(cls, entry: Entry, texts: Texts) -> Request:
        # The token is that of the first block in all messages.
        blocks = fences.parse_blocks("\n".join(content for _, content in entry.body["messages"]))
        return cls(entry, texts.shown(blocks), _criteria(blocks) if entry.role == "verify" else ())


def calls_of(directory: pathlib.Path, config: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Summaries of the requests about a group, and the verifier's reasons.

    Returns:
        ``calls``: a list of dicts, by role and time; ``reasons``: by answer label and criterion id; ``note``: a
        sentence if there is no tape, or if not everything was found; ``noted``: whether the group's line names its
        requests.
    """
    texts = Texts.of(row)
    noted = "calls" in row
    prices = _prices(config)
    calls: list[dict[str, Any]] = []
    reasons: list[dict[str, Any]] = []
    note = ""
    path = tape_of(directory, config)
    if path is None:
        return {
            "calls": [],
            "reasons": [],
            "noted": noted,
            "note": "there is no tape here, so the requests are unknown",
        }
    with reading(path) as tape:
        found, missing = _noted(tape, row["calls"], texts) if noted else (_searched(tape, row, texts), 0)
        for one in found[:MOST]:
            calls.append(_short(one.entry, one.shown, prices))
            if one.entry.role == "verify" and one.entry.reply is not None:
                reasons += _reasons(one, row)
    if (total := len(row["calls"]) if noted else len(found)) > MOST:
        note = f"the first {MOST} of {total} requests are shown"
    elif missing:
        note = f"{missing} of {missing + len(found)} requests are not on the tape {path.name}"
    elif not found:
        note = f"the tape {path.name} has no request about this group"
    place = {role: i for i, role in enumerate(PURPOSES)}
    calls.sort(key=lambda c: (place.get(c["role"], len(PURPOSES)), c["created"] or 0.0, c["key"]))
    return {"calls": calls, "reasons": reasons, "noted": noted, "note": note}


def call_of(directory: pathlib.Path, config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """One request as sent, and its reply, text by text.

    Raises:
        UserError: there is no tape, or it does not contain the key.
    """
    path = tape_of(directory, config)
    if path is None:
        raise UserError(f"{directory} has no tape; expected {TAPE_NAME}, which `ropd train` writes")
    with reading(path) as tape:
        if not tape.query("SELECT 1 FROM requests WHERE key = ?", (key,)):
            raise UserError(f"the tape {path.name} has no request {key[:12]!r}")
        entry = tape.entry(key)
    body = entry.body
    return {
        **_short(entry, [], _prices(config)),
        "messages": body["messages"],
        "reply": None if entry.reply is None else entry.reply.text,
        "parameters": {name: value for name, value in body.items() if name != "messages"},
        "prompts": entry.prompts,
    }


def tape_of(directory: pathlib.Path, config: Mapping[str, Any]) -> pathlib.Path | None:
    """The run's tape: the one in its directory, or else the file in its config, if it exists."""
    named = str(_in(config, "teacher", "tape", "path") or "")
    candidates = [directory / TAPE_NAME, *([pathlib.Path(named).expanduser()] if named and "://" not in named else [])]
    for path in reversed(candidates):
        with contextlib.suppress(OSError):
            if path.is_file():
                return path
    return None


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[Tape]:
    """The tape, opened read-only and closed at the end.

    Raises:
        UserError: the file is not a tape, or cannot be read.
    """
    try:
        tape = Tape(path, read_only=True, fleeting=True)
        try:
            yield tape
        finally:
            tape.close()
    except ConfigurationError as error:
        raise UserError(str(error)) from error


# ---------------------------------------------------------------------------------------------------------- finding


def _noted(tape: Tape, calls: Iterable[Sequence[str]], texts: Texts) -> tuple[list[Request], int]:
    """(the entries of the keys, the number of keys that are not on the tape)."""
    keys = [str(key) for _, key in calls]
    known = {k for k in keys if tape.query("SELECT 1 FROM requests WHERE key = ?", (k,))}
    found = [Request.of(tape.entry(key), texts) for key in keys[:MOST] if key in known]
    return found, len(set(keys)) - len(known)


def _searched(tape: Tape, row: Mapping[str, Any], texts: Texts) -> list[Request]:
    """The requests about a group whose line does not name them."""
    sha = hashlib.sha256(str(row["question"]).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    criteria = {c["text"] for c in row["rubric"]} | {c["text"] for a in row["answers"] for c in a.get("rubric") or ()}
    found: list[Request] = []
    for role in PURPOSES:
        keys = tape.query(
            f"SELECT key FROM requests WHERE role = ? AND question = ? ORDER BY rowid LIMIT {_LOOKED}", (role, sha)
        )
        asked = (Request.of(tape.entry(key), texts) for (key,) in keys)
        found += [one for one in asked if _belongs(one, criteria)]
    return found


def _belongs(one: Request, criteria: set[str]) -> bool:
    """Whether a request with the group's question is about this group, not about another visit of the question."""
    if one.entry.role == "reference":
        return True
    if not one.shown or any(label is None for _, label in one.shown):
        return False
    asked = {text for _, text in one.criteria}
    return one.entry.role != "verify" or (bool(asked) and asked <= criteria)


# ---------------------------------------------------------------------------------------------------------- reading


def _criteria(blocks: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(id, text) of the criteria that a request to the verifier shows."""
    rubric = next((text for label, text in blocks if label == "rubric"), "[]")
    try:
        return [(str(c["criterion_id"]), str(c["criterion"])) for c in json.loads(rubric)]
    except (ValueError, KeyError, TypeError):
        return []


def _same(text: str, shown: str) -> bool:
    """Whether a shown text is this one, complete or with its middle cut out."""
    if text == shown:
        return True
    cut = _CUT.search(shown)
    if cut is None:
        return False
    head, tail = shown[: cut.start()], shown[cut.end() :]
    whole = len(text) == len(head) + len(tail) + int(cut[1])
    return whole and text.startswith(head) and text.endswith(tail)


def _short(entry: Entry, shown: Sequence[tuple[str, str | None]], prices: Prices) -> dict[str, Any]:
    body, reply = entry.body, entry.reply
    again = reasked(body["messages"])
    usage = None if reply is None else dataclasses.asdict(reply.usage)
    return {
        "key": entry.key,
        "role": entry.role,
        "provider": body["provider"],
        "model": body["model"],
        "replied_by": None if reply is None else reply.model,
        "address": entry.address,
        "sample_index": body["sample_index"],
        "temperature": body["temperature"],
        "shown": [label for _, label in shown if label is not None],
        "reasked": None if again is None else again[0],
        "finish_reason": None if reply is None else reply.finish_reason,
        "usage": usage,
        "latency_s": None if reply is None else reply.latency_s,
        "created": max((f.created for f in entry.failures), default=None) if entry.created is None else entry.created,
        "usd": _cost(entry, prices),
        "characters": [sum(len(content) for _, content in body["messages"]), len(reply.text) if reply else None],
        "failures": [
            {"step": f.step, "type": f.type, "cause": f.cause, "message": f.message, "created": f.created}
            for f in entry.failures
        ],
    }


def _cost(entry: Entry, prices: Prices) -> float | None:
    """Dollars of the reply by the price list; None if the model or its tokens are unknown."""
    if entry.reply is None:
        return None
    price = prices.find(entry.body["provider"], entry.body["model"], entry.address or "")
    return None if price is None else price.cost(entry.reply.usage)


def _reasons(one: Request, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The reasons of a reply, with the answer and the criterion of the group that each is about."""
    entry = one.entry
    assert entry.reply is not None
    answers = [label for name, label in one.shown if name.startswith("answer ")]
    found = forms.reasons_in(entry.reply.text, len(answers), token_of(entry.body["json_schema"]))
    texts = dict(one.criteria)
    reasons = []
    for (place, name), (reason, met) in found.items():
        label = answers[place - 1]
        if label is None:
            continue
        own = row["answers"][int(label)].get("rubric") if label.isdigit() else None
        ids = [c["id"] for c in own or row["rubric"] if c["text"] == texts.get(name)] if name else [None]
        if ids:
            reasons.append({"answer": label, "criterion": ids[0], "text": reason, "met": met, "key": entry.key})
    return reasons


def _prices(config: Mapping[str, Any]) -> Prices:
    """The price list that the run used; without the user's file if that is missing."""
    try:
        return Prices.load(str(_in(config, "teacher", "prices") or ""))
    except (ConfigurationError, UserError):
        return Prices.load()


def _in(config: Mapping[str, Any], *names: str) -> Any:
    value: Any = config
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
