"""What a run needs of a TPU slice, from the compiler, before anyone rents the slice (``ropd plan``)."""

from __future__ import annotations

import os
import re


def prepare(topology: str) -> None:
    """Sets the environment variables of a plan for this topology; call it before jax is imported.

    jax stays on the CPU and libtpu does not look for a TPU; ``cpu:N`` makes N devices of this machine. Variables that
    are set already keep their value.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is used: two plans can run at once
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    count = re.fullmatch(r"cpu:(\d+)", topology)
    flags = os.environ.get("XLA_FLAGS", "")
    if count and "host_platform_device_count" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count[1]}".strip()
