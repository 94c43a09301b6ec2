"""``ropd export``: a run or a checkpoint as a Hugging Face directory that transformers and vLLM can load.

1. The run's config names the checkpoint that it started from. Shape, tokenizer, chat template and generation config
   come from there; the weights come from the run's own checkpoint after the given step.
2. Adapters (`ropd_jax.models.lora`) are merged into the base, or written without it in
   PEFT's format.
3. Everything is written into a temporary directory next to the target, which is renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401, numpy's bfloat16
import numpy as np
from etils import epath
from safetensors.numpy import save_file

from ropd_jax.models.config import ModelConfig
from ropd_jax.text import chat
from ropd_jax.text.tokenizer import HFTokenizer
from ropd_jax.types import UserError
from ropd_jax.utils import buckets
from ropd_jax.utils.files import read_json
from ropd_jax.utils.paths import AnyPath, as_path, is_url, written
from ropd_jax.weights.families import ABSENT, has_pictures, read_config
from ropd_jax.weights.hf import DTYPES, save_hf
from ropd_jax.weights.student import find, open_source
from ropd_jax.weights.tensors import Source, host_tree
from ropd_jax.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from ropd_jax.models.lora import Lora

log = logging.getLogger(__name__)
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "chat_template.json",
    "generation_config.json",
)  # fmt: skip


def export(what: str, to: str, *, step: int | None = None, dtype: str = "", adapter: bool = False) -> None:
    """Write the directory ``to``.

    Args:
        what: a run's directory, or a checkpoint by any name that `student.find` knows.
        to: a directory that does not exist yet, or is empty.
        step: finished steps of the run's checkpoint; None is the newest.
        dtype: stored dtype; "" is float32 for a run, and the checkpoint's own dtype for a checkpoint.
        adapter: write only the run's adapters, for PEFT.

    Raises:
        UserError: nothing to export, ``to`` is not empty, an unknown dtype, or no checkpoint after that step.
    """
    if is_url(to):
        if buckets.listing(to, "--to"):
            raise UserError(f"--to {to} exists and is not empty; choose another directory")
        with written(to, "--to") as place:
            export(what, str(place), step=step, dtype=dtype, adapter=adapter)
        return
    target = pathlib.Path(to).expanduser()
    if dtype and dtype not in DTYPES:
        raise UserError(f"--dtype={dtype} cannot be stored; expected one of {', '.join(DTYPES)}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--to {to} exists and is not empty; choose another directory")
    run = student_section(what)
    if run is None and step is not None:
        raise UserError(f"--step={step} selects a checkpoint of a run, but {what} is not a run; remove it")
    if adapter and (run is None or not (run.get("lora") or {}).get("rank")):
        raise UserError(f"--adapter: {what} is not a run with adapters (student.lora.rank above 0); remove it")
    own, template = (run["checkpoint"], run.get("chat_template", "")) if run else (what, "")
    base, path = find(own), as_path(what)
    with contextlib.closing(open_source(base)) as source:
        dtype = dtype or ("float32" if run else source.dtype)
        if adapter:
            assert run is not None
            lora, adapters = _adapters(path, run, source, step)
            with _appearing(target, f"--to {to}") as part:
                _write_adapter(part, base, own, source.cfg, lora, adapters, dtype)
        else:
            params = _of_run(path, run, source, step) if run else host_tree(source, DTYPES[dtype])
            with _appearing(target, f"--to {to}") as part:
                _write_student(part, base, template, source.cfg, params, dtype)
    size = sum(f.stat().st_size for f in target.iterdir())
    log.info("wrote %s: %s weights, %.1f MB in %d files", target, dtype, size / 1e6, len(list(target.iterdir())))


def write_student(to: pathlib.Path, own: str, template: str, params: Any, dtype: str) -> None:
    """Write the new Hugging Face directory ``to`` atomically, from weights in memory.

    Args:
        own: the student's checkpoint by any name that `student.find` knows; the source of tokenizer and configs.
        template: ``student.chat_template``, or "".
        params: host arrays, layers stacked; adapters merged.
        dtype: the stored dtype.

    Raises:
        UserError: the directory cannot be written.
    """
    base = find(own)
    with contextlib.closing(open_source(base)) as source, _appearing(to, str(to)) as part:
        _write_student(part, base, template, source.cfg, params, dtype)


def write_adapter(to: pathlib.Path, own: str, lora: Lora, adapters: Any, dtype: str) -> None:
    """Write adapters from memory in PEFT's format; arguments and errors as for `write_student`."""
    base = find(own)
    with contextlib.closing(open_source(base)) as source, _appearing(to, str(to)) as part:
        _write_adapter(part, base, own, source.cfg, lora, adapters, dtype)


@contextlib.contextmanager
def _appearing(target: pathlib.Path, shown: str) -> Iterator[pathlib.Path]:
    """A directory that becomes ``target`` when the block ends without an error."""
    part = target.absolute().parent / f".{target.name}.part.{os.getpid()}"
    try:
        part.mkdir(parents=True)
        yield part
        if target.exists():
            target.rmdir()
        part.rename(target)
    except OSError as e:
        raise UserError(f"{shown} cannot be written ({e}); free some space or choose another directory") from e
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_student(
    part: pathlib.Path, base: pathlib.Path, template: str, cfg: ModelConfig, params: Any, dtype: str
) -> None:
    made = load_tokenizer(base, chat_template=template) if base.is_file() else None  # a directory's is copied
    config, extra = _config(base, made, cfg)
    save_hf(part, cfg, params, dtype=dtype, config=config, **extra)
    _write_tokenizer(base, made, template, part)


def student_section(what: AnyPath) -> dict | None:
    """The section ``student`` of the config of a run's directory; None if the directory is not a run."""
    path = as_path(what)
    if not (path / "checkpoints").is_dir() or not (path / "config.json").is_file():
        return None
    config = read_json(path / "config.json")
    section = config.get("student")
    return section if isinstance(section, dict) else None


def _of_run(path: epath.Path, student: dict, source: Source, step: int | None) -> dict:
    """The student's weights after a step, as host arrays; adapters are merged into their base."""
    import jax

    from ropd_jax.models import transformer
    from ropd_jax.models.lora import freeze, merge
    from ropd_jax.workdir.checkpoint import saved_params

    if (student.get("lora") or {}).get("rank"):
        lora, adapters = _adapters(path, student, source, step)
        base = freeze(host_tree(source, np.dtype(lora.load_dtype)), lora.base_dtype)
        return jax.device_get(merge(lora, base, adapters))
    step, params = saved_params(path / "checkpoints", step, transformer.param_shapes(source.cfg))
    log.info("weights of %s after step %d", path, step)
    return params


def _adapters(path: epath.Path, student: dict, source: Source, step: int | None):
    """(their LoRA settings, the adapters after a step as host arrays)."""
    from ropd_jax.models.lora import Lora, adapter_shapes
    from ropd_jax.workdir.checkpoint import saved_params

    lora = Lora.from_config(student["lora"])
    step, adapters = saved_params(path / "checkpoints", step, adapter_shapes(source.cfg, lora))
    log.info("adapters of %s after step %d", path, step)
    return lora, adapters


def _write_adapter(
    part: pathlib.Path, base: pathlib.Path, own: str, cfg: ModelConfig, lora: Lora, adapters: Any, dtype: str
) -> None:
    """adapter_config.json and adapter_model.safetensors, as PEFT reads them for the checkpoint ``own``."""
    from ropd_jax.weights.peft import adapter_config, adapter_tensors

    pictures = base.is_dir() and has_pictures(base)
    found = adapter_tensors(cfg, adapters, pictures=pictures)
    tensors = {name: x.astype(DTYPES[dtype]) for name, x in found.items()}
    file = part / "adapter_model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors makes it readable by the owner only
    text = json.dumps(adapter_config(cfg, lora, own, pictures=pictures), indent=2) + "\n"
    (part / "adapter_config.json").write_text(text, encoding="utf-8")


def _config(base: pathlib.Path, made: HFTokenizer | None, cfg: ModelConfig) -> tuple[dict | None, dict]:
    """(the checkpoint's own config.json, or None if it must be created; the keys to add to it)."""
    if base.is_dir():
        raw = read_json(base / "config.json")
        if raw.get("model_type") in ABSENT:
            differs = read_config(base).tied != cfg.tied  # the files take precedence, and the written config must agree
            return raw, {"tie_word_embeddings": cfg.tied} if differs else {}
        text = raw.get("text_config") or {}  # only the text part of a multimodal checkpoint is exported
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        return None, {k: v for k in keys if (v := text.get(k, raw.get(k))) is not None}
    assert made is not None  # only a GGUF file is not a directory
    return None, _end_ids(made)


def _end_ids(tokenizer: HFTokenizer) -> dict:
    """Token ids for config.json and generation_config.json."""
    ids = {"eos_token_id": list(tokenizer.stop_ids), "pad_token_id": int(tokenizer.pad_id)}
    bos = tokenizer.token_id("bos_token")
    return ids if bos is None else {"bos_token_id": bos, **ids}


def _write_tokenizer(base: pathlib.Path, made: HFTokenizer | None, template: str, part: pathlib.Path) -> None:
    """Copy the files of a directory, or write those made from a GGUF file's metadata; the run's template wins."""
    if made is None:
        for name in TOKENIZER_FILES:
            if (base / name).is_file():
                shutil.copyfile(base / name, part / name)
    else:
        made.save(part)
        text = json.dumps(_end_ids(made), indent=2) + "\n"
        (part / "generation_config.json").write_text(text, encoding="utf-8")
    if template:
        (part / "chat_template.jinja").write_text(chat.read(template), encoding="utf-8")
