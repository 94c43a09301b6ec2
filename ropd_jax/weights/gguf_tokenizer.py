"""The tokenizer of a GGUF file, built from its metadata.

The file has lists of tokens, merges or scores, and types. From these, BPE tokenizers are built, byte-level (GPT-2,
Qwen, Llama 3) or SentencePiece's (Gemma): `tokenizers.Tokenizer` objects like those in the checkpoints' own
tokenizer.json.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ropd_jax.text import chat
from ropd_jax.text.tokenizer import HFTokenizer, find_stop_ids
from ropd_jax.types import UserError
from ropd_jax.weights.gguf_file import GGUF

if TYPE_CHECKING:
    import tokenizers

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # GGUF token types; the last two are matched before any merging
SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}  # as in llama.cpp
log = logging.getLogger(__name__)
LONGEST = 1_000  # characters of a token; the longest in Gemma and Qwen are below 300
SPACE = "\u2581"  # SentencePiece's
# Patterns that split a text before merging, from these families' tokenizer.json; {n}: digits that stay together.
CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{n}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def gguf_tokenizer(
    path: str | pathlib.Path, *, chat_template: str = "", enable_thinking: bool | None = None
) -> HFTokenizer:
    """The tokenizer in a GGUF file: vocabulary, merges, special tokens, pre-tokenizer, chat template.

    Raises:
        UserError: no tokenizer in the file, an unsupported kind or pre-tokenizer, or no chat template.
    """
    file = GGUF(path)
    kinds = {"gpt2": "merges", "llama": "scores"}
    if (kind := file.require("tokenizer.ggml.model")) not in kinds:
        raise UserError(
            f"{path}: tokenizer.ggml.model={kind!r} is not supported; expected 'gpt2' (byte-level BPE) or 'llama' "
            "(SentencePiece BPE)"
        )
    tokens, rules, types = (file.require(f"tokenizer.ggml.{name}") for name in ("tokens", kinds[kind], "token_type"))
    if not all(isinstance(rows, list) for rows in (tokens, rules, types)):
        raise UserError(f"{path}: tokenizer.ggml.tokens, {kinds[kind]} and token_type are not lists; fetch it again")
    if any(not isinstance(token, str) or len(token) > LONGEST for token in tokens):
        raise UserError(f"{path}: tokenizer.ggml.tokens, expected texts of up to {LONGEST} characters; fetch it again")
    if kind == "gpt2":
        backend = byte_level_bpe(tokens, rules, types, _pre(file), str(path))
    else:
        prefix = bool(file.get("tokenizer.ggml.add_space_prefix", True))
        backend = sentencepiece_bpe(tokens, rules, types, space_prefix=prefix, where=str(path))
    template = chat.choose(file.get("tokenizer.chat_template"), chat_template, str(path))
    ids = {name: file.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "unknown", "padding")}
    for name, i in ids.items():
        if i is not None and not 0 <= i < len(tokens):
            raise UserError(
                f"{path}: tokenizer.ggml.{name}_token_id={i}, expected below {len(tokens)}; the file is damaged"
            )
    stop_ids = find_stop_ids({t: i for i, t in enumerate(tokens)}, template, [ids["eos"]], str(path))
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    special = {names[n]: tokens[i] for n, i in ids.items() if i is not None}
    pad_id = ids["padding"] if ids["padding"] is not None else stop_ids[-1]
    return HFTokenizer(
        backend, template=template, special=special, stop_ids=stop_ids, pad_id=pad_id, enable_thinking=enable_thinking
    )


def _pre(file: GGUF) -> str:
    """The name of the rule that splits a text; files from before April 2024 have none."""
    if (pre := file.get("tokenizer.ggml.pre")) is not None:
        return pre
    guess = "qwen2" if str(file.get("general.architecture")).startswith("qwen") else "default"
    log.warning(
        "%s has no tokenizer.ggml.pre, so the rule that splits a text before merging is a guess (%s): its tokens can "
        "differ from those of the model's training. Convert the checkpoint again, or use its Hugging Face directory",
        file.path, guess,
    )  # fmt: skip
    return guess


def byte_level_bpe(
    tokens: Sequence[str], merges: Sequence[str], types: Sequence[int], pre: str, where: str
) -> tokenizers.Tokenizer:
    """Byte-level BPE.

    Args:
        tokens: by id, in the byte-level alphabet (``Ġthe``); control tokens verbatim.
        merges: ``left right``, best first.
        types: GGUF token type of each token.
        pre: name of the rule that splits a text before merging: ``smollm`` (single digits, then GPT-2's rule),
            ``gpt-2`` / ``default`` (GPT-2's rule), ``qwen2`` (Qwen 2 to 3), ``llama-bpe`` (Llama 3); or one of
            ``SAME``, which are aliases.

    Raises:
        UserError: an unsupported pre-tokenizer, or lists that do not match.
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
    name, pre = pre, SAME.get(pre, pre)
    if pre not in rules:
        known = ", ".join([*rules, *SAME])
        raise UserError(f"{where}: tokenizer.ggml.pre={name!r} is not supported yet; supported: {known}")
    _check_types(tokens, types, where)
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if any(part not in vocab for part in (left, right, left + right)):  # a merge with 0 or 2 spaces fails, too
            raise UserError(f"{where}: merge {merge!r} is not made of tokens; the file is damaged, fetch it again")
        pairs.append((left, right))
    # Llama 3 keeps a word that is a token, whatever the merges would produce
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
    """SentencePiece's BPE with byte fallback (Llama 2, Gemma), which merges the pair with the best score of the result.

    Args:
        tokens: by id, spaces as U+2581; bytes as ``<0x0A>``.
        scores: of each token; higher ones are merged first.
        types: GGUF token type of each token.
        space_prefix: whether a space is put in front of a text (Llama 2).

    Raises:
        UserError: lists that do not match.
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
    """Every pair of tokens that forms a third, best result first; for equal results, the older tokens first."""
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

    for token, kind in zip(tokens, types, strict=True):  # in the order of ids, so that every token keeps its id
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            special = kind != USER_DEFINED
            added = tokenizers.AddedToken(token, special=special, normalized=False)
            (backend.add_special_tokens if special else backend.add_tokens)([added])
