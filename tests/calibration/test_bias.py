"""Bias by position, length and style, flips and halo, against small cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ropd_jax.calibration import bias
from ropd_jax.calibration.bias import HaloModel
from ropd_jax.calibration.bootstrap import Bootstrap
from tests.calibration.helpers import said

T, F = True, False


def value(found):
    return found["value"]


def test_position_is_the_slope_within_an_answer():
    # Answer 0 moves from first to last and loses one of two verdicts; answer 1 moves the other way and gains none.
    one = said([[T, T], [F, F]], [[T, T], [F, F]], [[T, F], [F, F]], places=[0.0, 1.0], again_places=[1.0, 0.0])
    # sums over both: x = -0.5, 0.5; y of answer 0: 0, -0.5 -> (xy) -0.25 of (xx) 0.5; answer 1: 0 of 0.5
    assert value(bias.position([one], Bootstrap(1))) == pytest.approx(-0.25)


def test_position_of_one_look_uses_the_places_that_chance_gave():
    one = said([[T], [T], [T]], [[T], [T], [F]])  # errors 0, 0, -1 at 0, 0.5, 1: slope -0.5 / 0.5
    assert value(bias.position([one], Bootstrap(1))) == pytest.approx(-1.0)
    alone = said([[T]], [[T]], places=[None])
    assert bias.position([alone], Bootstrap(1)) == {"value": None, "low": None, "high": None, "n": 0}


def test_a_true_difference_of_answers_is_no_bias_of_position():
    one = said([[T], [T], [F]], [[T], [T], [F]])
    assert value(bias.position([one], Bootstrap(1))) == 0.0


def test_length_and_style_are_paired_differences():
    likes = {1: (0, "length"), 3: (2, "style")}
    truths = [[T, F], [T, F], [F, F], [F, F]]
    rows = [[T, F], [T, T], [T, F], [F, F]]  # longer: one of two more; styled: one of two fewer
    one = said(truths, rows, likes=likes, lengths=[100, 400, 50, 80])
    length, style = (bias.paired([one], Bootstrap(1), how) for how in ("length", "style"))
    assert length["pairs"] == style["pairs"] == 1
    assert value(length["difference"]) == 0.5 and value(length["per_doubling"]) == 0.25
    assert value(style["difference"]) == -0.5 and "per_doubling" not in style


def test_a_shorter_twin_counts_the_other_way():
    one = said([[T], [T]], [[T], [F]], likes={1: (0, "length")}, lengths=[400, 100])
    found = bias.paired([one], Bootstrap(1), "length")
    assert value(found["difference"]) == 1.0 and value(found["per_doubling"]) == 0.5


def test_a_pair_with_an_unread_answer_is_left_out():
    one = said([[T], [T]], [[T], None], likes={1: (0, "length")})
    found = bias.paired([one], Bootstrap(1), "length")
    assert found["pairs"] == 0 and value(found["difference"]) is None


def test_flips_count_verdicts_of_both_looks():
    one = said([[T, T], [F, F]], [[T, T], [F, F]], [[T, F], None])
    found = bias.flips([one, said([[T]], [[T]])], Bootstrap(2))
    assert value(found) == 0.5 and found["n"] == 2
    assert value(bias.flips([said([[T]], [[T]])], Bootstrap(1))) is None


def simulated(halo, p_true, p_false, answers=4_000, seed=0):
    """Verdicts on 4 criteria of 4 kinds, two met and two missed; a share of the answers gets one verdict on all."""
    rng = np.random.default_rng(seed)
    truth = np.tile([1, 1, 0, 0], (answers, 1))
    chance = np.where(truth == 1, p_true, p_false)
    verdict = rng.random(truth.shape) < chance
    copied = rng.random(answers) < halo
    pick = verdict[np.arange(answers), rng.integers(0, 4, answers)]
    verdict = np.where(copied[:, None], pick[:, None], verdict)
    answer = np.repeat(np.arange(answers), 4)
    cell = (2 * np.tile([0, 1, 2, 3], (answers, 1)) + truth).ravel()
    return HaloModel(answer // 10, answer, cell, verdict.ravel()), np.ones(answers // 10)


@pytest.mark.parametrize("halo, p_true, p_false", [(0.0, 0.8, 0.3), (0.3, 0.9, 0.1), (0.6, 0.7, 0.4)])
def test_halo_and_rates_are_told_apart(halo, p_true, p_false):
    model, ones = simulated(halo, np.array(p_true), np.array(p_false))
    found, chances = model.fit(ones)
    assert found == pytest.approx(halo, abs=0.05)
    assert [chances[c] for c in (1, 3)] == pytest.approx([p_true] * 2, abs=0.05)
    assert [chances[c] for c in (4, 6)] == pytest.approx([p_false] * 2, abs=0.05)
    if halo:  # without the halo the rates differ: both must be fitted together
        assert abs(model.fit(ones, 0.0)[1][1] - p_true) > 0.05


def test_without_an_answer_of_both_truths_the_halo_is_unknown():
    model = HaloModel(np.zeros(4, int), np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]), np.array([1, 1, 0, 0]))
    assert bias.halo(model, Bootstrap(1))["value"] is None
