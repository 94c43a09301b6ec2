"""Small things that several of the teacher's tests need."""

from __future__ import annotations

import json

from ropd_jax.teacher import ChatRequest
from ropd_jax.teacher.roles import fences
from ropd_jax.teacher.roles.json_reply import token_of


def fenced(text: str, label: str = "answer") -> list[str]:
    """The texts of all ``label N`` blocks of a prompt, in order."""
    return [body for name, body in fences.parse_blocks(text) if name.split(" ")[0] == label]


def bound(request: ChatRequest, text: str) -> str:
    """The reply as a model sends it that is bound to the request's schema: an object carries the request's token."""
    token = token_of(request.json_schema)
    try:
        reply = json.loads(text)
    except ValueError:
        return text
    return json.dumps(reply | {"token": token}) if token and isinstance(reply, dict) else text
