"""Read the JSON files of a checkpoint. Imports no jax."""

from __future__ import annotations

import json
import pathlib

from ropd_jax.types import UserError


def read_json(file: pathlib.Path, *, optional: bool = False) -> dict:
    """A JSON object; ``optional``: {} where there is no such file.

    Raises:
        UserError: unreadable, not JSON, not an object.
    """
    if optional and not file.exists():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as e:
        raise UserError(f"{file} cannot be read as JSON ({e}); fetch it again") from e
    if not isinstance(value, dict):
        raise UserError(f"{file} holds a {type(value).__name__}, expected a JSON object; fetch it again")
    return value
