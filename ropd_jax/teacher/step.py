"""The training step that a call belongs to, which the tape, the budget and the queue read without a parameter."""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")
NO_STEP = -1
STEP: contextvars.ContextVar[int] = contextvars.ContextVar("teacher_step", default=NO_STEP)


async def at_step(step: int, work: Awaitable[T]) -> T:
    """Awaits ``work`` as part of a training step."""
    STEP.set(step)
    return await work
