"""The order of the queue: the simulation agrees with the client, and no order is shorter than the default."""

from __future__ import annotations

import statistics

import pytest

from benchmarks import schedule, virtual_time
from benchmarks.teacher import chains_of, latencies, makespans, ours
from ropd_jax.teacher.traffic.limits import Limits


def test_the_bounds_of_a_step_that_can_be_worked_out_by_hand():
    chains = [(3.0, 1.0), (1.0, 1.0), (1.0, 4.0)]
    assert schedule.bound(chains, 1) == 11.0 and schedule.bound(chains, 3) == 5.0
    assert schedule.clairvoyant(chains, 3) == 5.0
    assert schedule.online_bound(chains, 2) == 6.0  # the third rubric waits for the second: 1 + 1 + 4
    assert schedule.makespan(chains, 1, schedule.POLICIES["longest first"]) == (11.0, (6.0 + 7.0 + 11.0) / 3)
    assert schedule.makespan(chains, 1, schedule.POLICIES["finished first"]) == (11.0, (4.0 + 6.0 + 11.0) / 3)


@pytest.mark.parametrize("concurrency", [16, 32])
def test_the_client_keeps_the_order_that_is_simulated(concurrency):
    for seed in range(3):
        latency = latencies(seed)
        simulated, _ = schedule.makespan(chains_of(latency), concurrency, schedule.POLICIES["longest first"])
        assert virtual_time.run(ours(latency, concurrency, "longest_first")) == pytest.approx(simulated)


@pytest.mark.parametrize(("concurrency", "aim"), [(16, 1.10), (32, 1.25), (64, 1.001)])
def test_a_step_ends_as_soon_as_it_can_without_knowing_the_latencies(concurrency, aim):
    took = makespans(concurrency, 24)
    mine = took[f"ours, {Limits().order}"]
    assert statistics.median(mine) <= max(aim, 1.02 * statistics.median(took["not to be beaten blindly"]))
    assert all(a >= b - 1e-9 for a, b in zip(mine, took["not to be beaten blindly"], strict=True))
    assert statistics.median(mine) <= statistics.median(took["ours, finished_first"])
    assert statistics.median(took["official design"]) > 3.5 * statistics.median(mine)
