"""GAD: the discriminator's loss and gradient against a plain loop, its warm-up, its place in the checkpoint."""

from __future__ import annotations

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.methods import load_method
from ropd_jax.methods.gad import Texts, pair_loss, scores
from ropd_jax.models import transformer
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.train import train
from ropd_jax.types import Judgement, Message, Prompt, Rollout, RolloutGroup, UserError
from ropd_jax.weights.student import Student
from tests.helpers import TINY, IdTokenizer, trees_max_diff
from tests.runs.test_train import finished_params, tiny_config

G, M = 4, 2
HEAD_D = 0.3 * np.sin(np.arange(TINY.d_model, dtype=np.float32))


def config(**changes):
    return tiny_config(**({"method": "gad", "teacher__references": M, "sampling__max_tokens": 8} | changes))


def made(n=2, seed=0):
    """n groups; the last one's teacher failed."""
    rng, groups, judgements = np.random.default_rng(seed), [], []
    for p in range(n):
        rollouts = tuple(
            Rollout(
                t := rng.integers(2, 32, rng.integers(1, 8)).astype(np.int32), np.zeros(len(t), np.float32), "", "stop"
            )
            for _ in range(G)
        )
        prompt = Prompt(f"q{p}", (Message("user", "3"),))
        groups.append(RolloutGroup(prompt, rng.integers(2, 64, 3).astype(np.int32), rollouts, 0, p))
        texts = tuple(" ".join(map(str, rng.integers(32, 64, 5))) for _ in range(M)) if p < n - 1 else ()
        judgements.append(Judgement((None,) * G, (None if texts else "timeout",) * G, references=texts))
    return groups, judgements


def ready(cfg, mesh=None, head_D=HEAD_D):
    method, mesh = load_method("gad", cfg), mesh or mesh_lib.make_mesh(1, 1)
    with jax.set_mesh(mesh):
        d = method.setup(Student(TINY, transformer.init_params(TINY, 0), IdTokenizer()), mesh)
        head_D = jax.device_put(head_D, d.params["head_D"].sharding)
    return method, mesh, d._replace(params=d.params | {"head_D": head_D})


def plain_score(params, row):
    tokens = jnp.asarray(row, jnp.int32)[None]
    at = jnp.arange(len(row), dtype=jnp.int32)[None]
    x = transformer.hidden(TINY, params["body"], tokens, at, jnp.ones_like(tokens))
    return transformer.head(TINY, params["body"])[0](x)[0, -1] @ params["head_D"]


def rows_of(group, judgement):
    prompt = group.prompt_tokens_T.tolist()
    mine = [prompt + r.tokens_T.tolist() for r in group.rollouts]
    return mine, [prompt + [*map(int, text.split()), 1] for text in judgement.references]


@functools.cache
def plain():
    """(loss, its gradient, scores of the rollouts) of `made()` under `ready`'s discriminator, row by row."""
    groups, judgements = made()

    def loss(params):
        terms, scored = [], []
        for group, judgement in zip(groups, judgements, strict=True):
            if judgement.references:
                mine, theirs = ([plain_score(params, row) for row in rows] for rows in rows_of(group, judgement))
                terms += [-jax.nn.log_sigmoid(t - s) for s in mine for t in theirs]
                scored.append(jnp.stack(mine))
        return sum(terms) / len(terms), jnp.stack(scored)

    params = {"body": transformer.init_params(TINY, 0), "head_D": jnp.asarray(HEAD_D)}
    (value, scored_PG), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return float(value), jax.device_get(grad), np.asarray(scored_PG)


def test_bradley_terry_by_hand():
    score, length = jnp.float32([0.0, 2.0, 1.0, 9.0]), jnp.array([3, 3, 3, 0])  # two rollouts, one reference of two
    loss, right, pairs = pair_loss(score, length, 2, 4)
    assert float(loss) == pytest.approx(np.log1p(np.exp(-1.0)) + np.log1p(np.exp(1.0)), rel=1e-6)
    assert (int(right), int(pairs)) == (1, 2)


@pytest.mark.parametrize(("shape", "microbatch"), [((1, 1), 6), ((2, 2), 6)])
def test_scores_gradient_and_step_are_those_of_a_plain_loop(shape, microbatch):
    groups, judgements = made()
    method, mesh, d = ready(config(optim__microbatch=microbatch), mesh_lib.make_mesh(*shape))
    value, want, scored_PG = plain()
    norm = float(np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(want))))
    with jax.set_mesh(mesh):
        texts = method._texts(groups, judgements, IdTokenizer())

        def loss(params):
            found = [
                pair_loss(scores(TINY, params, Texts(*part)), part[1], G, G + M) for part in zip(*texts, strict=True)
            ]
            return sum(x[0] for x in found) / sum(x[2].astype(jnp.float32) for x in found)

        got = jax.device_get(jax.jit(jax.grad(loss))(d.params))
        _, revised, metrics = method.revise(d, groups, judgements, IdTokenizer())
    assert trees_max_diff(got, want) < 1e-5
    assert metrics["gad/grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["gad/loss"] == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose([j.rewards for j in revised[:-1]], scored_PG, atol=2e-5)
    assert revised[-1].rewards == (None,) * G and revised[-1].causes == ("timeout",) * G


def test_d_starts_without_a_preference_and_learns_one():
    groups, judgements = made()
    method, mesh, d = ready(config(gad__lr=3e-3, gad__clip_norm=1.0), head_D=0 * HEAD_D)
    seen = []
    with jax.set_mesh(mesh):
        for _ in range(8):
            d, revised, metrics = method.revise(d, groups, judgements, IdTokenizer())
            seen.append((metrics["gad/loss"], metrics["gad/pairs_right_frac"], revised[0].rewards))
    assert seen[0][0] == pytest.approx(np.log(2.0)) and seen[0][1] == 0.0 and set(seen[0][2]) == {0.0}
    assert seen[-1][0] < 0.3 and seen[-1][1] == 1.0


def test_warm_up_trains_on_references_alone_with_the_gradient_of_cross_entropy():
    groups, judgements = made()
    method, mesh, d = ready(config(gad__warmup_steps=1))
    with jax.set_mesh(mesh):
        _, revised, _ = method.revise(d, groups, judgements, IdTokenizer())
    assert revised[0].rewards == (1.0, 1.0, None, None) and revised[0].causes[2:] == ("warmup",) * 2
    adv = method.advantages(*method.rewards(groups, revised), 0)
    np.testing.assert_array_equal(adv.advantage_PG, [[1, 1, 0, 0], [0, 0, 0, 0]])
    rows = method.sequences(groups[0], revised[0], IdTokenizer())
    assert [len(r.completion_T) for r in rows] == [6, 6, 0, 0] and np.isnan(rows[0].old_logp_T).all()
    assert method.teaches_text and not method.warming(1)


def test_a_resumed_run_is_the_same_run_discriminator_included(tmp_path):
    cfg = tiny_config(method="gad", steps=3, gad__warmup_steps=1, gad__lr=1e-3, teacher__references=2)
    train(cfg, tmp_path / "whole")
    whole = finished_params(tmp_path / "whole", 3)
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "3")
    (tmp_path / "whole" / "result.json").unlink()
    train(cfg, tmp_path / "whole")
    again = finished_params(tmp_path / "whole", 3)
    assert trees_max_diff(whole, again) == 0.0
    d = again["method"]["params"]
    assert np.abs(d["head_D"]).max() > 0 and trees_max_diff(d["body"], again["params"]) > 0
    rows = [json.loads(x) for x in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert next(r["gad/loss"] for r in rows if "gad/loss" in r) == pytest.approx(np.log(2.0), abs=1e-5)


def test_dynamic_sampling_is_refused():
    with pytest.raises(UserError, match="set it to 0 with method=gad"):
        load_method("gad", config(sampling__resample=1))
