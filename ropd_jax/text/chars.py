"""The tokenizer of the shipped tiny student: greedy longest match over a list of pieces. Standard library only."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from ropd_jax.types import Message, UserError

FILE = "char_tokenizer.json"
ROLES = ("system", "user", "assistant")


class CharTokenizer:
    """Pieces (single characters and frequent strings) by greedy longest match.

    ``chat_template`` maps a role to ``[prefix, suffix]`` around a message's content, and ``generation`` to what stands
    at the end, before the answer: ``{"user": ["", "\\n"], "generation": ""}``. A role that is absent is refused.
    ``eos`` and ``pad`` are pieces that no text is ever encoded to.
    """

    def __init__(self, pieces: Sequence[str], *, eos: str, pad: str, chat_template: Mapping, where: str = "pieces"):
        """Raises UserError: empty or repeated pieces, eos or pad not among them, a malformed chat template."""
        self.pieces, self.eos, self.pad, self.chat_template = tuple(pieces), eos, pad, dict(chat_template)
        self._where = where
        self._check()
        self._id = {piece: i for i, piece in enumerate(self.pieces)}
        self.stop_ids = (self._id[eos],)
        self.pad_id = self._id[pad]
        self.vocab_size = len(self.pieces)
        self._by_first: dict[str, list[str]] = {}
        for piece in sorted(set(self.pieces) - {eos, pad}, key=len, reverse=True):
            self._by_first.setdefault(piece[0], []).append(piece)

    def _check(self) -> None:
        where, pieces = self._where, self.pieces
        if not pieces or not all(isinstance(p, str) and p for p in pieces):
            raise UserError(f"{where}: pieces must be a list of non-empty strings")
        if len(set(pieces)) != len(pieces):
            twice = next(p for p in pieces if pieces.count(p) > 1)
            raise UserError(f"{where}: piece {twice!r} occurs twice; each must be unique")
        for name in ("eos", "pad"):
            if getattr(self, name) not in pieces:
                raise UserError(f"{where}: {name}={getattr(self, name)!r} is not one of the {len(pieces)} pieces")
        roles = {k: v for k, v in self.chat_template.items() if k != "generation"}
        well_formed = isinstance(self.chat_template.get("generation", ""), str) and all(
            k in ROLES and isinstance(v, (list, tuple)) and len(v) == 2 and all(isinstance(s, str) for s in v)
            for k, v in roles.items()
        )
        if not well_formed or "user" not in roles:
            raise UserError(
                f"{where}: chat_template={self.chat_template!r}; expected "
                '{"user": [prefix, suffix], "generation": text} and, if wanted, system and assistant'
            )

    @classmethod
    def load(cls, path: str | pathlib.Path) -> CharTokenizer:
        """Read ``char_tokenizer.json``, given the file or its directory.

        Raises:
            UserError: the file is missing, no JSON, of another type, or a key is missing.
        """
        path = pathlib.Path(path)
        file = path / FILE if path.is_dir() else path
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise UserError(f"{file} cannot be read as JSON ({e}); restore the file") from e
        if not isinstance(raw, dict) or raw.get("type") != "ropd_char":
            seen = raw.get("type") if isinstance(raw, dict) else type(raw).__name__
            raise UserError(f"{file}: type is {seen!r}, expected 'ropd_char'")
        if missing := [k for k in ("pieces", "eos", "pad", "chat_template") if k not in raw]:
            raise UserError(f"{file} lacks {missing[0]!r}; expected pieces, eos, pad and chat_template")
        if not isinstance(raw["pieces"], list) or not isinstance(raw["chat_template"], dict):
            raise UserError(f"{file}: expected pieces as a list and chat_template as an object")
        keys = {k: raw[k] for k in ("eos", "pad", "chat_template")}
        return cls(raw["pieces"], **keys, where=str(file))

    def save(self, path: str | pathlib.Path) -> None:
        """Write ``char_tokenizer.json`` into the directory ``path``."""
        raw = {"type": "ropd_char", "pieces": self.pieces, "eos": self.eos, "pad": self.pad}
        text = json.dumps({**raw, "chat_template": self.chat_template}, ensure_ascii=False, indent=1)
        (pathlib.Path(path) / FILE).write_text(text + "\n", encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text.

        Raises:
            UserError: a character that no piece begins with.
        """
        ids, at = [], 0
        while at < len(text):
            piece = next((p for p in self._by_first.get(text[at], ()) if text.startswith(p, at)), None)
            if piece is None:
                raise UserError(
                    f"character {text[at]!r} (U+{ord(text[at]):04X}, place {at} of {text[:60]!r}) is not among the "
                    f"{self.vocab_size} pieces of this tokenizer; use a checkpoint that knows it, e.g. smollm2"
                )
            ids.append(self._id[piece])
            at += len(piece)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.pieces[i] for i in ids)

    def apply_chat_template(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a chat, ready for the answer.

        Raises:
            UserError: a role that the template has no form for, or a character without a piece.
        """
        return self.encode(self.render(messages))

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a chat, up to where the answer begins; raises UserError for a role that has no form."""
        text = ""
        for message in messages:
            if message.role not in self.chat_template or message.role == "generation":
                known = ", ".join(r for r in ROLES if r in self.chat_template)
                raise UserError(
                    f"role {message.role!r} has no form in this tokenizer's chat template; it knows {known}"
                )
            prefix, suffix = self.chat_template[message.role]
            text += prefix + message.content + suffix
        return text + self.chat_template.get("generation", "")
