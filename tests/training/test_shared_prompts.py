"""Rollouts of one prompt that hold it once in a packed row: the layout, the same gradient, what is refused."""

from __future__ import annotations

import dataclasses
import types

import jax
import numpy as np
import pytest

from ropd_jax import configs
from ropd_jax.core.advantages import Advantages
from ropd_jax.core.batches import SHARED, TokenSequence, make_batch, packing_shared
from ropd_jax.methods import load_method
from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.training import validate
from ropd_jax.training.setup import read_config, update_config
from ropd_jax.training.update import State, make_update, on_mesh, step_parts
from ropd_jax.types import UserError

MODEL = ModelConfig(vocab_size=61, num_layers=2, d_model=16, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24,
                    rope_theta=1e4, norm_eps=1e-5, tied=True, max_seq_len=128)  # fmt: skip
LENGTH, G = 90, 6


def sequences(prompts=(40, 1, 57), seed=0) -> list[TokenSequence]:
    """``G`` answers of 1 to 30 tokens to each prompt; one answer is empty."""
    rng = np.random.default_rng(seed)
    made = []
    for size in prompts:
        prompt = rng.integers(3, 61, size).astype(np.int32)
        for g in range(G):
            n = 0 if (size, g) == (40, 2) else int(rng.integers(1, 31))
            made.append(TokenSequence(prompt, rng.integers(3, 61, n).astype(np.int32), np.full(n, -4.0, np.float32)))
    return made


def test_two_answers_to_one_prompt_by_hand():
    prompt = np.array([5, 6, 7])
    rows = [TokenSequence(prompt, np.array(c), np.full(len(c), -0.5, np.float32)) for c in ([8, 9, 1], [4, 1])]
    yes_B = np.ones(2, bool)
    b = make_batch(rows, np.array([0.5, -2], np.float32), yes_B, yes_B, 6, places=[[0, 1]], row_len=8, shared=True)
    np.testing.assert_array_equal(b.tokens_BT, [[5, 6, 7, 8, 9, 7, 4, 0]])
    np.testing.assert_array_equal(b.targets_BT, [[6, 7, 8, 9, 1, 4, 1, 0]])
    np.testing.assert_array_equal(b.positions_BT, [[0, 1, 2, 3, 4, 2, 3, 0]])
    np.testing.assert_array_equal(b.segments_BT[0, :7] - SHARED, [0, 0, 1, 1, 1, 2, 2])
    np.testing.assert_array_equal(b.mask_BT, [[0, 0, 1, 1, 1, 1, 1, 0]])
    np.testing.assert_array_equal(b.length_BT, [[0, 0, 3, 3, 3, 2, 2, 0]])
    np.testing.assert_array_equal(b.advantage_BT, [[0, 0, 0.5, 0.5, 0.5, -2, -2, 0]])
    np.testing.assert_array_equal(b.old_logp_BT, [[0, 0, -0.5, -0.5, -0.5, -0.5, -0.5, 0]])


@pytest.mark.parametrize("row_len", [89, 100, 200, 700])
@pytest.mark.parametrize("fixed", [True, False])
def test_every_answer_has_one_place_and_fits(row_len, fixed):
    rows = sequences()
    places = packing_shared(rows, LENGTH, row_len=row_len, fixed=fixed)
    held = sorted(i for place in places for i in place)
    assert held == [i for i, row in enumerate(rows) if len(row.completion_T)]
    yes_B = np.ones(len(rows), bool)
    b = make_batch(rows, yes_B.astype(np.float32), yes_B, yes_B, LENGTH, places=places, row_len=row_len, shared=True)
    assert b.mask_BT.sum() == sum(len(row.completion_T) for row in rows)
    if fixed:  # the number of rows follows from prompts, not from the lengths of answers
        longer = [dataclasses.replace(row, completion_T=np.full(30, 7, np.int32)) for row in rows]
        assert len(packing_shared(longer, LENGTH, row_len=row_len, fixed=True)) == len(places)


def updated(rows: list[TokenSequence], method: str = "ropd", **changes):
    """(parameters after one update, metrics, positions computed)."""
    cfg = configs.default()
    settings = {
        "optim.schedule": "constant",
        "optim.eps": 1e-3,
        "optim.warmup_steps": 0,
        "optim.remat": "none",
        "optim.lr": 1e-2,
    }
    cfg.update_from_flattened_dict(settings | changes)
    how, built = update_config(cfg), load_method(method, cfg)
    tx, mesh = read_config(cfg).optim.make(cfg.steps), mesh_lib.make_mesh(1, 1, jax.local_devices()[:1])
    rng = np.random.default_rng(3)
    with jax.set_mesh(mesh):
        params = transformer.init_params(MODEL, 0)
        advantages = Advantages(rng.normal(size=len(rows)).astype(np.float32), rng.random(len(rows)) < 0.9,
                                np.ones(len(rows), bool))  # fmt: skip
        batch = step_parts(rows, advantages, built, mesh, how.optim, LENGTH)
        placed, extras = on_mesh(batch, built, (), mesh)
        ref = jax.tree.map(lambda x: x + 0.01, params)
        state, metrics = make_update(how, MODEL, built, tx)(State(params, tx.init(params)), ref, placed, extras)
    return state.params, metrics, int((batch.segments_BT != 0).sum())


@pytest.mark.parametrize(
    "changes",
    [
        {"optim.row_len": 200},
        {"optim.row_len": 89, "optim.attention": "naive", "loss.ratio": "sequence", "loss.aggregation": "seq_mean"},
        {"optim.row_len": 128, "loss.kl_coef": 0.1, "optim.remat": "block", "optim.microbatch": 2},
    ],
    ids=str,
)
def test_the_update_is_that_of_rows_of_their_own(changes):
    rows = sequences()
    own, own_metrics, alone = updated(rows, **(changes | {"optim.row_len": 0, "optim.microbatch": 0}))
    shared, metrics, together = updated(rows, **changes, **{"optim.shared_prompts": True})
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(shared), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    for name, value in own_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-4, atol=1e-6, err_msg=name)
    assert together < 0.8 * alone


def test_an_answer_sees_nothing_of_its_neighbors():
    """Another answer, changed, leaves the log-probs of this one as they are; the prompt, changed, does not."""
    prompt = np.array([5, 6, 7, 8])
    yes_B, zero_B = np.ones(3, bool), np.zeros(3, np.float32)
    params = transformer.init_params(MODEL, 1)

    def last(first: int, other: int):
        prompts = [np.array([first, *prompt[1:]])] * 3
        rows = [
            TokenSequence(p, np.array([c, 9, 1]), np.zeros(3, np.float32))
            for p, c in zip(prompts, (other, 4, other), strict=True)
        ]
        b = make_batch(rows, zero_B, yes_B, yes_B, 7, places=[[0, 1, 2]], row_len=16, shared=True)
        where = np.flatnonzero(b.segments_BT[0] == SHARED + 2)
        return [
            np.asarray(transformer.hidden(MODEL, params, b.tokens_BT, b.positions_BT, b.segments_BT, attention=impl,
                                          shared=True))[0, where]
            for impl in ("short", "naive")
        ]  # fmt: skip

    for one, same, different in zip(last(5, 11), last(5, 12), last(13, 11), strict=True):
        np.testing.assert_array_equal(one, same)
        assert np.abs(one - different).max() > 1e-3


@pytest.mark.parametrize(
    ("optim", "model", "method", "words"),
    [
        ({"row_len": 0}, {}, "ropd", "optim.row_len=0"),
        ({"row_len": 4_096}, {}, "ropd", "optim.row_len=4096"),
        ({"attention": "splash"}, {}, "ropd", "'splash'"),
        ({}, {"window": 16, "local_layers": (True, False)}, "ropd", "16 positions"),
        ({}, {}, "lopd", "LOPD reads"),
    ],
)
def test_what_cannot_share_is_refused(optim, model, method, words):
    cfg = configs.default()
    cfg.optim.update({"row_len": 512, "shared_prompts": True} | optim)
    if method == "lopd":
        cfg.lopd.checkpoint = "tiny"
    mesh = types.SimpleNamespace(shape={"fsdp": 1, "tp": 1})
    with pytest.raises(UserError, match=r"optim\.shared_prompts=True") as error:
        validate.check_shared_prompts(
            read_config(cfg).optim, load_method(method, cfg), dataclasses.replace(MODEL, **model), mesh
        )
    assert words in str(error.value)
