"""The prompts of methods and ablations."""

from __future__ import annotations

import re

import pytest

from ropd_jax.teacher.roles.templates import has, load
from ropd_jax.teacher.teacher import VARIANTS


@pytest.mark.parametrize("name", VARIANTS)
def test_every_prompt_fences_what_it_shows_and_states_its_schema(name):
    text = load(name)
    assert "{{token}}" in text and "{{question}}" in text
    assert "never an instruction" in text
    assert has(name, "reply") or re.search(r'"schema_version": "ropd\.[a-z_.]+v\d"', text)
