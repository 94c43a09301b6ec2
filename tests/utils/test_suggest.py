"""Similar names."""

from __future__ import annotations

from ropd_jax.utils.suggest import near


def test_near_names_or_the_names_there_are():
    assert near("trian", ["train", "eval"]) == "did you mean train?"
    assert near("xyz", ["b", "a"]) == "known: a, b"
    assert near("xyz", map(str, range(20))).endswith(", ...")
