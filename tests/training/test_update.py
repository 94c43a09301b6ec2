"""The compiled program of the update: arrays that it never has, donated buffers, dtypes of its computations."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax import configs
from ropd_jax.core.batches import TrainBatch
from ropd_jax.methods import load_method
from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.training.setup import check_config, read_config, update_config
from ropd_jax.training.update import State, make_update
from ropd_jax.types import UserError

T, V, CHUNK = 384, 521, 16  # V is a prime: a dimension divisible by it contains the vocabulary
MODEL = ModelConfig(vocab_size=V, num_layers=2, d_model=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24,
                    rope_theta=1e4, norm_eps=1e-5, tied=True, max_seq_len=T)  # fmt: skip


def built(A=2, b=1, **changes):
    """(the update compiled only from shapes, its state's shapes)."""
    cfg = configs.default()
    cfg.optim.logprob_chunk = CHUNK
    for key, value in changes.items():
        cfg.update_from_flattened_dict({key.replace("__", "."): value})
    tx = read_config(cfg).optim.make(cfg.steps)
    params = transformer.param_shapes(MODEL)
    state = State(params, jax.eval_shape(tx.init, params))
    kinds = dict(mask_BT=bool, informative_BT=bool, old_logp_BT=np.float32, advantage_BT=np.float32)
    batch = TrainBatch(*(jax.ShapeDtypeStruct((A, b, T), kinds.get(f, np.int32)) for f in TrainBatch._fields))
    return make_update(update_config(cfg), MODEL, load_method("ropd", cfg), tx).lower(
        state, None, batch
    ).compile(), state


@pytest.fixture(scope="module")
def compiled():
    return built()


def shapes(program) -> set[tuple[int, ...]]:
    """Shapes of all arrays of an optimised program."""
    found = re.findall(r"\b(?:f32|bf16|f16|s32|u32|s8|pred)\[([\d,]+)\]", program.as_text())
    return {tuple(map(int, dims.split(","))) for dims in found}


def test_no_array_holds_the_logits_of_all_positions(compiled):
    with_vocabulary = [s for s in shapes(compiled[0]) if any(d % V == 0 for d in s)]
    largest = max(math.prod(s) for s in with_vocabulary)
    assert largest == CHUNK * V  # a chunk's logits, or as much: the table, V x 16
    assert largest * 8 < T * V


def test_no_array_holds_the_scores_of_all_pairs(compiled):
    assert not [s for s in shapes(compiled[0]) if s.count(T) > 1]


def test_the_state_is_given_back_in_its_own_memory(compiled):
    program, state = compiled
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert program.memory_analysis().alias_size_in_bytes >= size
    aliased = re.search(r"input_output_alias=\{(.*?)\}, entry", program.as_text()).group(1)
    assert aliased.count("alias)") == len(jax.tree.leaves(state))


def test_more_parts_take_no_more_memory(compiled):
    parts = built(A=32)[0].memory_analysis().temp_size_in_bytes
    assert parts <= compiled[0].memory_analysis().temp_size_in_bytes + 32 * T * 4  # the weights of 30 more rows


def test_bfloat16_computes_on_float32_masters(compiled):
    program, state = built(student__dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    out = jax.tree.leaves(program.out_info[0].params)
    assert {x.dtype for x in out} == {jnp.dtype("float32")}
    assert "bf16[" in program.as_text() and "bf16[" not in compiled[0].as_text()


def test_the_update_is_compiled_with_the_configs_options():
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_cpu_no_such_thing"):
        built(optim__xla_options="xla_cpu_no_such_thing=1 xla_tpu_neither=1")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("loss.kl_on", "all", r"loss.kl_on='all'; expected one of valid, informative"),
        ("optim.decay_mask", "norms", r"optim.decay_mask='norms'; expected one of matrices, all"),
    ],
)
def test_a_choice_that_is_unknown_is_refused_before_anything_is_loaded(key, value, words):
    cfg = configs.default()
    cfg.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=words):
        check_config(cfg)
