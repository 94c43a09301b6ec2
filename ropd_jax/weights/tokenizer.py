"""Text to tokens and back, as the checkpoint itself has it.

`load_tokenizer` looks at what is there:

- a directory with ``char_tokenizer.json``: `CharTokenizer` (the shipped tiny student);
- a .gguf file: BPE (byte-level or SentencePiece's) built from the file's own metadata, the chat template too;
- any other directory: ``tokenizer.json``, read as it is. Without one, transformers converts the slow tokenizer.

Only that last conversion imports transformers (seconds); nothing here imports jax.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from ropd_jax.text import chars, chat
from ropd_jax.text.chars import CharTokenizer
from ropd_jax.types import Message, UserError
from ropd_jax.utils.files import read_json
from ropd_jax.weights.gguf_file import GGUF
from ropd_jax.weights.gguf_tokenizer import byte_level_bpe, sentencepiece_bpe

if TYPE_CHECKING:
    import tokenizers

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")  # which one a template uses says how turns end
TEXT_ENDS = ("<|endoftext|>", "<|end_of_text|>")


class Tokenizer(Protocol):
    """What a run needs of a tokenizer.

    Attributes:
        stop_ids: tokens that end an answer; the first one ends a turn of the chat template.
        pad_id: what padding is made of; never looked at.
        vocab_size: ids are below it. A model's embedding may have more rows.
    """

    stop_ids: tuple[int, ...]
    pad_id: int
    vocab_size: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def render(self, messages: Sequence[Message]) -> str: ...

    def apply_chat_template(self, messages: Sequence[Message]) -> list[int]: ...


class HFTokenizer:
    """A ``tokenizers.Tokenizer`` with the chat template of its checkpoint.

    ``encode`` adds nothing at either end; special tokens written in the text become their ids, as in transformers.
    ``decode`` leaves nothing out, so a special token that a student samples is seen.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        template: str,
        special: Mapping[str, str],
        stop_ids: Sequence[int],
        pad_id: int,
        enable_thinking: bool | None = None,
    ):
        self._backend, self._special = backend, dict(special)
        self.template = template
        self._options = chat.check_thinking(template, enable_thinking)
        self.stop_ids = tuple(stop_ids)
        self.pad_id = pad_id
        self.vocab_size = max(backend.get_vocab().values()) + 1

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def token_id(self, name: str) -> int | None:
        """Id of ``bos_token``, ``eos_token`` ...; None where the checkpoint has none."""
        return self._backend.token_to_id(self._special[name]) if name in self._special else None

    def save(self, path: str | pathlib.Path) -> None:
        """Write what transformers reads: tokenizer.json, tokenizer_config.json and chat_template.jinja."""
        path = pathlib.Path(path)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **self._special}
        self._backend.save(str(path / "tokenizer.json"))
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (path / "tokenizer_config.json").write_text(text, encoding="utf-8")
        (path / "chat_template.jinja").write_text(self.template, encoding="utf-8")

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a chat, up to where the answer begins; raises UserError where the template refuses it."""
        return chat.render(self.template, messages, self._special, self._options)

    def apply_chat_template(self, messages: Sequence[Message]) -> list[int]:
        return self.encode(self.render(messages))


def load_tokenizer(
    path: str | pathlib.Path, *, chat_template: str = "", enable_thinking: bool | None = None
) -> Tokenizer:
    """The tokenizer of a checkpoint.

    Args:
        path: a .gguf file or a directory.
        chat_template: a Jinja file that replaces the checkpoint's own template.
        enable_thinking: passed to the template; None leaves its own default.

    Raises:
        UserError: no tokenizer, one that is not supported, no chat template, or one that does not parse.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return gguf_tokenizer(path, chat_template=chat_template, enable_thinking=enable_thinking)
    if (path / chars.FILE).exists():
        if chat_template:
            raise UserError(
                f"student.chat_template={chat_template!r} cannot replace the one in {path / chars.FILE}; unset it"
            )
        tokenizer = CharTokenizer.load(path)
        chat.check_thinking(str(tokenizer.chat_template), enable_thinking)
        return tokenizer
    return hf_tokenizer(path, chat_template=chat_template, enable_thinking=enable_thinking)


def _template(own: str | None, chat_template: str, where: str) -> str:
    if chat_template:
        return chat.read(chat_template)
    if not own or not own.strip():
        raise UserError(
            f"{where} has no chat template, so prompts cannot be written as its student expects them; choose an "
            "instruct checkpoint or give a Jinja file: --config.student.chat_template=FILE"
        )
    return chat.check(own, f"chat template of {where}")


def _stop_ids(vocab: Mapping[str, int], template: str, declared: Iterable[int | None], where: str) -> tuple[int, ...]:
    """The template's end of turn, then what the checkpoint declares, then the ends of a text; each once."""
    turn = [vocab[t] for t in TURN_ENDS if t in vocab and t in template][:1]
    text = [vocab[t] for t in TEXT_ENDS if t in vocab]
    ids = tuple(dict.fromkeys(i for i in (*turn, *declared, *text) if i is not None))
    if not ids:
        raise UserError(
            f"{where} says nowhere which token ends an answer; expected eos_token_id in generation_config.json"
        )
    return ids


def gguf_tokenizer(
    path: str | pathlib.Path, *, chat_template: str = "", enable_thinking: bool | None = None
) -> HFTokenizer:
    """The tokenizer that a GGUF file carries: vocabulary, merges, special tokens, pre-tokenizer, chat template.

    Raises:
        UserError: no tokenizer in the file, a kind or pre-tokenizer that is not supported, no chat template.
    """
    file = GGUF(path)
    kinds = {"gpt2": "merges", "llama": "scores"}
    if (kind := file.require("tokenizer.ggml.model")) not in kinds:
        raise UserError(
            f"{path}: tokenizer.ggml.model={kind!r} is not supported; expected 'gpt2' (byte-level BPE) or 'llama' "
            "(SentencePiece BPE)"
        )
    lists = {name: file.require(f"tokenizer.ggml.{name}") for name in ("tokens", kinds[kind], "token_type")}
    tokens = lists["tokens"]
    if kind == "gpt2":
        backend = byte_level_bpe(*lists.values(), file.get("tokenizer.ggml.pre", "default"), str(path))
    else:
        prefix = bool(file.get("tokenizer.ggml.add_space_prefix", True))
        backend = sentencepiece_bpe(*lists.values(), space_prefix=prefix, where=str(path))
    template = _template(file.get("tokenizer.chat_template"), chat_template, str(path))
    ids = {name: file.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "unknown", "padding")}
    for name, i in ids.items():
        if i is not None and not 0 <= i < len(tokens):
            raise UserError(
                f"{path}: tokenizer.ggml.{name}_token_id={i}, expected below {len(tokens)}; the file is damaged"
            )
    stop_ids = _stop_ids({t: i for i, t in enumerate(tokens)}, template, [ids["eos"]], str(path))
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    special = {names[n]: tokens[i] for n, i in ids.items() if i is not None}
    pad_id = ids["padding"] if ids["padding"] is not None else stop_ids[-1]
    return HFTokenizer(
        backend, template=template, special=special, stop_ids=stop_ids, pad_id=pad_id, enable_thinking=enable_thinking
    )


def hf_tokenizer(
    path: str | pathlib.Path, *, chat_template: str = "", enable_thinking: bool | None = None
) -> HFTokenizer:
    """The tokenizer of a Hugging Face directory.

    Stop tokens: the chat template's end of turn, then ``eos_token_id`` of generation_config.json and config.json, then
    the tokenizer's eos.

    Raises:
        UserError: no tokenizer files, damaged ones, no chat template, no end token.
    """
    path = pathlib.Path(path)
    backend = _backend(path)
    config = read_json(path / "tokenizer_config.json", optional=True)
    template = _template(_own_template(path, config), chat_template, str(path))
    special = _special_tokens(path, config)
    vocab = backend.get_vocab()
    declared: list[int | None] = []
    for name in ("generation_config.json", "config.json"):
        value = read_json(path / name, optional=True).get("eos_token_id")
        declared += value if isinstance(value, list) else [value]
    declared.append(vocab.get(special.get("eos_token", "")))
    stop_ids = _stop_ids(vocab, template, declared, str(path))
    pad_id = vocab.get(special.get("pad_token", ""), stop_ids[-1])
    return HFTokenizer(
        backend, template=template, special=special, stop_ids=stop_ids, pad_id=pad_id, enable_thinking=enable_thinking
    )


def _backend(path: pathlib.Path) -> tokenizers.Tokenizer:
    import tokenizers

    file = path / "tokenizer.json"
    if file.exists():
        try:
            return tokenizers.Tokenizer.from_file(str(file))
        except Exception as e:  # the library raises plain Exception
            raise UserError(f"{file} cannot be read as a tokenizer ({e}); fetch it again") from e
    slow = ("tokenizer.model", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
    if not any((path / name).exists() for name in slow):
        raise UserError(f"{path} has no tokenizer; expected tokenizer.json, {', '.join(slow)} or {chars.FILE} in it")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True).backend_tokenizer
    except Exception as e:  # any of a dozen kinds; the message is what helps
        reason = " ".join(str(e).split())[:200]
        raise UserError(f"{path}: transformers cannot convert its tokenizer ({reason}); add a tokenizer.json") from e


def _own_template(path: pathlib.Path, config: dict) -> str | None:
    """From chat_template.jinja, else tokenizer_config.json (of several, the one named default)."""
    if (path / "chat_template.jinja").exists():
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    own = config.get("chat_template")
    if isinstance(own, list):
        own = next((t.get("template") for t in own if t.get("name") == "default"), None)
    return own


def _special_tokens(path: pathlib.Path, config: dict) -> dict[str, str]:
    """bos_token, eos_token, pad_token ... as texts; tokenizer_config.json has the last word."""
    found = {}
    for raw in (read_json(path / "special_tokens_map.json", optional=True), config):
        for key, value in raw.items():
            value = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(value, str):
                found[key] = value
    return found
