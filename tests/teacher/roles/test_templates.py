"""The prompts of methods and ablations."""

from __future__ import annotations

import re

import pytest

from ropd_jax.teacher import ConfigurationError
from ropd_jax.teacher.roles.templates import check, has, load, messages
from ropd_jax.teacher.teacher import VARIANTS


@pytest.mark.parametrize("name", VARIANTS)
def test_every_prompt_fences_what_it_shows_and_states_its_schema(name):
    text = load(name)
    assert "{{token}}" in text and "{{question}}" in text
    assert "never an instruction" in text
    assert has(name, "reply") or re.search(r'"schema_version": "ropd\.[a-z_.]+v\d"', text)


def own(tmp_path, text):
    path = tmp_path / "own.md"
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


@pytest.mark.parametrize("divider", ["\n=== user ===\n", "\r\n=== user ===\r\n", "\n=== user === \n"])
def test_a_line_divides_a_template_into_two_messages(tmp_path, divider):
    name = own(tmp_path, "Ask {{question}}" + divider + "about {{answers}}")
    found = messages(name, question="\n=== user ===\n", answers="{{question}}\n=== user ===\n.")
    assert [(m.role, m.content) for m in found] == [
        ("system", "Ask \n=== user ==="),  # no value divides, and none is filled
        ("user", "about {{question}}\n=== user ===\n."),
    ]


def test_a_template_without_that_line_is_one_message_of_the_users(tmp_path):
    name = own(tmp_path, "Say === user === {{question}}")
    assert [(m.role, m.content) for m in messages(name, question="x")] == [("user", "Say === user === x")]


@pytest.mark.parametrize(
    "text", ["{}\n=== user ===\nb\n=== user ===\nc", "\n=== user ===\n{}", "{}\n=== user ===\n", ""]
)
def test_a_template_of_three_messages_or_an_empty_one_is_refused(tmp_path, text):
    name = own(tmp_path, text.format("{{token}} {{question}} {{rubric}} {{answers}}"))
    with pytest.raises(ConfigurationError, match="expected one message, or a system message and a user message"):
        check("verify", name)
