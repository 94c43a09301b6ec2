"""Log-probs of completions under another prompt: exact, packed, sharded, by name, unknown where they are not scored."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.core.advantages import Advantages
from ropd_jax.core.batches import TokenSequence, make_batch, of_completions, packing
from ropd_jax.methods import Method
from ropd_jax.models import transformer
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.training.scoring import Told
from ropd_jax.training.setup import update_config
from ropd_jax.training.update import step_parts
from tests.helpers import TINY
from tests.runs.test_train import tiny_config

PROMPT = np.array([3, 4], np.int32)
TOLD = {"a": np.array([3, 4, 20, 21, 22], np.int32), "b": np.array([5], np.int32)}
ROWS = [
    TokenSequence(PROMPT, np.array(answer, np.int32), np.zeros(len(answer), np.float32), told)
    for answer, told in [
        ([7, 8, 9, 1], TOLD),
        ([10, 1], {"a": TOLD["a"]}),
        ([11, 12, 1], {}),
        ([13], {"b": np.arange(2, 30, dtype=np.int32)}),
        ([], TOLD),
    ]
]
LENGTH = 12  # of the longest told prompt with its answer that is scored


@dataclasses.dataclass(eq=False)
class Tells(Method):
    contexts: tuple[str, ...] = ()

    async def judge(self, teacher, group):
        raise NotImplementedError


def plain_logprobs(params, prompt_T, completion_T):
    """From the whole softmax in float64, one sequence at a time."""
    tokens = jnp.asarray([[*prompt_T, *completion_T]], jnp.int32)
    at = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    x_BTD = transformer.hidden(TINY, params, tokens, at, jnp.ones_like(tokens))
    logits = np.asarray(transformer.logits(TINY, params, x_BTD)[0, len(prompt_T) - 1 : -1], np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logp[np.arange(len(completion_T)), completion_T]


def scorer(mesh, names=("a", "b"), **keys):
    how = update_config(tiny_config(sampling__temperature=1.0, **keys))
    return Told(how, TINY, mesh, Tells(tiny_config(), names), None, 8, LENGTH - 8)


def scored(shape=(1, 1), **keys):
    mesh = mesh_lib.make_mesh(*shape, jax.devices()[: shape[0] * shape[1]])
    params = transformer.init_params(TINY, 0)
    with jax.set_mesh(mesh):
        placed = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
        told = scorer(mesh, **keys)
        return params, told.scores(placed, ROWS)


@pytest.mark.parametrize(("shape", "keys"), [
    ((1, 1), {}),
    ((1, 1), dict(optim__row_len=24, optim__microbatch=1)),
    ((2, 2), dict(optim__row_len=24, optim__microbatch=2)),
    ((4, 1), dict(optim__microbatch=4)),
])  # fmt: skip
def test_scores_are_those_of_the_completion_behind_the_other_prompt(shape, keys):
    params, found = scored(shape, **keys)
    want = {"a": [0, 1], "b": [0]}
    for name, known in want.items():
        for i, row in enumerate(ROWS):
            assert found[name][i].shape == row.completion_T.shape
            if i in known:
                exact = plain_logprobs(params, row.told[name], row.completion_T)
                np.testing.assert_allclose(found[name][i], exact, atol=2e-5)
            else:  # not told, too long, or no completion
                assert np.isnan(found[name][i]).all()


def test_scores_are_exact_where_a_row_is_split_over_several_devices():
    mesh = mesh_lib.make_mesh(2, 1, jax.devices()[:8], cp=4)
    params = transformer.init_params(TINY, 0)
    with jax.set_mesh(mesh):
        placed = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
        told = scorer(mesh)
        assert told.batch(ROWS).tokens_BT.shape[-1] == 12  # 11 positions, which 4 does not divide
        found = told.scores(placed, ROWS)
    np.testing.assert_allclose(found["b"][0], plain_logprobs(params, TOLD["b"], ROWS[0].completion_T), atol=2e-5)


def test_scores_under_the_prompt_itself_are_the_trainers_log_probs():
    rows = [dataclasses.replace(row, told={"a": row.prompt_T}) for row in ROWS[:3]]
    mesh = mesh_lib.make_mesh(1, 1, jax.devices()[:1])
    params = transformer.init_params(TINY, 0)
    with jax.set_mesh(mesh):
        found = scorer(mesh, ("a",)).scores(params, rows)["a"]
    for row, values in zip(rows, found, strict=True):
        np.testing.assert_allclose(values, plain_logprobs(params, PROMPT, row.completion_T), atol=2e-5)


@pytest.mark.parametrize("keys", [{}, dict(optim__row_len=16, optim__microbatch=2)])
def test_notes_stand_where_the_update_has_the_same_completion(keys):
    mesh = mesh_lib.make_mesh(1, 1, jax.devices()[:1])
    params = transformer.init_params(TINY, 0)
    yes = np.ones(len(ROWS), bool)
    advantages = Advantages(np.zeros(len(ROWS), np.float32), yes, yes)
    with jax.set_mesh(mesh):
        told = scorer(mesh, **keys)
        notes, metrics = told(params, ROWS, advantages)
        found = told.scores(params, ROWS)
        batch = step_parts(ROWS, advantages, told.method, mesh, told.cfg.optim, told.length)
    targets = {tuple(row.completion_T): i for i, row in enumerate(ROWS)}
    seen = 0
    flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), (batch, notes))
    for b, segments_T in enumerate(flat[0].segments_BT):
        for segment in range(1, segments_T.max() + 1):
            here = (segments_T == segment) & flat[0].mask_BT[b]
            if not here.any():  # the row without a completion
                continue
            i = targets[tuple(flat[0].targets_BT[b][here])]
            seen += 1
            for name in ("a", "b"):
                np.testing.assert_array_equal(flat[1][f"told/{name}"][b][here], found[name][i])
    assert seen == 4
    assert metrics == {"context/a_frac": 2 / 4, "context/b_frac": 1 / 4, "context/too_long_frac": 1 / 4}


def test_the_shape_of_a_pass_does_not_depend_on_what_is_told():
    mesh = mesh_lib.make_mesh(1, 1, jax.devices()[:1])
    told = scorer(mesh, optim__row_len=16, optim__microbatch=2)
    bare = [dataclasses.replace(row, told={}) for row in ROWS]
    assert told.batch(ROWS).tokens_BT.shape == told.batch(bare).tokens_BT.shape


def test_completions_come_back_out_of_packed_rows():
    sequences = [TokenSequence(PROMPT[: 1 + n % 2], np.arange(n, dtype=np.int32), np.arange(n, dtype=np.float32) + 10 *
    n)
                 for n in (3, 1, 4, 0, 2)]  # fmt: skip
    yes = np.ones(5, bool)
    places = packing(sequences, 8, row_len=10, fixed=True)
    batch = make_batch(sequences, np.zeros(5, np.float32), yes, yes, 8, places=places, row_len=10)
    for values, s in zip(of_completions(batch.old_logp_BT, sequences, 8, places), sequences, strict=True):
        np.testing.assert_array_equal(values, s.old_logp_T)
