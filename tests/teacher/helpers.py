"""Small helpers shared by the teacher's tests."""

from __future__ import annotations

import json

from ropd_jax.teacher import ChatRequest
from ropd_jax.teacher.roles import fences
from ropd_jax.teacher.roles.json_reply import token_of


def fenced(text: str, label: str = "answer") -> list[str]:
    """The texts of all ``label N`` blocks of a prompt, in order."""
    return [body for name, body in fences.parse_blocks(text) if name.split(" ")[0] == label]


def content_of(request: ChatRequest) -> str:
    """Everything that a request shows: the system message, if there is one, and the user's."""
    return "\n\n".join(m.content for m in request.messages if m.role != "assistant")


def keyed(*rows: tuple[int, str]) -> str:
    """A verifier's reply in the default form, by (number of the answer, its verdicts as 0 and 1)."""
    answers = {str(n): {f"c{k}": bool(int(v)) for k, v in enumerate(row, 1)} for n, row in rows}
    return json.dumps({"schema_version": "ropd.verdicts.v1", "answers": answers})


def bound(request: ChatRequest, text: str) -> str:
    """The reply of a model that follows the request's schema: an object with the request's token."""
    token = token_of(request.json_schema)
    try:
        reply = json.loads(text)
    except ValueError:
        return text
    return json.dumps(reply | {"token": token}) if token and isinstance(reply, dict) else text
