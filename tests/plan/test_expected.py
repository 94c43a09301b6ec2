"""Expected seconds, by hand; the scheduler's replay against the tokens that it must sample."""

from __future__ import annotations

import pytest

from ropd_jax.plan import expected, replay
from ropd_jax.plan.bound import Phase
from ropd_jax.plan.chips import Chip, Topology
from ropd_jax.plan.compiled import Compiled
from ropd_jax.plan.hlo import Collective, Work
from ropd_jax.plan.replay import Rung

CHIP = Chip("toy", 1e9, 1e9, 1e12, 1e9, 4e8, 1, "made up", "toy", clock=1e9, axes=2, wraps=4)
LINE = Topology(CHIP, (2, 2))  # 1e8 bytes a second over one link


def program(**more) -> Compiled:
    return Compiled("update", True, 0, collectives=(Collective("all-reduce", 2, 50_000_000),), **more)


def test_cycles_and_then_the_links_of_one_axis():
    phase = Phase("update", 3e12, 1e9, 1.5e8, calls=3, attention=5e11)
    found = expected.of_phase(phase, program(cycles=2_000_000_000), LINE)
    assert (found.device, found.links, found.seconds, found.source) == (6.0, 1.5, 7.5, "cycles")
    with_kernels = expected.of_phase(phase, program(cycles=2_000_000_000, kernels=4), LINE)
    assert with_kernels.device == 6.5  # kernels have no cycles: attention at the peak
    assert expected.of_phase(phase, program(cycles=1), LINE).device == 1.0  # no faster than its bytes
    ring = Topology(CHIP, (4, 4))
    assert expected.of_phase(phase, program(cycles=1), ring).links == 0.75


def test_without_cycles_it_is_the_roofline_and_without_figures_unknown():
    phase = Phase("update", 3e12, 1e9, 1.5e8)
    found = expected.of_phase(phase, program(), LINE)
    assert (found.device, found.seconds, found.source) == (3.0, 4.5, "roofline")
    bare = Topology(Chip("bare", None, None, None, None, None, 1, ""), (1,))
    assert expected.of_phase(phase, program(), bare).seconds is None


def test_decoding_adds_up_its_programs_and_what_each_reads():
    loop = Work((Collective("all-reduce", 2, 1000),), cycles=2_000_000, cast_bytes=0)
    wide = Compiled("decode", True, 0, loop=loop, inner_cycles=500_000, cycles=1)
    rungs = Rung(8, 16, steps=10, passes=20, read=10_000), Rung(4, 8, steps=5, passes=5, read=1_000)
    work = expected.Decoding(weights=1e6, position=100, row_flops=1e6, chunk=8)
    steps = expected.of_decoding(rungs, {8: wide}, work, LINE)
    assert [s.compiled for s in steps] == [True, False]
    # 10 x 2e6 + 20 x 5e5 cycles at 1e9; 10 x 1e6 + 10,000 x 100 bytes at 1e9 take less
    assert steps[0].expected.device == pytest.approx(0.03)
    assert steps[0].expected.links == pytest.approx(10 * 1000 / 1e8)
    assert steps[1].expected.device == pytest.approx(0.0125)
    assert expected.total(steps).seconds == pytest.approx(0.0425 + 15 * 1000 / 1e8)
    slow = Topology(Chip("gpu", 1e9, 1e9, 1e12, 1e9, 1e8, 1, "", "gpu"), (4,))
    roofline = expected.of_decoding(rungs, {8: wide}, work, slow)[0].expected
    assert (roofline.source, roofline.device) == ("roofline", pytest.approx((10 * 1e6 + 10_000 * 100) / 1e9))


def sizes(**more) -> replay.Sizes:
    return replay.Sizes(**dict(parts=1, rows=32, slots=8, batch=2, pages=32 * 3, page=8, chunk=4, most=32) | more)


def test_answers_of_one_length_take_tokens_over_rows():
    (rung,) = replay.ladder([[32] * 8] * 8, 16, 16, sizes())
    assert (rung.rows, rung.pages, rung.steps) == (32, 96, 64 * 32 // 32)
    # blocks of 32 pages: in four chunks of eight tokens 0, 1, 2 and 3 pages of each row are in use, two times
    assert rung.passes == 2 * 8 * (1 + 1 + 2 + 3)


def test_a_tail_takes_more_token_steps_and_a_program_with_fewer_rows():
    limits = [[4] * 8] * 7 + [[4] * 7 + [32]]
    wide, narrow = replay.ladder(limits, 16, 16, sizes())
    assert (wide.rows, narrow.rows) == (32, 16)
    assert wide.steps + narrow.steps > sum(map(sum, limits)) / 32
    assert len(replay.ladder(limits, 16, 16, sizes(halves=False))) == 1
    sampled = sum(int((left > i).sum()) for _, left, ran in replay.chunks(limits, 16, sizes()) for i in range(ran))
    assert sampled == sum(map(sum, limits))


def test_a_larger_chunk_of_the_cache_is_read_as_answers_grow():
    short, long = (sum(r.read for r in replay.ladder([[n] * 8] * 4, 16, 16, sizes())) / n for n in (8, 32))
    assert long > short


def test_log_normal_answers_have_the_mean_that_was_asked_for():
    limits = replay.lengths(32, 8, 3600, 0.8, 8192, 0)
    assert sum(map(sum, limits)) / 256 == pytest.approx(3600, rel=0.001) and max(map(max, limits)) == 8192
