"""Grades with the errors of a measured judge: fitted, read, drawn."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropd_jax.teacher.clients.errors import ConfigurationError
from ropd_jax.teacher.scripted.grade_noise import GradeNoise
from ropd_jax.teacher.scripted.noise import Noise
from tests.properties import PROPERTY

GOOD = {
    "flat": 0.25,
    "common": [[1.0, 1.0]],
    "by_quality": [[[0.0, 1.0]], [[0.5, 1.0]], [[0.5, 0.5], [1.0, 0.5]], [[1.0, 1.0]]],
}


def test_a_fit_has_the_shares_of_its_requests():
    requests = [
        [(1.0, 1.0), (0.0, 1.0)],  # flat
        [(1.0, 1.0), (0.5, 0.0), (0.0, 0.0)],
        [(1.0, 0.5), (0.4, 0.5), (0.9, 0.0)],
        [(1.0, 0.0)],  # one answer says nothing
    ]
    found = GradeNoise.fit(requests)
    assert found == GradeNoise(
        1 / 3, ((1.0, 1.0),), (((0.0, 1.0),), ((0.0, 0.5), (0.5, 0.5)), ((0.0, 1.0),), ((0.5, 0.5), (1.0, 0.5)))
    )
    assert GradeNoise.read(found.as_dict()) == found
    assert GradeNoise.fit([[(1.0, 1.0)]]) is None


def test_a_bin_without_answers_takes_the_nearest_one():
    found = GradeNoise.fit([[(0.0, 0.25), (1.0, 1.0)]])
    low, high = ((0.25, 1.0),), ((1.0, 1.0),)
    assert found.by_quality == (low, low, high, high) and found.flat == 0.0
    flat = GradeNoise.fit([[(0.0, 0.25), (1.0, 0.25)]])
    assert flat.flat == 1.0 and flat.by_quality == (low,) * 4


def test_draws_have_the_shares_and_repeat():
    noise = GradeNoise.read(GOOD)
    qualities = (0.0, 0.5, 0.9, 1.0)
    drawn = [noise.apply(f"q{i}", [f"a{i}", f"b{i}", f"c{i}", f"d{i}"], qualities) for i in range(2_000)]
    assert drawn[7] == noise.apply("q7", ["a7", "b7", "c7", "d7"], qualities)
    flat = [row for row in drawn if len(set(row)) == 1]
    assert len(flat) / len(drawn) == pytest.approx(0.25, abs=0.03)
    third = Counter(row[2] for row in drawn if row not in flat)
    assert third[0.5] / sum(third.values()) == pytest.approx(0.5, abs=0.04) and set(third) == {0.5, 1.0}
    assert all(row[0] == 0.0 and row[1] == 0.5 and row[3] == 1.0 for row in drawn if row not in flat)


@PROPERTY
@given(st.lists(st.lists(st.tuples(st.floats(0, 1), st.sampled_from(range(10))), min_size=2), min_size=1))
def test_a_judge_with_fitted_noise_gives_only_grades_that_were_seen(requests):
    requests = [[(quality, grade / 9) for quality, grade in row] for row in requests]
    noise = GradeNoise.fit(requests)
    seen = {grade for row in requests for _, grade in row}
    for i, row in enumerate(requests):
        assert set(noise.apply(f"q{i}", [f"a{j}" for j in range(len(row))], [q for q, _ in row])) <= seen


@pytest.mark.parametrize("change", [
    {"flat": 1.5}, {"flat": True}, {"flat": None}, {"common": []}, {"common": "x"}, {"common": [[0.5]]},
    {"common": [[0.5, 0.4]]}, {"common": [[2.0, 1.0]]}, {"by_quality": [[[0.0, 1.0]]]}, {"by_quality": "abcd"},
    {"other": 1},
])  # fmt: skip
def test_what_cannot_be_read_is_refused(change):
    with pytest.raises(ConfigurationError, match=r"^teacher.scripted.noise: grades"):
        Noise.read({"grades": GOOD | change})
    assert Noise.read({"grades": GOOD}).grades == GradeNoise.read(GOOD)
    assert Noise.read({"halo": 0.1}).grades is None and Noise.read({"grades": None}).grades is None
