"""``ropd plan``: what a run needs of a slice, from the compiler, before anyone rents it."""

from __future__ import annotations

import os
import re

HELP = """\
usage: ropd plan --config FILE[:arg] --topology CHIP:SIZE [--search] [--mean-tokens N] [--json] [--config.a.b=value ...]

Compiles the update and the sampler of a config for a slice, on a machine without any TPU, and prints, for a device:
parameters, optimizer, KV cache, temporaries and peak against what the chip has; the collectives that will run; a lower
bound of seconds a step from the chip's published figures; tokens a second, hours, calls and dollars of the teacher.
What does not fit is said with the knob to turn. Exit code 2 if it does not fit.

  --topology CHIP:SIZE   v4, v5e, v5p, v6e or 7x, e.g. v5e:4x4, v5p:2x2x1, v6e:2x2; or cpu:8, this machine as 8 devices
  --search               look for the fastest setting that fits: tp, slots, microbatch, remat
  --mean-tokens N        an answer's mean length, for the seconds; without it every answer is as long as it may be
  --json                 for programs

Compiling takes a minute or more a program; what is known is kept in ~/.cache/ropd_jax/plan.
TPUs need libtpu: pip install 'ropd_jax[tpu-aot]'. The student's weights are not needed.

  ropd plan --config experiments/qwen3_4b_math.py --topology v5e:4x4
  ropd plan --config experiments/qwen3_4b_math.py:thinking --topology v5p:2x2x1 --search --mean-tokens 3000
"""


def prepare(topology: str) -> None:
    """Sets, before jax is imported, what a plan for this topology needs of the environment.

    jax stays on the CPU and libtpu looks for no TPU; ``cpu:N`` makes N devices of this machine. What is set already
    stays as it is.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is touched: two plans at once are fine
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    count = re.fullmatch(r"cpu:(\d+)", topology)
    flags = os.environ.get("XLA_FLAGS", "")
    if count and "host_platform_device_count" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count[1]}".strip()
