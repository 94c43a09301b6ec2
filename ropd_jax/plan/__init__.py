"""``ropd plan``: what a run needs of a slice, from the compiler, before anyone rents it."""

from __future__ import annotations

import os
import re


def prepare(topology: str) -> None:
    """Sets, before jax is imported, what a plan for this topology needs of the environment.

    jax stays on the CPU and libtpu looks for no TPU; ``cpu:N`` makes N devices of this machine. What is set already
    stays as it is.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    count = re.fullmatch(r"cpu:(\d+)", topology)
    flags = os.environ.get("XLA_FLAGS", "")
    if count and "host_platform_device_count" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count[1]}".strip()
