"""How one role is asked."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Role:
    """The settings of one role's requests.

    Attributes:
        model: the provider's name of the model.
        temperature: None sends none, so that the provider's default applies.
        max_output_tokens: limit of the reply, thinking included.
        template: a prompt's name in ``prompts/`` or the path of a .md file; "" is the role's own.
    """

    model: str = "scripted"
    temperature: float | None = None
    max_output_tokens: int = 4096
    template: str = ""
