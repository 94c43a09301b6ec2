"""Files of users: what works in them, and a one-line error with file and line for each mistake."""

from __future__ import annotations

import dataclasses
import pickle
import sys

import pytest

from ropd_jax.types import UserError
from ropd_jax.utils.user_module import load_user_module, user_code


def loaded(tmp_path, text, name="mine.py"):
    (tmp_path / name).write_text(text)
    return load_user_module(tmp_path / name, what="method file")


def message(tmp_path, text, name="mine.py"):
    with pytest.raises(UserError) as e:
        loaded(tmp_path, text, name)
    assert "\n" not in str(e.value)
    return str(e.value).replace(f"{tmp_path}/", "")


DATACLASS = """
from __future__ import annotations
import dataclasses

@dataclasses.dataclass
class Point:
    x: dataclasses.InitVar[int]
    y: int = 3
"""


def test_a_dataclass_works_and_can_be_pickled(tmp_path):
    module = loaded(tmp_path, DATACLASS)
    assert module is sys.modules[module.__name__]
    assert [f.name for f in dataclasses.fields(module.Point)] == ["y"]  # x is looked up in sys.modules
    assert pickle.loads(pickle.dumps(module.Point(1))).y == 3


def test_files_of_the_same_name_in_two_folders_are_two_modules(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        loaded(tmp_path / name, f"x = {name!r}\n")
    one, two = (load_user_module(tmp_path / name / "mine.py", what="file") for name in ("a", "b"))
    assert (one.x, two.x) == ("a", "b") and one.__name__ != two.__name__


def test_a_file_that_is_loaded_again_runs_again(tmp_path):
    assert loaded(tmp_path, "x = 1\n").x == 1
    assert loaded(tmp_path, "x = 2  # longer\n").x == 2


def test_a_neighbour_is_imported_relatively(tmp_path):
    (tmp_path / "helpers.py").write_text("def f():\n    return 7\n")
    assert loaded(tmp_path, "from .helpers import f\nfrom . import helpers\nx = f() + helpers.f()\n").x == 14
    assert loaded(tmp_path, "from .helpers import f\nx = f()\n", name="my-file.v2.py").x == 7


def test_a_neighbour_imported_absolutely_is_explained(tmp_path):
    (tmp_path / "helpers.py").write_text("")
    assert message(tmp_path, "\nimport helpers\n") == (
        "mine.py:2: ModuleNotFoundError: No module named 'helpers'; it is next to this file: "
        "write `from . import helpers`"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(:\n", "mine.py:1: SyntaxError: invalid syntax; fix this line"),
        ("x = 1\n  y = 2\n", "mine.py:2: IndentationError: unexpected indent; fix this line"),
        ("import nothing_like_it\n", "mine.py:1: ModuleNotFoundError: No module named 'nothing_like_it'; install it"),
        ("from os import nothing\n", "mine.py:1: ImportError: cannot import name 'nothing' from 'os'"),
        ("def f():\n    return 1 / 0\n\nf()\n", "mine.py:2: ZeroDivisionError: division by zero"),
        ("import json\njson.loads('{')\n", "mine.py:2: JSONDecodeError: Expecting property name"),
        ("raise KeyError('k')\n", "mine.py:1: KeyError: k"),
        ("raise RuntimeError\n", "mine.py:1: RuntimeError"),
        ("raise RuntimeError('two\\nlines')\n", "mine.py:1: RuntimeError: two lines"),
        ("exit(4)\n", "mine.py:1: SystemExit: 4"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, text, expected):
    assert message(tmp_path, text).startswith(expected)


def test_the_line_is_that_of_the_neighbour_that_broke(tmp_path):
    (tmp_path / "helpers.py").write_text("def f():\n    raise ValueError('x')\n")
    assert message(tmp_path, "from .helpers import f\nf()\n") == "helpers.py:2: ValueError: x"
    (tmp_path / "broken.py").write_text("\n\n)\n")
    assert message(tmp_path, "from . import broken\n") == "broken.py:3: SyntaxError: unmatched ')'; fix this line"


def test_the_line_is_found_by_a_relative_path_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("\nx = 1 / 0\n")
    with pytest.raises(UserError, match=r"^mine\.py:2: ZeroDivisionError"):
        load_user_module("mine.py", what="file")


def test_a_failure_leaves_nothing_behind(tmp_path):
    before = set(sys.modules)
    message(tmp_path, "1 / 0\n")
    assert {name for name in set(sys.modules) - before if name.endswith(".mine")} == set()
    module = loaded(tmp_path, "x = 1\n")
    message(tmp_path, "x = 2\n1 / 0\n")
    assert sys.modules[module.__name__] is module


def test_what_is_not_there_names_its_neighbours(tmp_path):
    (tmp_path / "quick.py").write_text("")
    with pytest.raises(UserError, match=r"method file '.*quikc.py' does not exist; did you mean .*quick.py\?"):
        load_user_module(tmp_path / "quikc.py", what="method file")
    with pytest.raises(UserError, match="there is no Python file in '/nowhere'"):
        load_user_module("/nowhere/a.py", what="file")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"is not a Python file; expected a file that ends in \.py"):
        load_user_module(tmp_path / "a.txt", what="file")


def test_a_user_error_of_the_file_stays_as_it_is(tmp_path):
    text = "from ropd_jax.types import UserError\nraise UserError('task x is unknown')\n"
    assert message(tmp_path, text) == "task x is unknown"


def test_code_that_runs_later_is_reported_in_the_same_way(tmp_path):
    module = loaded(tmp_path, "def f():\n    return {}['k']\n")
    with pytest.raises(UserError, match=r"mine\.py:2: KeyError: k$"), user_code(tmp_path / "mine.py"):
        module.f()
