"""The teacher layer loads no jax, and no SDK until a provider is built."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import ropd_jax.teacher

HEAVY = ("jax", "flax", "openai", "google.genai", "aiohttp", "reasoning_gym", "pydantic", "transformers")


def test_importing_the_teacher_loads_neither_jax_nor_an_sdk():
    modules = "ropd_jax.teacher, ropd_jax.teacher.scripted.client"
    code = f"import sys, {modules}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_module_of_the_teacher_imports_jax_or_another_room():
    for path in pathlib.Path(ropd_jax.teacher.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in ("jax", "flax", "numpy"), (path, name)
                if name.startswith("ropd_jax"):
                    allowed = ("ropd_jax.teacher", "ropd_jax.utils", "ropd_jax.types")
                    assert name.startswith(allowed), (path, name)


def test_no_except_swallows_everything():
    for path in pathlib.Path(ropd_jax.teacher.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, path
                assert not (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")), path
