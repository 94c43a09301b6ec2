"""MkDocs calls this before each build, so that ``mkdocs serve`` shows changes of docs/ and of the code."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from docs.generator.tree import write


def on_pre_build(config: Any) -> None:
    write()
