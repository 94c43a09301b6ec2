"""A tokenizer over a short list of pieces, such as the one of the shipped tiny student."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ropd_jax.text.tokenizer import HFTokenizer
from ropd_jax.types import UserError

# Only the user's message and a line break. The answer follows.
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('expected user messages only') }}{% endif %}"
    "{{ m['content'] + '\\n' }}{% endfor %}"
)


def piece_tokenizer(pieces: Sequence[str], *, eos: str, pad: str, template: str = TEMPLATE) -> HFTokenizer:
    """Pieces (characters and frequent strings) by greedy longest match; the id of a piece is its index in the list.

    For pieces a, b, c, ab and bc the text "abc" becomes "ab", "c": at each position the longest piece wins. A regular
    expression with the longest pieces first splits the text into pieces, so the time is linear in its length.

    Args:
        eos, pad: pieces that never occur in encoded text.
        template: a Jinja chat template.

    Raises:
        UserError: an empty or repeated piece, or ``eos`` or ``pad`` is not a piece.
    """
    import tokenizers
    from tokenizers import Regex, decoders, models, pre_tokenizers

    if not pieces or not all(pieces):
        raise UserError("pieces must be a list of non-empty strings")
    vocab = {piece: i for i, piece in enumerate(pieces)}
    if len(vocab) != len(pieces):
        twice = next(p for p in pieces if list(pieces).count(p) > 1)
        raise UserError(f"piece {twice!r} occurs twice; each must be unique")
    for name, piece in (("eos", eos), ("pad", pad)):
        if piece not in vocab:
            raise UserError(f"{name}={piece!r} is not one of the {len(pieces)} pieces; add it to them")
    longest_first = sorted(vocab.keys() - {eos, pad}, key=lambda p: (-len(p), p))
    backend = tokenizers.Tokenizer(models.WordLevel(vocab=vocab, unk_token="[UNK]"))  # which is not a piece: an error
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, longest_first))), "isolated")
    backend.decoder = decoders.Fuse()
    return HFTokenizer(
        backend,
        template=template,
        special={"eos_token": eos, "pad_token": pad},
        stop_ids=(vocab[eos],),
        pad_id=vocab[pad],
    )
