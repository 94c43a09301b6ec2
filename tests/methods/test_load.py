"""A method by name, by file, as a class; every mistake in a file gives a one-line error that says what to change."""

from __future__ import annotations

import pathlib
import re

import pytest

from experiments import quickstart
from ropd_jax.methods import Method, load_method, method_names
from ropd_jax.methods.ropd import ROPD
from ropd_jax.types import UserError

ROOT = pathlib.Path(__file__).parents[2]
GOOD = """
from ropd_jax.methods import Method
from ropd_jax.types import Judgement

class Mine(Method):
    async def judge(self, teacher, group):
        n = len(group.rollouts)
        return Judgement((1.0,) * n, (None,) * n)
"""


@pytest.fixture(scope="module")
def cfg():
    return quickstart.get_config().lock()


def test_a_name_a_file_a_path_and_a_class(cfg, tmp_path):
    class Own(ROPD):
        sequences_per_prompt = 3

    assert type(load_method("ropd", cfg)) is ROPD
    own = load_method(Own, cfg)
    assert type(own) is Own and own.cfg is cfg
    path = tmp_path / "mine.py"
    path.write_text(GOOD + "\nMETHOD = Mine\n")
    for place in (path, str(path)):
        assert type(load_method(place, cfg)).__name__ == "Mine"


def test_the_page_of_methods_has_a_row_with_the_file_of_each():
    rows = [x for x in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").splitlines() if x.startswith("| [")]
    named = {name for row in rows for name in re.findall(r"\[`(\w+)`\]\(\.\./ropd_jax/methods/(\w+)\.py\)", row)}
    assert named == {(name, name) for name in method_names()}


def test_the_files_of_the_folder_that_are_not_methods_are_not_methods(cfg):
    names = "cort cripo evolving exopd gad lopd ovd permuted rar rcsd rgsd rlcf rlvr ropd ruler sft t_judge"
    assert method_names() == names.split()
    for name in ("base", "load", "check", "conditioning", "__init__", "../cli/main"):
        with pytest.raises(UserError, match="is not known; expected one of cort, cripo"):
            load_method(name, cfg)


def test_a_file_named_without_its_ending_is_suggested(cfg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("brief.py").touch()
    with pytest.raises(UserError, match=r"'brief' is not known; expected .*; did you mean brief\.py\?$"):
        load_method("brief", cfg)


def test_a_method_can_hold_a_dataclass(cfg, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        f"from __future__ import annotations\nimport dataclasses\n{GOOD}\n"
        "@dataclasses.dataclass\nclass Settings:\n    scale: float = 2.0\n\nMETHOD = Mine\n"
    )
    assert isinstance(load_method(path, cfg), Method)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", r"mine.py defines no METHOD; expected METHOD = <your subclass of ropd_jax.methods.Method>"),
        (GOOD, r"mine.py defines no METHOD; add the line METHOD = Mine at its end"),
        (f"{GOOD}\nMETHOD = Mine(None)\n", r"mine.py: METHOD is an object; .*the class itself: METHOD = Mine"),
        ("METHOD = 3\n", r"mine.py: METHOD is 3; expected a subclass of ropd_jax.methods.Method"),
        ("class A: pass\nMETHOD = A\n", r"mine.py: METHOD is the class A; expected a subclass of ropd_jax"),
        ("def f(): pass\nMETHOD = f\n", r"mine.py: METHOD is <function f .*; expected a subclass"),
        (
            "from ropd_jax.methods import Method\nclass A(Method):\n    pass\nMETHOD = A\n",
            r"mine.py: METHOD: A lacks judge; define `async def judge\(self, teacher, group\)`",
        ),
        (
            GOOD.replace("async def", "def") + "METHOD = Mine\n",
            r"mine.py:6: Mine.judge is not async; write `async def judge\(self, teacher, group\)`",
        ),
        (
            GOOD.replace("teacher, group", "group") + "METHOD = Mine\n",
            r"mine.py:6: Mine.judge cannot be called with a teacher and a group \(too many positional arguments\)",
        ),
        (
            GOOD + "    def __post_init__(self):\n        self.cfg.mine.scale\nMETHOD = Mine\n",
            r"mine.py:10: AttributeError: .*mine",
        ),
        ("import nothing_like_it\n", r"mine.py:1: ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("class A(\n", r"mine.py:1: SyntaxError"),
        ("1 / 0\n", r"mine.py:1: ZeroDivisionError: division by zero"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(cfg, tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as e:
        load_method(str(path), cfg)
    assert "\n" not in str(e.value)


def test_a_wrong_class_is_refused(cfg):
    class Sync(ROPD):
        def judge(self, teacher, group):
            return None

    with pytest.raises(UserError, match=r"test_load.py:\d+: Sync.judge is not async"):
        load_method(Sync, cfg)
    with pytest.raises(UserError, match="method is the class int; expected a subclass"):
        load_method(int, cfg)
    with pytest.raises(UserError, match="method is an object; expected the class itself"):
        load_method(ROPD(cfg), cfg)
    with pytest.raises(UserError, match="Method lacks judge"):
        load_method(Method, cfg)


def test_a_missing_file_names_its_neighbours(cfg, tmp_path):
    (tmp_path / "mine.py").write_text(GOOD)
    with pytest.raises(UserError, match=r"method file '.*mien.py' does not exist; did you mean .*mine.py\?"):
        load_method(str(tmp_path / "mien.py"), cfg)
