"""Text to token ids and back: the tokenizer interface of a run, and the class that implements it.

`ropd_jax.weights.tokenizer.load_tokenizer` loads the tokenizer of a checkpoint.
"""

from __future__ import annotations

import copy
import hashlib
import json
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ropd_jax.text import chat
from ropd_jax.types import Message, UserError

if TYPE_CHECKING:
    import tokenizers

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")  # the one in a template ends its turns
_BYTE = re.compile("<0x[0-9A-F]{2}>")
TEXT_ENDS = ("<|endoftext|>", "<|end_of_text|>")


class Tokenizer(Protocol):
    """The interface of a tokenizer.

    Attributes:
        stop_ids: tokens that end an answer; the first one ends a turn of the chat template.
        pad_id: the id of padding; no computation depends on it.
        vocab_size: every id is below it. The embedding of a model can have more rows.
    """

    stop_ids: tuple[int, ...]
    pad_id: int
    vocab_size: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def render(self, messages: Sequence[Message]) -> str: ...

    def apply_chat_template(self, messages: Sequence[Message]) -> list[int]: ...

    def fingerprint(self) -> str: ...


class HFTokenizer:
    """A ``tokenizers.Tokenizer`` with the chat template of its checkpoint.

    ``encode`` adds nothing at either end. Added tokens in the text become their ids, as in transformers. ``decode``
    keeps special tokens, so that sampled ones are visible.
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
        self.vocab_size = max(self.vocab().values()) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids of a text.

        Raises:
            UserError: a character without a token, in a vocabulary without a token for unknown text.
        """
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except Exception as e:  # the library raises plain Exception, and does not name the character
            place, char = next(((i, c) for i, c in enumerate(text) if not self._knows(c)), (0, text[:1]))
            raise UserError(
                f"character {char!r} (U+{ord(char):04X}, place {place} of {text[:60]!r}) is not among the "
                f"{self.vocab_size} pieces of this tokenizer; use a checkpoint that supports it, e.g. smollm2"
            ) from e

    def _knows(self, char: str) -> bool:
        try:
            return bool(self._backend.encode(char, add_special_tokens=False).ids)
        except Exception:  # see `encode`
            return False

    def decode(self, ids: Iterable[int]) -> str:
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def vocab(self) -> dict[str, int]:
        """The id of every token, added ones included; the texts as the backend stores them (``Ġthe``)."""
        return self._backend.get_vocab()

    def token_bytes(self) -> np.ndarray:
        """int32[V], the bytes of UTF-8 that each token adds to a text; 0 for ids without a token.

        If the decoder does more than concatenate the tokens' texts, the sum can differ from the text's size.
        """
        added = {i: token.content for i, token in self._backend.get_added_tokens_decoder().items()}
        byte_level = "ByteLevel" in repr(self._backend.decoder)
        sizes_V = np.zeros(self.vocab_size, np.int32)
        for text, i in self.vocab().items():
            if i in added:
                sizes_V[i] = len(added[i].encode())
            elif byte_level:
                sizes_V[i] = len(text)  # each character represents one byte
            elif _BYTE.fullmatch(text):
                sizes_V[i] = 1  # <0xE2>
            else:
                sizes_V[i] = len(text.replace("\u2581", " ").encode("utf-8", "surrogatepass"))
        return sizes_V

    def without(self, tokens: Collection[str]) -> HFTokenizer:
        """This tokenizer without some of its added tokens: their text is split into other tokens."""
        import tokenizers

        state = json.loads(self._backend.to_str())
        state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in tokens]
        other = copy.copy(self)
        other._backend = tokenizers.Tokenizer.from_str(json.dumps(state))
        other.vocab_size = max(other.vocab().values()) + 1
        return other

    def token_id(self, name: str) -> int | None:
        """The id of ``bos_token``, ``eos_token`` ...; None if the checkpoint has no such token."""
        return self._backend.token_to_id(self._special[name]) if name in self._special else None

    def save(self, path: str | pathlib.Path) -> None:
        """Write the files that transformers reads: tokenizer.json, tokenizer_config.json and chat_template.jinja."""
        path = pathlib.Path(path)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **self._special}
        if self._backend.encode_special_tokens:
            config["split_special_tokens"] = True
        self._backend.save(str(path / "tokenizer.json"))
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (path / "tokenizer_config.json").write_text(text, encoding="utf-8")
        (path / "chat_template.jinja").write_text(self.template, encoding="utf-8")

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a chat, up to the start of the answer; raises UserError if the template rejects the chat."""
        return chat.render(self.template, messages, self._special, self._options)

    def apply_chat_template(self, messages: Sequence[Message]) -> list[int]:
        return self.encode(self.render(messages))

    def fingerprint(self) -> str:
        """16 hex digits: tokenizers with equal fingerprints give every chat the same tokens."""
        rest = json.dumps([self.template, self._special, self._options, self.stop_ids, self.pad_id])
        return hashlib.sha256(f"{self._backend.to_str()}{rest}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def find_stop_ids(
    vocab: Mapping[str, int], template: str, declared: Iterable[int | None], where: str
) -> tuple[int, ...]:
    """The template's end of turn, then the tokens that the checkpoint declares, then the ends of a text; each once.

    Raises:
        UserError: there are none.
    """
    turn = [vocab[t] for t in TURN_ENDS if t in vocab and t in template][:1]
    text = [vocab[t] for t in TEXT_ENDS if t in vocab]
    ids = tuple(dict.fromkeys(i for i in (*turn, *declared, *text) if i is not None))
    if not ids:
        raise UserError(
            f"{where} does not declare which token ends an answer; expected eos_token_id in generation_config.json"
        )
    return ids
