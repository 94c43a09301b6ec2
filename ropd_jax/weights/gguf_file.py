"""Read GGUF files: metadata and tensors. Every error is one line. Imports no jax.

The layout (version 2 and 3, little-endian): magic, version, number of tensors, number of metadata entries; the
entries (key, type, value); the tensors' names, shapes, types and offsets; then, aligned, their data. The header of a
file with 49,152 tokens is read in 0.2 s (`gguf.GGUFReader` takes 3.7 s, because it keeps an array for each string).
This matters because both the weights (`weights.gguf`) and the tokenizer (`weights.gguf_tokenizer`) read it. The `gguf`
package dequantizes and knows the block sizes.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import struct
from typing import Any

import numpy as np

from ropd_jax.types import UserError

VERSIONS = (2, 3)
HEADER_BYTES = 1 << 26  # a file with 262,144 tokens and their merges needs 2^23
DEPTH = 4  # of nested arrays
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor of a file: its shape (outermost axis first), GGML type, and the place of its bytes."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    bytes: int


class GGUF:
    """An open file.

    Attributes:
        path: of the file.
        metadata: key to value; arrays are lists.
        tensors: name to `Stored`.
    """

    def __init__(self, path: str | pathlib.Path):
        """Read the header.

        Raises:
            UserError: the file is missing, is not a GGUF file, has another version, is truncated, or has tensors
                outside the file or on top of each other.
        """
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise UserError(f"{path} does not exist; expected a .gguf file")
        with self.path.open("rb") as f:
            magic = f.read(4)
        if magic != b"GGUF":
            raise UserError(f"{path} is not a GGUF file: it starts with {magic!r}, expected b'GGUF'")
        self._bytes = np.memmap(self.path, np.uint8, mode="r")
        self._buffer, self._at = self._bytes.data, 4
        version = self._scalar("I")
        if version not in VERSIONS:
            raise UserError(
                f"{path} is GGUF version {version}, expected {VERSIONS[0]} or {VERSIONS[1]} (little-endian)"
            )
        n_tensors, n_entries = self._scalar("Q"), self._scalar("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(n_entries):
            key = self._string()
            if key in self.metadata:
                raise self._damaged(f"metadata key {key[:60]!r} twice")
            self.metadata[key] = self._value(self._scalar("I"))
        infos = [self._info() for _ in range(n_tensors)]
        align = self.metadata.get("general.alignment", 32)
        if type(align) is not int or align <= 0 or align % 8:
            raise self._damaged(f"general.alignment={str(align)[:60]}, expected a multiple of 8")
        data = -(-self._at // align) * align
        self.tensors = {t.name: dataclasses.replace(t, start=data + t.start) for t in infos}
        self._check_places(len(infos), align)

    def get(self, key: str, default=None):
        return self.metadata.get(key, default)

    def require(self, key: str):
        """The value of a key; raises UserError if it is absent."""
        if key not in self.metadata:
            raise UserError(f"{self.path} has no metadata key {key!r}; expected a complete llama-family GGUF file")
        return self.metadata[key]

    def raw(self, name: str) -> memoryview:
        """The stored bytes of a tensor, not copied."""
        t = self.tensors[name]
        return self._buffer[t.start : t.start + t.bytes]

    def read(self, name: str) -> np.ndarray:
        """A tensor, dequantized to float32.

        Raises:
            UserError: its type cannot be dequantized, or its bytes are outside the file.
        """
        import gguf

        t = self.tensors[name]
        try:
            kind = gguf.GGMLQuantizationType(t.type)
            data = np.asarray(self._bytes[t.start : t.start + t.bytes]).reshape(math.prod(t.shape[:-1]), -1)
            return gguf.quants.dequantize(data, kind).astype(np.float32, copy=False).reshape(t.shape)
        except (NotImplementedError, ValueError, KeyError) as e:
            raise self._unknown_type(name, t.type, e) from e

    def _unknown_type(self, name: str, kind: int, error: object) -> UserError:
        return UserError(
            f"{self.path}: tensor {name[:60]!r} of GGML type {kind} cannot be dequantized ({error}); "
            "use a file of type F32, F16, BF16, Q8_0, Q4_0, Q4_1 or a K quant"
        )

    def _check_places(self, count: int, align: int) -> None:
        """Every tensor is inside the file, aligned, and after the end of the previous one."""
        if len(self.tensors) < count:
            raise self._damaged(f"{count:,} tensors with {len(self.tensors):,} names")
        end, before = 0, ""
        for t in sorted(self.tensors.values(), key=lambda t: (t.start, t.bytes)):
            if t.start % align:
                raise self._damaged(f"tensor {t.name[:60]!r} at byte {t.start:,}, expected a multiple of {align}")
            if t.start < end:
                raise self._damaged(f"tensor {t.name[:60]!r} overlaps the bytes of {before[:60]!r}")
            end, before = t.start + t.bytes, t.name
            if end > len(self._bytes):
                raise self._damaged(f"tensor {t.name[:60]!r} ends at byte {end:,}")

    def _damaged(self, what: str) -> UserError:
        size = len(self._bytes)
        return UserError(f"{self.path} ({size:,} bytes) is truncated or damaged ({what}); fetch it again")

    def _take(self, n: int) -> memoryview:
        start, stop = self._at, self._at + n
        if stop > len(self._buffer):
            raise self._damaged(f"its header needs byte {stop:,}")
        if stop > HEADER_BYTES:
            raise self._damaged(f"its header needs byte {stop:,}, expected at most {HEADER_BYTES:,}")
        self._at = stop
        return self._buffer[start:stop]

    def _scalar(self, code: str):
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _string(self) -> str:
        raw = bytes(self._take(self._scalar("Q")))
        return raw.decode("utf-8", errors="replace")

    def _value(self, kind: int, depth: int = 0):
        if kind == STRING:
            return self._string()
        if kind in SCALARS:
            return self._scalar(SCALARS[kind])
        if kind != ARRAY or depth == DEPTH:
            raise self._damaged(f"metadata of type {kind} at byte {self._at:,}")
        kind, n = self._scalar("I"), self._scalar("Q")
        if kind in SCALARS:
            data = self._take(n * struct.calcsize("<" + SCALARS[kind]))
            return list(struct.unpack(f"<{n}{SCALARS[kind]}", data))
        return [self._value(kind, depth + 1) for _ in range(n)]

    def _info(self) -> Stored:
        import gguf

        name, axes = self._string(), self._scalar("I")
        if not 0 < axes <= 8:
            raise self._damaged(f"tensor {name[:60]!r} of {axes} axes")
        shape = tuple(self._scalar("Q") for _ in range(axes))[::-1]  # GGUF lists the innermost axis first
        kind, start = self._scalar("I"), self._scalar("Q")
        try:
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except (ValueError, KeyError) as e:
            raise self._unknown_type(name, kind, e) from e
        if not all(shape) or shape[-1] % block:
            raise self._damaged(f"tensor {name[:60]!r} of shape {list(shape)} in blocks of {block}")
        return Stored(name, shape, kind, start, math.prod(shape) // block * size)
