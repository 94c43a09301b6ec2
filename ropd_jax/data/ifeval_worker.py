"""The child process of `named` and of ``evaluation.grading``: IFEval's checks on one response."""

from __future__ import annotations

from typing import Any

from ropd_jax.data.ifeval import follows, follows_loosely
from ropd_jax.types import UserError


def warm_up() -> None:
    """Imports the tokenizers and language profiles before the time of the first response starts."""
    import langdetect
    import punkt  # noqa: F401
    from nltk.tokenize import destructive  # noqa: F401

    langdetect.detect("This sentence loads the profiles of all languages.")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """``{"instructions", "response"}`` -> for each instruction whether it is followed, ``strict`` and ``loose``."""
    instructions, response = request["instructions"], request["response"]
    try:
        return {"strict": follows(instructions, response), "loose": follows_loosely(instructions, response)}
    except UserError as error:  # the benchmark's row is wrong, not the response
        return {"error": "instruction", "message": str(error)}
