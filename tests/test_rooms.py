"""Dependencies point one way, as the design says. Read from the source with ast; nothing is imported."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "ropd_jax"

LEVELS = [  # a room imports from lower levels only, and within its level only what SAME_LEVEL allows
    {"types", "hints", "helptexts"},
    {"configs", "ggufio", "jsonio", "hub", "xlaoptions"},
    {"mesh", "core", "models", "text", "teacher", "data", "report", "hosts", "arguments", "spans"},
    {"sampling", "figures", "workdir", "student", "checkpoint", "groups", "tapeverb", "drift", "watchdog", "timeline"},
    {"methods", "evaluation", "checks", "rejudge", "teach", "export", "policy"},
    {"update"},
    {"stream"},
    {"summary", "preflight", "evalrun", "dataverb", "signals", "judging", "independent"},
    {"train", "cli", "plan"},
]
SAME_LEVEL = {
    "models": {"core", "mesh"},
    "data": {"core", "text"},
    "methods": {"evaluation"},
    "cli": {"train", "plan"},
    "independent": {"judging"},
}
HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax"}
JAX_FREE = {
    "types", "configs", "hints", "helptexts", "ggufio", "jsonio", "hub", "teacher", "report", "figures", "workdir",
    "evaluation", "cli", "groups", "rejudge", "tapeverb", "dataverb", "drift", "arguments",
    "spans", "watchdog", "timeline", "xlaoptions",
}  # fmt: skip


def room(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def level(name: str) -> int:
    found = [i for i, rooms in enumerate(LEVELS) if name in rooms]
    assert found, f"{name} stands in no level; give it one in tests/test_rooms.py"
    return found[0]


def imports(path: pathlib.Path) -> set[str]:
    """Absolute names of all that a file imports, at any depth, but for type checking only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    names = set()
    package = ("ropd_jax", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{a.name}" for a in node.names}
    return names


def rooms_imported(path: pathlib.Path) -> set[str]:
    found = {name.split(".")[1] for name in imports(path) if name.startswith("ropd_jax.")}
    return found - {room(path)}


def outside(path: pathlib.Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)} - {"ropd_jax"}


FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_from_lower_levels_only(path):
    me = room(path)
    for other in rooms_imported(path):
        below = level(other) < level(me)
        assert below or other in SAME_LEVEL.get(me, ()), f"{path.relative_to(ROOT)} imports ropd_jax.{other}"


def test_core_imports_no_sibling():
    for path in FILES:
        if room(path) == "core":
            assert rooms_imported(path) <= {"types"}, path


def test_the_teacher_never_imports_jax_directly_or_through_others():
    todo = [p for p in FILES if room(p) == "teacher"]
    assert todo
    seen: set[pathlib.Path] = set()
    while todo:
        path = todo.pop()
        seen.add(path)
        assert not outside(path) & HEAVY, f"{path} imports {outside(path) & HEAVY}"
        for name in rooms_imported(path):
            reached = [p for p in FILES if room(p) == name]
            todo += [p for p in reached if p not in seen]
    assert {room(p) for p in seen} <= {"teacher", "types", "hints"}


@pytest.mark.parametrize("name", sorted(JAX_FREE))
def test_host_side_rooms_import_no_jax(name):
    for path in FILES:
        if room(path) == name:
            assert not outside(path) & HEAVY, f"{path} imports {outside(path) & HEAVY}"


def test_no_file_prints():
    for path in FILES:
        calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        assert not [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path
