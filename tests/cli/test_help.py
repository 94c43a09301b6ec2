"""Help is made from the flags."""

from __future__ import annotations

import subprocess
import sys

import ropd_jax
from ropd_jax.cli import main as cli
from ropd_jax.cli.help import WIDTH, help_text


def test_help_explains_each_command(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)
    for name in cli.COMMANDS:
        assert cli.main([name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: ropd {name} ")
    assert cli.main([]) == 2


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from ropd_jax.cli import main; main.main(['--help']); main.main(['train', '--help']);"
        "main.main(['--version']); main.main(['trian']);"
        "heavy = {'jax', 'flax', 'absl', 'ml_collections', 'openai', 'transformers'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_help_has_every_flag_with_its_help_and_fits_100_columns(capsys):
    for command in cli.COMMANDS.values():
        text = help_text(command)
        assert max(map(len, text.splitlines())) <= WIDTH, command.name
        for flag in command.all_flags:
            assert f"  {flag.shown}" in text, (command.name, flag.name)
            assert flag.help.split()[0] in text
        assert ("--config.a.b=value" in text) == bool(command.config)
        assert command.examples and all(example in text for example in command.examples)
    assert max(map(len, cli.overview().splitlines())) <= WIDTH


def test_help_shows_defaults_and_switches():
    text = " ".join(help_text(cli.COMMANDS["collect-references"]).split())
    assert "--poll_s S Seconds between two polls of the jobs. Default: 30." in text
    assert "[--no-calls]" in help_text(cli.COMMANDS["preflight"])
    assert "[--thinking|--no-thinking]" in help_text(cli.COMMANDS["eval"])


def test_help_of_a_command_by_either_way(capsys):
    assert cli.main(["help", "plan"]) == 0
    one = capsys.readouterr().out
    assert cli.main(["plan", "--topology=x", "-h"]) == 0
    assert capsys.readouterr().out == one
    assert cli.main(["help"]) == 0
    assert capsys.readouterr().out == cli.overview()
    assert cli.main(["help", "plna"]) == 2
    assert "'plna' is not a command; did you mean plan?" in capsys.readouterr().err


def test_each_command_is_listed_once_with_its_summary():
    text = " ".join(cli.overview().split())
    for name, command in cli.COMMANDS.items():
        assert text.count(f" {name} {command.summary} ") == 1


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ropd {ropd_jax.__version__}\n"
    setup = subprocess.run([sys.executable, "setup.py", "--version"], capture_output=True, text=True)
    assert setup.stdout.split()[-1] == ropd_jax.__version__
