"""The curriculum: bounded factors, draws that follow them, and a state that continues as if it had never stopped."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest

from ropd_jax.data.curriculum import CurriculumState, drawn, factors, first_state, learnt
from ropd_jax.training.metrics import pass_rates
from ropd_jax.training.validate import check_data
from ropd_jax.types import Judgement, UserError
from tests.data.test_mixture import section, stream_of, two
from tests.methods.test_rivals import group


@pytest.mark.parametrize("most", [1.5, 4.0, 50.0])
def test_factors_are_bounded_have_mean_one_and_prefer_the_middle(most):
    rng = np.random.default_rng(0)
    for rates in ([0.0] * 99 + [0.5], [0.5] * 99 + [1.0], [np.nan] * 100, rng.random(100), [0.0] * 50 + [0.5] * 50):
        f_N = factors(np.array(rates), most)
        assert f_N.min() >= 1 / most - 1e-12 and f_N.max() <= most + 1e-12
        assert f_N.mean() == pytest.approx(1.0, abs=1e-9)
    f_N = factors(np.array([0.0, 0.25, 0.5, 0.75, 1.0, np.nan]), most)
    assert f_N[0] == f_N[4] <= f_N[1] == f_N[3] <= f_N[2] and f_N[0] < f_N[5] < f_N[2]
    assert factors(np.array([0.5, 0.0, 0.0]), most, at_once=2).max() <= 1.5  # none can come twice in a step


def test_without_pass_rates_each_prompt_comes_once_an_epoch_in_a_new_order():
    state, seen = first_state(12, 5), []
    for step in range(12):
        state, places = drawn(state, 4, 4.0, (0, step))
        seen += places.tolist()
    epochs = [seen[i : i + 12] for i in range(0, 48, 12)]
    assert all(sorted(e) == list(range(12)) for e in epochs) and len({tuple(e) for e in epochs}) == 4


def test_the_share_of_no_prompt_leaves_the_bounds():
    """Pass rates from a student that learns: every prompt's draws stay within its bounds, at the end and on the way."""
    N, n, most, steps = 60, 6, 4.0, 1500
    rng, state = np.random.default_rng(1), first_state(N, 1)
    skill_N, count_N, owed_N = rng.random(N) ** 3, np.zeros(N), np.zeros(N)
    for step in range(steps):
        owed_N += factors(state.rate_N, most, at_once=n) * n / N
        state, places = drawn(state, n, most, (1, step))
        assert len(set(places.tolist())) == n
        count_N[places] += 1
        assert np.abs(count_N - owed_N).max() < 3  # what the factors promise, to a few draws, at every step
        state = learnt(state, {int(i): rng.binomial(4, skill_N[i]) / 4 for i in places})
        skill_N = np.clip(skill_N + 0.0002, 0, 1)
    share_N = count_N / count_N.sum() * N  # relative to uniform
    assert 1 / most - 0.02 <= share_N.min() < 0.8 and 1.2 < share_N.max() <= most + 0.02
    assert count_N.min() >= steps * n / N / most - 3  # none disappears


def test_the_running_pass_rate():
    state = first_state(2, 0)
    for rate in (1.0, 0.0, 0.5, 0.5):
        state = learnt(state, {1: rate})
    assert np.isnan(state.rate_N[0]) and state.rate_N[1] == 0.5 and state.visits_N.tolist() == [0, 4]
    assert learnt(state, {1: 1.0}).rate_N[1] == 0.625  # then a running mean over four visits
    back = CurriculumState.from_json(json.loads(json.dumps(state.as_json())))
    for a, b in zip(state, back, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def run(stream, first, last, ahead=False):
    """Prompt ids by step; the pass rate of a prompt is a function of its id and the step."""
    found = {}
    for step in range(first, last):
        found[step] = [p.id for p in stream.batch(step)]
        if ahead and step + 1 < last:
            found[step + 1] = [p.id for p in stream.batch(step + 1)]
        stream.learn(step, {i: (sum(map(ord, i)) % 5) / 4 for i in found[step]})
    return found


@pytest.mark.parametrize("ahead", (False, True))
@pytest.mark.parametrize("stop", (1, 2, 3, 9))
def test_a_restored_stream_goes_on_with_the_same_prompts(ahead, stop):
    def make():
        return stream_of({"a": 30, "b": 12}, {"a": 0.7, "b": 0.3}, 6, most=4.0)

    whole = run(make(), 0, 20, ahead)
    assert whole == run(make(), 0, 20)  # looking ahead changes nothing
    stream = make()
    run(stream, 0, stop, ahead)
    for before in (False, True):  # the current step is drawn, but not finished
        if before:
            stream.batch(stop)
        state = json.loads(json.dumps(stream.state(stop)))
        again = make()
        again.restore(state)
        assert {s: whole[s] for s in range(stop, 20)} == run(again, stop, 20, ahead)
    taken = make()  # the step was sampled ahead: its groups come from the checkpoint, and it is not drawn again
    taken.restore(state)
    taken.learn(stop, {i: (sum(map(ord, i)) % 5) / 4 for i in whole[stop]})
    assert taken.state(stop + 1)["step"] == stop + 1
    assert {s: whole[s] for s in range(stop + 1, 20)} == run(taken, stop + 1, 20, ahead)


def test_prompts_of_middling_pass_rate_come_more_often_and_the_shares_of_sources_stay():
    stream = stream_of({"a": 40, "b": 20}, {"a": 0.5, "b": 0.5}, 8, most=4.0)
    seen = collections.Counter()
    for step in range(400):
        ids = [p.id for p in stream.batch(step)]
        seen.update(ids)
        stream.learn(step, {i: 0.5 if int(i[2:]) % 4 == 0 else 1.0 for i in ids})
    for name, n in (("a", 40), ("b", 20)):
        own = {int(i[2:]): c for i, c in seen.items() if i.startswith(name)}
        assert sum(own.values()) == pytest.approx(1600, abs=4) and len(own) == n
        middle, other = (np.mean([c for i, c in own.items() if (i % 4 == 0) is m]) for m in (True, False))
        assert middle > 3 * other
        assert all(0.24 < c / (1600 / n) < 4.01 for c in own.values())
    found = stream.metrics()
    assert found["curriculum/seen_frac"] == 1.0 and 0.25 <= found["curriculum/factor_min"] < 1
    assert 1 < found["curriculum/factor_max"] <= 4 and 0.8 < found["curriculum/pass_rate"] < 0.95


def test_without_a_curriculum_there_is_no_state():
    stream = stream_of({"a": 9}, {}, 3)
    stream.learn(0, {"a:0": 1.0})
    assert stream.state(5) is None and stream.metrics() == {} and not stream.has_curriculum


def test_a_pass_rate_is_the_exact_one_where_it_is_known():
    j = Judgement(rewards=(0.25, None, 0.75, 0.5), causes=(None, "timeout", None, None))
    assert pass_rates([group()], [j], [[True, None, False, False]]) == {"q": pytest.approx(1 / 3)}
    assert pass_rates([group()], [j], [[None] * 4]) == {"q": 0.5}
    lost = Judgement(rewards=(None,) * 4, causes=("timeout",) * 4)
    assert pass_rates([group()], [lost], [[None] * 4]) == {}


def test_a_bound_that_is_none_is_refused(tmp_path):
    for value in (0.5, 1.0):
        with pytest.raises(UserError, match=f"data.curriculum={value:g}; expected 0"):
            check_data(section(tmp_path, two(tmp_path), curriculum=value))
