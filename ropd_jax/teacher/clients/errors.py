"""The ways in which a call to a teacher fails.

A failure is a type with a short ``cause``, never a number: the caller marks the rollouts concerned as *unscored* and
counts them by cause::

    TeacherError
      ConfigurationError   stops the run: wrong key, model or address
        BudgetError        stops the run with a checkpoint
        OutageError        stops the run with a checkpoint
      TransientError       worth another try
      RequestError         the server refused this request only
      MalformedError       answered by one re-ask that says what was wrong
      TruncatedError       repeated once with twice the limit
      BlockedError         never repeated
      ContextError         asked again in parts
"""

from __future__ import annotations

from ropd_jax.teacher.clients.chat import Usage
from ropd_jax.types import UserError


class TeacherError(Exception):
    """A call that gave nothing usable.

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
    """A server could not be reached for ``teacher.outage_wait_s``: the run saves a checkpoint and ends."""

    default_cause = "outage"


class TransientError(TeacherError):
    """408, 429, 5xx, connection, timeout: worth another try. ``retry_after`` is the server's request in seconds."""

    default_cause = "transient"

    def __init__(
        self, message: str, *, cause: str | None = None, retry_after: float | None = None, usage: Usage | None = None
    ):
        super().__init__(message, cause=cause, usage=usage)
        self.retry_after = retry_after


class RequestError(TeacherError):
    """The server refused this one request (400, 422) for an unknown reason; others can still pass.

    Attributes:
        room: the largest ``max_output_tokens`` that the model allows, if the server refused a larger one and said so.
    """

    default_cause = "bad_request"

    def __init__(self, message: str, *, cause: str | None = None, usage: Usage | None = None, room: int | None = None):
        super().__init__(message, cause=cause, usage=usage)
        self.room = room


class MalformedError(TeacherError):
    """The reply is not of the requested form; the message describes the problem and is sent back in the one re-ask."""

    default_cause = "malformed"


class TruncatedError(TeacherError):
    """The reply ended at the token limit (``finish_reason`` length)."""

    default_cause = "truncated"


class BlockedError(TeacherError):
    """A safety filter or a refusal; a repetition would not help."""

    default_cause = "blocked"


class ContextError(TeacherError):
    """Prompt and output together are longer than the model's context.

    Attributes:
        room: the ``max_output_tokens`` with which the prompt would have fitted; None if unknown, or if none would.
    """

    default_cause = "context"

    def __init__(self, message: str, *, cause: str | None = None, usage: Usage | None = None, room: int | None = None):
        super().__init__(message, cause=cause, usage=usage)
        self.room = room
