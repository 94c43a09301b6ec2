"""Prompts outside of memory: a sequence whose items are stored in a temporary file once they are large in total.

A million prompts take about 1.5 GB of Python objects on every host. Packed, each takes 16 bytes of memory.
"""

from __future__ import annotations

import array
import pickle
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from ropd_jax.types import Prompt

IN_MEMORY = 32 << 20  # bytes of a set that needs no file


class _Store:
    """The file, closed when the last sequence that reads it is deleted."""

    def __init__(self) -> None:
        self.file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
        self._lock = threading.Lock()
        weakref.finalize(self, self.file.close)

    def read(self, start: int, size: int) -> bytes:
        with self._lock:
            self.file.seek(start)
            return self.file.read(size)


class Packed(Sequence[Prompt]):
    """Prompts in their original order; each access makes a new, equal `Prompt`.

    The file has no name and is deleted with the process. Only this process can write it.
    """

    def __init__(self, prompts: Iterable[Prompt]):
        self._store = _Store()
        self._starts, self._sizes = array.array("q"), array.array("q")
        at = 0
        for prompt in prompts:
            data = pickle.dumps(prompt, 5)
            self._store.file.write(data)
            self._starts.append(at)
            self._sizes.append(len(data))
            at += len(data)

    def select(self, places: Sequence[int]) -> Packed:
        """The prompts at these places, in their order; the file is shared."""
        found = object.__new__(Packed)
        found._store = self._store
        found._starts = array.array("q", (self._starts[i] for i in places))
        found._sizes = array.array("q", (self._sizes[i] for i in places))
        return found

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, at: int) -> Prompt: ...

    @overload
    def __getitem__(self, at: slice) -> list[Prompt]: ...

    def __getitem__(self, at: int | slice) -> Prompt | list[Prompt]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        return pickle.loads(self._store.read(self._starts[at], self._sizes[at]))

    def __iter__(self) -> Iterator[Prompt]:
        return (self[i] for i in range(len(self)))


def select(prompts: Sequence[Prompt], places: Sequence[int]) -> Sequence[Prompt]:
    """The prompts at these places; packed ones are not copied."""
    if len(places) == len(prompts):
        return prompts
    return prompts.select(places) if isinstance(prompts, Packed) else tuple(prompts[i] for i in places)
