"""A run that is extended, and runs that start from another run's checkpoint."""

from __future__ import annotations

import json
import logging

import jax
import numpy as np
import pytest

from ropd_jax.models.lora import Lora, init_adapters
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.train import train
from ropd_jax.training.fork import Origin, check_origin, forked, origin_of
from ropd_jax.training.sections import OptimConfig, section
from ropd_jax.training.update import State
from ropd_jax.types import UserError
from ropd_jax.weights.student import load_checkpoint
from ropd_jax.workdir.checkpoint import Checkpoints
from ropd_jax.workdir.config import claim, provenance
from ropd_jax.workdir.policy import load_policy
from tests.helpers import trees_max_diff
from tests.runs.test_train import finished_params, tiny_config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of two steps, and a run of one step that was extended to two."""
    place = tmp_path_factory.mktemp("runs")
    how = dict(checkpoint__keep=3, optim__warmup_steps=1)
    train(tiny_config(steps=2, **how), place / "whole")
    train(tiny_config(steps=1, **how), place / "extended")
    train(tiny_config(steps=2, **how), place / "extended")
    return place


def test_an_extended_run_is_the_longer_run_bit_for_bit(runs):
    a, b = (finished_params(runs / name, 2) for name in ("whole", "extended"))
    assert trees_max_diff(a, b) == 0.0
    results = [json.loads((runs / "extended" / n).read_text()) for n in ("result_step_000001.json", "result.json")]
    assert [r["steps"] for r in results] == [1, 2]
    with pytest.raises(UserError, match=r"steps=1, but the run has finished 2"):
        train(tiny_config(steps=1, checkpoint__keep=3, optim__warmup_steps=1), runs / "extended")


def test_a_fork_starts_from_the_checkpoint_with_another_config_and_says_so(runs, tmp_path, caplog):
    cfg, new = tiny_config(steps=1, optim__lr=3e-4, seed=5, checkpoint__keep=3), tmp_path / "new"
    with caplog.at_level(logging.INFO):
        result = train(cfg, new, fork=f"{runs / 'whole'}@1")
    assert f"forked from {runs / 'whole'} after step 1: parameters and moments" in caplog.text
    origin = {"run": str(runs / "whole"), "step": 1}
    assert result["forked_from"] == origin == provenance(new)["forked_from"]
    begun, theirs = finished_params(new, 0), finished_params(runs / "whole", 1)
    for part in ("params", "opt_state"):
        a, b = (jax.tree.leaves_with_path(x[part]) for x in (begun, theirs))
        differ = [p for (p, x), (_, y) in zip(a, b, strict=True) if not np.array_equal(x, y)]
        assert len(differ) == (part == "opt_state")  # only the count of the schedule restarts
    assert trees_max_diff(finished_params(new, 1)["params"], begun["params"]) > 0
    assert train(cfg, new).values == result.values  # resumed without --fork
    with pytest.raises(UserError, match=rf"was forked from {runs / 'whole'}@1; remove --fork"):
        train(cfg, new, fork=f"{runs / 'whole'}@2")


@pytest.mark.parametrize(
    ("fork", "words"),
    [
        ("{runs}/whole@7", r"has no checkpoint after step 7; it has those after steps 1, 2"),
        ("{runs}/none", r"holds no run; expected a workdir of ropd train"),
        ("{runs}", r"holds no run"),
    ],
)
def test_a_fork_of_what_is_not_there(runs, tmp_path, fork, words):
    with pytest.raises(UserError, match=words):
        origin_of(fork.format(runs=runs), tmp_path / "new")
    with pytest.raises(UserError, match="already holds a run"):
        origin_of(f"{runs}/whole", runs / "extended")


def stored(directory, **changes):
    """A run's directory with a checkpoint after step 3, whose adapters or parameters are random; (origin, student)."""
    cfg = tiny_config(**changes)
    claim(directory, cfg.to_dict())
    lora, student = Lora.from_config(cfg.student.lora), load_checkpoint("tiny")
    rng = np.random.default_rng(0)
    like = init_adapters(student.cfg, lora, 0) if lora.rank else student.params
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), like)
    checkpoints = Checkpoints(directory / "checkpoints", keep=1)
    tx = section(OptimConfig, cfg.optim).make(1)
    checkpoints.save(3, State(params, tx.init(params)), {})
    checkpoints.close()
    return Origin(directory, 3, True), student, params


def begin(params, mesh, **changes):
    tx = section(OptimConfig, tiny_config(**changes).optim).make(1)
    params = mesh_lib.put(jax.tree.map(np.zeros_like, params), mesh, mesh_lib.RULES.storage(params))
    return State(params, jax.jit(tx.init)(params))


def test_another_optimizer_starts_from_zero(tmp_path, caplog):
    origin, student, params = stored(tmp_path / "run")
    mesh = mesh_lib.make_mesh(1, 1)
    check_origin(origin, Lora(), student.cfg, {})
    with jax.set_mesh(mesh), caplog.at_level(logging.INFO):
        fresh = begin(params, mesh, optim__moments="int8")
        state = forked(origin, fresh, mesh, Lora())
    assert trees_max_diff(state.params, params) == 0.0 and trees_max_diff(state.opt_state, fresh.opt_state) == 0.0
    assert "optimizer and method differ in shape and start from zero" in caplog.text


def test_adapters_are_taken_over_or_merged_and_never_mixed_up(tmp_path):
    how = dict(student__lora__rank=2, student__lora__targets=("attn.*",))
    origin, student, adapters = stored(tmp_path / "run", **how)
    lora, mesh = Lora.from_config(tiny_config(**how).student.lora), mesh_lib.make_mesh(1, 1)
    check_origin(origin, lora, student.cfg, {})
    with jax.set_mesh(mesh):
        assert trees_max_diff(forked(origin, begin(adapters, mesh), mesh, lora).params, adapters) == 0.0
        check_origin(origin, Lora(), student.cfg, {})
        merged = forked(origin, begin(student.params, mesh), mesh, Lora()).params
    policy = load_policy(tmp_path / "run").params["layers"]
    own = policy["adapters"]["attn"]["q_DNH"]
    q = policy["attn"]["q_DNH"] + np.einsum("LDR,LRNH->LDNH", own["a_DR"], own["b_RNH"])
    assert np.abs(np.asarray(merged["layers"]["attn"]["q_DNH"]) - q).max() < 1e-4
    for other in (dict(student__lora__rank=4), dict(student__lora__alpha=1.0)):
        with pytest.raises(UserError, match=r"do not fit this run .*ropd export"):
            check_origin(origin, Lora.from_config(tiny_config(**how | other).student.lora), student.cfg, {})
    whole, *_ = stored(tmp_path / "whole")
    with pytest.raises(UserError, match=r"it trained all weights.*ropd export"):
        check_origin(whole, lora, student.cfg, {})
