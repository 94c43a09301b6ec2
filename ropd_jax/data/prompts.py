"""The questions of a run: a set without duplicates.

    1. ``PromptSet``      unique prompts, and the number dropped by cause (``data.load.load_prompts`` builds it)
    2. ``disjoint``       removes the held-out set's questions from the training set

`ropd_jax.data.stream` draws the prompts of each step from it.

Two questions are the same if ``normalise`` returns the same for both: Unicode form, letter case, white space and a
final ``. ? : =`` are ignored. The ``!`` of a factorial and superscripts are not (2\u2075 is not 25).

>>> normalise("What is  2 + 2 ?") == normalise("what is 2 + 2")
True
>>> normalise("What is 5!") == normalise("What is 5?")
False
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from ropd_jax.data.packed import select
from ropd_jax.types import Prompt, UserError

GSM_MARK = "####"
_MEANINGFUL = ("<super>", "<sub>", "<fraction>", "<circle>")


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """Prompts with unique ids and unique questions, and the number left out, by cause.

    Attributes:
        prompts: in the order of the source.
        dropped: prompts removed by each cause (``duplicate``, ``solution_mismatch``, ``in_held_out``, ...). A
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
    """The key that equal questions share."""
    text = unicodedata.normalize("NFC", "".join(map(_plain_form, question))).casefold()
    return " ".join(text.split()).rstrip(" .?:=")


def _plain_form(char: str) -> str:
    """A full-width letter as a plain one; a superscript stays: 2\u2075 is not 25."""
    kind = unicodedata.decomposition(char).partition(" ")[0]
    return char if kind in _MEANINGFUL else unicodedata.normalize("NFKC", char)


def gsm_answer(solution: str) -> str | None:
    """The text after the last ``####`` of a worked solution, without thousands commas; None if there is no ``####``.

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
