"""Rows of a published data set, from a directory of files or from the Hub; what is expected of them is checked.

``ROPD_DATA`` (or ``--data DIR``) names a directory with one JSONL file a set. The rows may have the Hub's own column
names or those of the loaders here; each set says which files it looks for and where they can be had. Nothing is
downloaded unless ``datasets`` is installed and the place is ``hub``.

A file with another number of rows, or other text, is read all the same and said to be so: ``Found`` goes into the
result, and no figure is shown without it.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import importlib.util
import logging
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ropd_jax.types import Prompt, UserError
from ropd_jax.utils.files import numbered_rows

log = logging.getLogger(__name__)

HUB = "hub"
PREPARED = "tfds:"
ENVIRONMENT = "ROPD_DATA"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a set comes from, and what is known of it.

    Attributes:
        name: of the set, in messages.
        files: names that are looked for in a directory, the first that is there is read; a name with ``*`` stands
            for all parts, in sorted order.
        hub, config, split: of the Hub. hub_file: the one file of a repository that holds several sets.
        url: where else it can be had, or "".
        licence: as its owners state it.
        rows: how many it has; None if nobody knows.
        sha: `content_sha` of the whole set; None where it was never seen whole.
    """

    name: str
    files: tuple[str, ...]
    hub: str
    split: str
    config: str = ""
    hub_file: str = ""
    url: str = ""
    licence: str = ""
    rows: int | None = None
    sha: str | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """What was read. ``as_known``: is it what this version knows the set to be (None: it does not know)?"""

    place: str
    rows: int
    sha: str
    rows_expected: int | None
    sha_expected: str | None

    @property
    def as_known(self) -> bool | None:
        if self.rows_expected is not None and self.rows != self.rows_expected:
            return False
        return None if self.sha_expected is None else self.sha == self.sha_expected

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"as_known": self.as_known}


def read_source(source: Source, place: str | os.PathLike[str] = "") -> tuple[list[dict[str, Any]], str]:
    """(rows, where they were read) of a set.

    Args:
        place: a directory, ``tfds:DIR`` (prepared by `builders.prepare`), ``hub``, or "" for the directory that
            ``ROPD_DATA`` names, without it the Hub.

    Raises:
        UserError: nothing there; the message names the files looked for and where they can be had.
    """
    directory = str(place) if place else os.environ.get(ENVIRONMENT, "")
    if directory.startswith(PREPARED):
        from ropd_jax.data.tfds import read_prepared

        return read_prepared(source, directory.removeprefix(PREPARED))
    if directory and directory != HUB:
        return _from_directory(source, pathlib.Path(directory).expanduser())
    if not directory and importlib.util.find_spec("datasets") is None:
        raise UserError(f"{source.name}: no data; {_remedy(source)}")
    return _from_hub(source)


def check(source: Source, prompts: Sequence[Prompt], place: str) -> Found:
    """What the prompts of a set are, next to what was expected; a difference is a warning."""
    found = Found(place, len(prompts), content_sha(prompts), source.rows, source.sha)
    if found.rows_expected not in (None, found.rows):
        log.warning("%s has %d of %d rows in %s", source.name, found.rows, found.rows_expected, place)
    elif found.as_known is False:
        log.warning(
            "%s in %s differs from the text that this version knows (hash %s, expected %s)",
            source.name, place, found.sha, found.sha_expected,
        )  # fmt: skip
    return found


def content_sha(prompts: Iterable[Prompt]) -> str:
    """First 16 hex digits of the SHA-256 over questions and gold answers, whatever their order, ids and spacing."""
    rows = sorted(f"{' '.join(p.metadata.get('question', p.question).split())}\t{p.answer or ''}" for p in prompts)
    return hashlib.sha256("\n".join(rows).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def first(row: Mapping[str, Any], keys: Sequence[str], where: str) -> Any:
    """The value of the first key that the row has.

    Raises:
        UserError: it has none of them.
    """
    for key in keys:
        if row.get(key) is not None:
            return row[key]
    raise UserError(f"{where} has none of {', '.join(keys)} (it has {', '.join(map(str, row))}); expected one of them")


def _from_directory(source: Source, directory: pathlib.Path) -> tuple[list[dict[str, Any]], str]:
    if not directory.is_dir():
        raise UserError(f"data directory {str(directory)!r} does not exist; {_remedy(source)}")
    for name in source.files:
        parts = [pathlib.Path(p) for p in sorted(glob.glob(str(directory / name)))]
        if parts:
            rows = [row for part in parts for _, row in numbered_rows(part)]
            return rows, str(parts[0]) if len(parts) == 1 else str(directory / name)
    raise UserError(f"{source.name} is not in {directory}; {_remedy(source)}")


def _from_hub(source: Source) -> tuple[list[dict[str, Any]], str]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{source.name}: the Hub needs the package datasets (pip install datasets)") from error
    if not source.hub:
        raise UserError(f"{source.name} has no Hub id; {_remedy(source)}")
    log.info("reading %s from the Hub", source.hub)
    try:
        files = {"data_files": source.hub_file} if source.hub_file else {}
        rows = datasets.load_dataset(source.hub, source.config or None, split=source.split, **files)
        return [dict(row) for row in rows], f"hub:{source.hub}"
    except (OSError, ValueError, RuntimeError) as error:  # datasets' own errors derive from these
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{source.name}: the Hub gave no {source.hub} ({what}); {_remedy(source)}") from error


def _remedy(source: Source) -> str:
    places = [f"https://huggingface.co/datasets/{source.hub}"] if source.hub else []
    places += [source.url] if source.url else []
    return (
        f"put {' or '.join(source.files)} (JSONL, from {' or '.join(places)}) into a directory and name it with "
        f"--data DIR or {ENVIRONMENT}"
    )
