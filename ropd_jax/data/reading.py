"""Rows of a published data set, from a directory of files, from prepared TFDS files, or from the Hub.

``ROPD_DATA`` (or ``--data DIR``) names a directory with one JSONL file per set. The rows can have the column names of
the Hub or those of the loaders here. Each set lists its file names and where to download them. Nothing is downloaded
unless the package ``datasets`` is installed and the place is ``hub``.
"""

from __future__ import annotations

import glob
import importlib.util
import logging
import os
import pathlib
from typing import Any

from ropd_jax.data.source import Source
from ropd_jax.data.tfds import read_prepared
from ropd_jax.types import UserError
from ropd_jax.utils import paths
from ropd_jax.utils.files import numbered_rows

log = logging.getLogger(__name__)

HUB = "hub"
PREPARED = "tfds:"
ENVIRONMENT = "ROPD_DATA"


def read_source(source: Source, place: str | os.PathLike[str] = "") -> tuple[list[dict[str, Any]], str]:
    """(rows, where they were read) of a set.

    Args:
        place: a directory, ``tfds:DIR`` (prepared by `tfds.prepare`), ``hub``, or "". An empty place means the
            directory that ``ROPD_DATA`` names, or the Hub if it is not set.

    Raises:
        UserError: no rows found, with the files and where to download them.
    """
    directory = str(place) if place else os.environ.get(ENVIRONMENT, "")
    if directory.startswith(PREPARED):
        return read_prepared(source, directory.removeprefix(PREPARED))
    if directory and directory != HUB:
        if paths.is_url(directory):
            place = paths.local_run(directory, source.name, only=source.files)
            if not place.is_dir():
                raise UserError(f"{source.name} is not at {directory}; {_remedy(source)}")
            return _from_directory(source, place)
        return _from_directory(source, pathlib.Path(directory).expanduser())
    if not directory and importlib.util.find_spec("datasets") is None:
        raise UserError(f"{source.name}: no data; {_remedy(source)}")
    return _from_hub(source)


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
        raise UserError(f"{source.name}: cannot read {source.hub} from the Hub ({what}); {_remedy(source)}") from error


def _remedy(source: Source) -> str:
    places = [f"https://huggingface.co/datasets/{source.hub}"] if source.hub else []
    places += [source.url] if source.url else []
    return (
        f"put {' or '.join(source.files)} (JSONL, from {' or '.join(places)}) into a directory and name it with "
        f"--data DIR or {ENVIRONMENT}"
    )
