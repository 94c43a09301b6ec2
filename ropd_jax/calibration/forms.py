"""The forms of asking that one calibration compares: ``lists``, ``keyed``, ``keyed/1``, ``keyed/1/1``.

NAME/A/C is the form NAME with A answers and C criteria in each call; 0 or nothing is all of them.
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
    """How verdicts are asked for: the values of ``teacher.verifier.*`` of these names."""

    form: str
    answers_per_call: int = 0
    criteria_per_call: int = 0

    def __str__(self) -> str:
        cuts = f"/{self.answers_per_call}/{self.criteria_per_call}"
        return self.form + (cuts if self.criteria_per_call else cuts[:-2] if self.answers_per_call else "")


def form_of(verifier: Mapping[str, Any]) -> Form:
    """The form that a config's ``teacher.verifier`` asks in; "" is named as what its template stands for."""
    form, answers, criteria = (verifier.get(key, value) for key, value in zip(KEYS, DEFAULTS, strict=True))
    return Form(verifier_role.form_of(verifier.get("template", ""), str(form)).name, int(answers), int(criteria))


def read_forms(text: str, verifier: Mapping[str, Any]) -> list[Form]:
    """The forms of ``--forms``, with commas between; the config's own form for "".

    Raises:
        UserError: an entry that is not NAME, NAME/A or NAME/A/C, or one that the config's verifier cannot ask in.
    """
    own = form_of(verifier)
    forms = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        found = re.fullmatch(r"([a-z_]+)(?:/(\d{1,4}))?(?:/(\d{1,4}))?", entry)
        if not found:
            raise UserError(f"--forms: {entry!r:.60} is not a form; expected NAME, NAME/A or NAME/A/C, e.g. keyed/1")
        form = Form(found[1], int(found[2] or 0), int(found[3] or 0))
        if form in forms:
            raise UserError(f"--forms: {entry!r:.60} is there twice; expected each form once")
        for key in KEYS:
            if key not in verifier and getattr(form, key) != getattr(own, key):
                raise UserError(f"--forms: {entry!r:.60}, but this config has no teacher.verifier.{key}; write {own}")
        forms.append(form)
    return forms or [own]


def with_form(verifier: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """``teacher.verifier`` with the keys of the form."""
    return dict(verifier) | {key: getattr(form, key) for key in KEYS if key in verifier}
