"""Tokens that a checkpoint declares outside of tokenizer.json.

A fine-tune often adds its turn markers without updating tokenizer.json. They are then only in one of these files, in
the order in which transformers looks them up:

1. ``tokenizer_config.json``: ``added_tokens_decoder``, by id; else ``added_tokens.json``, from text to id;
2. the named ones (``eos_token`` ...) of ``tokenizer_config.json``, or of ``special_tokens_map.json`` if there is no
   ``added_tokens_decoder``;
3. ``extra_special_tokens`` (before transformers 5: ``additional_special_tokens``), a list, or a dict with names.
"""

from __future__ import annotations

import logging
import math
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ropd_jax.types import UserError
from ropd_jax.utils.files import read_json

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger(__name__)
DECODER = "added_tokens_decoder"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA = ("extra_special_tokens", "additional_special_tokens")
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


def special_tokens(path: pathlib.Path, config: dict) -> dict[str, str]:
    """bos_token, eos_token, pad_token ... as texts: those that a chat template can name.

    Args:
        config: the content of tokenizer_config.json.
    """
    found = {}
    legacy = {} if DECODER in config else read_json(path / "special_tokens_map.json", optional=True)
    extra: dict[str, Any] = next((config[key] for key in EXTRA if isinstance(config.get(key), dict)), {})
    for raw in (config, legacy, extra):
        for key, value in raw.items():
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str) and (key.endswith("_token") or raw is extra):
                found[key] = value
    return found


def add_declared(backend: tokenizers.Tokenizer, path: pathlib.Path, config: dict) -> None:
    """Add the declared tokens that the tokenizer lacks, as transformers does. Those it has keep their ids.

    Args:
        backend: read from tokenizer.json; it is changed.
        config: the content of tokenizer_config.json.

    Raises:
        UserError: a malformed declaration, or a new token whose id is not the next one.
    """
    import tokenizers
    from tokenizers import models

    names, extra = special_tokens(path, config), dict(_extra(path, config))
    if isinstance(backend.model, models.WordLevel):
        names = {}  # no text is encoded to the tiny student's end token
    declared = _by_id(path, config, {*names.values(), *extra})
    known, own = backend.get_vocab(), {t.content for t in backend.get_added_tokens_decoder().values()}
    tokens = {text: flags | {"special": flags.get("special") or text in names.values()} for text, flags in declared}
    rows = _rows(path)
    in_order = [*(key for key in NAMED if key in names), *(key for key in names if key not in NAMED)]
    for key, text in [*((key, names[key]) for key in in_order), *zip(extra, extra, strict=True)]:
        if text in own or text in tokens:
            continue
        if text not in known and len(known) + len(tokens.keys() - known) >= rows:
            if key != "pad_token":  # another token is used for padding, which nothing depends on
                log.warning("%s: the special token %r has no row in the table of %d tokens; left out", path, text, rows)
            continue
        tokens[text] = {"special": True} | extra.get(text, {})
    backend.add_tokens([tokenizers.AddedToken(text, **flags) for text, flags in tokens.items()])
    for text, i in _ids(path, config).items():
        if text not in known and backend.token_to_id(text) != i:
            raise UserError(
                f"{path}: the added token {text[:60]!r} has id {i}, but it is missing in tokenizer.json, whose next "
                f"free id is {backend.token_to_id(text)}; save the tokenizer again with transformers (save_pretrained)"
            )


def _ids(path: pathlib.Path, config: dict) -> dict[str, int]:
    """The tokens that are declared with their ids, in the order of ids."""
    if DECODER in config:
        pairs = [(token["content"], int(i)) for i, token in config[DECODER].items()]
    else:
        pairs = list(read_json(path / "added_tokens.json", optional=True).items())
    return dict(sorted(pairs, key=lambda pair: pair[1]))


def _by_id(path: pathlib.Path, config: dict, special: set[str]) -> list[tuple[str, dict[str, bool]]]:
    """(text, flags) of the tokens that are declared with their ids, in the order of ids."""
    texts = _ids(path, config)
    if DECODER in config:
        flags = {token["content"]: _flags(token) for token in config[DECODER].values()}
        return [(text, flags[text]) for text in texts]
    return [(text, {"normalized": text not in special, "special": text in special}) for text in texts]


def _extra(path: pathlib.Path, config: dict) -> Iterator[tuple[str, dict[str, bool]]]:
    """(text, flags) of further special tokens without names."""
    raws = (config,) if DECODER in config else (config, read_json(path / "special_tokens_map.json", optional=True))
    for raw in raws:
        found = next((raw[key] for key in EXTRA if raw.get(key)), ())
        if isinstance(found, list):
            for token in found:
                yield (token, {}) if isinstance(token, str) else (token["content"], _flags(token))


def _flags(token: dict[str, Any]) -> dict[str, bool]:
    return {key: bool(token[key]) for key in FLAGS if key in token}


def _rows(path: pathlib.Path) -> float:
    """The number of rows of the student's table; infinite if config.json does not give it."""
    raw = read_json(path / "config.json", optional=True)
    rows = raw.get("vocab_size", (raw.get("text_config") or {}).get("vocab_size"))
    return rows if isinstance(rows, int) else math.inf
