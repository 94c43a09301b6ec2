"""From the tokens of a row to a `Rollout`: its text, and where a stop text ends it. No jax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ropd_jax.sampling.slots import Job
from ropd_jax.text.tokenizer import Tokenizer
from ropd_jax.types import THINK, FinishReason, Prompt, Rollout, RolloutGroup

_END = 16  # tokens of a prompt that contain its last line


def likely_stopped(tokenizer: Tokenizer, stop: Sequence[str], chunk: int, job: Job) -> bool:
    """True if the last chunk probably completed a stop text; `make_rollout` decides exactly.

    Only the end of the answer is decoded: the chunk, and enough tokens before it for a stop text that started there.
    """
    longest = max(map(len, stop))
    text = tokenizer.decode(job.tokens[-(chunk + 4 * longest + 8) :])
    return any(s in text for s in stop)


def opens_thought(tokenizer: Tokenizer, prompt_T: np.ndarray) -> bool:
    """Whether a prompt, after the chat template, ends with an open ``<think>``."""
    return tokenizer.decode(prompt_T[-_END:]).rstrip().endswith(THINK)


def make_rollout(
    tokenizer: Tokenizer, stop_ids: Sequence[int], stop: Sequence[str], job: Job, *, opened: bool = False
) -> Rollout:
    """The rollout of a row that has ended.

    With the stop text "###", tokens "4", "2#", "##\\n", "x" become the first three tokens and the text "42": the
    tokens include the one that completed the stop text, because it was sampled; the text ends before it. ``opened`` is
    the result of `opens_thought`.
    """
    tokens, stopped = job.tokens, job.tokens[-1] in stop_ids
    text = tokenizer.decode(tokens[:-1] if stopped else tokens)
    ends = [at for s in stop if (at := text.find(s)) >= 0]
    if ends:
        # bisect for the fewest tokens whose text holds a stop text
        few, many = 1, len(tokens) - stopped
        while few < many:
            middle = (few + many) // 2
            found = any(s in tokenizer.decode(tokens[:middle]) for s in stop)
            few, many = (few, middle) if found else (middle + 1, many)
        tokens, text, stopped = tokens[:few], text[: min(ends)], True
    n = len(tokens)
    logp_T, drawn_T = (np.asarray(x[:n], np.float32) for x in (job.logp, job.drawn_logp))
    same = np.array_equal(logp_T, drawn_T)  # the rule left nothing out
    reason: FinishReason = "stop" if stopped else "length"
    return Rollout(np.asarray(tokens, np.int32), logp_T, text, reason, None if same else drawn_T, opened)


def make_group(
    prompts: Sequence[Prompt],
    prompt_tokens: Sequence[np.ndarray],
    rollouts: Sequence[Mapping[int, Rollout]],
    i: int,
    step: int,
) -> RolloutGroup:
    """The group of the i-th prompt, its rollouts in the order of their index, in whatever order they ended."""
    ordered = tuple(rollouts[i][g] for g in sorted(rollouts[i]))
    return RolloutGroup(prompts[i], np.asarray(prompt_tokens[i], np.int32), ordered, step, i)
