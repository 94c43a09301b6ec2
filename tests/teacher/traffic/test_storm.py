"""300 groups with 20 % mixed faults (10,000: ``make storm``), and the throughput that the limit reaches."""

from __future__ import annotations

import logging

import pytest

from benchmarks.storm import FAULTS, adaptive_share, storm


@pytest.fixture(scope="module")
def storms():
    logging.disable(logging.WARNING)
    try:
        yield [storm(300, seed=seed) for seed in (1, 2)]
    finally:
        logging.disable(logging.NOTSET)


def test_every_group_is_scored_as_the_oracle_says_or_carries_a_cause(storms):
    for s in storms:
        assert s.wrong == []
        assert s.scored + s.lost == 300 and s.scored > 240


def test_the_oracle_notices_a_single_verdict_that_is_turned_round():
    s = storm(30, fault_rate=0.0, spoiled=0.02)
    assert s.scored == 30 and 5 < len(s.wrong) < 60 and any("the oracle's is" in w for w in s.wrong)
    assert storm(30, fault_rate=0.0).wrong == []


def test_all_kinds_of_faults_struck_a_fifth_of_the_calls(storms):
    for s in storms:
        assert 0.15 < sum(s.faults.values()) / s.calls < 0.25
    assert set(storms[0].faults) | set(storms[1].faults) == set(FAULTS)


def test_what_can_be_repeated_leaves_nothing_unscored(storms):
    for s in storms:
        assert not set(s.causes) & {"rate_limited", "unavailable", "server_error", "timeout", "missing"}
        assert set(s.causes) <= {"blocked", "refused", "bad_request", "context", "truncated", "empty", "malformed"}


@pytest.mark.parametrize("provider", ["openai", "gemini"])
def test_a_storm_over_http_loses_nothing_either(provider):
    logging.disable(logging.WARNING)
    try:
        s = storm(60, seed=4, provider=provider)
    finally:
        logging.disable(logging.NOTSET)
    assert s.wrong == [] and s.scored + s.lost == 60 and s.scored > 40
    assert set(s.causes) <= {"blocked", "refused", "bad_request", "context", "truncated", "empty", "malformed"}
    assert len(s.faults) >= 12


def test_a_storm_is_the_same_each_time():
    a, b = storm(40, seed=3), storm(40, seed=3)
    assert (a.faults, a.causes, a.scored) == (b.faults, b.causes, b.scored)


@pytest.mark.parametrize("capacity", [6, 16, 32, 40])
def test_the_adaptive_limit_reaches_nine_tenths_of_the_best_fixed_limit(capacity):
    logging.disable(logging.WARNING)
    try:
        share, best, _ = adaptive_share(capacity, 600)
    finally:
        logging.disable(logging.NOTSET)
    assert share >= 0.9 and best in (capacity - 1, capacity, capacity + 1)
