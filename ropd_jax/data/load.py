"""``load_prompts``: one source of questions (reasoning-gym, JSONL, a published set) as a ``PromptSet``.

source -> items -> (duplicates dropped and counted) -> template and system message -> PromptSet
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ropd_jax.data import instructions, jsonl, reasoning_gym, sets
from ropd_jax.data.prompts import PromptSet, normalise
from ropd_jax.types import Message, Prompt, UserError

OVER_SIZE = "over_size"  # a cause: left out because of the size


def load_prompts(
    *,
    source: str,
    task: str = "",
    path: str = "",
    size: int | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    template: str = "{question}",
    system: str = "",
    keep: Callable[[Iterable[Prompt]], Sequence[Prompt]] = tuple,
) -> PromptSet:
    """The prompts of one source, without duplicates.

    Args:
        source: ``reasoning_gym``, ``jsonl``, or ``published`` (a set of ``ropd_jax.data.sets``).
        task: reasoning-gym: the task to generate. JSONL: the name that selects the grader ("" for plain comparison).
            Published: the name of the set.
        path: JSONL: one file, or a pattern such as ``gsm8k_train_part*.jsonl`` (read in sorted order). Published:
            a directory, ``tfds:DIR``, ``hub``, or "" (see ``data.reading.read_source``).
        size: reasoning-gym: the number of items to generate, before duplicates are dropped. JSONL: the first ``size``
            prompts. Published: ``size`` prompts drawn by a hash of (seed, id). 0 or None keeps all of a set, in their
            order; prompts left out because of the size are counted as ``over_size``.
        seed: reasoning-gym: item i is drawn from seed + i. Published: the seed of the draw. JSONL: not used.
        options: reasoning-gym: the task's own settings, e.g. ``{"min_terms": 4}``. Published: ``sets.SetOptions``.
        template: the user message. ``{question}`` is replaced by the question; other braces are plain text.
        system: the system message ("" for none).
        keep: the container of the prompts; `packed.Packed` for sets that are too large for memory.

    Raises:
        UserError: unknown source, task or option; missing or malformed file; template without ``{question}``;
            no prompt left.
    """
    if "{question}" not in template:
        raise UserError(f"template {template!r} has no {{question}}; put it where the question goes")
    items, where, dropped = _items(source, task, path, size, seed, dict(options or {}))
    unique = _unique(items, where, dropped)
    wanted = itertools.islice(unique, size) if source == "jsonl" and size else unique
    prompts = keep(_render(item, template, system) for item in wanted)
    if left := sum(1 for _ in unique):  # of a JSONL file; for a published set they are already counted
        dropped[OVER_SIZE] += left
    if not prompts:
        why = ", ".join(f"{n} dropped as {cause}" for cause, n in dropped.items()) or "the source is empty"
        raise UserError(f"{where}: no prompt left ({why}); give another source or a larger size")
    return PromptSet(prompts, dict(dropped))


def _unique(items: Iterable[Prompt | None], where: str, dropped: Counter[str]) -> Iterator[Prompt]:
    """The items without duplicates and bad solutions, which are counted. Keeps 12 bytes of each item seen."""
    seen: set[bytes] = set()
    ids: set[bytes] = set()
    for item in items:
        if item is None:
            dropped["solution_mismatch"] += 1
            continue
        key, own = _digest(normalise(item.question)), _digest(item.id)
        if key in seen:
            dropped["duplicate"] += 1
            continue
        if own in ids:
            raise UserError(f"{where}: two different questions have the id {item.id!r}; give each its own id")
        seen.add(key)
        ids.add(own)
        yield item


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _items(
    source: str, task: str, path: str, size: int | None, seed: int, options: dict[str, Any]
) -> tuple[Iterable[Prompt | None], str, Counter[str]]:
    """(items, name of the source for messages, the number dropped by the source). A None item is a bad solution."""
    if source == "reasoning_gym":
        return (
            reasoning_gym.items(task, size, seed, options),
            f"reasoning_gym:{task} (size={size}, seed={seed})",
            Counter(),
        )
    if source == "instructions":
        return instructions.items(path, size, seed), f"instructions:{path} (size={size}, seed={seed})", Counter()
    if source == "jsonl":
        return jsonl.items(path, task), path, Counter()
    if source == "published":
        everything, known, _ = sets.load_set(task, path, sets.SetOptions.of(options))
        drawn, dropped = sets.chosen(everything, size, seed), Counter(known)
        if len(drawn) < len(everything):
            dropped[OVER_SIZE] = len(everything) - len(drawn)
        return drawn, task, dropped
    raise UserError(f"data source {source!r} is unknown; expected reasoning_gym, instructions, jsonl or published")


def _render(item: Prompt, template: str, system: str) -> Prompt:
    """The item with its question put into the template. ``metadata["question"]`` keeps the bare question."""
    *before, last = item.messages
    user = Message(last.role, template.replace("{question}", last.content))
    first = [Message("system", system)] if system else []
    metadata = {**item.metadata, "question": item.question}
    return dataclasses.replace(item, messages=(*first, *before, user), metadata=metadata)
