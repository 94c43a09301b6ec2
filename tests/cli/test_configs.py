"""The configs that come with the package, found by their names."""

from __future__ import annotations

import pathlib

import pytest

from ropd_jax.cli import main as cli
from ropd_jax.cli.configs import comments
from ropd_jax.cli.flags import CONFIG, parse
from ropd_jax.configs import load_config
from ropd_jax.types import UserError
from ropd_jax.utils import shipped
from ropd_jax.workdir.keys import KEYS
from tests.helpers import CONFIG_FILE

TAKING = [command for command in cli.COMMANDS.values() if command.config in ("required", "optional")]


def test_every_config_is_listed_with_one_line(capsys):
    assert cli.main(["configs"]) == 0
    listed, _ = capsys.readouterr().out.split("\n\n")
    rows = [line.split(maxsplit=1) for line in listed.splitlines()]
    names = [row[0] for row in rows if row[0] in shipped.experiments("get_config")]
    own = [p.stem for p in shipped.folder("experiments").glob("*.py") if "\ndef get_config(" in p.read_text()]
    assert names == sorted(own) and {"quickstart", "mini", "qwen3_4b_math"} < set(names)
    assert all(len(row) == 2 for row in rows)


def test_a_config_prints_its_description(capsys):
    assert cli.main(["configs", "mini"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(str(shipped.folder("experiments") / "mini.py")) and "setting   a teacher that" in out


def test_every_key_has_an_explanation():
    said = comments()
    assert KEYS.keys() <= said.keys() and [key for key in KEYS if not said[key]] == []


def explained(text, capsys):
    """The blocks of ``ropd configs --keys TEXT``: those of the keys by name, and the last."""
    assert cli.main(["configs", f"--keys={text}"]) == 0
    *keys, last = capsys.readouterr().out.split("\n\n")
    return {block.partition(" = ")[0]: block for block in keys}, last


def test_keys_are_found_by_name_or_by_explanation(capsys):
    found, last = explained("teacher.verifier", capsys)
    assert (
        list(found) == [key for key in KEYS if "teacher.verifier" in key]
        and f"{len(found)} of {len(KEYS)} keys" in last
    )
    default, values, meaning = found["teacher.verifier.votes"].splitlines()
    assert default == "teacher.verifier.votes = 1" and values.endswith("; identity") and "majority" in meaning
    assert list(explained("Learning-Rate".replace("-", " "), capsys)[0]) == [
        key for key in KEYS if "learning rate" in comments()[key].lower()
    ]
    assert list(explained("", capsys)[0]) == list(KEYS)
    assert cli.main(["configs", "--keys", "verifer.votes"]) == 2
    assert "teacher.verifier.votes" in capsys.readouterr().err


@pytest.mark.parametrize("arg", ["", ":method=sft,setting=slips"])
def test_a_name_is_the_file_of_the_package(tmp_path, monkeypatch, arg):
    path = shipped.folder("experiments") / "mini.py"
    monkeypatch.chdir(tmp_path)
    by_name = load_config(f"mini{arg}", steps=3)
    assert by_name.to_dict() == load_config(f"{path}{arg}", steps=3).to_dict()
    assert by_name.method == ("sft" if arg else "ropd") and by_name.steps == 3


def test_dashes_are_underscores():
    assert load_config("smollm2-rules:size=lora").to_dict() == load_config("smollm2_rules:size=lora").to_dict()


def test_a_file_that_exists_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("experiments").mkdir()
    for place in ("quickstart.py", "experiments/quickstart.py"):
        pathlib.Path(place).write_text(CONFIG_FILE)
        assert load_config(place).to_dict() != load_config("quickstart").to_dict()
    pathlib.Path("quickstart").mkdir()  # not a Python file, so not meant
    assert load_config("quickstart").data.task == "chain_sum"


def test_a_path_of_the_repository_that_is_not_here_names_the_config(tmp_path, monkeypatch, error_of):
    monkeypatch.chdir(tmp_path)
    said = error_of("train", "--config=experiments/mini.py:method=sft", "--workdir=w")
    assert said == (
        "config file 'experiments/mini.py' does not exist; write mini:method=sft for the config that comes with "
        "ropd_jax, or copy its files to this directory with: ropd init ."
    )
    assert "there is no Python file in" in error_of("train", "--config=experiments/mine.py", "--workdir=w")


def test_a_misspelt_name_is_one_line_with_near_names(tmp_path, monkeypatch, error_of):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("quickest.py").write_text(CONFIG_FILE)
    said = error_of("train", "--config=quickstat", "--workdir=w")
    assert said.startswith("no config named 'quickstat' comes with ropd_jax; did you mean quickstart or quickest.py?")
    assert "did you mean mini?" in error_of("configs", "minni")
    pathlib.Path("my.py").write_text(CONFIG_FILE)
    assert "; did you mean my.py? (a file" in error_of("train", "--config=my", "--workdir=w")
    with pytest.raises(UserError, match="did you mean qwen3_4b_math"):
        load_config("qwen3_4b_maths:thinking")


def test_an_argument_that_a_config_does_not_take_is_refused(error_of):
    assert "takes no argument, but 'seed=1' was given; leave out :seed=1" in error_of(
        "train", "--config=quickstart:seed=1", "--workdir=w"
    )


@pytest.mark.parametrize("command", TAKING, ids=lambda command: command.name)
def test_every_command_with_a_config_takes_names(command):
    needed = [f for f in command.flags if f.required and f is not CONFIG]
    args = [*(["x"] * len(command.words)), "--config", "mini:method=sft", "--config.steps=5"]
    args += [f"--{flag.name}={'cpu:1' if flag.name == 'topology' else '1'}" for flag in needed]
    if command.check_key is not None:
        args.remove("--config.steps=5")
    assert parse(command, args).config.method == "sft"
