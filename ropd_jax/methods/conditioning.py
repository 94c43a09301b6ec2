"""Prompts that tell the student what makes a good answer: the contexts of rgsd, rcsd, cort and cripo.

A paragraph after the question in the last user message::

    What is 2 + 3?

    A good answer meets each of these criteria:
    - It ends with the right sum.

The criteria are the teacher's text. The chat template formats them like any text of a user.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ropd_jax.text.tokenizer import Tokenizer
from ropd_jax.types import Criterion, Prompt

MEETS = "A good answer meets each of these criteria:"
MISSES = "Here the answer must not do any of the following:"
FREE = "A good answer meets each criterion that is asked for."  # as MEETS, without saying what


def told(tokenizer: Tokenizer, prompt: Prompt, head: str, criteria: Sequence[Criterion] = ()) -> np.ndarray:
    """int32 tokens of the prompt with ``head`` and the criteria after its last user message."""
    messages = list(prompt.messages)
    last = max(i for i, m in enumerate(messages) if m.role == "user")
    lines = [messages[last].content, "", head, *(f"- {' '.join(c.text.split())}" for c in criteria)]
    messages[last] = dataclasses.replace(messages[last], content="\n".join(lines))
    return np.asarray(tokenizer.apply_chat_template(tuple(messages)), np.int32)
