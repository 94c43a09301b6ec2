"""The engine's slots: refill, pages, fewer rows at the end; none of it affects a rollout."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.models import transformer
from ropd_jax.models.logprobs import token_logprobs
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.sampling import engine as engine_lib
from ropd_jax.sampling import paged_attention
from ropd_jax.sampling import pages as paging
from ropd_jax.sampling import weights as weights_lib
from ropd_jax.sampling.engine import EngineConfig, prefill, sample_groups
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.sampling.slots import Slots
from ropd_jax.types import Message, Prompt, UserError
from tests.helpers import TINY as THREE_LAYERS
from tests.helpers import IdTokenizer

TINY = dataclasses.replace(THREE_LAYERS, num_layers=2)

# 2 prompts x 4 rollouts at once, 7 prompts; pages of 4 tokens, checks every 2
ENGINE = EngineConfig(
    rollouts=4, prompts=2, prompt_len=8, max_tokens=12, stop_ids=(1,), rule=SamplingRule(), chunk=2, page_chunks=2
)
RNG = np.random.default_rng(0)
TOKENS = [RNG.integers(2, 64, n).astype(np.int32) for n in (3, 8, 1, 5, 2, 7, 4)]
PROMPTS = [Prompt(f"q{i}", (Message("user", "?"),)) for i in range(7)]
LIMITS = [[int(n) for n in RNG.integers(1, 13, 4)] for _ in PROMPTS]
WINDOWED = dataclasses.replace(TINY, window=6, local_layers=(True, False))


@pytest.fixture(scope="module")
def params():
    return transformer.init_params(TINY, 0)


@pytest.fixture(scope="module")
def rollouts(params):
    return sample(params)


def sample(params, *, cfg=TINY, engine=ENGINE, order=range(7), limits=LIMITS, seed=0, step=0):
    chosen = [[x[i] for i in order] for x in (PROMPTS, TOKENS, limits)]
    groups = sample_groups(cfg, engine, params, IdTokenizer(), *chosen[:2], seed=seed, step=step, limits=chosen[2])
    return {g.prompt.id: g.rollouts for g in groups}


def worst_gap(params, groups, *, cfg=TINY) -> float:
    """Largest difference to the trainer's own log-probs."""
    rows = [(int(name[1:]), r) for name, group in groups.items() for r in group]
    tokens_BT = np.zeros((len(rows), 32), np.int32)
    for row, (i, r) in zip(tokens_BT, rows, strict=True):
        both = np.concatenate([TOKENS[i], r.tokens_T])
        row[: len(both)] = both
    positions_BT = jnp.broadcast_to(jnp.arange(32, dtype=jnp.int32)[None], tokens_BT.shape)
    x_BTD = transformer.hidden(cfg, params, jnp.asarray(tokens_BT), positions_BT, jnp.ones_like(positions_BT))
    logp_BT = np.asarray(token_logprobs(cfg, params, x_BTD[:, :-1], jnp.asarray(tokens_BT[:, 1:]), chunk=31)[0])
    gaps = [logp_BT[b, len(TOKENS[i]) - 1 :][: len(r.logp_T)] - r.logp_T for b, (i, r) in enumerate(rows)]
    return max(float(np.abs(g).max()) for g in gaps)


def assert_same_bits(a, b):
    assert set(a) == set(b)
    for name in a:
        for x, y in zip(a[name], b[name], strict=True):
            np.testing.assert_array_equal(x.tokens_T, y.tokens_T)
            np.testing.assert_array_equal(x.logp_T, y.logp_T)


def test_every_rollout_ends_at_its_own_limit_or_stop(rollouts):
    assert len(rollouts) == 7
    for i, limits in enumerate(LIMITS):
        for r, limit in zip(rollouts[f"q{i}"], limits, strict=True):
            stopped = r.tokens_T[-1] == 1
            assert r.finish_reason == ("stop" if stopped else "length")
            assert len(r.tokens_T) == limit or (stopped and len(r.tokens_T) < limit)


def test_logprobs_through_refilled_rows_and_pages_are_the_trainers(params, rollouts):
    assert worst_gap(params, rollouts) < 2e-5


def test_a_local_layer_sees_its_window_through_prompt_pages_and_stage():
    windowed = transformer.init_params(WINDOWED, 0)
    groups = sample(windowed, cfg=WINDOWED)
    assert worst_gap(windowed, groups, cfg=WINDOWED) < 2e-5
    assert worst_gap(windowed, groups) > 1e-2  # and the window does matter


def test_bits_do_not_depend_on_the_order_of_refill(params, rollouts):
    for order in ([6, 5, 4, 3, 2, 1, 0], [2, 6, 0, 3, 5, 1, 4]):
        assert_same_bits(sample(params, order=order), rollouts)


def test_bits_do_not_depend_on_the_neighbours(params, rollouts):
    # others end elsewhere, so that rows, pages and prompt slots are taken in another interleaving
    others = [LIMITS[i] if i in (1, 4) else [12, 1, 7, 10] for i in range(7)]
    changed = sample(params, limits=others)
    assert_same_bits({n: changed[n] for n in ("q1", "q4")}, {n: rollouts[n] for n in ("q1", "q4")})


def test_bits_do_not_depend_on_how_often_the_host_looks(params, rollouts):
    assert_same_bits(sample(params, engine=dataclasses.replace(ENGINE, chunk=4, page_chunks=1)), rollouts)


def test_other_shapes_part_rollouts_by_rounding_only(params, rollouts):
    other = sample(params, engine=dataclasses.replace(ENGINE, prompts=3, chunk=5, page_chunks=1))
    pairs = [(x, y) for n in rollouts for x, y in zip(rollouts[n], other[n], strict=True)]
    parted = sum(not np.array_equal(x.tokens_T, y.tokens_T) for x, y in pairs)
    assert parted == 0  # of 28; a draw can turn on the last bit, but none of these does
    for x, y in pairs:
        np.testing.assert_allclose(x.logp_T, y.logp_T, atol=1e-5)


def test_half_as_many_rows_at_the_end_change_no_bit(params, monkeypatch):
    monkeypatch.setattr(engine_lib, "LARGE", 0)
    wide = dataclasses.replace(ENGINE, prompts=8)  # 32 rows, then 16
    limits = [[1, 2, 3, 12]] * 7
    widths = set()
    real = engine_lib.decode
    monkeypatch.setattr(engine_lib, "decode", lambda *a: (widths.add(a[6].token.shape[0]), real(*a))[1])
    reversed_order = sample(params, engine=wide, order=range(6, -1, -1), limits=limits)
    assert_same_bits(sample(params, engine=wide, limits=limits), reversed_order)
    assert worst_gap(params, reversed_order) < 2e-5
    assert widths == {32, 16}


def test_steps_seeds_parts_of_a_step_and_repeated_prompts_share_no_noise(params):
    flat = [[12] * 4] * 7
    runs = [sample(params, limits=flat, seed=seed, step=step) for seed, step in ((0, 0), (0, 1), (1, 0))]
    parts = [sample(params, limits=flat, order=order) for order in ((0, 1, 2), (3, 4, 5, 6))]  # micro-batches, or hosts
    assert_same_bits(parts[0] | parts[1], runs[0])
    texts = [r.text for run in runs for group in run.values() for r in group if len(r.tokens_T) == 12]
    assert len(set(texts)) == len(texts) > 60
    twice = sample_groups(
        TINY, ENGINE, params, IdTokenizer(), [PROMPTS[0]] * 2, [TOKENS[0]] * 2, seed=0, step=0, limits=flat[:2]
    )
    assert len({r.text for g in twice for r in g.rollouts}) == 8  # a repeated id is another prompt


@pytest.mark.parametrize(("dtype", "gap"), [("bfloat16", 0.03), ("int8", 0.06)])
def test_a_smaller_cache_costs_little_precision(params, dtype, gap):
    groups = sample(params, engine=dataclasses.replace(ENGINE, cache_dtype=dtype))
    assert 1e-4 < worst_gap(params, groups) < gap


def test_int8_rounds_to_half_a_step_of_the_largest_entry():
    x_BKSH = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, 4, 8)).astype(np.float32))
    stored = paging.encode(x_BKSH, jnp.int8)
    assert stored.x.dtype == jnp.int8 and stored.scale.shape == (2, 3, 4)
    error = np.abs(np.asarray(stored.x) * np.asarray(stored.scale)[..., None] - np.asarray(x_BKSH))
    assert (error <= 0.5001 * np.asarray(stored.scale)[..., None]).all()


def test_a_cache_dtype_nobody_knows_is_refused():
    with pytest.raises(UserError, match="float16"):
        dataclasses.replace(ENGINE, cache_dtype="float16")


def test_a_stop_text_that_spans_tokens_ends_the_answer_before_it(params, rollouts):
    name, g, whole = max(((n, g, r) for n in rollouts for g, r in enumerate(rollouts[n])), key=lambda x: len(x[2].text))
    ids = whole.text.split()
    stop = f"{ids[3]} {ids[4]}"  # spans two tokens and the space between
    stopped = sample(params, engine=dataclasses.replace(ENGINE, stop=(stop,)))[name][g]
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole.text[: whole.text.find(stop)]
    assert stop in IdTokenizer().decode(stopped.tokens_T.tolist())
    assert stop not in IdTokenizer().decode(stopped.tokens_T[:-1].tolist())
    np.testing.assert_array_equal(stopped.logp_T, whole.logp_T[: len(stopped.tokens_T)])


@pytest.mark.parametrize(
    ("fsdp", "tp", "copy", "flips"), [(4, 2, True, True), (2, 2, False, True), (2, 2, True, False)]
)
def test_a_mesh_gives_the_same_rollouts(params, fsdp, tp, copy, flips, monkeypatch):
    wide = dataclasses.replace(ENGINE, prompts=4, copy_weights=copy)
    plain = sample(params, engine=wide)
    mesh = mesh_lib.make_mesh(fsdp, tp, jax.devices()[: fsdp * tp])
    monkeypatch.setattr(weights_lib, "flips_layers", lambda: flips)
    with jax.set_mesh(mesh):
        placed = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
        own = weights_lib.decode_weights(placed, TINY.num_layers, "bfloat16", copy=copy)
        split = {x.sharding.spec for x in jax.tree.leaves(own) if "fsdp" in x.sharding.spec}
        assert bool(split) is not copy  # nothing is split over fsdp in a copy
        assert {str(x.dtype) for x in jax.tree.leaves(own)} == ({"bfloat16", "float32"} if copy else {"float32"})
        sharded = sample(placed, engine=wide)
    for name, group in plain.items():
        for a, b in zip(group, sharded[name], strict=True):
            np.testing.assert_array_equal(a.tokens_T, b.tokens_T)
            np.testing.assert_allclose(a.logp_T, b.logp_T, atol=1e-5)


@pytest.mark.parametrize("update, sample_sizes", [((4, 1), (2, 2)), ((8, 1), (4, 2)), ((4, 2), (8, 1))])
def test_weights_that_are_moved_to_the_samplers_own_mesh_give_the_same_rollouts(params, update, sample_sizes):
    wide = dataclasses.replace(ENGINE, prompts=max(4, sample_sizes[0]))
    plain = sample(params, engine=wide)
    first = mesh_lib.make_mesh(*update, jax.devices()[: update[0] * update[1]])
    sizes = dict(fsdp=sample_sizes[0], tp=sample_sizes[1], sample_fsdp=0, sample_tp=0)
    second = mesh_lib.sampling_mesh(sizes, first)
    with jax.set_mesh(first):
        placed = mesh_lib.put(params, first, mesh_lib.RULES.storage(params))
        there = weights_lib.moved(placed, "float32", second)
        narrow = weights_lib.moved(placed, "bfloat16", second)
    kinds = {(mesh_lib.dims_of(path, x), x.dtype.name) for path, x in jax.tree_util.tree_leaves_with_path(narrow)}
    assert ("LDNH", "bfloat16") in kinds and ("VD", "bfloat16") in kinds and ("LD", "float32") in kinds
    assert {x.sharding.mesh for x in jax.tree.leaves(there)} == {second}
    assert there["layers"]["attn"]["q_DNH"].sharding.spec == mesh_lib.RULES.spec("LDNH")
    with jax.set_mesh(second):
        found = sample(there, engine=wide)
    for name, group in plain.items():
        for a, b in zip(group, found[name], strict=True):
            np.testing.assert_array_equal(a.tokens_T, b.tokens_T)
            np.testing.assert_allclose(a.logp_T, b.logp_T, atol=1e-5)


def test_weights_move_from_a_mesh_with_an_axis_that_the_samplers_lacks(params):
    first = mesh_lib.make_mesh(2, 1, jax.devices()[:4], cp=2)
    second = mesh_lib.sampling_mesh(dict(fsdp=2, tp=2, sample_fsdp=0, sample_tp=0), first)
    with jax.set_mesh(first):
        there = weights_lib.moved(mesh_lib.put(params, first, mesh_lib.RULES.storage(params)), "float32", second)
    q_LDNH = there["layers"]["attn"]["q_DNH"]
    assert q_LDNH.sharding == jax.NamedSharding(second, mesh_lib.RULES.spec("LDNH"))
    np.testing.assert_array_equal(q_LDNH, params["layers"]["attn"]["q_DNH"])


def test_without_a_second_copy_of_the_weights_the_rollouts_are_the_same(params, rollouts, monkeypatch):
    monkeypatch.setattr(weights_lib, "flips_layers", lambda: False)
    for name, group in sample(params, engine=dataclasses.replace(ENGINE, copy_weights=False)).items():
        for a, b in zip(group, rollouts[name], strict=True):
            np.testing.assert_array_equal(a.tokens_T, b.tokens_T)
            np.testing.assert_allclose(a.logp_T, b.logp_T, atol=1e-5)


@pytest.mark.parametrize("dtype", ["", "int8"])
def test_reading_in_blocks_as_on_a_tpu_gives_the_same_rollouts_whatever_moves(params, rollouts, dtype, monkeypatch):
    moved = []
    compact = Slots.compact
    monkeypatch.setattr(paged_attention, "platform", lambda: "tpu")
    monkeypatch.setattr(paged_attention, "block_of", lambda pages: 2)
    monkeypatch.setattr(engine_lib, "MOVES", 2)
    monkeypatch.setattr(Slots, "compact", lambda self, *a: (moved.append(x := compact(self, *a)), x)[1])
    engine = dataclasses.replace(ENGINE, cache_dtype=dtype, stop=("no such text",))  # its own programs
    found = sample(params, engine=engine)
    assert any(m is not None for m in moved)
    assert_same_bits(sample(params, engine=engine, order=[2, 6, 0, 3, 5, 1, 4]), found)
    if not dtype:
        assert worst_gap(params, found) < 2e-5
        for name, group in found.items():
            for a, b in zip(group, rollouts[name], strict=True):
                np.testing.assert_array_equal(a.tokens_T, b.tokens_T)


def test_prefill_costs_one_prompt_whatever_the_rollouts(params, monkeypatch):
    one = dataclasses.replace(TINY, num_layers=1)  # XLA counts a scan once; after compiling not YNNPACK's matmuls
    weights = transformer.init_params(one, 0)

    cache = paging.make_cache(one, prompts=4, prompt_len=8, rows=8, pages=1, page=4, dtype="float32")
    arrays = jnp.zeros((1, 8), jnp.int32), jnp.ones((1,), jnp.int32), jnp.zeros((1,), jnp.int32)
    flops = prefill.lower(one, "float32", weights, cache.prompts, *arrays).cost_analysis()["flops"]
    matmuls = 2 * 8 * sum(x.size for x in jax.tree.leaves(weights["layers"]))
    assert 0.9 * matmuls < flops < 1.5 * matmuls

    calls = []
    real = engine_lib.prefill
    monkeypatch.setattr(engine_lib, "prefill", lambda *a: (calls.append(np.asarray(a[6])), real(*a))[1])
    sample(params)
    ran = np.concatenate(calls)
    assert (ran < 100).sum() == len(ran) == 7  # every prompt once for its 4 rollouts, no idle place


# --------------------------------------------------------------------------------------- reserved, fewer, left out


def test_a_reserved_pool_never_grows_and_gives_the_same_rollouts(params, rollouts, monkeypatch):
    pages = []
    dispatch = engine_lib._Engine.dispatch

    def watched(self):
        pages.append(self.cache.pages[0].k.x.shape[0])
        return dispatch(self)

    monkeypatch.setattr(engine_lib._Engine, "dispatch", watched)
    monkeypatch.setattr(paging, "grow", lambda *a: pytest.fail("the pool grew"))
    found = sample(params, engine=dataclasses.replace(ENGINE, reserve=True))
    assert set(pages) == {engine_lib.most_pages(ENGINE, 8)} == {16}  # 8 rows of 2 pages and a stage
    assert {n: [r.tokens_T.tolist() for r in g] for n, g in found.items()} == {
        n: [r.tokens_T.tolist() for r in g] for n, g in rollouts.items()
    }


def test_a_reserved_pool_has_no_less_room_after_rows_have_moved(params, rollouts, monkeypatch):
    monkeypatch.setattr(engine_lib, "LARGE", 0)
    monkeypatch.setattr("ropd_jax.sampling.slots.FEWEST_ROWS", 2)
    monkeypatch.setattr(paging, "grow", lambda *a: pytest.fail("the pool grew"))
    found = sample(params, engine=dataclasses.replace(ENGINE, reserve=True))
    assert worst_gap(params, found) < 1e-5 and set(found) == set(rollouts)


@pytest.mark.parametrize("blocks", [False, True])
def test_rollouts_that_make_room_begin_again_and_are_the_same(params, blocks, monkeypatch):
    if blocks:
        monkeypatch.setattr(paged_attention, "platform", lambda: "tpu")
    engine = dataclasses.replace(ENGINE, stop=("no text",) if blocks else ())
    limits = [[12, 11, 12, 9]] * 7
    seen, made = [], Slots.__init__

    def init(self, **kw):
        made(self, **kw)
        seen.append(self)

    monkeypatch.setattr(Slots, "__init__", init)
    roomy = sample(params, engine=engine, limits=limits)
    tight = sample(params, engine=dataclasses.replace(engine, pool=0.4), limits=limits)
    other = sample(params, engine=dataclasses.replace(engine, pool=0.4), limits=limits, order=[3, 0, 6, 1, 5, 2, 4])
    assert [s.restarts > 0 for s in seen] == [False, True, True] and all(s.lost_tokens for s in seen[1:])
    assert {s.pages for s in seen[1:]} == {8} and seen[0].pages == 16
    assert_same_bits(tight, other)
    for name, group in roomy.items():
        for a, b in zip(group, tight[name], strict=True):
            np.testing.assert_array_equal(a.tokens_T, b.tokens_T)
            np.testing.assert_allclose(a.logp_T, b.logp_T, atol=1e-5)


def test_fewer_rows_than_rollouts_of_a_prompt_decode_one_after_the_other(params, rollouts):
    found = sample(params, engine=dataclasses.replace(ENGINE, rows=3, prompts=1))
    assert worst_gap(params, found) < 1e-5
    pairs = [(x, y) for n in found for x, y in zip(found[n], rollouts[n], strict=True)]
    same = [x.tokens_T.tolist() == y.tokens_T.tolist() for x, y in pairs]
    assert len(same) == 28 and sum(same) >= 27  # other shapes round differently


def test_a_rollout_of_limit_0_is_left_out_and_changes_no_other(params, rollouts):
    limits = [[0 if (i + g) % 3 == 0 else n for g, n in enumerate(row)] for i, row in enumerate(LIMITS)]
    limits[2] = [0, 0, 0, 0]
    ticks: list[int] = []
    ended = engine_lib.sample_rollouts(
        TINY, ENGINE, params, IdTokenizer(), PROMPTS, TOKENS, seed=0, step=0, limits=limits, between=ticks.append
    )
    found = {(i, g): r for i, g, r in ended}
    assert set(found) == {(i, g) for i, row in enumerate(limits) for g, n in enumerate(row) if n}
    for (i, g), r in found.items():
        np.testing.assert_array_equal(r.tokens_T, rollouts[f"q{i}"][g].tokens_T)
        np.testing.assert_array_equal(r.logp_T, rollouts[f"q{i}"][g].logp_T)
    assert sum(ticks) == sum(len(r.tokens_T) for r in found.values())


@pytest.mark.parametrize("most", [1, 3, 5, 8])
def test_on_a_mesh_no_more_rollouts_decode_at_once_than_rows(params, most, monkeypatch):
    live = []
    dispatch = engine_lib._Engine.dispatch

    def watched(self):
        pending = dispatch(self)
        live.append(sum(job is not None for job in self.slots.job))
        return pending

    monkeypatch.setattr(engine_lib._Engine, "dispatch", watched)
    mesh = mesh_lib.make_mesh(4, 1, jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
        found = sample(placed, engine=dataclasses.replace(ENGINE, rows=most, prompts=4), order=range(4))
    assert max(live) == most and sum(map(len, found.values())) == 16
    assert worst_gap(params, found) < 1e-5


# ------------------------------------------------------------------------------------------------- through the kernel


PAGED = dataclasses.replace(ENGINE, attention="paged")


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Two pages per block: more blocks, and a smaller program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ropd_jax.sampling.kernel.POSITIONS", 8)
        yield


@pytest.fixture(scope="module")
def paged(params):
    return sample(params, engine=PAGED)


def assert_same_tokens(a, b):
    assert set(a) == set(b)
    for name in a:
        for x, y in zip(a[name], b[name], strict=True):
            np.testing.assert_array_equal(x.tokens_T, y.tokens_T)
            np.testing.assert_allclose(x.logp_T, y.logp_T, atol=1e-5)


def test_the_kernel_gives_the_same_rollouts_in_any_order(params, rollouts, paged):
    assert_same_tokens(paged, rollouts)
    assert worst_gap(params, paged) < 2e-5
    assert_same_bits(sample(params, engine=PAGED, order=[2, 6, 0, 3, 5, 1, 4]), paged)


def test_through_the_kernel_rollouts_that_make_room_are_the_same(params, rollouts, monkeypatch):
    seen, made = [], Slots.__init__
    monkeypatch.setattr(Slots, "__init__", lambda self, **kw: (made(self, **kw), seen.append(self))[0])
    tight = sample(params, engine=dataclasses.replace(PAGED, pool=0.4), limits=[[12, 11, 12, 9]] * 7)
    assert [s.restarts > 0 for s in seen] == [True]
    assert worst_gap(params, tight) < 2e-5
    for name, group in rollouts.items():
        for a, b in zip(group, tight[name], strict=True):
            n = min(len(a.tokens_T), len(b.tokens_T))
            np.testing.assert_array_equal(a.tokens_T[:n], b.tokens_T[:n])


@pytest.mark.parametrize(("fsdp", "tp"), [(2, 2), (4, 2)])
def test_the_kernel_on_a_mesh_gives_the_same_rollouts(fsdp, tp):
    local = dataclasses.replace(WINDOWED, num_layers=1, local_layers=(True,))
    weights = transformer.init_params(local, 0)
    wide = dataclasses.replace(ENGINE, prompts=4)
    plain = sample(weights, cfg=local, engine=wide)
    mesh = mesh_lib.make_mesh(fsdp, tp, jax.devices()[: fsdp * tp])
    with jax.set_mesh(mesh):
        placed = mesh_lib.put(weights, mesh, mesh_lib.RULES.storage(weights))
        found = sample(placed, cfg=local, engine=dataclasses.replace(wide, attention="paged"))
    assert_same_tokens(found, plain)
