"""The table of chips, and topology strings: ``v5e:4x4``, ``v5p:2x2x1``, ``7x:2x2x1``, ``gpu:h100x8``, ``cpu:8``.

A TPU topology is described by libtpu (`jax.experimental.topologies`), GPUs by the table itself (`plan.gpu`), so no chip
is needed. ``cpu:8`` is 8 CPU devices of this machine: everything except the chip's figures.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import importlib.util
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from ropd_jax.plan import gpu
from ropd_jax.types import UserError
from ropd_jax.utils.suggest import near

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """The figures of one chip; None if not published.

    Attributes:
        hbm: bytes.
        usable: bytes of it that are available to programs.
        flops: dense bfloat16 operations per second.
        bandwidth: of the HBM, bytes per second.
        ici: into (or out of) the chip, bytes per second: half of the published figure for both directions.
        devices: JAX devices of one chip; memory, FLOPs and bandwidth of a device are that share.
        source: the page that publishes the figures.
        platform: ``gpu``, ``cpu``, or the name that libtpu gives the topology.
        options: additional options for libtpu.
        clock: cycles per second of the matrix units; None if the compiler estimates no cycles.
        axes, wraps: of a TPU's links, see chips.toml; 0 if they end in a switch.
        compiler: the description for XLA's GPU compiler.
    """

    name: str
    hbm: float | None
    usable: float | None
    flops: float | None
    bandwidth: float | None
    ici: float | None
    devices: int
    source: str
    platform: str = "cpu"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    clock: float | None = None
    axes: int = 0
    wraps: int = 0
    compiler: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def a_device(self) -> Chip:
        """The same figures for one JAX device."""

        def share(x):
            return None if x is None else x / self.devices

        names = ("hbm", "usable", "flops", "bandwidth", "ici")
        return dataclasses.replace(self, devices=1, **{name: share(getattr(self, name)) for name in names})


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: which chip, and how many along each direction."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices

    @property
    def axis_bandwidth(self) -> float | None:
        """Bytes per second that a device receives over the links of one axis of the torus; None if not published.

        A v5e chip has four links of 50 GB/s each way. Along an axis of 4 chips, which is not closed to a ring, the last
        chip receives over one link: 50 GB/s; along one of 16, over two: 100 GB/s. Behind a switch (GPUs) all links
        serve every group: then it is `Chip.ici`.
        """
        chip = self.chip
        if chip.ici is None or not chip.axes:
            return chip.ici
        ring = all(side % chip.wraps == 0 for side in self.shape if side > 1)
        return chip.ici / (2 * chip.axes) * (2 if ring else 1) / chip.devices

    def __str__(self) -> str:
        if self.chip.platform == "gpu":
            return f"gpu:{self.chip.name}x{self.chips}"
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"


CPU = Chip("cpu", None, None, None, None, None, 1, "no published figures")


def chips() -> dict[str, Chip]:
    """The table, by name."""
    raw = tomllib.loads((importlib.resources.files("ropd_jax.plan") / "chips.toml").read_text(encoding="utf-8"))
    return {
        name: Chip(
            name=name,
            hbm=row["hbm"] * GIB,
            usable=round(row["usable"] * GIB) * row["devices"],
            flops=row["flops"] * 1e12,
            bandwidth=row["bandwidth"] * 1e9,
            ici=row["ici"] * 1e9 / 2 if "ici" in row else None,
            devices=row["devices"],
            source=row["source"],
            platform=row["platform"],
            options=row.get("options", {}),
            clock=row["clock"] * 1e9 if "clock" in row else None,
            axes=row.get("axes", 0),
            wraps=row.get("wraps", 0),
            compiler=row.get("compiler", {}),
        )
        for name, row in raw.items()
    }


MOST_GPUS = 8  # per machine


def parse_topology(text: str) -> Topology:
    """``v5e:4x4`` or ``gpu:h100x8`` as a `Topology`.

    Raises:
        UserError: an unknown chip, or no sizes.
    """
    found = re.fullmatch(r"(?P<chip>\w+):(?P<shape>[1-9]\d*(x[1-9]\d*)*)", text)
    table = chips() | {"cpu": CPU}
    if text.startswith("gpu:"):
        return _parse_gpus(text, {name: chip for name, chip in table.items() if chip.platform == "gpu"})
    if not found:
        raise UserError(
            f"--topology={text!r} is not a topology; expected CHIP:SIZE, e.g. v5e:4x4, v5p:2x2x1, gpu:h100x8 or cpu:8"
        )
    name = found["chip"].removeprefix("tpu")
    if name not in table:
        raise UserError(f"--topology={text!r}: chip {found['chip']!r} is unknown; {near(name, table)}")
    if table[name].platform == "gpu":
        raise UserError(f"--topology={text!r}: {name} is a GPU; write gpu:{name}x{found['shape']}")
    return Topology(table[name], tuple(map(int, found["shape"].split("x"))))


def _parse_gpus(text: str, table: Mapping[str, Chip]) -> Topology:
    found = re.fullmatch(r"gpu:(?P<chip>\w+?)(x(?P<count>\d+))?", text)
    if not found:
        raise UserError(f"--topology={text!r} is not a topology; expected gpu:NAMExCOUNT, e.g. gpu:h100x8")
    if found["chip"] not in table:
        raise UserError(f"--topology={text!r}: GPU {found['chip']!r} is unknown; {near(found['chip'], table)}")
    count = int(found["count"] or 1)
    if not 1 <= count <= MOST_GPUS:
        raise UserError(f"--topology={text!r}: {count} GPUs; expected 1 to {MOST_GPUS}, the most in one machine")
    return Topology(table[found["chip"]], (count,))


def compiler_missing(topology: Topology) -> str:
    """The error that names the missing compiler package and how to install it; "" if it is installed."""
    if topology.chip.platform == "cpu":
        return ""
    if topology.chip.platform == "gpu":
        return gpu.missing()
    if importlib.util.find_spec("libtpu") is None:
        return "libtpu, which compiles for TPUs, is not installed; pip install 'ropd_jax[tpu-aot]'"
    return ""


def topology_devices(topology: Topology) -> Sequence[Any]:
    """The JAX devices of a topology: described by its compiler for a TPU or GPU, this machine's own for ``cpu:N``.

    Raises:
        UserError: no compiler for the chip, a slice that it rejects, or too few CPU devices.
    """
    import jax

    if topology.chip.platform == "cpu":
        devices = jax.devices("cpu")
        if len(devices) < topology.chips:
            raise UserError(
                f"--topology={topology} needs {topology.chips} CPU devices, but there are {len(devices)}; set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={topology.chips}"
            )
        return devices[: topology.chips]
    if missing := compiler_missing(topology):
        raise UserError(missing)
    if topology.chip.platform == "gpu":
        chip = topology.chip
        target = gpu.target_of(chip.compiler, bandwidth=chip.bandwidth or 0, memory=chip.hbm or 0)
        return gpu.devices_of(target, topology.chips)
    from jax.experimental import topologies

    options = dict(topology.chip.options)
    if topology.chips < 4 and len(topology.shape) == 2:  # libtpu assumes four chips per host
        options["chips_per_host_bounds"] = (*topology.shape, 1)
    name = f"{topology.chip.platform}:{'x'.join(map(str, topology.shape))}"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology={topology} is refused by libtpu ({reason}); choose a slice that exists") from error
