"""The ways in which a call to a teacher fails.

A failure is a type with a short ``cause``, never a number. The caller marks the affected rollouts as *unscored* and
counts them by cause::

    TeacherError
      ConfigurationError   stops the run: wrong key, model or address
        BudgetError        stops the run with a checkpoint
        OutageError        stops the run with a checkpoint
      TransientError       retried
      RequestError         the server refused only this request
      MalformedError       followed by one re-ask that describes the problem
      TruncatedError       repeated once with twice the limit
      BlockedError         never retried
      ContextError         sent again in parts
"""

from __future__ import annotations

from ropd_jax.teacher.clients.chat import Usage
from ropd_jax.types import UserError


class TeacherError(Exception):
    """A call without a usable result.

    Attributes:
        cause: short snake_case, for counters and for ``Judgement.causes``.
        usage: tokens that the provider bills although the reply is unusable (truncated, refused); None if unknown.
    """

    default_cause = "teacher"

    def __init__(self, message: str, *, cause: str | None = None, usage: Usage | None = None):
        super().__init__(message)
        self.cause = cause or self.default_cause
        self.usage = usage


class ConfigurationError(TeacherError, UserError):
    """Key missing or refused, unknown model, wrong address, unsupported parameter: every later call would fail too."""

    default_cause = "configuration"


class BudgetError(ConfigurationError):
    """A cap of ``teacher.budget`` is reached: the run saves a checkpoint and ends."""

    default_cause = "budget"


class OutageError(ConfigurationError):
    """A server was unreachable for ``teacher.outage_wait_s``: the run saves a checkpoint and ends."""

    default_cause = "outage"


class TransientError(TeacherError):
    """408, 429, 5xx, connection, timeout: retried. ``retry_after`` is the wait in seconds that the server requests."""

    default_cause = "transient"

    def __init__(
        self, message: str, *, cause: str | None = None, retry_after: float | None = None, usage: Usage | None = None
    ):
        super().__init__(message, cause=cause, usage=usage)
        self.retry_after = retry_after


class RequestError(TeacherError):
    """The server refused this one request (400, 422) for an unknown reason; others can still succeed.

    Attributes:
        room: the largest ``max_output_tokens`` that the model allows, if the server reported it when refusing a larger
            one.
    """

    default_cause = "bad_request"

    def __init__(self, message: str, *, cause: str | None = None, usage: Usage | None = None, room: int | None = None):
        super().__init__(message, cause=cause, usage=usage)
        self.room = room


class MalformedError(TeacherError):
    """The reply does not have the requested form. The message describes the problem and is sent in the one re-ask."""

    default_cause = "malformed"


class TruncatedError(TeacherError):
    """The reply ended at the token limit (``finish_reason`` length)."""

    default_cause = "truncated"


class BlockedError(TeacherError):
    """A safety filter or a refusal; retrying would not help."""

    default_cause = "blocked"


class ContextError(TeacherError):
    """Prompt and output together exceed the model's context.

    Attributes:
        room: the ``max_output_tokens`` with which the prompt would have fitted; None if unknown or if the prompt alone
            is too long.
    """

    default_cause = "context"

    def __init__(self, message: str, *, cause: str | None = None, usage: Usage | None = None, room: int | None = None):
        super().__init__(message, cause=cause, usage=usage)
        self.room = room
