"""A lower bound of the seconds of a step, from the published figures of the chip.

Each phase takes at least as long as its operations at the peak rate, its bytes at the memory bandwidth, and the bytes
that a chip receives from others at the link bandwidth. The largest of the three is the bound, and its name is what the
phase waits for. A figure missing from a chip's table is unknown, not zero: without a peak there is no bound.
"""

from __future__ import annotations

import dataclasses

from ropd_jax.plan.chips import Chip


@dataclasses.dataclass(frozen=True)
class Phase:
    """Work of one device in one phase of a step.

    Attributes:
        flops: operations.
        memory: bytes that must be read or written.
        links: bytes received from other devices; None if unknown.
        calls: number of calls of its program.
        attention: those of the operations that an attention kernel does.
    """

    name: str
    flops: float
    memory: float
    links: float | None
    calls: float = 1.0
    attention: float = 0.0


@dataclasses.dataclass(frozen=True)
class Bound:
    """Minimum seconds of a phase, and what it waits for: ``compute``, ``memory`` or ``links``."""

    name: str
    seconds: float | None
    waits_for: str | None
    compute: float | None
    memory: float | None
    links: float | None


def bound(phase: Phase, chip: Chip) -> Bound:
    """The bound of one phase on one device (`Chip.a_device`).

    For 2e12 operations at 1e12 /s, 1e9 bytes at 1e9 /s and no links: compute 2 s, memory 1 s, so the phase
    takes at least 2 s and waits for compute.
    """

    def over(work: float | None, rate: float | None) -> float | None:
        return None if work is None or rate is None else work / rate

    parts = {
        "compute": over(phase.flops, chip.flops),
        "memory": over(phase.memory, chip.bandwidth),
        "links": over(phase.links, chip.ici),
    }
    known = {name: s for name, s in parts.items() if s is not None}
    longest = max(known, key=lambda name: known[name]) if "compute" in known else None
    return Bound(phase.name, known[longest] if longest else None, longest, **parts)
