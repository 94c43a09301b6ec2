"""Rows of an update: what each position holds, and that shapes do not depend on the teacher's replies."""

from __future__ import annotations

import numpy as np
import pytest

from ropd_jax.core.batches import (
    TokenSequence,
    bucket,
    first_fit,
    make_batch,
    pack,
    positions_needed,
    real_frac,
    split_parts,
)

ROWS = [
    TokenSequence(np.array([5, 6]), np.array([7, 8, 1]), np.array([-0.1, -0.2, -0.3], np.float32)),
    TokenSequence(np.array([9]), np.array([4]), np.array([-0.5], np.float32)),
    TokenSequence(np.array([9]), np.zeros(0, np.int32), np.zeros(0, np.float32)),
]


def batch(valid=(1, 1, 0), informative=(1, 0, 0)):
    advantage = np.array([0.5, -2.0, 9.0], np.float32)
    return make_batch(ROWS, advantage, np.array(valid, bool), np.array(informative, bool), 6)


def test_rows_by_hand():
    b = batch()
    np.testing.assert_array_equal(b.tokens_BT, [[5, 6, 7, 8, 0], [9, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(b.targets_BT, [[6, 7, 8, 1, 0], [4, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(b.mask_BT, [[0, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(b.segments_BT, [[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(b.positions_BT[0], [0, 1, 2, 3, 0])
    np.testing.assert_allclose(b.old_logp_BT[0], [0, -0.1, -0.2, -0.3, 0], rtol=1e-6)
    np.testing.assert_array_equal(b.advantage_BT[:, :2], [[0, 0.5], [-2, 0], [0, 0]])
    np.testing.assert_array_equal(b.length_BT, [[0, 3, 3, 3, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(b.informative_BT, b.mask_BT & np.array([[1], [0], [0]], bool))


def test_shapes_do_not_depend_on_verdicts():
    shapes = {tuple(x.shape for x in batch(v, v)) for v in ((1, 1, 1), (0, 1, 0), (0, 0, 0))}
    assert len(shapes) == 1


def test_a_completion_that_does_not_fit_is_cut():
    b = make_batch(ROWS[:1], np.ones(1, np.float32), np.ones(1, bool), np.ones(1, bool), 4)
    np.testing.assert_array_equal(b.targets_BT, [[6, 7, 8]])
    np.testing.assert_array_equal(b.mask_BT, [[0, 1, 1]])


def test_parts_are_filled_up_with_rows_that_count_nowhere():
    parts = split_parts(batch(), 2)
    assert parts.tokens_BT.shape == (2, 2, 5)
    assert not parts.mask_BT[1, 1].any() and not parts.segments_BT[1, 1].any()
    np.testing.assert_array_equal(parts.tokens_BT.reshape(4, 5)[:3], batch().tokens_BT)
    assert real_frac(parts) == 5 / 10  # the second part is empty: it is not computed
    assert split_parts(batch(), 0, multiple=4).tokens_BT.shape == (1, 4, 5)
    assert split_parts(batch(), 1, multiple=2).tokens_BT.shape == (2, 2, 5)


def packed(valid=(1, 1, 0), informative=(1, 0, 0), fixed=False, row_len=6, length=6):
    advantage = np.array([0.5, -2.0, 9.0], np.float32)
    flags = (np.array(valid, bool), np.array(informative, bool))
    return pack(ROWS, advantage, *flags, length, row_len=row_len, fixed=fixed)


def test_packed_row_by_hand():
    b = packed()
    np.testing.assert_array_equal(b.tokens_BT, [[5, 6, 7, 8, 9, 0]])
    np.testing.assert_array_equal(b.targets_BT, [[6, 7, 8, 1, 4, 0]])
    np.testing.assert_array_equal(b.segments_BT, [[1, 1, 1, 1, 2, 0]])
    np.testing.assert_array_equal(b.positions_BT, [[0, 1, 2, 3, 0, 0]])
    np.testing.assert_array_equal(b.mask_BT, [[0, 1, 1, 1, 1, 0]])
    np.testing.assert_array_equal(b.informative_BT, [[0, 1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(b.length_BT, [[0, 3, 3, 3, 1, 0]])
    np.testing.assert_array_equal(b.advantage_BT, [[0, 0.5, 0.5, 0.5, -2, 0]])
    np.testing.assert_allclose(b.old_logp_BT, [[0, -0.1, -0.2, -0.3, -0.5, 0]], rtol=1e-6)


def test_packed_rows_do_not_depend_on_verdicts_and_fixed_ones_not_on_lengths():
    shapes = {tuple(x.shape for x in packed(v, v)) for v in ((1, 1, 1), (0, 1, 0), (0, 0, 0))}
    assert len(shapes) == 1
    assert packed(fixed=True).tokens_BT.shape == (3, 6) and packed().tokens_BT.shape == (1, 6)
    assert packed(fixed=True, row_len=10).tokens_BT.shape == (2, 10)


def test_a_packed_completion_that_does_not_fit_is_cut():
    np.testing.assert_array_equal(packed(length=4).targets_BT, [[6, 7, 8, 4, 0, 0]])


def log_normal_sequences(n, *, longest, seed=0):
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(np.log(longest / 40), 0.4, n), 1, longest / 5).astype(int)
    answers = np.clip(rng.lognormal(np.log(longest / 6), 0.8, n), 1, longest * 4 / 5).astype(int)
    ones, zeros = np.ones(longest, np.int32), np.zeros(longest, np.float32)
    return [TokenSequence(ones[:p], ones[:a], zeros[:a]) for p, a in zip(prompts, answers, strict=True)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("microbatch", [0, 2])
def test_log_normal_lengths_fill_95_percent_of_the_positions(seed, microbatch):
    """32 prompts x 8 rollouts of up to 10,240 tokens, as the paper's step has them."""
    sequences = log_normal_sequences(256, longest=10_240, seed=seed)
    ones = np.ones(256)
    batch = pack(sequences, ones, ones > 0, ones > 0, 10_240, row_len=10_240, fixed=bool(microbatch))
    parts = split_parts(batch, microbatch)
    assert len(parts.tokens_BT) == (128 if microbatch else 1)
    assert real_frac(parts) >= 0.95
    assert (batch.segments_BT != 0).sum() == sum(positions_needed(sequences, 10_240))  # nothing is lost
    assert real_frac(split_parts(make_batch(sequences, ones, ones > 0, ones > 0, 10_240), 0)) < 0.3


@pytest.mark.parametrize("row_len", [10, 17, 31])
def test_first_fit_keeps_its_bound_and_every_sequence_once(row_len):
    rng = np.random.default_rng(row_len)
    for _ in range(200):
        sizes = rng.integers(0, 11, rng.integers(1, 40)).tolist()
        rows = first_fit(sizes, row_len)
        assert sorted(i for row in rows for i in row) == [i for i, n in enumerate(sizes) if n]
        assert all(sum(sizes[i] for i in row) <= row_len for row in rows)
        assert len(rows) <= -(-len(sizes) // (row_len // 10))


def test_buckets_are_few_and_near():
    sizes = {bucket(n) for n in range(1, 1025)}
    assert all(n <= bucket(n) <= n * 17 / 16 + 1e-9 for n in range(1, 1025))
    assert len(sizes) == 31 + 16 * 5 + 1


def test_the_drawing_of_make_batch_is_what_it_makes():
    p, q, a, b, end, r, c = 11, 12, 13, 14, 1, 15, 16
    zeros = np.zeros(3, np.float32)
    pair = [
        TokenSequence(np.array([p, q]), np.array([a, b, end]), zeros),
        TokenSequence(np.array([r]), np.array([c, end]), zeros[:2]),
    ]
    yes, scored = np.ones(2, bool), np.array([True, False])
    batch = make_batch(pair, np.ones(2, np.float32), scored, yes, 5, places=[[0, 1]], row_len=7)
    assert batch.tokens_BT.tolist() == [[p, q, a, b, r, c, 0]]
    assert batch.targets_BT.tolist() == [[q, a, b, end, c, end, 0]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 3, 0, 1, 0]]
    assert batch.segments_BT.tolist() == [[1, 1, 1, 1, 2, 2, 0]]
    assert batch.mask_BT.tolist() == [[False, True, True, True, False, False, False]]
    assert batch.length_BT.tolist() == [[0, 3, 3, 3, 0, 0, 0]]
