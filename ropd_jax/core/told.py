"""Completions behind other prompts, in rows next to the rows of an update's batch.

A sequence can name other prompts under which its completion is scored (`TokenSequence.told`). To compare whole
distributions, the two hidden states of a token must meet on one device, part by part of the batch. So a row of the
batch has a *told row*, which holds the same sequences behind their other prompts, and ``at`` says where::

    position   0 1 2 3 4 5 6 7 8
    batch      q q a b r c .            two sequences: prompt q q with the completion a b ., prompt r with c .
    told       q k k a b r k c .        behind the prompts q k k and r k
    at         . 2 3 4 . 6 7            the position of the told row that predicts the same token

Several sequences share a row only if they fit into both rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ropd_jax.core.batches import (
    EMPTY,
    TokenSequence,
    at_completions,
    first_fit,
    make_batch,
    of_completions,
    positions_needed,
)
from ropd_jax.types import Array


class ToldRows(NamedTuple):
    """The told rows of a batch for one context; S is the length of a told row.

    Attributes:
        tokens_BS, positions_BS, segments_BS: int32, as in `TrainBatch`.
        at_BT: int32, for each position of the batch that of the told row which predicts the same token; -1 where there
            is none.
    """

    tokens_BS: Array
    positions_BS: Array
    segments_BS: Array
    at_BT: Array


@dataclasses.dataclass(frozen=True)
class ToldLayout:
    """How the rows of a batch and their told rows are filled. Shapes depend on the number of sequences only.

    Attributes:
        names: the contexts.
        length: most tokens of a sequence of the batch.
        context: most tokens that another prompt adds to it.
        row_len, told_len: positions of a row of the batch, and of a told row.
        packed: rows hold several sequences.
    """

    names: tuple[str, ...]
    length: int
    context: int
    row_len: int
    told_len: int
    packed: bool

    @property
    def most(self) -> int:
        """Most tokens of another prompt with its completion."""
        return self.length + self.context

    def places(self, sequences: Sequence[TokenSequence]) -> list[list[int]]:
        """Which sequences each row holds; as many rows as the longest sequences would need."""
        if not self.packed:
            return [[i] for i in range(len(sequences))]
        told = [(positions_needed(self._behind(sequences, name), self.most), self.told_len) for name in self.names]
        places = first_fit(positions_needed(sequences, self.length), self.row_len, *told)
        rows = -(-len(sequences) // (self.row_len // (self.length - 1)))
        return places + [[]] * (rows - len(places))

    def rows(self, sequences: Sequence[TokenSequence]) -> dict[str, ToldRows]:
        """The told rows by context; a completion that is not told the context, or too long behind it, is in none."""
        places = self.places(sequences)
        return {name: self._rows(sequences, name, places) for name in self.names}

    def _rows(self, sequences: Sequence[TokenSequence], name: str, places: Sequence[Sequence[int]]) -> ToldRows:
        behind = self._behind(sequences, name)
        yes_B = np.ones(len(behind), bool)
        told = make_batch(
            behind, np.zeros(len(behind), np.float32), yes_B, yes_B, self.most, places=places, row_len=self.told_len
        )
        index_BS = np.broadcast_to(np.arange(self.told_len), (len(places), self.told_len))
        found = of_completions(index_BS, behind, self.most, places)
        at_BT = at_completions(found, sequences, self.length, places, self.row_len, nothing=-1)
        return ToldRows(told.tokens_BT, told.positions_BT, told.segments_BT, at_BT)

    def _behind(self, sequences: Sequence[TokenSequence], name: str) -> list[TokenSequence]:
        return [behind_other(s, name, self.most) for s in sequences]


def told_layout(
    names: tuple[str, ...], *, length: int, context: int, row_len: int, packed: bool, multiple: int = 1
) -> ToldLayout:
    """The layout for rows of ``row_len`` positions: a told row has room for as many sequences of maximum length.

    Args:
        length: most tokens of a sequence of the batch; a row has ``length - 1`` positions or more.
        multiple: the length of a told row is rounded up to a multiple of this (`mesh.whole_parts`).
    """
    told_len = row_len + context * (row_len // (length - 1) if packed else 1)
    return ToldLayout(names, length, context, row_len, -(-told_len // multiple) * multiple, packed)


def behind_other(sequence: TokenSequence, name: str, most: int) -> TokenSequence:
    """The completion behind the other prompt ``name``, with log-probs 0; `EMPTY` without such a prompt, without a
    completion, or if both have more than ``most`` tokens."""
    prompt_T, completion_T = sequence.told.get(name), sequence.completion_T
    if prompt_T is None or not len(completion_T) or len(prompt_T) + len(completion_T) > most:
        return EMPTY
    return TokenSequence(prompt_T, completion_T, np.zeros(len(completion_T), np.float32))
