"""The prompts of a run, tokenized: training and held-out, disjoint, none longer than the limit."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ropd_jax.data.prompts import PromptSet, check_seeds, disjoint, load_prompts
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


def load_questions(cfg: ConfigDict, tokenizer: Tokenizer) -> tuple[Questions, Questions]:
    """(training, held-out) questions, disjoint, tokenized with the student's chat template.

    Raises:
        UserError: seeds that share items, an empty set, or every prompt over ``data.max_prompt_tokens``.
    """
    d = cfg.data
    common = dict(source=d.source, task=d.task, options=d.options.to_dict(), template=d.template, system=d.system)
    if d.source == "reasoning_gym":
        check_seeds(train_seed=d.seed, train_size=d.size, heldout_seed=d.heldout_seed, heldout_size=d.heldout_size)
    held_path = d.heldout_path or (d.path if d.source == "published" else "")  # a draw of the same set
    held = load_prompts(**common, path=held_path, size=d.heldout_size, seed=d.heldout_seed)
    train = disjoint(load_prompts(**common, path=d.path, size=d.size, seed=d.seed), held)
    return tuple(_tokenized(s, tokenizer, d.max_prompt_tokens, n) for s, n in ((train, "training"), (held, "held-out")))


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
