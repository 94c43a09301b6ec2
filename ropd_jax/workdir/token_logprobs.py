"""``groups/step_000012.tokens.npz``: the log-probs of every sampled token, next to the step's groups. No jax.

    3.answers    int32   tokens of each answer of group 3
    3.logp       float16 the log-probabilities of all its answers, one answer after the other
    3.change     float16 their change by the update; only with ``log.token_logprobs="before_after"``
    3.bytes      uint8   bytes of the answer's text (UTF-8) that each token wrote; uint16 if a token is long

3 bytes per token before compression, 5 with the change; an answer's text takes about 4. The texts of the tokens are not
stored again: a reader splits the answer's text by ``bytes`` and needs no tokenizer. The stop token has 0 bytes. If the
sizes do not add up to the text, as after half a character at the token limit, they are 0 from there on.
"""

from __future__ import annotations

import io
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from ropd_jax.types import RolloutGroup
from ropd_jax.utils.files import write_atomic

OFF, ON, BEFORE_AFTER = "off", "on", "before_after"
MODES = (OFF, ON, BEFORE_AFTER)
_MOST = 1 << 26  # largest number of tokens read for a group; a damaged file could claim more


def write_token_logprobs(
    path: pathlib.Path,
    groups: Sequence[RolloutGroup],
    token_bytes_V: np.ndarray | None,
    changes: Sequence[Sequence[np.ndarray]] | None = None,
) -> None:
    """Writes the file of one step, atomically.

    Args:
        path: of the step's groups, ``step_000012.jsonl``; the new file is placed next to it.
        token_bytes_V: bytes that each token of the vocabulary writes; None omits ``bytes``.
        changes: per group and rollout, float32 per token: log-probability after the update minus before.
    """
    arrays: dict[str, np.ndarray] = {}
    for place, group in enumerate(groups):
        answers = group.rollouts
        arrays[f"{place}.answers"] = np.array([len(a.tokens_T) for a in answers], np.int32)
        arrays[f"{place}.logp"] = _joined([a.logp_T for a in answers], np.float16)
        if changes is not None:
            arrays[f"{place}.change"] = _joined(changes[place], np.float16)
        if token_bytes_V is not None:
            sizes = _joined([_sizes(a.tokens_T, a.text, token_bytes_V) for a in answers], np.uint16)
            arrays[f"{place}.bytes"] = sizes.astype(np.uint8) if sizes.max(initial=0) < 256 else sizes
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(file_of(path), buffer.getvalue(), private=True)


def read_token_logprobs(path: pathlib.Path, place: int) -> list[dict[str, np.ndarray]] | None:
    """``logp``, and ``change`` and ``bytes`` if stored, of each answer of a group; None if there is no file.

    Args:
        path: of the step's groups.
        place: index of the group in that file.

    Raises:
        ValueError: the file has a different format.
    """
    file = file_of(path)
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            ends = np.cumsum(_member(arrays, f"{place}.answers", "i", _MOST))
            total = int(ends[-1]) if len(ends) else 0
            found: dict[str, np.ndarray] = {}
            for name, kind in (("logp", "f"), ("change", "f"), ("bytes", "u")):
                if f"{place}.{name}" in arrays.files:
                    found[name] = _member(arrays, f"{place}.{name}", kind, total)
            if not 0 <= total <= _MOST or any(len(values) != total for values in found.values()):
                raise ValueError(f"{file.name} has inconsistent sizes")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{file.name} cannot be read: {error}") from error
    starts = [0, *ends[:-1]]
    return [{name: v[a:b] for name, v in found.items()} for a, b in zip(starts, ends, strict=True)]


def file_of(path: str | os.PathLike[str]) -> pathlib.Path:
    """The file next to ``step_000012.jsonl``."""
    return pathlib.Path(path).with_suffix(".tokens.npz")


def _member(arrays: Any, name: str, kind: str, most: int) -> np.ndarray:
    if arrays.zip.getinfo(f"{name}.npy").file_size > 4 * most + 4096:  # checked before decompression
        raise ValueError(f"{name} is too large")
    values = arrays[name]
    if values.ndim != 1 or values.dtype.kind != kind or len(values) > most:
        raise ValueError(f"{name} is {values.dtype} of shape {values.shape}")
    return values


def _joined(parts: Sequence[Any], dtype: Any) -> np.ndarray:
    finite = np.finfo(np.float16)
    whole = np.concatenate([np.asarray(p) for p in parts]) if parts else np.zeros(0)
    return (np.clip(whole, finite.min, finite.max) if np.dtype(dtype).kind == "f" else whole).astype(dtype)


def _sizes(tokens_T: np.ndarray, text: str, token_bytes_V: np.ndarray) -> np.ndarray:
    """Bytes of the text that each token wrote; all 0 if they do not add up to the text."""
    sizes_T = token_bytes_V[np.asarray(tokens_T)].astype(np.int64)
    for shown, rest in ((text, 1), (text.rstrip("\ufffd"), 5)):  # the stop token; a partial character at the end
        whole = len(shown.encode("utf-8", "surrogatepass"))
        for dropped in (0, 1):  # some decoders drop the space before the first word
            ends_T = np.cumsum(sizes_T) - dropped
            if whole in ends_T[-rest - 1 :] and sizes_T[0] >= dropped:
                sizes_T[0] -= dropped
                return np.where(ends_T <= whole, sizes_T, 0).astype(np.uint16)
    return np.zeros(len(sizes_T), np.uint16)
