"""Finds a method by name, file or class, and checks it before anything is loaded."""

from __future__ import annotations

import importlib
import inspect
import os
import pathlib
import types

from ml_collections import ConfigDict

from ropd_jax.methods.base import Method
from ropd_jax.types import UserError
from ropd_jax.utils.user_module import line_of, load_user_module, user_code

HERE = pathlib.Path(__file__).parent
NOT_METHODS = {"__init__", "base", "check", "conditioning", "load"}  # the other files of this folder


def method_names() -> list[str]:
    """The methods of this package."""
    return sorted(p.stem for p in HERE.glob("*.py") if p.stem not in NOT_METHODS)


def load_method(method: str | os.PathLike[str] | type[Method], cfg: ConfigDict) -> Method:
    """The method of this config.

    Args:
        method: a file of this folder by its name (``ropd``), the path of a ``.py`` file that defines ``METHOD``, or a
            subclass of `Method`.

    Raises:
        UserError: it does not exist, or it is not a method; for a file with the line and what to change.
    """
    if not isinstance(method, str | os.PathLike):
        return _check(method, "method")(cfg)
    name = os.fspath(method)
    if not name.endswith(".py"):
        names = method_names()
        if name not in names:
            hint = f"; did you mean {name}.py?" if pathlib.Path(f"{name}.py").is_file() else ""
            raise UserError(
                f"method={name!r} is not known; expected one of {', '.join(names)}, or the path of a .py file{hint}"
            )
        return importlib.import_module(f"ropd_jax.methods.{name}").METHOD(cfg)
    module = load_user_module(name, what="method file")
    found = _check(_method_of(module, name), f"{name}: METHOD", name)
    with user_code(name):
        return found(cfg)


def _method_of(module: types.ModuleType, path: str) -> object:
    """The file's ``METHOD``."""
    if hasattr(module, "METHOD"):
        return module.METHOD
    own = [
        x for x in vars(module).values()
        if isinstance(x, type) and issubclass(x, Method) and x.__module__ == module.__name__
    ]  # fmt: skip
    if own:
        raise UserError(f"method file {path} defines no METHOD; add the line METHOD = {own[-1].__name__} at its end")
    raise UserError(
        f"method file {path} defines no METHOD; expected METHOD = <your subclass of ropd_jax.methods.Method>"
    )


def _check(found: object, what: str, path: str = "") -> type[Method]:
    """A class that can judge, or a UserError that starts with ``what`` or with the line of the mistake."""
    if isinstance(found, Method):
        raise UserError(f"{what} is an object; expected the class itself: METHOD = {type(found).__name__}")
    if not (isinstance(found, type) and issubclass(found, Method)):
        shown = f"the class {found.__name__}" if isinstance(found, type) else f"{found!r:.60}"
        raise UserError(f"{what} is {shown}; expected a subclass of ropd_jax.methods.Method")
    if found.__abstractmethods__:
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise UserError(f"{what}: {found.__name__} lacks {missing}; define `async def judge(self, teacher, group)`")
    judge = inspect.unwrap(found.judge)
    where = line_of(judge, path if found.judge.__module__ == found.__module__ else "")
    if not inspect.iscoroutinefunction(judge):
        raise UserError(f"{where}: {found.__name__}.judge is not async; write `async def judge(self, teacher, group)`")
    try:
        inspect.signature(found.judge).bind(None, None, None)
    except TypeError as error:
        raise UserError(
            f"{where}: {found.__name__}.judge cannot be called with a teacher and a group ({error}); write "
            "`async def judge(self, teacher, group)`"
        ) from error
    return found
