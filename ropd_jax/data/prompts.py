"""The questions of a run: a set without duplicates, and the order in which they are asked.

    1. ``PromptSet``      unique prompts, and how many were dropped by cause (``data.load.load_prompts`` builds it)
    2. ``disjoint``       removes the held-out set's questions from the training set
    3. ``PromptStream``   the batch of P prompts of each step, a pure function of (seed, step)

Two questions are the same if their ``normalise`` is the same: Unicode form, letter case, white space and a final
``. ? : =`` do not count. What changes a question does: the ``!`` of a factorial, and superscripts (2\u2075 is not 25).

>>> normalise("What is  2 + 2 ?") == normalise("what is 2 + 2")
True
>>> normalise("What is 5!") == normalise("What is 5?")
False
"""

from __future__ import annotations

import dataclasses
import itertools
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from ropd_jax.data.packed import select
from ropd_jax.types import Prompt, UserError

GSM_MARK = "####"
_MEANINGFUL = ("<super>", "<sub>", "<fraction>", "<circle>")


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """Prompts with unique ids and unique questions, and how many were left out, by cause.

    Attributes:
        prompts: in the order of the source.
        dropped: how many prompts each cause removed (``duplicate``, ``solution_mismatch``, ``in_held_out``, ...). A
            cause that removed nothing is absent.
    """

    prompts: Sequence[Prompt]
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __getitem__(self, i: int) -> Prompt:
        return self.prompts[i]


def normalise(question: str) -> str:
    """The key that two equal questions share."""
    text = unicodedata.normalize("NFC", "".join(map(_plain_form, question))).casefold()
    return " ".join(text.split()).rstrip(" .?:=")


def _plain_form(char: str) -> str:
    """A full-width letter as a plain one; a superscript stays: 2\u2075 is not 25."""
    kind = unicodedata.decomposition(char).partition(" ")[0]
    return char if kind in _MEANINGFUL else unicodedata.normalize("NFKC", char)


def gsm_answer(solution: str) -> str | None:
    """What follows the last ``####`` of a worked solution, without thousands commas; None if there is no ``####``.

    >>> gsm_answer("1,000 + 2 = 1,002\\n#### 1,002")
    '1002'
    """
    _, mark, tail = solution.rpartition(GSM_MARK)
    return tail.strip().replace(",", "") if mark else None


def disjoint(train: PromptSet, held_out: PromptSet) -> PromptSet:
    """The training prompts whose question is not in the held-out set; the others are counted as ``in_held_out``.

    Raises:
        UserError: nothing is left to train on.
    """
    held = {_key(p) for p in held_out}
    kept = select(train.prompts, [i for i, p in enumerate(train) if _key(p) not in held])
    if not kept:
        raise UserError(
            f"all {len(train)} training prompts are in the held-out set too; expected other questions: "
            "choose another source or seed for one of the sets"
        )
    removed = len(train) - len(kept)
    return PromptSet(kept, {**train.dropped, "in_held_out": removed} if removed else dict(train.dropped))


def _key(prompt: Prompt) -> str:
    return normalise(prompt.metadata.get("question", prompt.question))


class PromptStream:
    """The P prompts of each step: a new permutation for each epoch, drawn from (seed, epoch).

    ``batch(step)`` depends only on its argument, so a checkpoint stores only the step. An epoch has n // P steps and
    no prompt twice. The n % P prompts left over differ from epoch to epoch. With n = 7 and P = 3, for example::

        epoch 0   [4 0 6] [2 5 1]  3      steps 0 and 1; prompt 3 is left over
        epoch 1   [1 6 3] [0 2 4]  5      steps 2 and 3; prompt 5 is left over

    Raises:
        UserError: fewer prompts than one batch.
    """

    def __init__(self, prompts: Sequence[Prompt] | PromptSet, batch: int, seed: int):
        if not 1 <= batch <= len(prompts):
            raise UserError(
                f"{len(prompts)} training prompts, {batch} a step; expected at least one batch of them: "
                "give more prompts or a smaller batch"
            )
        self._prompts = prompts
        self._batch = batch
        self._seed = seed
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))  # an epoch, and its permutation
        self.steps_per_epoch = len(prompts) // batch

    def batch(self, step: int, *, shard: int = 0, shards: int = 1) -> list[Prompt]:
        """The P prompts of step 0, 1, 2, ...

        With several hosts, host ``shard`` of ``shards`` gets every ``shards``-th prompt of the batch.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:  # 15 ms for a million prompts
            self._order = epoch, np.random.default_rng((self._seed, epoch)).permutation(len(self._prompts))
        local = self._order[1][place * self._batch : (place + 1) * self._batch][shard::shards]
        return [self._prompts[i] for i in local]

    def spare(self, step: int, round: int, n: int, *, without: Collection[str] = ()) -> list[Prompt]:
        """At most ``n`` prompts that are not in ``without`` (ids), drawn from (seed, step, round)."""
        order = np.random.default_rng((self._seed, step, round, 1)).permutation(len(self._prompts))
        free = (self._prompts[i] for i in order)
        return list(itertools.islice((p for p in free if p.id not in without), n))
