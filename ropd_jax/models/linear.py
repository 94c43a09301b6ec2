"""Products with the student's weights, their gradient, and what can be attached to a weight.

The name of a weight gives its dimensions: ``q_DNH`` maps D to N x H. A layer's parameters can have up to three further
groups, with the same keys as the weights to which they belong:

    layer["attn"]["q_DNH"]                                   the weight W
    layer["adapters"]["attn"]["q_DNH"]  a_DR, b_RNH          LoRA: y = x W + (x A) B   (`ropd_jax.models.lora`)
    layer["scales"]["attn"]["q_DNH"]    channel_NH           W is int8: y = (x W) * channel
    layer["layouts"]["attn"]["q_DNH"]   flipped_NHD          W stored outputs first, in place of W (`flip`)

A weight is passed as it is stored, split over ``fsdp``; `project` gathers it, and sums its gradient into the slices.

Two optimizations are for XLA on CPU: which factor of a weight's gradient is transposed (`project`), and weights stored
outputs first for decoding (`flip`).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import reshard

from ropd_jax.parallel.mesh import RULES, active_mesh, out, platform

Params = dict

MANY_ROWS = 32  # in a decode step on CPU, see `product_outputs_first`
LINEAR = {"attn": ("q_DNH", "k_DKH", "v_DKH", "o_NHD"), "mlp": ("gate_DF", "up_DF", "down_FD")}


EXPERTS = ("gate_EDF", "up_EDF", "down_EFD")
GATHERED_AT_USE = (*LINEAR["attn"], *LINEAR["mlp"], *EXPERTS)  # by `project`, and by `transformer.Experts`

ATTACHED = ("adapters", "scales", "layouts")


def take_attached(layer: Params) -> tuple[Params, Params]:
    """(weights, attached parameters) of a layer: the `ATTACHED` groups taken out and merged by weight.

    The layer of the module docstring gives {"attn": {"q_DNH": W}} and {"attn": {"q_DNH": {"a_DR": ..., "b_RNH": ...,
    "channel_NH": ...}}}.
    """
    weights = {group: names for group, names in layer.items() if group not in ATTACHED}
    attached: Params = {}
    for key in ATTACHED:
        for group, names in layer.get(key, {}).items():
            for name, arrays in names.items():
                attached.setdefault(group, {}).setdefault(name, {}).update(arrays)
    return weights, attached


def linear(module: nnx.Module, name: str, x: jax.Array, attached: Params) -> jax.Array:
    """x W, plus (x A) B if the weight has an adapter: LoRA (arXiv 2106.09685, Eq. 3).

    The low-rank path goes through the activations, so the gradient of a frozen W never exists.

    Args:
        name: of the weight in ``module``, e.g. ``q_DNH``; the last axes of ``x`` are its first ones.
        attached: parameters of this module by weight: ``a_DR`` and ``b_RNH`` (B already has the factor alpha / R),
            ``channel_NH``, ``flipped_NHD``; see `take_attached`.
    """
    dims, dt = name.rsplit("_", 1)[-1], x.dtype
    n_in = x.ndim - 2
    ins, outs = dims[:n_in], dims[n_in:]
    own = attached.get(name, {})
    if (w := own.get(f"flipped_{outs}{ins}")) is not None:
        y = product_outputs_first(w.astype(dt), x, outs)
    else:
        w = getattr(module, name)[...]
        if w.dtype.itemsize < dt.itemsize:  # int8 is sent unchanged, the others in the compute dtype
            w = whole(w, dims)
        stored = None if active_mesh() is None else jax.typeof(w).sharding.spec
        y = checkpoint_name(project(ins, outs, stored, x, w.astype(dt)), "linear")
    if (channel := own.get(f"channel_{outs}")) is not None:
        y = y * channel.astype(dt)[None, None]
    if (a := own.get(f"a_{ins}R")) is not None:
        h_BTR = jnp.einsum(f"BT{ins},{ins}R->BTR", x, a.astype(dt), out_sharding=out("BTR"))
        b = own[f"b_R{outs}"].astype(dt)
        y = y + jnp.einsum(f"BTR,R{outs}->BT{outs}", h_BTR, b, out_sharding=out("BT" + outs))
    return y


def product_outputs_first(w: jax.Array, x: jax.Array, outs: str, *, float32: bool = False) -> jax.Array:
    """W x^T, then transposed back to BT``outs``, for the few rows of a decode step.

    The barriers are for XLA on CPU. Without them it computes x W^T, which takes 1.5 and 1.6 x the time at 16 and 32
    rows: here the columns of those rows fill its tiles. From 32 rows on, writing out x^T pays off.
    """
    ins = tuple(range(2, x.ndim))
    if x.shape[0] >= MANY_ROWS:
        x, ins = jax.lax.optimization_barrier(jnp.moveaxis(x, (0, 1), (-2, -1))), tuple(range(x.ndim - 2))
    contract = (tuple(range(len(outs), w.ndim)), ins), ((), ())
    kind = jnp.float32 if float32 else None
    y = jax.lax.dot_general(w, x, contract, preferred_element_type=kind, out_sharding=out(outs + "BT"))
    return jnp.moveaxis(jax.lax.optimization_barrier(y), (-2, -1), (0, 1))


def whole(w: jax.Array, dims: str) -> jax.Array:
    """A weight gathered over the axes that split only its storage; unchanged without a mesh."""
    return w if active_mesh() is None else reshard(w, RULES.spec(dims, drop="fsdp"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def project(ins: str, outs: str, stored: jax.P | None, x: jax.Array, w: jax.Array) -> jax.Array:
    """x W for an ``x`` of dimensions BT``ins``, with a gradient of W that suits XLA's compilers.

    On a mesh W is gathered here, and its gradient is summed into the slices of ``stored``, the layout of W: a
    reduce-scatter. With the gather outside, every device would compute the complete sum (an all-reduce: twice the
    bytes) and then slice it.

    XLA on CPU transposes one of x and dy to contract them. The smaller one comes first, so that this one is transposed;
    in jax's own derivative it would always be dy, which for the MLP's first layer is 2-4 times the size of x.
    """
    return _product(ins, outs, x, whole(w, ins + outs))


def _product(ins, outs, x, w):
    return jnp.einsum(f"BT{ins},{ins}{outs}->BT{outs}", x, w, out_sharding=out("BT" + outs))


def _project_forward(ins, outs, stored, x, w):
    gathered = whole(w.value, ins + outs)
    return _product(ins, outs, x.value, gathered), (x.value if w.perturbed else None, gathered)  # frozen: no gradient


def _project_backward(ins, outs, stored, saved, dy):
    x, w = saved
    dx = jnp.einsum(f"BT{outs},{ins}{outs}->BT{ins}", dy, w, out_sharding=out("BT" + ins))
    if x is None:
        return dx, None
    if x.size > dy.size:
        n = len(ins)
        flipped = None if stored is None else jax.P(*stored[n:], *stored[:n])
        dw = jnp.einsum(f"BT{outs},BT{ins}->{outs}{ins}", dy, x, out_sharding=flipped)
        if platform() == "cpu":  # else it becomes a product with x transposed after all
            dw = jax.lax.optimization_barrier(dw)
        return dx, jnp.moveaxis(dw, range(-n, 0), range(n))
    return dx, jnp.einsum(f"BT{ins},BT{outs}->{ins}{outs}", x, dy, out_sharding=stored)


project.defvjp(_project_forward, _project_backward, symbolic_zeros=True)


def _flipped_dims(name: str) -> tuple[str, int]:
    dims = name.rsplit("_", 1)[-1]
    n_in = 2 if name.startswith("o_") else 1
    return dims[n_in:] + dims[:n_in], n_in


def flip(layer: Params) -> Params:
    """A layer with its weights stored outputs first, under ``layouts``; see `product_outputs_first`."""
    flipped = dict(layer)
    layouts: Params = {}
    for group, names in LINEAR.items():
        here = [name for name in names if name in layer[group]]
        for name in here:
            dims, n_in = _flipped_dims(name)
            w = layer[group][name]
            w = jnp.moveaxis(w, range(n_in), range(w.ndim - n_in, w.ndim))
            layouts.setdefault(group, {})[name] = {f"flipped_{dims}": w}
        flipped[group] = {k: v for k, v in layer[group].items() if k not in here}
    return flipped | {"layouts": layouts}


def flipped_back(name: str, own: Params) -> jax.Array:
    """The weight with inputs first again, from the result of `flip`."""
    dims, n_in = _flipped_dims(name)
    w = own[f"flipped_{dims}"]
    return jnp.moveaxis(w, range(w.ndim - n_in, w.ndim), range(n_in))
