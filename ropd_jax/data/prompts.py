"""Questions for the student: where they come from, what is dropped and counted, and in which order they are asked.

    1. ``load_prompts``   reads one source (reasoning-gym, JSONL, a published set) into a ``PromptSet``; duplicates go,
                          and are counted
    2. ``disjoint``       takes out of the training set what the held-out set asks
    3. ``PromptStream``   the batch of P prompts of each step, a pure function of (seed, step)
    4. ``write_book``     question and worked solution of each prompt, the textbook of the scripted teacher

Two questions are the same when their ``normalise`` is: Unicode form, letter case, white space and final punctuation do
not count.
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import json
import os
import pathlib
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ropd_jax.types import Message, Prompt, UserError
from ropd_jax.utils.files import numbered_rows
from ropd_jax.utils.suggest import near

QUESTION_KEYS = ("problem", "question", "prompt")
GSM_MARK = "####"


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """Prompts with unique ids and unique questions, and how many were left out, by cause.

    Attributes:
        prompts: in the order of the source.
        dropped: cause (``duplicate``, ``solution_mismatch``, ``in_held_out``) to count; no cause has count 0.
    """

    prompts: tuple[Prompt, ...]
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __getitem__(self, i: int) -> Prompt:
        return self.prompts[i]


def normalise(question: str) -> str:
    """The key under which two questions are one."""
    text = unicodedata.normalize("NFKC", question).casefold()
    return " ".join(text.split()).rstrip(" .?!:=")


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
) -> PromptSet:
    """Reads prompts of one source.

    Args:
        source: ``reasoning_gym``, ``jsonl``, or ``published``: a set of ``ropd_jax.data.sets``.
        task: the reasoning-gym task to generate; for JSONL the name that the grader goes by ("" for plain comparison);
            the published set's name.
        path: JSONL: one file, or a pattern such as ``gsm8k_train_part*.jsonl`` (read in sorted order); published:
            a directory, ``tfds:DIR``, ``hub``, or "" (see ``sources.read_source``).
        size: reasoning-gym: items to generate, before duplicates go; JSONL: keep the first so many (None: all);
            published: so many drawn by a hash of (seed, id); 0 or None is all, in their own order.
        seed: reasoning-gym: item i is drawn from seed + i. published: of the draw.
        options: reasoning-gym: the task's own settings, e.g. ``{"min_terms": 4}``; published: ``sets.SetOptions``.
        template: the user message; ``{question}`` stands for the question, other braces are plain text.
        system: the system message ("" for none).

    Raises:
        UserError: unknown source, task or option; missing or malformed file; template without ``{question}``;
            no prompt left.
    """
    if "{question}" not in template:
        raise UserError(f"template {template!r} has no {{question}}; expected it once where the question goes")
    dropped: Counter[str] = Counter()
    if source == "reasoning_gym":
        items = _reasoning_gym(task, size, seed, dict(options or {}))
        where = f"reasoning_gym:{task} (size={size}, seed={seed})"
    elif source == "jsonl":
        items = _jsonl(path, task)
        where = path
    elif source == "published":
        from ropd_jax.data import sets

        everything, before, _ = sets.load_set(task, path, sets.SetOptions.of(options or {}))
        items, where = sets.chosen(everything, size, seed), task
        dropped += before
    else:
        raise UserError(f"data source {source!r} is unknown; expected reasoning_gym, jsonl or published")

    seen: set[str] = set()
    ids: set[str] = set()
    prompts: list[Prompt] = []
    for item in items:
        if item is None:
            dropped["solution_mismatch"] += 1
            continue
        key = normalise(item.question)
        if key in seen:
            dropped["duplicate"] += 1
            continue
        if item.id in ids:
            raise UserError(f"{where}: id {item.id!r} stands on two different questions; expected unique ids")
        seen.add(key)
        ids.add(item.id)
        prompts.append(_render(item, template, system))
        if source == "jsonl" and size is not None and len(prompts) >= size:
            break
    if not prompts:
        why = ", ".join(f"{n} dropped as {cause}" for cause, n in dropped.items()) or "the source is empty"
        raise UserError(f"{where}: no prompt left ({why}); give another source or a larger size")
    return PromptSet(tuple(prompts), dict(dropped))


def _render(item: Prompt, template: str, system: str) -> Prompt:
    """Puts the question into the template; the bare question stays in ``metadata["question"]``."""
    *before, last = item.messages
    user = Message(last.role, template.replace("{question}", last.content))
    first = [Message("system", system)] if system else []
    metadata = {**item.metadata, "question": item.question}
    return dataclasses.replace(item, messages=(*first, *before, user), metadata=metadata)


# ---------------------------------------------------------------------------------------------- reasoning-gym


def _reasoning_gym(task: str, size: int | None, seed: int, options: dict[str, Any]) -> Iterator[Prompt | None]:
    """The items of a reasoning-gym task; None for an item whose worked solution contradicts its gold answer."""
    if size is None or size < 1:
        raise UserError(f"reasoning_gym:{task}: size {size!r}; expected a number of items of at least 1")
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
        raise UserError(f"reasoning-gym task {task} refuses the options {options}: {error}") from error
    dataset = dataset_class(config)

    def items() -> Iterator[Prompt | None]:
        for i in range(size):
            entry = dataset[i]
            solution = str(entry["metadata"].get("answer_cot", ""))
            gold = entry["answer"]
            if solution and _gsm_answer(solution) != gold:
                yield None  # about 1 in 25 worked solutions of gsm_symbolic ends in another text, e.g. 168.0 for 168
                continue
            yield Prompt(
                id=f"{task}-{seed}-{i}",
                messages=(Message("user", entry["question"]),),
                answer=None if gold is None else str(gold),
                task=task,
                solution=solution,
                metadata={"reasoning_gym": entry},
            )

    return items()


def _gsm_answer(solution: str) -> str | None:
    """What follows the last ``####`` of a worked solution, thousands commas removed; None without one."""
    _, mark, tail = solution.rpartition(GSM_MARK)
    return tail.strip().replace(",", "") if mark else None


def check_seeds(*, train_seed: int, train_size: int, heldout_seed: int, heldout_size: int) -> None:
    """Refuses two reasoning-gym draws that share items: item i of a draw is made from seed + i.

    Raises:
        UserError: the seeds are not further apart than the lower one's size.
    """
    low, size = min((train_seed, train_size), (heldout_seed, heldout_size))
    gap = abs(train_seed - heldout_seed)
    if gap <= size:
        raise UserError(
            f"seeds {train_seed} (training, {train_size} items) and {heldout_seed} (held-out, {heldout_size} items) "
            f"share items, because item i is drawn from seed + i; expected a distance above {size}: "
            f"take {low} and {low + max(10_000_000, size + 1)}, for example"
        )


# ------------------------------------------------------------------------------------------------------ JSONL


def _jsonl(path: str, task: str) -> Iterator[Prompt]:
    files = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
    if not files:
        raise UserError(f"no file matches {path!r}; expected JSONL with one question a line")
    for name in files:
        expected = dict(file="a JSONL file of questions", row=f"an object with {' or '.join(QUESTION_KEYS)}")
        for number, row in numbered_rows(name, **expected):
            yield _prompt(row, task, where=f"{name}:{number}", default_id=f"{pathlib.Path(name).stem}-{number}")


def _prompt(row: dict[str, Any], task: str, where: str, default_id: str) -> Prompt:
    key = next((k for k in QUESTION_KEYS if row.get(k)), None)
    if key is None:
        raise UserError(f"{where}: no question; expected one of the keys {', '.join(QUESTION_KEYS)}")
    solution = row.get("solution")
    answer = row.get("answer")
    if isinstance(answer, str) and not solution and GSM_MARK in answer:  # GSM8K as published: solution #### n
        answer, solution = _gsm_answer(answer), answer
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise UserError(f"{where}: answer is {answer!r}; expected a string, a number or null")
    if not isinstance(solution, str | None):
        raise UserError(f"{where}: solution is a {type(solution).__name__}; expected a string")
    return Prompt(
        id=str(row.get("id", default_id)),
        messages=_messages(row[key], f"{where}: {key}"),
        answer=None if answer is None else str(answer),
        task=task,
        solution=solution or "",
        metadata={k: v for k, v in row.items() if k not in ("id", key, "answer", "solution")},
    )


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", value),)
    if isinstance(value, list) and value:
        try:
            messages = tuple(Message(str(m["role"]), m["content"]) for m in value)
        except (KeyError, TypeError) as error:
            raise UserError(f"{where}: a message without role and content; expected both in each") from error
        if messages[-1].role == "user" and all(isinstance(m.content, str) for m in messages):
            return messages
    raise UserError(f"{where} is {value!r:.80}; expected a string, or messages of which the last is the user's")


# ------------------------------------------------------------------------------------------- sets and streams


def disjoint(train: PromptSet, held_out: PromptSet) -> PromptSet:
    """The training prompts whose question the held-out set does not ask; the others are counted as ``in_held_out``.

    Raises:
        UserError: nothing is left to train on.
    """
    asked = {_key(p) for p in held_out}
    kept = tuple(p for p in train if _key(p) not in asked)
    if not kept:
        raise UserError(f"all {len(train)} training prompts are in the held-out set too; expected other questions")
    removed = len(train) - len(kept)
    return PromptSet(kept, {**train.dropped, "in_held_out": removed} if removed else dict(train.dropped))


def _key(prompt: Prompt) -> str:
    return normalise(prompt.metadata.get("question", prompt.question))


class PromptStream:
    """The P prompts of each step: a fresh permutation each epoch, drawn from (seed, epoch).

    ``batch(step)`` depends on nothing but its argument, so a checkpoint needs no more than the step. An epoch has
    n // P steps, and no prompt twice; the n % P prompts left over differ from epoch to epoch.

    Raises:
        UserError: fewer prompts than one batch.
    """

    def __init__(self, prompts: Sequence[Prompt] | PromptSet, batch: int, seed: int):
        if not 1 <= batch <= len(prompts):
            raise UserError(f"{len(prompts)} training prompts, {batch} a step; expected at least one batch of them")
        self._prompts = tuple(prompts)
        self._batch = batch
        self._seed = seed
        self.steps_per_epoch = len(self._prompts) // batch

    def batch(self, step: int, *, shard: int = 0, shards: int = 1) -> list[Prompt]:
        """The P prompts of step 0, 1, 2, ...; with ``shards`` hosts the part of host ``shard``, every n-th of them."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._prompts))
        mine = order[place * self._batch : (place + 1) * self._batch][shard::shards]
        return [self._prompts[i] for i in mine]

    def spare(self, step: int, round: int, n: int, *, without: Collection[str] = ()) -> list[Prompt]:
        """At most ``n`` prompts that are not in ``without`` (ids), drawn from (seed, step, round)."""
        order = np.random.default_rng((self._seed, step, round, 1)).permutation(len(self._prompts))
        free = (self._prompts[i] for i in order)
        return list(itertools.islice((p for p in free if p.id not in without), n))


def write_book(path: str | os.PathLike[str], prompts: Iterable[Prompt]) -> int:
    """Writes ``{"question", "solution"}`` lines, the scripted teacher's textbook, and returns how many.

    The question is what the teacher is shown (``Prompt.question``). Prompts without a worked solution are left out.
    The file appears whole or not at all.
    """
    rows = [{"question": p.question, "solution": p.solution} for p in prompts if p.solution]
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    part.replace(path)
    return len(rows)
