"""The teacher: references, rubrics and verdicts from any chat model that can be reached as text. Never imports jax.

All of it runs on one event loop (``TeacherLoop``)::

    teacher = Teacher.from_config(cfg)
    references = await teacher.references(prompt)
    rubric = await teacher.induce_rubric(prompt, references, texts)
    verdicts = await teacher.verify(prompt, rubric, [*texts, *references], key=prompt.id)
    scores = verdicts.scores(rubric)  # one a text; None where unscored, never 0.0 for a failure
"""

from ropd_jax.teacher.clients.client import (
    BlockedError,
    BudgetError,
    ChatClient,
    ChatReply,
    ChatRequest,
    ConfigurationError,
    ContextError,
    MalformedError,
    RequestError,
    TeacherError,
    TransientError,
    TruncatedError,
    Usage,
)
from ropd_jax.teacher.make import make_client
from ropd_jax.teacher.roles.rubricator import parse_rubric
from ropd_jax.teacher.roles.verifier import parse_verdicts
from ropd_jax.teacher.tape.client import TapedClient, at_step
from ropd_jax.teacher.tape.store import Tape
from ropd_jax.teacher.teacher import Role, Teacher
from ropd_jax.teacher.traffic.budget import Budget, Caps
from ropd_jax.teacher.traffic.event_loop import TeacherLoop
from ropd_jax.teacher.traffic.prices import Prices
from ropd_jax.teacher.traffic.stats import TeacherStats

__all__ = [
    "BlockedError",
    "Budget",
    "BudgetError",
    "Caps",
    "ChatClient",
    "ChatReply",
    "ChatRequest",
    "ConfigurationError",
    "ContextError",
    "MalformedError",
    "Prices",
    "RequestError",
    "Role",
    "Tape",
    "TapedClient",
    "Teacher",
    "TeacherError",
    "TeacherLoop",
    "TeacherStats",
    "TransientError",
    "TruncatedError",
    "Usage",
    "at_step",
    "make_client",
    "parse_rubric",
    "parse_verdicts",
]
