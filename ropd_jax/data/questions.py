"""The prompts of a run, tokenized: training and held-out, disjoint, none longer than the limit."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ropd_jax.data.load import load_prompts
from ropd_jax.data.prompts import PromptSet, disjoint
from ropd_jax.data.reasoning_gym import check_seeds
from ropd_jax.text.tokenizer import Tokenizer
from ropd_jax.types import Prompt, UserError

log = logging.getLogger(__name__)


class Questions(NamedTuple):
    """Prompts with their tokens, none longer than the limit."""

    prompts: list[Prompt]
    tokens: dict[str, np.ndarray]  # by prompt id
    dropped: dict[str, int]

    def tokens_of(self, prompts: list[Prompt]) -> list[np.ndarray]:
        return [self.tokens[p.id] for p in prompts]


def load_questions(data: ConfigDict, tokenizer: Tokenizer) -> tuple[Questions, Questions]:
    """(training, held-out) questions, disjoint, tokenized with the student's chat template.

    Args:
        data: the section ``data`` of a config.

    Raises:
        UserError: seeds that share items, an empty set, or every prompt over ``data.max_prompt_tokens``.
    """
    common = dict(
        source=data.source, task=data.task, options=data.options.to_dict(), template=data.template, system=data.system
    )
    if data.source == "reasoning_gym":
        check_seeds(
            train_seed=data.seed,
            train_size=data.size,
            heldout_seed=data.heldout_seed,
            heldout_size=data.heldout_size,
        )
    # a published set without a held-out path is drawn from twice, by two seeds; `disjoint` removes what both drew
    held_path = data.heldout_path or (data.path if data.source == "published" else "")
    held = load_prompts(**common, path=held_path, size=data.heldout_size, seed=data.heldout_seed)
    train = disjoint(load_prompts(**common, path=data.path, size=data.size, seed=data.seed), held)
    limit = data.max_prompt_tokens
    return _tokenized(train, tokenizer, limit, "training"), _tokenized(held, tokenizer, limit, "held-out")


def _tokenized(prompt_set: PromptSet, tokenizer: Tokenizer, limit: int, name: str) -> Questions:
    tokens = {p.id: np.asarray(tokenizer.apply_chat_template(p.messages), np.int32) for p in prompt_set}
    kept = [p for p in prompt_set if len(tokens[p.id]) <= limit]
    dropped = dict(prompt_set.dropped)
    if long := len(tokens) - len(kept):
        dropped["too_long"] = long
    if not kept:
        shortest = min(map(len, tokens.values()))
        raise UserError(
            f"all {len(tokens)} {name} prompts are longer than data.max_prompt_tokens={limit} "
            f"(the shortest has {shortest} tokens); raise it"
        )
    log.info("%s prompts: %d; dropped: %s", name, len(kept), dropped or "none")
    return Questions(kept, tokens, dropped)
