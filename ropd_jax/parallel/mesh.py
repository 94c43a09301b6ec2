"""The device mesh, its axis names and the one table of sharding rules.

Axes are Explicit (the default of ``jax.make_mesh`` in jax 0.10), so a wrong sharding raises an error during tracing.
There are two axes, and two optional ones for the update:

    fsdp   parameters are stored in slices over it; a batch is split over it
    tp     heads, MLP width and vocabulary are split over it
    ep     (update with ``mesh.ep`` > 1) experts are split over it; for everything else it is a part of fsdp: a batch is
           split over it, and it stores parameters
    cp     (update with ``mesh.cp`` > 1) the tokens of a row are split over it, and it stores parameters like fsdp

A parameter's name gives its dimensions (``q_DNH``), so its sharding follows from its name: ``ShardingRules``
maps each letter of the dimension key to a mesh axis. Parameters are *stored* sharded over both axes and
*gathered* over ``fsdp`` one layer at a time just before use (`ShardingRules.gather`).
Without a mesh (outside `jax.set_mesh`) every function here is the identity.

Update and sampler can have different meshes, with the same devices in the same order (`sampling_mesh`): with tp=1 the
update moves a fifth of the bytes, but decoding needs tp. Arrays move between them as a whole (`sampling.weights`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, reshard

from ropd_jax.types import UserError

AXES = ("fsdp", "tp")


def make_mesh(fsdp: int = -1, tp: int = 1, devices=None, *, ep: int = 1, cp: int = 1) -> jax.sharding.Mesh:
    """A mesh of shape (fsdp, tp), with ``ep`` and ``cp`` in between if they are above 1.

    ``fsdp=-1`` takes all remaining devices.
    """
    devices = jax.devices() if devices is None else devices
    n = len(devices)
    if min(tp, ep, cp) < 1 or (fsdp < 1 and fsdp != -1):
        raise UserError(f"mesh fsdp={fsdp}, ep={ep}, cp={cp}, tp={tp}: expected positive sizes, or fsdp=-1")
    inner = {axis: size for axis, size in (("ep", ep), ("cp", cp)) if size > 1} | {"tp": tp}
    rest, words = math.prod(inner.values()), " x ".join(f"{axis}={size}" for axis, size in inner.items())
    if fsdp == -1:
        if n % rest:
            raise UserError(f"mesh {words} does not divide the {n} devices; choose a divisor of {n}")
        fsdp = n // rest
    if fsdp * rest > n:
        raise UserError(f"mesh fsdp={fsdp} x {words} needs {fsdp * rest} devices, but there are {n}; lower one of them")
    return jax.make_mesh((fsdp, *inner.values()), ("fsdp", *inner), devices=devices[: fsdp * rest])


def update_mesh(section: Mapping[str, Any], devices=None) -> jax.sharding.Mesh:
    """The mesh of the update, which holds parameters and optimizer: ``mesh.update_fsdp`` and ``mesh.update_tp``, or if
    these are 0 ``mesh.fsdp`` and ``mesh.tp``; and ``mesh.ep`` and ``mesh.cp``. With ``update_fsdp=-1`` it takes the
    devices of ``mesh.fsdp`` and ``mesh.tp``: all of them, or as many as their sizes give.

    Args:
        section: ``cfg.mesh``.
    """
    fsdp, tp = section["update_fsdp"] or section["fsdp"], section["update_tp"] or section["tp"]
    if section["update_fsdp"] == -1 and section["fsdp"] > 0:
        devices = (jax.devices() if devices is None else devices)[: section["fsdp"] * section["tp"]]
    return make_mesh(fsdp, tp, devices, ep=section["ep"], cp=section["cp"])


def sampling_mesh(section: Mapping[str, Any], update: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """The mesh of the sampler, with the update's devices in the update's order: ``mesh.sample_fsdp`` and
    ``mesh.sample_tp``, or if these are 0 ``mesh.fsdp`` and ``mesh.tp``. With equal sizes it is ``update`` itself.

    Raises:
        UserError: the sizes do not use all devices of the update.
    """
    fsdp, tp = section["sample_fsdp"] or section["fsdp"], section["sample_tp"] or section["tp"]
    if fsdp == -1 and not update.size % tp:
        fsdp = update.size // tp
    if fsdp * tp != update.size:
        raise UserError(
            f"sampler's mesh fsdp={fsdp}, tp={tp}: expected all {update.size} devices of the update's mesh, fsdp="
            f"{update.shape['fsdp']}, tp={update.shape['tp']}; set --config.mesh.sample_fsdp=-1 and a "
            f"--config.mesh.sample_tp that divides {update.size}"
        )
    if (fsdp, tp) == update.devices.shape:
        return update
    return jax.sharding.Mesh(update.devices.reshape(fsdp, tp), AXES, axis_types=update.axis_types[:2])


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Mesh axis of each dimension letter; absent letters are replicated."""

    axis: tuple[tuple[str, str], ...] = (
        ("D", "fsdp"),
        ("N", "tp"),
        ("K", "tp"),
        ("F", "tp"),
        ("V", "tp"),
        ("B", "fsdp"),
    )

    def spec(self, dims: str, *, drop: str = "") -> PartitionSpec:
        """PartitionSpec of an array with these dimension letters, without the mesh axis ``drop``.

        Inside ``jax.set_mesh`` of a mesh with the axes ``ep`` or ``cp``, a parameter's D is split over them as well.
        For an expert's weights (``EDF``, not the router's ``DE``), E is split over ``ep`` instead of D.
        """
        table: dict[str, str | tuple[str, ...]] = dict(self.axis)
        if drop:
            table = {letter: axis for letter, axis in table.items() if axis != drop}
        parts = tuple(axis for axis in ("ep", "cp") if size_of(axis) > 1)
        if "ep" in parts:
            table |= {"B": ("fsdp", "ep")} if "B" in table else {}
            if dims.lstrip("L").startswith("E"):
                table["E"] = "ep"
                parts = parts[1:]
        if "D" in table and parts:
            table["D"] = (*parts, "fsdp")
        return PartitionSpec(*map(table.get, dims))

    def storage(self, params) -> dict:
        """Tree of PartitionSpecs for the storage of a parameter tree."""
        return jax.tree_util.tree_map_with_path(lambda path, x: self.spec(dims_of(path, x)), params)

    def gather(self, params, *, but: Collection[str] = ()):
        """All-gather parameters over ``fsdp`` before their use; a no-op without a mesh.

        Args:
            but: names of parameters that are not gathered.
        """
        if active_mesh() is None:
            return params

        def one(path, x):
            return x if path[-1].key in but else reshard(x, self.spec(dims_of(path, x), drop="fsdp"))

        return jax.tree_util.tree_map_with_path(one, params)


RULES = ShardingRules()


def dims_of(path, x) -> str:
    """Dimension letters of a parameter from its name's suffix; a stacked one has a leading L."""
    dims = path[-1].key.rsplit("_", 1)[-1]
    return "L" * (x.ndim - len(dims)) + dims


def active_mesh() -> AbstractMesh | None:
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def size_of(axis: str) -> int:
    """The size of an axis of the mesh; 1 without that axis or without a mesh."""
    mesh = active_mesh()
    return 1 if mesh is None else mesh.shape.get(axis, 1)


def parts_of_a_row() -> int:
    """``cp`` of the mesh: the number of devices over which the tokens of a row are split."""
    return size_of("cp")


def parts_of_a_batch(mesh: jax.sharding.Mesh) -> int:
    """The number of devices over which the rows of a batch are split; the number of rows is a multiple of it."""
    return mesh.shape["fsdp"] * mesh.shape.get("ep", 1)


def check_whole_rows(mesh: jax.sharding.Mesh, who: str) -> None:
    """Raise UserError if rows are split over ``cp`` or a batch over ``ep``, for networks that support neither."""
    if "cp" in mesh.axis_names:
        raise UserError(f"mesh.cp={mesh.shape['cp']}: {who} reads whole rows; set --config.mesh.cp=1")
    if "ep" in mesh.axis_names:
        raise UserError(f"mesh.ep={mesh.shape['ep']}: {who} supports only the axes fsdp and tp; set --config.mesh.ep=1")


def whole_parts(tokens: int, mesh: jax.sharding.Mesh) -> int:
    """Tokens of a row, rounded up to be divisible by ``cp``."""
    return -(-tokens // (parts := mesh.shape.get("cp", 1))) * parts


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``: that of the mesh, whose devices need not be present, or else jax's default."""
    mesh = active_mesh()
    device = mesh.abstract_device if mesh is not None else None
    return device.platform if device is not None else jax.default_backend()


def out(dims: str) -> PartitionSpec | None:
    """``out_sharding`` for an operation that makes an activation with these dimensions, or None without a mesh.

    The letter D of an activation is not sharded (only a parameter's is): activations follow B and heads, and T if
    there is a ``cp``. S stands for tokens of which each device has all.
    """
    if active_mesh() is None:
        return None
    table: dict[str, str | tuple[str, ...] | None] = dict(RULES.axis) | {"D": None}
    if size_of("ep") > 1:
        table["B"] = ("fsdp", "ep")
    if parts_of_a_row() > 1:
        table["T"] = "cp"
    return PartitionSpec(*(table.get(d) for d in dims))


def constrain(x: jax.Array, dims: str) -> jax.Array:
    """Reshard an activation to the layout of ``dims``; the identity without a mesh."""
    return x if active_mesh() is None else reshard(x, out(dims))


def locally(f: Callable, dims: tuple, out_dims: tuple | str) -> Callable:
    """``f`` run on each device's part of its arguments (`jax.shard_map`); ``f`` itself without a mesh.

    Args:
        dims: dimension letters of each argument, or of every array in an argument that is a tree. Trailing letters of
            axes that are not sharded can be omitted: "BK" for [B, K, S, H].
        out_dims: the same for the results.
    """
    if active_mesh() is None:
        return f
    to_specs = functools.partial(jax.tree.map, out)
    return jax.shard_map(f, in_specs=to_specs(dims), out_specs=to_specs(out_dims), check_vma=False)


def size_keys(section: Mapping[str, Any], role: str) -> tuple[str, str]:
    """The keys that set the sizes (fsdp, tp) of the ``update``'s or the ``sample`` mesh, for `check_divides`.

    With ``mesh.tp=4`` and ``mesh.update_tp=1`` these are ``mesh.update_fsdp`` and ``mesh.update_tp`` for the update,
    and ``mesh.fsdp`` and ``mesh.tp`` for the sampler.

    Args:
        section: ``cfg.mesh``.
    """
    own = f"{role}_" if section[f"{role}_fsdp"] or section[f"{role}_tp"] else ""
    return f"mesh.{own}fsdp", f"mesh.{own}tp"


def check_heads(num_heads: int, num_kv_heads: int) -> None:
    """Raise UserError if heads do not divide over the ``tp`` of the current mesh.

    Key/value heads are split like query heads, not repeated: each device would have to store and compute all of them,
    and with 3 of them over tp=2 the queries of one head would be on two devices. Runs, evaluations and plans check all
    sizes of a student before they begin (`check_divides`); this is for code that calls the network by itself.
    """
    tp = size_of("tp")
    if num_heads % tp or num_kv_heads % tp:
        raise UserError(
            f"num_heads={num_heads}, num_kv_heads={num_kv_heads}: expected multiples of the mesh's tp={tp}; use a mesh "
            f"with tp={math.gcd(tp, num_heads, num_kv_heads)}"
        )


def check_divides(
    cfg, mesh: jax.sharding.Mesh, *, keys: tuple[str, str] = ("mesh.fsdp", "mesh.tp"), all_devices: bool = False
) -> None:
    """Raise UserError if a student's sizes do not divide over the mesh, with the nearest meshes that work.

    Args:
        keys: of the config, which set the sizes fsdp and tp of the mesh: the error tells the user to change them.
        all_devices: name only meshes of as many devices as this one has: for a sampler, which uses the update's.
    """
    if (ep := mesh.shape.get("ep", 1)) > 1 and (not cfg.num_experts or cfg.num_experts % ep):
        have = f"num_experts={cfg.num_experts} does not divide over it" if cfg.num_experts else "it has no experts"
        fits = math.gcd(ep, cfg.num_experts) if cfg.num_experts else 1
        raise UserError(
            f"mesh.ep={ep}: expected a divisor of the student's experts; {have}; set --config.mesh.ep={fits}"
        )
    asked = parts_of_a_batch(mesh) * mesh.shape.get("cp", 1), mesh.shape["tp"]
    if not (wrong := _undivided(cfg, *asked)):
        return
    n = len(jax.devices()) if mesh.devices.flat[0] in jax.devices() else mesh.size
    near = nearest_meshes(cfg, n, *asked)
    if all_devices:
        n = mesh.size
        near = [sizes for sizes in nearest_meshes(cfg, n, *asked, most=n) if math.prod(sizes) == n][:3] or near
    shown = "; ".join(f"fsdp={fsdp}, tp={tp}" for fsdp, tp in near)
    fsdp, tp = near[0]
    raise UserError(
        f"mesh fsdp={asked[0]}, tp={asked[1]}: {'; '.join(wrong)}; nearest meshes of up to {n} devices that work for "
        f"this student: {shown}; set --config.{keys[0]}={fsdp} --config.{keys[1]}={tp}"
    )


def _undivided(cfg, fsdp: int, tp: int) -> list[str]:
    """The sizes of a student that do not divide over (fsdp, tp), as text."""
    sizes = {
        "D": ("d_model", cfg.d_model),
        "N": ("num_heads", cfg.num_heads),
        "K": ("num_kv_heads", cfg.num_kv_heads),
        "F": ("mlp_dim", cfg.mlp_dim),
        "V": ("vocab_size", cfg.vocab_size),
    }
    over = {"fsdp": fsdp, "tp": tp}
    return [
        f"{name}={size} does not divide over {axis}={over[axis]}"
        for letter, (name, size) in sizes.items()
        if size % over[axis := dict(RULES.axis)[letter]]
    ]


def nearest_meshes(cfg, devices: int, fsdp: int, tp: int, *, most: int = 3) -> list[tuple[int, int]]:
    """Up to ``most`` (fsdp, tp) over which all sizes of a student divide, nearest first.

    Those that use the most of ``devices`` devices come first; among them those whose tp, then fsdp, differ by the
    smallest factor. (1, 1) always works, so there is always one. For the tiny student (D = 96, 3 heads, V = 104) on 8
    devices, (4, 2) becomes (8, 1).
    """
    fits = [(f, t) for f in range(1, devices + 1) for t in range(1, devices // f + 1) if not _undivided(cfg, f, t)]

    def distance(mesh: tuple[int, int]):
        f, t = mesh
        return -f * t, abs(math.log(t / tp)), abs(math.log(f / fsdp))

    return sorted(fits, key=distance)[:most]


def place(x, sharding: NamedSharding) -> jax.Array:
    """An array on the mesh. All hosts have the whole array; each one passes the shards of its own devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return _relay(sharding)(x)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])


def fetch(*arrays: jax.Array) -> list[np.ndarray]:
    """Whole arrays of the mesh on the host. With several hosts it is a collective, and every host gets them."""
    if all(x.is_fully_addressable for x in arrays):
        return [np.asarray(x) for x in arrays]
    sharding = arrays[0].sharding
    assert isinstance(sharding, NamedSharding)
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    return [np.asarray(x.addressable_data(0)) for x in _relay(whole)(arrays)]


@functools.lru_cache
def _relay(sharding: NamedSharding):
    return jax.jit(lambda x: x, out_shardings=sharding)


def shapes(tree, mesh: jax.sharding.Mesh):
    """Parameters as ShapeDtypeStructs, sharded as stored."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, s)), tree, RULES.storage(tree)
    )


def put(tree, mesh: jax.sharding.Mesh, specs):
    """Place a tree of host arrays on the mesh by a tree of PartitionSpecs."""
    return jax.tree.map(lambda x, s: place(x, NamedSharding(mesh, s)), tree, specs)
