"""What a user installs: the wheel's content, the number of packages, one version everywhere, workflows that exist."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ropd_jax
from ropd_jax.utils import shipped

ROOT = pathlib.Path(__file__).parents[1]
SETUP = (ROOT / "setup.py").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAX_PACKAGES = 115  # of the core, ropd_jax among them


def assigned(name: str):
    """A constant of setup.py, which is not run."""
    return next(
        ast.literal_eval(node.value)
        for node in ast.parse(SETUP).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )


def run(*args: str, cwd: pathlib.Path, **env: str) -> str:
    done = subprocess.run(args, cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
    """The package as the wheel has it, in a directory that is not a clone."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ["egg_info", "--egg-base", str(folder), "build_py", "--build-lib", str(folder / "lib")]
    run(sys.executable, "setup.py", "--quiet", *build, cwd=ROOT)
    return folder / "lib"


def test_the_wheel_has_the_experiments_notebooks_and_launch_scripts(installed):
    assert assigned("SHIPPED") == shipped.FOLDERS
    for name in shipped.FOLDERS:
        inside = installed / "ropd_jax" / "shipped" / name
        found = {path.relative_to(inside) for path in inside.rglob("*") if path.is_file()}
        assert found == set(shipped.files(name)) and len(found) > 5
    assert (installed / "ropd_jax/shipped/launch/slurm.sh").stat().st_mode & 0o100
    for data in ("assets/quickstart_student/model.safetensors", "viewer/static/index.html", "py.typed"):
        assert (installed / "ropd_jax" / data).is_file()


def test_names_and_init_work_outside_of_a_clone(installed, tmp_path):
    code = """
import pathlib, sys
import ropd_jax as ropd
from ropd_jax.cli import main
assert pathlib.Path(ropd.__file__).parent.parent == pathlib.Path(sys.argv[1])
assert ropd.load_config("quickstart").student.checkpoint == "tiny"
assert ropd.load_config("mini:method=sft").method == "sft"  # a config that reads another one
assert main.main(["init", "."]) == 0
assert ropd.load_config("experiments/mini.py:method=sft").method == "sft"
assert main.main(["table", "experiments/table_mini.py"]) == 0  # a table that imports experiments.mini
"""
    out = run(sys.executable, "-c", code, str(installed), cwd=tmp_path, PYTHONPATH=str(installed))
    assert "wrote: " in out and "Every method in miniature" in out
    assert (tmp_path / "notebooks" / "mini_run" / "config.json").is_file()


def test_the_core_stays_small():
    """The core's requirements and all of theirs; this environment has the pins of constraints.txt."""
    found, left = set(), [Requirement(text) for text in assigned("CORE")]
    seen = set()
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        found.add(name)
        for text in importlib.metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ("", *requirement.extras)):
                left.append(needed)
    assert 50 < len(found) + 1 <= MAX_PACKAGES, sorted(found)
    assert not found & {"aiohttp", "pandas", "torch", "tensorflow", "wandb"}


def test_every_package_of_the_core_is_pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line and line[0] != "#"}
    core = {canonicalize_name(Requirement(text).name) for text in assigned("CORE")}
    assert core <= pins and {"aiohttp", "pandas", "build", "twine", "pytest"} <= pins


def test_the_version_is_the_same_everywhere():
    version = ropd_jax.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)[:2] == ["Unreleased", version]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert f"## [{version}] - {citation['date-released']}" in changelog


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_targets_that_exist(path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {name for line in re.findall(r"^([\w -]+):(?!=)", makefile, re.MULTILINE) for name in line.split()}
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    called = [str(target) for job in jobs for target in job.get("strategy", {}).get("matrix", {}).get("target", [])]
    for job in jobs:
        for step in job["steps"]:
            called += re.findall(r"make ([a-z][\w-]+)", step.get("run", ""))
    assert called and {target.split()[0] for target in called} <= targets


def test_github_reads_the_workflows_and_forms():
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed; make test installs it")
    github = ROOT / ".github"
    forms = sorted((github / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
    for schema, paths in {
        "github-workflows": WORKFLOWS,
        "github-issue-forms": forms,
        "github-issue-config": [github / "ISSUE_TEMPLATE" / "config.yml"],
        "dependabot": [github / "dependabot.yml"],
        "citation-file-format": [ROOT / "CITATION.cff"],
    }.items():
        assert paths
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, paths)]
        run(*command, cwd=ROOT)


def test_the_long_description_has_no_dead_links(installed):
    """With the repository known, as at a release, every link of the package's page is absolute."""
    code = "import setup; print(setup.long_description())"
    stub = "import setuptools; setuptools.setup = lambda **kwargs: None"
    text = run(sys.executable, "-c", f"{stub}; {code}", cwd=ROOT, ROPD_REPOSITORY="https://host.test/owner/name")
    links = re.findall(r"\]\(([^)#]+)", text)
    assert links and all(link.startswith("https://") for link in links)
    assert f"https://host.test/owner/name/blob/v{ropd_jax.__version__}/docs/api.md" in links
