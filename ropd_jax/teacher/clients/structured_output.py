"""How a model is asked for JSON: by schema, or by less if its server refuses that."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable

from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest
from ropd_jax.teacher.clients.errors import RequestError, TeacherError

log = logging.getLogger(__name__)

STRUCTURES = ("json_schema", "json_object", "text")  # forms that a server can be asked to enforce, the best first
_STRUCTURE_TEXT = re.compile(
    r"response_?format|json_?(schema|object|mode)|response_?mime|schema|structured|guided|grammar", re.IGNORECASE
)


class Structures:
    """The form that each model is asked for, remembered for the whole run.

    A server that refuses ``json_schema`` is asked for ``json_object``, and one that refuses that for ``text``::

        request with a schema -> 400 "response_format is not supported" -> the same request with json_object -> reply
        next request          -> json_object at once
    """

    def __init__(self):
        self._known: dict[str, str] = {}

    def of(self, request: ChatRequest) -> str:
        """The best of ``STRUCTURES`` that the model's server has not refused; ``text`` for a request without schema."""
        return "text" if request.json_schema is None else self._known.get(request.model, STRUCTURES[0])

    async def chat(self, request: ChatRequest, ask: Callable[[ChatRequest, str], Awaitable[ChatReply]]) -> ChatReply:
        """The reply to ``ask(request, structure)``, with less structure while the server refuses it."""
        while True:
            structure = self.of(request)
            try:
                return await ask(request, structure)
            except TeacherError as e:
                if not self._refused(request, structure, e):
                    raise

    def _refused(self, request: ChatRequest, structure: str, error: TeacherError) -> bool:
        """Whether the error refuses ``structure``; if it does, later requests use less structure."""
        refusal = isinstance(error, RequestError) or error.cause == "unsupported"
        if structure == STRUCTURES[-1] or not refusal or not _STRUCTURE_TEXT.search(str(error)):
            return False
        less = STRUCTURES[STRUCTURES.index(structure) + 1]
        if STRUCTURES.index(self.of(request)) < STRUCTURES.index(less):
            self._known[request.model] = less
            log.warning("teacher: %r refuses %s; requests use %s from now on", request.model, structure, less)
        return True
