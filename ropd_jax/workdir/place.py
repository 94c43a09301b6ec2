"""The location of a run's files: a local directory, or a bucket with a local staging directory.

A bucket has no append and no rename, so a run in a bucket writes to a local *staging* directory:

    config.json, result.json, groups/, curves.png ...    uploaded whole when they change
    rollouts/                                            likewise; deleted with the local ones (`ROLLOUTS`)
    metrics.jsonl, timeline.jsonl, tensorboard/          growing files: above 256 KiB only the new part is uploaded
                                                         (`append`), so a run of n steps uploads O(n) bytes
    tape.sqlite, spent.json                              uploaded at checkpoints: the rows since the last time, as
                                                         ``tape.parts/``; the whole tape once the parts reach half of it
    checkpoints/                                         Orbax writes them directly to the bucket; for S3, which Orbax
                                                         does not support, each is copied when it is complete

On another machine, a run resumes from the bucket. On the same machine, tape entries that exist only in the staging
directory are kept, because their replies are paid for, and so are the answers of a rollout server.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import shutil
import threading
from typing import Any

from etils import epath

from ropd_jax.teacher.tape import parts
from ropd_jax.teacher.tape.store import TAPE_NAME, tape_path
from ropd_jax.types import UserError
from ropd_jax.utils import buckets, paths
from ropd_jax.utils.files import write_atomic
from ropd_jax.workdir.kept import COMMIT, DAMAGED

log = logging.getLogger(__name__)

GROWING = ("metrics.jsonl", "timeline.jsonl")
WHOLE = 256 << 10  # up to this many bytes, a growing file is uploaded whole
ROLLOUTS = "rollouts"  # answers of a rollout server, a file per step (`training.answers_kept`)
FOLDERS = ("groups", "tensorboard", ROLLOUTS)  # uploaded in addition to the files at the top level
PARTS_SHARE = 0.5  # largest total size of the tape's parts, as a share of the tape
_LOCKS: dict[pathlib.Path, int] = {}  # staging directories that this process holds -> file descriptor


class Place:
    """A run's location. With a local one there is nothing to upload, and every method returns at once.

    Attributes:
        home: the directory or URL that the user named; checkpoints are below it.
        files: the local directory for everything else; ``home`` itself if that is local.
        checkpoints: the directory that Orbax writes to.
    """

    def __init__(self, workdir: paths.AnyPath, *, host: int = 0):
        self.remote = paths.is_url(workdir)
        self._url = os.fspath(workdir).rstrip("/")
        self.home: epath.Path = paths.as_path(self._url if self.remote else workdir, "--workdir")
        self.files = self._staging(host) if self.remote else pathlib.Path(self.home)
        self._copies = self._url.startswith("s3://")  # checkpoints are copied
        self._copied: set[str] = set()  # checkpoints in the bucket
        self.checkpoints = (epath.Path(self.files) if self._copies else self.home) / "checkpoints"
        self._tape = _StoredTape(self._url, self.files / (f"tape.{host}.sqlite" if host else "tape.sqlite"))
        self._sent: dict[str, tuple[int, int, int]] = {}  # name -> inode, bytes, time of change
        self._final: set[str] = set()  # groups that this process has uploaded; each is written once
        self._late = False  # the last upload of logs failed
        self._lost = False
        self._one_copies = threading.Lock()

    def _staging(self, host: int) -> pathlib.Path:
        return paths.cache_dir() / "staging" / paths.folder_name(self._url) / f"host{host}"

    # --- start and end

    def fetch(self) -> None:
        """Bring the staging directory to the bucket's state. Call it before anything in ``files`` is read.

        Raises:
            UserError: the bucket cannot be read, holds something else, or another process on this machine uses it.
        """
        if not self.remote:
            return
        self.files.mkdir(parents=True, exist_ok=True)
        self._hold()
        log.info("%s is a bucket: files are written in %s and uploaded after each step", self._url, self.files)
        there = buckets.listing(self._url, "--workdir")
        # The lock and the first compiled programs (`parallel.compile_cache`) come before the config.
        seen = {name for name in there if name != "xla" and not name.startswith((".", "lock"))}
        if "config.json" not in seen:
            if seen:
                raise UserError(f"--workdir {self._url} is not empty and holds no run; choose another directory")
            self._set_aside()
            return
        spent = {path.name: _json(path) for path in self.files.glob("spent*.json")}
        with contextlib.suppress(FileNotFoundError):  # versions would keep this machine's changes
            (self.files / buckets.VERSIONS).unlink()
        pulled = buckets.pull(self._url, self.files, leave_out=(paths.TAPES, ".*", "lock*"), what="--workdir")
        names = {path.name for path in pulled}
        for path in self.files.iterdir():  # files of a run that this machine has and the bucket does not
            if path.suffix in (".json", ".jsonl") and path.name not in names and not path.name.startswith("spent"):
                path.unlink()
        for name, earlier in spent.items():
            if merged := _larger(earlier, _json(self.files / name)):
                write_atomic(self.files / name, json.dumps(merged, indent=1) + "\n", private=True)
        for path in pulled:
            self._sent[path.name] = _stamp(path)
        self._fetch_rollouts(there)
        for folder in FOLDERS:  # already in the bucket; the rest is uploaded with the first step
            stored = buckets.listing(f"{self._url}/{folder}") if folder in there else {}
            for path in (self.files / folder).glob("[!.]*"):
                if path.name in stored and stored[path.name].get("size") == path.stat().st_size:
                    self._sent[f"{folder}/{path.name}"] = _stamp(path)
        self._tape.restore(there)
        if self._copies and "checkpoints" in there:
            for step in filter(str.isdigit, buckets.listing(f"{self._url}/checkpoints")):
                if COMMIT in buckets.listing(f"{self._url}/checkpoints/{step}"):
                    if not (self.files / "checkpoints" / step).is_dir():
                        self._fetch_checkpoint(step)
                    self._copied.add(step)

    def _fetch_rollouts(self, there: dict[str, Any]) -> None:
        """Bring ``rollouts/`` to the bucket's state, plus what only this machine has of the step in which it ended.

        The file of a step is only appended to. Local answers belong to the run in the bucket as long as each local file
        begins with the bucket's. From the first one that does not, another machine has repeated the steps, so its
        answers count::

            bucket                  step 6, 7
            this machine            step 6, 7 and the first groups of 8      all are kept
            this machine, earlier   another step 6, and 8                    6 and 7 come from the bucket, 8 is deleted
        """
        own, theirs = self.files / ROLLOUTS, self.files / f".{ROLLOUTS}"
        shutil.rmtree(theirs, ignore_errors=True)
        stored = buckets.listing(f"{self._url}/{ROLLOUTS}") if ROLLOUTS in there else {}
        if stored:
            buckets.pull(f"{self._url}/{ROLLOUTS}", theirs)
        same = True
        for name in sorted(stored.keys() | {path.name for path in own.glob("[!.]*")}):
            if name in stored:
                same = same and _continues(own / name, theirs / name)
                if not same:
                    own.mkdir(exist_ok=True)
                    os.replace(theirs / name, own / name)
            elif not same or name < max(stored, default=""):
                (own / name).unlink()
        shutil.rmtree(theirs, ignore_errors=True)

    def _fetch_checkpoint(self, step: str) -> None:
        """Copy a checkpoint atomically."""
        part = self.files / f".{step}.part"
        shutil.rmtree(part, ignore_errors=True)
        found = buckets.copied(f"{self._url}/checkpoints/{step}", part)
        (self.files / "checkpoints").mkdir(exist_ok=True)
        (found / buckets.VERSIONS).unlink(missing_ok=True)
        found.rename(self.files / "checkpoints" / step)

    def copy_checkpoints(self) -> None:
        """Upload the complete checkpoints that an S3 bucket lacks, and delete those that were deleted locally.

        Damaged ones that were set aside locally are set aside in the bucket. A thread that saves after a signal also
        calls this.

        Raises:
            UserError: the bucket cannot be written.
        """
        folder = self.files / "checkpoints"
        if not self._copies or self._lost or not folder.is_dir():
            return
        with self._one_copies:
            self._copy_checkpoints(folder)

    def _copy_checkpoints(self, folder: pathlib.Path) -> None:
        kept = {path.name for path in folder.iterdir() if path.name.isdigit() or path.name.startswith(DAMAGED)}
        for step in sorted(kept - self._copied):
            there, last = f"{self._url}/checkpoints/{step}", folder / step / COMMIT
            buckets.push(folder / step, there, leave_out=COMMIT)
            if last.exists():  # this file makes the checkpoint complete
                buckets.push(last, f"{there}/{COMMIT}")
            self._copied.add(step)
        for step in self._copied - kept:
            buckets.remove([f"{self._url}/checkpoints/{step}/{COMMIT}"])  # first, so that a partial one does not count
            buckets.remove([f"{self._url}/checkpoints/{step}"])
        self._copied &= kept

    def abandon(self) -> None:
        """Stop all uploads, because another run now owns the bucket. Local files stay."""
        self._lost = True

    def close(self) -> None:
        """Release the staging directory."""
        try:
            self.copy_checkpoints()
        except UserError as error:
            log.error("%s; the newest checkpoint is in %s", error, self.files)
        if (held := _LOCKS.pop(self.files, None)) is not None:
            os.close(held)

    def _hold(self) -> None:
        if self.files in _LOCKS:
            return
        lock = os.open(self.files.with_name(f"{self.files.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise UserError(
                f"--workdir {self._url}: another process of this machine runs in it; wait for it or stop it"
            ) from error
        _LOCKS[self.files] = lock

    def _set_aside(self) -> None:
        """The bucket no longer has the run that this machine has: move the local files away."""
        if any(self.files.iterdir()):
            number = 1 + sum(1 for _ in self.files.parent.glob(f"{self.files.name}.before*"))
            before = self.files.with_name(f"{self.files.name}.before{number}")
            shutil.move(self.files, before)
            self.files.mkdir()
            log.warning("%s has no run; files of an earlier run on this machine are now in %s", self._url, before)

    # --- upload

    def upload(self) -> None:
        """Upload changed files, without the tape. A failure is a warning; the next call sends everything."""
        if not self.remote or self._lost:
            return
        try:
            self._upload()
            self._late = False
        except UserError as error:
            if not self._late:
                log.warning("%s; the files stay in %s, and the next step tries again", error, self.files)
            self._late = True

    def upload_all(self) -> None:
        """Upload everything, with the tape; call this before a checkpoint.

        Raises:
            UserError: the bucket cannot be written.
        """
        if self.remote and not self._lost:
            self._upload()
            self._tape.save()
            self.copy_checkpoints()

    def _upload(self) -> None:
        whole, grown = {}, []
        for path, name in self._candidates():
            stamp, sent = _stamp(path), self._sent.get(name)
            if stamp == sent:
                continue
            least = buckets.S3_PART if self._url.startswith("s3") else WHOLE
            if _grows(name) and sent and sent[0] == stamp[0] and stamp[1] > sent[1] >= least and not self._late:
                grown.append((path, name, stamp, sent[1]))
            else:
                whole[name] = (path, stamp)
        deleted = ("spent.", f"{ROLLOUTS}/")  # merged by host 0, and of steps before a checkpoint
        gone = [name for name in self._sent if name.startswith(deleted) and not (self.files / name).exists()]
        buckets.remove([f"{self._url}/{name}" for name in gone])
        for name in gone:
            del self._sent[name]
        files = {f"{self._url}/{name}": path for name, (path, _) in whole.items()}
        buckets.put(files, self._url, "--workdir")
        self._sent |= {name: stamp for name, (_, stamp) in whole.items()}
        self._final |= {name for name in whole if name.startswith("groups/")}
        for path, name, stamp, begin in grown:
            with path.open("rb") as file:
                file.seek(begin)
                buckets.append(f"{self._url}/{name}", file.read(stamp[1] - begin))
            self._sent[name] = stamp

    def _candidates(self) -> list[tuple[pathlib.Path, str]]:
        """Files that could have changed, with their names in the bucket."""
        found = [(p, p.name) for p in self.files.iterdir() if p.is_file() and not p.name.startswith((".", "tape"))]
        for folder in FOLDERS:
            names = []
            with contextlib.suppress(FileNotFoundError), os.scandir(self.files / folder) as entries:
                names = [f"{folder}/{entry.name}" for entry in entries if not entry.name.startswith(".")]
            found += [(self.files / name, name) for name in names if name not in self._final]
        return found


def stored_tape(name: paths.AnyPath, what: str = "") -> pathlib.Path:
    """The file of a tape, or of a run's tape; for a run in a bucket, a local copy assembled from the parts.

    Raises:
        UserError: there is no tape in the bucket, or it cannot be read.
    """
    if not paths.is_url(name):
        return tape_path(paths.as_path(name, what))
    url = os.fspath(name).rstrip("/")
    run, _, file = url.rpartition("/") if url.endswith(".sqlite") else (url, "", TAPE_NAME)
    there = buckets.listing(run, what)
    if file not in there:
        raise UserError(f"{what}{': ' if what else ''}there is no {file} at {run}; expected the directory of a run")
    place = paths.cache_dir() / "copies" / paths.folder_name(run) / file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    _StoredTape(run, place).restore(there)
    return place


class _StoredTape:
    """The tape of one host in the bucket: ``tape.sqlite``, and ``tape.parts/000001.sqlite`` with later rows.

    Each part is uploaded once, and the whole tape whenever the parts have grown to half of it. So a tape of n bytes
    costs O(n) bytes of upload, however many checkpoints a run has.
    """

    def __init__(self, url: str, file: pathlib.Path):
        self._file = file
        self._whole, self._folder = f"{url}/{file.name}", f"{url}/{file.stem}.parts"
        self._mark = parts.Mark()
        self._parts: dict[str, int] = {}  # name -> bytes
        self._bytes = 0  # size of the whole tape in the bucket

    def restore(self, there: dict[str, Any]) -> None:
        """Assemble the tape from the bucket, and add replies that only this machine has."""
        folder = self._file.with_name(f".{self._file.stem}.parts")
        shutil.rmtree(folder, ignore_errors=True)
        if self._file.name in there:
            known = None
            if self._file.exists():
                known = folder / "known.sqlite"
                parts.snapshot(self._file, known)
            buckets.pull(self._whole.rpartition("/")[0], folder, only=(self._file.name,))
            base = folder / self._file.name
            self._bytes = base.stat().st_size
            stored = buckets.listing(self._folder)
            self._parts = {name: int(info["size"]) for name, info in stored.items()}
            if stored:
                for path in sorted(buckets.pull(self._folder, folder / "parts")):
                    parts.merge(base, path)
            self._mark = parts.newest(base)
            if known is not None:
                parts.merge(base, known, keep=True)
            for name in (f"{self._file.name}-wal", f"{self._file.name}-shm"):
                self._file.with_name(name).unlink(missing_ok=True)
            os.replace(base, self._file)
            os.chmod(self._file, 0o600)
        shutil.rmtree(folder, ignore_errors=True)

    def save(self) -> None:
        """Upload the rows that were added to the tape since the last time.

        Raises:
            UserError: the bucket cannot be written.
        """
        if not self._file.exists() or (self._bytes and parts.newest(self._file) == self._mark):
            return
        copy = self._file.with_name(f".{self._file.name}.part")
        try:
            if self._bytes:
                end = parts.part(self._file, self._mark, copy)
                name, size = f"{len(self._parts) + 1:06d}.sqlite", copy.stat().st_size
                if size + sum(self._parts.values()) <= PARTS_SHARE * self._bytes:
                    buckets.put({f"{self._folder}/{name}": copy}, self._whole)
                    self._parts[name], self._mark = size, end
                    return
            end = parts.snapshot(self._file, copy)
            buckets.put({self._whole: copy}, self._whole)
            self._bytes, self._mark = copy.stat().st_size, end
            buckets.remove([f"{self._folder}/{name}" for name in self._parts])  # a kill before leaves them
            self._parts = {}
        finally:
            copy.unlink(missing_ok=True)


def _grows(name: str) -> bool:
    return name in GROWING or name.startswith("tensorboard/")


def _continues(path: pathlib.Path, earlier: pathlib.Path) -> bool:
    """Whether a file exists and begins with the bytes of another one."""
    return path.is_file() and path.read_bytes().startswith(earlier.read_bytes())


def _stamp(path: pathlib.Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _larger(a: Any, b: Any) -> Any:
    """Two trees of numbers merged, taking the larger of each number, because spending only grows."""
    if isinstance(a, dict) and isinstance(b, dict):
        return {k: _larger(a.get(k), b.get(k)) for k in a | b}
    if a is None or b is None:
        return b if a is None else a
    return max(a, b)
