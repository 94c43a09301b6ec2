"""Describes GPUs to XLA's GPU compiler, so that programs compile for them on any x86-64 machine.

    pip install 'ropd_jax[gpu-aot]'        # the compiler and cuDNN, 1 GB, in a separate .venv; no driver or GPU needed

Figures are those of chips.toml. Without a GPU nothing is tuned: the compiler takes its default tiles, and it never
rejects a program for lack of memory; whether it fits follows from its own memory analysis.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ropd_jax.types import UserError

PACKAGES = {  # module: package of the extra gpu-aot
    "jax_plugins.xla_cuda12": "jax-cuda12-plugin",
    "nvidia.cuda_nvcc": "nvidia-cuda-nvcc-cu12",
    "nvidia.cudnn": "nvidia-cudnn-cu12",
}
MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION=0.92"  # assumed by `Chip.usable` of a GPU
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {threads}
  shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {block}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: {sms} fpus_per_core: {fpus} clock_rate_ghz: {clock}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {l2} device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{name}"
"""


def prepare_gpu() -> None:
    """Sets the environment for the GPU compiler; call it before jax is imported."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_autotune_level" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0".strip()


def missing() -> str:
    """The error for missing packages of the compiler, with how to install them; "" if all are installed."""
    absent = [package for module, package in PACKAGES.items() if not _is_there(module)]
    if not absent:
        return ""
    return (
        f"the GPU compiler is not installed ({', '.join(absent)} missing); in a separate .venv: "
        "pip install 'ropd_jax[gpu-aot]'"
    )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package is missing as well
        return False


def target_of(c: Mapping[str, Any], *, bandwidth: float, memory: float) -> str:
    """The compiler's description of a GPU: a GpuTargetConfigProto as text.

    Args:
        c: its table ``compiler`` in chips.toml. bandwidth, memory: bytes per second, and bytes.
    """
    major, minor = c["capability"]
    return _TARGET.format(
        name=c["name"], major=major, minor=minor, sms=c["sms"], fpus=c["fpus"], clock=c["clock"], threads=c["threads"],
        shared=c["shared"] * 2**10, block=c["block"] * 2**10, l2=c["l2"] * 2**20,
        bandwidth=round(bandwidth), memory=round(memory),
    )  # fmt: skip


def devices_of(target: str, count: int) -> Sequence[Any]:
    """``count`` JAX devices of one machine with these GPUs (`target_of`).

    Raises:
        UserError: the compiler is not installed.
    """
    if text := missing():
        raise UserError(text)
    found = importlib.util.find_spec("nvidia.cudnn")
    for place in found.submodule_search_locations or () if found else ():
        for file in sorted(pathlib.Path(place, "lib").glob("libcudnn.so*")):
            ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    from jax.experimental import topologies

    return topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=target, topology=f"1x1x{count}"
    ).devices
