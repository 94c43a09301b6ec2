"""Questions that reasoning-gym generates: any of its tasks, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from ropd_jax.data.prompts import gsm_answer
from ropd_jax.types import Message, Prompt, UserError
from ropd_jax.utils.suggest import near


def items(task: str, size: int | None, seed: int, options: dict[str, Any]) -> Iterator[Prompt | None]:
    """The ``size`` items of a task, item i drawn from seed + i; None for one whose worked solution and gold differ.

    Args:
        options: the task's own settings, e.g. ``{"min_terms": 4}``.

    Raises:
        UserError: unknown task or option, or a value that the task rejects; raised before the first item is drawn.
    """
    if size is None or size < 1:
        raise UserError(f"reasoning_gym:{task}: size {size!r}; give how many items to generate, at least 1")
    from reasoning_gym.factory import DATASETS  # importing reasoning_gym takes 1 to 4 seconds

    if task not in DATASETS:
        raise UserError(f"reasoning-gym has no task {task!r}; {near(task, DATASETS)}")
    dataset_class, config_class = DATASETS[task]
    known = {f.name for f in dataclasses.fields(config_class)} - {"seed", "size"}
    for name in options:
        if name not in known:
            raise UserError(f"reasoning-gym task {task} has no option {name!r}; {near(name, known)}")
    try:
        config = config_class(size=size, seed=seed, **options)
        config.validate()
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"reasoning-gym task {task} rejects the options {options}: {error}") from error
    dataset = dataset_class(config)

    def drawn() -> Iterator[Prompt | None]:
        for i in range(size):
            entry = dataset[i]
            solution = str(entry["metadata"].get("answer_cot", ""))
            gold = entry["answer"]
            if solution and gsm_answer(solution) != gold:
                yield None  # about 1 in 25 worked solutions of gsm_symbolic end differently, e.g. in 168.0 for 168
                continue
            yield Prompt(
                id=f"{task}-{seed}-{i}",
                messages=(Message("user", entry["question"]),),
                answer=None if gold is None else str(gold),
                task=task,
                solution=solution,
                metadata={"reasoning_gym": entry},
            )

    return drawn()


def check_seeds(*, train_seed: int, train_size: int, heldout_seed: int, heldout_size: int) -> None:
    """Rejects two reasoning-gym draws that share items: item i of a draw is made from seed + i.

    Raises:
        UserError: the distance of the seeds is not above the size of the lower one.
    """
    low, size = min((train_seed, train_size), (heldout_seed, heldout_size))
    gap = abs(train_seed - heldout_seed)
    if gap <= size:
        raise UserError(
            f"seeds {train_seed} (training, {train_size} items) and {heldout_seed} (held-out, {heldout_size} items) "
            f"share items, because item i is drawn from seed + i; expected a distance above {size}: "
            f"take {low} and {low + max(10_000_000, size + 1)}, for example"
        )
