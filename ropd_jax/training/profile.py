"""``log.profile_steps``: a few steps profiled by JAX's profiler, in ``RUN/profile``.

    "3:5"  steps 3 and 4      "3:"  from step 3 to the end      ":2"  steps 0 and 1      ""  none

XProf and TensorBoard's profile plugin open the folder; ui.perfetto.dev opens its ``*.trace.json.gz``. Each step is
annotated with its number. Profiling slows the steps down, and long profiles are large: a few steps are enough.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
import re
import sys
from collections.abc import Iterator

import jax

from ropd_jax.types import UserError
from ropd_jax.utils.writing import Dispensable

log = logging.getLogger(__name__)
STEP = "ropd step"  # the name of the annotation


def profile_range(text: str) -> range:
    """The steps of ``log.profile_steps``.

    Raises:
        UserError: malformed text, or an empty range.
    """
    if not text:
        return range(0)
    found = re.fullmatch(r"(\d{0,9}):(\d{0,9})", text)
    steps = range(int(found[1] or 0), int(found[2] or sys.maxsize)) if found else range(0)
    if not steps:
        raise UserError(f"log.profile_steps={text!r:.40}; expected a:b with a below b, e.g. '3:5' for steps 3 and 4")
    return steps


class Profile:
    """The profile of a run's chosen steps. A failure is logged as one warning; the run continues.

    Args:
        steps: as in ``log.profile_steps``; "" for none.
        directory: gets ``plugins/profile/TIME/*.xplane.pb``.
    """

    def __init__(self, steps: str, directory: pathlib.Path):
        self._steps, self._directory = profile_range(steps), directory
        self._guard = Dispensable(str(directory))
        self._runs = False

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Context of a step, annotated with its number."""
        if step not in self._steps or self._guard.lost:
            yield
            return
        if not self._runs:
            with self._guard:
                jax.profiler.start_trace(self._directory)
                self._runs = True
        with jax.profiler.StepTraceAnnotation(STEP, step_num=step):
            yield
        if step + 1 not in self._steps:
            self.close()

    def close(self) -> None:
        """Writes the profile, if one is being taken."""
        if self._runs:
            self._runs = False
            with self._guard:
                jax.profiler.stop_trace()
                log.info("the profile is in %s", self._directory)
