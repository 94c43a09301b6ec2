"""The request forms that a calibration compares."""

from __future__ import annotations

import pytest

from ropd_jax.calibration.forms import Form, form_of, read_forms, with_form
from ropd_jax.types import UserError

NEW = {"model": "m", "form": "lists", "answers_per_call": 0, "criteria_per_call": 0}


def test_forms_are_read_and_named():
    found = read_forms("lists, keyed/1,keyed/1/1,by_criterion/0/4", NEW)
    assert found == [Form("lists"), Form("keyed", 1), Form("keyed", 1, 1), Form("by_criterion", 0, 4)]
    assert [str(f) for f in found] == ["lists", "keyed/1", "keyed/1/1", "by_criterion/0/4"]
    assert read_forms("", NEW | {"form": "keyed", "answers_per_call": 2}) == [Form("keyed", 2)]
    assert with_form(NEW, Form("keyed", 1)) == NEW | {"form": "keyed", "answers_per_call": 1}


@pytest.mark.parametrize("text", ["keyed/x", "Keyed", "keyed/1/2/3", "keyed/-1", "../x", "keyed/99999"])
def test_what_is_no_form_is_refused(text):
    with pytest.raises(UserError, match="is not a form; expected NAME, NAME/A or NAME/A/C"):
        read_forms(text, NEW)


def test_a_form_is_there_once():
    with pytest.raises(UserError, match="is listed twice"):
        read_forms("keyed,keyed/0", NEW)


def test_a_config_without_the_key_has_its_own_form_only():
    old = {"model": "m"}
    assert form_of(old) == Form("lists") and read_forms("lists", old) == [Form("lists")]
    assert with_form(old, Form("lists")) == old
    with pytest.raises(UserError, match=r"has no teacher\.verifier\.answers_per_call; use lists"):
        read_forms("lists/1", old)
