"""Read GGUF files: metadata and tensors. Every failure is one line. Imports no jax.

The layout (version 2 and 3, little-endian): magic, version, number of tensors, number of metadata entries; the
entries (key, type, value); the tensors' names, shapes, types and offsets; then, aligned, their data. The header of a
file with 49,152 tokens is read in 0.2 s (`gguf.GGUFReader` takes 3.7 s, because it keeps an array for each string).
This matters because the weights (`weights.gguf`) and the tokenizer (`weights.gguf_tokenizer`) both read it.
Dequantization is left to the `gguf` package.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import struct

import numpy as np

from ropd_jax.types import UserError

VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor of a file: its shape (outermost axis first), GGML type, and where its bytes are."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int


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
            UserError: the file is missing, is not a GGUF file, has another version, or is truncated.
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
        self.metadata = {}
        for _ in range(n_entries):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("I"))
        infos = [self._info() for _ in range(n_tensors)]
        align = self.metadata.get("general.alignment", 32)
        if not isinstance(align, int) or align <= 0:
            raise self._damaged(f"general.alignment={align!r}")
        data = -(-self._at // align) * align
        self.tensors = {t.name: dataclasses.replace(t, start=data + t.start) for t in infos}

    def get(self, key: str, default=None):
        return self.metadata.get(key, default)

    def require(self, key: str):
        """The value of a key; raises UserError if it is absent."""
        if key not in self.metadata:
            raise UserError(f"{self.path} has no metadata key {key!r}; expected a whole llama-family GGUF file")
        return self.metadata[key]

    def read(self, name: str) -> np.ndarray:
        """A tensor, dequantized to float32.

        Raises:
            UserError: its type cannot be dequantized, or its bytes are not in the file.
        """
        import gguf

        t = self.tensors[name]
        try:
            kind = gguf.GGMLQuantizationType(t.type)
            block, size = gguf.GGML_QUANT_SIZES[kind]
            row = t.shape[-1] // block * size
            rows = math.prod(t.shape[:-1])
            stop = t.start + rows * row
            if stop > len(self._bytes):
                raise self._damaged(f"tensor {name!r} ends at byte {stop:,}")
            data = np.asarray(self._bytes[t.start : stop]).reshape(rows, row)
            return gguf.quants.dequantize(data, kind).astype(np.float32, copy=False).reshape(t.shape)
        except (NotImplementedError, ValueError, KeyError) as e:
            raise UserError(
                f"{self.path}: tensor {name!r} of GGML type {t.type} cannot be dequantized ({e}); "
                "use a file of type F32, F16, BF16, Q8_0, Q4_0, Q4_1 or a K quant"
            ) from e

    def _damaged(self, what: str) -> UserError:
        size = len(self._bytes)
        return UserError(f"{self.path} ({size:,} bytes) is truncated or damaged ({what}); fetch it again")

    def _take(self, n: int) -> memoryview:
        start, stop = self._at, self._at + n
        if stop > len(self._buffer):
            raise self._damaged(f"its header wants byte {stop:,}")
        self._at = stop
        return self._buffer[start:stop]

    def _scalar(self, code: str):
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _string(self) -> str:
        raw = bytes(self._take(self._scalar("Q")))
        return raw.decode("utf-8", errors="replace")

    def _value(self, kind: int):
        if kind == STRING:
            return self._string()
        if kind in SCALARS:
            return self._scalar(SCALARS[kind])
        if kind != ARRAY:
            raise self._damaged(f"unknown metadata type {kind} at byte {self._at:,}")
        kind, n = self._scalar("I"), self._scalar("Q")
        if kind in SCALARS:
            code = f"<{n}{SCALARS[kind]}"
            return list(struct.unpack(code, self._take(n * struct.calcsize("<" + SCALARS[kind]))))
        return [self._value(kind) for _ in range(n)]

    def _info(self) -> Stored:
        name, axes = self._string(), self._scalar("I")
        if axes > 8:
            raise self._damaged(f"tensor {name[:60]!r} of {axes} axes")
        shape = tuple(self._scalar("Q") for _ in range(axes))
        return Stored(name, shape[::-1], self._scalar("I"), self._scalar("Q"))  # GGUF counts axes from inside
