"""The structure of the package, read from the source with ast; nothing is imported.

`ROOMS` lists all of it: a room (a folder, or one of the few modules at the top) imports only from rows above its
own. There is no cycle of imports between files.
"""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "ropd_jax"

ROOMS = [  # a room imports from the rows above it
    "types",
    "utils core",
    "text parallel configs teacher",
    "data models",
    "weights sampling",
    "workdir methods",
    "evaluation",
    "training analysis calibration",
    "train plan viewer",
    "cli",
]
NARROW = {
    "core": {"types"},
    "teacher": {"types", "utils", "configs"},
    "calibration": {"types", "utils", "configs", "teacher", "evaluation"},
}  # what these may import of the project
TOP_LEVEL = {"__init__.py", "configs.py", "train.py", "types.py"}
HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax"}
JAX_FREE = (  # paths that never import jax themselves, so that a mistake or a help text is answered at once
    "types.py", "configs.py", "utils/*", "teacher/**/*", "text/*", "data/*", "cli/*", "evaluation/graders/*",
    "evaluation/[!rs]*", "evaluation/stats.py",
    "calibration/**/*", "analysis/[!t]*", "analysis/ta*", "analysis/ti*", "workdir/config.py", "workdir/metrics.py",
    "workdir/groups.py", "workdir/curves.py", "workdir/watchdog.py", "workdir/lock*.py", "training/drift.py",
    "workdir/trackers/*", "viewer/*", "parallel/xla_options.py", "weights/hub.py", "weights/gguf_file.py",
)  # fmt: skip


def room(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def row(name: str) -> int:
    found = [i for i, rooms in enumerate(ROOMS) if name in rooms.split()]
    assert found, f"{name} is in no row of ROOMS; give it one in tests/test_rooms.py"
    return found[0]


def module(path: pathlib.Path) -> str:
    return ".".join(("ropd_jax", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def imports(path: pathlib.Path, *, for_types: bool = False) -> set[str]:
    """Absolute names of all that a file imports, at any depth; ``for_types``: those for type checkers only, too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not for_types and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively; write the whole name"
            names |= {f"{node.module}.{a.name}" for a in node.names}
    return names


FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")
MODULES = {module(p): p for p in FILES}


def files_imported(path: pathlib.Path, *, for_types: bool = False) -> set[str]:
    """Modules of the package that a file imports."""
    found = set()
    for name in imports(path, for_types=for_types):
        while name not in MODULES and "." in name:
            name = name.rpartition(".")[0]
        found |= {name} & MODULES.keys()
    return found - {module(path)}


def modules_named(path: pathlib.Path) -> set[str]:
    """Modules of the package that a file names in a text: a child process imports them."""
    texts = {n.value for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Constant)}
    return texts & MODULES.keys()


def rooms_imported(path: pathlib.Path) -> set[str]:
    return {room(MODULES[name]) for name in files_imported(path)} - {room(path)}


def outside(path: pathlib.Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)} - {"ropd_jax"}


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """The nodes left after repeatedly removing those that import nothing left or that nothing left imports."""
    left = {a: set(bs) for a, bs in arrows.items()}
    while True:
        targets = set().union(*left.values()) if left else set()
        gone = {a for a, bs in left.items() if not bs & left.keys() or a not in targets}
        if not gone:
            return sorted(left)
        left = {a: bs - gone for a, bs in left.items() if a not in gone}


def test_the_top_level_has_no_loose_module():
    assert {p.name for p in ROOT.glob("*.py")} == TOP_LEVEL


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_from_the_rows_above_it(path):
    me = room(path)
    for other in rooms_imported(path):
        assert row(other) < row(me), f"{path.relative_to(ROOT)} imports from {other}"
        assert other in NARROW.get(me, {other}), f"{path.relative_to(ROOT)} imports from {other}"


def test_a_child_process_is_of_the_same_room_or_a_row_above_it():
    named = {(path, name) for path in FILES for name in modules_named(path)}
    assert {name.rpartition(".")[2] for _, name in named} >= {"grader_worker", "math_worker", "ifeval_worker"}
    for path, name in named:
        other, me = room(MODULES[name]), room(path)
        assert other == me or row(other) < row(me), f"{path.relative_to(ROOT)} starts {name}"


def test_no_files_import_each_other():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == ["a", "b", "c"]
    assert circles({name: files_imported(path, for_types=True) for name, path in MODULES.items()}) == []


def test_the_teacher_never_imports_jax_directly_or_through_others():
    todo = [name for name, path in MODULES.items() if room(path) == "teacher"]
    assert todo
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        seen.add(name)
        assert not outside(MODULES[name]) & HEAVY, f"{name} imports {outside(MODULES[name]) & HEAVY}"
        todo += files_imported(MODULES[name]) - seen


@pytest.mark.parametrize("pattern", JAX_FREE)
def test_host_side_files_import_no_jax(pattern):
    paths = [p for p in ROOT.glob(pattern) if p.suffix == ".py"]
    assert paths
    for path in paths:
        assert not outside(path) & HEAVY, f"{path} imports {outside(path) & HEAVY}"


def test_no_file_prints():
    for path in FILES:
        calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        assert not [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path


# ----------------------------------------------------------------------------------------- the config is read once

READS_CONFIG = (  # may take a whole config
    "configs.py", "workdir/keys.py", "train.py", "training/setup.py", "training/by_hand.py", "plan/", "methods/",
    "cli/",
)  # fmt: skip
SECTIONS = {"student", "data", "sampling", "teacher", "loss", "optim", "stream", "mesh", "checkpoint", "eval", "log"}


def takes_whole_config(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function has a parameter that is a config, or from which it reads a section of one."""
    arguments = function.args
    for parameter in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        annotation = ast.unparse(parameter.annotation) if parameter.annotation else ""
        if "ConfigDict" in annotation and parameter.arg in ("cfg", "config"):
            return True
        if parameter.arg in ("result", "a", "b"):  # results of an evaluation have a "data" and a "sampling" too
            continue
        if annotation and not any(word in annotation for word in ("ConfigDict", "Any", "Mapping", "dict")):
            continue
        for node in ast.walk(function):
            value = getattr(node, "value", None)
            if not (isinstance(value, ast.Name) and value.id == parameter.arg):
                continue
            if isinstance(node, ast.Attribute) and node.attr in SECTIONS and parameter.arg != "self":
                return True
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.slice, ast.Constant)
                and node.slice.value in SECTIONS
            ):
                return True
    return False


def test_what_takes_a_whole_config_is_recognised():
    lines = {
        "def f(cfg: ConfigDict): pass": True,
        "def f(cfg): return cfg.loss.kl_coef": True,
        "def f(how: Mapping[str, Any]): return how['optim']['lr']": True,
        "def f(loss: LossConfig): return loss.kl_coef": False,
        "def f(teacher: Mapping[str, Any]): return teacher['judge']": False,
        "def f(cfg: RunConfig): return cfg.loss": False,
    }
    assert {line: takes_whole_config(ast.parse(line).body[0]) for line in lines} == lines


def test_below_the_setup_no_function_takes_a_whole_config():
    found = []
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(READS_CONFIG):
            functions = (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if hasattr(n, "args"))
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
            found += [
                f"{name}:{f.lineno} {f.name}" for f in functions if isinstance(f, kinds) and takes_whole_config(f)
            ]
    assert found == []
