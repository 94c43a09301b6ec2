"""Marks: one value for each answer, either a verifier's rows of true/false or a scorer's integers.

Answers are shown shuffled and numbered from 1, so marks come back by place and are sorted back::

    answers    a  b  c            index 0  1  2
    shown      c  a  b            order = [2, 0, 1]      (`shuffled`)
    marks      0  1  1            place 0  1  2          (`marks_of`)
    result     1  1  0            result[order[place]] = mark[place]
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ropd_jax.teacher.clients.errors import ConfigurationError, MalformedError, TeacherError
from ropd_jax.teacher.roles.json_reply import find_list, to_int


class Marks(NamedTuple):
    """For each answer, a value, or None and the cause."""

    values: tuple[Any, ...]
    causes: tuple[str | None, ...]


def shuffled(texts: Sequence[str], *, seed: int, key: str) -> list[int]:
    """The order in which answers are shown: ``order[place] = index``.

    Determined by a hash, so it does not depend on the author.
    """

    def rank(index: int) -> bytes:
        what = f"order:{seed}:{len(key)}:{key}:{index}:{texts[index]}"
        return hashlib.sha256(what.encode("utf-8", "surrogatepass")).digest()

    return sorted(range(len(texts)), key=rank)


def marks_of(text: str, n_answers: int, version: str, read: Callable[[dict], Any], token: str) -> Marks:
    """The marks in a reply's list ``answers``, for answers numbered from 1; ``read(item)`` returns a mark or None.

    Args:
        token: the request's token (`json_reply.token_of`).

    Raises:
        MalformedError: the whole reply is unusable, for example because of an index outside 1..n_answers.
    """
    values: list[Any] = [None] * n_answers
    causes: list[str | None] = ["missing"] * n_answers
    for item in find_list(text, "answers", version, token=token, where="the reply"):
        index = to_int(item.get("answer_index")) if isinstance(item, dict) else None
        if index is None or not 1 <= index <= n_answers:
            seen = item.get("answer_index") if isinstance(item, dict) else item
            raise MalformedError(f"answer_index is {seen!r:.60}; expected 1 to {n_answers}")
        mark, place = read(item), index - 1
        if causes[place] == "missing":  # the first mark for this answer
            values[place], causes[place] = mark, None if mark is not None else "malformed"
        elif values[place] != mark:  # a second, different mark: neither can be trusted
            values[place], causes[place] = None, "duplicate"
    return Marks(tuple(values), tuple(causes))


def beside(parts: Sequence[Marks | BaseException]) -> Marks:
    """Joins rows for the same answers side by side: verdicts on c1..c4 and on c5..c8 become rows for c1..c8.

    An answer that lacks a part has no row; its cause is that of the first missing part.

    Raises:
        ConfigurationError: from one of the parts, as in `joined`.
        TeacherError: the first failure, because then no answer has all its parts.
    """
    if failed := failures(parts):
        raise failed[0]
    rows = [part for part in parts if isinstance(part, Marks)]
    values: list[Any] = []
    causes: list[str | None] = []
    for n in range(len(rows[0].values)):
        cells = [row.values[n] for row in rows]
        values.append(None if None in cells else tuple(verdict for cell in cells for verdict in cell))
        causes.append(next((row.causes[n] for row in rows if row.values[n] is None), None))
    return Marks(tuple(values), tuple(causes))


def joined(sizes: Sequence[int], parts: Sequence[Marks | BaseException]) -> Marks:
    """The marks of consecutive parts with ``sizes`` answers. A failed part leaves its answers unscored.

    Raises:
        ConfigurationError: from one of the parts. The same applies to every error that is not a ``TeacherError``.
        TeacherError: the first failure, if every part failed.
    """
    failed = failures(parts)
    if len(failed) == len(parts):
        raise failed[0]
    values: list[Any] = []
    causes: list[str | None] = []
    for size, part in zip(sizes, parts, strict=True):
        values += part.values if isinstance(part, Marks) else [None] * size
        causes += part.causes if isinstance(part, Marks) else [getattr(part, "cause", None)] * size
    return Marks(tuple(values), tuple(causes))


def failures(parts: Sequence[Marks | BaseException]) -> list[BaseException]:
    """The parts that failed. Raises an error that affects more than its own answers."""
    failures = [p for p in parts if isinstance(p, BaseException)]
    for failure in failures:
        if isinstance(failure, ConfigurationError) or not isinstance(failure, TeacherError):
            raise failure
    return failures
