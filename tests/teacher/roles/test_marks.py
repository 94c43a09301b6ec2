"""The order in which answers are shown."""

from __future__ import annotations

from ropd_jax.teacher.roles.marks import shuffled


def test_the_order_depends_on_seed_and_key_and_is_repeatable():
    texts = ["same"] * 8
    orders = [tuple(shuffled(texts, seed=s, key=k)) for s in (0, 1) for k in ("a", "b")]
    assert len(set(orders)) == 4
    assert tuple(shuffled(texts, seed=0, key="a")) == orders[0]
