"""Short hashes of the contents of a config's files, so that a run can continue with other paths to the same content.

    a file of up to 64 MiB          SHA-256 of all of it
    a larger file                   SHA-256 of its size, its first and last MiB, and 64 samples of 64 KiB between them
    a directory with a checkpoint   SHA-256 of the names and hashes of its weights, configs and tokenizer files
    questions                       SHA-256 of id, messages and answer of each, in their order

A sample takes milliseconds for a checkpoint of any size. It detects a different checkpoint (every weight differs),
size or header, and misses a change of a few bytes in the middle of a large file.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ropd_jax.types import Prompt
from ropd_jax.utils.paths import local_file
from ropd_jax.weights import hub
from ropd_jax.weights.student import find
from ropd_jax.workdir.keys import KEYS, QUESTIONS

WHOLE = 64 << 20  # bytes up to which a file is read in full
EDGE, SAMPLE, SAMPLES = 1 << 20, 1 << 16, 64
_URL = re.compile(r"[a-z0-9]+://")
CHECKPOINTS = ("student.checkpoint", "lopd.checkpoint")
OF_CHECKPOINT = (*hub.SMALL, *hub.WEIGHTS)


def content_hash(path: pathlib.Path) -> str:
    """The hash of a file or of a directory with a checkpoint; see the module.

    Raises:
        OSError: the file or directory cannot be read.
    """
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted({f for pattern in OF_CHECKPOINT for f in path.glob(pattern) if f.is_file()}):
            digest.update(f"{file.name}\0{content_hash(file)}\0".encode())
    else:
        _add_file(digest, path)
    return digest.hexdigest()[:32]


def _add_file(digest: Any, path: pathlib.Path) -> None:
    with path.open("rb") as f:
        size = f.seek(0, os.SEEK_END)
        f.seek(0)
        if size <= WHOLE:
            while block := f.read(EDGE):
                digest.update(block)
            return
        digest.update(f"{size}\0".encode())
        digest.update(f.read(EDGE))
        for i in range(1, SAMPLES + 1):
            f.seek(EDGE + (size - 2 * EDGE) * i // (SAMPLES + 1))
            digest.update(f.read(SAMPLE))
        f.seek(size - EDGE)
        digest.update(f.read(EDGE))


def questions_hash(prompts: Iterable[Prompt]) -> str:
    """The hash of questions, in their order."""
    digest = hashlib.sha256()
    for p in prompts:
        digest.update(repr((p.id, [(m.role, m.content) for m in p.messages], p.answer)).encode("utf-8", "replace"))
    return digest.hexdigest()[:32]


def file_contents(values: Mapping[str, Any], *, weights: bool) -> dict[str, str]:
    """The hash of each file that a config names, by its key; keys that name no file are omitted.

    Args:
        values: of the config, by key (`config.flatten`).
        weights: False omits Hub checkpoints, whose weights might not be downloaded yet.
    """
    found = {}
    for name, key in KEYS.items():
        value = values.get(name)
        if not key.by_content or name in QUESTIONS or not isinstance(value, str) or not value:
            continue
        if name in CHECKPOINTS:
            local = pathlib.Path(value).expanduser().exists() or not hub.is_id(value)
            path = find(value) if weights or local else None
        else:
            path = _file(value) if name != "method" or value.endswith(".py") else None
        if path is not None:
            found[name] = content_hash(path)
    return found


def _file(value: str) -> pathlib.Path | None:
    """The file that a value names, or None if it is the name of something in this package, or JSON."""
    try:
        path = local_file(value) if _URL.match(value) else pathlib.Path(value).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # JSON is too long for a file name; an unknown ~user has no home
        return None
