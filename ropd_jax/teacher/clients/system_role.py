"""Models without a system role: some chat templates refuse it, so its text is put before the user's.

system: Judge ...      user: The answers ...      ->      user: Judge ... (blank line) The answers ...
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Awaitable, Callable

from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest
from ropd_jax.teacher.clients.errors import RequestError, TeacherError
from ropd_jax.types import Message

log = logging.getLogger(__name__)

# Gemma 2 and early Mistral templates behind vLLM and llama.cpp; Gemma behind the Gemini API.
_REFUSAL = re.compile(
    r"system (role|message|prompt|instruction)s?\b.{0,40}\bnot\b|roles must alternate|"
    r"developer instruction is not enabled|only user and assistant roles",
    re.IGNORECASE | re.DOTALL,
)


class SystemRole:
    """The models of one server that have refused a system message, remembered for the whole run."""

    def __init__(self):
        self._without: set[str] = set()

    def fitted(self, request: ChatRequest) -> ChatRequest:
        """The request in the form that its model accepts."""
        first, *others = request.messages
        if request.model not in self._without or [m.role for m in request.messages[:2]] != ["system", "user"]:
            return request
        joined = Message("user", f"{first.content}\n\n{others[0].content}")
        return dataclasses.replace(request, messages=(joined, *others[1:]))

    async def chat(self, request: ChatRequest, ask: Callable[[ChatRequest], Awaitable[ChatReply]]) -> ChatReply:
        """The reply to ``ask(request)``; if the server refuses the system message, to the request without it."""
        sent = self.fitted(request)
        try:
            return await ask(sent)
        except TeacherError as error:
            if sent is not request or not self._refused(request, error):
                raise
        return await ask(self.fitted(request))

    def _refused(self, request: ChatRequest, error: TeacherError) -> bool:
        """True if the error refuses the request's system message; later requests then have none."""
        refusal = isinstance(error, RequestError) or error.cause == "server_error"
        if [m.role for m in request.messages[:2]] != ["system", "user"] or not refusal:
            return False
        if not _REFUSAL.search(str(error).replace(repr(request.model), "")):
            return False
        if request.model not in self._without:
            self._without.add(request.model)
            log.warning("teacher: %r refuses a system message; its text goes before the user's", request.model)
        return True
