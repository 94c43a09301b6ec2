"""Group advantages against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ropd_jax.core.advantages import group_advantages

REWARDS = np.array([[10 / 12, 5 / 12, 5 / 12]], np.float32)


@pytest.mark.parametrize(
    ("normalize", "want"),
    [
        (False, [0.277778, -0.138889, -0.138889]),  # mean 20/36
        (True, [1.154701, -0.577350, -0.577350]),  # sample std 0.240563
    ],
)
def test_group_by_hand(normalize, want):
    got = group_advantages(REWARDS, np.ones((1, 3), bool), normalize_std=normalize)
    np.testing.assert_allclose(got.advantage_PG[0], want, atol=2e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_unscored_rollout_is_out_of_the_baseline(normalize):
    reward = np.array([[10 / 12, np.nan, 5 / 12, 5 / 12]], np.float32)
    got = group_advantages(reward, ~np.isnan(reward), normalize_std=normalize)
    alone = group_advantages(REWARDS, np.ones((1, 3), bool), normalize_std=normalize)
    np.testing.assert_array_equal(got.advantage_PG[0, [0, 2, 3]], alone.advantage_PG[0])
    assert got.advantage_PG[0, 1] == 0 and not got.valid_PG[0, 1]


@pytest.mark.parametrize("normalize", [False, True])
def test_equal_rewards_give_exactly_zero_and_are_not_informative(normalize):
    reward = np.full((1, 7), 0.7, np.float32)  # the float32 mean of seven 0.7 is not 0.7
    assert np.float32(reward.sum() / np.float32(7)) != np.float32(0.7) or reward.mean() == np.float32(0.7)
    got = group_advantages(reward, np.ones((1, 7), bool), normalize_std=normalize)
    assert (np.asarray(got.advantage_PG) == 0).all()
    assert np.asarray(got.valid_PG).all() and not np.asarray(got.informative_PG).any()


def test_group_with_too_few_scored_is_invalid_as_a_whole():
    reward = np.array([[0.2, np.nan, np.nan, np.nan], [0.2, 0.4, np.nan, np.nan], [np.nan] * 4], np.float32)
    got = group_advantages(reward, ~np.isnan(reward), normalize_std=False)
    np.testing.assert_array_equal(np.asarray(got.valid_PG).sum(1), [0, 2, 0])
    np.testing.assert_allclose(got.advantage_PG, [[0] * 4, [-0.1, 0.1, 0, 0], [0] * 4], atol=1e-7)
    three = group_advantages(reward, ~np.isnan(reward), normalize_std=False, min_scored=3)
    assert not np.asarray(three.valid_PG).any()
