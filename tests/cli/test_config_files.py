"""A config file that does not work gives a one-line error."""

from __future__ import annotations

import pytest

from tests.helpers import CONFIG_FILE


def test_a_missing_config_file_names_its_near_ones(runs, error_of):
    path, _ = runs
    missing = path.replace("quick", "quikc")
    assert f"did you mean {path}?" in error_of("train", "--config", missing, "--workdir=w")
    assert "no Python file in" in error_of("train", "--config", "/nowhere/a.py", "--workdir=w")


@pytest.mark.parametrize(
    "source, message",
    [
        ("x = 1\n", "has no get_config()"),
        ("def get_config():\n    return {}\n", "returned a dict; expected an ml_collections.ConfigDict"),
        ("def get_config(:\n", "bad.py:1: SyntaxError"),
        ("import no_such_module\n", "bad.py:1: ModuleNotFoundError: No module named 'no_such_module'"),
        (
            CONFIG_FILE.replace("return cfg", "cfg.lock()\n    cfg.optm = 1"),
            "bad.py:9: the config has no key 'optm'; did you mean",
        ),
        (
            CONFIG_FILE.replace("return cfg", "cfg.optim.l_r = 1.0\n    return cfg"),
            "sets optim.l_r, which is not a key of",
        ),
        (CONFIG_FILE.replace("optim.lr", "optm.lr"), "bad.py:6: the config has no key 'optm'; did you mean"),
        (CONFIG_FILE.replace("1e-4", "'x'"), "bad.py:6: TypeError:"),
        ("def get_config(arg):\n    pass\n", "needs an argument; write "),
        ("import sys\nsys.exit(3)\n", "bad.py:2: SystemExit: 3"),
        ("open('/nowhere/x')\n", "bad.py:1: FileNotFoundError: [Errno 2] No such file"),
        ("x = {}['y']\n", "bad.py:1: KeyError: y"),
        (CONFIG_FILE.replace("optim.lr", "ropd.told"), "it was renamed: write ropd.blind, with the opposite value"),
        (
            CONFIG_FILE.replace("default()", "default().lock()").replace("optim.lr", "stream.carry_after_s"),
            "bad.py:6: the config has no key 'carry_after_s'; stream.carry_after_s was renamed: write "
            "stream.straggler_timeout_s",
        ),
        ("from ropd_jax.types import UserError\ndef get_config():\n    raise UserError('task x')\n", "task x"),
    ],
)
def test_a_broken_config_file_is_shown_with_its_line(tmp_path, error_of, source, message):
    path = tmp_path / "bad.py"
    path.write_text(source)
    assert message in error_of("train", "--config", str(path), "--workdir=w")


def test_an_argument_that_get_config_does_not_take_is_refused(tmp_path, error_of):
    path = tmp_path / "a.py"
    path.write_text("def get_config():\n    pass\n")
    assert "takes no argument, but 'b' was given" in error_of("train", "--config", f"{path}:b", "--workdir=w")
