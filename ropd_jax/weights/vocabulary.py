"""Handles checkpoints whose tokenizer and embedding table do not have the same ids.

Tables are padded to round sizes: Qwen3's tokenizer ends at id 151,668, but its table has 151,936 rows. The rows in
between are not tokens. A text cannot contain them, but a softmax over the table gives them probability, so a student
could sample one and would be trained on it. `fit` finds them, so that they have no probability anywhere
(`ModelConfig.unused`).
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterable

from ropd_jax.models.config import ModelConfig
from ropd_jax.text.tokenizer import HFTokenizer
from ropd_jax.types import UserError

log = logging.getLogger(__name__)
IMAGE_ONLY = frozenset({"<image_soft_token>"})  # in the tokenizer of Gemma 3's text models, whose tables lack its row


def fit(cfg: ModelConfig, tokenizer: HFTokenizer, where: str) -> tuple[ModelConfig, HFTokenizer]:
    """(the config with the ids that are not tokens in ``unused``, a tokenizer whose ids all have a row).

    Ids without a text are not tokens, nor is ``[PAD151700]`` in a GGUF file, a name that its converter makes up. Ids
    that end an answer are always tokens.

    Raises:
        UserError: the tokenizer has tokens without a row in the table.
    """
    V, vocab = cfg.vocab_size, tokenizer.vocab()
    beyond = {token: i for token, i in vocab.items() if i >= V}
    if beyond.keys() <= IMAGE_ONLY:
        tokenizer = tokenizer.without(beyond) if beyond else tokenizer
    else:
        token = min(beyond, key=beyond.__getitem__)
        raise UserError(
            f"{where}: the tokenizer has {len(beyond)} tokens beyond the {V} rows of the embedding table, the first is "
            f"{token!r} (id {beyond[token]}); resize the table (transformers: resize_token_embeddings) or remove them "
            "from the tokenizer"
        )
    used = {i for token, i in vocab.items() if token != f"[PAD{i}]"}.union(tokenizer.stop_ids)
    unused = _ranges(i for i in range(V) if i not in used)
    if unused:
        log.info("%s: %d of %d rows of the table are not tokens; they are never sampled", where,
                 sum(end - begin for begin, end in unused), V)  # fmt: skip
    return dataclasses.replace(cfg, unused=unused), tokenizer


def _ranges(ids: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Ascending ids as (begin, end): 3, 7, 8, 9 are (3, 4), (7, 10)."""
    runs = (list(run) for _, run in itertools.groupby(enumerate(ids), lambda pair: pair[1] - pair[0]))
    return tuple((run[0][1], run[-1][1] + 1) for run in runs)
