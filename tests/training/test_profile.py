"""``log.profile_steps``: the profile of the chosen steps, opened by JAX's reader."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import pytest

from ropd_jax.training.profile import STEP, Profile, profile_range
from ropd_jax.types import UserError


def test_the_chosen_steps_are_in_the_profile_under_their_numbers(tmp_path):
    profile = Profile("3:5", tmp_path / "profile")
    for step in range(7):
        with profile.step(step):
            jnp.arange(4.0).sum().block_until_ready()
    profile.close()
    [path] = (tmp_path / "profile").rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(path))
    events = [e for plane in data.planes for line in plane.lines for e in line.events if e.name == STEP]
    assert sorted({int(dict(e.stats)["step_num"]) for e in events}) == [3, 4]
    assert all(e.duration_ns > 0 for e in events)


def test_off_by_default_and_a_run_that_ends_early_writes_what_it_has(tmp_path):
    with Profile("", tmp_path / "none").step(0):
        pass
    assert not (tmp_path / "none").exists()
    profile = Profile("1:", tmp_path / "some")
    with pytest.raises(ZeroDivisionError), profile.step(1):
        _ = 1 / 0
    profile.close()
    assert len(list((tmp_path / "some").rglob("*.xplane.pb"))) == 1


def test_a_profiler_that_fails_is_one_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: 1 / 0)
    profile, seen = Profile("0:3", tmp_path / "profile"), []
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            with profile.step(step):
                seen.append(step)
    assert seen == [0, 1, 2] and len(caplog.records) == 1


def test_the_texts_that_choose_steps():
    assert [list(profile_range(t)[:3]) for t in ("3:5", ":2", "7:", "")] == [[3, 4], [0, 1], [7, 8, 9], []]
    for text in ("5:3", "3", "a:b", "3:3", "-1:2", "3:5:7"):
        with pytest.raises(UserError, match="expected a:b"):
            profile_range(text)
