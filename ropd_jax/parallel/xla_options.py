"""Options of the XLA compiler from a config, so that a run and its plan compile with the same ones.

``optim.xla_options`` holds ``name=value`` words. Names with the prefix of another platform are ignored, so the same
config runs on a TPU and on a CPU for tests.
"""

from __future__ import annotations

import re

from ropd_jax.types import UserError

PLATFORMS = ("tpu", "gpu", "cpu")


def xla_options(text: str, platform: str) -> dict[str, str]:
    """``compiler_options`` of `jax.jit` for a platform, e.g. ``xla_tpu_a=50 xla_gpu_b=true`` on a TPU: {xla_tpu_a: 50}.

    Raises:
        UserError: a word that is not ``name=value`` with a name that starts with ``xla_``.
    """
    found = {}
    for word in text.split():
        if not re.fullmatch(r"xla_\w+=[^\s=]+", word):
            raise UserError(
                f"optim.xla_options holds {word!r}; expected words like "
                "xla_tpu_scheduler_percent_shared_memory_limit=50, without leading dashes"
            )
        name, value = word.split("=")
        if name.split("_")[1] not in PLATFORMS or name.split("_")[1] == platform:
            found[name] = value
    return found
