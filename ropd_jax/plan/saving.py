"""The duration of a save: the bytes of a checkpoint over assumed rates of a host. Nothing here is measured.

Between a signal (SIGTERM) and the complete checkpoint there are four stages, one after the other:

    1. the current work of the device          a chunk of tokens, or one call of the update
    2. copy      device to host memory         `COPY`
    3. write     to a disk or a bucket         `DISK`, `BUCKET`
    4. sum       read back for the checksums   from a disk's page cache, or from the bucket

Each host saves its own part of the arrays.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from ml_collections import ConfigDict

from ropd_jax.models.config import ModelConfig
from ropd_jax.plan import programs
from ropd_jax.plan.chips import Topology

# Assumed bytes per second of one host; `make bench-save` measures a machine.
COPY = 8e9  # PCIe, for all chips of the host together
DISK = 0.5e9  # a network disk
BUCKET = 1e9  # a bucket in the same region
SUM = 2e9  # checksums of data in the page cache, with `checksums.THREADS` threads
CHIPS_A_HOST = 4  # v4, v5p and slices of several hosts; a host with 8 chips saves twice as much
GRACE_S = 30.0  # between SIGTERM and SIGKILL


@dataclasses.dataclass(frozen=True)
class Saving:
    """A checkpoint of a config on a slice.

    Attributes:
        bytes: of all arrays: parameters, optimizer, and what the method trains.
        hosts: number of hosts that share them.
        blocks_s: time for which a save blocks the run: the copy.
        bucket_s, disk_s: from the start of the copy to the complete checkpoint.
        busy_s: minimum duration of the device's current work; None if nothing is published about the chip.
    """

    bytes: int
    hosts: int
    blocks_s: float
    bucket_s: float
    disk_s: float
    busy_s: float | None


def saving(
    cfg: ConfigDict, model_cfg: ModelConfig, mesh: jax.sharding.Mesh, topology: Topology, busy_s: float | None
) -> Saving:
    """See `Saving`; ``mesh`` is that of the plan."""
    with jax.set_mesh(mesh):
        state = programs.state_of(cfg, model_cfg, mesh)
        _, extra = programs.method_of(cfg, model_cfg, mesh)
    total = _bytes(state.params) + _bytes(state.opt_state)
    if any(program.trains for program in extra.programs):
        total += _bytes(extra.arrays)
    if cfg.stream.staleness:  # a stop within a step keeps the policy that samples it
        total += _bytes(state.params)
    hosts = 1 if topology.chip.platform == "gpu" else max(1, math.ceil(topology.chips / CHIPS_A_HOST))
    share = total / hosts
    copy = share / COPY
    return Saving(
        total, hosts, copy, copy + share / BUCKET + share / BUCKET, copy + share / DISK + share / SUM, busy_s
    )  # fmt: skip


def line(s: Saving) -> str:
    """The description of a save in the plan."""
    longest = s.bucket_s + (s.busy_s or 0.0)
    fits = "within" if longest <= GRACE_S else "more than"
    busy = "" if s.busy_s is None else f", including the current update call ({s.busy_s:.1f} s or more),"
    shared = "by one host" if s.hosts == 1 else f"{s.bytes / s.hosts / 1e9:.1f} GB by each of {s.hosts} hosts"
    return (
        f"a checkpoint: {s.bytes / 1e9:.1f} GB, {shared}; it blocks "
        f"the run for {s.blocks_s:.1f} s and is complete after {s.bucket_s:.0f} s in a bucket ({BUCKET / 1e9:g} GB/s "
        f"per host, written and read back), {s.disk_s:.0f} s on a disk ({DISK / 1e9:g} GB/s). After SIGTERM{busy} the "
        f"bucket's {longest:.0f} s are {fits} a grace period of {GRACE_S:.0f} s. The rates are assumed: make "
        "bench-save measures yours."
    )


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree) if hasattr(x, "dtype"))
