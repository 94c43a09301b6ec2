"""The expected time of a step, in addition to its lower bound: from the compiled programs.

A phase takes its work on the device and then its collectives:

    device   the TPU compiler's cycles (loops times their trips) over the chip's clock. It estimates none for Pallas
             kernels; these count as attention at the peak (update, prefill) or at the memory bandwidth (decoding).
             At least the bytes that must be read and written over the bandwidth. XLA:GPU estimates no cycles, so a GPU
             gets its roofline: the larger of operations over the peak and bytes over the bandwidth
    links    the bytes that a device receives over the links of one axis of the torus (`Topology.axis_bandwidth`)
    decode   token step by token step: the scheduler's replay gives the number of steps, the rows of each, and the part
             of the cache that each reads (`plan.replay`)

Not included: waits for memory within a program, the latency of collectives (75 small ones per token for Qwen3-4B with
tp=4), the host between chunks, and the teacher. Collectives that the compiler hides behind other work count in full.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ropd_jax.plan.bound import Phase
from ropd_jax.plan.chips import Topology
from ropd_jax.plan.compiled import Compiled
from ropd_jax.plan.replay import Rung


@dataclasses.dataclass(frozen=True)
class Expected:
    """Seconds of one phase of a step; None if a figure is unknown.

    Attributes:
        device, links: the two parts.
        source: source of ``device``: ``cycles`` or ``roofline``.
    """

    name: str
    seconds: float | None
    device: float | None
    links: float | None
    source: str


@dataclasses.dataclass(frozen=True)
class Step:
    """One program of decoding in a step (`replay.Rung`): seconds of all its token steps.

    Attributes:
        compiled: whether this program was compiled; else the figures are those of the program with the most rows, which
            takes longer.
    """

    rung: Rung
    expected: Expected
    compiled: bool


def _over(work: float | None, rate: float | None) -> float | None:
    if work == 0:
        return 0.0
    return None if work is None or rate is None else work / rate


def _sum(name: str, device: float | None, links: float | None, source: str) -> Expected:
    known = device is not None and links is not None
    return Expected(name, device + links if known else None, device, links, source)  # type: ignore[operator]


def of_phase(phase: Phase, program: Compiled, topology: Topology) -> Expected:
    """The expected time of an update, of prefill, or of a method's own program."""
    chip = topology.chip.a_device()
    links = _over(phase.links, topology.axis_bandwidth)
    memory = _over(phase.memory, chip.bandwidth)
    if program.cycles and chip.clock and chip.flops:
        device = phase.calls * program.cycles / chip.clock
        device += phase.attention / chip.flops if program.kernels else 0.0
        return _sum(phase.name, max(device, memory or 0.0), links, "cycles")
    parts = _over(phase.flops, chip.flops), memory
    return _sum(phase.name, None if None in parts else max(parts), links, "roofline")  # type: ignore[type-var]


@dataclasses.dataclass(frozen=True)
class Decoding:
    """The cost of a token step on a device.

    Attributes:
        weights: bytes read in each step.
        position: bytes of one position of the cache.
        row_flops: operations of a device for a token of one row, without attention.
        chunk: tokens of one call.
    """

    weights: float
    position: float
    row_flops: float
    chunk: int


def of_decoding(
    rungs: Sequence[Rung], compiled: dict[int, Compiled], work: Decoding, topology: Topology
) -> tuple[Step, ...]:
    """The expected time of each program of decoding.

    Args:
        compiled: by number of rows; at least that with the most rows.
    """
    largest = compiled.get(max(compiled, default=0))
    if largest is None or not largest.fits:
        return ()
    return tuple(Step(r, _of_rung(r, compiled.get(r.rows, largest), work, topology), r.rows in compiled) for r in rungs)


def _of_rung(rung: Rung, program: Compiled, work: Decoding, topology: Topology) -> Expected:
    chip, loop = topology.chip.a_device(), program.loop
    received = sum(c.bytes for c in (loop or program).collectives) / (1 if loop else work.chunk)
    links = _over(rung.steps * received, topology.axis_bandwidth)
    cache = _over(rung.read * work.position, chip.bandwidth)
    weights = _over(rung.steps * work.weights, chip.bandwidth)
    memory = None if cache is None or weights is None else cache + weights
    if loop and loop.cycles and chip.clock and memory is not None and cache is not None:
        device = (rung.steps * loop.cycles + rung.passes * program.inner_cycles) / chip.clock
        device += cache if loop.kernels else 0.0
        return _sum("decode", max(device, memory), links, "cycles")
    compute = _over(rung.steps * rung.rows * work.row_flops, chip.flops)
    return _sum("decode", None if compute is None or memory is None else max(compute, memory), links, "roofline")


def total(steps: Sequence[Step]) -> Expected:
    """Decoding as one phase."""

    def add(name: str) -> float | None:
        parts = [getattr(s.expected, name) for s in steps]
        return None if None in parts or not parts else sum(parts)

    return Expected(
        "decode", add("seconds"), add("device"), add("links"), steps[0].expected.source if steps else "roofline"
    )
