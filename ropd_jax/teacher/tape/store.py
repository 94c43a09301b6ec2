"""The tape: records every answer of the teacher once, in one SQLite file that can be replayed at no cost.

    request --(provider, model, parameters, schema, sample index, messages)--> key --> reply | failures

A reply is on the tape before the run uses it. The first reply to a request stays: the same request, in this run or in a
later one with the same tape, gets that reply. A failure that ended a request is stored with its step, so that a replay
leaves exactly the same rollouts unscored as the recorded run.

Each write is one transaction in WAL mode: a killed process loses only requests in flight, and other processes can read
at the same time. Only requests and replies are written, never a key or a header. A new tape has mode 0600, because its
texts are paid for and can be private. Texts are compressed. At the paper's lengths (12 answers of 8,192 tokens, shown
to rubricator and verifier) a group takes an estimated 0.3 MB.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from ropd_jax.teacher.clients import errors
from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest, Usage
from ropd_jax.teacher.clients.errors import ConfigurationError, TeacherError
from ropd_jax.teacher.roles import fences
from ropd_jax.teacher.step import NO_STEP
from ropd_jax.utils.writing import write_error

VERSION = 2  # version 2 added the address that a reply came from, and batch jobs
TAPE_NAME = "tape.sqlite"  # in a run's directory
_APPLICATION_ID = 0x524F5044  # "ROPD"
_WAIT_S = 30.0  # maximum wait for another process's write
_LEVEL = 3  # zlib level: 396 kB of prose and code become 145 kB in 18 ms

_TABLES = """
CREATE TABLE IF NOT EXISTS requests(
  key TEXT PRIMARY KEY, role TEXT NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL, sample_index INTEGER NOT NULL,
  messages_sha TEXT NOT NULL, question TEXT NOT NULL, prompts TEXT NOT NULL, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS by_messages ON requests(messages_sha);
CREATE INDEX IF NOT EXISTS by_question ON requests(role, question);
CREATE TABLE IF NOT EXISTS replies(
  key TEXT PRIMARY KEY, text BLOB NOT NULL, finish_reason TEXT NOT NULL, model TEXT NOT NULL, input_tokens INTEGER,
  output_tokens INTEGER, thought_tokens INTEGER, cached_tokens INTEGER, latency_s REAL, created REAL NOT NULL,
  address TEXT);
CREATE TABLE IF NOT EXISTS failures(
  key TEXT NOT NULL, step INTEGER NOT NULL, type TEXT NOT NULL, cause TEXT NOT NULL, message TEXT NOT NULL,
  created REAL NOT NULL, PRIMARY KEY(key, step));
CREATE TABLE IF NOT EXISTS batches(
  marker TEXT PRIMARY KEY, provider TEXT NOT NULL, address TEXT NOT NULL, job TEXT NOT NULL, state TEXT NOT NULL,
  keys TEXT NOT NULL, spent TEXT NOT NULL, created REAL NOT NULL);
"""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A typed failure as it is stored on the tape."""

    step: int
    type: str
    cause: str
    message: str
    created: float

    def error(self) -> TeacherError:
        """The recorded exception."""
        kind = getattr(errors, self.type, None)  # None for a type from a newer release
        kind = kind if isinstance(kind, type) and issubclass(kind, TeacherError) else TeacherError
        return kind(self.message, cause=self.cause)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One request on the tape, with its reply (or None) and the failures of the steps in which it failed."""

    key: str
    role: str
    body: dict[str, Any]
    prompts: dict[str, str]
    reply: ChatReply | None
    created: float | None
    failures: tuple[Failure, ...]
    address: str | None = None  # address of the server that replied; None if unknown


def request_body(provider: str, request: ChatRequest) -> dict[str, Any]:
    """The identity of a request, as JSON-serializable data. It excludes the role, which is not sent.

    ``extra`` is included only if it is not empty, so that requests without it keep their earlier keys.
    """
    extra = {"extra": dict(request.extra)} if request.extra else {}
    return extra | {
        "provider": provider,
        "model": request.model,
        "temperature": None if request.temperature is None else float(request.temperature),
        "max_output_tokens": request.max_output_tokens,
        "json_schema": request.json_schema,
        "sample_index": request.sample_index,
        "messages": [[m.role, m.content] for m in request.messages],
    }


def canonical(value: Any) -> bytes:
    """The canonical serialization of a value: sorted keys, no spaces, ASCII (so that lone surrogates survive)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def body_key(body: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical request, in hex."""
    return hashlib.sha256(canonical(body)).hexdigest()


class Tape:
    """One tape file. All methods are thread-safe.

    The file is opened at first use, so an unused ``Tape`` does not create a file.

    Args:
        path: the SQLite file; created if absent, unless ``read_only``.
        read_only: used for replays by several processes, and for a tape on a read-only medium.
        fleeting: opened only briefly, with ``read_only``: if no process is writing, no extra file is left next to it.

    Raises:
        ConfigurationError: with ``read_only``, the file does not exist. At first use: the file is not a tape, locked
            for long, or damaged.
    """

    def __init__(self, path: str | pathlib.Path, *, read_only: bool = False, fleeting: bool = False):
        self.path = pathlib.Path(path)
        self.read_only = read_only
        self.fleeting = fleeting
        if read_only and not self.path.is_file():
            raise ConfigurationError(
                f"there is no tape {str(self.path)!r} to read; expected the tape.sqlite of a recorded run; set it "
                "with teacher.tape.path",
                cause="no_tape",
            )
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._version = VERSION  # the file's version; a read-only file can be older

    def check(self) -> None:
        """Checks that the file can be opened, or that a missing one can be created. Does not create anything.

        Raises:
            ConfigurationError: the file is not a tape, or cannot be created.
        """
        if self.path.exists():
            idle = self._db is None
            with self.using():
                pass
            if idle:
                self.close()
            return
        there = next(p for p in self.path.absolute().parents if p.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise ConfigurationError(
                f"teacher.tape.path={str(self.path)!r}: cannot create a file in {there}; expected a directory that can "
                "be written",
                cause="no_tape",
            )

    def get(self, key: str) -> ChatReply | None:
        """The recorded reply, or None."""
        with self.using() as db:
            row = db.execute(
                "SELECT text, finish_reason, model, input_tokens, output_tokens, thought_tokens, cached_tokens, "
                "latency_s FROM replies WHERE key = ?",
                (key,),
            ).fetchone()
        return None if row is None else _reply(row)

    def address(self, key: str) -> str | None:
        """The address of the server that gave the recorded reply: "" means the provider's own, None unknown."""
        with self.using() as db:
            if self._version < 2:
                return None
            row = db.execute("SELECT address FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def failures(self, key: str) -> tuple[Failure, ...]:
        """The recorded failures of this request, by step."""
        with self.using() as db:
            rows = db.execute(
                "SELECT step, type, cause, message, created FROM failures WHERE key = ? ORDER BY step", (key,)
            ).fetchall()
        return tuple(Failure(*row) for row in rows)

    def put(
        self,
        provider: str,
        request: ChatRequest,
        reply: ChatReply,
        *,
        step: int = NO_STEP,
        prompts: Mapping[str, str] | None = None,
        overwrite: bool = False,
        address: str | None = None,
    ) -> ChatReply:
        """Records a reply, and deletes the request's failure in this step. Returns the reply that is on the tape now.

        This is the earlier reply if there is one and ``overwrite`` is not set. ``address`` is the server's address.
        """
        body = request_body(provider, request)
        row = request_row(body_key(body), request.purpose, body, prompts or {})
        with self.using() as db, db:
            insert_request(db, row)
            insert_reply(db, row[0], reply, address=address, overwrite=overwrite)
            db.execute("DELETE FROM failures WHERE key = ? AND step = ?", (row[0], step))
        recorded = self.get(row[0])
        assert recorded is not None
        return recorded

    def put_failure(
        self,
        provider: str,
        request: ChatRequest,
        error: TeacherError,
        *,
        step: int = NO_STEP,
        prompts: Mapping[str, str] | None = None,
    ) -> None:
        """Records the failure that ended the request in this step."""
        body = request_body(provider, request)
        row = request_row(body_key(body), request.purpose, body, prompts or {})
        failure = (row[0], step, type(error).__name__, error.cause, fences.without_surrogates(str(error)), time.time())
        with self.using() as db, db:
            insert_request(db, row)
            db.execute("INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?, ?)", failure)

    def keys(self) -> set[str]:
        """The keys of all requests."""
        with self.using() as db:
            return {k for (k,) in db.execute("SELECT key FROM requests")}

    def end(self) -> tuple[int, int]:
        """A mark for `since` that covers everything on the tape now: the last row of (replies, failures)."""
        with self.using() as db:
            replies, failures = (
                db.execute(f"SELECT coalesce(max(rowid), 0) FROM {table}").fetchone()[0]
                for table in ("replies", "failures")
            )
            return replies, failures

    def since(self, mark: tuple[int, int]) -> tuple[list[Entry], tuple[int, int]]:
        """(entries that got a reply or a failure after the mark, the new mark)."""
        with self.using() as db:  # holds the lock, so nothing is written between `end` and the queries
            end = self.end()
            keys = {
                key
                for table, start, stop in zip(("replies", "failures"), mark, end, strict=True)
                for (key,) in db.execute(f"SELECT key FROM {table} WHERE rowid > ? AND rowid <= ?", (start, stop))
            }
        return [self.entry(key) for key in sorted(keys)], end

    def entries(self) -> Iterator[Entry]:
        """All entries, ordered by key."""
        with self.using() as db:
            keys = [k for (k,) in db.execute("SELECT key FROM requests ORDER BY key")]
        for key in keys:
            yield self.entry(key)

    def entry(self, key: str) -> Entry:
        """The request with this key, with its reply and its failures."""
        with self.using() as db:
            role, prompts, body = db.execute(
                "SELECT role, prompts, body FROM requests WHERE key = ?", (key,)
            ).fetchone()
            created = db.execute("SELECT created FROM replies WHERE key = ?", (key,)).fetchone()
        return Entry(
            key,
            role,
            json.loads(zlib.decompress(body)),
            json.loads(prompts),
            self.get(key),
            created[0] if created else None,
            self.failures(key),
            self.address(key),
        )

    def add(self, entry: Entry) -> bool:
        """Copies an entry from another tape. Returns False if this tape already had all of it.

        An existing reply stays.
        """
        row = request_row(entry.key, entry.role, entry.body, entry.prompts)
        with self.using() as db, db:
            insert_request(db, row)
            added = 0
            if entry.reply is not None:
                added += insert_reply(db, entry.key, entry.reply, address=entry.address, created=entry.created)
            for f in entry.failures:
                added += db.execute(
                    "INSERT OR IGNORE INTO failures VALUES (?, ?, ?, ?, ?, ?)",
                    (entry.key, f.step, f.type, f.cause, f.message, f.created),
                ).rowcount
        return added > 0

    def query(self, sql: str, values: tuple = ()) -> list[tuple]:
        """The rows of a read-only query over the tables at the top of this file."""
        with self.using() as db:
            return db.execute(sql, values).fetchall()

    def close(self) -> None:
        """Closes the file and merges the write-ahead log into it. A later use reopens it."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    @contextlib.contextmanager
    def using(self) -> Iterator[sqlite3.Connection]:
        """The connection, locked for this thread. SQLite's errors are raised as ``ConfigurationError``."""
        with self._lock:
            try:
                if self._db is None:
                    self._db = _open(self.path, read_only=self.read_only, fleeting=self.fleeting)
                    self._version = self._db.execute("PRAGMA user_version").fetchone()[0]
                yield self._db
            except sqlite3.Error as e:
                raise explained(e, self.path) from e
            except OSError as e:
                raise write_error(self.path, e) from e


def request_row(key: str, role: str, body: Mapping[str, Any], prompts: Mapping[str, str]) -> tuple:
    """The row of table ``requests``."""
    blocks = (block for _, content in body["messages"] for block in fences.parse_blocks(content))
    question = next((text for label, text in blocks if label == "question"), "")
    return (
        key,
        role,
        body["provider"],
        body["model"],
        body["sample_index"],
        hashlib.sha256(canonical(body["messages"])).hexdigest(),
        hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()[:16] if question else "",
        canonical(dict(prompts)).decode(),
        zlib.compress(canonical(body), _LEVEL),
    )


def insert_request(db: sqlite3.Connection, row: tuple) -> None:
    """Adds a row from ``request_row`` if the request is not on the tape yet."""
    db.execute("INSERT OR IGNORE INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)


def insert_reply(
    db: sqlite3.Connection,
    key: str,
    reply: ChatReply,
    *,
    address: str | None = None,
    created: float | None = None,
    overwrite: bool = False,
) -> int:
    """Adds a reply. Returns 0 if an earlier one stays. ``created`` None means now."""
    values = (key, *_row(reply), time.time() if created is None else created, address)
    conflict = "REPLACE" if overwrite else "IGNORE"
    marks = ", ".join("?" * len(values))
    return db.execute(f"INSERT OR {conflict} INTO replies VALUES ({marks})", values).rowcount


def _row(reply: ChatReply) -> tuple:
    text = zlib.compress(reply.text.encode("utf-8", "surrogatepass"), _LEVEL)
    return (text, reply.finish_reason, reply.model, *dataclasses.astuple(reply.usage), reply.latency_s)


def _reply(row: tuple) -> ChatReply:
    text, finish_reason, model, *usage, latency_s = row
    return ChatReply(
        zlib.decompress(text).decode("utf-8", "surrogatepass"), finish_reason, Usage(*usage), model, latency_s
    )


def tape_path(name: str | os.PathLike[str]) -> pathlib.Path:
    """The file of a tape, or of the tape in a run's directory."""
    path = pathlib.Path(name)
    return path / TAPE_NAME if path.is_dir() else path


def _open(path: pathlib.Path, *, read_only: bool, fleeting: bool = False) -> sqlite3.Connection:
    db = _connect_to_read(path, fleeting) if read_only else _connect_to_write(path)
    with contextlib.ExitStack() as on_error:
        on_error.callback(db.close)
        if read_only:
            _check_ours(db, path)
        else:
            _prepare(db, path)
        on_error.pop_all()
    return db


def _connect_to_read(path: pathlib.Path, fleeting: bool) -> sqlite3.Connection:
    ways = ["mode=ro", "mode=ro&immutable=1"]  # the second is for a read-only directory, and creates no file
    if fleeting and not path.with_name(f"{path.name}-wal").exists():
        ways.reverse()
    for options in ways:
        db = _connect(f"{path.resolve().as_uri()}?{options}", uri=True)
        with contextlib.suppress(sqlite3.OperationalError):
            db.execute("SELECT count(*) FROM sqlite_master")
            break
        db.close()
    return db


def _connect_to_write(path: pathlib.Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with contextlib.suppress(OSError):  # SQLite reports the error
            path.touch(mode=0o600)  # SQLite gives its -wal and -shm files the mode of this one
    return _connect(path)


def _connect(path: str | pathlib.Path, *, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(path, uri=uri, timeout=_WAIT_S, check_same_thread=False)


def _prepare(db: sqlite3.Connection, path: pathlib.Path) -> None:
    """Makes a new file a tape, and brings an old tape to the present version."""
    old = bool(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    if old:
        _check_ours(db, path)
    _use_wal(db)
    db.execute("PRAGMA synchronous = NORMAL")  # a killed process loses nothing, a power cut at most the last replies
    with db:
        db.execute("BEGIN IMMEDIATE")  # lock before reading the version: two processes must not both add the column
        if old and db.execute("PRAGMA user_version").fetchone()[0] < 2:
            db.execute("ALTER TABLE replies ADD COLUMN address TEXT")
        for statement in _TABLES.split(";\n"):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {VERSION}")


def _use_wal(db: sqlite3.Connection) -> None:
    """Sets WAL mode. Waits while another connection prepares the same new file.

    The statement takes a read lock and then a write lock. SQLite does not wait between these two, whatever the timeout
    of the connection, because two connections that both hold a read lock would wait for each other.
    """
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _check_ours(db: sqlite3.Connection, path: pathlib.Path) -> None:
    ours = db.execute("PRAGMA application_id").fetchone()[0] == _APPLICATION_ID
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if not ours or version > VERSION:
        why = f"is a tape of version {version}, but this release reads up to {VERSION}" if ours else "is not a tape"
        raise ConfigurationError(f"{str(path)!r} {why}; name another file with teacher.tape.path", cause="no_tape")


def explained(error: sqlite3.Error, path: pathlib.Path) -> Exception:
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        return write_error(path, OSError(errno.ENOSPC, "no space left for the tape"))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        why = f"another process has been writing to it for more than {_WAIT_S:g} s; give each run its own tape"
    elif code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        why = "not a tape, or damaged; name another file with teacher.tape.path"
    else:
        why = "check that the file and its directory can be read and written, or set teacher.tape.mode=off"
    return ConfigurationError(f"tape {str(path)!r}: {error}; {why}", cause="tape")
