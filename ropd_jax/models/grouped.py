"""Products of sorted rows with one matrix for each group: what the experts of a student compute, and its gradient.

Rows are sorted by group, so the rows of a group are neighbours, and a group covers a few tiles of rows. A *visit* is
one group in one tile. With tiles of 4 rows and groups of 3, 0 and 7 rows:

    rows     0 1 2 3 | 4 5 6 7 | 8 9 . .
    groups   0 0 0 2 | 2 2 2 2 | 2 2
    visits   (0, tile 0)  (1, tile 0)  (2, tile 0)  (2, tile 1)  (2, tile 2)

A visit multiplies the whole tile and uses only the group's rows of it. A group without rows has one visit, which sets
its gradient to 0. So the work is that of the rows, rounded up to tiles; `jax.lax.ragged_dot` multiplies every row with
every group's matrix on a CPU, and in the gradient of the matrices on every platform.

On a TPU the products of rows are `jax.lax.ragged_dot`, for which the compiler has a kernel, and the gradient of the
matrices is the Pallas kernel below. Elsewhere both are a loop over the visits.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ropd_jax.parallel.mesh import platform

TILES = (512, 256, 128, 64, 32, 16)  # rows in a tile
LANES = 128
COLUMNS = 1024  # at most, of each side of a block of the kernel


def grouped_matmul(x_RD: jax.Array, w_EDF: jax.Array, size_E: jax.Array) -> jax.Array:
    """y_RF: each row times the matrix of its group, in the dtype of the arguments. It can be differentiated.

    Args:
        x_RD: rows, sorted by group.
        w_EDF: one matrix for each group, of the same dtype.
        size_E: int32, rows in each group; their sum is at most R. Rows beyond it are undefined in y and in the
            gradient of x, and may be anything in x: they reach no other row and no gradient of w.
    """
    over = frozenset().union(*(_axes(a) for a in (x_RD, w_EDF, size_E)))
    return _grouped_matmul(*(_varying(a, over) for a in (x_RD, w_EDF, size_E)))


@jax.custom_vjp
def _grouped_matmul(x_RD, w_EDF, size_E):
    return _rows(x_RD, w_EDF, size_E)


def _forward(x_RD, w_EDF, size_E):
    return _rows(x_RD, w_EDF, size_E), (x_RD, w_EDF, size_E)


def _backward(kept, dy_RF):
    x_RD, w_EDF, size_E = kept
    return _rows(dy_RF, w_EDF.mT, size_E), _matrices(x_RD, dy_RF, size_E), None


_grouped_matmul.defvjp(_forward, _backward)


def _rows(x_RD, w_EDF, size_E):
    if platform() == "tpu":
        return jax.lax.ragged_dot(x_RD, w_EDF, size_E)
    return rows_by_visits(x_RD, w_EDF, size_E)


def _matrices(x_RD, dy_RF, size_E):
    if platform() == "tpu":
        return matrices_by_kernel(x_RD, dy_RF, size_E)
    return matrices_by_visits(x_RD, dy_RF, size_E)


class Visits(NamedTuple):
    """The visits in the order of their groups. V = R / tile + E is the most that there can be; ``total`` are real.

    Attributes:
        group_V, tile_V: int32. Entries from ``total`` on repeat the last group.
        start_E, end_E: int32, the rows of each group.
        total: int32 [].
    """

    group_V: jax.Array
    tile_V: jax.Array
    start_E: jax.Array
    end_E: jax.Array
    total: jax.Array


def visits(size_E: jax.Array, rows: int, tile: int) -> Visits:
    tiles, E = max(1, -(-rows // tile)), len(size_E)
    end_E = jnp.cumsum(size_E, dtype=jnp.int32)
    start_E = end_E - size_E
    first_E = start_E // tile
    count_E = jnp.where(size_E > 0, (end_E - 1) // tile - first_E + 1, 1)
    until_E = jnp.cumsum(count_E, dtype=jnp.int32)
    v_V = jnp.arange(tiles + E, dtype=jnp.int32)
    group_V = jnp.minimum(jnp.searchsorted(until_E, v_V, side="right"), E - 1).astype(jnp.int32)
    tile_V = first_E[group_V] + v_V - (until_E - count_E)[group_V]
    return Visits(group_V, jnp.clip(tile_V, 0, tiles - 1).astype(jnp.int32), start_E, end_E, until_E[-1])


def tile_of(rows: int, groups: int) -> int:
    """Rows in a tile: about those of a group, so that few tiles are visited twice."""
    return next((tile for tile in TILES if tile * groups <= rows), TILES[-1])


def rows_by_visits(x_RD: jax.Array, w_EDF: jax.Array, size_E: jax.Array) -> jax.Array:
    """`grouped_matmul` as a loop over the visits; undefined rows are 0."""
    R, tile = len(x_RD), tile_of(len(x_RD), len(w_EDF))
    seen = visits(size_E, R, tile)
    x_RD = _whole_tiles(x_RD, tile)

    def visit(v, y_RF):
        at, own_T1 = _own_rows(seen, v, tile)
        x_TD = jax.lax.dynamic_slice_in_dim(x_RD, at, tile)
        y_TF = jnp.dot(x_TD, w_EDF[seen.group_V[v]], preferred_element_type=jnp.float32).astype(y_RF.dtype)
        before_TF = jax.lax.dynamic_slice_in_dim(y_RF, at, tile)
        return jax.lax.dynamic_update_slice_in_dim(y_RF, jnp.where(own_T1, y_TF, before_TF), at, 0)

    y_RF = _varying(jnp.zeros((len(x_RD), w_EDF.shape[2]), x_RD.dtype), _axes(x_RD))
    return jax.lax.fori_loop(0, seen.total, visit, y_RF)[:R]


def matrices_by_visits(x_RD: jax.Array, dy_RF: jax.Array, size_E: jax.Array) -> jax.Array:
    """dw_EDF: for each group, its rows of x times its rows of dy, as a loop over the visits. Sums are in float32."""
    tile = tile_of(len(x_RD), len(size_E))
    seen = visits(size_E, len(x_RD), tile)
    x_RD, dy_RF = _whole_tiles(x_RD, tile), _whole_tiles(dy_RF, tile)

    def visit(v, carry):
        dw_EDF, sum_DF = carry
        at, own_T1 = _own_rows(seen, v, tile)
        x_TD, dy_TF = (jnp.where(own_T1, jax.lax.dynamic_slice_in_dim(a, at, tile), 0) for a in (x_RD, dy_RF))
        group = seen.group_V[v]
        continues = (v > 0) & (seen.group_V[jnp.maximum(v - 1, 0)] == group)
        sum_DF = jnp.where(continues, sum_DF, 0) + jnp.dot(x_TD.mT, dy_TF, preferred_element_type=jnp.float32)
        return dw_EDF.at[group].set(sum_DF.astype(dw_EDF.dtype)), sum_DF

    D, F = x_RD.shape[1], dy_RF.shape[1]
    start = jnp.zeros((len(size_E), D, F), x_RD.dtype), jnp.zeros((D, F), jnp.float32)
    return jax.lax.fori_loop(0, seen.total, visit, tuple(_varying(a, _axes(x_RD)) for a in start))[0]


def matrices_by_kernel(x_RD: jax.Array, dy_RF: jax.Array, size_E: jax.Array, *, interpret: bool = False) -> jax.Array:
    """The same as a Pallas kernel for TPUs. A block of dw stays in the core's memory while its group is visited.

    Args:
        interpret: run without a TPU.
    """
    (R, D), F, E = x_RD.shape, dy_RF.shape[1], len(size_E)
    tile = max(LANES, tile_of(R, E))
    seen = visits(size_E, R, tile)
    d, f = _columns(D), _columns(F)
    x_RD, dy_RF = _whole_tiles(x_RD, tile), _whole_tiles(dy_RF, tile)
    return pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(D // d, F // f, len(seen.group_V)),
            in_specs=[
                pl.BlockSpec((tile, d), lambda i, j, v, group, tile_V, *_: (tile_V[v], i)),
                pl.BlockSpec((tile, f), lambda i, j, v, group, tile_V, *_: (tile_V[v], j)),
            ],
            out_specs=pl.BlockSpec((None, d, f), lambda i, j, v, group, *_: (group[v], i, j)),
            scratch_shapes=[pltpu.VMEM((d, f), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((E, D, F), x_RD.dtype, manual_axis_type=jax.typeof(x_RD).manual_axis_type),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="matrices_of_groups",
        cost_estimate=pl.CostEstimate(
            flops=2 * R * D * F,
            bytes_accessed=(R * D * (F // f) + R * F * (D // d) + E * D * F) * x_RD.dtype.itemsize,
            transcendentals=0,
        ),
    )(*seen[:4], seen.total[None], x_RD, dy_RF)


def _kernel(group_ref, tile_ref, start_ref, end_ref, total_ref, x_ref, dy_ref, dw_ref, sum_ref):
    v, V = pl.program_id(2), pl.num_programs(2)
    group, tile = group_ref[v], x_ref.shape[0]

    @pl.when((v == 0) | (group_ref[jnp.maximum(v - 1, 0)] != group))
    def _():
        sum_ref[...] = jnp.zeros_like(sum_ref)

    @pl.when(v < total_ref[0])
    def _():
        row_T1 = tile_ref[v] * tile + jax.lax.broadcasted_iota(jnp.int32, (tile, 1), 0)
        own_T1 = (row_T1 >= start_ref[group]) & (row_T1 < end_ref[group])
        x_TD, dy_TF = (jnp.where(own_T1, ref[...], 0) for ref in (x_ref, dy_ref))
        sum_ref[...] += jax.lax.dot_general(
            x_TD, dy_TF, (((0,), (0,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST if x_TD.dtype == jnp.float32 else None,
            preferred_element_type=jnp.float32,
        )  # fmt: skip

    @pl.when((v == V - 1) | (group_ref[jnp.minimum(v + 1, V - 1)] != group))
    def _():
        dw_ref[...] = sum_ref[...].astype(dw_ref.dtype)


def _own_rows(seen: Visits, v: jax.Array, tile: int) -> tuple[jax.Array, jax.Array]:
    """(the first row of visit v's tile, which rows of the tile are its group's [T, 1])."""
    at, group = seen.tile_V[v] * tile, seen.group_V[v]
    row_T1 = at + jnp.arange(tile, dtype=jnp.int32)[:, None]
    return at, (row_T1 >= seen.start_E[group]) & (row_T1 < seen.end_E[group])


def _whole_tiles(x_RD: jax.Array, tile: int) -> jax.Array:
    """Rows of zeros added at the end, to at least one tile."""
    return jnp.pad(x_RD, ((0, -len(x_RD) % tile or tile * (not len(x_RD))), (0, 0)))


def _columns(size: int) -> int:
    """The largest block that divides the axis; the whole axis if no block of the core's lanes does."""
    return next((c for c in range(COLUMNS, 0, -LANES) if size % c == 0), size)


def _varying(x: jax.Array, over: frozenset[str]) -> jax.Array:
    """In `jax.shard_map`: x as an array that can differ along these axes. Its gradient is then summed over them."""
    missing = tuple(over - _axes(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def _axes(x: jax.Array) -> frozenset[str]:
    """In `jax.shard_map`: the mesh's axes along which x can differ."""
    return jax.typeof(x).manual_axis_type.varying
