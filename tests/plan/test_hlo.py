"""Collectives read out of HLO: a module written by hand, and one that XLA compiled for 8 devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ropd_jax.plan.hlo import Collective, array_bytes, collectives, group_size, loop_work, whole_work

MODULE = """\
HloModule jit_f, entry_computation_layout={()->f32[]}

%body.1 (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %ag.1 = bf16[8,2]{1,0:T(8,128)} all-gather(%x), channel_id=1, replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}
  %c.1 = bf16[1024,512]{1,0} convert(%w.1), backend_config={"window_config":{"estimated_cycles":"700"}}
  %k.1 = bf16[8,2]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
  ROOT %t = (s32[], f32[4]) tuple(%i, %ar)
}

%cond.1 (p: (s32[], f32[4])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(36), metadata={op_name="lt"}
  %g = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%g, %constant.7), direction=LT
}

%body.2 (p: (s32[])) -> (s32[]) {
  %w = (s32[], f32[4]) while(%i), condition=%cond.1, body=%body.1
  %ar.1 = (f32[10]{0}, f32[6]{0}) all-reduce(%a, %b), channel_id=2, replica_groups=[2,4]<=[8], to_apply=%add
  %rs = f32[5]{0} reduce-scatter(%c), channel_id=3, replica_groups={{0,1},{2,3}}, dimensions={0}, to_apply=%add
  ROOT %t2 = (s32[]) tuple(%i)
}

%cond.2 (p: (s32[])) -> pred[] {
  %ar.2 = pred[]{:T(512)} all-reduce(%done), channel_id=4, replica_groups=[2,4]<=[8], to_apply=%and
  ROOT %lt2 = pred[] compare(%g, %limit), direction=LT
}

%fused.1 (p0: f32[2]) -> f32[2] {
  %ag.2 = bf16[8,2]{1,0} all-gather(%x), channel_id=1, replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}
  ROOT %r = f32[2] add(%p0, %p0)
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %w2 = (s32[]) while(%z), condition=%cond.2, body=%body.2
  %f = f32[2] fusion(%a), kind=kLoop, calls=%fused.1
  %cp = f32[100]{0} collective-permute(%a), channel_id=9, source_target_pairs={{0,1},{1,0}}
  %one = f32[100]{0} all-reduce(%a), channel_id=10, replica_groups={{0},{1}}, to_apply=%add
  ROOT %y = f32[2] add(%f, %f)
}
"""


def test_loops_count_as_often_as_they_run_and_a_channel_once():
    found = {c.kind: c for c in collectives(MODULE, passes=3)}
    assert found == {
        "all-gather": Collective("all-gather", 36 * 3, 36 * 3 * 32 * 3 // 4),  # 32 bytes, a quarter of them its own
        "all-reduce": Collective("all-reduce", 3, 3 * 2 * 64 * 3 // 4),  # the condition's is not counted
        "reduce-scatter": Collective("reduce-scatter", 3, 3 * 20),
        "collective-permute": Collective("collective-permute", 1, 400),
    }
    assert {c.kind: c.count for c in collectives(MODULE)}["all-gather"] == 36


def test_two_sums_of_one_channel_count_twice_if_their_shapes_differ():
    other = "%ar.3 = f32[7]{0} all-reduce(%z), channel_id=2, replica_groups=[2,4]<=[8]\n"
    again = MODULE.replace("  %cp =", f"  {other}  %cp =")
    counts = {c.kind: c.count for c in collectives(again, passes=3)}
    assert counts["all-reduce"] == 4 and counts["all-gather"] == 36 * 3


def test_one_pass_of_the_loop_over_tokens_with_its_condition():
    token, whole = loop_work(MODULE), whole_work(MODULE, passes=3)
    counts = {c.kind: c.count for c in token.collectives}
    assert counts == {"all-gather": 36, "all-reduce": 2, "reduce-scatter": 1}  # the rest is not
    assert token.cycles == 36 * 700 and token.cast_bytes == 36 * 2**20
    assert token.kernels == 36 and whole.kernels == 3 * 36  # Pallas kernels, of which no cycles are estimated
    assert whole.cycles == 3 * token.cycles and whole.cast_bytes == 3 * token.cast_bytes
    assert whole.collectives == tuple(collectives(MODULE, passes=3))
    assert loop_work(MODULE.replace("while(%z)", "call(%z)")) is None


def test_sizes_of_types_and_groups():
    assert array_bytes("(f32[2,3]{1,0}, bf16[4], pred[])") == 24 + 8 + 1
    assert group_size("replica_groups=mesh['a'=4,'b'=2] {'a','b'}") == 8
    assert group_size("replica_groups=[2,4]<=[8]") == 4
    assert group_size("replica_groups={{0,2,4},{1,3,5}}") == 3


def test_a_compiled_program_gathers_what_it_must():
    mesh = jax.make_mesh((8,), ("x",))
    weights = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "x")))
    rows = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("x")))

    @jax.jit
    def f(w_LDD, x_BD):
        def layer(x_BD, w_DD):
            return jnp.tanh(x_BD @ jax.sharding.reshard(w_DD, PartitionSpec())), None

        return jax.lax.scan(layer, x_BD, w_LDD)[0]

    with jax.set_mesh(mesh):
        (found,) = collectives(f.lower(weights, rows).compile().as_text())
    assert found == Collective("all-gather", 5, pytest.approx(5 * 64 * 64 * 4 * 7 / 8))


SCATTERED = """\
%all-reduce-scatter.3 (input: bf16[2048,2048]) -> bf16[2048,256] {
  %all-reduce.1 = bf16[2048,2048]{1,0} all-reduce(%input), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %slice = bf16[2048,256]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%all-reduce.1, %zero, %start)
}

ENTRY %main (a: bf16[2048,2048]) -> bf16[2048,256] {
  ROOT %fusion = bf16[2048,256]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.3
}
"""


def test_an_all_reduce_that_the_tpu_compiler_fuses_with_its_slice_is_a_reduce_scatter():
    part = 2048 * 256 * 2
    assert collectives(SCATTERED) == [Collective("reduce-scatter", 1, 7 * part)]


RING = """\
HloModule jit_g

%body.3 (p: (f32[100], u32[])) -> (f32[100], u32[]) {
  %one = u32[]{:T(128)} constant(1)
  %two = u32[]{:T(128)} constant(2)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  %odd = u32[]{:T(128)S(6)} add(%i, %one), metadata={op_name="dot"}
  %next = u32[]{:T(128)} add(%i, %two), metadata={op_name="dot"}
  %cp.1 = f32[100]{0} collective-permute(%a), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %cp.2 = f32[100]{0} collective-permute(%cp.1), channel_id=2, source_target_pairs={{0,1},{1,0}}
  ROOT %t3 = (f32[100]{0}, u32[]) tuple(%cp.2, %next), backend_config={}
}

%cond.3 (p.3: (f32[100], u32[])) -> pred[] {
  %limit = u32[]{:T(128)} constant(8), metadata={op_name="dot"}
  %i.3 = u32[]{:T(128)} get-tuple-element(%p.3), index=1
  ROOT %lt3 = pred[]{:T(512)} compare(%i.3, %limit), direction=LT
}

ENTRY %main.3 (a: f32[100]) -> f32[100] {
  ROOT %w3 = (f32[100], u32[]) while(%z), condition=%cond.3, body=%body.3
}
"""


def test_a_loop_around_a_ring_that_is_unrolled_counts_in_its_steps():
    assert collectives(RING, passes=99) == [Collective("collective-permute", 8, 8 * 400)]  # 4 passes of 2


def test_the_benchmark_leaves_out_a_slice_whose_compiler_is_not_installed(monkeypatch, capsys):
    from benchmarks import hlo as benchmark

    monkeypatch.setattr(benchmark.gpu, "PACKAGES", {"no_such_package.xla_cuda12": "jax-cuda12-plugin"})
    monkeypatch.setattr("sys.argv", ["hlo", "--slice", "h100x8"])
    benchmark.main()
    said = capsys.readouterr()
    assert "h100x8: its compiler is not installed, left out" in said.err and "h100x8" not in said.out
