"""Published sets as TensorFlow Datasets, without TensorFlow: prepared once as array_record, read by position.

    rows = lambda: read_source(source, "~/benchmarks")[0]
    prepare(source, "~/tfds", rows)                 writes the rows once
    read_prepared(source, "~/tfds")                 reads them in the order of the source
A row is stored as JSON text with its number, because the sets share no other schema and TFDS shuffles what it writes.
Reading does not check the rows; ``source.check`` does.
checks nothing; ``source.check`` does.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ropd_jax.data.source import Source
from ropd_jax.types import UserError
from ropd_jax.utils.paths import only_local

VERSION = "1.0.0"

Rows = Callable[[], list[dict[str, Any]]]


def tfds_name(source: Source) -> str:
    """The name of the set's directory, e.g. ``ropd_aime24``."""
    return "ropd_" + re.sub(r"[^a-z0-9]+", "_", source.name.lower()).strip("_")


@functools.cache
def builder_class(source: Source) -> type:
    """The ``GeneratorBasedBuilder`` of a set. Its attribute ``rows`` is called if the set must be prepared."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder):
        name = tfds_name(source)
        VERSION = tfds.core.Version(VERSION)
        rows: Rows

        def _info(self) -> tfds.core.DatasetInfo:
            features = {"index": tfds.features.Scalar(dtype=np.int64), "row": tfds.features.Text()}
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{source.name}, one JSON text per row. Licence: {source.licence or 'not stated'}.",
                homepage=source.url or f"https://huggingface.co/datasets/{source.hub}",
                features=tfds.features.FeaturesDict(features),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
            return {source.split: self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            for i, row in enumerate(self.rows()):
                yield i, {"index": i, "row": json.dumps(row, ensure_ascii=True)}

    return Builder


def _builder(source: Source, directory: str | os.PathLike[str]) -> Any:
    return builder_class(source)(data_dir=str(only_local(directory, "tfds:DIR")), file_format="array_record")


def prepare(source: Source, directory: str | os.PathLike[str], rows: Rows) -> pathlib.Path:
    """Writes the set below ``directory``, unless they already exist; returns the path of its files.

    Args:
        rows: returns the rows; called only if they must be written.

    Raises:
        UserError: the directory cannot be written; or raised by ``rows``.
    """
    builder = _builder(source, directory)
    builder.rows = rows
    try:
        builder.download_and_prepare()
    except OSError as error:
        raise UserError(f"{directory} cannot be written ({error}); choose another directory") from error
    return pathlib.Path(builder.data_path)


def read_prepared(source: Source, directory: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], str]:
    """(rows in the order of their source, path of the files) of a prepared set.

    Raises:
        UserError: the set has not been prepared in the directory.
    """
    builder = _builder(source, directory)
    if not pathlib.Path(builder.data_path).is_dir():
        raise UserError(
            f"{source.name} is not prepared in {directory} ({tfds_name(source)}/{VERSION} is missing); "
            f"run ropd data NAME --prepare {directory} --data DIR"
        )
    data = builder.as_data_source(split=source.split)
    rows: list[dict[str, Any]] = [{}] * len(data)
    for example in data:
        rows[int(example["index"])] = json.loads(example["row"])
    return rows, f"tfds:{builder.data_path}"
