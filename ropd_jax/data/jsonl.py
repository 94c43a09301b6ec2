"""Questions from JSONL files: one object per line, with the question, and the gold answer if there is one.

    {"id": "a1", "question": "What is 2 + 2?", "answer": "4", "solution": "2 + 2 = 4"}

Rows of GSM8K, IFEval, verl and TRL are read as they are published. docs/data.md shows every form with an example. Other
keys become metadata. A file whose name ends in ``.parquet`` has the same rows.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ropd_jax.data import named, parquet
from ropd_jax.data.final_answer import last_box
from ropd_jax.data.golds import CHOICE, EXPRESSION, NUMBER, gold_text, kind
from ropd_jax.data.grader import check_scorer
from ropd_jax.data.prompts import GSM_MARK, gsm_answer
from ropd_jax.data.rubrics import own_rubric
from ropd_jax.types import Message, Prompt, UserError
from ropd_jax.utils import paths
from ropd_jax.utils.files import numbered_rows

QUESTION_KEYS = ("problem", "question", "prompt", "messages")
GOLD_KEYS = ("answer", "ground_truth", "reference_answer")
SOLUTION_KEYS = ("solution", "completion", "chosen")


def items(path: str, task: str) -> Iterator[Prompt]:
    """The prompts of one file, or of all files that match a pattern, in sorted order.

    Args:
        task: the name of the grader ("" for the kind of each gold answer), see `ropd_jax.data.named`.

    Raises:
        UserError: no such grader, no file, or a line that is not a question, with file and line.
    """
    named.check_name(task)
    files, checked = paths.matching(path), False
    if not files:
        raise UserError(f"no file matches {path!r}; expected JSONL with one question per line")
    for name in files:
        what = f"an object with {' or '.join(QUESTION_KEYS)}"
        rows = numbered_rows(name, file="a JSONL file of questions", row=what)
        if name.endswith(parquet.ENDING):
            rows = parquet.numbered_rows(name)
        for number, row in rows:
            where = f"{name}:{number}"
            prompt = _prompt(row, task, where=where, default_id=f"{pathlib.PurePath(name).stem}-{number}")
            if task.startswith(named.GYM) and not row.get("metadata") and not checked:
                check_scorer(prompt, where)
                checked = True
            yield prompt


def _prompt(row: dict[str, Any], task: str, where: str, default_id: str) -> Prompt:
    key = next((k for k in QUESTION_KEYS if row.get(k)), None)
    if key is None:
        raise UserError(f"{where}: no question; expected one of the keys {', '.join(QUESTION_KEYS)}")
    messages, last = _chat(row[key], f"{where}: {key}")
    answer, solution = _gold(row, last, where)
    used = ("id", key, *GOLD_KEYS, *SOLUTION_KEYS)
    metadata = {k: v for k, v in row.items() if k not in used}
    if row.get("rubric") is not None:
        metadata["criteria"] = own_rubric(metadata.pop("rubric"), where)
    if task == named.IFEVAL:
        metadata["instructions"] = named.instructions_of(row, where)
        answer = None
    elif task.startswith(named.GYM):
        task = task.removeprefix(named.GYM)
        entry = {"question": messages[-1].content, "answer": answer, "metadata": row.get("metadata") or {}}
        metadata |= {"reasoning_gym": entry}
    elif task == named.CHOICE and (answer is None or kind(answer) != CHOICE):
        raise UserError(f"{where}: answer is {answer!r:.60}; data.task='choice' expects a letter, A to J")
    return Prompt(
        id=_id(row, default_id), messages=messages, answer=answer, task=task, solution=solution, metadata=metadata
    )


def _id(row: Mapping[str, Any], default: str) -> str:
    """The row's own id; for verl ``extra_info.index``, which restarts at 0 in each data source and split."""
    if row.get("id") is not None:
        return str(row["id"])
    extra = _section(row, "extra_info")
    index = extra.get("index")
    if index is None:
        return default
    parts = (row.get("data_source"), extra.get("split"), index)
    return "-".join(str(p) for p in parts if p is not None)


# --------------------------------------------------------------------------------------------------- gold answers


def _gold(row: Mapping[str, Any], last: str, where: str) -> tuple[str | None, str]:
    """(gold answer, worked solution) of a row.

    The gold answer is in ``answer``, ``ground_truth``, ``reference_answer`` or ``reward_model.ground_truth``. Otherwise
    it is the end of the solution: ``#### 4``, a box, or all of a solution that is only an answer (TRL's
    ``solution``).

    Args:
        last: the assistant's last message at the end of the chat; "" if there is none.
    """
    solution = next((_text(row[k], f"{where}: {k}") for k in SOLUTION_KEYS if row.get(k) is not None), "") or last
    answer = next((row[k] for k in GOLD_KEYS if row.get(k) is not None), None)
    if answer is None:
        answer = _verl(row, where)
    raw = _section(row, "extra_info").get("answer")  # in verl's GSM8K: the solution as published
    if not solution and isinstance(raw, str) and GSM_MARK in raw:
        solution = raw
    if isinstance(answer, str) and GSM_MARK in answer:  # GSM8K as published: solution #### n
        solution = solution or answer
        answer = gsm_answer(answer)
    if answer is None and solution and "answer" not in row:  # "answer": null means that there is none
        answer = _stated(solution)
    return gold_text(answer, where), solution


def _verl(row: Mapping[str, Any], where: str) -> Any:
    """``reward_model.ground_truth``; for a list with one item, the item."""
    truth = _section(row, "reward_model").get("ground_truth")
    if isinstance(truth, list) and len(truth) == 1:
        truth = truth[0]
    if isinstance(truth, list | dict):
        raise UserError(
            f"{where}: reward_model.ground_truth is {truth!r:.60}; expected one text or number, or null for none"
        )
    return truth


def _stated(solution: str) -> str | None:
    """The gold answer that a solution states unambiguously; None if there is none."""
    if GSM_MARK in solution:
        return gsm_answer(solution) or None
    if box := last_box(solution)[1]:
        return box
    return solution if "\n" not in solution.strip() and kind(solution) in (NUMBER, CHOICE, EXPRESSION) else None


def _section(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = row.get(key)
    return value if isinstance(value, dict) else {}


# -------------------------------------------------------------------------------------------------------- messages


def _text(value: Any, where: str) -> str:
    """A solution: a text, or the assistant's message at the end of a chat (TRL's ``completion`` and ``chosen``)."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and isinstance(value[-1], dict) and isinstance(value[-1].get("content"), str):
        return value[-1]["content"]
    raise UserError(f"{where} is a {type(value).__name__}; expected a string")


def _chat(value: Any, where: str) -> tuple[tuple[Message, ...], str]:
    """(the chat up to the user's last message, the assistant's reply to it; "" if there is none)."""
    if isinstance(value, str):
        return (Message("user", value),), ""
    if isinstance(value, list) and value:
        try:
            messages = tuple(Message(str(m["role"]), m["content"]) for m in value)
        except (KeyError, TypeError) as error:
            raise UserError(f"{where}: a message without role and content; expected both in each") from error
        texts = all(isinstance(m.content, str) for m in messages)
        if texts and len(messages) > 1 and messages[-1].role == "assistant" and messages[-2].role == "user":
            return messages[:-1], messages[-1].content
        if texts and messages[-1].role == "user":
            return messages, ""
    raise UserError(f"{where} is {value!r:.80}; expected a string, or messages of which the last is the user's")
