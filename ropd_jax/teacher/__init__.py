"""The teacher: references, rubrics, verdicts and scores from any text chat model. Never imports jax.

    teacher = build_teacher(cfg.teacher)
    references = await teacher.references(prompt)
    rubric = await teacher.induce_rubric(prompt, references, texts)
    verdicts = await teacher.verify(prompt, rubric, [*texts, *references], key=prompt.id)
    scores = verdicts.scores(rubric)  # one per text; None if unscored, never 0.0 for a failure

Everything runs on one event loop (``TeacherLoop``). The files::

    teacher.py, asking.py   the four questions, and how each is sent
    judge_group.py          one group, from answers to rewards
    build.py                from ``cfg.teacher`` to a teacher
    check.py                one cheap call to each model before a run
    roles/                  prompts and the parsing of replies
    clients/                one file per provider, and the errors
    traffic/                retries, admission, budget, prices, counters
    tape/                   recording and replay of every answer, batch jobs, references collected ahead of time
    scripted/               a teacher without a model, for tests and the quickstart
    labels.py               labelled verdicts, for measuring a verifier (`ropd_jax.calibration`)
    calibration.py          the part of such a measurement that a run reads
"""

from ropd_jax.teacher.build import build_teacher, make_client
from ropd_jax.teacher.clients.chat import ChatClient, ChatReply, ChatRequest, Usage
from ropd_jax.teacher.clients.errors import (
    BlockedError,
    BudgetError,
    ConfigurationError,
    ContextError,
    MalformedError,
    OutageError,
    RequestError,
    TeacherError,
    TransientError,
    TruncatedError,
)
from ropd_jax.teacher.roles.role import Role
from ropd_jax.teacher.roles.rubricator import parse_rubric
from ropd_jax.teacher.roles.verifier import parse_verdicts
from ropd_jax.teacher.step import at_step
from ropd_jax.teacher.tape.client import TapedClient
from ropd_jax.teacher.tape.store import Tape
from ropd_jax.teacher.teacher import Teacher
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
    "OutageError",
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
    "build_teacher",
    "make_client",
    "parse_rubric",
    "parse_verdicts",
]
