"""Sends a request in a form that its model's server accepts. The form is found once and remembered.

What a server can refuse, and where it is recorded::

    a schema, its bounds, JSON at all     `structured_output.Structures`
    a system message                      `system_role.SystemRole`
    a parameter                           `parameters.Parameters`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest
from ropd_jax.teacher.clients.endpoint import redact
from ropd_jax.teacher.clients.errors import TeacherError
from ropd_jax.teacher.clients.parameters import Parameters
from ropd_jax.teacher.clients.structured_output import Structures
from ropd_jax.teacher.clients.system_role import SystemRole

Send = Callable[[ChatRequest, str, frozenset[str]], Awaitable[ChatReply]]  # (request, structure, refused parameters)


class Fitting:
    """What the models of one server refuse.

    Args:
        limit: the first of ``parameters.LIMITS`` to try; "" if the provider has only one name.
        secrets: values of headers, which must not appear in an error or a reply.
    """

    def __init__(self, *, limit: str = "", secrets: tuple[str, ...] = ()):
        self.structures, self.system, self.parameters = Structures(), SystemRole(), Parameters()
        self.limit = limit
        self._secrets = tuple(s for s in secrets if len(s) >= 8)

    async def chat(self, request: ChatRequest, send: Send) -> ChatReply:
        """The reply to ``send``, which is repeated in another form each time the server refuses one."""

        async def with_structure(asked: ChatRequest, structure: str) -> ChatReply:
            async def with_roles(fitted: ChatRequest) -> ChatReply:
                return await self.parameters.chat(fitted, self.limit, lambda no: send(fitted, structure, no))

            return await self.system.chat(asked, with_roles)

        try:
            reply = await self.structures.chat(request, with_structure)
        except TeacherError as error:
            if self._secrets:
                error.args = tuple(self._clean(a) if isinstance(a, str) else a for a in error.args)
            raise
        return dataclasses.replace(reply, text=self._clean(reply.text)) if self._secrets else reply

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = redact(text, secret)
        return text
