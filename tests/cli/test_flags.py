"""Flags: overrides, `-` and `_`, and mistakes."""

from __future__ import annotations

import sys

import pytest

from ropd_jax.cli import main as cli
from ropd_jax.cli.flags import normalized, parse, steps_of
from ropd_jax.data.mixture import sources_of
from ropd_jax.types import UserError


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


@pytest.mark.parametrize(
    "args, message",
    [
        (["trian"], "'trian' is not a command; did you mean train?"),
        (["train", "--workdir=w"], "--config is missing"),
        (["train", "--config", "FILE"], "--workdir is missing"),
        (["train", "--config"], "--config has no value"),
        (["train", "--config.seed=1", "--workdir=w"], "but none is given; add --config NAME"),
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
        (["serve-teacher", "--book=a.jsonl"], "--book is now --answer_key; write --answer_key=..."),
        (["serve-teacher", "x"], "takes flags only, not 'x'"),
        (["timeline"], "which run? expected its directory first"),
        (["timeline", "a", "b"], "takes RUN and flags, not 'b'"),
        (["train", "--config", "FILE", "--config.ropd.told=True"], "renamed: write ropd.blind, with the opposite"),
        (["train", "--config", "FILE", "--config.stream.carry-after-s=3"], "write stream.straggler_timeout_s"),
        (["train", "--config", "FILE", "--config.teacher.scripted.book=x"], "write teacher.scripted.answer_key"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_runs(runs, error_of, args, message):
    path, calls = runs
    assert message in error_of(*[path if a == "FILE" else a for a in args])
    assert calls == []


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["--num-processes", "2"], ["--num_processes", "2"]),
        (["--num-processes=2", "--process_id=1"], ["--num_processes=2", "--process_id=1"]),
        (["--config.optim.warmup-steps=3"], ["--config.optim.warmup_steps=3"]),
        (["--no-config.eval.sampled"], ["--noconfig.eval.sampled"]),
        (["-workdir", "my-runs/a-b"], ["--workdir", "my-runs/a-b"]),
        (["--workdir", "--strange-dir"], ["--workdir", "--strange-dir"]),  # a value stays as it is
        (["--workdir=a-b=c-d"], ["--workdir=a-b=c-d"]),
        (["--config", "my-config.py", "a-word", "-5"], ["--config", "my-config.py", "a-word", "-5"]),
    ],
)
def test_dash_and_underscore_are_the_same_in_the_name_of_a_flag(written, read):
    assert normalized(cli.COMMANDS["train"], written) == read


def test_every_flag_of_every_command_can_be_written_with_either():
    for command in cli.COMMANDS.values():
        for flag in command.flags:
            dashed = f"--{flag.name.replace('_', '-')}"
            if flag.type is bool:
                assert normalized(command, [dashed, f"--no-{dashed[2:]}"]) == [f"--{flag.name}", f"--no{flag.name}"]
            else:
                assert normalized(command, [dashed, "a-b"]) == [f"--{flag.name}", "a-b"]


def test_either_reaches_the_command(runs):
    path, calls = runs
    args = ["--config.optim.warmup-steps=7", "--no-config.eval.sampled", "--workdir=w"]
    assert cli.main(["train", "--config", path, *args]) == 0
    config, workdir = calls[0]
    assert (config.optim.warmup_steps, config.eval.sampled, workdir) == (7, False, "w")


def test_none_is_a_value_of_the_keys_that_can_be_none(runs):
    path, calls = runs
    args = ["--config.data.size=None", "--config.data.heldout-size=none", "--config.teacher.reference.temperature=None",
            "--config.teacher.requests_per_minute=5", "--config.teacher.requests_per_minute=None"]  # fmt: skip
    assert cli.main(["train", "--config", path, *args, "--workdir=w"]) == 0
    config, _ = calls[0]
    assert (config.data.size, config.data.heldout_size, config.teacher.reference.temperature) == (None, None, None)
    assert config.teacher.requests_per_minute is None
    assert cli.main(["train", "--config", path, "--config.data.size=None", "--config.data.size=7", "--workdir=w"]) == 0
    assert calls[1][0].data.size == 7  # the last one counts
    assert cli.main(["train", "--config", path, "--config.seed=None", "--workdir=w"]) == 2


def test_sources_can_be_listed_on_the_command_line(runs):
    path, calls = runs
    several = "({'name': 'a', 'weight': 1}, {'name': 'b', 'weight': 3})"
    for text, shares in ((several, [0.25, 0.75]), ("[{'name': 'a'}]", [1.0])):
        assert cli.main(["train", "--config", path, f"--config.data.sources={text}", "--workdir=w"]) == 0
        assert [s.share for s in sources_of(calls[-1][0].data)] == shares


def test_words_can_follow_the_flags():
    args = parse(cli.COMMANDS["timeline"], ["--steps", "1:", "runs/a"])
    assert (args.words, args["steps"], args["out"]) == (["runs/a"], "1:", "")


@pytest.mark.parametrize(("text", "steps"), [("", None), ("2:5", (2, 5)), (":5", (0, 5)), ("3:", (3, sys.maxsize))])
def test_a_range_of_steps(text, steps):
    assert steps_of(text) == steps


@pytest.mark.parametrize("text", [":", "3", "a:b", "-1:2"])
def test_what_is_not_a_range_of_steps(text):
    with pytest.raises(UserError, match="is not a range; expected a:b"):
        steps_of(text)


def test_a_command_without_a_config_gets_the_default_one():
    args = parse(cli.COMMANDS["grade"], ["--benchmark=gsm8k", "--answers=a.jsonl", "--config.teacher.budget.usd=3"])
    assert args.config.teacher.budget.usd == 3.0 and args.config.is_locked
    assert args.values == {
        "benchmark": "gsm8k", "answers": "a.jsonl", "data": "", "out": "", "against": "", "timeout_s": 5.0, "workers": 0
    }  # fmt: skip
