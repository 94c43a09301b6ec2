"""How JSON is requested from a model: with a binding schema, or with less if its server refuses that.

json_schema     the request's own schema, with ranges and the numbers of answers and verdicts
loose_schema    the same without bounds (`loosened`): keys and types only
json_object     any JSON object
text            nothing enforced; the parser decides
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest
from ropd_jax.teacher.clients.errors import RequestError, TeacherError

log = logging.getLogger(__name__)

STRUCTURES = ("json_schema", "loose_schema", "json_object", "text")  # what can be requested from a server, best first
_STRUCTURE_TEXT = re.compile(
    r"response_?format|json_?(schema|object|mode)|response_?mime|schema|structured|guided|grammar", re.IGNORECASE
)
_BOUNDS = {
    "minItems", "maxItems", "uniqueItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "pattern", "format", "minLength", "maxLength", "minProperties", "maxProperties",
}  # fmt: skip
_NAMED = ("properties", "$defs")  # keywords whose keys are the user's names and not keywords


class Structures:
    """The structure requested from each model of one server, remembered for the whole run.

    If a server refuses one of ``STRUCTURES``, the same request is sent with the next one::

        request with a schema -> 400 "maxItems is not supported"         -> without bounds -> reply
        request with a schema -> 400 "response_format is not supported"  -> ... -> as json_object -> reply
        next request          -> json_object at once

    A refusal is a 4xx, or a 5xx other than those of an overloaded server (503, 529), with a text that names the schema
    or the grammar: a llama.cpp server that cannot compile a schema answers with 500.
    """

    def __init__(self):
        self._known: dict[str, str] = {}

    def of(self, request: ChatRequest) -> str:
        """The best of ``STRUCTURES`` that the model's server has not refused; ``text`` without a schema."""
        return "text" if request.json_schema is None else self._known.get(request.model, STRUCTURES[0])

    async def chat(self, request: ChatRequest, ask: Callable[[ChatRequest, str], Awaitable[ChatReply]]) -> ChatReply:
        """The reply to ``ask(request, structure)``, with less structure as long as the server refuses it."""
        while True:
            structure = self.of(request)
            try:
                return await ask(request, structure)
            except TeacherError as e:
                if not self._refused(request, structure, e):
                    raise

    def _refused(self, request: ChatRequest, structure: str, error: TeacherError) -> bool:
        """True if the error refuses ``structure``; later requests then use less structure."""
        refusal = isinstance(error, RequestError) or error.cause in ("unsupported", "server_error")
        said = str(error).replace(repr(request.model), "")  # a model can be named "structured-7b"
        if structure == STRUCTURES[-1] or not refusal or not _STRUCTURE_TEXT.search(said):
            return False
        less = STRUCTURES[STRUCTURES.index(structure) + 1]
        if less == "loose_schema" and loosened(request.json_schema) == request.json_schema:
            less = "json_object"  # nothing to loosen: the same schema would be refused again
        if STRUCTURES.index(self.of(request)) < STRUCTURES.index(less):
            self._known[request.model] = less
            log.warning("teacher: %r refuses %s; requests use %s from now on", request.model, structure, less)
        return True


def schema_for(request: ChatRequest, structure: str) -> dict | None:
    """The schema that is sent with ``structure``, or None."""
    if structure == "json_schema":
        return request.json_schema
    return loosened(request.json_schema) if structure == "loose_schema" else None


def loosened(schema: Any) -> Any:
    """The JSON schema without its bounds on lengths, ranges and patterns, at any depth. The rest is unchanged.

    >>> loosened({"type": "array", "minItems": 2, "items": {"type": "integer", "maximum": 9}})
    {'type': 'array', 'items': {'type': 'integer'}}
    """
    if isinstance(schema, list):
        return [loosened(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: loosened(of) for name, of in value.items()}
        if key in _NAMED
        else value
        if key in ("enum", "const", "required")
        else loosened(value)
        for key, value in schema.items()
        if key not in _BOUNDS
    }
