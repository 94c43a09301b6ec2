"""What to change when a config does not fit a slice, and the fastest setting that fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ml_collections import ConfigDict

from ropd_jax.models.config import ModelConfig
from ropd_jax.plan import programs
from ropd_jax.plan.chips import Topology
from ropd_jax.plan.measure import PARTS, SAMPLER, Measured, Report, make_mesh, measure
from ropd_jax.types import UserError

Keys = dict[str, object]
HALF = "xla_tpu_scheduler_percent_shared_memory_limit=50"  # else the compiler fills all memory to overlap work


@dataclasses.dataclass(frozen=True)
class Trial:
    """One change of the config, and its result.

    Attributes:
        keys: of the config, with their values.
        peak: maximum bytes of a device over all compiled programs.
        fits: whether all of them fit.
        seconds: lower bound of a step; None if only a part was compiled or the chip has no figures.
    """

    keys: Keys
    peak: int
    fits: bool | None
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Remedy:
    """Changes that make a config fit (None if no tried change does), and all trials."""

    keys: Keys | None
    tried: tuple[Trial, ...]


def changed(cfg: ConfigDict, keys: Keys) -> ConfigDict:
    """A copy of the config with these keys changed."""
    new = ConfigDict(cfg.to_dict())
    with new.unlocked():
        new.update_from_flattened_dict(keys)
    return new.lock()


def remedy(
    cfg: ConfigDict, model_cfg: ModelConfig, topology: Topology, measured: Measured, report: Report, **options
) -> Remedy:
    """Tries settings for one program after another, and returns those that make all programs fit.

    The settings of the update are the compiler's own limit, the rows per pass, what is kept for the backward pass, and
    the form of the optimizer's moments; those of the sampler are its copy of the weights, the pool, slots, the cache's
    type and the maximum length of an answer; ``mesh.tp`` belongs to both.
    """
    failed = {_part(m.program) for m in measured.memory if not m.fits}
    tried: list[Trial] = []
    for tp in _tps(cfg, model_cfg, topology):
        shared: Keys = {"mesh.tp": tp, "mesh.fsdp": -1} if tp != cfg.mesh.tp else {}
        base, keys, fits = changed(cfg, shared), dict(shared), True
        needed = failed if not shared else {_part(m.program) for m in measured.memory}
        for names, knobs in ((("method",), _none), (("update",), update_knobs), (SAMPLER, sampler_knobs)):
            if not needed & set(names):
                continue
            fits = False
            for turn in (*([{}] if shared else []), *knobs(base, model_cfg, topology)):
                trial = _try(changed(base, turn), shared | turn, model_cfg, topology, report, names, tried, options)
                if trial.fits:
                    keys, fits = keys | turn, True
                    break
            if not fits:
                break
        if fits:
            return Remedy(keys, tuple(tried))
    return Remedy(None, tuple(tried))


def search(cfg: ConfigDict, model_cfg: ModelConfig, topology: Topology, report: Report, **options) -> Remedy:
    """The fastest setting that fits, by the lower bound of a step: for each ``mesh.tp`` the largest number of slots,
    then the update with the least recomputation and the most rows per pass.

    Returns:
        the keys to change ({} if the config is already the fastest), and every trial.
    """
    tried: list[Trial] = []
    best: tuple[float, Keys] | None = None
    for tp in _tps(cfg, model_cfg, topology):
        shared: Keys = {"mesh.tp": tp, "mesh.fsdp": -1}
        base = changed(cfg, shared)
        turns = ({}, *_slots(base, model_cfg, topology))
        sampler = _first(base, turns, model_cfg, topology, report, SAMPLER, tried, options)
        if sampler is None:
            continue
        least = list(update_knobs(base, model_cfg, topology))[-1:] or [{}]
        for turn in (*_faster_updates(base, model_cfg, topology), *least):
            keys = shared | sampler | turn
            trial = _try(changed(cfg, keys), keys, model_cfg, topology, report, PARTS, tried, options)
            if trial.fits and trial.seconds is not None:
                best = min(best or (trial.seconds, keys), (trial.seconds, keys), key=lambda x: x[0])
                break
    return Remedy(None if best is None else best[1], tuple(tried))


def _first(cfg, turns, model_cfg, topology, report, names, tried, options) -> Keys | None:
    for turn in turns:
        keys = {"mesh.tp": cfg.mesh.tp} | turn
        if _try(changed(cfg, turn), keys, model_cfg, topology, report, names, tried, options).fits:
            return turn
    return None


def _try(cfg, keys: Keys, model_cfg, topology, report: Report, names, tried: list[Trial], options) -> Trial:
    report(f"trying {words(keys) or 'the config as it is'}")
    found = measure(cfg, model_cfg, topology, report, only=tuple(names), **options)
    whole = found.seconds if set(names) == set(PARTS) else None
    trial = Trial(keys, max(m.peak for m in found.memory), found.fits, whole)
    tried.append(trial)
    return trial


def words(keys: Keys) -> str:
    return ", ".join(f"{k}={v}" for k, v in keys.items() if k != "mesh.fsdp")


def _part(program: str) -> str:
    return "update" if program == "apply" else program if program in PARTS else "method"


# --------------------------------------------------------------------------------------------------------- knobs


def _none(cfg: ConfigDict, model_cfg: ModelConfig, topology: Topology) -> Iterator[Keys]:
    """No settings: the memory of the method's own networks depends only on ``mesh.tp`` and the slice."""
    yield from ()


def _tps(cfg: ConfigDict, model_cfg: ModelConfig, topology: Topology) -> Iterator[int]:
    """The config's own ``mesh.tp``, then other powers of two that divide the model."""
    sizes = [2**i for i in range(topology.devices.bit_length())]
    for tp in [cfg.mesh.tp, *(n for n in sizes if n != cfg.mesh.tp and n <= 8)]:
        try:
            make_mesh(changed(cfg, {"mesh.tp": tp, "mesh.fsdp": -1}), model_cfg, topology)
        except UserError:
            continue
        yield tp


def mesh_sizes(cfg: ConfigDict, topology: Topology, whose: str) -> dict[str, int]:
    """Sizes of the mesh of the ``update`` or of ``sample``."""
    fsdp, tp = (cfg.mesh[f"{whose}_{axis}"] or cfg.mesh[axis] for axis in ("fsdp", "tp"))
    rest = tp * (cfg.mesh.ep * cfg.mesh.cp if whose == "update" else 1)
    return {"fsdp": topology.devices // rest if fsdp == -1 else fsdp, "tp": tp}


def update_knobs(cfg: ConfigDict, model_cfg: ModelConfig, topology: Topology) -> Iterator[Keys]:
    """Settings that reduce the memory of the update, each including all earlier ones."""
    keys: Keys = {}
    if topology.chip.platform not in ("cpu", "gpu") and HALF.split("=")[0] not in cfg.optim.xla_options:
        keys = {"optim.xla_options": f"{cfg.optim.xla_options} {HALF}".strip()}
        yield keys
    least = mesh_sizes(cfg, topology, "update")["fsdp"]
    rows = cfg.optim.microbatch or (cfg.stream.groups or cfg.data.prompts_per_step) * cfg.sampling.rollouts
    if cfg.optim.remat not in (True, "block"):
        keys = keys | {"optim.remat": "block" if isinstance(cfg.optim.remat, str) else True}
        yield keys
    while rows > least:
        rows = max(rows // 2, least)
        keys = keys | {"optim.microbatch": rows}
        yield keys
    if cfg.optim.moments != "int8":
        yield keys | {"optim.moments": "int8"}


def _faster_updates(cfg: ConfigDict, model_cfg: ModelConfig, topology: Topology) -> Iterator[Keys]:
    """Settings of the update, fastest first: less recomputation, then more rows per pass."""
    shards = mesh_sizes(cfg, topology, "update")["fsdp"]
    if isinstance(cfg.optim.remat, str):
        yield {"optim.remat": "dots", "optim.microbatch": shards}
        rest: Keys = {"optim.remat": "block"}
    else:
        rest = {"optim.remat": True}
    for times in (4, 2, 1):
        yield rest | {"optim.microbatch": times * shards}


def sampler_knobs(cfg: ConfigDict, model_cfg: ModelConfig, topology: Topology) -> Iterator[Keys]:
    """Settings that save memory in the sampler: no copy of the weights, a smaller pool, fewer slots, a narrower cache,
    shorter answers."""
    halves = list(_slots(cfg, model_cfg, topology))
    if cfg.sampling.copy_weights:
        yield {"sampling.copy_weights": False}
    if cfg.sampling.pool == 1:
        yield {"sampling.pool": 0.5}
    yield from halves
    narrow: Keys = {}
    if cfg.sampling.cache_dtype != "int8":
        narrow = {"sampling.cache_dtype": "int8"}
        yield from ({**turn, **narrow} for turn in ({}, *halves))
    length = cfg.sampling.max_tokens
    while length > 512:
        length //= 2
        yield {**(halves[-1] if halves else {}), **narrow, "sampling.max_tokens": length}


def _slots(cfg: ConfigDict, model_cfg: ModelConfig, topology: Topology) -> Iterator[Keys]:
    """Half the slots, a quarter, ... as long as they divide over the mesh."""
    for keys in programs.fewer_slots(cfg, mesh_sizes(cfg, topology, "sample")["fsdp"]):
        yield dict(keys)
