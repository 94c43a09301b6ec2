"""The public names: lazy, documented, and usable from a script, a notebook and a coroutine without any set-up."""

from __future__ import annotations

import pathlib
import re

import pytest

import ropd_jax as ropd
from tests.helpers import python

ROOT = pathlib.Path(__file__).parents[1]
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------- the names


def test_the_import_is_lazy(tmp_path):
    code = """
import sys
import ropd_jax
assert not {"jax", "ml_collections", "numpy"} & set(sys.modules), "loaded by import ropd_jax"
assert set(dir(ropd_jax)) == set(ropd_jax.__all__) and "train" in dir(ropd_jax)
ropd_jax.Judgement, ropd_jax.UserError, ropd_jax.Teacher
assert "jax" not in sys.modules, "loaded by a name that does not need it"
"""
    python(code, tmp_path)


def test_every_name_resolves_and_is_documented():
    documented = set(re.findall(r"^\| `(\w+)", API, re.MULTILINE)) | {"__version__"}
    assert documented == set(ropd.__all__)
    assert "`__version__`" in API
    for name in ropd.__all__:
        assert getattr(ropd, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ropd_jax' has no attribute 'trian'"):
        ropd.trian  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'trian'"):
        exec("from ropd_jax import trian")


@pytest.mark.parametrize("first", ["import ropd_jax.train", "from ropd_jax import train"])
def test_train_is_callable_whatever_was_imported_first(tmp_path, first):
    code = f"""
import ropd_jax
{first}
import ropd_jax.train
from ropd_jax import train
for function in (ropd_jax.train, train):
    try:
        function(ropd_jax.default_config(), "run", method="no_such_method")
    except ropd_jax.UserError as error:
        assert "no_such_method" in str(error)
    else:
        raise SystemExit("not called")
"""
    python(code, tmp_path)


# --------------------------------------------------------------------------------------------------- the whole page


def test_the_script_of_the_page_runs_without_a_warning(tmp_path):
    script = re.findall(r"```python\n(.*?)```", API, re.DOTALL)[0]
    lines = [line for line in script.splitlines() if line.strip()]
    assert len(lines) <= 15 and len([line for line in lines if line.startswith(("import", "from"))]) == 1
    done = python(script, tmp_path, "-W", "error")
    rewards = [float(line.split()[0]) for line in done.stdout.splitlines() if re.match(r"[01]\.\d+ '", line)]
    assert len(rewards) == 8 and len(set(rewards)) > 1
    assert float(re.search("norm (.*)", done.stdout)[1]) > 0
    assert "warn" not in done.stderr.lower() and "Traceback" not in done.stderr
    assert "sampled 1 prompts" in done.stderr


# ------------------------------------------------------------------------------------------------------- log lines

STEPS = """
import sys
sys.path.insert(0, {root!r})
import ropd_jax as ropd
from tests.workdir.test_one_run import Length, tiny_run
ropd.train(tiny_run(), "run", method=Length)
"""
SET_UP = "logging.basicConfig(level=logging.INFO, format='mine %(message)s')"
SAMPLE = """
import logging
{before}
import ropd_jax as ropd
from ropd_jax import train  # Orbax comes with it
{after}
ropd.sample(ropd.load_student("tiny"), "1 + 2 =", n=1, max_tokens=2)
ropd.evaluate("tiny", "reasoning_gym:chain_sum", k=1, limit=4, max_tokens=2, template="{{question}}", out=None)
"""


@pytest.mark.slow
def test_a_run_shows_each_step_once_without_any_set_up(tmp_path):
    done = python(STEPS.format(root=str(ROOT)), tmp_path)
    for step in (1, 2):
        shown = [line for line in done.stderr.splitlines() if f"step {step}/2  reward" in line]
        assert len(shown) == 1 and shown[0].startswith(f"step {step}/2"), done.stderr
    assert not re.search("^(INFO|WARNING):", done.stderr, re.MULTILINE), done.stderr


@pytest.mark.parametrize(("before", "after"), [(SET_UP, ""), ("", SET_UP)])
def test_a_program_that_sets_up_logging_gets_each_line_once(tmp_path, before, after):
    done = python(SAMPLE.format(before=before, after=after), tmp_path)
    for text in ("sampled 1 prompts", "answered 4 of 4"):
        shown = [line for line in done.stderr.splitlines() if text in line]
        assert len(shown) == 1 and shown[0].startswith(f"mine {text}"), done.stderr
