"""Whole runs with adapters: what is trained, what is saved, and how a resumed run continues."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest

from ropd_jax.models.lora import Lora, init_adapters
from ropd_jax.train import train
from ropd_jax.types import UserError
from ropd_jax.weights.student import load_checkpoint
from ropd_jax.workdir.checkpoint import Checkpoints
from tests.helpers import restore_raw, trees_max_diff
from tests.runs.test_train import finished_params, tiny_config

LORA = dict(student__lora__rank=4, student__lora__alpha=8.0)


def steps_of(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "update/loss" in row]


@pytest.fixture(scope="module")
def int8_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("lora") / "run"
    cfg = tiny_config(**LORA, student__lora__base_dtype="int8", loss__kl_coef=0.1, checkpoint__keep=5)
    train(cfg, workdir)
    return cfg, workdir


def test_only_adapters_train_and_only_they_are_saved(int8_run):
    cfg, workdir = int8_run
    model = load_checkpoint("tiny").cfg
    first = init_adapters(model, Lora.from_config(cfg.student.lora), cfg.seed)
    one, two = (finished_params(workdir, step) for step in (1, 2))
    assert jax.tree.map(np.shape, one["params"]) == jax.tree.map(np.shape, first)
    sizes = {np.size(x) for x in jax.tree.leaves(one["opt_state"])}
    assert sizes <= {np.size(x) for x in jax.tree.leaves(first)} | {1}
    q0, q1, q2 = (p["layers"]["attn"]["q_DNH"] for p in (first, one["params"], two["params"]))
    np.testing.assert_allclose(q1["a_DR"], q0["a_DR"], atol=1e-7)  # while B is zero, A has no gradient; lr is 1e-5
    assert np.abs(q1["b_RNH"]).max() > 0 and np.abs(q2["a_DR"] - q1["a_DR"]).max() > 0


def test_the_reference_of_the_kl_term_is_the_base(int8_run):
    one, two = steps_of(int8_run[1])
    assert abs(one["update/kl"]) < 1e-10 and two["update/kl"] > 1e-8
    assert one["update/logp_gap_max"] < 1e-4 and two["update/logp_gap_max"] < 1e-4  # the sampler has the same adapters


def test_a_resumed_run_with_adapters_is_the_uninterrupted_one_bit_for_bit(int8_run, tmp_path):
    cfg, workdir = int8_run
    again = tmp_path / "run"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / "2")
    (again / "result.json").unlink()
    train(cfg, again)
    assert trees_max_diff(finished_params(workdir, 2), finished_params(again, 2)) == 0.0


def test_another_rank_is_refused(int8_run):
    _, workdir = int8_run
    other = tiny_config(**(LORA | dict(student__lora__rank=8)), student__lora__base_dtype="int8", loss__kl_coef=0.1)
    with pytest.raises(UserError, match=r"student.lora.rank: 4 there, 8 now"):
        train(other, workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=5)
    adapters = init_adapters(load_checkpoint("tiny").cfg, Lora.from_config(other.student.lora), 0)
    like = restore_raw(checkpoints, 2)[0] | {"params": adapters}
    with pytest.raises(UserError, match=r"holds \S+/a_DR of shape \[3, 96, 4\], expected \S+ of shape \[3, 96, 8\]"):
        checkpoints.restore(2, like)
    checkpoints.close()


def test_sft_with_adapters_lowers_its_loss(tmp_path):
    cfg = tiny_config(
        **(LORA | dict(student__lora__rank=8, student__lora__alpha=16.0)), method="sft", steps=6, optim__lr=2e-3,
        optim__warmup_steps=0, checkpoint__every=6,
    )  # fmt: skip
    train(cfg, tmp_path / "run")
    loss = [row["update/loss"] for row in steps_of(tmp_path / "run")]
    assert np.mean(loss[-2:]) < 0.8 * np.mean(loss[:2]), loss


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(student__lora__rank=-4), "rank=-4"),
        (dict(student__lora__base_dtype="int8"), "base_dtype='int8' without adapters"),
        (LORA | dict(student__lora__targets=("q_proj",)), "'q_proj' matches no weight"),
    ],
)
def test_impossible_adapters_are_found_before_anything_is_written(changes, words, tmp_path):
    with pytest.raises(UserError, match=words):
        train(tiny_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
