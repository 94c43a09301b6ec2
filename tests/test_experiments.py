"""The configs of the paper: each loads, can work, and holds the numbers of its column."""

from __future__ import annotations

import pytest

from ropd_jax import configs
from ropd_jax.configs import load_config
from ropd_jax.plan.shapes import model_config
from ropd_jax.training.setup import check_config
from ropd_jax.training.validate import check_length
from ropd_jax.types import UserError
from ropd_jax.workdir.config import flatten

PAPER = {  # arXiv 2605.07396, Table A2
    "optim.lr": 1e-6, "optim.schedule": "cosine", "optim.warmup_steps": 100,
    "optim.b1": 0.9, "optim.b2": 0.95, "optim.weight_decay": 0.1, "optim.clip_norm": 1.0, "optim.minibatches": 1,
    "data.prompts_per_step": 32, "sampling.rollouts": 8, "teacher.references": 4,
    "loss.normalize_std": True, "loss.aggregation": "seq_mean",
    "sampling.max_tokens": 8192, "sampling.temperature": 1.0, "sampling.top_p": 1.0,
    "teacher.reference.temperature": 0.0, "teacher.rubricator.temperature": 0.7, "teacher.verifier.temperature": 0.0,
    "teacher.reference.model": "gpt-5.2-chat-latest", "loss.kl_coef": 0.0,
}  # fmt: skip
RELEASED = PAPER | {  # the official code's configuration
    "optim.schedule": "constant", "optim.warmup_steps": 0, "optim.b2": 0.999, "optim.weight_decay": 0.01,
    "optim.minibatches": 4, "steps": 500, "checkpoint.every": 100, "loss.normalize_std": False,
    "loss.aggregation": "token_mean", "loss.clip_low": 0.2, "loss.clip_high": 0.28, "loss.dual_clip": 3.0,
    "loss.is_cap": 2.0, "loss.is_clip": True,
    "data.max_prompt_tokens": 2048, "teacher.reference.temperature": None, "teacher.rubricator.temperature": None,
    "teacher.verifier.temperature": None, "teacher.reference.max_output_tokens": 8192,
    "teacher.rubricator.max_output_tokens": 8192, "teacher.verifier.max_output_tokens": 4096,
}  # fmt: skip
STEPS = {"qwen3_4b_math": 531, "qwen3_4b_science": 625, "qwen3_4b_medical": 625, "gemma3_4b_it": 531}
STUDENT = {name: "google/gemma-3-4b-it" if name.startswith("gemma") else "Qwen/Qwen3-4B" for name in STEPS}
MODES = {name: [None] if name.startswith("gemma") else ["non_thinking", "thinking"] for name in STEPS}
ALL = [(name, mode, column) for name in STEPS for mode in MODES[name] for column in ("paper", "released")]


@pytest.mark.parametrize(("name", "mode", "column"), ALL)
def test_a_config_holds_the_numbers_of_its_column(name, mode, column):
    cfg = load_config(f"experiments/{name}.py:{','.join(filter(None, (mode, column)))}")
    check_config(cfg)
    check_length(
        cfg.data.max_prompt_tokens, cfg.sampling.max_tokens, cfg.optim.row_len, model_config(cfg.student.checkpoint)
    )
    found = flatten(cfg.to_dict())
    expected = {"paper": PAPER | {"steps": STEPS[name]}, "released": RELEASED}[column]
    expected = expected | {"student.checkpoint": STUDENT[name], "student.dtype": "bfloat16"}
    if mode:
        expected["student.enable_thinking"] = mode == "thinking"
    assert {key: found[key] for key in expected} == expected


def test_the_paper_without_thinking_is_implied():
    bare = load_config("experiments/qwen3_4b_math.py").to_dict()
    assert bare == load_config("experiments/qwen3_4b_math.py:non_thinking,paper").to_dict()
    assert bare == load_config("experiments/qwen3_4b_math.py:paper").to_dict()
    assert bare["optim"]["row_len"] == 10_240


@pytest.mark.parametrize(
    ("variant", "words"), [("thinkin", "did you mean thinking"), ("paper,released", "names paper and released")]
)
def test_a_wrong_variant_is_said_with_what_there_is(variant, words):
    with pytest.raises(UserError, match=words):
        load_config(f"experiments/qwen3_4b_math.py:{variant}")


def test_a_column_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="column 'release' is unknown; did you mean released"):
        configs.paper_run("release")


def test_the_columns_differ_in_what_the_switch_names_and_in_nothing_else():
    paper, released = (flatten(configs.paper_run(column).to_dict()) for column in ("paper", "released"))
    roles = ("reference", "rubricator", "verifier", "scorer")
    asked = {f"teacher.{role}.{key}" for role in roles for key in ("temperature", "extra", "extra.reasoning_effort")}
    differing = {key for key in paper.keys() | released.keys() if paper.get(key) != released.get(key)}
    assert differing - asked == set(configs.COLUMNS["released"])


def test_words_choose_one_of_each_tuple():
    assert configs.choose("", ("a", "b"), ("c", "d")) == ("a", "c")
    assert configs.choose("d,b", ("a", "b"), ("c", "d")) == ("b", "d")
