"""A published data set: where it comes from (`Source`), and whether its rows are as expected (`Found`).

A set that is incomplete, or whose text differs from the known one, is still used. ``Found`` goes
into the result, and every report starts with a warning.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ropd_jax.types import Prompt, UserError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a published set comes from, and what this version knows about it.

    Attributes:
        name: the set's name in messages.
        files: file names to look for in a directory; the first one that exists is read. A name with ``*`` means all
            its parts, in sorted order.
        hub, config, split: its id, configuration and split on the Hub.
        hub_file: the file to read, if the repository on the Hub holds several sets.
        url: another place to download it from, or "".
        licence: as its owners state it.
        rows: how many rows it has; None if that is not known.
        sha: `content_sha` of the whole set; None if the whole set was never available to us.
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
    """What was read, and what was expected. ``as_known`` is None if this version does not know the set's text."""

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


def check(source: Source, prompts: Sequence[Prompt], place: str) -> Found:
    """Compares what was read of a set with what was expected. A difference is logged as a warning."""
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
    """SHA-256 (16 hex digits) of the questions and gold answers; order, ids and spacing do not change it."""
    rows = sorted(f"{' '.join(p.metadata.get('question', p.question).split())}\t{p.answer or ''}" for p in prompts)
    return hashlib.sha256("\n".join(rows).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def first(row: Mapping[str, Any], keys: Sequence[str], where: str) -> Any:
    """The value of the first key that the row has.

    Raises:
        UserError: the row has none of them.
    """
    for key in keys:
        if row.get(key) is not None:
            return row[key]
    raise UserError(f"{where} has none of {', '.join(keys)} (it has {', '.join(map(str, row))}); expected one of them")
