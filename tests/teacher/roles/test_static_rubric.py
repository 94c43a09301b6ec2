"""RaR's static rubric: weights by category, and refusals."""

from __future__ import annotations

import json

import pytest

from ropd_jax.teacher import MalformedError
from ropd_jax.teacher.roles import static_rubric
from ropd_jax.types import Criterion, Rubric


def test_static_rubric_refuses_what_it_cannot_weigh():
    rows = [{"criterion_id": f"c{i}", "category": "essential", "criterion": f"k{i}"} for i in range(1, 8)]
    text = {"schema_version": "ropd.static_rubric.v1", "rubrics": rows}
    assert static_rubric.parse(json.dumps(text)).weights == (10,) * 7
    with pytest.raises(MalformedError, match="6 criteria; expected 7 to 20"):
        static_rubric.parse(json.dumps(text | {"rubrics": rows[:6]}))
    with pytest.raises(MalformedError, match=r"'Nice'.*Essential, Important, Optional, Pitfall"):
        static_rubric.parse(json.dumps(text | {"rubrics": [*rows[:6], rows[6] | {"category": "nice"}]}))


def test_rubric_type_is_unchanged_by_categories():
    rubric = Rubric((Criterion("c1", "k", 10, "Essential"), Criterion("c2", "k2", 3, "Optional")))
    assert rubric.score((True, False)) == pytest.approx(1.0 / 1.3)
