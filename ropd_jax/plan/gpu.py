"""GPUs that nobody here has, described to XLA's GPU compiler: programs compile for them on any x86-64 machine.

    pip install 'ropd_jax[gpu-aot]'        # the compiler and cuDNN, 1 GB; no driver, no GPU

Only for `benchmarks.hlo` yet. Figures are NVIDIA's (H100 SXM5 data sheet, CUDA C programming guide, table of compute
capability 9.0). Without a GPU nothing is tuned: the compiler takes its default tiles.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from ropd_jax.types import UserError

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3350000000000 l2_cache_size: 52428800 device_memory_size: 85045084160
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
TARGETS = {"h100": H100}


def prepare_gpu() -> None:
    """Sets the environment for the GPU compiler; call it before jax is imported."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()


def gpu_devices(name: str, count: int) -> Sequence[Any]:
    """``count`` JAX devices of one machine with GPUs ``name``.

    Raises:
        UserError: an unknown GPU, or the compiler is not installed.
    """
    if name not in TARGETS:
        raise UserError(f"GPU {name!r} is unknown; expected one of {', '.join(TARGETS)}")
    if importlib.util.find_spec("jax_plugins.xla_cuda12") is None:
        raise UserError("the GPU compiler is not installed; pip install 'ropd_jax[gpu-aot]'")
    found = importlib.util.find_spec("nvidia.cudnn")
    for place in found.submodule_search_locations or () if found else ():
        for file in sorted(pathlib.Path(place, "lib").glob("libcudnn.so*")):
            ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    from jax.experimental import topologies

    return topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=TARGETS[name], topology=f"1x1x{count}"
    ).devices
