"""What a compiled program does, read from its HLO text: collectives (kind, count, bytes received by a device), the TPU
compiler's own estimate of cycles, and arrays that are cast.

The body of a loop is counted once per pass, if the number of passes is a constant of its condition. The end of a loop
can depend on data (decoding; parts of an update that are not needed): then the caller passes the number of passes. The
TPU compiler splits one collective into several fused steps that repeat its text under one channel number; it counts
once. It writes a reduce-scatter as a fusion ``all-reduce-scatter`` of an all-reduce and the slice of it that is kept.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Sequence

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1,
}  # fmt: skip

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_OP = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>.*?) "
    rf"(?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\("
)
_CALLS = re.compile(r"(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_LISTS = re.compile(r"(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_LOOP = re.compile(r"(condition|body)=%?([\w.\-]+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CONVERT = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (?P<type>(?:bf16|f16|f32)\[[\d,]*\])\S* convert\(")
_KERNEL = 'custom_call_target="tpu_custom_call"'
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind.

    Attributes:
        count: number of runs.
        bytes: received by a device in all of them.
    """

    kind: str
    count: int
    bytes: int


def array_bytes(text: str) -> float:
    """Bytes of all arrays in an HLO type, e.g. ``(f32[2,3]{1,0}, bf16[4])``: 32."""
    return sum(
        BYTES.get(kind, 0) * math.prod(int(d) for d in dims.split(",") if d) for kind, dims in _ARRAY.findall(text)
    )


@dataclasses.dataclass(frozen=True)
class Work:
    """What a program, or one pass of one of its loops, does on a device.

    Attributes:
        collectives: largest first.
        cycles: the TPU compiler's estimates, summed, without waits for memory and other devices. 0 on other platforms.
        cast_bytes: results of conversions between floating types of at least `LARGE` bytes each: weights.
        kernels: number of runs of Pallas kernels, whose cycles the compiler does not estimate.
    """

    collectives: tuple[Collective, ...]
    cycles: int
    cast_bytes: int
    kernels: int = 0


LARGE = 2**20


def collectives(text: str, passes: int = 1) -> list[Collective]:
    """Collectives of an HLO module's text, largest first.

    Args:
        passes: number of passes of a loop whose end depends on data.
    """
    lines, entry = _computations(text)
    return _collectives(lines, _times(lines, entry, passes))


def whole_work(text: str, passes: int = 1) -> Work:
    """The work of the whole program; ``passes`` as in `collectives`."""
    lines, entry = _computations(text)
    return _work(lines, _times(lines, entry, passes))


def loop_work(text: str, passes: int = 1) -> Work | None:
    """The work of one pass of the outermost loop whose end depends on data, a token of decoding; None without one.

    Args:
        passes: number of passes of inner loops whose end depends on data.
    """
    lines, entry = _computations(text)
    for line in lines.get(entry, ()):
        if " while(" in line and _trips(line, lines, 0) == 0:
            parts = dict(_LOOP.findall(line))
            times: dict[str, int] = defaultdict(int)
            for name in (parts["condition"], parts["body"]):
                for key, n in _times(lines, name, passes).items():
                    times[key] += n
            return _work(lines, times)
    return None


def _work(lines: dict[str, list[str]], times: dict[str, int]) -> Work:
    cycles = cast = 0.0
    kernels = 0
    for name, body in lines.items():
        if not (n := times.get(name, 0)):
            continue
        for line in body:
            if found := _CYCLES.search(line):
                cycles += n * int(found[1])
            elif _KERNEL in line:
                kernels += n
            if (to := _CONVERT.match(line)) and (size := array_bytes(to["type"])) >= LARGE:
                cast += n * size
    return Work(tuple(_collectives(lines, times)), round(cycles), round(cast), kernels)


def _collectives(lines: dict[str, list[str]], times: dict[str, int]) -> list[Collective]:
    counts: dict[str, int] = defaultdict(int)
    received: dict[str, float] = defaultdict(float)
    seen: set[str] = set()
    for name, body in lines.items():
        for line in body:
            op = _OP.match(line)
            if not op or not times.get(name):
                continue
            channel = re.search(r"channel_id=(\d+)", line)
            # two sums of a `shard_map` can have one channel: then their shapes distinguish them
            key = f"{channel[1]} {_ARRAY.findall(op['type'])}" if channel else f"{name}/{op['name']}"
            if key in seen:
                continue
            seen.add(key)
            group = group_size(line)
            if group == 1:
                continue
            kind, size = op["kind"], array_bytes(op["type"])
            if op["start"]:  # (operands, results)
                size = _started(kind, size, group)
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind, size = "reduce-scatter", size / group
            counts[kind] += times[name]
            received[kind] += times[name] * _received(kind, size, group)
    found = [Collective(kind, counts[kind], round(received[kind])) for kind in counts]
    return sorted(found, key=lambda c: -c.bytes)


def _received(kind: str, size: float, group: int) -> float:
    """Bytes received by a device, from the bytes of its result."""
    others = (group - 1) / group
    return {
        "all-gather": size * others,
        "all-reduce": 2 * size * others,
        "reduce-scatter": size * (group - 1),
        "all-to-all": size * others,
        "collective-permute": size,
    }[kind]


def _started(kind: str, both: float, group: int) -> float:
    """Bytes of the result, if the type holds operand and result."""
    return {"all-gather": both * group / (group + 1), "reduce-scatter": both / (group + 1)}.get(kind, both / 2)


def group_size(line: str) -> int:
    """Devices of one group of a collective."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(found[1].split(","))
    return 2  # a permutation names pairs


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation, and the entry's name."""
    lines: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head[2]
            lines[name] = []
            entry = name if head[1] else entry
        elif name:
            lines[name].append(line)
    return lines, entry


def _times(lines: dict[str, list[str]], entry: str, passes: int) -> dict[str, int]:
    """Number of runs of each computation."""
    times: dict[str, int] = defaultdict(int)

    def visit(name: str, n: int) -> None:
        times[name] += n
        for line in lines.get(name, ()):
            called = [m for m in _CALLS.findall(line) if m[0] != "condition"]
            trips = _trips(line, lines, passes) if " while(" in line else 1
            for how, target in called:
                visit(target, n * (trips if how == "body" else 1))
            for several in _LISTS.findall(line):
                for target in re.findall(r"%?([\w.\-]+)", several):
                    visit(target, n)

    visit(entry, 1)
    return times


def _trips(line: str, lines: dict[str, list[str]], passes: int) -> int:
    """Number of passes of a loop: from the compiler, or the constant that its counter is compared with, divided by the
    counter's step; else ``passes``."""
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    body = lines.get(condition[1], ()) if condition else ()
    root = next((x for x in body if x.lstrip().startswith("ROOT")), "")
    compare = re.search(r"compare\(([^)]*)\), direction=LT", root)
    if not compare:
        return passes
    for operand in re.findall(r"%?([\w.\-]+)(?:,|$)", compare[1]):
        for x in body:
            if found := re.match(rf"\s+%?{re.escape(operand)} = [su]32\[\]\S* constant\((\d+)\)", x):
                return -(-int(found[1]) // _step(line, lines, body, compare[1]))
    return passes


def _step(line: str, lines: dict[str, list[str]], condition: Sequence[str], compared: str) -> int:
    """The step of a loop's counter: 1, or 2 if the compiler unrolled a product in steps around a ring."""
    name = r"%([\w.\-]+)"

    def found(one: str, how: str, within: Sequence[str]) -> str:
        """The group of ``how`` in the definition of ``one``, or ""."""
        text = rf"\s+(?:ROOT )?%?{re.escape(one)} = [su]32\[\]\S* {how}"
        return next((m[1] for x in within if (m := re.match(text, x))), "")

    index = max(found(n, r"get-tuple-element\(.*index=(\d+)", condition) for n in re.findall(name, compared))
    body = lines.get(dict(_LOOP.findall(line)).get("body", ""), [])
    root = next((x for x in body if x.lstrip().startswith("ROOT")), "")
    values = re.findall(name, root.partition(" tuple(")[2].partition(")")[0])
    if not index or int(index) >= len(values):
        return 1
    added = found(values[int(index)], rf"add\(%[\w.\-]+, {name}\)", body)
    return int(found(added, r"constant\(([1-9]\d*)\)", body) or 1)
