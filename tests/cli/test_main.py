from __future__ import annotations

import errno
import logging
import subprocess
import sys
import types

import pytest

from ropd_jax.cli import main as cli
from ropd_jax.types import UserError

CONFIG = """
from ropd_jax import configs

def get_config(arg=""):
    cfg = configs.default()
    cfg.optim.lr = 1e-4
    cfg.student.checkpoint = arg or "tiny"
    return cfg
"""


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Puts a recorder in the place of ``ropd_jax.train``; returns (a config file, the calls)."""
    calls = []
    fake = types.ModuleType("ropd_jax.train")
    fake.main = lambda config, workdir: calls.append((config, workdir)) or 0
    monkeypatch.setitem(sys.modules, "ropd_jax.train", fake)
    monkeypatch.setattr("ropd_jax.train", fake, raising=False)
    path = tmp_path / "quick.py"
    path.write_text(CONFIG)
    return str(path), calls


def error_of(capsys, *args):
    """Runs a command that must fail as the user's mistake; returns its one line."""
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ropd: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("ropd: error: ").strip()


def test_train_gets_the_config_with_overrides_of_the_files_own_types(runs):
    path, calls = runs
    args = [
        "--config.optim.lr=3",
        "--config.seed",
        "7",
        "--noconfig.eval.sampled",
        "--config.data.options={'min_terms': 4}",
    ]
    assert cli.main(["train", "--workdir", "w", *args, "--config", path, "--config.method=sft"]) == 0
    config, workdir = calls[0]
    assert (workdir, config.seed, config.method) == ("w", 7, "sft")
    assert config.optim.lr == 3.0
    assert type(config.optim.lr) is float
    assert config.eval.sampled is False
    assert config.data.options.to_dict() == {"min_terms": 4}
    assert config.is_locked


def test_the_part_behind_the_file_name_goes_to_get_config(runs):
    path, calls = runs
    assert cli.main(["train", f"--config={path}:control", "--workdir=w"]) == 0
    assert calls[0][0].student.checkpoint == "control"


def test_the_exit_code_of_the_run_is_the_exit_code(runs, monkeypatch):
    path, _ = runs
    monkeypatch.setattr(sys.modules["ropd_jax.train"], "main", lambda config, workdir: 130)
    assert cli.main(["train", "--config", path, "--workdir", "w"]) == 130


@pytest.mark.parametrize(
    "args, message",
    [
        (["trian"], "'trian' is no verb; did you mean train?"),
        (["train", "--workdir=w"], "--config is missing"),
        (["train", "--config", "FILE"], "--workdir is missing"),
        (["train", "--config"], "--config has no value"),
        (["train", "--config.seed=1", "--workdir=w"], "but none is given; add --config FILE"),
        (["train", "--config", "FILE", "--wrkdir=w"], "has no flag --wrkdir; did you mean workdir?"),
        (["train", "--config", "FILE", "--cofnig=w"], "has no flag --cofnig; did you mean config?"),
        (["train", "--config", "FILE", "--workdir=w", "extra"], "takes flags only, not 'extra'"),
        (["train", "--config", "FILE", "--config.optm.lr=1"], "no key 'optm.lr'; did you mean gad.lr or optim.lr?"),
        (["train", "--config", "FILE", "--config.lr=1"], "no key 'lr'; did you mean gad.lr or optim.lr?"),
        (["train", "--config", "FILE", "--noconfig.eval.sampld"], "did you mean eval.sampled"),
        (["train", "--config", "FILE", "--config.optim=1"], "is a section; expected one of its keys: attention, b1,"),
        (["train", "--config", "FILE", "--config.seed=1.5"], "expected a whole number (seed is 0 in the file)"),
        (
            ["train", "--config", "FILE", "--config.optim.lr=x"],
            "=x: expected a number (optim.lr is 0.0001",
        ),
        (["train", "--config", "FILE", "--config.eval.sampled=maybe"], "=maybe: expected true or false"),
        (["serve-teacher", "--port=abc"], "--port=abc: invalid literal"),
        (["serve-teacher", "--port=99999"], "--port=99999: 99999 is not an integer in the range [0, 65535]"),
        (["serve-teacher", "--fault_rat=1"], "did you mean fault_rate?"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_runs(runs, capsys, args, message):
    path, calls = runs
    assert message in error_of(capsys, *[path if a == "FILE" else a for a in args])
    assert calls == []


def test_a_missing_config_file_names_its_near_ones(runs, capsys):
    path, _ = runs
    missing = path.replace("quick", "quikc")
    assert f"did you mean {path}?" in error_of(capsys, "train", "--config", missing, "--workdir=w")
    assert "no Python file in" in error_of(capsys, "train", "--config", "/nowhere/a.py", "--workdir=w")


@pytest.mark.parametrize(
    "source, message",
    [
        ("x = 1\n", "has no get_config()"),
        ("def get_config():\n    return {}\n", "returned a dict; expected an ml_collections.ConfigDict"),
        ("def get_config(:\n", "bad.py:1: SyntaxError"),
        ("import no_such_module\n", "bad.py:1: ModuleNotFoundError: No module named 'no_such_module'"),
        (
            CONFIG.replace("return cfg", "cfg.lock()\n    cfg.optm = 1"),
            "bad.py:9: the config has no key 'optm'; did you mean",
        ),
        (CONFIG.replace("return cfg", "cfg.optim.l_r = 1.0\n    return cfg"), "sets optim.l_r, which is no key of"),
        (CONFIG.replace("optim.lr", "optm.lr"), "bad.py:6: the config has no key 'optm'; did you mean"),
        (CONFIG.replace("1e-4", "'x'"), "bad.py:6: TypeError:"),
        ("def get_config(arg):\n    pass\n", "needs an argument; write --config"),
        ("from ropd_jax.types import UserError\ndef get_config():\n    raise UserError('task x')\n", "task x"),
    ],
)
def test_a_broken_config_file_is_shown_with_its_line(tmp_path, capsys, source, message):
    path = tmp_path / "bad.py"
    path.write_text(source)
    assert message in error_of(capsys, "train", "--config", str(path), "--workdir=w")


def test_an_argument_that_get_config_does_not_take_is_refused(tmp_path, capsys):
    path = tmp_path / "a.py"
    path.write_text("def get_config():\n    pass\n")
    assert "takes no argument, but 'b' was given" in error_of(capsys, "train", "--config", f"{path}:b", "--workdir=w")


@pytest.mark.parametrize(
    "error, code, message",
    [
        (UserError("the key OPENAI_API_KEY is missing"), 2, "ropd: error: the key OPENAI_API_KEY is missing\n"),
        (OSError(errno.ENOSPC, "No space left on device", "w/x"), 2, "ropd: error: no space left for w/x; free some"),
        (KeyboardInterrupt(), 130, "ropd: stopped\n"),
    ],
)
def test_errors_of_a_run_become_one_line(runs, monkeypatch, capsys, error, code, message):
    def fail(config, workdir):
        raise error

    monkeypatch.setattr(sys.modules["ropd_jax.train"], "main", fail)
    assert cli.main(["train", "--config", runs[0], "--workdir", "w"]) == code
    assert capsys.readouterr().err.startswith(message)


def test_a_bug_keeps_its_traceback(runs, monkeypatch):
    def fail(config, workdir):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(sys.modules["ropd_jax.train"], "main", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "--config", runs[0], "--workdir", "w"])


def test_serve_teacher_hands_its_flags_on(monkeypatch, tmp_path):
    from ropd_jax.teacher.scripted import server

    calls = []
    monkeypatch.setattr(server, "serve", lambda scripted, **kw: calls.append((type(scripted).__name__, kw)))
    (tmp_path / "b.jsonl").write_text('{"question": "q", "solution": "s"}\n')
    assert cli.main(["serve-teacher", "--port=0", "--answer_key", str(tmp_path / "b.jsonl"), "--fault_rate=0.5"]) == 0
    assert calls == [("ScriptedClient", {"host": "127.0.0.1", "port": 0})]


def test_help_teaches_each_verb(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in cli.VERBS)
    for verb in cli.VERBS:
        assert cli.main([verb, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: ropd {verb} ")
    assert cli.main([]) == 2


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from ropd_jax.cli import main; main.main(['--help']);"
        "heavy = {'jax', 'flax', 'absl', 'ml_collections', 'openai', 'transformers'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_other_libraries_chatter_is_not_shown(capsys):
    cli._set_up_logging()
    logging.getLogger("httpx").info("HTTP Request: POST")
    logging.getLogger("ropd_jax.train").info("training prompts: 12")
    logging.getLogger("ropd_jax.train").warning("slow")
    err = capsys.readouterr().err
    assert "HTTP Request" not in err
    assert "training prompts: 12\n" in err
    assert "warning: slow\n" in err
