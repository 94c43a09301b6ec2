"""Rows of an update: which position holds what, and that shapes do not depend on what the teacher said."""

from __future__ import annotations

import numpy as np

from ropd_jax.data.batches import Sequence, make_batch, split_parts

ROWS = [
    Sequence(np.array([5, 6]), np.array([7, 8, 1]), np.array([-0.1, -0.2, -0.3], np.float32)),
    Sequence(np.array([9]), np.array([4]), np.array([-0.5], np.float32)),
    Sequence(np.array([9]), np.zeros(0, np.int32), np.zeros(0, np.float32)),
]


def batch(valid=(1, 1, 0), informative=(1, 0, 0)):
    advantage = np.array([0.5, -2.0, 9.0], np.float32)
    return make_batch(ROWS, advantage, np.array(valid, bool), np.array(informative, bool), 6)


def test_rows_by_hand():
    b = batch()
    np.testing.assert_array_equal(b.tokens_BT, [[5, 6, 7, 8, 1], [9, 4, 0, 0, 0], [9, 0, 0, 0, 0]])
    np.testing.assert_array_equal(b.targets_BT, [[6, 7, 8, 1, 0], [4, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(b.mask_BT, [[0, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(b.segments_BT, [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(b.positions_BT[0], [0, 1, 2, 3, 4])
    np.testing.assert_allclose(b.old_logp_BT[0], [0, -0.1, -0.2, -0.3, 0], rtol=1e-6)
    np.testing.assert_array_equal(b.advantage_BT[:, :2], [[0, 0.5], [-2, 0], [0, 0]])
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
    assert split_parts(batch(), 0, multiple=4).tokens_BT.shape == (1, 4, 5)
    assert split_parts(batch(), 1, multiple=2).tokens_BT.shape == (2, 2, 5)
