"""Reads and writes Hugging Face directories. Imports no jax and no transformers.

1. `config.json` becomes a `ModelConfig` (`families`), or an error that names the unsupported feature.
2. The headers of all `*.safetensors` are compared with `tensors_of` before any weight is read.
3. `HFSource` then reads any part of a tensor. `tensors.host_tree` reads all, `load.stream` places them on a mesh.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import logging
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ropd_jax.models.config import ModelConfig
from ropd_jax.types import UserError
from ropd_jax.utils.files import read_json
from ropd_jax.weights.families import config_json, read_config
from ropd_jax.weights.safetensors_file import read_header
from ropd_jax.weights.tensors import Tensor, check_shapes, get_leaf, tensors_of

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # safetensors' names of the above
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
SHARD_BYTES = 5_000_000_000  # of each written file
SINGLE, ADAPTER = "model.safetensors", "adapter_model.safetensors"  # the second is PEFT's, next to a base
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
COMPARED_AT_ONCE = 1 << 24  # numbers
log = logging.getLogger(__name__)


TEXT_PREFIXES = ("model.language_model.", "language_model.model.")  # multimodal checkpoints
NOT_TEXT = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def text_name(name: str) -> str | None:
    """The name of a tensor in a text-only checkpoint; None if it belongs to the vision part."""
    if name.startswith(NOT_TEXT):
        return None
    for prefix in TEXT_PREFIXES:
        if name.startswith(prefix):
            return "model." + name.removeprefix(prefix)
    return name.removeprefix("language_model.")


class HFSource:
    """An open Hugging Face directory (see `tensors.Source`). It reads only the bytes that are requested.

    These are plain reads, not memory maps: mapped pages count as memory of the process, even clean ones.
    """

    def __init__(self, path: str | pathlib.Path):
        """Read the config and the headers.

        Raises:
            UserError: missing or unsupported config; truncated or wrong weights; a missing, extra or misshapen tensor.
        """
        path = pathlib.Path(path)
        self.cfg = read_config(path)
        self._last: tuple[Any, np.ndarray | None] = (None, None)
        self._home: dict[str, tuple[_Shard, str]] = {}
        for shard, stored in ((s, n) for s in map(_Shard, weight_files(path)) for n in s.header):
            name = text_name(stored)
            if name is None or name.endswith(".rotary_emb.inv_freq"):
                continue
            if name in self._home:
                first, other = self._home[name]
                raise UserError(
                    f"{path} holds tensor {name!r} twice, as {other!r} in {first.file.name} and {stored!r} in "
                    f"{shard.file.name}; delete the outdated file"
                )
            self._home[name] = shard, stored
        self.cfg = dataclasses.replace(self.cfg, tied=self._tie(path))
        shapes = {n: shard.shape(stored) for n, (shard, stored) in self._home.items()}
        check_shapes(self.cfg, shapes, lambda t: t.hf, str(path))
        for name, (shard, stored) in self._home.items():
            if shard.header[stored]["dtype"] not in STORED:
                raise UserError(
                    f"{shard.file}: tensor {name!r} is stored as {shard.header[stored]['dtype']}, expected one of "
                    f"{', '.join(STORED)}; use the unquantized checkpoint"
                )

    def _tie(self, path: pathlib.Path) -> bool:
        """Whether the head is the embedding table, from config and files, as in transformers.

        Stores the needed tables in ``_home``: some checkpoints store one table under both names, some only under the
        head's.
        """
        embed, head = self._home.get(EMBED), self._home.get(HEAD)
        if not self.cfg.tied:
            if head is not None or embed is None or HEAD in _indexed(path):
                return False  # a file that lacks tensors of its index is incomplete
            log.warning(
                "%s: config.json has tie_word_embeddings=false, but there is no %s; the embedding table is also the "
                "head (tied). If the checkpoint has its own head, fetch it again", path, HEAD,
            )  # fmt: skip
            return True
        if head is None:
            return True
        if embed is None:
            self._home[EMBED] = self._home.pop(HEAD)
            return True
        if self._equal(embed, head):
            del self._home[HEAD]
            return True
        log.warning(
            "%s: config.json has tie_word_embeddings=true, but %s differs from the embedding table; the student has "
            "both (untied). Set tie_word_embeddings to false to silence this", path, HEAD,
        )  # fmt: skip
        return False

    def _equal(self, one: tuple[_Shard, str], other: tuple[_Shard, str]) -> bool:
        """Whether two stored tensors have the same numbers; the rows are read in parts."""
        (a, a_name), (b, b_name) = one, other
        readable = all(shard.header[name]["dtype"] in STORED for shard, name in (one, other))
        if not readable or a.shape(a_name) != b.shape(b_name):
            return False  # `check_shapes` and the check of dtypes report the error
        rows, width = a.shape(a_name)[0], max(1, math.prod(a.shape(a_name)[1:]))
        step = max(1, COMPARED_AT_ONCE // width)
        parts = (slice(at, min(at + step, rows)) for at in range(0, rows, step))
        return all(np.array_equal(a.rows(a_name, p), b.rows(b_name, p)) for p in parts)

    @property
    def dtype(self) -> str:
        """The stored dtype of most of its weights."""
        sizes: collections.Counter[str] = collections.Counter()
        for shard, stored in self._home.values():
            sizes[STORED[shard.header[stored]["dtype"]]] += math.prod(shard.shape(stored))
        return sizes.most_common(1)[0][0]

    def read(self, t: Tensor, i: tuple[int, ...], part: tuple[slice, ...]) -> np.ndarray:
        shard, stored = self._home[t.hf.format(*i)]
        rows, *columns = t.stored_part(part)
        key = (shard.file, stored, rows.start, rows.stop)
        if self._last[0] != key:  # devices that share rows read one after another
            self._last = (None, None)  # frees the old array before the new one is read
            self._last = (key, shard.rows(stored, rows))
        value = self._last[1]
        assert value is not None
        return t.from_stored(value[(slice(None), *columns)], part)

    def close(self) -> None:
        self._last = (None, None)
        for shard, _ in self._home.values():
            shard.close()


def _indexed(path: pathlib.Path) -> set[str]:
    """The text part's tensors in the index; empty if no index is used."""
    if not (path / INDEX).exists() or (path / SINGLE).exists():
        return set()
    return {t for n in read_json(path / INDEX)["weight_map"] if (t := text_name(n))}


class _Shard:
    """One safetensors file (see `safetensors_file`)."""

    def __init__(self, file: pathlib.Path):
        self.file = file
        self.header, self._data = read_header(file)
        self._open: io.FileIO | None = None

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.header[name]["shape"])

    def rows(self, name: str, rows: slice) -> np.ndarray:
        """Rows of a tensor, all columns."""
        _, *rest = self.shape(name)
        value = np.empty((rows.stop - rows.start, *rest), DTYPES[STORED[self.header[name]["dtype"]]])
        view = value.reshape(-1).view(np.uint8).data
        self._open = self._open or self.file.open("rb", buffering=0)
        self._open.seek(self._data + self.header[name]["data_offsets"][0] + rows.start * value[:1].nbytes)
        while view:
            n = self._open.readinto(view)
            if not n:
                raise UserError(f"{self.file} became shorter while it was read; fetch it again")
            view = view[n:]
        return value

    def close(self) -> None:
        if self._open is not None:
            self._open.close()


def weight_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files of a directory: ``model.safetensors``, else those of the index, else all.

    transformers looks in the same order, so an outdated index from an older save is not used.

    Raises:
        UserError: there are none, or the index names one that is missing or in another directory.
    """
    index, single = path / INDEX, path / SINGLE
    if single.exists():
        files = [single]
        if index.exists() and _mapped(index) != {SINGLE}:
            log.warning(
                "%s has both %s and %s, which names other files; the weights of %s are used, as in transformers. "
                "Delete the outdated one", path, SINGLE, INDEX, SINGLE,
            )  # fmt: skip
    elif index.exists():
        if not (names := _mapped(index)):
            raise UserError(f"{index} has no 'weight_map'; expected tensor names and their files, fetch it again")
        files = [path / shard_name(index, name) for name in sorted(names)]
    else:
        files = sorted(p for p in path.glob("*.safetensors") if p.name != ADAPTER)
    if not files:
        other = sorted(p.name for p in path.iterdir() if p.suffix in (*PICKLES, ".gguf") or p.name == ADAPTER)
        seen = f"only {', '.join(other[:3])}" if other else "none"
        raise UserError(
            f"{path} has no *.safetensors (weights found: {seen}); fetch or convert the safetensors weights"
        )
    for file in files:
        if not file.exists():
            raise UserError(f"{file} does not exist, but {index.name} names it; the download is incomplete")
        check_inside(path, file)
    return files


def _mapped(index: pathlib.Path) -> set[str]:
    """The files in an index; empty if it is damaged."""
    try:
        weight_map = read_json(index).get("weight_map")
    except UserError:
        if (index.parent / SINGLE).exists():
            return set()
        raise
    return set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()


def shard_name(index: pathlib.Path, name: str) -> str:
    """The name of a shard, if it is that of a safetensors file in the directory of the index.

    Raises:
        UserError: the name is in another directory, or of another kind of file.
    """
    if name in (".", "..") or name != pathlib.PurePath(name).name or "\\" in name or "\0" in name:
        raise UserError(f"{index} names the file {name[:200]!r}, expected one in its own directory; fetch it again")
    if not name.endswith(".safetensors"):
        raise UserError(
            f"{index} names the file {name[:200]!r}, expected *.safetensors (a pickle can run code when it is read); "
            "fetch or convert the safetensors weights"
        )
    return name


def check_inside(path: pathlib.Path, file: pathlib.Path) -> None:
    """Reject a link that leads out of the directory.

    The Hub's cache consists of links: ``models--NAME/snapshots/REVISION/FILE`` leads to ``models--NAME/blobs/HASH``.

    Raises:
        UserError: the link leads elsewhere.
    """
    home, target = path.resolve(), file.resolve()
    blobs = home.parent.parent / "blobs"
    if target.is_relative_to(home) or (home.parent.name == "snapshots" and target.parent == blobs):
        return
    raise UserError(f"{file} is a link to {target}, which is not in {path}; copy the file, or give its own directory")


def save_hf(
    path: str | pathlib.Path,
    cfg: ModelConfig,
    params: Mapping,
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    config: Mapping | None = None,
    **extra,
) -> None:
    """Write ``config.json`` and ``model.safetensors`` (or shards and their index), for `HFSource` and transformers.

    Each file is written under a temporary name and renamed, so an interrupted save leaves the old file.

    Args:
        path: the directory; created if it does not exist.
        params: tree of arrays, layers stacked.
        dtype: of the stored weights: float32, bfloat16 or float16.
        shard_bytes: no file is larger, except one that holds a single larger tensor.
        config: the content of config.json, in place of `config_json` of ``cfg``.
        extra: further keys of config.json.

    Raises:
        UserError: the tree does not fit ``cfg``, the dtype is unknown, or writing fails.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} cannot be stored; expected one of {', '.join(DTYPES)}")
    leaves = {t.path: get_leaf(params, t) for t in tensors_of(cfg)}
    if config is None:
        raw = config_json(cfg, dtype, **extra)
    else:
        raw = {**config, "dtype" if "dtype" in config else "torch_dtype": dtype, **extra}
    path = pathlib.Path(path)
    part = path / f".part.{os.getpid()}"
    files = _plan(cfg, DTYPES[dtype].itemsize, shard_bytes)
    names = [SINGLE]
    if len(files) > 1:
        names = [f"model-{k + 1:05d}-of-{len(files):05d}.safetensors" for k in range(len(files))]
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name, tensors in zip(names, files, strict=True):
            flat = {t.hf.format(*i): t.to_stored(np.asarray(leaves[t.path][i], DTYPES[dtype])) for t, i in tensors}
            save_file(flat, part, metadata={"format": "pt"})
            part.chmod(0o644)  # safetensors makes it readable by the owner only
            part.replace(path / name)
        if len(files) > 1:
            home = {t.hf.format(*i): name for name, ts in zip(names, files, strict=True) for t, i in ts}
            total = sum(math.prod(t.sizes) for ts in files for t, _ in ts) * DTYPES[dtype].itemsize
            _write_json(part, path / INDEX, {"metadata": {"total_size": total}, "weight_map": home})
            (path / SINGLE).unlink(missing_ok=True)  # from an older save; it would be read instead of the shards
        else:
            (path / INDEX).unlink(missing_ok=True)
        _write_json(part, path / "config.json", raw)
    except (OSError, SafetensorError) as e:
        raise UserError(f"cannot save a checkpoint to {path} ({e}); free some space or choose another directory") from e
    finally:
        part.unlink(missing_ok=True)


def _plan(cfg: ModelConfig, itemsize: int, shard_bytes: int) -> list[list[tuple[Tensor, tuple[int, ...]]]]:
    """The tensors of each file, in order: a file is closed when the next tensor would not fit into ``shard_bytes``."""
    files: list[list[tuple[Tensor, tuple[int, ...]]]] = [[]]
    room = shard_bytes
    for t in tensors_of(cfg):
        size = math.prod(t.sizes) * itemsize
        for i in t.indices():
            if size > room and files[-1]:
                files.append([])
                room = shard_bytes
            files[-1].append((t, i))
            room -= size
    return files


def _write_json(part: pathlib.Path, file: pathlib.Path, value: Mapping) -> None:
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(file)
