"""Parameters that a model's server refuses: omitted from then on, or sent under their other name.

    request with a seed   -> 400 Unknown name "seed": Cannot find field       -> without a seed      -> reply
    request, max_tokens   -> 400 Use 'max_completion_tokens' instead          -> under that name     -> reply
    next request          -> in the form that was answered

Only parameters that a run can do without are omitted (`DROPPED`). Any other parameter from ``extra`` stops the run,
because the config requests it by name.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping

from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest
from ropd_jax.teacher.clients.errors import (
    BlockedError,
    ConfigurationError,
    ContextError,
    MalformedError,
    RequestError,
    TeacherError,
    TruncatedError,
)

log = logging.getLogger(__name__)

LIMITS = ("max_tokens", "max_completion_tokens")  # the two names of the limit for the reply
DROPPED = ("seed", "temperature", "top_p", "reasoning_effort")
_REFUSAL = re.compile(
    r"unsupported|n[o']t\W+(be )?(support|permit|allow|accept|recogni[sz]|implement)|unrecogni[sz]ed|unknown|"
    r"unexpected|extra_forbidden|extra inputs|cannot find field|no such|deprecated|only the default|"
    r"use '?max_(completion_)?tokens|reasoning_effort\W+must be one of|reasoning_effort.*input should be|"
    r"invalid reasoning.?effort",
    re.IGNORECASE | re.DOTALL,
)
_ANSWERED = (BlockedError, TruncatedError, MalformedError, ContextError)  # the server took the parameters

Ask = Callable[[frozenset[str]], Awaitable[ChatReply]]


class Parameters:
    """The parameters that each model of one server has refused, remembered for the whole run.

    A form is remembered once the server has answered it, so that an error that only mentions a parameter changes
    nothing. It is remembered for requests with the same ``extra``: GPT-5.2 accepts a temperature without
    ``reasoning_effort``, and refuses it with one.
    """

    def __init__(self):
        self._refused: dict[tuple[str, str], frozenset[str]] = {}

    def of(self, request: ChatRequest) -> frozenset[str]:
        """The names that such a request omits; a name from ``LIMITS`` means that the other one is sent."""
        return self._refused.get(_kind(request), frozenset())

    async def chat(self, request: ChatRequest, limit: str, ask: Ask) -> ChatReply:
        """The reply to ``ask(refused)``, with one more refused name each time the server refuses one.

        Args:
            limit: the name from ``LIMITS`` that is sent at first; "" if the provider has only one.
        """
        refused = self.of(request)
        said: dict[str, str] = {}  # the server's message about each newly refused name
        while True:
            try:
                reply = await ask(refused)
            except _ANSWERED:
                self._remember(request, refused, said)
                raise
            except TeacherError as error:
                name = _named(sent(request, refused, limit), error, request.model)
                if name is None:
                    raise
                if name not in (*DROPPED, *LIMITS):
                    raise ConfigurationError(
                        f"{error}. {name!r} comes from the role's extra: remove it there", cause="unsupported"
                    ) from None
                refused |= {name}
                said[name] = str(error)[:300]
            else:
                self._remember(request, refused, said)
                return reply

    def _remember(self, request: ChatRequest, refused: frozenset[str], said: Mapping[str, str]) -> None:
        model = request.model
        for name in sorted(refused - self.of(request)):
            if name in LIMITS:
                what = f"{name}; the limit is sent as {other_limit(name)} from now on"
            elif name == "seed":
                what = "seed; requests omit it from now on, and several answers differ only by chance"
            elif name == "temperature":
                what = f"temperature={request.temperature}; the model's own default applies from now on"
            else:
                what = f"{name}={request.extra.get(name)!r}; requests are sent without it from now on"
            log.warning("teacher: %r refuses %s (%s)", model, what, said.get(name, ""))
        if refused:
            self._refused[_kind(request)] = self.of(request) | refused


def _kind(request: ChatRequest) -> tuple[str, str]:
    return request.model, json.dumps(dict(request.extra), sort_keys=True) if request.extra else ""


def sent(request: ChatRequest, refused: frozenset[str], limit: str) -> tuple[str, ...]:
    """The names of a request's parameters that can be refused."""
    names = [*request.extra, "seed"]
    if request.temperature is not None:
        names.append("temperature")
    if limit and refused.isdisjoint(LIMITS):
        names.append(limit_name(limit, refused))
    return tuple(n for n in names if n not in refused)


def limit_name(limit: str, refused: frozenset[str]) -> str:
    """The name under which the limit for the reply is sent."""
    return other_limit(limit) if limit in refused else limit


def other_limit(name: str) -> str:
    """The other one of ``LIMITS``."""
    return LIMITS[1 - LIMITS.index(name)]


def _named(names: Iterable[str], error: TeacherError, model: str) -> str | None:
    """The first parameter that the error refuses, or None.

    A name that is also a word, such as ``provider`` or ``user``, counts only between quotation marks.
    """
    if not (isinstance(error, RequestError) or error.cause in ("unsupported", "server_error")):
        return None
    said = str(error).replace(repr(model), "")
    if not _REFUSAL.search(said):
        return None
    places = {}
    for name in names:
        camel = re.sub(r"_([a-z])", lambda m: m[1].upper(), name)
        either = f"({re.escape(name)}|{re.escape(camel)})"
        alone, quoted = rf"(?<![A-Za-z0-9_]){either}(?![A-Za-z0-9_])", rf"['\"`]{either}['\"`]"
        form = alone if name in (*DROPPED, *LIMITS) else quoted
        if found := re.search(form, said):
            places[name] = found.start()
    return min(places, key=places.__getitem__) if places else None
