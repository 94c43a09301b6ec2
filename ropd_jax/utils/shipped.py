"""The files that come with the package besides its modules: experiments, notebooks and launch scripts.

In a clone they are folders next to ``ropd_jax/``. A wheel has copies of them in ``ropd_jax/shipped/``, made by
``setup.py``. A file of ``experiments/`` is found by its name:

    split("quickstart", "get_config", "config")         (.../experiments/quickstart.py, None)
    split("mini:method=sft", "get_config", "config")    (.../experiments/mini.py, "method=sft")
    split("mine.py:3", "get_config", "config")          (mine.py, "3")
"""

from __future__ import annotations

import ast
import pathlib

from ropd_jax.types import UserError
from ropd_jax.utils.suggest import near

FOLDERS = ("experiments", "notebooks", "launch")
_PACKAGE = pathlib.Path(__file__).parents[1]


def folder(name: str) -> pathlib.Path:
    """One of `FOLDERS`: the clone's own, or the copy in the wheel."""
    is_clone = (_PACKAGE.parent / "setup.py").is_file()
    return (_PACKAGE.parent if is_clone else _PACKAGE / "shipped") / name


def files(name: str) -> list[pathlib.Path]:
    """Every file of one of `FOLDERS`, sorted, without caches and hidden files; paths are relative to the folder."""
    top = folder(name)
    found = (path.relative_to(top) for path in top.rglob("*") if path.is_file())
    return sorted(p for p in found if p.suffix != ".pyc" and not any(part.startswith(".") for part in p.parts))


def experiments(function: str) -> dict[str, pathlib.Path]:
    """The files of ``experiments/`` that define a function, by name; nothing is run.

    Args:
        function: ``get_config`` for configs, ``get_table`` for tables.
    """
    paths = sorted(folder("experiments").glob("*.py"))
    return {path.stem: path for path in paths if _defines(path, function)}


def docstring(path: pathlib.Path) -> str:
    """The docstring of a Python file, which is parsed and not run; "" without one."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def split(spec: str, function: str, what: str) -> tuple[str, str | None]:
    """The file and the argument that ``FILE.py[:arg]`` or ``NAME[:arg]`` stands for; the argument is None without one.

    What ends in ``.py`` is a path. Anything else is the name of a file of ``experiments/`` (``-`` and ``_`` are the
    same), or a path that `load_user_module` refuses.

    Args:
        function: what the file must define, as in `experiments`.
        what: the kind of file for the error, ``"config"`` or ``"table"``.

    Raises:
        UserError: no file of this name comes with the package, with near names; or the path does not exist, but a
            file of its name comes with the package.
    """
    name, colon, arg = spec.partition(".py:")
    if colon or spec.endswith(".py"):
        path = pathlib.Path(f"{name}.py" if colon else spec)
        is_ours = str(path) in (path.name, f"experiments/{path.name}") and path.stem in experiments(function)
        if is_ours and not path.exists():
            raise UserError(
                f"{what} file '{path}' does not exist; write {path.stem}{':' if colon else ''}{arg} for the {what} "
                "that comes with ropd_jax, or copy its files to this directory with: ropd init ."
            )
        return (f"{name}.py", arg) if colon else (spec, None)
    name, colon, arg = spec.partition(":")
    if not name.replace("-", "_").isidentifier():
        return spec, None
    return str(find(name, function, what)), arg if colon else None


def find(name: str, function: str, what: str) -> pathlib.Path:
    """The file of ``experiments/`` of this name; the arguments are those of `split`.

    Raises:
        UserError: there is none, with near names.
    """
    known = experiments(function)
    if (found := known.get(name.replace("-", "_"))) is not None:
        return found
    own = [str(path) for path in pathlib.Path().glob("*.py")]
    hint = f"did you mean {name}.py?" if f"{name}.py" in own else near(name, [*known, *own])
    raise UserError(f"no {what} named {name!r} comes with ropd_jax; {hint} (a file of your own ends in .py)")


def _defines(path: pathlib.Path, function: str) -> bool:
    text = path.read_text(encoding="utf-8")
    return f"def {function}(" in text and any(
        isinstance(node, ast.FunctionDef) and node.name == function for node in ast.parse(text).body
    )
