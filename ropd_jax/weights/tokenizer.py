"""The tokenizer of a checkpoint.

`load_tokenizer` chooses by the kind of checkpoint:

- a .gguf file: BPE built from the metadata of the file, including the chat template (`gguf_tokenizer`);
- a directory: ``tokenizer.json`` unchanged. Without one, transformers converts the slow tokenizer.

Only that conversion imports transformers, which takes seconds. This module does not import jax.
"""

from __future__ import annotations

import logging
import pathlib
from typing import TYPE_CHECKING, Any

from ropd_jax.text import chat
from ropd_jax.text.tokenizer import HFTokenizer, find_stop_ids
from ropd_jax.types import UserError
from ropd_jax.utils.files import one_line, read_json
from ropd_jax.weights.added_tokens import DECODER, add_declared, special_tokens
from ropd_jax.weights.gguf_tokenizer import gguf_tokenizer

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger(__name__)
TEMPLATES = "additional_chat_templates"
OLD_FORMAT = "char_tokenizer.json"  # the tokenizer of the tiny student in earlier versions


def load_tokenizer(
    path: str | pathlib.Path, *, chat_template: str = "", enable_thinking: bool | None = None
) -> HFTokenizer:
    """The tokenizer of a checkpoint.

    Args:
        path: a .gguf file or a directory.
        chat_template: a Jinja file that replaces the checkpoint's own template.
        enable_thinking: passed to the template; None keeps its default.

    Raises:
        UserError: no tokenizer, an unsupported one, no chat template, or one that does not parse.
    """
    path = pathlib.Path(path)
    load = gguf_tokenizer if path.is_file() else hf_tokenizer
    with one_line(path):
        return load(path, chat_template=chat_template, enable_thinking=enable_thinking)


def hf_tokenizer(
    path: str | pathlib.Path, *, chat_template: str = "", enable_thinking: bool | None = None
) -> HFTokenizer:
    """The tokenizer of a Hugging Face directory.

    Stop tokens: the chat template's end of turn, then ``eos_token_id`` of generation_config.json and config.json, then
    the tokenizer's eos.

    Raises:
        UserError: no tokenizer files or damaged ones, no chat template, or no end token.
    """
    path = pathlib.Path(path)
    config = read_json(path / "tokenizer_config.json", optional=True)
    if config.get(DECODER, ...) is None:
        del config[DECODER]
    backend = _backend(path, config)
    _drop_state(backend, str(path))
    if config.get("split_special_tokens"):
        log.warning(
            "%s: tokenizer_config.json has split_special_tokens=true: special tokens in a prompt, including those of "
            "the chat template, are encoded as plain text, as in transformers", path,
        )  # fmt: skip
        backend.encode_special_tokens = True
    template = chat.choose(_own_template(path, config, chat_template), chat_template, str(path))
    special = special_tokens(path, config)
    vocab = backend.get_vocab()
    declared: list[int | None] = []
    for name in ("generation_config.json", "config.json"):
        value = read_json(path / name, optional=True).get("eos_token_id")
        declared += value if isinstance(value, list) else [value]
    declared.append(vocab.get(special.get("eos_token", "")))
    stop_ids = find_stop_ids(vocab, template, declared, str(path))
    pad_id = vocab.get(special.get("pad_token", ""), stop_ids[-1])
    return HFTokenizer(
        backend, template=template, special=special, stop_ids=stop_ids, pad_id=pad_id, enable_thinking=enable_thinking
    )


def _backend(path: pathlib.Path, config: dict) -> tokenizers.Tokenizer:
    import tokenizers

    file = path / "tokenizer.json"
    if file.exists():
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as e:  # the library raises plain Exception
            reason = " ".join(str(e).split())[:200]
            raise UserError(f"{file} cannot be read as a tokenizer ({reason}); fetch it again") from e
        if backend.padding is not None:
            config.setdefault("pad_token", backend.padding["pad_token"])
        add_declared(backend, path, config)
        return backend
    if (path / OLD_FORMAT).exists():
        raise UserError(
            f"{path / OLD_FORMAT} is a format that is no longer supported; export the run again (ropd export), or copy "
            "tokenizer.json, tokenizer_config.json and chat_template.jinja from ropd_jax/assets/quickstart_student"
        )
    slow = ("tokenizer.model", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
    if not any((path / name).exists() for name in slow):
        raise UserError(f"{path} has no tokenizer; expected tokenizer.json or one of {', '.join(slow)} in it")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        ).backend_tokenizer
    except Exception as e:  # one of a dozen types; only the message matters
        reason = " ".join(str(e).split())[:200]
        raise UserError(f"{path}: transformers cannot convert its tokenizer ({reason}); add a tokenizer.json") from e


def _drop_state(backend: tokenizers.Tokenizer, where: str) -> None:
    """Disable the settings of the tokenizer's last use that were stored with it: truncation, padding, BPE dropout.

    `tokenizers` applies them in every call: prompts would be cut at the stored length, and padding would follow the
    generation prompt. transformers disables truncation and padding as well. Dropout encodes the same text differently
    each time.
    """
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None):
        log.warning("%s: the dropout of %.3g in tokenizer.json is disabled", where, backend.model.dropout)
        backend.model.dropout = None


def _own_template(path: pathlib.Path, config: dict, replacement: str) -> str | None:
    """The checkpoint's template; if it has several, the one named default.

    ``chat_template.jinja`` and ``additional_chat_templates/*.jinja``, else tokenizer_config.json, else the
    chat_template.json of a multimodal checkpoint.

    Raises:
        UserError: there are several, none is the default, and there is no ``replacement``.
    """
    files = {p.stem: p for p in sorted((path / TEMPLATES).glob("*.jinja"))}
    if (path / "chat_template.jinja").exists():
        files["default"] = path / "chat_template.jinja"
    if files:
        own: Any = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    else:
        own = config.get("chat_template") or read_json(path / "chat_template.json", optional=True).get("chat_template")
    if isinstance(own, list):
        own = {t["name"]: t["template"] for t in own}
    if not isinstance(own, dict):
        return own
    if "default" not in own and not replacement:
        raise UserError(
            f"{path} has the chat templates {', '.join(map(str, sorted(own)))[:200]}, but no default; "
            "save the one that you want as a file and pass it with --config.student.chat_template=FILE"
        )
    return own.get("default")
