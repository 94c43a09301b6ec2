"""Checks whether the text of prompt and answer encodes to the sampled tokens.

It need not: a student can sample "1" and "2", which its tokenizer encodes as "12", or stop inside a character. Training
uses the sampled tokens. A log-prob computed from the text would belong to other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from ropd_jax.text.tokenizer import Tokenizer
from ropd_jax.types import RolloutGroup, UserError


def retokenized(tokenizer: Tokenizer, groups: Sequence[RolloutGroup]) -> tuple[int, int]:
    """(rollouts whose text does not encode to the sampled tokens, all rollouts), without the stop token."""
    differ = total = 0
    for group in groups:
        prompt = tokenizer.render(group.prompt.messages)
        for rollout in group.rollouts:
            answer = rollout.tokens_T[:-1] if rollout.finish_reason == "stop" else rollout.tokens_T
            total += 1
            try:
                again = tokenizer.encode(prompt + rollout.text)
            except UserError:  # a character without a token
                differ += 1
                continue
            differ += again != [*group.prompt_tokens_T.tolist(), *answer.tolist()]
    return differ, total
