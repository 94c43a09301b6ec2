"""The tokens of a group's answers with their log-probabilities, for a browser."""

from __future__ import annotations

import pathlib
from typing import Any

from ropd_jax.workdir.token_logprobs import read_token_logprobs

DIGITS = 4  # after the point; float16 stores no more of a log-probability


def tokens_of(groups: pathlib.Path, place: int, answers: int) -> dict[str, Any]:
    """``answers``: for each answer ``logp``, and ``bytes`` and ``change`` if stored, or None; ``note``: why there are
    none.

    Args:
        groups: the file of the group's step.
        place: index of the group in that file.
        answers: number of answers of the group.
    """
    try:
        stored = read_token_logprobs(groups, place)
    except ValueError as error:
        return {"answers": [None] * answers, "note": str(error)}
    if stored is None:
        return {"answers": [None] * answers, "note": "log-probabilities were not stored (log.token_logprobs)"}
    if len(stored) != answers:
        return {"answers": [None] * answers, "note": "the stored log-probabilities belong to other answers"}
    return {"answers": [_answer(one) for one in stored], "note": ""}


def _answer(stored: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, values in stored.items():
        found[name] = [round(v, DIGITS) if isinstance(v, float) else v for v in values.tolist()]
    if not any(found.get("bytes", ())):  # the positions of the tokens are unknown
        found["bytes"] = None
    return found
