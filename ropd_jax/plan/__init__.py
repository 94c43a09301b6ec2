"""What a run needs from a TPU slice or a GPU machine, from the compiler, before you rent it (``ropd plan``)."""

from __future__ import annotations

import importlib.util
import math
import os
import re

from ropd_jax.plan.gpu import missing, prepare_gpu

MOST = 1024  # maximum number of CPU devices in place of chips


def prepare(topology: str, *, shapes: bool = False) -> None:
    """Sets the environment variables of a plan for this topology; call it before jax is imported.

    jax stays on the CPU and libtpu does not look for a TPU; ``cpu:N`` makes N devices from this machine. Variables that
    are already set keep their values.

    Args:
        shapes: the plan needs no compiler; CPU devices replace the chips.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is used: two plans can run at once
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    chips = re.fullmatch(r"(?:gpu:\w+?x|\w+:)(\d+(?:x\d+)*)", topology)
    on_cpu, on_gpu = topology.startswith("cpu:"), topology.startswith("gpu:")
    if on_gpu:
        prepare_gpu()
    there = on_cpu or (shapes and bool(missing() if on_gpu else importlib.util.find_spec("libtpu") is None))
    each = 1 if on_cpu or on_gpu else 2  # maximum number of devices of a chip
    count = min(MOST, each * math.prod(map(int, chips[1].split("x")))) if chips else 0
    flags = os.environ.get("XLA_FLAGS", "")
    if there and count and "host_platform_device_count" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}".strip()
