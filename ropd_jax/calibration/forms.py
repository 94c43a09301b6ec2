"""The request forms that a calibration compares: ``lists``, ``keyed``, ``keyed/1``, ``keyed/1/1``.

NAME/A/C is the form NAME with A answers and C criteria in each call; 0 or nothing means all of them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ropd_jax.teacher.roles import verifier as verifier_role
from ropd_jax.types import UserError

KEYS = ("form", "answers_per_call", "criteria_per_call")
DEFAULTS = ("lists", 0, 0)


@dataclasses.dataclass(frozen=True)
class Form:
    """How verdicts are requested: the values of these keys of ``teacher.verifier``."""

    form: str
    answers_per_call: int = 0
    criteria_per_call: int = 0

    def __str__(self) -> str:
        cuts = f"/{self.answers_per_call}/{self.criteria_per_call}"
        return self.form + (cuts if self.criteria_per_call else cuts[:-2] if self.answers_per_call else "")


def form_of(verifier: Mapping[str, Any]) -> Form:
    """The form set by a config's ``teacher.verifier``; "" becomes the form that its template implies."""
    form, answers, criteria = (verifier.get(key, value) for key, value in zip(KEYS, DEFAULTS, strict=True))
    return Form(verifier_role.form_of(verifier.get("template", ""), str(form)).name, int(answers), int(criteria))


def read_forms(text: str, verifier: Mapping[str, Any]) -> list[Form]:
    """The forms of ``--forms``, separated by commas; the config's own form if "".

    Raises:
        UserError: an entry that is not NAME, NAME/A or NAME/A/C, or a form that the config's verifier does not support.
    """
    own = form_of(verifier)
    forms = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        found = re.fullmatch(r"([a-z_]+)(?:/(\d{1,4}))?(?:/(\d{1,4}))?", entry)
        if not found:
            raise UserError(f"--forms: {entry!r:.60} is not a form; expected NAME, NAME/A or NAME/A/C, e.g. keyed/1")
        form = Form(found[1], int(found[2] or 0), int(found[3] or 0))
        if form in forms:
            raise UserError(f"--forms: {entry!r:.60} is listed twice; expected each form once")
        for key in KEYS:
            if key not in verifier and getattr(form, key) != getattr(own, key):
                raise UserError(f"--forms: {entry!r:.60}, but this config has no teacher.verifier.{key}; use {own}")
        forms.append(form)
    return forms or [own]


def with_form(verifier: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """``teacher.verifier`` with the keys of the form."""
    return dict(verifier) | {key: getattr(form, key) for key in KEYS if key in verifier}
