"""What the total reward of a stored group hides, against the definitions on judgements."""

from __future__ import annotations

import json
import random

import pytest

from ropd_jax.analysis.missed import Missed, missed
from ropd_jax.teacher.health import suppressed, unexplored
from ropd_jax.types import Criterion, Rubric
from ropd_jax.workdir.groups import group_from
from tests.viewer.stored import F, T, write_group


def test_a_line_says_what_its_judgement_says(tmp_path):
    rng = random.Random(0)
    kinds = set()
    for step in range(60):
        k = rng.randint(1, 3)
        rubric = Rubric(tuple(Criterion(f"c{i}", f"Does {i}.", 1 + i, "Step") for i in range(k)))

        def drawn(k=k):
            return None if rng.random() < 0.3 else tuple(rng.random() < 0.4 for _ in range(k))

        path = write_group(tmp_path, step, tuple(drawn() for _ in range(3)), rubric=rubric, reference_passed=(drawn(),))
        row = json.loads(path.read_text())
        judgement = group_from(row).judgement
        found = missed(row)
        assert found == Missed(tuple(unexplored(judgement)), tuple(suppressed(judgement)))
        kinds |= {any(found.unexplored), "all" if any(any(v or ()) for v in found.suppressed) else "none"}
    assert kinds == {True, False, "all", "none"}


def test_by_hand(tmp_path):
    rubric = Rubric(tuple(Criterion(f"c{i}", f"Does {i}.", 1, "Step") for i in range(3)))
    path = write_group(tmp_path, 0, ((T, F, F), (F, F, F), None), rubric=rubric, reference_passed=((F, F, T),))
    row = json.loads(path.read_text())
    assert missed(row) == Missed((False, False, True), ((F, F, F), (F, F, F), None))
    row["answers"][0]["reward"] = -1.0  # a penalty that is independent of the criteria
    assert missed(row).suppressed == ((T, F, F), (F, F, F), None)


def test_rubrics_of_single_answers_and_missing_verdicts(tmp_path):
    row = json.loads(write_group(tmp_path, 0).read_text())
    without = row | {"rubric": [], "answers": [a | {"rubric": row["rubric"]} for a in row["answers"]]}
    assert missed(without) == Missed((), (None, None, None))
    row["answers"][0]["verdicts"] = {"c1": True}
    with pytest.raises(KeyError):
        missed(row)
