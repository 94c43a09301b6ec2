"""The cost of a future run: expected from another seed, or bounds; unknown values never become numbers."""

from __future__ import annotations

import json
import re

import pytest

from ropd_jax import configs
from ropd_jax.cli import main as cli
from ropd_jax.plan import chips, costs, measure
from ropd_jax.plan.chips import Chip, Topology
from ropd_jax.plan.count import head_params, layer_matmul_params
from ropd_jax.plan.shapes import model_config
from ropd_jax.teacher import ChatReply, ChatRequest, Tape, Usage
from ropd_jax.types import Message


def config(model="gpt-4.1", **changes):
    models = {f"teacher.{role}.model": model for role in ("reference", "rubricator", "verifier")}
    return configs.load_config("experiments/quickstart.py", teacher__provider="openai", **models, **changes)


@pytest.fixture
def seed0(tmp_path):
    """A run of 48 steps that take 30 s in the median, and a tape of replies that cost a thousandth of a dollar."""
    rows = [{"step": s, "time/step_s": t} for s, t in enumerate((500.0, 30.0, 30.0), 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tape = Tape(tmp_path / "tape.sqlite")
    for role in ("reference", "rubric", "verify"):
        ask = ChatRequest(role, (Message("user", role),), "gpt-4.1")
        tape.put("openai", ask, ChatReply("ok", usage=Usage(100, 100, 0, 0), latency_s=1.0))
    tape.close()
    return tmp_path


def test_another_seed_gives_what_is_expected(seed0, tmp_path):
    words = costs.cost_of(config(), (str(tmp_path / "none"), str(seed0)), "v5e:2x4")
    assert words == (
        f"teacher: 4,608 calls, $4.61 expected by the tape of {seed0}; 0.4 hours expected by the steps of {seed0}"
    )


def test_without_one_there_are_limits_alone(tmp_path):
    words = costs.cost_of(config(), (str(tmp_path / "none"),), "v5e:2x4")
    assert re.fullmatch(
        r"teacher: 4,608 calls, \$[\d,]+\.\d\d at most; under 0\.1 hours at least on v5e:2x4, links not counted",
        words,
    )
    unknown = costs.cost_of(config("my-model"), (), "cpu:8")
    assert unknown == (
        "teacher: 4,608 calls, dollars unknown: a model without a price; hours unknown: no published figures for cpu:8"
    )


def test_a_slice_that_the_student_does_not_divide_over_has_no_hours():
    words = costs.cost_of(config(mesh__tp=8), (), "v5e:2x4")
    assert "hours on v5e:2x4 unknown: " in words


def test_the_hours_are_the_bounds_of_plan_without_its_links():
    cfg = configs.default()
    cfg.steps, cfg.data.prompts_per_step, cfg.data.max_prompt_tokens = 10, 8, 16
    cfg.sampling.rollouts, cfg.sampling.max_tokens = 4, 48
    toy = Topology(Chip("toy", 1e9, 1e9, 1e9, 1e30, 1e7, 1, "made up"), (8,))  # memory takes no time: only compute does
    got = costs.seconds_at_least(cfg, toy)
    planned = measure.measure(cfg, model_config("tiny"), toy, lambda text: None, only=("update",), cache=False)
    assert got > planned.bounds[0].compute
    model = model_config("tiny")
    matmuls = model.num_layers * layer_matmul_params(model) + head_params(model)
    tokens = 8 * 4 * 48
    assert got * 1e9 * 8 > tokens * 2 * matmuls * 4  # sampled once, three passes in the update
    assert got * 1e9 * 8 < tokens * 2 * matmuls * 16
    assert costs.seconds_at_least(cfg, Topology(chips.CPU, (8,))) is None


def test_the_command_says_them_behind_what_is_to_be_trained(tmp_path, capsys):
    file = tmp_path / "table.py"
    file.write_text(
        "from ropd_jax.analysis.tables import Row, TableSpec\n\n\ndef get_table():\n"
        "    row = Row('r', runs=('r0', 'r1'), train='--config experiments/quickstart.py --config.seed={seed}')\n"
        "    return TableSpec('T', ('gsm8k',), (row,))\n"
    )
    args = ["table", str(file), f"--runs={tmp_path}", "--costs"]
    assert cli.main([*args, "--topology=v5e:2x4"]) == 0
    out = capsys.readouterr().out
    assert out.count("$0.00 at most; under 0.1 hours at least on v5e:2x4, links not counted") == 2
    assert cli.main([*args, "--topology=v9"]) == 2
