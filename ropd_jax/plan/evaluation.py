"""Plans an evaluation (``ropd eval``) on a slice before it starts: how many answers of full length fit at once.

    1. shapes     weights in the compute dtype, the whole cache, and an estimate of the programs' own memory
    2. rows       the largest number whose sum fits the chip's memory: what ``ropd eval`` would choose
    3. compiler   compiles prefill and decoding for these rows, if the compiler for the chip is installed; decides
    4. seconds    for decoding all answers: the lower bound from published figures and, if compiled, the expected time

An evaluation allocates its cache before the first token, so what fits here does not grow later.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.plan import count, expected, programs, replay
from ropd_jax.plan.bound import Phase, bound
from ropd_jax.plan.chips import Topology, compiler_missing, parse_topology, topology_devices
from ropd_jax.plan.compiled import Compiled, compile_program
from ropd_jax.plan.measure import Report, slice_name
from ropd_jax.plan.shapes import model_config
from ropd_jax.sampling import capacity
from ropd_jax.sampling.engine import EngineConfig
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.types import UserError
from ropd_jax.utils import tables

ROWS = 64  # the default of ropd eval
DTYPES = ("float32", "bfloat16")
PROBLEMS = 30  # in AIME
_TRIES = 4  # attempts with fewer rows, each a compilation, if the compiler needs more than the shapes indicate


@dataclasses.dataclass(frozen=True)
class Fit:
    """One setting on one device, in bytes.

    Attributes:
        rows: answers that are decoded at once, on the whole mesh.
        parameters, cache: bytes as stored.
        work: further bytes of the programs: from the compiler, else estimated.
        fits: None if nothing is published about the chip.
        compiled: whether the figures come from the compiler.
    """

    rows: int
    parameters: int
    cache: int
    work: int
    fits: bool | None
    compiled: bool

    @property
    def peak(self) -> int:
        return self.parameters + self.cache + self.work


def run(
    cfg: ConfigDict,
    topology: str,
    *,
    k: int,
    max_tokens: int,
    rows: int | None,
    as_json: bool,
    report: Report,
    problems: int = PROBLEMS,
    mean_tokens: float | None = None,
) -> dict[str, Any]:
    """Plans, prints and returns the plan; ``fits`` is False if ``rows`` (or, without, one row) do not fit.

    Args:
        cfg: used are ``student``, ``mesh``, ``sampling.cache_dtype`` and ``data.max_prompt_tokens``.
        k, max_tokens: answers per problem, and their maximum length. rows: as in ``ropd eval``; None for its default.
        problems, mean_tokens: for the seconds: their number, and the mean length of an answer; None: maximum length.

    Raises:
        UserError: an unknown slice, a mesh that the student does not divide over, or a setting out of range.
    """
    slice_, model_cfg = parse_topology(topology), model_config(cfg.student.checkpoint)
    _check(cfg, model_cfg, max_tokens)
    if mean_tokens is not None and not 1 <= mean_tokens <= max_tokens:
        raise UserError(f"--mean_tokens={mean_tokens:g}; expected 1 to --max_tokens={max_tokens}")
    mesh, real = _mesh(cfg, model_cfg, slice_)
    shards = mesh.shape["fsdp"]
    engine = EngineConfig(
        rollouts=k, prompts=shards, prompt_len=programs.prompt_len(cfg), max_tokens=max_tokens, stop_ids=(0,),
        rule=SamplingRule(1.0, 0, 0.95), dtype=cfg.student.dtype, cache_dtype=cfg.sampling.cache_dtype, reserve=True,
    )  # fmt: skip
    wanted = rows or max(ROWS // shards, 1) * shards
    usable = slice_.chip.a_device().usable
    params = _params(cfg, model_cfg, mesh)
    if usable is not None:
        free = usable * (1 - capacity.SPARE) - capacity.device_bytes(params)
        engine = capacity.choose_copy(model_cfg, engine, mesh, free, wanted, asked=bool(rows))
    asked = by_shapes(engine, params, model_cfg, mesh, wanted, usable)
    best = asked if usable is None or asked.fits else _best(engine, params, model_cfg, mesh, wanted, usable)
    decoder: Compiled | None = None
    if real and best.rows:
        name = slice_name(slice_, mesh)
        best, decoder = _by_compiler(engine, params, model_cfg, mesh, best, usable, name, report)
    seconds = _seconds(engine, model_cfg, mesh, slice_, best.rows, decoder, problems, mean_tokens)
    others = {} if usable is None else _others(cfg, engine, model_cfg, slice_, wanted, usable)
    fits = None if usable is None else best.rows == wanted if rows else bool(best.rows)
    found = {
        "topology": str(slice_),
        "mesh": dict(mesh.shape),
        "student": cfg.student.checkpoint,
        "seconds": seconds | {"problems": problems, "mean_tokens": mean_tokens or max_tokens},
        "setting": {"k": k, "max_tokens": max_tokens, "rows": rows, "dtype": engine.dtype,
                    "cache_dtype": engine.cache_dtype or engine.dtype, "prompt_len": engine.prompt_len},
        "usable_by_device": usable,
        "row_bytes": row_bytes(engine, model_cfg, mesh),
        "fits": fits,
        "asked": dataclasses.asdict(asked) | {"peak": asked.peak},
        "best": dataclasses.asdict(best) | {"peak": best.peak},
        "suggested_rows": None if usable is None or not best.rows else best.rows,
        "others": others,
    }  # fmt: skip
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        _show(found)
    return found


def _check(cfg: ConfigDict, model_cfg: ModelConfig, max_tokens: int) -> None:
    if cfg.student.dtype not in DTYPES:
        raise UserError(f"student.dtype={cfg.student.dtype!r}; expected one of {', '.join(DTYPES)}")
    most = model_cfg.max_seq_len
    if programs.prompt_len(cfg) + max_tokens > most:
        raise UserError(
            f"prompts of {programs.prompt_len(cfg)} tokens and answers of {max_tokens} together exceed the {most} that "
            f"{cfg.student.checkpoint} supports; lower --max_tokens or data.max_prompt_tokens"
        )


def _mesh(cfg: ConfigDict, model_cfg: ModelConfig, topology: Topology) -> tuple[jax.sharding.Mesh, bool]:
    """(the mesh, whether programs can be compiled for it). Without a compiler, CPU devices give the same shapes."""
    real = not compiler_missing(topology)
    if real:
        devices = topology_devices(topology)
    else:
        devices = jax.devices("cpu")[: topology.devices]
        if len(devices) < topology.devices:
            raise UserError(
                f"--topology={topology} has {topology.devices} devices, but there are {len(devices)} here to plan "
                f"their shapes on; set XLA_FLAGS=--xla_force_host_platform_device_count={topology.devices}"
            )
    fsdp, tp = cfg.mesh.sample_fsdp or cfg.mesh.fsdp, cfg.mesh.sample_tp or cfg.mesh.tp
    mesh = mesh_lib.make_mesh(fsdp, tp, devices=devices)
    mesh_lib.check_divides(model_cfg, mesh, keys=mesh_lib.size_keys(cfg.mesh, "sample"))
    return mesh, real


def _params(cfg: ConfigDict, model_cfg: ModelConfig, mesh: jax.sharding.Mesh) -> dict:
    """The weights in an evaluation: matrices in the compute dtype, vectors in float32."""
    with jax.set_mesh(mesh):
        if cfg.student.lora.rank:
            return programs.policy_of(cfg, programs.weights_of(cfg, model_cfg, mesh))
        full = transformer.param_shapes(model_cfg)

        def kind(path, x):
            flat = len(mesh_lib.dims_of(path, x).replace("L", "")) < 2
            return jax.ShapeDtypeStruct(x.shape, jnp.float32 if flat else cfg.student.dtype)

        return mesh_lib.shapes(jax.tree_util.tree_map_with_path(kind, full), mesh)


def by_shapes(engine: EngineConfig, params, model_cfg: ModelConfig, mesh, rows: int, usable: float | None) -> Fit:
    """The memory of this many rows, with an estimate for the programs."""
    shards, tp = mesh.shape["fsdp"], mesh.shape["tp"]
    with jax.set_mesh(mesh):
        own = capacity.with_rows(engine, rows, shards)
        cache, work = capacity.cache_bytes(model_cfg, own), capacity.work_bytes(model_cfg, own, tp)
    parameters = capacity.device_bytes(params)
    spare = None if usable is None else usable * (1 - capacity.SPARE)
    return Fit(rows, parameters, cache, work, None if spare is None else parameters + cache + work <= spare, False)


def row_bytes(engine: EngineConfig, model_cfg: ModelConfig, mesh) -> int:
    """The cache on a device for one more answer of full length on each part of the mesh."""
    shards = mesh.shape["fsdp"]
    with jax.set_mesh(mesh):
        one, two = (dataclasses.replace(engine, rows=n * shards) for n in (1, 2))
        return capacity.cache_bytes(model_cfg, two) - capacity.cache_bytes(model_cfg, one)


def _best(engine: EngineConfig, params, model_cfg: ModelConfig, mesh, wanted: int, usable: float) -> Fit:
    """The largest number of rows that fit by their shapes; 0 if none."""
    free = usable * (1 - capacity.SPARE) - capacity.device_bytes(params)
    rows = capacity.most_rows(model_cfg, engine, mesh, free, wanted)
    if rows:
        return by_shapes(engine, params, model_cfg, mesh, rows, usable)
    least = by_shapes(engine, params, model_cfg, mesh, mesh.shape["fsdp"], usable)
    return dataclasses.replace(least, rows=0)


def _by_compiler(
    engine: EngineConfig, params, model_cfg: ModelConfig, mesh, best: Fit, usable: float | None, name: str,
    report: Report,
) -> tuple[Fit, Compiled | None]:  # fmt: skip
    """Like `_best`, from the compiled programs, with fewer rows if they need more memory; and the decoding program."""
    shards, decoder = mesh.shape["fsdp"], None
    for _ in range(_TRIES):
        with jax.set_mesh(mesh):
            shapes = programs.sampler_shapes(capacity.with_rows(engine, best.rows, shards), params, model_cfg, mesh)
            rest = capacity.device_bytes(shapes.cache.pages) + capacity.device_bytes(shapes.cache.stages)
            peak, fits = 0, True
            for program in programs.programs_of(shapes, model_cfg):
                c = compile_program(program, slice_name=name, report=report)
                more = c.peak + (rest if program.name == "prefill" else 0)  # the cache stays during prefill
                peak, fits = max(peak, more), fits and c.fits
                decoder = c if program.per_token else decoder
        work = max(peak - best.parameters - best.cache, 0)
        fits = fits and (usable is None or peak <= usable)
        best = dataclasses.replace(best, work=work, fits=None if usable is None else fits, compiled=True)
        if fits or best.rows <= shards:
            return (best if fits else dataclasses.replace(best, rows=0)), decoder
        fewer = best.rows * 3 // 4 // shards * shards or shards
        best = by_shapes(engine, params, model_cfg, mesh, fewer, usable)
    return dataclasses.replace(best, rows=0), None


def _seconds(
    engine: EngineConfig, model_cfg: ModelConfig, mesh, topology: Topology, rows: int, decoder: Compiled | None,
    problems: int, mean_tokens: float | None,
) -> dict[str, float | None]:  # fmt: skip
    """Seconds for decoding all answers; prompts are prefilled meanwhile. None if unknown, or if no row fits."""
    chip, tp, mean = topology.chip.a_device(), mesh.shape["tp"], round(mean_tokens or engine.max_tokens)
    if not rows or chip.flops is None:
        return {"at_least": None, "expected": None}
    itemsize, cached = jnp.dtype(engine.dtype).itemsize, jnp.dtype(engine.cache_dtype or engine.dtype).itemsize
    work = count.rollouts(
        model_cfg, prompts=problems, per_prompt=engine.rollouts, prompt_len=engine.prompt_len, answer_len=mean,
        slots=rows, itemsize=cached,
    )  # fmt: skip
    weights = itemsize * count.read_params(model_cfg, rows) / tp
    memory = work.decode_steps * weights + work.cache_bytes / mesh.size
    least = bound(Phase("decode", (work.flops - work.prefill_flops) / mesh.size, memory, 0.0), chip).seconds
    if decoder is None:
        return {"at_least": least, "expected": None}
    k, most = engine.rollouts, engine.max_tokens
    limits = replay.lengths(problems, k, mean, replay.SIGMA, most, 0) if mean_tokens else [[most] * k] * problems
    with jax.set_mesh(mesh):
        sizes = programs.scheduler_of(capacity.with_rows(engine, rows, mesh.shape["fsdp"]), model_cfg, problems)
    rungs = replay.ladder(limits, engine.prompt_len, engine.prompt_len, sizes)
    per_token = expected.Decoding(
        weights=weights, position=count.kv_bytes_per_token(model_cfg, cached) / tp, chunk=engine.chunk,
        row_flops=count.forward_flops(model_cfg, tokens=1, contexts=0, logits=1) / mesh.size,
    )  # fmt: skip
    steps = expected.of_decoding(rungs, {rungs[0].rows: decoder}, per_token, topology)
    return {"at_least": least, "expected": expected.total(steps).seconds}


def _others(
    cfg: ConfigDict, engine: EngineConfig, model_cfg: ModelConfig, topology: Topology, wanted: int, usable: float
) -> dict[str, int]:
    """Rows that fit by their shapes with other settings, without settings under which none fits."""
    found = {}
    turns: list[dict[str, Any]] = [{"sampling.cache_dtype": "int8"}] if engine.cache_dtype != "int8" else []
    turns += [{"mesh.tp": tp, "mesh.fsdp": -1} for tp in (1, 2, 4, 8) if tp != cfg.mesh.tp and tp <= topology.devices]
    for keys in turns:
        other = ConfigDict(cfg.to_dict())
        other.update_from_flattened_dict(keys)
        try:
            mesh, _ = _mesh(other, model_cfg, topology)
        except UserError:
            continue
        own = dataclasses.replace(
            engine, copy_weights=True, cache_dtype=other.sampling.cache_dtype, prompts=mesh.shape["fsdp"]
        )
        free = usable * (1 - capacity.SPARE) - capacity.device_bytes(_params(other, model_cfg, mesh))
        most = max(wanted, mesh.shape["fsdp"])
        own = capacity.choose_copy(model_cfg, own, mesh, free, most, asked=False)
        if rows := capacity.most_rows(model_cfg, own, mesh, free, most):
            found[" ".join(f"--config.{k}={v}" for k, v in keys.items() if k != "mesh.fsdp")] = rows
    return found


# --------------------------------------------------------------------------------------------------------- print


def _show(found: dict[str, Any]) -> None:
    console = tables.console(highlight=False)
    s, mesh, best, asked, usable = (found[n] for n in ("setting", "mesh", "best", "asked", "usable_by_device"))

    def gb(n: float) -> str:
        return f"{n / 1e9:.2f} GB" if n >= 1e7 else f"{n / 1e6:.3f} MB"

    def line(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False)

    def needs(fit: dict[str, Any]) -> str:
        source = "by the compiler" if fit["compiled"] else "by shapes"
        return (
            f"parameters {gb(fit['parameters'])}, cache {gb(fit['cache'])}, programs {gb(fit['work'])}: "
            f"{gb(fit['peak'])} on each device ({source})"
        )

    line(
        f"ropd eval with {found['student']} on {found['topology']}, fsdp={mesh['fsdp']} tp={mesh['tp']}: prompts of "
        f"{s['prompt_len']} tokens, {s['k']} answers of at most {s['max_tokens']}, {s['dtype']}, "
        f"cache {s['cache_dtype']}"
    )
    line(f"One more row on each part of the mesh takes {gb(found['row_bytes'])} of cache on a device.")
    if usable is None:
        line(f"{best['rows']} rows: {needs(best)}. Nothing is published about this chip: whether it fits is unknown.")
        return
    line(f"A device has {gb(usable)} for programs.")
    if asked["rows"] != best["rows"]:
        line(f"{asked['rows']} rows do not fit: {needs(asked)}.")
    if best["rows"]:
        choice = "" if s["rows"] else ", or no --rows: ropd eval chooses it"
        fit = "1 row fits" if best["rows"] == 1 else f"{best['rows']} rows fit"
        line(f"{fit}: {needs(best)}. Use --rows {best['rows']}{choice}.")
    else:
        line("Not one row for each part of the mesh fits.")
    t = found["seconds"]
    if t["at_least"] is not None:
        likely = "" if t["expected"] is None else f", {t['expected'] / 3600:.2f} expected"
        answers = f"{t['problems']} problems x {s['k']} answers of {t['mean_tokens']:g} tokens"
        line(f"{answers}: {t['at_least'] / 3600:.2f} hours of decoding at least{likely}.")
    for keys, rows in found["others"].items():
        line(f"With {keys}: --rows {rows} (by shapes).")
    if not best["rows"] and not found["others"]:
        line("Use a larger slice, or a lower --max_tokens.")
