"""Do prompt and answer, read as text, become the tokens again that the sampler produced?

They need not: a student can sample "1" and "2" where its tokenizer writes "12", or stop inside a character. Such a
rollout is trained on as it was sampled; a log-prob that anyone works out from its text would be another's.
"""

from __future__ import annotations

from collections.abc import Sequence

from ropd_jax.text.tokenizer import Tokenizer
from ropd_jax.types import RolloutGroup, UserError


def retokenized(tokenizer: Tokenizer, groups: Sequence[RolloutGroup]) -> tuple[int, int]:
    """(rollouts whose text has other tokens than were sampled, rollouts); the stop token is no part of the text."""
    differ = total = 0
    for group in groups:
        prompt = tokenizer.render(group.prompt.messages)
        for rollout in group.rollouts:
            answer = rollout.tokens_T[:-1] if rollout.finish_reason == "stop" else rollout.tokens_T
            total += 1
            try:
                again = tokenizer.encode(prompt + rollout.text)
            except UserError:  # a character that no token begins with
                differ += 1
                continue
            differ += again != [*group.prompt_tokens_T.tolist(), *answer.tolist()]
    return differ, total
