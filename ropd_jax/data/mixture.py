"""The sources of a run's questions: one, or several with weights (``data.sources``). One source is a mixture of size
1.

    sources_of     the section ``data`` as sources, each with its share, files and templates
    step_counts    the number of prompts of each source in a step

Each step draws its P prompts according to the shares w_s. With C_s = w_1 + ... + w_s, source s gives step t

    floor(P C_s + u_t) - floor(P C_(s-1) + u_t),    u_t = (u_0 + t phi) mod 1, phi = 0.618...

prompts: floor(P w_s) or one more, P in total. u_0 comes from the seed. Counts depend only on (seed, step). Since the
multiples of phi fill the unit interval evenly, a source's count always stays within a few prompts of P w_s t.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ropd_jax.types import Prompt, UserError
from ropd_jax.utils.suggest import near

INHERITED = ("source", "task", "options", "path", "heldout_path", "seed", "heldout_seed", "size", "template", "system")
TEMPLATES = {"rubricator_template": "rubric", "verifier_template": "verify"}  # key of a source -> role of the teacher
KEYS = ("name", "weight", *INHERITED, *TEMPLATES)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_PHI = (math.sqrt(5) - 1) / 2


@dataclasses.dataclass(frozen=True)
class MixtureSource:
    """One source of questions.

    Attributes:
        name: used in ids, metrics and messages; "" for the only one.
        share: share of a run's prompts; all shares sum to 1.
        data: its values of `INHERITED`; values that a source does not give are those of the section ``data``.
        templates: its own prompt templates, by role of the teacher.
    """

    name: str
    share: float
    data: Mapping[str, Any]
    templates: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def held_path(self) -> str:
        """Path of its held-out questions; a published set is sampled twice, with two seeds."""
        return self.data["heldout_path"] or (self.data["path"] if self.data["source"] == "published" else "")

    @property
    def holds_out(self) -> bool:
        """Whether it has held-out questions."""
        return self.data["source"] != "jsonl" or bool(self.data["heldout_path"])

    def mark(self, prompt: Prompt) -> Prompt:
        """The prompt marked as one of this source; ids in different sources can be equal."""
        if not self.name:
            return prompt
        return dataclasses.replace(
            prompt, id=f"{self.name}:{prompt.id}", source=self.name, templates=dict(self.templates)
        )


def sources_of(data: Mapping[str, Any]) -> tuple[MixtureSource, ...]:
    """The sources of a section ``data``.

    Raises:
        UserError: an entry of ``data.sources`` is invalid.
    """
    own = {key: data[key] for key in INHERITED}
    entries = tuple(data.get("sources", ()))  # configs of earlier versions lack this key
    if not entries:
        return (MixtureSource("", 1.0, own),)
    rows = [_row(entry, i) for i, entry in enumerate(entries)]
    names = [_name(row, own) for row in rows]
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(f"data.sources: name={name!r}; expected 1 to 40 letters, digits and . _ -, e.g. 'gsm8k'")
        if names.count(name) > 1:
            raise UserError(f"data.sources has {names.count(name)} sources named {name!r}; give each its own name")
    weights = [_weight(row.get("weight", 1.0), name) for row, name in zip(rows, names, strict=True)]
    return tuple(
        MixtureSource(
            name,
            weight / sum(weights),
            own | {key: row[key] for key in INHERITED if key in row},
            {role: row[key] for key, role in TEMPLATES.items() if row.get(key)},
        )
        for row, name, weight in zip(rows, names, weights, strict=True)
    )


def _row(entry: Any, i: int) -> dict[str, Any]:
    if not hasattr(entry, "keys"):
        raise UserError(
            f"data.sources, entry {i + 1}: {entry!r:.60}; expected a mapping, e.g. "
            "({'source': 'jsonl', 'path': 'gsm8k.jsonl', 'weight': 3},)"
        )
    row = dict(entry)
    for key, value in row.items():
        if key not in KEYS:
            raise UserError(f"data.sources, entry {i + 1}: a source has no key {key!r}; {near(str(key), KEYS)}")
        if key in ("size", "seed", "heldout_seed"):
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            if not (whole or (key == "size" and value is None)):
                raise UserError(f"data.sources, entry {i + 1}: {key}={value!r}; expected a whole number, 0 or more")
        elif key == "options":
            if not hasattr(value, "keys"):
                raise UserError(f"data.sources, entry {i + 1}: options={value!r:.60}; expected a mapping")
        elif key != "weight" and (not isinstance(value, str) or "\0" in value):
            raise UserError(f"data.sources, entry {i + 1}: {key}={value!r:.60}; expected a string")
    return row


def _name(row: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The source's name: its own, else that of its file, else of its task."""
    if row.get("name"):
        return row["name"]
    path, task = row.get("path", ""), row.get("task", own["task"])
    if row.get("source", own["source"]) == "jsonl":
        return re.sub(r"[^A-Za-z0-9_.-]", "", pathlib.PurePath(path).stem)
    return task


def _weight(value: Any, name: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise UserError(
            f"data.sources: weight={value!r:.40} of source {name!r}; expected a number above 0, or remove the source"
        )
    return float(value)


def held_out_of(data: Mapping[str, Any], sources: Sequence[MixtureSource]) -> list[MixtureSource]:
    """The sources that the held-out questions come from: all that have some, or that of ``data.heldout_from``.

    Raises:
        UserError: ``data.heldout_from`` does not name a source with held-out questions.
    """
    only = data.get("heldout_from", "")
    names = [s.name for s in sources]
    if only and only not in names:
        known = f"{near(only, names)}" if any(names) else "there is only one source; leave it empty"
        raise UserError(f"data.heldout_from={only!r} is not a source of data.sources; {known}")
    found = [s for s in sources if s.holds_out and only in ("", s.name)]
    if only and not found:
        raise UserError(
            f"data.heldout_from={only!r} is a JSONL source without a heldout_path; give it one, or name another source"
        )
    return found


def split(total: int, shares: Sequence[float]) -> list[int]:
    """``total`` divided by the shares: whole numbers that sum to it, each at least 1 if possible.

    >>> split(10, [0.7, 0.2, 0.1])
    [7, 2, 1]
    >>> split(500, [0.999, 0.001])
    [499, 1]
    """
    exact = [total * s / sum(shares) for s in shares]
    counts = [math.floor(x) for x in exact]
    if total >= len(shares):
        counts = [max(1, n) for n in counts]
    order = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    while sum(counts) != total:
        up = sum(counts) < total
        i = order[0] if up else max(range(len(counts)), key=lambda i: counts[i])
        counts[i] += 1 if up else -1
        order = order[1:] + order[:1]
    return counts


def interleaved(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(source, place in it) of the questions of several sources, with every prefix in proportion."""
    return sorted(
        ((s, i) for s, n in enumerate(sizes) for i in range(n)), key=lambda x: ((x[1] + 0.5) / sizes[x[0]], x)
    )


@functools.lru_cache(maxsize=8)
def _start(seed: int) -> float:
    """u_0 of the module."""
    return np.random.default_rng((seed, 5)).random()


def step_counts(shares: Sequence[float], batch: int, seed: int, step: int) -> np.ndarray:
    """int [S], the number of prompts of each source in a step, ``batch`` in total. See the module."""
    u = min((_start(seed) + step * _PHI) % 1.0, 1.0 - 1e-9)
    edges = np.concatenate([[0.0], np.cumsum(shares)])
    edges[-1] = 1.0
    return np.diff(np.floor(batch * edges + u)).astype(int)
