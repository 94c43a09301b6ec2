"""Answers of a rollout server, kept until a checkpoint makes them unnecessary: they cannot be sampled a second time.

The built-in sampler draws the same answers again when a killed run repeats a step. A server does not, and new answers
would have to be judged and paid for again. So each group is written to disk as it arrives::

    RUN/rollouts/step_000012.jsonl.gz    one line per group, each a gzip member: a kill loses at most the last

A repeated step takes its groups from there. Files of steps before the last complete checkpoint are deleted.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import pathlib
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ropd_jax.sampling.rules import distinct
from ropd_jax.training.carryover import restored, stored
from ropd_jax.types import Prompt, RolloutGroup
from ropd_jax.utils.writing import Dispensable

log = logging.getLogger(__name__)


class KeptAnswers:
    """The groups of a run's steps.

    Args:
        directory: created for the first group.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory

    def add(self, group: RolloutGroup, name: str) -> None:
        """Keep a group; ``name`` is the name of its prompt in the step (`names_of`)."""
        [row] = stored([group])
        line = json.dumps(row | {"name": name}) + "\n"
        with Dispensable(str(self._file(group.step))):
            self._directory.mkdir(parents=True, exist_ok=True)
            with self._file(group.step).open("ab") as file:
                file.write(_packed(line.encode()))

    def find(
        self, step: int, prompts: Sequence[Prompt], tokens: Sequence[np.ndarray], rollouts: int
    ) -> dict[int, RolloutGroup]:
        """The stored groups, by the index of their prompt."""
        rows = {row["name"]: row for row in self._rows(step) if len(row["rollouts"]) == rollouts}
        found = {}
        for place, (name, prompt, prompt_T) in enumerate(zip(names_of(prompts), prompts, tokens, strict=True)):
            if (row := rows.get(name)) is not None and row["index"] == place and row["prompt"] == prompt.id:
                [found[place]] = restored([row], {prompt.id: prompt}, {prompt.id: prompt_T})
        return found

    def forget_before(self, step: int) -> None:
        """Delete the files of earlier steps."""
        for path in self._directory.glob("step_*.jsonl.gz"):
            if (number := re.fullmatch(r"step_(\d+)\.jsonl\.gz", path.name)) and int(number[1]) < step:
                path.unlink(missing_ok=True)

    def _file(self, step: int) -> pathlib.Path:
        return self._directory / f"step_{step:06d}.jsonl.gz"

    def _rows(self, step: int) -> list[dict[str, Any]]:
        """The complete lines of a step's file, in the order of their arrival. An incomplete end is removed."""
        path, lines = self._file(step), []
        with contextlib.suppress(FileNotFoundError), gzip.open(path) as file:
            try:
                for line in file:
                    lines.append(line)
            except (EOFError, zlib.error, gzip.BadGzipFile):
                log.info("%s ends in the middle of a group, which is sampled again", path)
                lines = [line for line in lines if line.endswith(b"\n")]
                path.write_bytes(b"".join(map(_packed, lines)))
        return [json.loads(line) for line in lines]


def _packed(line: bytes) -> bytes:
    return gzip.compress(line, compresslevel=1)


def names_of(prompts: Sequence[Prompt]) -> list[str]:
    """Unique names of the prompts of one step: their ids, numbered if one occurs twice."""
    return distinct([p.id for p in prompts])
