"""Questions from JSONL files: one object per line, with the question, and the gold answer where there is one.

    {"id": "a1", "question": "What is 2 + 2?", "answer": "4", "solution": "2 + 2 = 4"}

The question is in ``problem``, ``question`` or ``prompt`` (a text or chat messages). Other keys become metadata.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from ropd_jax.data.golds import gold_text
from ropd_jax.data.prompts import GSM_MARK, gsm_answer
from ropd_jax.types import Message, Prompt, UserError
from ropd_jax.utils import paths
from ropd_jax.utils.files import numbered_rows

QUESTION_KEYS = ("problem", "question", "prompt")


def items(path: str, task: str) -> Iterator[Prompt]:
    """The prompts of one file, or of all files that match a pattern, in sorted order.

    Args:
        task: the name that selects the grader ("" for plain comparison).

    Raises:
        UserError: no file, or a line that is not a question; the message names file and line.
    """
    files = paths.matching(path)
    if not files:
        raise UserError(f"no file matches {path!r}; expected JSONL with one question per line")
    for name in files:
        what = f"an object with {' or '.join(QUESTION_KEYS)}"
        for number, row in numbered_rows(name, file="a JSONL file of questions", row=what):
            yield _prompt(row, task, where=f"{name}:{number}", default_id=f"{pathlib.PurePath(name).stem}-{number}")


def _prompt(row: dict[str, Any], task: str, where: str, default_id: str) -> Prompt:
    key = next((k for k in QUESTION_KEYS if row.get(k)), None)
    if key is None:
        raise UserError(f"{where}: no question; expected one of the keys {', '.join(QUESTION_KEYS)}")
    solution = row.get("solution")
    answer = row.get("answer")
    if isinstance(answer, str) and not solution and GSM_MARK in answer:  # GSM8K as published: solution #### n
        answer, solution = gsm_answer(answer), answer
    answer = gold_text(answer, where)
    if not isinstance(solution, str | None):
        raise UserError(f"{where}: solution is a {type(solution).__name__}; expected a string")
    return Prompt(
        id=str(row.get("id", default_id)),
        messages=_messages(row[key], f"{where}: {key}"),
        answer=answer,
        task=task,
        solution=solution or "",
        metadata={k: v for k, v in row.items() if k not in ("id", key, "answer", "solution")},
    )


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", value),)
    if isinstance(value, list) and value:
        try:
            messages = tuple(Message(str(m["role"]), m["content"]) for m in value)
        except (KeyError, TypeError) as error:
            raise UserError(f"{where}: a message without role and content; expected both in each") from error
        if messages[-1].role == "user" and all(isinstance(m.content, str) for m in messages):
            return messages
    raise UserError(f"{where} is {value!r:.80}; expected a string, or messages of which the last is the user's")
