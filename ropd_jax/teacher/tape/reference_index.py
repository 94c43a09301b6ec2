"""References collected ahead of time: the official teacher index, a JSONL file with one row per prompt.

    {"schema_version": "ropd.teacher_index.v2", "uid": "...", "raw_prompt_hash": "...",
     "teacher_fingerprint": {...}, "teacher_answers": ["...", "..."]}

``.v1`` rows have one ``teacher_answer``. Both versions are read; ``.v2`` is written. ``raw_prompt_hash`` is the
SHA-256 of ``json.dumps(messages, ensure_ascii=False, sort_keys=True)``. A prompt's row is found by uid and hash, or
only by the hash if no row has its uid. So an index made for other ids of the same questions also works.

Only ``\\n`` ends a line, because an answer can contain U+2028. A last line torn by a kill is ignored with a warning;
``ropd collect-references`` removes it and continues from there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from ropd_jax.teacher.clients.errors import ConfigurationError
from ropd_jax.teacher.roles.references import Reference
from ropd_jax.types import Message, Prompt
from ropd_jax.utils.paths import local_file, only_local

log = logging.getLogger(__name__)

V1, V2 = "ropd.teacher_index.v1", "ropd.teacher_index.v2"
_SURROGATE = re.compile("[\ud800-\udfff]")


def prompt_hash(messages: str | Sequence[Message | Mapping[str, str]]) -> str:
    """``raw_prompt_hash`` of a prompt: a string and a list of messages hash differently, as in the official files.

    >>> prompt_hash("Q?")[:16], prompt_hash([Message("user", "Q?")])[:16]
    ('bd2e2614803f2b08', 'bb4a9106812c4259')
    """
    raw: Any = messages
    if not isinstance(messages, str):
        raw = [{"role": m.role, "content": m.content} if isinstance(m, Message) else dict(m) for m in messages]
    text = json.dumps(raw, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclasses.dataclass(frozen=True)
class IndexRow:
    """The references of one prompt.

    Attributes:
        uid: the prompt's id.
        prompt_hash: see `prompt_hash`.
        answers: at least one string, none blank.
        fingerprint: the teacher's settings. Our rows have ``models`` if several models answered in turn.
    """

    uid: str
    prompt_hash: str
    answers: tuple[str, ...]
    fingerprint: Mapping[str, Any]

    def references(self, m: int) -> tuple[Reference, ...]:
        """The first ``m`` answers with their models; an official row names one model for all of them."""
        models = self.fingerprint.get("models") or [self.fingerprint.get("model", "unknown")]
        return tuple(Reference(text, str(models[i % len(models)])) for i, text in enumerate(self.answers[:m]))

    def line(self) -> str:
        """The row as one line of JSON, ``\\n`` included. U+2028 and lone surrogates are written as escapes."""
        row = {
            "schema_version": V2,
            "uid": self.uid,
            "raw_prompt_hash": self.prompt_hash,
            "teacher_fingerprint": dict(self.fingerprint),
            "teacher_answers": list(self.answers),
        }
        text = json.dumps(row, ensure_ascii=False)
        for mark in ("\u2028", "\u2029", "\x85"):  # the official reader uses str.splitlines, which ends a line there
            text = text.replace(mark, f"\\u{ord(mark):04x}")
        return _SURROGATE.sub(lambda c: f"\\u{ord(c.group()):04x}", text) + "\n"


class TeacherIndex:
    """The rows of one file, found by prompt.

    Args:
        rows: rows with distinct (uid, prompt_hash).
        name: the file's name in messages.
    """

    def __init__(self, rows: Iterable[IndexRow], name: str = "the index"):
        self.name = name
        self._rows = {(row.uid, row.prompt_hash): row for row in rows}
        self._by_hash = {row.prompt_hash: row for row in self._rows.values()}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[IndexRow]:
        return iter(self._rows.values())

    def find(self, prompt: Prompt) -> IndexRow | None:
        """The row of a prompt, or None."""
        hashes = [prompt_hash(prompt.messages)]
        if len(prompt.messages) == 1:  # official files also hash a single message as a plain string
            hashes.append(prompt_hash(prompt.messages[0].content))
        for sha in hashes:
            if row := self._rows.get((prompt.id, sha)) or self._by_hash.get(sha):
                return row
        return None

    def references(self, prompt: Prompt, m: int) -> tuple[Reference, ...]:
        """The first ``m`` references of a prompt.

        Raises:
            ConfigurationError: the index has fewer references.
        """
        self.check_covers([prompt], m)
        row = self.find(prompt)
        assert row is not None
        return row.references(m)

    def lacking(self, prompts: Iterable[Prompt], m: int) -> list[Prompt]:
        """The prompts with fewer than ``m`` references."""
        return [p for p in prompts if (row := self.find(p)) is None or len(row.answers) < m]

    def check_covers(self, prompts: Iterable[Prompt], m: int) -> None:
        """Raises ``ConfigurationError`` if a prompt has fewer than ``m`` references; the message names the command."""
        total = itertools.count()
        counted = (p for p, _ in zip(prompts, total, strict=False))  # they need not fit into memory together
        if lacking := self.lacking(counted, m):
            few = sum(self.find(p) is not None for p in lacking)
            shown = ", ".join(repr(p.id) for p in lacking[:3]) + (", ..." if len(lacking) > 3 else "")
            raise ConfigurationError(
                f"{self.name} lacks references for {len(lacking)} of {next(total)} prompts ({few} have fewer than "
                f"teacher.references={m}; {shown}). Collect them: ropd collect-references --config FILE --out "
                f"{self.name}",
                cause="index_incomplete",
            )


def read_index(
    path: str | os.PathLike[str], *, count: int | None = None, fingerprint: Mapping[str, Any] | None = None
) -> TeacherIndex:
    """Reads an index, ours or an official one.

    Args:
        count: minimum references per row; a row's first ``count`` are kept. None keeps all.
        fingerprint: the required ``teacher_fingerprint`` of each row; None accepts any.

    Raises:
        ConfigurationError: there is no such file, a row does not follow the schema, a prompt has two rows, or a row
            has too few answers or another fingerprint. The message names file and line.
    """
    if count is not None and count < 1:
        raise ConfigurationError(f"{count} references requested from {path}; expected at least 1")
    try:
        lines = local_file(path, "teacher.index").read_bytes().decode("utf-8").split("\n")
    except OSError as error:
        raise ConfigurationError(
            f"teacher.index={str(path)!r} cannot be read ({error.strerror}); expected a file written by "
            f"ropd collect-references --config FILE --out {path}"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"teacher.index={str(path)!r} is not UTF-8 ({error}); expected JSONL in UTF-8"
        ) from error
    rows: dict[tuple[str, str], IndexRow] = {}
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if n == len(lines) and not _is_json(line):
            log.warning("%s: the last line is torn and ignored; ropd collect-references repairs the file", path)
            continue
        row = parse_row(line, f"{path}:{n}")
        if (key := (row.uid, row.prompt_hash)) in rows:
            raise ConfigurationError(f"{path}:{n}: a second row with uid {row.uid!r} and the same prompt; delete one")
        if fingerprint is not None and (what := difference(row.fingerprint, fingerprint)):
            raise ConfigurationError(f"{path}:{n}: teacher_fingerprint differs from the config: {what}")
        if count is not None and len(row.answers) < count:
            raise ConfigurationError(f"{path}:{n}: {len(row.answers)} references; expected at least {count}")
        rows[key] = dataclasses.replace(row, answers=row.answers[:count])
    return TeacherIndex(rows.values(), str(path))


def parse_row(line: str, where: str) -> IndexRow:
    """One row of either version. Answers are stripped.

    Raises:
        ConfigurationError: the row is invalid; the message starts with ``where``.
    """

    def wrong(what: str) -> ConfigurationError:
        return ConfigurationError(f"{where}: {what}; expected a row of {V1} or {V2}")

    try:
        row = json.loads(line)
    except ValueError as error:
        raise wrong(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise wrong(f"a {type(row).__name__}")
    version = row.get("schema_version")
    if version not in (V1, V2):
        raise wrong(f"schema_version is {version!r:.60}")
    answers = [row.get("teacher_answer")] if version == V1 else row.get("teacher_answers")
    if not isinstance(answers, list) or not answers:
        raise wrong("teacher_answers is not a list, or an empty one")
    if not all(isinstance(a, str) and a.strip() for a in answers):
        raise wrong("an answer is blank or not a string")
    uid, sha, fingerprint = row.get("uid"), row.get("raw_prompt_hash"), row.get("teacher_fingerprint")
    if isinstance(uid, bool) or not isinstance(uid, str | int) or not str(uid):
        raise wrong(f"uid is {uid!r:.60}")
    if not isinstance(sha, str) or not re.fullmatch("[0-9a-f]{64}", sha):
        raise wrong(f"raw_prompt_hash is {sha!r:.80}")
    if not isinstance(fingerprint, dict):
        raise wrong(f"teacher_fingerprint is a {type(fingerprint).__name__}")
    return IndexRow(str(uid), sha, tuple(a.strip() for a in answers), fingerprint)


def difference(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """``model is 'a', the config has 'b'; ...`` for two fingerprints; "" if they are equal (90 equals 90.0)."""
    keys = [k for k in sorted(there.keys() | wanted.keys()) if there.get(k) != wanted.get(k)]
    return "; ".join(f"{k} is {there.get(k)!r:.80}, the config has {wanted.get(k)!r:.80}" for k in keys)


class IndexWriter:
    """Appends rows to a file. Each row is on disk before the next, so a kill loses at most the one being written.

    Raises:
        ConfigurationError: the file is not an index, or has rows with another fingerprint.
    """

    def __init__(self, path: str | os.PathLike[str], *, fingerprint: Mapping[str, Any] | None = None):
        self.path = only_local(path, "--out")
        self.fingerprint = dict(fingerprint or {})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            _cut_torn_line(self.path)
        else:
            self.path.touch(mode=0o600)  # references are paid for, and possibly private
        self.index = read_index(self.path, fingerprint=fingerprint)
        self._file = open(self.path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115 - closed in close()

    def add(self, row: IndexRow) -> None:
        """Appends one row."""
        self._file.write(row.line())
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _cut_torn_line(path: pathlib.Path) -> None:
    """Removes a torn last line, or adds the missing line end to a complete one."""
    data = path.read_bytes()
    start = data.rfind(b"\n") + 1
    tail = data[start:]
    if not tail:
        return
    with open(path, "r+b") as f:
        if _is_json(tail.decode("utf-8", "replace")):
            f.seek(0, os.SEEK_END)
            f.write(b"\n")
        else:
            log.warning("%s: removed a torn last line of %d bytes", path, len(tail))
            f.truncate(start)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
