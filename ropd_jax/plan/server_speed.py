"""Measures how fast a server generates, and how many calls it processes at a time: five short calls per model.

    a single call          64 tokens in 3.2 s -> 20 tokens per second
    four calls together    in 12.8 s          -> one after another: 1 slot
                           in 3.5 s           -> at least 4 slots

From these follow a suitable ``teacher.concurrency`` and ``teacher.timeout_s``. Unmeasured values are None.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ropd_jax.teacher import ChatClient, ChatRequest, Role, TeacherError, TruncatedError, Usage
from ropd_jax.types import Message

TOGETHER = 4  # calls; the largest number of slots that can be detected
TOKENS = 64  # output limit of each call
_MARGIN = 1.5  # ratio of a time limit to the time of the longest reply, since the prompt must be read as well


@dataclasses.dataclass(frozen=True)
class Speed:
    """Results of the five calls for one model.

    Attributes:
        tokens_per_s: speed of a single reply; None if the provider does not report its tokens.
        slots: replies generated at the same time; `TOGETHER` means as many or more. None if calls failed.
        message: the problem, or "".
    """

    provider: str
    model: str
    tokens_per_s: float | None
    slots: int | None
    message: str = ""


async def measure(client: ChatClient, provider: str, model: str, *, timeout_s: float) -> Speed:
    """A single call, then `TOGETHER` at the same time, without retries.

    Args:
        timeout_s: for all calls together.
    """

    async def call(number: int) -> Usage:
        text = f"Write the numbers from {number} to 300 in digits, with a comma after each. Write nothing else."
        request = ChatRequest("verify", (Message("user", text),), model, max_output_tokens=TOKENS, sample_index=number)
        try:
            return (await client.chat(request)).usage
        except TruncatedError as e:  # as expected
            return e.usage or Usage()

    tokens_per_s = None
    try:
        async with asyncio.timeout(timeout_s):
            begin = time.monotonic()
            usage = await call(1)
            alone_s = max(1e-6, time.monotonic() - begin)
            if usage.output_tokens:
                tokens_per_s = usage.output_tokens / alone_s
            begin = time.monotonic()
            await asyncio.gather(*(call(n) for n in range(2, 2 + TOGETHER)))
            together_s = time.monotonic() - begin
    except TimeoutError:
        return Speed(provider, model, tokens_per_s, None, f"five short calls took longer than {timeout_s:g} s")
    except TeacherError as e:
        return Speed(provider, model, tokens_per_s, None, f"{e.cause}: {e}")
    return Speed(provider, model, tokens_per_s, min(TOGETHER, max(1, round(TOGETHER * alone_s / together_s))))


def suggestions(
    teacher: Mapping[str, Any], roles: Iterable[tuple[str, str, Role]], speeds: Sequence[Speed]
) -> list[str]:
    """Settings that fit the measured speeds better than those of the config, one per line, with the reason.

    Args:
        teacher: ``cfg.teacher``.
        roles: (the config's name of the role, its provider, its settings).
    """
    known = {(s.provider, s.model): s for s in speeds}
    lines = []
    for speed in speeds:
        if speed.slots is not None and speed.slots < min(TOGETHER, teacher["concurrency"]):
            calls = "one call" if speed.slots == 1 else f"{speed.slots} calls"
            lines.append(
                f"teacher.concurrency={speed.slots}: {speed.model} processes {calls} at a time, and the others wait"
            )
    needs = []
    for name, provider, role in roles:
        of = known.get((provider, role.model))
        if of is not None and of.tokens_per_s:
            needs.append((role.max_output_tokens / of.tokens_per_s, name, role.max_output_tokens, of))
    if needs and (longest := max(needs, key=lambda need: need[0]))[0] > teacher["timeout_s"]:
        seconds, name, tokens, speed = longest
        fits = int(teacher["timeout_s"] * (speed.tokens_per_s or 0.0) / _MARGIN)
        lines.append(
            f"teacher.timeout_s={math.ceil(_MARGIN * seconds / 10) * 10}: at {speed.tokens_per_s:.3g} tokens/s "
            f"a reply of teacher.{name}.max_output_tokens={tokens} takes {seconds:.0f} s; or "
            f"teacher.{name}.max_output_tokens={fits}"
        )
    return lines
