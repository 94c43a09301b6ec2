"""What `benchmarks.faults` counts and where it strikes; the trials themselves are `make faults`."""

from __future__ import annotations

import collections

import pytest

from benchmarks import faults
from benchmarks.faults_child import Mark


def test_there_are_sixty_trials_of_nine_faults_in_five_phases():
    trials = faults.all_trials()
    assert len({t.name for t in trials}) == len(trials) == 60
    pairs = collections.Counter((t.fault, t.phase) for t in trials)
    assert len(pairs) == 9 * 5 and set(faults.EXPECTED) == {fault for fault, _ in pairs}


@pytest.mark.parametrize(
    ("phase", "late", "spans"),
    [
        ("sampling", False, [("sample", 0, False), ("update", 0, False), ("sample", 0, True)]),
        ("judging", True, [("idle", 0, False), ("idle", 2, False), ("idle", 3, True)]),
        ("save", True, [*[("checkpoint", None, False)] * 3, ("checkpoint", None, True)]),
        ("evaluation", False, [("sample", 0, False), ("evaluate", None, True)]),
    ],
)
def test_a_fault_strikes_in_its_phase(phase, late, spans):
    mark, seen, found = Mark(phase, late), collections.Counter(), []
    for name, step, _ in spans:
        found.append(mark.is_here(name, {"step": step}, seen[name]))
        seen[name] += 1
    assert found == [here for *_, here in spans]


def test_what_was_answered_before_the_fault_may_not_be_asked_again(monkeypatch):
    monkeypatch.setattr(faults.CountingTeacher, "start", lambda self: None)
    teacher = faults.CountingTeacher()
    teacher.calls = [
        ("a", 1.0, 1.1),
        ("b", 9.8, 9.9),  # its reply left just before the fault, at 10
        ("c", 9.9, None),  # in flight
        ("d", 1.0, 1.1),
        *(("a", 12.0, 12.1), ("b", 12.0, 12.1), ("c", 12.0, 12.1), ("e", 12.0, 12.1)),
    ]
    assert teacher.asked_twice(10.0) == (1, 2)


def test_any_difference_of_state_or_logs_is_lost():
    np = pytest.importorskip("numpy")
    sound = {"state": {"w": np.zeros(2)}, "metrics": [{"step": 1}], "groups": {"g": b"x"}, "result": {}}
    assert faults.differences(sound, sound) == []
    other = sound | {"state": {"w": np.array([0.0, 1e-12])}, "groups": {"g": b"y"}}
    assert faults.differences(sound, other) == ["the final state differs", "groups differ"]
