"""The settings of one role."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Role:
    """The settings of one role's requests.

    Attributes:
        model: the provider's name of the model.
        temperature: None means that none is sent and the provider's default applies.
        max_output_tokens: limit for the reply, including thinking.
        template: a prompt's name in ``prompts/`` or the path of a .md file; "" means the role's default.
        extra: additional parameters of the requests, JSON values; see `clients.options`.
    """

    model: str = "scripted"
    temperature: float | None = None
    max_output_tokens: int = 4096
    template: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def wording(self) -> dict[str, Any]:
        """Arguments for the functions that build a role's request. ``extra`` is added to the returned request."""
        return {
            "model": self.model,
            "temperature": self.temperature,
            "max_output_tokens": self.max_output_tokens,
            "template": self.template,
        }
