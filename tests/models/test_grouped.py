"""Products of sorted rows with one matrix for each group, next to one product for each group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.models import grouped
from ropd_jax.models.grouped import grouped_matmul, matrices_by_kernel, matrices_by_visits, rows_by_visits, visits

GROUPS = {
    "even": [16, 16, 16],
    "uneven": [3, 0, 7, 1, 0, 40],
    "first and last empty": [0, 5, 33, 0],
    "one has all": [0, 48, 0, 0],
    "few rows": [1, 0, 1],
    "none": [0, 0],
}


def case(sizes, spare=0, dtype=np.float32, D=24, F=40):
    rng = np.random.default_rng(len(sizes))
    R = sum(sizes) + spare
    x_RD, w_EDF, dy_RF = (rng.normal(size=shape).astype(dtype) for shape in ((R, D), (len(sizes), D, F), (R, F)))
    return x_RD, w_EDF, dy_RF, np.array(sizes, np.int32)


def by_group(x_RD, w_EDF, dy_RF, size_E):
    """(y, dx, dw) in float64, of the rows that have a group."""
    ends = np.cumsum(size_E)
    parts = [slice(end - size, end) for end, size in zip(ends, size_E, strict=True)]
    x, w, dy = (a.astype(np.float64) for a in (x_RD, w_EDF, dy_RF))
    y = np.concatenate([x[part] @ w[e] for e, part in enumerate(parts)])
    dx = np.concatenate([dy[part] @ w[e].T for e, part in enumerate(parts)])
    return y, dx, np.stack([x[part].T @ dy[part] for part in parts])


def close(got, expected, tolerance=1e-5):
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=0, atol=tolerance * scale)


def test_visits_of_the_example():
    got = visits(jnp.array([3, 0, 7], jnp.int32), rows=10, tile=4)
    assert int(got.total) == 5
    pairs = list(zip(got.group_V.tolist(), got.tile_V.tolist(), strict=True))
    assert pairs[:5] == [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2)] and {group for group, _ in pairs[5:]} == {2}


@pytest.mark.parametrize("sizes", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("spare", [0, 21])
def test_equals_one_product_for_each_group(sizes, spare):
    x_RD, w_EDF, dy_RF, size_E = case(sizes, spare)
    real = sum(sizes)
    x_RD[real:] = np.nan  # rows without a group can be anything
    dy_RF[real:] = np.inf
    y, dx, dw = by_group(x_RD[:real], w_EDF, dy_RF[:real], size_E)
    got, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, size_E), jnp.asarray(x_RD), jnp.asarray(w_EDF))
    got_dx, got_dw = pull(jnp.asarray(dy_RF))
    close(got[:real], y)
    close(got_dx[:real], dx)
    close(got_dw, dw)
    close(matrices_by_kernel(x_RD, dy_RF, size_E, interpret=True), dw)


@pytest.mark.parametrize(("D", "F"), [(256, 1280), (128, 72)])
def test_kernel_with_blocks_of_the_matrices(D, F):
    x_RD, w_EDF, dy_RF, size_E = case([100, 0, 300, 13], spare=3, D=D, F=F)
    *_, dw = by_group(x_RD[:413], w_EDF, dy_RF[:413], size_E)
    close(matrices_by_kernel(x_RD, dy_RF, size_E, interpret=True), dw)


def test_bfloat16_sums_in_float32():
    sizes = [700, 4, 0, 320]
    x_RD, w_EDF, dy_RF, size_E = case(sizes)
    x_RD, w_EDF, dy_RF = (jnp.asarray(a, jnp.bfloat16) for a in (x_RD, w_EDF, dy_RF))
    y, _, dw = by_group(*(np.asarray(a, np.float32) for a in (x_RD, w_EDF, dy_RF)), size_E)
    for got, expected in (
        (rows_by_visits(x_RD, w_EDF, size_E), y),
        (matrices_by_visits(x_RD, dy_RF, size_E), dw),
        (matrices_by_kernel(x_RD, dy_RF, size_E, interpret=True), dw),
    ):
        assert got.dtype == jnp.bfloat16
        close(got, expected, 5e-3)  # one rounding to bfloat16; sums in bfloat16 are off by 2e-2 here


def test_on_a_mesh_a_shared_matrix_gets_the_sum_of_all_devices():
    """Each device sorts its own rows; the matrices are the same on all, so their gradient is the sum."""
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Explicit,))
    parts = [case(sizes) for sizes in ([9, 3, 4], [0, 16, 0], [5, 5, 6], [16, 0, 0])]
    w_EDF = parts[0][1]
    x_RD, dy_RF = (np.concatenate([part[i] for part in parts]) for i in (0, 2))
    size_E = np.concatenate([part[3] for part in parts])
    P = jax.P

    def loss(x_RD, w_EDF):
        y_RF = jax.shard_map(grouped_matmul, in_specs=(P("fsdp"), P(), P("fsdp")), out_specs=P("fsdp"))(
            x_RD, w_EDF, jax.device_put(size_E, P("fsdp"))
        )
        return jnp.sum(y_RF * jax.device_put(dy_RF, P("fsdp")))

    with jax.set_mesh(mesh):
        got_dx, got_dw = jax.jit(jax.grad(loss, argnums=(0, 1)))(
            jax.device_put(x_RD, P("fsdp")), jax.device_put(w_EDF, P())
        )
    each = [by_group(x, w_EDF, dy, size) for x, _, dy, size in parts]
    close(got_dx, np.concatenate([dx for _, dx, _ in each]))
    close(got_dw, sum(dw for *_, dw in each))


def test_the_work_is_that_of_the_rows():
    """128 groups of 64 rows: the loop visits each tile about once, whatever the number of groups."""
    size_E = jnp.full((128,), 64, jnp.int32)
    R = 128 * 64
    assert int(visits(size_E, R, grouped.tile_of(R, 128)).total) == 128
