"""Told rows: the same completions behind other prompts, where the batch finds them."""

from __future__ import annotations

import numpy as np
import pytest

from ropd_jax.core.batches import EMPTY, TokenSequence, first_fit, make_batch
from ropd_jax.core.told import behind_other, told_layout


def sequence(prompt, completion, **told):
    prompts = {name: np.array(ids, np.int32) for name, ids in told.items()}
    ids = np.array(completion, np.int32)
    return TokenSequence(np.array(prompt, np.int32), ids, np.zeros(len(ids), np.float32), prompts)


def test_the_drawing():
    rows = [sequence([2, 2], [11, 12, 13], k=[2, 3, 3]), sequence([4], [14, 15], k=[4, 3])]
    layout = told_layout(("k",), length=5, context=1, row_len=8, packed=True)
    assert layout.places(rows) == [[0, 1]] and layout.told_len == 10
    found = layout.rows(rows)["k"]
    assert found.tokens_BS.tolist() == [[2, 3, 3, 11, 12, 4, 3, 14, 0, 0]]
    assert found.positions_BS.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 0]]
    assert found.segments_BS.tolist() == [[1, 1, 1, 1, 1, 2, 2, 2, 0, 0]]
    assert found.at_BT.tolist() == [[-1, 2, 3, 4, 6, 7, -1, -1]]


def random_sequences(rng, n, length, context):
    found = []
    for _ in range(n):
        prompt, completion = int(rng.integers(1, 5)), int(rng.integers(0, length - 4))
        told = {} if rng.random() < 0.2 else {"k": np.full(rng.integers(1, context + 8), 3)}
        found.append(sequence(rng.integers(5, 60, prompt), rng.integers(5, 60, completion), **told))
    return found


@pytest.mark.parametrize("row_len", [0, 11, 25, 40])
def test_each_known_position_predicts_the_same_token_behind_the_other_prompt(row_len):
    rng, length, context = np.random.default_rng(row_len), 12, 6
    for _ in range(20):
        rows = random_sequences(rng, int(rng.integers(1, 20)), length, context)
        layout = told_layout(("k",), length=length, context=context, row_len=row_len or 11, packed=bool(row_len))
        places, found, yes = layout.places(rows), layout.rows(rows)["k"], np.ones(len(rows), bool)
        batch = make_batch(rows, np.zeros(len(rows)), yes, yes, length, places=places, row_len=layout.row_len)
        assert found.tokens_BS.shape == (len(batch.tokens_BT), layout.told_len)
        known = found.at_BT >= 0
        assert not (known & ~batch.mask_BT).any()
        assert known.sum() == sum(len(behind_other(row, "k", length + context).completion_T) for row in rows)
        for b, t in np.argwhere(known):
            at = found.at_BT[b, t]
            last = known[b, t + 1] if t + 1 < known.shape[1] else False
            if last and found.segments_BS[b, at + 1] == found.segments_BS[b, at]:
                assert found.tokens_BS[b, at + 1] == batch.targets_BT[b, t]


def test_the_shape_depends_on_the_number_of_sequences_only():
    rng = np.random.default_rng(0)
    layout = told_layout(("k",), length=12, context=6, row_len=25, packed=True)
    assert {layout.rows(random_sequences(rng, 9, 12, 6))["k"].tokens_BS.shape for _ in range(20)} == {(5, 37)}


def test_a_missing_a_too_long_and_an_empty_one_are_in_no_told_row():
    for row in (sequence([2], [3]), sequence([2], [3, 4], k=[5] * 9), sequence([2], [], k=[5])):
        assert behind_other(row, "k", 10) is EMPTY
    assert behind_other(sequence([2], [3, 4], k=[5] * 8), "k", 10).prompt_T.tolist() == [5] * 8


def test_a_told_row_is_divisible_by_the_devices_of_a_row():
    assert told_layout(("k",), length=12, context=6, row_len=12, packed=False, multiple=4).told_len == 20


@pytest.mark.parametrize("row_len", [10, 17, 31])
def test_sequences_that_must_fit_into_two_rows_keep_the_bound(row_len):
    rng = np.random.default_rng(row_len)
    for _ in range(200):
        n = int(rng.integers(1, 40))
        sizes, more = rng.integers(0, 11, n).tolist(), rng.integers(0, 15, n).tolist()
        more_len = 14 * (row_len // 10)
        rows = first_fit(sizes, row_len, (more, more_len))
        assert sorted(i for row in rows for i in row) == [i for i, size in enumerate(sizes) if size]
        assert all(sum(sizes[i] for i in row) <= row_len and sum(more[i] for i in row) <= more_len for row in rows)
        assert len(rows) <= -(-n // (row_len // 10))
