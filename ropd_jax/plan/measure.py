"""The needs of one setting of a run on a slice: memory from the compiler, work from the shapes, minimum seconds, and
expected seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ropd_jax.methods import ExtraProgram, Method
from ropd_jax.models.config import ModelConfig
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.plan import count, expected, programs, replay
from ropd_jax.plan.bound import Bound, Phase, bound
from ropd_jax.plan.chips import Chip, Topology, topology_devices
from ropd_jax.plan.compiled import Compiled, compile_program
from ropd_jax.plan.expected import Expected, Step
from ropd_jax.plan.programs import device_bytes
from ropd_jax.training.accumulate import uses_streaming
from ropd_jax.training.setup import read_config
from ropd_jax.training.update import needs_initial
from ropd_jax.training.validate import check_sample_mesh

Report = Callable[[str], None]  # receives a line about the current task
SAMPLER = ("move", "prefill", "decode")
PARTS = ("update", *SAMPLER, "method")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one JAX device while one program runs.

    Attributes:
        program: its name.
        fits: peak is within the chip's usable memory; None without a published figure.
        parameters, optimizer: as the run stores them; both are always in memory; a frozen copy counts as parameters.
        kv_cache: keys and values of all slots.
        method: the method's `ExtraMemory`: GAD's discriminator with its optimizer, a white-box teacher.
        gradients: the gradient sum of an update in portions, between its programs.
        ahead: memory for sampling a step ahead: older parameters, and during the update keys and values and the copy.
        copy: the sampler's own weights (`sampling.weights`), moved and converted, while it samples.
        inputs: other arguments: the batch, weights in another form.
        temporaries: activations, gradients, gathered weights.
        peak: maximum at one time; a lower bound if the compiler rejected the program.
    """

    program: str
    fits: bool | None
    parameters: int
    optimizer: int
    kv_cache: int
    method: int
    gradients: int
    ahead: int
    copy: int
    inputs: int
    temporaries: int
    peak: int


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to run a config on a slice: the keys of the config that determine it."""

    tp: int
    microbatch: int
    remat: Any
    slots: int
    max_tokens: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """One setting on one slice.

    Attributes:
        setting: the setting.
        memory: of update, prefill and decode, those that were compiled.
        compiled: the compiler's report about each.
        bounds: minimum seconds of each phase of one step.
        expected: expected seconds of each phase, without phases that do not fit.
        ladder: the programs of decoding in a step: rows halve in its tail.
    """

    setting: Setting
    memory: tuple[Memory, ...]
    compiled: tuple[Compiled, ...]
    bounds: tuple[Bound, ...]
    expected: tuple[Expected, ...] = ()
    ladder: tuple[Step, ...] = ()

    @property
    def fits(self) -> bool | None:
        known = [m.fits for m in self.memory]
        return None if None in known else all(known)

    @property
    def seconds(self) -> float | None:
        """Minimum seconds of one step, sampling and update one after the other."""
        return _whole([b.seconds for b in self.bounds])

    @property
    def seconds_expected(self) -> float | None:
        """Expected seconds of one step; None if a phase does not fit or a figure is unknown."""
        return _whole([e.seconds for e in self.expected]) if len(self.expected) == len(self.bounds) else None


def _whole(parts: list[float | None]) -> float | None:
    known = [s for s in parts if s is not None]
    return sum(known) if known and len(known) == len(parts) else None


def setting_of(cfg: ConfigDict, mesh) -> Setting:
    return Setting(
        tp=programs.sampling_mesh(cfg, mesh).shape["tp"],
        microbatch=cfg.optim.microbatch,
        remat=cfg.optim.remat,
        slots=programs.engine_of(cfg, mesh).prompts * cfg.sampling.rollouts,  # idle prompts fill up the mesh
        max_tokens=cfg.sampling.max_tokens,
    )


def make_mesh(cfg: ConfigDict, model_cfg: ModelConfig, topology: Topology) -> jax.sharding.Mesh:
    """The config's mesh of the update over the devices of the slice.

    Raises:
        UserError: the slice is rejected, or the model does not divide over the mesh.
    """
    mesh = mesh_lib.update_mesh(cfg.mesh, devices=topology_devices(topology))
    own = programs.sampling_mesh(cfg, mesh)
    mesh_lib.check_divides(model_cfg, mesh, keys=mesh_lib.size_keys(cfg.mesh, "update"))
    mesh_lib.check_divides(model_cfg, own, keys=mesh_lib.size_keys(cfg.mesh, "sample"), all_devices=True)
    check_sample_mesh(mesh, own, copy_weights=cfg.sampling.copy_weights)
    return mesh


def slice_name(topology: Topology, mesh: jax.sharding.Mesh) -> str:
    return f"{topology} as fsdp={mesh.shape['fsdp']} tp={mesh.shape['tp']}"


def measure(
    cfg: ConfigDict,
    model_cfg: ModelConfig,
    topology: Topology,
    report: Report,
    *,
    mean_tokens: float | None = None,
    only: tuple[str, ...] = PARTS,
    cache: bool = True,
    ladder: bool = False,
    mesh: jax.sharding.Mesh | None = None,
) -> Measured:
    """Compile a config's programs for a slice and measure them.

    Args:
        mean_tokens: mean length of an answer; None: every answer has the maximum length.
        only: which programs; ``method`` stands for the method's own networks.
        ladder: also compile the programs with fewer rows that decoding runs in its tail.
        mesh: of available devices; None: the config's, over the devices of the described slice.
    """
    mesh, chip = mesh or make_mesh(cfg, model_cfg, topology), topology.chip.a_device()
    with jax.set_mesh(mesh):
        todo = programs.update_programs(cfg, model_cfg, mesh) if "update" in only else []
        todo += [p for p in programs.sampler_programs(cfg, model_cfg, mesh) if p.name in only]
        todo += programs.method_programs(cfg, model_cfg, mesh) if "method" in only else []
        resident, own = sizes(cfg, model_cfg, mesh), programs.sampling_mesh(cfg, mesh)
        names = {p.name: slice_name(topology, own if p.name in SAMPLER[1:] else mesh) for p in todo}
        compiled = tuple(
            refused or compile_program(p, slice_name=names[p.name], report=report, cache=cache)
            for p in todo
            for refused in [_too_large(p.name, resident, chip)]
        )
    memory = tuple(_memory(c, resident, chip) for c in compiled)
    found = {c.name: c for c in compiled}
    work = [p for p in phases(cfg, model_cfg, mesh, found, resident, mean_tokens) if p.name in found]
    steps: tuple[Step, ...] = ()
    if "decode" in found and found["decode"].fits and chip.flops:
        with jax.set_mesh(own):
            rungs = ladder_of(cfg, model_cfg, mesh, mean_tokens)
            decoders = {rungs[0].rows: found["decode"]}
            for rung in rungs[1:] if ladder else ():
                one = programs.decode_program(cfg, model_cfg, mesh, rung.rows)
                decoders[rung.rows] = compile_program(one, slice_name=names["decode"], report=report, cache=cache)
            per_token = decoding_of(cfg, model_cfg, mesh, own)
        steps = expected.of_decoding(rungs, decoders, per_token, topology)
    expectations = tuple(
        expected.total(steps) if p.name == "decode" else expected.of_phase(p, found[p.name], topology)
        for p in work
        if found[p.name].fits
    )
    bounds = tuple(bound(phase, chip) for phase in work)
    return Measured(setting_of(cfg, mesh), memory, compiled, bounds, expectations, steps)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bytes on one device that are known before anything is compiled.

    Attributes:
        trained: parameters that the optimizer updates.
        base: frozen weights, if adapters are trained.
        initial: a copy of the initial student, for terms that read it.
        optimizer: its state.
        kv_prompts, kv_rows: keys and values of the prompts' slots and of all rows.
        batch: of one call of the update.
        method: the method's `ExtraMemory`.
        gradients: the gradient sum of an update in portions; 0 without portions.
        ahead: the next step is sampled by older parameters while this one is updated.
        copy: the sampler's own weights; ``decoding``: all weights for decoding; ``moved``: the part of the copy that is
            stored on the sampler's mesh, 0 if there is only one mesh.
    """

    trained: int
    base: int
    initial: int
    optimizer: int
    kv_prompts: int
    kv_rows: int
    batch: int
    method: int = 0
    gradients: int = 0
    ahead: bool = False
    copy: int = 0
    decoding: int = 0
    moved: int = 0

    @property
    def parameters(self) -> int:
        return self.trained + self.base + self.initial

    @property
    def kv_cache(self) -> int:
        return self.kv_prompts + self.kv_rows

    def held_ahead(self, name: str) -> int:
        """Memory for sampling ahead while a program runs: in the update, older parameters, the cache and the copy of
        the weights; in sampling, older parameters, and either the next step's or the gradient sum."""
        if not self.ahead:
            return 0
        return self.trained + (max(self.trained, self.gradients) if name in SAMPLER else self.kv_cache + self.copy)

    def there(self, name: str) -> int:
        """Everything in memory while a program runs, except its batch and temporaries."""
        always = self.parameters + self.optimizer + self.method
        return always + (self.kv_cache + self.copy if name in SAMPLER else self.gradients) + self.held_ahead(name)

    def inputs(self, name: str) -> int:
        """The part of that memory that is passed to the program."""
        return {
            "update": self.parameters + (self.gradients or self.optimizer),
            "apply": self.trained + self.optimizer + self.gradients,
            "move": self.trained + self.base + self.copy,
            "prefill": (self.moved or self.trained + self.base) + self.kv_prompts,
            "decode": self.decoding + self.kv_cache,
        }.get(name, self.method)


def sizes(cfg: ConfigDict, model_cfg: ModelConfig, mesh) -> Sizes:
    """Inside ``jax.set_mesh``."""
    weights = programs.weights_of(cfg, model_cfg, mesh)
    state = programs.state_of(cfg, model_cfg, mesh)
    method, extra = programs.method_of(cfg, model_cfg, mesh)
    trained, base = device_bytes(weights.trained), device_bytes(weights.base)
    kv_prompts, kv_rows = programs.kv_cache_bytes(cfg, model_cfg, mesh)
    copy, decoding = programs.decode_weights_bytes(cfg, model_cfg, mesh)
    moved = programs.moved_bytes(cfg, model_cfg, mesh)
    return Sizes(
        trained=trained,
        base=base,
        initial=trained if needs_initial(read_config(cfg).loss, method) and not base else 0,
        optimizer=device_bytes(state.opt_state),
        kv_prompts=kv_prompts,
        kv_rows=kv_rows,
        batch=device_bytes(programs.batch_of(cfg, mesh)),
        method=device_bytes(extra.arrays),
        gradients=device_bytes(programs.gradients_of(state)) if uses_streaming(read_config(cfg), method) else 0,
        ahead=bool(cfg.stream.staleness),
        copy=moved + copy,
        decoding=decoding,
        moved=moved,
    )


def _too_large(name: str, s: Sizes, chip: Chip) -> Compiled | None:
    """A rejection without compiling, if parameters, optimizer and cache already exceed the memory."""
    batch = s.batch if name == "update" else 0
    if chip.usable is None or s.there(name) + batch <= chip.usable:
        return None
    inputs = s.inputs(name) + batch
    return Compiled(name, fits=False, peak=inputs, arguments=inputs)


def _memory(c: Compiled, s: Sizes, chip: Chip) -> Memory:
    """Attributes a program's bytes, and adds what stays in memory at the same time."""
    peak = c.peak + s.there(c.name) - s.inputs(c.name)
    return Memory(
        program=c.name,
        fits=None if chip.usable is None else c.fits and peak <= chip.usable,
        parameters=s.parameters,
        optimizer=s.optimizer,
        kv_cache=s.kv_cache if c.name in SAMPLER else 0,
        method=s.method,
        gradients=0 if c.name in SAMPLER else s.gradients,
        ahead=s.held_ahead(c.name),
        copy=s.copy if c.name in SAMPLER else 0,
        inputs=max(c.arguments - s.inputs(c.name), 0) if c.fits else 0,
        temporaries=c.temporaries,
        peak=peak,
    )


# ---------------------------------------------------------------------------------------------------------- work


Received = Callable[[str, float], float | None]  # (program, calls) -> bytes that a device receives


def phases(
    cfg: ConfigDict,
    model_cfg: ModelConfig,
    mesh: jax.sharding.Mesh,
    compiled: dict[str, Compiled],
    s: Sizes,
    mean_tokens: float | None = None,
) -> list[Phase]:
    """Work of one device in one step: update, the method's own networks, prefill and decoding."""
    answer = cfg.sampling.max_tokens if mean_tokens is None else round(mean_tokens)

    def received(name: str, calls: float) -> float | None:
        """None if the program was not compiled."""
        one = compiled.get(name)
        return calls * sum(c.bytes for c in one.collectives) if one and one.fits else None

    with jax.set_mesh(mesh):
        shape, (method, extra) = programs.batch_of(cfg, mesh).tokens_BT.shape, programs.method_of(cfg, model_cfg, mesh)
    found = _update_phases(cfg, model_cfg, mesh, s, shape, method, answer, received)
    remat = cfg.optim.remat in (True, "block")
    for one in extra.programs:
        found.append(_extra_phase(one, mesh.size, s.method, received(one.name, one.calls), remat=remat))
    samples = method.needs_rollouts and cfg.sampling.engine == "own"
    return found + (_sampler_phases(cfg, model_cfg, mesh, s, answer, received) if samples else [])


def _update_phases(
    cfg: ConfigDict,
    model_cfg: ModelConfig,
    mesh: jax.sharding.Mesh,
    s: Sizes,
    shape: tuple[int, ...],
    method: Method,
    answer: int,
    received: Received,
) -> list[Phase]:
    """The update of a step; ``shape`` is A, b, T of one call's batch."""
    A, b, T = shape
    prompt, itemsize = programs.prompt_len(cfg), jnp.dtype(cfg.student.dtype).itemsize
    sequences = cfg.data.prompts_per_step * method.sequences_per_prompt
    calls = programs.update_calls(cfg, method)
    computed = A * b * T * calls
    used = 1.0
    if cfg.optim.row_len:  # parts without a token are not computed
        prompts = cfg.data.prompts_per_step if cfg.optim.shared_prompts else sequences
        used = min(1.0, (prompts * (prompt - 1) + sequences * answer) / computed)
    flops = count.update_flops(
        model_cfg,
        tokens=round(computed * used),
        contexts=sequences * count.contexts(model_cfg, 0, prompt + answer - 1),
        remat=cfg.optim.remat in (True, "block"),
        frozen=bool(cfg.student.lora.rank),
        references=int(needs_initial(read_config(cfg).loss, method)),
    )
    told = programs.told_shapes(cfg, method, mesh)
    told_contexts = sequences * count.contexts(model_cfg, 0, prompt + cfg.context.max_tokens + answer - 1)
    for rows in told.values():
        flops += count.divergence_flops(
            model_cfg,
            told=round(rows.tokens_BS.size * calls * used),
            contexts=told_contexts,
            logits=sequences * answer,
            frozen=bool(cfg.student.lora.rank),
        )
    params = model_cfg.num_layers * count.layer_matmul_params(model_cfg) + count.head_params(model_cfg)
    gathered = itemsize * params / mesh.shape["tp"]
    reads = 2 + len(told)  # forward, backward, and once per context
    a_part = reads * gathered + 2 * s.trained  # the gradient's sum is read and written
    once = 3 * s.trained + 2 * s.optimizer  # gradient read; parameters and moments read and written
    summed, links = calls * A * used * a_part, received("update", calls * used)
    passes = 4 if cfg.optim.remat in (True, "block") else 3
    attention = passes * count.attention_flops(model_cfg, sequences * count.contexts(model_cfg, 0, prompt + answer - 1))
    attention += len(told) * count.attention_flops(model_cfg, told_contexts)
    streams = uses_streaming(read_config(cfg), method)
    update = Phase(
        "update", flops / mesh.size, summed + (0 if streams else calls * once), links, calls * used,
        attention / mesh.size,
    )  # fmt: skip
    return [update, Phase("apply", 0.0, once, received("apply", 1))] if streams else [update]


def _sampler_phases(
    cfg: ConfigDict, model_cfg: ModelConfig, mesh: jax.sharding.Mesh, s: Sizes, answer: int, received: Received
) -> list[Phase]:
    slots, itemsize = setting_of(cfg, mesh).slots, jnp.dtype(cfg.student.dtype).itemsize
    prefills = programs.prefill_calls(cfg, mesh)
    moves = [Phase("move", 0.0, s.trained + s.base + s.moved, received("move", 1))] if s.moved else []
    mesh = programs.sampling_mesh(cfg, mesh)
    work = count.rollouts(
        model_cfg,
        prompts=cfg.data.prompts_per_step,
        per_prompt=cfg.sampling.rollouts,
        prompt_len=programs.prompt_len(cfg),
        answer_len=answer,
        slots=slots,
        itemsize=programs.cache_itemsize(cfg),
    )
    weights = itemsize * count.read_params(model_cfg, slots) / mesh.shape["tp"]
    return moves + [
        Phase(
            "prefill",
            work.prefill_flops / mesh.size,
            prefills * weights,
            received("prefill", prefills),
            prefills,
            cfg.data.prompts_per_step
            * count.attention_flops(model_cfg, count.contexts(model_cfg, 0, programs.prompt_len(cfg)))
            / mesh.size,
        ),
        Phase(
            "decode",
            (work.flops - work.prefill_flops) / mesh.size,
            work.decode_steps * weights + work.cache_bytes / mesh.size,
            received("decode", work.decode_steps / cfg.sampling.chunk),  # a call decodes a chunk
            work.decode_steps / cfg.sampling.chunk,
        ),
    ]


def ladder_of(
    cfg: ConfigDict, model_cfg: ModelConfig, mesh: jax.sharding.Mesh, mean_tokens: float | None
) -> tuple[replay.Rung, ...]:
    """The programs of decoding in a step, by the scheduler's replay. Inside ``jax.set_mesh`` of the sampler's mesh.

    All answers have the maximum length, or with ``mean_tokens`` a log-normal length (`replay.SIGMA`).
    """
    G, n, most = cfg.sampling.rollouts, cfg.data.prompts_per_step, cfg.sampling.max_tokens
    limits = replay.lengths(n, G, mean_tokens, replay.SIGMA, most, 0) if mean_tokens else [[most] * G] * n
    sizes = programs.scheduler_of(programs.engine_of(cfg, mesh), model_cfg, n)
    return replay.ladder(limits, programs.prompt_len(cfg), programs.prompt_len(cfg), sizes)


def decoding_of(
    cfg: ConfigDict, model_cfg: ModelConfig, mesh: jax.sharding.Mesh, own: jax.sharding.Mesh
) -> expected.Decoding:
    """The cost of a token; ``own`` is the sampler's mesh."""
    tp, itemsize = own.shape["tp"], jnp.dtype(cfg.student.dtype).itemsize
    return expected.Decoding(
        weights=itemsize * count.read_params(model_cfg, setting_of(cfg, mesh).slots) / tp,
        position=count.kv_bytes_per_token(model_cfg, programs.cache_itemsize(cfg)) / tp,
        row_flops=count.forward_flops(model_cfg, tokens=1, contexts=0, logits=1) / mesh.size,
        chunk=cfg.sampling.chunk,
    )


def _extra_phase(one: ExtraProgram, devices: int, memory: int, received: float | None, *, remat: bool) -> Phase:
    """A program of the method's own network: its rows count as full, and its weights are read once per call."""
    tokens = one.calls * one.tokens
    looked_at = tokens // one.row * count.contexts(one.model, 0, one.row)
    if one.trains:
        flops = count.update_flops(one.model, tokens=tokens, contexts=looked_at, remat=remat, logits=0)
    else:
        flops = count.forward_flops(one.model, tokens=tokens, contexts=looked_at, logits=tokens)
    return Phase(one.name, flops / devices, one.calls * memory, received, one.calls)
