"""Runs the Python files that users write (configs, methods, tables) and reports their mistakes in one line.

The module of ``experiments/mine.py`` is in ``sys.modules`` while it runs and afterwards, under a unique name:

    ropd_user_3f2a91c0           a package whose only content is the path of the folder ``experiments/``
    ropd_user_3f2a91c0.mine      the file; ``from .helpers import f`` in it imports from its neighbour ``helpers.py``

Dataclasses, pickle and ``inspect`` look classes up in ``sys.modules``; a missing module breaks them. A file that is
loaded again runs again, so that edits take effect; its neighbours are imported once, as usual.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Iterator

from ropd_jax.types import UserError
from ropd_jax.utils.paths import only_local
from ropd_jax.utils.suggest import near


def load_user_module(path: str | pathlib.Path, *, what: str) -> types.ModuleType:
    """The module of a user's file, run from top to bottom.

    Args:
        what: the kind of file for messages, e.g. ``"config file"``.

    Raises:
        UserError: the file does not exist, is not a ``.py`` file, or raises an error; the message has the line.
    """
    path = only_local(path, what)
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        hint = near(str(path), siblings) if siblings else f"there is no Python file in {str(path.parent)!r}"
        raise UserError(f"{what} {str(path)!r} does not exist; {hint}")
    if path.suffix != ".py":
        raise UserError(f"{what} {str(path)!r} is not a Python file; expected a file that ends in .py")
    full = path.resolve()
    name = f"{_package(full.parent)}.{_identifier(full.stem)}"
    spec = importlib.util.spec_from_file_location(name, full)
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    before, sys.modules[name] = sys.modules.get(name), module
    try:
        with user_code(path):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        raise
    return module


@contextlib.contextmanager
def user_code(path: str | pathlib.Path) -> Iterator[None]:
    """Converts whatever the user's file raises in the block to a one-line `UserError` with file and line."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the file is the user's program and can raise anything
        raise UserError(describe(error, pathlib.Path(path))) from error


def describe(error: BaseException, path: pathlib.Path) -> str:
    """``experiments/mine.py:12: KeyError: 'x'``: the last line of the user's own files in the traceback."""
    kind = type(error).__name__
    said = error.args[0] if isinstance(error, KeyError) and error.args else error  # str(KeyError) is a repr
    text = " ".join(str(said).split())
    if isinstance(error, SyntaxError):
        return f"{_shown(error.filename or str(path), path)}:{error.lineno}: {kind}: {error.msg}; fix this line"
    where = _last_line(error, path)
    if isinstance(error, ModuleNotFoundError):
        name = (error.name or "").partition(".")[0]
        if name and ((path.parent / f"{name}.py").is_file() or (path.parent / name).is_dir()):
            return f"{where}: {kind}: {text}; it is next to this file: write `from . import {name}`"
        return f"{where}: {kind}: {text}; install it, or correct the name"
    if isinstance(error, ImportError):
        return f"{where}: {kind}: {text}; correct the name"
    return f"{where}: {kind}: {text}" if text else f"{where}: {kind}"


def line_of(function: object, path: str | pathlib.Path = "") -> str:
    """``file:line`` where a function or class is defined; ``path`` (or the name) if unknown."""
    code = getattr(function, "__code__", None)
    if code is not None:
        return f"{path or code.co_filename}:{code.co_firstlineno}"
    return str(path) or getattr(function, "__qualname__", repr(function))


def _last_line(error: BaseException, path: pathlib.Path) -> str:
    folder = path.resolve().parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if pathlib.Path(frame.filename).parent == folder:
            return f"{_shown(frame.filename, path)}:{frame.lineno}"
    return str(path)


def _shown(filename: str, path: pathlib.Path) -> str:
    """The file, as the user wrote its folder: ``experiments/mine.py``, not ``/home/me/x/experiments/mine.py``."""
    found = pathlib.Path(filename)
    return str(path.parent / found.name) if found.parent == path.resolve().parent else filename


def _package(folder: pathlib.Path) -> str:
    """A package for the folder, so that relative imports between the user's files work."""
    name = f"ropd_user_{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        package = types.ModuleType(name, f"The user's files in {folder}.")
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return name


def _identifier(stem: str) -> str:
    """``my-config`` as ``my_config_1f3a``: a dot in a module's name would denote another package."""
    if stem.isidentifier():
        return stem
    return f"{re.sub(r'[^0-9A-Za-z_]', '_', stem)}_{hashlib.sha256(stem.encode()).hexdigest()[:4]}"
