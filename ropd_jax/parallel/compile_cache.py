"""Stores compiled programs on disk, so that the next start of a run loads them instead of compiling.

    keep_programs      turns JAX's persistent cache on, in `cache_dir` (``compile_cache`` of a config)
    programs           number of programs this process has compiled and loaded so far, time spent and time saved

The directory is ``$XDG_CACHE_HOME/ropd_jax/xla`` (``~/.cache/ropd_jax/xla``), or inside a workdir in a bucket.
``JAX_COMPILATION_CACHE_DIR``, or ``jax_compilation_cache_dir`` set by the program, takes precedence;
``JAX_ENABLE_COMPILATION_CACHE=false`` disables all caches. A key is the program, its compiler options, the version of
XLA and the machine's instruction set. Entries can run code, so a directory that others can write to is not used.

JAX writes entries in place: a process that is killed meanwhile leaves half an entry, which is never repaired, and
another process can read it half written. `FileCache` has the same files, but writes them atomically.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import logging
import os
import pathlib
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from ropd_jax.utils import tracing

log = logging.getLogger(__name__)

WORTH_S = 0.1  # minimum compilation time of a stored program; JAX's default is a second
MOST_BYTES = 8 << 30  # limit of the default directory; the least recently used entries are removed first
_COMPILED = "/jax/core/compile/backend_compile_duration"  # also recorded for loading
_HIT = "/jax/compilation_cache/cache_hits"
_SAVED = "/jax/compilation_cache/compile_time_saved_sec"


def cache_dir(workdir: str | os.PathLike[str]) -> str:
    """The directory of compiled programs: in the user's cache, or inside a workdir in a bucket (``gs://...``)."""
    if "://" in (place := os.fspath(workdir)):
        return f"{place.rstrip('/')}/xla"
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return str(pathlib.Path(home) / "ropd_jax" / "xla")


def keep_programs(workdir: str | os.PathLike[str], *, on: bool = True) -> None:
    """Store programs that are compiled from now on. An unusable directory causes one warning, never an error.

    Args:
        on: ``compile_cache`` of a config. False does not change the user's JAX settings.
    """
    _listen()
    if not on or not jax.config.values["jax_enable_compilation_cache"]:
        return
    if not jax.config.values["jax_compilation_cache_dir"]:
        place = cache_dir(workdir)
        if "://" not in place and (why := _unusable(pathlib.Path(place))):
            log.warning(
                "compiled programs are not kept: %s %s; set XDG_CACHE_HOME or JAX_COMPILATION_CACHE_DIR", place, why
            )
            return
        jax.config.update("jax_compilation_cache_dir", place)
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_S)
        if "://" not in place:
            _trim(pathlib.Path(place))
    _install()


def _unusable(place: pathlib.Path) -> str:
    """Why the default directory cannot be used; "" if it can. It is created if missing."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
        stat = place.stat()
    except (OSError, RuntimeError) as error:
        return f"cannot be written ({getattr(error, 'strerror', None) or error})"
    if hasattr(os, "getuid") and (stat.st_uid != os.getuid() or stat.st_mode & 0o022):
        return "can be written by others, and a cache can hold code"
    return ""


def _trim(place: pathlib.Path) -> None:
    """Remove the least recently used entries until the rest fits into `MOST_BYTES`."""
    files = []
    for path in place.glob("*-cache"):
        try:
            files.append((path.stat().st_mtime, path.stat().st_size, path))
        except OSError:  # another process has removed it
            continue
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= MOST_BYTES:
            return
        total -= size
        for gone in (path, _seconds_file(path)):
            gone.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------- JAX's own parts


def _install() -> None:
    """Give JAX a cache with atomic writes. If JAX's internals have changed, its own cache is used."""
    try:
        from jax._src import cache_key, compilation_cache
        from jax._src.compilation_cache_interface import CacheInterface

        made, hook = compilation_cache.get_file_cache, cache_key.custom_hook
    except (ImportError, AttributeError):
        return
    if getattr(made, "writes_whole_files", False):
        return
    check = compilation_cache.decompress_executable

    class FileCache(CacheInterface):
        """A directory of compiled programs; see the module."""

        def __init__(self, path: pathlib.Path):
            self._path, self._writes = path, True

        def get(self, key: str) -> bytes | None:
            path = self._path / f"{key}-cache"
            try:
                value = path.read_bytes()
            except OSError:
                return None
            try:
                check(value)
            except Exception:  # half an entry of another version, or a damaged one
                _remove(path)
                return None
            _touch(path)
            _thread.entry = path
            return value

        def put(self, key: str, value: bytes) -> None:
            path = self._path / f"{key}-cache"
            if not self._writes or path.exists():
                return
            part = path.with_name(f".{threading.get_native_id()}.{os.getpid()}.part")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                part.write_bytes(value)
                os.replace(part, path)
                _thread.entry = path
            except OSError as error:
                self._writes = False
                _remove(part)
                log.warning("compiled programs are not kept: %s: %s", self._path, error.strerror or error)

    class BucketCache(CacheInterface):
        """JAX's own cache in a bucket, where objects appear only when complete; disabled after the first failure."""

        _path: Any  # shown by JAX

        def __init__(self, url: str):
            self._path = url
            self._inner = self._tried(lambda: made(url))

        def get(self, key: str) -> bytes | None:
            return self._tried(lambda: self._inner[0].get(key))

        def put(self, key: str, value: bytes) -> None:
            self._tried(lambda: self._inner[0].put(key, value))

        def _tried(self, do: Callable[[], Any]) -> Any:
            if getattr(self, "_inner", ()) is None:
                return None
            try:
                return do()
            except Exception as error:  # each storage has its own errors
                self._inner = None
                why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                log.warning("compiled programs are not kept: %s (%s)", self._path, why)
                return None

    def get_file_cache(path: str) -> tuple[Any, str] | None:
        if "://" in path:
            return BucketCache(path), path
        if jax.config.values["jax_compilation_cache_max_size"] != -1:
            return made(path)
        return FileCache(pathlib.Path(path)), path

    get_file_cache.writes_whole_files = True  # type: ignore[attr-defined]
    compilation_cache.get_file_cache = get_file_cache
    if jax.default_backend() == "cpu":
        cache_key.custom_hook = lambda: hook() + _instruction_set()


def _remove(path: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _touch(path: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(path)


def _instruction_set() -> str:
    """The instructions of this CPU, as a hash, because a home directory can be shared by different machines."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n")
        flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        flags = ""
    return hashlib.sha256(f"{platform.machine()} {platform.processor()} {flags}".encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------- the count


@dataclasses.dataclass(frozen=True)
class Programs:
    """Counts and times of programs so far.

    Attributes:
        compiled, loaded: their number.
        compile_s: seconds of compiling. load_s: seconds of loading.
        saved_s: seconds that the loaded programs originally took to compile, less ``load_s``.
    """

    compiled: int = 0
    loaded: int = 0
    compile_s: float = 0.0
    load_s: float = 0.0
    saved_s: float = 0.0

    def since(self, before: Programs) -> Programs:
        """The change since ``before``."""
        return Programs(*(a - b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(before), strict=True)))

    def __str__(self) -> str:
        text = f"{self.compiled} programs compiled in {self.compile_s:.1f} s, {self.loaded} loaded from the cache"
        return f"{text} in {self.load_s:.1f} s, which saved {max(self.saved_s, 0.0):.1f} s" if self.loaded else text


_thread = threading.local()
_lock = threading.Lock()
_so_far = Programs()
_early: collections.deque[tuple[str, float, float, dict[str, Any]]] = collections.deque(maxlen=1000)
_listening = False


def programs() -> Programs:
    """Programs that this process has compiled and loaded since the first call of `keep_programs`."""
    return _so_far


def hand_over(timeline: tracing.Timeline) -> None:
    """Write the programs that were compiled before the timeline existed."""
    while _early:
        name, start, end, where = _early.popleft()
        timeline.add(name, start, end, where)


def _listen() -> None:
    global _listening
    if not _listening:
        _listening = True
        jax.monitoring.register_event_listener(_on_event)
        jax.monitoring.register_event_duration_secs_listener(_on_duration)


def _on_event(event: str, **_: Any) -> None:
    if event == _HIT:
        _thread.hit = True


def _on_duration(event: str, duration_secs: float, **about: Any) -> None:
    global _so_far
    if event == _SAVED:
        _thread.saved_s = max(duration_secs, 0.0)  # JAX stores only whole seconds
    if event != _COMPILED:
        return
    hit, entry = getattr(_thread, "hit", False), getattr(_thread, "entry", None)
    saved_s = _saved(entry, duration_secs, getattr(_thread, "saved_s", 0.0)) if hit else 0.0
    if entry is not None and not hit:
        _note_seconds(entry, duration_secs)
    _thread.hit, _thread.entry, _thread.saved_s = False, None, 0.0
    with _lock:
        s = _so_far
        _so_far = Programs(
            s.compiled + (not hit),
            s.loaded + hit,
            s.compile_s + (0.0 if hit else duration_secs),
            s.load_s + (duration_secs if hit else 0.0),
            s.saved_s + saved_s,
        )
    now = time.monotonic()
    where = {"program": str(about.get("fun_name", ""))[:80], "cached": hit, "saved_s": round(saved_s, 3)}
    if not tracing.past("compile", now - duration_secs, now, **where):
        _early.append(("compile", now - duration_secs, now, where))


def _seconds_file(entry: pathlib.Path) -> pathlib.Path:
    return entry.with_name(entry.name.removesuffix("-cache") + "-seconds")


def _note_seconds(entry: pathlib.Path, seconds: float) -> None:
    with contextlib.suppress(OSError):
        _seconds_file(entry).write_text(f"{seconds:.3f}", encoding="ascii")


def _saved(entry: pathlib.Path | None, took: float, otherwise: float) -> float:
    """Seconds that loading an entry saved."""
    try:
        return max(float(_seconds_file(entry).read_text(encoding="ascii")) - took, 0.0) if entry else otherwise
    except (OSError, ValueError):
        return otherwise
