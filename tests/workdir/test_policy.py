"""Students by name and by run."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from ropd_jax import configs
from ropd_jax.models.lora import Lora, attach, init_adapters
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.types import UserError
from ropd_jax.weights.student import load_checkpoint
from ropd_jax.workdir.checkpoint import Checkpoints
from ropd_jax.workdir.kept import kept_steps
from ropd_jax.workdir.policy import load_policy, load_student


def make_run(path, after, **lora):
    """A run of the tiny student with one checkpoint per entry of ``after``: step -> parameters."""
    checkpoints = Checkpoints(path / "checkpoints", keep=9)
    for step, params in after.items():
        checkpoints.save(step, {"params": params}, {})
    checkpoints.close()
    cfg = configs.default()
    cfg.student.checkpoint = "tiny"
    cfg.student.lora.update(lora)
    (path / "config.json").write_text(json.dumps(cfg.to_dict()))
    return path


@pytest.fixture(scope="module")
def tiny():
    return load_checkpoint("tiny")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
    after = {s: jax.tree.map(lambda x, s=s: (x + s).astype(np.float32), tiny.params) for s in (2, 4)}
    return make_run(tmp_path_factory.mktemp("full") / "run", after), after


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_name_a_directory_and_a_run(tiny, run):
    path, after = run
    assert_same(load_student("tiny").params, tiny.params)
    assert kept_steps(path) == [2, 4]
    for step, wanted in ((None, after[4]), (4, after[4]), (2, after[2]), (0, tiny.params)):
        student = load_student(path, step)
        assert_same(student.params, wanted)
        assert student.tokenizer.encode("1 + 2") == tiny.tokenizer.encode("1 + 2")
    assert_same(load_policy(str(path), 2).params, after[2])


def test_a_run_on_a_mesh_is_sharded(run):
    path, after = run
    mesh = mesh_lib.make_mesh(2, 1)
    params = load_student(path, mesh=mesh).params
    assert_same(jax.device_get(params), after[4])
    for key, x in jax.tree_util.tree_leaves_with_path(params):
        assert x.sharding.spec == mesh_lib.RULES.spec(mesh_lib.dims_of(key, x)), key


def test_the_adapters_of_a_run_are_attached(tmp_path, tiny):
    lora = Lora(rank=2, alpha=6.0, targets=("attn.*",))
    adapters = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), init_adapters(tiny.cfg, lora, 0))
    path = make_run(tmp_path / "run", {3: adapters}, rank=2, alpha=6.0, targets=("attn.*",))
    assert_same(load_student(path).params, attach(lora, tiny.params, adapters))


def test_what_is_not_there_is_named(tmp_path, run):
    path, _ = run
    with pytest.raises(UserError, match="no checkpoint after step 3; there are those after steps 2, 4"):
        load_student(path, 3)
    with pytest.raises(UserError, match="step=3 selects a checkpoint of a run, but tiny is not a run; remove it"):
        load_student("tiny", 3)
    with pytest.raises(UserError, match="does not exist; expected tiny, smollm2"):
        load_student(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"is not a run; expected a directory with config\.json and checkpoints/"):
        load_policy(tmp_path)
    new = make_run(tmp_path / "new", {})
    with pytest.raises(UserError, match=r"has no checkpoint yet; wait for the first, or use step=0"):
        load_student(new)
    load_student(new, 0)
