"""At most once every few seconds."""

from __future__ import annotations

import types

from ropd_jax.utils import every
from ropd_jax.utils.every import Every


def test_true_at_most_once_in_its_seconds(monkeypatch):
    clock = iter([0.0, 1.0, 5.0, 5.1, 10.0, 10.2])
    monkeypatch.setattr(every, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    progress = Every(5.0)
    assert [progress() for _ in range(5)] == [False, False, True, False, True]
