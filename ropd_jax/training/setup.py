"""From a config to a run: everything the user gave is checked, loaded and built before anything is written.

The config is read here and nowhere below: `read_config` turns it into frozen sections (`training.sections`).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import pathlib
import zlib
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ropd_jax.data.prompts import PromptStream
from ropd_jax.data.questions import load_questions
from ropd_jax.methods import Method, load_method
from ropd_jax.models.lora import Lora, adapted, freeze, init_adapters
from ropd_jax.parallel import hosts
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.sampling.engine import EngineConfig
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.teacher import Teacher, build_teacher
from ropd_jax.teacher.build import check_addresses, providers
from ropd_jax.teacher.calibration import summary
from ropd_jax.teacher.check import check_models
from ropd_jax.training import validate
from ropd_jax.training.accumulate import uses_streaming, why_not_streaming
from ropd_jax.training.failure_gate import FailureGate
from ropd_jax.training.run import Run
from ropd_jax.training.sections import (
    CheckpointConfig,
    EvalConfig,
    LogConfig,
    LossConfig,
    OptimConfig,
    OverlapConfig,
    RunConfig,
    SamplingConfig,
    UpdateConfig,
    section,
)
from ropd_jax.training.update import State, make_portions, make_update, needs_initial
from ropd_jax.types import Prompt
from ropd_jax.utils.logs import show_logs
from ropd_jax.weights.student import Student, load_checkpoint
from ropd_jax.workdir.config import flatten

log = logging.getLogger(__name__)


@hosts.lost_together()
def setup(
    cfg: ConfigDict, workdir: str | os.PathLike[str], *, method: str | type[Method] | None = None
) -> tuple[Run, State]:
    """(the run, its state before the first step). Nothing is written.

    With several hosts every host must call it.

    Args:
        workdir: of the run; the teacher's tape is there.
        method: a name, the path of a .py file, or a subclass of `methods.base.Method`; None is ``cfg.method``.

    Raises:
        UserError: a value that cannot work, a missing key, an unreadable checkpoint or data set.
    """
    workdir = pathlib.Path(workdir).expanduser()
    how = check_config(cfg)
    calibration = summary(cfg.teacher.calibration)
    raw = cfg.to_dict() | ({} if method is None else {"method": _name(method)})
    hosts.check_same("the config", flatten(raw))
    with_judge = bool(cfg.teacher.judge.model)
    made = load_method(method or cfg.method, cfg)
    needs = (*made.asks, *(("judge",) if with_judge else ()))
    teacher = None  # the scripted one needs the data; a missing API key of any other is reported first
    if "scripted" not in providers(cfg.teacher, needs):
        teacher = run_teacher(cfg, [], workdir, needs=needs)
    validate.check_xla_options(how.optim.xla_options)
    if hosts.index() == 0 and not (workdir / "result.json").exists():  # a finished run asks nothing
        check_models(cfg.teacher, needs)
    mesh = mesh_lib.make_mesh(cfg.mesh.fsdp, cfg.mesh.tp)
    student = load_checkpoint(
        cfg.student.checkpoint,
        chat_template=cfg.student.chat_template,
        enable_thinking=cfg.student.enable_thinking,
        mesh=mesh,
        dtype=how.lora.load_dtype,
    )
    if how.lora.rank:
        adapted(student.cfg, how.lora)  # raises for targets that fit nothing
    train, heldout = load_questions(cfg.data, student.tokenizer)
    prompts = PromptStream(train.prompts, how.prompts_per_step, how.seed)
    longest = max(len(t) for q in (train, heldout) for t in q.tokens_of(q.prompts))
    prompt_len = -(-longest // 16) * 16  # one length for the whole run, so that each function compiles once
    validate.check_length(prompt_len, how.sampling.max_tokens, how.optim.row_len, student.cfg)
    teacher = teacher or run_teacher(cfg, train.prompts, workdir, needs=needs)
    if "reference" in made.asks:
        teacher.check_references(train.prompts)
    hosts.check_same(
        "a prompt's tokens", {i: zlib.crc32(t.tobytes()) for q in (train, heldout) for i, t in q.tokens.items()}
    )
    engine = engine_config(cfg, prompt_len=prompt_len, stop_ids=student.tokenizer.stop_ids, shards=mesh.shape["fsdp"])
    if made.needs_rollouts:
        engine.rule.warn_if_truncating()
    with jax.set_mesh(mesh):
        built, state = _programs(how, made, student, mesh)
    run = Run(
        cfg=how,
        raw=raw,
        workdir=workdir,
        method=made,
        teacher=teacher,
        mesh=mesh,
        student=dataclasses.replace(student, params={}),
        train=train,
        heldout=heldout,
        prompts=prompts,
        engine=engine,
        eval_engines=_eval_engines(how.eval, engine, mesh),
        length=prompt_len + how.sampling.max_tokens,
        judged=how.eval.judged if with_judge else 0,
        calibration=calibration,
        **built,
    )
    return run, state


def _name(method: str | type[Method]) -> str:
    """What ``config.json`` keeps of a method that was given instead of the config's."""
    return method if isinstance(method, str) else f"{method.__module__}.{method.__qualname__}"


def _programs(
    how: RunConfig, method: Method, student: Student, mesh: jax.sharding.Mesh
) -> tuple[dict[str, Any], State]:
    """(what a `Run` holds of parameters and jitted programs, the state before the first step)."""
    tx = how.optim.make(how.steps)
    params, base, trained = student.params, None, method.setup(student, mesh)
    if how.lora.rank:
        base, params = freeze(student.params, how.lora.base_dtype), init_adapters(student.cfg, how.lora, how.seed)
        params = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
    ref_params = (base or jax.tree.map(jnp.copy, params)) if needs_initial(how.loss, method) else None
    if why := why_not_streaming(how, method):
        log.info("the update waits for the whole step: %s", why)
    built = {
        "base": base,
        "ref_params": ref_params,
        "update": functools.partial(make_update(how.update, student.cfg, method, tx), base=base),
        "portions": make_portions(how.update, student.cfg, method, tx) if uses_streaming(how, method) else None,
    }
    return built, State(params, jax.jit(tx.init)(params), trained)


def _eval_engines(how: EvalConfig, engine: EngineConfig, mesh: jax.sharding.Mesh) -> dict[str, EngineConfig]:
    """The engines of the held-out evaluation, by metric: greedy, and one sample at the training temperature."""
    shards = mesh.shape["fsdp"]
    prompts = -(-how.prompts_at_once // shards) * shards
    greedy = dataclasses.replace(engine, rollouts=1, prompts=prompts, rule=SamplingRule(0.0))
    engines = {"accuracy": greedy}
    if how.sampled:
        engines["sampled_accuracy"] = dataclasses.replace(greedy, rule=engine.rule)
    return engines


# --------------------------------------------------------------------------------------- the config, read once


def check_config(cfg: ConfigDict) -> RunConfig:
    """The config in frozen sections, after every check that needs neither data nor weights.

    Raises:
        UserError: naming the value, what was expected and the remedy.
    """
    how = read_config(cfg)
    validate.check_run(how)
    check_addresses(cfg.teacher)
    validate.check_judge(cfg.teacher, how.eval.judged)
    SamplingRule.from_config(cfg.sampling)
    FailureGate(how.max_failed_frac, how.failed_window)
    return how


def read_config(cfg: ConfigDict) -> RunConfig:
    """The config in frozen sections, unchecked."""
    return RunConfig(
        seed=cfg.seed,
        steps=cfg.steps,
        prompts_per_step=cfg.data.prompts_per_step,
        max_failed_frac=cfg.teacher.max_failed_frac,
        failed_window=cfg.teacher.failed_window,
        dtype=cfg.student.dtype,
        lora=Lora.from_config(cfg.student.lora),
        sampling=section(SamplingConfig, cfg.sampling),
        loss=section(LossConfig, cfg.loss),
        optim=section(OptimConfig, cfg.optim),
        overlap=section(OverlapConfig, cfg.stream),
        checkpoint=section(CheckpointConfig, cfg.checkpoint),
        eval=section(EvalConfig, cfg.eval),
        log=section(LogConfig, cfg.log),
    )


def update_config(cfg: ConfigDict) -> UpdateConfig:
    """What the compiled update depends on."""
    return read_config(cfg).update


def engine_config(cfg: ConfigDict, *, prompt_len: int, stop_ids: tuple[int, ...], shards: int) -> EngineConfig:
    """The sampler's settings; idle rows fill the ``shards`` up."""
    return EngineConfig.from_config(
        cfg.sampling,
        prompts_per_step=cfg.data.prompts_per_step,
        prompt_len=prompt_len,
        stop_ids=stop_ids,
        dtype=cfg.student.dtype,
        shards=shards,
    )


def run_teacher(
    cfg: ConfigDict,
    prompts: Sequence[Prompt],
    workdir: pathlib.Path | None = None,
    needs: Collection[str] = ("reference", "rubric", "verify"),
) -> Teacher:
    """The config's teacher; without a workdir it records on no tape.

    A scripted teacher without an answer key gets that of the training data, if the data has worked solutions.

    Args:
        needs: the roles that will be asked (`Method.asks`); the others need no key.
    """
    scripted = cfg.teacher.scripted
    answer_key = [(p.question, p.solution) for p in prompts if p.solution] if not scripted.answer_key else None
    share, host = 1 / hosts.count(), hosts.index()
    return build_teacher(
        cfg.teacher, seed=cfg.seed, answer_key=answer_key, share=share, host=host, workdir=workdir, needs=needs
    )


def make_teacher(cfg: ConfigDict) -> Teacher:
    """The teacher of a config, for use outside a run: ``teacher.blocking`` has its questions as plain calls, and its
    coroutines can be awaited on any event loop, also in a notebook.

    It records on no tape unless ``teacher.tape.path`` names one.

    Raises:
        ConfigurationError: no API key, an unknown provider.
    """
    show_logs()
    return run_teacher(cfg, [], needs=("reference", "rubric", "verify", "score")).on_own_thread()
