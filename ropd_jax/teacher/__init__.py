"""The teacher: references, rubrics and verdicts from any chat model that can be reached as text. Never imports jax.

All of it runs on one event loop (``TeacherLoop``)::

    teacher = Teacher.from_config(cfg)
    references = await teacher.references(prompt)
    rubric = await teacher.induce_rubric(prompt, references, texts)
    verdicts = await teacher.verify(prompt, rubric, [*texts, *references], key=prompt.id)
    scores = verdicts.scores(rubric)  # one a text; None where unscored, never 0.0 for a failure
"""

from ropd_jax.teacher.budget import Budget, Caps
from ropd_jax.teacher.client import (
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
from ropd_jax.teacher.grade import Role, Teacher
from ropd_jax.teacher.loop import TeacherLoop
from ropd_jax.teacher.make import make_client
from ropd_jax.teacher.prices import Prices
from ropd_jax.teacher.rubricator import parse_rubric
from ropd_jax.teacher.stats import TeacherStats
from ropd_jax.teacher.tape import Tape
from ropd_jax.teacher.taped import TapedClient, at_step
from ropd_jax.teacher.verifier import parse_verdicts

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
