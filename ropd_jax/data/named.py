"""Graders by name: the meaning of ``data.task`` for a JSONL file.

    ""                    by the kind of each gold answer (`ropd_jax.data.golds`)
    exact                 the same, but a free-text answer must match exactly
    math                  the final answer, compared by math-verify
    choice                the stated letter; every gold answer is a letter, A to J
    ifeval                the instructions of IFEval in the row; all must be followed
    judge                 no comparison: the held-out judge sees the gold answer
    reasoning_gym:TASK    the scorer of that task

The name of a published set (``gsm8k``), or of a task of reasoning-gym whose answer is a number (``chain_sum``, the
default of the config), is a label: it grades as "" does.

Two graders run in a child process (``utils.sandbox``): `data.math_worker` and `data.ifeval_worker`.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ropd_jax.data.published import PUBLISHED
from ropd_jax.types import Prompt, UserError
from ropd_jax.utils.sandbox import Service
from ropd_jax.utils.suggest import near

log = logging.getLogger(__name__)

EXACT, MATH, CHOICE, IFEVAL, JUDGE, GYM = "exact", "math", "choice", "ifeval", "judge", "reasoning_gym:"
NAMES = (EXACT, MATH, CHOICE, IFEVAL, JUDGE)
NEEDS = {MATH: ("math_verify",), IFEVAL: ("langdetect", "punkt", "nltk")}

# reasoning-gym tasks whose gold answer is one number: compared exactly, without the task's scorer
NUMBER_TASKS = frozenset(
    ("basic_arithmetic", "chain_sum", "count_bits", "count_primes", "gcd", "gsm_symbolic", "lcm", "leg_counting")
    + ("letter_counting", "products", "simple_equations")
)

_math_child = Service("ropd_jax.data.math_worker", cpu_s=5.0)
_ifeval_child = Service("ropd_jax.data.ifeval_worker", cpu_s=20.0)


def check_name(task: str) -> None:
    """Rejects a name that does not belong to a grader.

    Raises:
        UserError: unknown name, with similar names; or a package that the grader needs is not installed.
    """
    if task.startswith(GYM):
        from reasoning_gym.factory import DATASETS  # importing reasoning_gym takes 1 to 4 seconds

        name = task.removeprefix(GYM)
        if name not in DATASETS:
            raise UserError(f"data.task={task!r}: reasoning-gym has no task {name!r}; {near(name, DATASETS)}")
        return
    if task and task not in {*NAMES, *PUBLISHED, *NUMBER_TASKS}:
        known = (*NAMES, *NUMBER_TASKS, f"{GYM}TASK")
        raise UserError(
            f"data.task={task!r} is not a grader; {near(task, known)}; expected {', '.join(NAMES)}, {GYM}TASK, or '' "
            "for the kind of each gold answer"
        )
    if missing := [name for name in NEEDS.get(task, ()) if importlib.util.find_spec(name) is None]:
        raise UserError(f"data.task={task!r} needs {', '.join(missing)}: pip install 'ropd_jax[eval]'")


def instructions_of(row: Mapping[str, Any], where: str) -> list[tuple[str, dict[str, Any]]]:
    """The (id, arguments) of a row of IFEval; null arguments are ignored.

    Raises:
        UserError: no instructions, or a different number of arguments.
    """
    ids, kwargs = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(ids, list) or not isinstance(kwargs, list) or not ids or len(ids) != len(kwargs):
        raise UserError(
            f"{where} has no instructions; data.task='ifeval' expects instruction_id_list and as many kwargs per row"
        )
    return [(str(i), {k: v for k, v in (kw or {}).items() if v is not None}) for i, kw in zip(ids, kwargs, strict=True)]


def follows(prompt: Prompt, text: str) -> bool | None:
    """Whether an answer follows all instructions of its prompt, strictly; None if the child cannot decide.

    Raises:
        UserError: an instruction is not one of IFEval's.
    """
    instructions: Sequence[Any] = prompt.metadata["instructions"]
    reply = _ifeval_child.ask({"instructions": instructions, "response": text})
    if reply.get("error") == "instruction":
        raise UserError(f"prompt {prompt.id}: {reply.get('message')}")
    strict = reply.get("strict")
    return all(strict) if isinstance(strict, list) else None


def equal(gold: str, found: str) -> bool | None:
    """Whether math-verify finds two mathematical texts equal; None if it cannot decide."""
    right = (reply := _math_child.ask({"gold": gold, "answer": found})).get("right")
    if not isinstance(right, bool):
        log.debug("an answer is ungraded: %s", reply.get("error"))
        return None
    return right
