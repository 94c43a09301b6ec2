"""Whether mappings of any size are equal, by digests of fixed size; no jax.

A mapping is reduced to one number: the sum of the hashes of its items, which does not depend on their order and needs
no copy of them. If two sums differ, the keys are split into 64 parts by the hash of the key, and the parts are summed
again, until few keys are left:

    1,000,000 keys    total     20 bytes          differ
                      parts   64 x 8 bytes        part 17 differs: 15,600 keys
                      parts   64 x 8 bytes        part 3 of it: 240 keys
                      listed  240 keys with 16 bytes each
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

PARTS = 64  # 64 sums of 8 bytes fit into the first collective of an exchange
Items = Iterable[tuple[str, Any]]


class Parts(NamedTuple):
    """The number of keys, and the sum of each of the 64 parts."""

    keys: int
    sums: bytes

    def differing(self, other: Parts) -> int:
        """The first part whose sum differs."""
        pairs = zip(_eights(self.sums), _eights(other.sums), strict=True)
        return next(i for i, (a, b) in enumerate(pairs) if a != b)


def total(items: Items) -> bytes:
    """20 bytes: equal for equal items in any order."""
    count, summed = 0, 0
    for key, value in items:
        count += 1
        summed += int.from_bytes(_item(key, value), "little")
    return count.to_bytes(4, "little") + (summed % (1 << 128)).to_bytes(16, "little")


def parts(items: Items, prefix: bytes = b"") -> Parts:
    """The parts of the keys below ``prefix``, a path of parts: bytes 17, 3 are part 3 of part 17."""
    count, sums = 0, [0] * PARTS
    for key, value in items:
        path = _path(key)
        if path[: len(prefix)] == prefix:
            count += 1
            sums[path[len(prefix)]] += int.from_bytes(_item(key, value)[:8], "little")
    return Parts(count, b"".join((s % (1 << 64)).to_bytes(8, "little") for s in sums))


def listed(items: Items, prefix: bytes) -> dict[str, bytes]:
    """The hash of each item below ``prefix``, by key."""
    return {key: _item(key, value) for key, value in items if _path(key)[: len(prefix)] == prefix}


def _item(key: str, value: Any) -> bytes:
    text = f"s{value}" if isinstance(value, str) else f"r{value!r}"
    return hashlib.blake2b(f"{len(key)} {key}{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _path(key: str) -> bytes:
    """Ten nested parts: bytes below 64."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=10).digest()
    return bytes(b % PARTS for b in digest)


def _eights(sums: bytes) -> list[bytes]:
    return [sums[i : i + 8] for i in range(0, len(sums), 8)]
