"""``ropd plan`` on 8 CPU devices: the run's own programs, measured, fitted to a made-up chip, and shown."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from ropd_jax import configs
from ropd_jax.cli import main as cli
from ropd_jax.methods import load_method
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.plan import chips, compiled, count, fit, gpu, measure, programs, report
from ropd_jax.plan.chips import Chip, Topology, parse_topology, topology_devices
from ropd_jax.types import UserError
from tests.helpers import TINY

ONE_LAYER = dataclasses.replace(TINY, num_layers=1)
WIDE = dataclasses.replace(
    ONE_LAYER, d_model=256, num_heads=4, num_kv_heads=2, head_dim=128, mlp_dim=512, vocab_size=1024
)
KB = 1e3


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def tiny_config(**changes):
    cfg = configs.default()
    cfg.steps = 10
    cfg.data.prompts_per_step, cfg.data.max_prompt_tokens = 8, 16
    cfg.sampling.rollouts, cfg.sampling.max_tokens, cfg.sampling.chunk = 4, 48, 8
    cfg.optim.microbatch = 8
    for key, value in changes.items():
        cfg.update_from_flattened_dict({key.replace("__", "."): value})
    return cfg.lock()


def toy(usable: float | None) -> Topology:
    """Eight CPU devices as chips of one 'toy' machine with this much memory."""
    return Topology(Chip("toy", usable, usable, 1e9, 1e8, 1e7, 1, "made up"), (8,))


@pytest.fixture(scope="module")
def measured():
    said: list[str] = []
    found = measure.measure(tiny_config(), ONE_LAYER, toy(1e9), said.append, cache=False)
    return found, said


# ------------------------------------------------------------------------------------------------------- memory


def test_arguments_are_what_the_run_stores(measured):
    found, said = measured
    cfg, mesh = tiny_config(), mesh_lib.make_mesh(-1, 1)
    with jax.set_mesh(mesh):
        state, batch = programs.state_of(cfg, ONE_LAYER, mesh), programs.batch_of(cfg, mesh)
    update = found.compiled[0]
    assert update.arguments == programs.device_bytes(state) + programs.device_bytes(batch)
    assert programs.device_bytes(state.params) * 8 == 4 * sum(x.size for x in jax.tree.leaves(state.params))
    assert update.donated == programs.device_bytes(state)  # the new state takes the old one's place
    memory = {m.program: m for m in found.memory}
    assert memory["update"].optimizer == programs.device_bytes(state.opt_state)
    assert (
        memory["update"].peak == update.arguments + update.temporaries + update.outputs - update.donated + update.code
    )
    stays = memory["update"].optimizer + memory["update"].parameters  # while sampling: decoding has a copy
    assert memory["decode"].peak == found.compiled[2].peak + stays
    with jax.set_mesh(mesh):
        _, rows = programs.kv_cache_bytes(cfg, ONE_LAYER, mesh)
        copy, decoding = programs.decode_weights_bytes(cfg, ONE_LAYER, mesh)
    matrices = 4 * sum(
        x.size for x in jax.tree.leaves(state.params) if x.ndim > 2 or x.shape[0] == ONE_LAYER.vocab_size
    )
    assert decoding == copy and matrices <= copy < 1.05 * matrices  # whole on each of the 8
    assert memory["update"].copy == 0 and memory["prefill"].copy == memory["decode"].copy == copy
    stays = memory["update"].optimizer + rows + copy
    assert memory["prefill"].peak == found.compiled[1].peak + stays  # as do the copy and the cache
    assert found.fits and [s for s in said if "compiling" in s and "toy:8 as fsdp=8 tp=1" in s]


def test_an_update_in_portions_is_compiled_as_its_sum_and_its_step(measured):
    whole, _ = measured
    cfg, mesh = tiny_config(stream__groups=2, optim__microbatch=0), mesh_lib.make_mesh(-1, 1)
    found = measure.measure(cfg, ONE_LAYER, toy(1e9), print, cache=False)
    with jax.set_mesh(mesh):
        state, batch = programs.state_of(cfg, ONE_LAYER, mesh), programs.batch_of(cfg, mesh)
    assert batch.tokens_BT.shape == (1, 8, 63)  # two groups of four
    assert [m.program for m in found.memory] == ["update", "apply", "prefill", "decode"]
    params, optimizer = programs.device_bytes(state.params), programs.device_bytes(state.opt_state)
    (add, step), (adding, stepping) = found.compiled[:2], found.memory[:2]
    assert add.arguments == 2 * params + programs.device_bytes(batch) and add.donated == params
    assert step.arguments == 2 * params + optimizer + 4 and step.donated == params + optimizer
    assert adding.gradients == params and adding.peak == add.peak + optimizer
    assert stepping.peak == step.peak and adding.inputs == programs.device_bytes(batch)
    assert [m.gradients for m in found.memory[2:]] == [0, 0]  # nothing is summed before all is sampled
    assert found.memory[2:] == whole.memory[1:]
    bounds, before = ({b.name: b for b in x.bounds} for x in (found, whole))
    assert bounds["update"].compute == before["update"].compute
    assert bounds["apply"].memory == pytest.approx((3 * params + 2 * optimizer) / 1e8)
    # four portions of one part each, where the whole update has four parts and the optimizer's step in one program
    assert bounds["update"].memory + bounds["apply"].memory == pytest.approx(before["update"].memory)


@pytest.mark.parametrize(
    ("changes", "calls"),
    [({"stream__groups": 3}, 3), ({"stream__groups": 3, "optim__minibatches": 2}, 2), ({"optim__minibatches": 4}, 4)],
)
def test_an_update_has_as_many_calls_as_in_the_run(changes, calls):
    cfg = tiny_config(**changes)
    assert programs.update_calls(cfg, load_method("ropd", cfg)) == calls


def test_what_a_step_ahead_keeps_is_counted(measured):
    whole, _ = measured
    found = measure.measure(tiny_config(stream__groups=8, stream__staleness=1), ONE_LAYER, toy(1e9), print, cache=False)
    before = {m.program: m for m in whole.memory}
    memory = {m.program: m for m in found.memory}
    params, cache = before["update"].parameters, before["decode"].kv_cache + before["decode"].copy
    assert memory["update"].ahead == memory["apply"].ahead == params + cache  # the sampler's own parameters
    assert memory["update"].peak == found.compiled[0].peak + before["update"].optimizer + params + cache
    assert memory["decode"].peak == before["decode"].peak + 2 * params  # and the next step's, or the gradient


def test_the_student_as_it_began_is_counted_where_a_term_reads_it():
    mesh = mesh_lib.make_mesh(-1, 1)
    with jax.set_mesh(mesh):
        plain, kl = (measure.sizes(tiny_config(loss__kl_coef=c), ONE_LAYER, mesh) for c in (0.0, 0.1))
    assert (plain.initial, kl.initial) == (0, plain.trained)
    for name, handed in (("update", 2), ("prefill", 1), ("decode", 1)):
        assert kl.there(name) - plain.there(name) == plain.trained, name
        assert kl.inputs(name) - plain.inputs(name) == (handed - 1) * plain.trained, name


def test_the_batch_is_laid_out_as_the_run_lays_it_out():
    mesh = mesh_lib.make_mesh(-1, 1)
    for changes, shape in (
        ({}, (4, 8, 63)),  # 32 sequences, 8 rows a part, 16 + 48 tokens of which the last is only predicted
        ({"optim__microbatch": 0}, (1, 32, 63)),
        ({"optim__row_len": 130}, (2, 8, 130)),  # two a row
        ({"optim__minibatches": 2}, (2, 8, 63)),
        ({"method": "sft"}, None),
    ):
        cfg = tiny_config(**changes)
        with jax.set_mesh(mesh):
            found = programs.batch_of(cfg, mesh).tokens_BT.shape
        expected = shape or (-(-8 * cfg.teacher.references // 8), 8, 63)
        assert found == expected, changes


def test_adapters_train_beside_a_base_that_no_optimizer_knows():
    mesh = mesh_lib.make_mesh(-1, 1)
    changes = {"student__lora__rank": 4, "student__lora__base_dtype": "bfloat16"}
    with jax.set_mesh(mesh):
        full, lora = (measure.sizes(tiny_config(**c), ONE_LAYER, mesh) for c in ({}, changes))
        programs.update_programs(tiny_config(**changes), ONE_LAYER, mesh)[0].lower()
        programs.sampler_programs(tiny_config(**changes), ONE_LAYER, mesh)[0].lower()
    assert full.base == full.initial == 0 and full.optimizer == pytest.approx(2 * full.trained, rel=0.01)
    assert lora.optimizer == pytest.approx(2 * lora.trained, rel=0.01)
    assert lora.initial == 0 and lora.base == pytest.approx(full.trained / 2, rel=0.1)


def test_a_discriminator_counts_in_every_program_and_has_one_of_its_own():
    cfg = tiny_config(method="gad", sampling__max_tokens=16, data__max_prompt_tokens=8)
    found = measure.measure(cfg, ONE_LAYER, toy(1e9), print, only=("prefill", "method"), cache=False)
    (prefill, d), (_, learn) = found.memory, found.compiled
    head = 3 * 4 * ONE_LAYER.d_model // 8  # and its two moments, in float32, an eighth of it
    assert d.method == prefill.method == d.parameters + d.optimizer + head
    assert learn.name == d.program == "discriminator"
    assert learn.donated == d.method and d.peak == learn.peak + d.parameters + d.optimizer
    work = {b.name: b for b in found.bounds}["discriminator"]
    tokens = 8 * 8 * 32  # 8 prompts, 4 answers and 4 references of each, prompt and answer of 16
    layers = 2 * count.layer_matmul_params(ONE_LAYER) * tokens
    attention = 4 * ONE_LAYER.num_heads * ONE_LAYER.head_dim * tokens // 32 * count.contexts(ONE_LAYER, 0, 32)
    assert work.compute * 1e9 * 8 == pytest.approx(4 * (layers + attention))


@pytest.mark.parametrize(("mode", "fsdp"), [("sampled", 0), ("full", 4)])
def test_a_white_box_teacher_counts_by_its_own_mesh_and_type(mode, fsdp, monkeypatch):
    monkeypatch.setattr(programs, "model_config", lambda checkpoint: ONE_LAYER)
    mesh, changes = mesh_lib.make_mesh(-1, 1), {"lopd__fsdp": fsdp, "lopd__mode": mode, "lopd__dtype": "bfloat16"}
    cfg = tiny_config(method="lopd", lopd__checkpoint="big", **changes)
    with jax.set_mesh(mesh):
        found = measure.sizes(cfg, ONE_LAYER, mesh)
        (forward,) = programs.method_programs(cfg, ONE_LAYER, mesh)
        assert forward.lower().in_avals[0][1].shape == (8, 63)
    assert found.method * (fsdp or 8) == found.trained * 8 // 2


def test_rollouts_that_are_told_something_cost_a_forward_pass_for_each_context():
    cfg = tiny_config(method="cort", sampling__max_tokens=16, data__max_prompt_tokens=8, context__max_tokens=16)
    found = measure.measure(cfg, ONE_LAYER, toy(1e9), print, only=("update", "method"), cache=False)
    assert [c.name for c in found.compiled] == ["update", "scores of told rollouts"]
    work = {b.name: b for b in found.bounds}["scores of told rollouts"]
    tokens = 2 * 32 * 47  # two contexts; 32 answers of 16 tokens behind a prompt of 16 and 16 more
    layers = 2 * count.layer_matmul_params(ONE_LAYER) * tokens
    attention = 4 * ONE_LAYER.num_heads * ONE_LAYER.head_dim * tokens // 47 * count.contexts(ONE_LAYER, 0, 47)
    assert work.compute * 1e9 * 8 >= layers + attention
    assert work.compute * 1e9 * 8 < 1.5 * (layers + attention)


def test_a_divergence_from_the_told_policy_is_a_part_of_the_update():
    changes = dict(method="rgsd", sampling__max_tokens=16, data__max_prompt_tokens=8, context__max_tokens=16)
    cfgs = [tiny_config(**changes, rgsd__mode=mode, rgsd__top_k=8) for mode in ("sampled", "full", "top_k")]
    found = [measure.measure(c, ONE_LAYER, toy(1e9), print, only=("update", "method"), cache=False) for c in cfgs]
    assert [[c.name for c in one.compiled] for one in found] == [
        ["update", "scores of told rollouts"],
        *[["update"]] * 2,
    ]
    work = [{b.name: b.compute * 1e9 * 8 for b in one.bounds} for one in found]
    told = 32 * 47  # 32 answers of 16 tokens behind a prompt of 16 and 16 more; one token is only predicted
    layers = 2 * count.layer_matmul_params(ONE_LAYER) * told
    attention = 4 * ONE_LAYER.num_heads * ONE_LAYER.head_dim * 32 * count.contexts(ONE_LAYER, 0, 47)
    head = 2 * ONE_LAYER.vocab_size * ONE_LAYER.d_model * 32 * 16
    for more in work[1:]:
        assert more["update"] - work[0]["update"] == pytest.approx(layers + attention + 6 * head, rel=1e-6)
    memory = [{m.program: m for m in one.memory}["update"] for one in found]
    scores = 4 * 32 * 31 // 8  # bytes of the log-probs, which only the first update takes
    told_rows = 4 * 32 * (3 * 47 + 31) // 8
    assert memory[1].inputs - memory[0].inputs == told_rows - scores
    assert memory[1].temporaries > memory[0].temporaries


def test_weights_that_move_to_the_samplers_own_mesh_are_counted():
    cfg = tiny_config(mesh__sample_tp=2, student__dtype="bfloat16")
    mesh = mesh_lib.update_mesh(cfg.mesh, jax.devices()[:8])
    with jax.set_mesh(mesh):
        one, two = (measure.sizes(c, ONE_LAYER, mesh) for c in (tiny_config(student__dtype="bfloat16"), cfg))
        todo = {p.name: p for p in programs.sampler_programs(cfg, ONE_LAYER, mesh)}
    params = jax.tree_util.tree_leaves_with_path(programs.transformer.param_shapes(ONE_LAYER))
    matrices, vectors = ([x for path, x in params if path[-1].key.startswith("scale_") == v] for v in (False, True))
    parts = [8 if x.shape[1:] else 4 for x in matrices]  # over 4 x 2 devices
    assert two.moved == sum(2 * x.size / n for x, n in zip(matrices, parts, strict=True)) + sum(
        x.size
        for x in vectors  # 4 bytes a number, over 4
    )
    assert one.moved == 0 and two.trained == one.trained and two.copy > two.moved
    assert list(todo) == ["move", "prefill", "decode"]
    out = todo["move"].lower().out_info["layers"]["attn"]["q_DNH"]
    assert out.dtype == "bfloat16" and out.sharding.mesh.shape == {"fsdp": 4, "tp": 2}


def test_cache_bytes_by_hand(measured):
    found, _ = measured
    rows, k_and_v = 32 // 8, 2 * ONE_LAYER.num_kv_heads * ONE_LAYER.head_dim * 4
    slots = 16 + 48 * rows + 48  # one prompt, as a step has no second one for a part; stages; one page
    assert {m.kv_cache for m in found.memory if m.program != "update"} == {slots * k_and_v}


def test_seconds_follow_from_the_published_figures(measured):
    found, _ = measured
    work = {b.name: b for b in found.bounds}
    assert set(work) == {"update", "prefill", "decode"}
    received = sum(c.bytes for c in found.compiled[0].collectives)
    assert work["update"].links == pytest.approx(received / 1e7)
    [one] = found.compiled[2].collectives  # own rows, and full weights: only the chunk's last token is shared
    assert (one.kind, one.count) == ("all-reduce", 1) and one.bytes < 16 and work["decode"].links < 1e-3
    assert found.seconds == pytest.approx(sum(max(b.compute, b.memory, b.links) for b in found.bounds))


def test_without_figures_nothing_is_said_of_fit_or_seconds(measured):
    found, _ = measured
    bare = measure._memory(found.compiled[0], measure.Sizes(1, 0, 0, 2, 0, 0, 1), chips.CPU)
    assert bare.fits is None
    assert dataclasses.replace(found, memory=(bare,)).fits is None


def test_what_was_compiled_once_is_not_compiled_again():
    said: list[str] = []
    for _ in range(2):
        found = measure.measure(tiny_config(), ONE_LAYER, toy(1e9), said.append, only=("prefill",))
    assert [s for s in said if "compiled in" in s] == [f"prefill: compiled in {found.compiled[0].seconds:.0f} s"]
    assert said[-1] == "prefill: known from an earlier plan"


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("RESOURCE_EXHAUSTED: ... HLO temporaries (1.50G) exceeds available HBM (15.75G).", 1.5 * 2**30),
        ("RESOURCE_EXHAUSTED: Used 20.46G of 15.75G hbm. Total hbm usage >= 20.96G: reserved 530M", 20.96 * 2**30),
        ("INVALID_ARGUMENT: something else (3.0G)", None),
    ],
)
def test_a_refusal_of_the_compiler_says_how_much_it_wanted(message, size):
    found = compiled.out_of_memory(message)
    assert found == (None if size is None else round(size))


# ---------------------------------------------------------------------------------------------------------- fit


def test_a_config_that_does_not_fit_is_told_which_knob_to_turn(measured):
    found, _ = measured
    whole = max(m.peak for m in found.memory)
    sampler = max(m.peak for m in found.memory if m.program != "update")
    update = next(m.peak for m in found.memory if m.program == "update")
    assert sampler < update == whole
    cfg = tiny_config(optim__microbatch=32)
    tight = toy(update * 1.02)
    first = measure.measure(cfg, ONE_LAYER, tight, print)
    assert [m.program for m in first.memory if not m.fits] == ["update"]
    advice = fit.remedy(cfg, ONE_LAYER, tight, first, print)
    assert advice.keys == {"optim.microbatch": 8} or advice.keys == {"optim.microbatch": 16}
    assert [t.fits for t in advice.tried][-1] is True
    again = measure.measure(fit.changed(cfg, advice.keys), ONE_LAYER, tight, print)
    assert again.fits


def test_what_is_too_large_before_anything_is_compiled_is_not_compiled(monkeypatch):
    def never(*a, **k):
        raise AssertionError("compiled")

    monkeypatch.setattr(measure, "compile_program", never)
    found = measure.measure(tiny_config(), ONE_LAYER, toy(10 * KB), print)
    assert found.fits is False and not any(c.fits for c in found.compiled)
    assert {b.links for b in found.bounds} == {None}  # the bytes that they would receive are unknown


def test_fewer_slots_are_halves_that_the_mesh_divides():
    turns = programs.fewer_slots(tiny_config(data__prompts_per_step=32), 8)
    assert [t["sampling.prompts_at_once"] for t in turns] == [16, 8]


# ------------------------------------------------------------------------------------------------------ command


def test_the_command_as_json_and_for_people(capsys, monkeypatch):
    monkeypatch.setattr(report, "model_config", lambda checkpoint: ONE_LAYER)
    args = ["plan", "--config", "experiments/quickstart.py", "--topology", "cpu:8"]
    args += ["--config.data.prompts_per_step=8", "--config.optim.microbatch=8", "--config.sampling.rollouts=2"]
    assert cli.main([*args, "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["mesh"] == {"fsdp": 8, "tp": 1} and out["fits"] is None and out["advice"] is None
    assert {m["program"] for m in out["memory"]} == {"update", "prefill", "decode"}
    assert all(c["count"] and c["bytes"] for p in out["compiled"] for c in p["collectives"])
    assert out["step"] and set(out["step"].values()) == {None} and out["ladder"] == []
    assert out["teacher"]["calls"] == 48 * 8 * 6 and out["teacher"]["usd_at_most"] == 0.0
    assert cli.main(args) == 0  # from the cache
    text = capsys.readouterr()
    assert "known from an earlier plan" in text.err and "compiling" not in text.err
    assert "seconds: unknown" in text.out and "all-gather" in text.out and "2,304 calls" in text.out


def test_search_prefers_the_faster_setting(measured):
    advice = fit.search(tiny_config(), ONE_LAYER, Topology(toy(1e9).chip, (2,)), lambda text: None)
    done = [t for t in advice.tried if t.seconds is not None]
    best = min(done, key=lambda t: t.seconds)
    assert advice.keys == best.keys and {t.keys["mesh.tp"] for t in advice.tried} == {1, 2}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "--topology is missing"),
        (["--topology=v5e"], "expected CHIP:SIZE"),
        (["--topology=v5x:2x2"], "did you mean"),
        (["--topology=gpu:h10x8"], "did you mean h100"),
        (["--topology=gpu:h100x9"], "9 GPUs; expected 1 to 8"),
        (["--topology=h100:8"], "write gpu:h100x8"),
        (["--topology=cpu:9999"], "needs 9999 CPU devices"),
        (["--topology=cpu:8", "--mean-tokens=999999"], "expected at most sampling.max_tokens=48"),
    ],
)
def test_wrong_use_is_one_line(args, words, capsys):
    assert cli.main(["plan", "--config", "experiments/quickstart.py", *args]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_without_libtpu_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    with pytest.raises(UserError, match=r"pip install 'ropd_jax\[tpu-aot\]'"):
        topology_devices(parse_topology("v5e:4x4"))


def test_every_chip_has_its_figures_and_their_source():
    for name, chip in chips.chips().items():
        device = chip.a_device()
        a_gpu = chip.platform == "gpu"
        assert chip.source.startswith("nvidia.com" if a_gpu else "docs.cloud.google.com/tpu/docs/"), name
        assert 0.9 * device.hbm < device.usable <= chip.hbm / chip.devices * 1.01, name
        assert chip.flops / chip.bandwidth > 100, name  # operations a byte: all are far from balanced
        assert a_gpu or (1e9 < chip.clock < 3e9 and chip.axes and chip.wraps), name
    gpus = {"a100", "h100", "h200", "b200", "4090"}
    assert set(chips.chips()) == {"v4", "v5e", "v5p", "v6e", "7x"} | gpus
    assert parse_topology("7x:2x2x1").devices == 8 and parse_topology("tpu7x:2x2x1").chips == 4


def test_without_the_gpu_compiler_the_error_names_what_is_missing_and_the_extra(monkeypatch):
    monkeypatch.setattr(gpu, "_is_there", lambda module: module == "nvidia.cudnn")
    with pytest.raises(UserError, match=r"\(jax-cuda12-plugin, nvidia-cuda-nvcc-cu12 missing\).*\[gpu-aot\]'"):
        topology_devices(parse_topology("gpu:h100x8"))


def test_what_a_gpu_is_to_the_compiler_and_to_the_links():
    box = parse_topology("gpu:h100x8")
    assert (str(box), box.devices, str(parse_topology("gpu:4090"))) == ("gpu:h100x8", 8, "gpu:4090x1")
    assert box.axis_bandwidth == box.chip.ici == 450e9  # behind a switch all links serve every group
    target = gpu.target_of(box.chip.compiler, bandwidth=box.chip.bandwidth, memory=box.chip.hbm)
    for words in (
        "core_count: 132",
        "memory_bandwidth: 3350000000000",
        "major: 9 minor: 0",
        "shared_memory_per_core: 233472",
    ):
        assert words in target


@pytest.mark.parametrize(
    ("topology", "gb"), [("v5e:4x4", 50), ("v5e:16x16", 100), ("v5p:4x4x4", 200), ("v5p:2x2x1", 100), ("7x:2x2x1", 50)]
)
def test_an_axis_has_two_of_the_links_if_it_is_a_ring_and_else_one(topology, gb):
    assert parse_topology(topology).axis_bandwidth == gb * 1e9


# ------------------------------------------------------------------------------------------------------ compilers


def test_the_update_and_the_sampler_compile_for_gpus_without_one():
    """In a separate process, since the environment is read before jax is imported."""
    if missing := gpu.missing():
        pytest.skip(missing)
    code = (
        "from ropd_jax.plan import prepare; prepare('gpu:h100x2')\n"
        "from ropd_jax.plan import measure; from ropd_jax.plan.chips import parse_topology\n"
        "from tests.plan.test_report import WIDE, tiny_config\n"
        "how = dict(student__dtype='bfloat16', optim__row_len=256, sampling__max_tokens=128, optim__microbatch=2)\n"
        "cfg = tiny_config(**how)\n"
        "found = measure.measure(cfg, WIDE, parse_topology('gpu:h100x2'), print, cache=False)\n"
        "assert found.fits and found.seconds_expected >= found.seconds > 0, found\n"
        "assert {e.source for e in found.expected} == {'roofline'} and found.ladder, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"XLA_FLAGS": ""})


def test_the_update_and_the_sampler_compile_for_a_slice():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'ropd_jax[tpu-aot]'")
    cfg = tiny_config(student__dtype="bfloat16", optim__row_len=256, sampling__max_tokens=128, optim__microbatch=4)
    found = measure.measure(cfg, WIDE, parse_topology("v5e:2x2"), print)
    assert found.fits and all(b.seconds > 0 for b in found.bounds)
    assert {e.source for e in found.expected} == {"cycles"} and found.seconds_expected > found.seconds
    assert {c.kind for c in found.compiled[0].collectives} >= {"all-gather"}
