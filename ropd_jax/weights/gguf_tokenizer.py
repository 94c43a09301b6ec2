"""BPE tokenizers from the lists in a GGUF file: byte-level (GPT-2, Qwen, Llama 3) and SentencePiece's (Gemma).

What is built are `tokenizers.Tokenizer` objects like those that the checkpoints' own tokenizer.json holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ropd_jax.types import UserError

if TYPE_CHECKING:
    import tokenizers

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # GGUF token types; the last two are matched before any merging
SPACE = "\u2581"  # SentencePiece's
# How a text is cut before merging, as these families' tokenizer.json states it; {n} is how many digits stay together.
CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{n}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level_bpe(
    tokens: Sequence[str], merges: Sequence[str], types: Sequence[int], pre: str, where: str
) -> tokenizers.Tokenizer:
    """Byte-level BPE.

    Args:
        tokens: by id, in the byte-level alphabet (``Ġthe``); control tokens as they are written.
        merges: ``left right``, best first.
        types: GGUF token type of each token.
        pre: name of the rule that cuts a text before merging: ``smollm`` (each digit alone, then GPT-2's rule),
            ``gpt-2`` / ``default`` (GPT-2's rule), ``qwen2`` (Qwen 2 to 3), ``llama-bpe`` (Llama 3).

    Raises:
        UserError: another pre-tokenizer, or lists that do not fit each other.
    """
    import tokenizers
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)

    def cut(digits: str):
        split = pre_tokenizers.Split(Regex(CUT.format(n=digits)), "isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    rules: dict[str, Callable] = {
        "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2]),
        "gpt-2": lambda: gpt2,
        "default": lambda: gpt2,
        "qwen2": lambda: cut(""),
        "llama-bpe": lambda: cut("{1,3}"),
    }
    if pre not in rules:
        raise UserError(f"{where}: tokenizer.ggml.pre={pre!r} is not supported yet; supported: {', '.join(rules)}")
    _check_types(tokens, types, where)
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(m.split(" ")) for m in merges]
    if bad := [m for m in pairs if len(m) != 2 or any(part not in vocab for part in (*m, "".join(m)))]:
        raise UserError(
            f"{where}: merge {' '.join(bad[0])!r} is not made of tokens; the file is damaged, fetch it again"
        )
    # Llama 3 takes a word that is a token as it is, whatever the merges would make of it
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = rules[pre]()
    backend.decoder = decoders.ByteLevel()
    _add_special(backend, tokens, types)
    return backend


def sentencepiece_bpe(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], *, space_prefix: bool, where: str
) -> tokenizers.Tokenizer:
    """SentencePiece's BPE with byte fallback (Llama 2, Gemma), which merges the pair whose whole has the best score.

    Args:
        tokens: by id, spaces as U+2581; bytes as ``<0x0A>``.
        scores: of each token, the higher the sooner it is merged.
        types: GGUF token type of each token.
        space_prefix: a text gets a space in front (Llama 2).

    Raises:
        UserError: lists that do not fit each other.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    _check_types(tokens, types, where)
    if len(scores) != len(tokens):
        raise UserError(f"{where}: {len(scores)} scores for {len(tokens)} tokens; the file is damaged, fetch it again")
    vocab = {token: i for i, token in enumerate(tokens)}
    unknown = next((t for t, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    model = models.BPE(vocab=vocab, merges=_merges(vocab, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    prepend = [normalizers.Prepend(SPACE)] if space_prefix else []
    backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", SPACE)])
    backend.pre_tokenizer = None if space_prefix else pre_tokenizers.Split(" ", "merged_with_previous")
    strip = [decoders.Strip(" ", 1, 0)] if space_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _add_special(backend, tokens, types)
    return backend


def _merges(vocab: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way in which two tokens make a third, best whole first; within one whole, the older tokens first."""
    found = []
    for whole, i in vocab.items():
        for at in range(1, len(whole)):
            left, right = vocab.get(whole[:at]), vocab.get(whole[at:])
            if left is not None and right is not None:
                found.append((-scores[i], i, left, right, at, whole))
    found.sort()
    return [(whole[:at], whole[at:]) for *_, at, whole in found]


def _check_types(tokens: Sequence[str], types: Sequence[int], where: str) -> None:
    if len(types) != len(tokens):
        raise UserError(
            f"{where}: {len(types)} token types for {len(tokens)} tokens; the file is damaged, fetch it again"
        )


def _add_special(backend: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    import tokenizers

    for token, kind in zip(tokens, types, strict=True):  # in the order of ids, so that each keeps its id
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            special = kind != USER_DEFINED
            added = tokenizers.AddedToken(token, special=special, normalized=False)
            (backend.add_special_tokens if special else backend.add_tokens)([added])
