"""The programs of a run as shapes: update, prefill and decoding of a config, ready to be lowered.

Everything is a `jax.ShapeDtypeStruct` with a sharding, so nothing is allocated, and the mesh's devices need not exist.
The functions are the run's own (`training.update`, `sampling.engine`); this module only creates their arguments.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from ropd_jax.core.advantages import Advantages
from ropd_jax.core.batches import TokenSequence, TrainBatch
from ropd_jax.core.told import ToldRows
from ropd_jax.methods import ExtraMemory, ExtraProgram, Method, load_method
from ropd_jax.methods.base import START
from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.models.lora import Lora, adapter_shapes, attach, freeze
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.plan.replay import Sizes
from ropd_jax.plan.shapes import model_config
from ropd_jax.sampling import engine as engine_lib
from ropd_jax.sampling import pages
from ropd_jax.sampling.capacity import device_bytes as device_bytes
from ropd_jax.sampling.kv import View
from ropd_jax.sampling.slots import Slots, halved
from ropd_jax.sampling.weights import DecodeWeights, changes, decode_weights, mover, outer_of
from ropd_jax.training.accumulate import uses_streaming
from ropd_jax.training.scoring import Told, make_score, told_of
from ropd_jax.training.setup import read_config, update_config
from ropd_jax.training.told import TOLD, distributions_of
from ropd_jax.training.update import State, make_portions, make_update, needs_initial, step_parts


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and the shapes of its arguments.

    Attributes:
        name: for messages.
        lower: () -> jax.stages.Lowered, inside ``jax.set_mesh``.
        passes: number of passes of a loop whose end depends on data; its collectives are counted that many times.
        per_token: one pass of that loop is a token, and the compiler's report is needed for it separately.
        options: compiler options that ``lower`` sets; the lowered text does not contain them.
    """

    name: str
    lower: Callable[[], Any]
    passes: int = 1
    per_token: bool = False
    options: str = ""


def prompt_len(cfg: ConfigDict) -> int:
    """Positions of the longest prompt that the config allows."""
    return -(-cfg.data.max_prompt_tokens // 16) * 16


class Weights(NamedTuple):
    """The student as the run stores it: trained parameters, and frozen weights (None if all are trained)."""

    trained: dict
    base: dict | None = None


def weights_of(cfg: ConfigDict, model_cfg: ModelConfig, mesh) -> Weights:
    """Inside ``jax.set_mesh``."""
    lora = Lora.from_config(cfg.student.lora)
    params = mesh_lib.shapes(transformer.param_shapes(model_cfg), mesh)
    if not lora.rank:
        return Weights(params)
    base = jax.eval_shape(lambda p: freeze(p, lora.base_dtype), params)
    return Weights(mesh_lib.shapes(adapter_shapes(model_cfg, lora), mesh), base)


def policy_of(cfg: ConfigDict, weights: Weights) -> dict:
    """The sampler's parameters."""
    lora = Lora.from_config(cfg.student.lora)
    return jax.eval_shape(lambda base, trained: attach(lora, base, trained), weights.base, weights.trained)


def _optimizer(cfg: ConfigDict):
    how = read_config(cfg)
    return how.optim.make(how.steps)


def state_of(cfg: ConfigDict, model_cfg: ModelConfig, mesh) -> State:
    """Parameters and optimizer state as the run stores them; without the method's own networks."""
    params = weights_of(cfg, model_cfg, mesh).trained
    return State(params, jax.eval_shape(jax.jit(_optimizer(cfg).init), params))


def update_calls(cfg: ConfigDict, method: Method) -> int:
    """Number of calls of the update program in a step: portions or mini-batches."""
    return (
        -(-cfg.data.prompts_per_step // cfg.stream.groups)
        if uses_streaming(read_config(cfg), method)
        else cfg.optim.minibatches
    )


def batch_of(cfg: ConfigDict, mesh) -> TrainBatch:
    """The arrays of one update, or of one portion of it, with every answer at maximum length."""
    method = load_method(cfg.method, cfg)
    rows = _rows_of(cfg, method)
    n, length = len(rows), len(rows[0].prompt_T) + len(rows[0].completion_T)
    advantage_B, yes_B = np.ones(n, np.float32), np.ones(n, bool)
    batch = step_parts(rows, Advantages(advantage_B, yes_B, yes_B), method, mesh, read_config(cfg).optim, length)
    return _by_token(batch, mesh)


def _rows_of(cfg: ConfigDict, method: Method) -> list[TokenSequence]:
    """The sequences of one update, or of one portion of it, all at maximum length."""
    prompts = (
        cfg.stream.groups
        if uses_streaming(read_config(cfg), method)
        else cfg.data.prompts_per_step // cfg.optim.minibatches
    )
    prompt_T, completion_T = np.zeros(prompt_len(cfg), np.int32), np.zeros(cfg.sampling.max_tokens, np.int32)
    row = TokenSequence(prompt_T, completion_T, np.zeros(len(completion_T), np.float32))
    return [row] * (prompts * method.sequences_per_prompt)


def told_shapes(cfg: ConfigDict, method: Method, mesh) -> dict[str, ToldRows]:
    """The told rows of `batch_of` by context; {} if the method compares no distributions."""
    rows = _rows_of(cfg, method)
    length = len(rows[0].prompt_T) + len(rows[0].completion_T)
    told = distributions_of(method, mesh, read_config(cfg).optim, length)
    return _by_token(told.parts(rows), mesh) if told else {}


def _by_token(batch: Any, mesh) -> Any:
    """The shapes of a batch, or of several, on the mesh."""
    sharding = NamedSharding(mesh, mesh_lib.RULES.spec("ABT"))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), batch)


def update_programs(cfg: ConfigDict, model_cfg: ModelConfig, mesh) -> list[Program]:
    """The update of one mini-batch; with portions, the sum of one portion and the optimizer step."""
    method, _ = method_of(cfg, model_cfg, mesh)
    state, batch, base = state_of(cfg, model_cfg, mesh), batch_of(cfg, mesh), weights_of(cfg, model_cfg, mesh).base
    reference = (base or state.params) if needs_initial(read_config(cfg).loss, method) else None
    if told := told_shapes(cfg, method, mesh):
        scores: dict[str, Any] = {TOLD: told}
    else:
        scores = {f"told/{name}": batch.old_logp_BT for name in method.contexts}
    if uses_start(cfg):
        scores[START] = batch.old_logp_BT
    extras = method.abstract_extras(batch)
    inputs = (reference, batch, extras._replace(tokens={**extras.tokens, **scores}), base)
    passes, options = batch.tokens_BT.shape[0], cfg.optim.xla_options
    if not uses_streaming(read_config(cfg), method):
        update = make_update(update_config(cfg), model_cfg, method, _optimizer(cfg))
        return [Program("update", lambda: update.lower(state, *inputs), passes, options=options)]
    portions, grads = make_portions(update_config(cfg), model_cfg, method, _optimizer(cfg)), gradients_of(state)
    weight = jax.ShapeDtypeStruct((), jnp.float32)
    return [
        Program("update", lambda: portions.add.lower(grads, state.params, *inputs), passes, options=options),
        Program("apply", lambda: portions.step.lower(*state, grads, weight), options=options),
    ]


def gradients_of(state: State) -> dict:
    """The gradient sum of an update in portions."""
    return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=p.sharding), state.params)


def method_of(cfg: ConfigDict, model_cfg: ModelConfig, mesh) -> tuple[Method, ExtraMemory]:
    """The config's method, and its memory in addition to the student: GAD's discriminator, a white-box teacher."""
    method = load_method(cfg.method, cfg)
    extra = method.extra_memory(model_cfg, batch_of(cfg, mesh), prompt_len(cfg), model_config)
    more = [*_told_programs(cfg, model_cfg, mesh, method), *_start_programs(cfg, model_cfg, mesh, method)]
    return method, extra._replace(programs=(*extra.programs, *more))


def uses_start(cfg: ConfigDict) -> bool:
    """Whether a step scores its tokens once before its first update (``loss.is_clip``)."""
    return bool(cfg.loss.is_clip and cfg.optim.minibatches > 1)


def _start_programs(cfg: ConfigDict, model_cfg: ModelConfig, mesh, method: Method) -> list[ExtraProgram]:
    """The forward pass of `training.rescore.start_logprobs`, if there is one."""
    if not uses_start(cfg):
        return []
    batch, calls = batch_of(cfg, mesh), update_calls(cfg, method)
    return [_score_program("scores before the step", cfg, model_cfg, mesh, batch, calls)]


def _score_program(
    name: str, cfg: ConfigDict, model_cfg: ModelConfig, mesh, batch: TrainBatch, calls: int
) -> ExtraProgram:
    how, weights = update_config(cfg), weights_of(cfg, model_cfg, mesh)

    def lower():
        with jax.set_mesh(mesh):
            return make_score(how, model_cfg).lower(weights.trained, weights.base, batch)

    A, b, T = batch.tokens_BT.shape
    return ExtraProgram(name, lower, model_cfg, calls, A, A * b * T, T, trains=False)


def _told_programs(cfg: ConfigDict, model_cfg: ModelConfig, mesh, method: Method) -> list[ExtraProgram]:
    """The forward pass over rollouts under other prompts (`Method.contexts`), if there is one: distributions are
    computed inside the update."""
    rows, how = _rows_of(cfg, method), update_config(cfg)
    length = len(rows[0].prompt_T) + len(rows[0].completion_T)
    told = told_of(how, model_cfg, mesh, method, None, length, cfg.context.max_tokens)
    if not isinstance(told, Told):
        return []
    most_T = np.zeros(told.most - len(rows[0].completion_T), np.int32)
    batch = _by_token(
        told.batch([dataclasses.replace(rows[0], told=dict.fromkeys(method.contexts, most_T))] * len(rows)), mesh
    )
    calls = update_calls(cfg, method)
    return [_score_program("scores of told rollouts", cfg, model_cfg, mesh, batch, calls)]


def method_programs(cfg: ConfigDict, model_cfg: ModelConfig, mesh) -> list[Program]:
    """The programs of the method's own networks in a step."""
    return [Program(p.name, p.lower, p.parts) for p in method_of(cfg, model_cfg, mesh)[1].programs]


def sampling_mesh(cfg: ConfigDict, mesh) -> jax.sharding.Mesh:
    """The sampler's mesh, given the update's."""
    return mesh_lib.sampling_mesh(cfg.mesh, mesh)


def engine_of(cfg: ConfigDict, mesh) -> engine_lib.EngineConfig:
    """The engine's settings. ``mesh`` is that of the update, as everywhere in this module."""
    mesh = sampling_mesh(cfg, mesh)
    return engine_lib.EngineConfig.from_config(
        cfg.sampling, prompts_per_step=cfg.data.prompts_per_step, prompt_len=prompt_len(cfg), stop_ids=(0,),
        dtype=cfg.student.dtype, shards=mesh.shape["fsdp"],
    )  # fmt: skip


class Sampler(NamedTuple):
    """Shapes of the sampler's arguments."""

    engine: engine_lib.EngineConfig
    params: dict
    cache: Any
    prompts: tuple
    rows: engine_lib.Rows
    view: View


def sampler_of(cfg: ConfigDict, model_cfg: ModelConfig, mesh) -> Sampler:
    """The sampler's shapes, on its mesh."""
    own = sampling_mesh(cfg, mesh)
    with jax.set_mesh(own):
        return sampler_shapes(engine_of(cfg, mesh), stored_for_sampling(cfg, model_cfg, mesh), model_cfg, own)


def stored_for_sampling(cfg: ConfigDict, model_cfg: ModelConfig, mesh) -> dict:
    """The weights for prefill: the learner's own, or those moved to the sampler's mesh."""
    own = sampling_mesh(cfg, mesh)
    with jax.set_mesh(mesh):
        params = policy_of(cfg, weights_of(cfg, model_cfg, mesh))
        return params if own is mesh else jax.eval_shape(mover(params, cfg.student.dtype, own), params)


def moved_bytes(cfg: ConfigDict, model_cfg: ModelConfig, mesh) -> int:
    """Bytes on one device of the weights that are moved to the sampler's mesh; 0 if there is only one mesh."""
    if sampling_mesh(cfg, mesh) is mesh:
        return 0
    return device_bytes(stored_for_sampling(cfg, model_cfg, mesh))


def sampler_shapes(ecfg: engine_lib.EngineConfig, params: dict, model_cfg: ModelConfig, mesh) -> Sampler:
    """Arguments of an engine's programs with all rows at maximum length."""

    def struct(shape, dtype, dims):
        spec = mesh_lib.out(dims)
        assert spec is not None, "call it inside jax.set_mesh"
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    sizes = engine_lib.layout(ecfg)
    N = sizes.parts * sizes.batch
    most = engine_lib.most_pages(ecfg, sizes.rows)
    cache = jax.eval_shape(lambda: engine_lib.empty_cache(model_cfg, ecfg, sizes, pages=most))
    prompts = [struct((N, ecfg.prompt_len), jnp.int32, "BT"), *(struct((N,), jnp.int32, "B") for _ in range(2))]
    state = Slots(
        parts=sizes.parts,
        rows=sizes.rows,
        slots=sizes.slots,
        page=ecfg.page,
        prompt_lens=[ecfg.prompt_len],
        limits=[[ecfg.max_tokens] * ecfg.rollouts],
        key_PG2=np.zeros((1, ecfg.rollouts, 2), np.uint32),
    )
    state.grow(most)
    arrays = (
        [getattr(state, name) for name in engine_lib.Rows._fields],
        [state.view[name] for name in View._fields],
    )
    rows, view = jax.tree.map(lambda x: struct(x.shape, x.dtype, "B"), arrays)
    return Sampler(ecfg, params, cache, tuple(prompts), engine_lib.Rows(*rows), View(*view))


def sampler_programs(cfg: ConfigDict, model_cfg: ModelConfig, mesh) -> list[Program]:
    """What moves the weights to the sampler's mesh, if it has its own; prefill and decoding, all rows of maximum
    length. None if a server samples."""
    if cfg.sampling.engine != "own":
        return []
    own, found = sampling_mesh(cfg, mesh), []
    if own is not mesh:
        with jax.set_mesh(mesh):
            params = policy_of(cfg, weights_of(cfg, model_cfg, mesh))
        found = [Program("move", lambda: mover(params, cfg.student.dtype, own).lower(params))]
    inside = [
        dataclasses.replace(p, lower=functools.partial(_lowered_on, own, p.lower))
        for p in programs_of(sampler_of(cfg, model_cfg, mesh), model_cfg)
    ]
    return found + inside


def _lowered_on(mesh, lower: Callable[[], Any]) -> Any:
    with jax.set_mesh(mesh):
        return lower()


def decode_program(cfg: ConfigDict, model_cfg: ModelConfig, mesh, rows: int) -> Program:
    """Decoding with fewer rows, as in the tail of a step."""
    own, params = sampling_mesh(cfg, mesh), stored_for_sampling(cfg, model_cfg, mesh)
    engine = dataclasses.replace(engine_of(cfg, mesh), rows=rows)
    with jax.set_mesh(own):
        shapes = sampler_shapes(engine, params, model_cfg, own)
    found = next(p for p in programs_of(shapes, model_cfg) if p.per_token)
    lower = functools.partial(_lowered_on, own, found.lower)
    return dataclasses.replace(found, name=f"decode, {rows} rows", lower=lower)


def scheduler_of(engine: engine_lib.EngineConfig, model_cfg: ModelConfig, prompts: int) -> Sizes:
    """Sizes of the scheduler of a call with this many prompts on a TPU or GPU, as the engine chooses them. Inside
    ``jax.set_mesh``."""
    sizes = engine_lib.layout(engine)
    rows = halved(sizes.rows, -(-prompts // sizes.parts) * engine.rollouts)
    large = sum(math.prod(x.shape) for x in jax.tree.leaves(transformer.param_shapes(model_cfg)["layers"]))
    return Sizes(
        parts=sizes.parts, rows=rows, slots=min(sizes.slots, -(-prompts // sizes.parts)), batch=sizes.batch,
        pages=engine_lib.most_pages(engine, rows), page=engine.page, chunk=engine.chunk, most=engine.max_tokens,
        pool=engine.pool, halves=large >= engine_lib.LARGE,
        paged=pages.uses_kernel(engine.attention, model_cfg, engine.page),
    )  # fmt: skip


def programs_of(s: Sampler, model_cfg: ModelConfig) -> list[Program]:
    """Prefill and decoding."""

    def prefill():
        return engine_lib.prefill.lower(model_cfg, s.engine.dtype, s.params, s.cache.prompts, *s.prompts)

    def decode():
        return engine_lib.decode.lower(model_cfg, s.engine, decode_weights_of(s, model_cfg), *s.cache, s.rows, s.view)

    return [Program("prefill", prefill), Program("decode", decode, passes=s.engine.chunk, per_token=True)]


def decode_weights_of(s: Sampler, model_cfg: ModelConfig) -> DecodeWeights:
    """Shapes of the weights for decoding. Inside ``jax.set_mesh``."""
    return jax.eval_shape(
        lambda p: decode_weights(p, model_cfg.num_layers, s.engine.dtype, copy=s.engine.copy_weights), s.params
    )


def decode_weights_bytes(cfg: ConfigDict, model_cfg: ModelConfig, mesh) -> tuple[int, int]:
    """Bytes on one device: (the sampler's copy of the weights, all weights for decoding)."""
    if cfg.sampling.engine != "own":
        return 0, 0
    s = sampler_of(cfg, model_cfg, mesh)
    with jax.set_mesh(sampling_mesh(cfg, mesh)):
        weights = decode_weights_of(s, model_cfg)
        own = s.engine.copy_weights and changes(outer_of(s.params), s.engine.dtype)
    handed = device_bytes(weights)
    if weights.layers is None:
        return 0, handed
    return handed - (0 if own else device_bytes(weights.outer)), handed


def kv_cache_bytes(cfg: ConfigDict, model_cfg: ModelConfig, mesh) -> tuple[int, int]:
    """Bytes of keys and values on one device: (of the prompt slots, of all rows), all at maximum length."""
    if cfg.sampling.engine != "own":
        return 0, 0
    cache = sampler_of(cfg, model_cfg, mesh).cache
    return device_bytes(cache.prompts), device_bytes(cache.pages) + device_bytes(cache.stages)


def cache_itemsize(cfg: ConfigDict) -> float:
    """Bytes of one number in the cache."""
    return jnp.dtype(cfg.sampling.cache_dtype or cfg.student.dtype).itemsize


def prefill_calls(cfg: ConfigDict, mesh) -> int:
    """Number of prefill calls in a step."""
    with jax.set_mesh(sampling_mesh(cfg, mesh)):
        sizes = engine_lib.layout(engine_of(cfg, mesh))
    return -(-cfg.data.prompts_per_step // (sizes.parts * sizes.batch))


def fewer_slots(cfg: ConfigDict, shards: int) -> list[dict[str, int]]:
    """Keys that keep half of the slots, a quarter, ..., as long as they divide over the mesh."""
    found, prompts = [], cfg.sampling.prompts_at_once or cfg.data.prompts_per_step
    while prompts // 2 >= shards:
        prompts //= 2
        found.append({"sampling.prompts_at_once": prompts})
    return found
