"""From a config to a run: everything that the user provides is checked, loaded and built before anything is written.

The config is read only here: `read_config` turns it into frozen sections (`training.sections`).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ropd_jax.data.golds import check_judged
from ropd_jax.data.mixture import sources_of
from ropd_jax.data.questions import Questions, load_questions, no_heldout
from ropd_jax.data.stream import PromptStream
from ropd_jax.methods import Method, load_method
from ropd_jax.models.lora import Lora, freeze, init_adapters
from ropd_jax.parallel import compile_cache, hosts
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.sampling.engine import EngineConfig
from ropd_jax.sampling.external import RolloutServer
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.sampling.server_config import OPENAI, ServerConfig
from ropd_jax.teacher import Teacher, build_teacher
from ropd_jax.teacher.build import check_addresses, providers
from ropd_jax.teacher.calibration import summary
from ropd_jax.teacher.check import check_models
from ropd_jax.teacher.roles.templates import prompt_sha
from ropd_jax.training import validate
from ropd_jax.training.accumulate import uses_streaming, why_not_streaming
from ropd_jax.training.benchmarks import RunBenchmark, check_names, load_benchmarks
from ropd_jax.training.fork import Origin, check_origin, forked, origin_of
from ropd_jax.training.run import Run
from ropd_jax.training.scoring import told_of
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
from ropd_jax.training.served import ServedPolicy
from ropd_jax.training.update import State, make_portions, make_update, needs_initial
from ropd_jax.types import Prompt
from ropd_jax.utils.logs import show_logs
from ropd_jax.weights.student import Student, load_checkpoint, outline
from ropd_jax.workdir.changes import flatten
from ropd_jax.workdir.config import check_claim, is_finished
from ropd_jax.workdir.contents import file_contents, questions_hash
from ropd_jax.workdir.keys import check_values
from ropd_jax.workdir.place import Place

log = logging.getLogger(__name__)


@hosts.lost_together()
def setup(
    cfg: ConfigDict, workdir: str | os.PathLike[str], *, method: str | type[Method] | None = None, fork: str = ""
) -> tuple[Run, State]:
    """(the run, its state before the first step). Nothing is written.

    Cheap checks come first: values, then files (`check_files`), one call to each teacher, weights, programs.
    Collective: every host must call it.

    Args:
        workdir: the run's directory, or the URL of a bucket; it holds the teacher's tape.
        method: a name, the path of a .py file, or a subclass of `methods.base.Method`; None is ``cfg.method``.
        fork: ``RUN`` or ``RUN@STEP``: the run whose checkpoint to start from (`training.fork`); "" for none.

    Raises:
        UserError: a value that cannot work, a missing key, an unreadable checkpoint or data set.
    """
    place = Place(workdir, host=hosts.index())
    how = check_config(cfg)
    compile_cache.keep_programs(place.home, on=cfg.compile_cache)
    raw = cfg.to_dict() | ({} if method is None else {"method": _name(method)})
    hosts.check_same("the config", flatten(raw))
    made = load_method(method or cfg.method, cfg)
    validate.check_exact(how.exact_weight, made, raw["method"])
    validate.check_curriculum(cfg.data.curriculum, made, raw["method"])
    place.fetch()
    files = check_files(cfg, how, made, raw, place, fork)
    validate.note_warmup(how.optim, how.steps)
    validate.note_best(how)
    if hosts.index() == 0 and not is_finished(place.files, how.steps, home=place.home):  # a finished run needs no call
        check_models(cfg.teacher, files.needs)
        if files.server is not None:
            [first] = files.train.tokens_of(files.train.prompts[:1])
            files.server.check(first.tolist(), files.student.cfg.vocab_size)
    with jax.set_mesh(files.mesh):
        student = load_checkpoint(
            cfg.student.checkpoint, mesh=files.mesh, dtype=how.lora.load_dtype, tokenizer=files.student.tokenizer
        )
        length = files.prompt_len + how.sampling.max_tokens
        built, state = _programs(how, made, student, files.mesh, length)
        if files.origin and files.origin.pending:
            state = forked(files.origin, state, files.mesh, how.lora)
    stop_ids, shards = student.tokenizer.stop_ids, files.sample_mesh.shape["fsdp"]
    engine = engine_config(cfg, prompt_len=files.prompt_len, stop_ids=stop_ids, shards=shards)
    if made.needs_rollouts:
        engine.rule.warn_if_truncating()
    run = Run(
        cfg=how,
        raw=raw,
        place=place,
        method=made,
        teacher=files.teacher,
        mesh=files.mesh,
        sample_mesh=files.sample_mesh,
        student=dataclasses.replace(student, params={}),
        train=files.train,
        heldout=files.heldout,
        prompts=files.prompts,
        engine=engine,
        eval_engines=_eval_engines(how.eval, engine, files.sample_mesh),
        benchmarks=files.benchmarks,
        length=length,
        judged=how.eval.judged if "judge" in files.needs else 0,
        biased=bool(cfg.teacher.scripted.bias),
        calibration=files.calibration,
        contents=files.contents | file_contents(flatten(raw), weights=True),
        served=_served(cfg, how, files, built["base"], place) if files.server is not None else None,
        forked_from=files.origin.as_json() if files.origin else None,
        **built,
    )
    return run, state


@dataclasses.dataclass(frozen=True)
class Files:
    """The result of `check_files`; no weights have been read.

    Attributes:
        student: shape and tokenizer.
        mesh, sample_mesh: see `Run`.
        needs: the teacher's roles that will be used.
        prompt_len: positions of the longest prompt: one length for the whole run, so that each function compiles once.
        contents: hashes of the files (`workdir.contents`).
        origin: the checkpoint of another run that this one starts from, or None.
        calibration, benchmarks: see `Run`.
        server: the rollout server, if there is one; no request has been sent.
    """

    student: Student
    mesh: jax.sharding.Mesh
    sample_mesh: jax.sharding.Mesh
    teacher: Teacher
    needs: tuple[str, ...]
    train: Questions
    heldout: Questions
    prompts: PromptStream
    prompt_len: int
    contents: dict[str, str]
    origin: Origin | None
    calibration: Any
    server: RolloutServer | None
    benchmarks: tuple[RunBenchmark, ...]


def check_files(
    cfg: ConfigDict, how: RunConfig, made: Method, raw: Mapping[str, Any], place: Place, fork: str
) -> Files:
    """Checks everything that a run reads, as far as possible without weights, calls to a teacher, or tracing.

    These are the workdir, keys and templates of a real teacher, the student's config and tokenizer, data, and the tape.

    Raises:
        UserError: for the first problem found.
    """
    values, writes = flatten(raw), hosts.index() == 0
    origin = origin_of(fork, place.home)
    if writes:
        check_claim(place.files, raw, home=place.home)
    calibration = summary(cfg.teacher.calibration)
    needs = (*made.asks, *(("judge",) if cfg.teacher.judge.model else ()))
    teacher = run_teacher(cfg, [], place.files, needs=needs)
    teacher.check_tape()
    sources = sources_of(cfg.data)
    for source in sources:
        teacher.check_templates(source.templates, f"data.sources, {source.name}")
    validate.check_xla_options(how.optim.xla_options)
    mesh = mesh_lib.update_mesh(cfg.mesh)
    sample_mesh = mesh_lib.sampling_mesh(cfg.mesh, mesh)
    validate.check_sample_mesh(mesh, sample_mesh, copy_weights=cfg.sampling.copy_weights)
    student = outline(
        cfg.student.checkpoint,
        chat_template=cfg.student.chat_template,
        enable_thinking=cfg.student.enable_thinking,
    )
    validate.check_student(student.cfg, how)
    mesh_lib.check_divides(student.cfg, mesh, keys=mesh_lib.size_keys(cfg.mesh, "update"))
    mesh_lib.check_divides(student.cfg, sample_mesh, keys=mesh_lib.size_keys(cfg.mesh, "sample"), all_devices=True)
    made.check_student(student, mesh)
    validate.check_shared_prompts(how.optim, made, student.cfg, mesh)
    hosts.check_same("the tokenizer", {"tokenizer": student.tokenizer.fingerprint()})
    train, heldout = load_questions(cfg.data, student.tokenizer, hosts)
    exact_method = raw["method"] if made.exact_rewards else ""
    made.check_prompts(train.prompts)
    validate.check_gradable(how.exact_weight, train.prompts)
    check_judged(train.prompts, heldout.prompts, judge=bool(cfg.teacher.judge.model), exact_method=exact_method)
    shares = {s.name: s.share for s in sources}
    most = cfg.data.curriculum
    prompts = PromptStream(train.prompts, how.prompts_per_step, how.seed, shares=shares, most=most)
    prompt_len = -(-max(train.longest, heldout.longest) // validate.SHORTEST) * validate.SHORTEST
    validate.check_length(prompt_len, how.sampling.max_tokens, how.optim.row_len, student.cfg)
    benchmarks = load_benchmarks(how.eval, student.tokenizer)
    for b in benchmarks:
        validate.check_length(b.prompt_len, how.sampling.max_tokens, 0, student.cfg)
    if "scripted" in providers(cfg.teacher, needs):  # the worked solutions of the data are its answer key
        teacher = run_teacher(cfg, train.prompts, place.files, needs=needs)
    if "reference" in made.asks:
        teacher.check_references(train.prompts)
    contents = file_contents(values, weights=False)
    contents |= {"data.path": questions_hash(train.prompts), "data.heldout_path": questions_hash(heldout.prompts)}
    if own := {name: prompt_sha(name) for s in sources for name in s.templates.values()}:
        contents["data.sources"] = " ".join(f"{name}@{sha}" for name, sha in sorted(own.items()))
    if writes:
        check_claim(place.files, raw, contents, home=place.home)
    if origin and origin.pending:
        check_origin(origin, how.lora, student.cfg, contents)
    server = RolloutServer(server_config(cfg)) if how.sampling.engine == OPENAI else None
    return Files(
        student,
        mesh,
        sample_mesh,
        teacher,
        needs,
        train,
        heldout,
        prompts,
        prompt_len,
        contents,
        origin,
        calibration,
        server,
        benchmarks,
    )


def _name(method: str | type[Method]) -> str:
    """The name in ``config.json`` of a method that was passed in place of the config's."""
    return method if isinstance(method, str) else f"{method.__module__}.{method.__qualname__}"


def _programs(
    how: RunConfig, method: Method, student: Student, mesh: jax.sharding.Mesh, length: int
) -> tuple[dict[str, Any], State]:
    """(a `Run`'s parameters and jitted programs, the state before the first step)."""
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
        "told": told_of(how.update, student.cfg, mesh, method, base, length, how.context_tokens),
        "portions": make_portions(how.update, student.cfg, method, tx) if uses_streaming(how, method) else None,
    }
    return built, State(params, jax.jit(tx.init)(params), trained)


def _served(cfg: ConfigDict, how: RunConfig, files: Files, base: Any, place: Place) -> ServedPolicy:
    """The student at the rollout server."""
    assert files.server is not None
    return ServedPolicy(
        files.server, server_config(cfg), how.update, files.student, cfg.student.checkpoint, cfg.student.chat_template,
        base, files.mesh, files.prompt_len + how.sampling.max_tokens, place.files,
    )  # fmt: skip


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
    check_values(cfg)
    how = read_config(cfg)
    validate.check_run(how)
    validate.check_data(cfg.data)
    engine_config(cfg, prompt_len=1, stop_ids=(), shards=1)  # raises for its own values
    check_addresses(cfg.teacher)
    validate.check_judge(cfg.teacher, how.eval.judged)
    validate.check_concurrency(cfg.teacher)
    check_names(how.eval)
    validate.check_best(how, with_judge=bool(cfg.teacher.judge.model), without_heldout=no_heldout(cfg.data))
    if how.sampling.engine == OPENAI:
        rule = SamplingRule.from_config(cfg.sampling)
        validate.check_server(server_config(cfg), how, rule, without_heldout=no_heldout(cfg.data))
    return how


def read_config(cfg: ConfigDict) -> RunConfig:
    """The config in frozen sections, unchecked."""
    return RunConfig(
        seed=cfg.seed,
        steps=cfg.steps,
        prompts_per_step=cfg.data.prompts_per_step,
        max_failed_frac=cfg.teacher.max_failed_frac,
        failed_window=cfg.teacher.failed_window,
        exact_weight=cfg.rewards.exact_weight,
        context_tokens=cfg.context.max_tokens,
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


def server_config(cfg: ConfigDict) -> ServerConfig:
    """``cfg.sampling.server``; raises UserError for its own values."""
    return section(ServerConfig, cfg.sampling.server)


def update_config(cfg: ConfigDict) -> UpdateConfig:
    """What the compiled update depends on."""
    return read_config(cfg).update


def engine_config(cfg: ConfigDict, *, prompt_len: int, stop_ids: tuple[int, ...], shards: int) -> EngineConfig:
    """The sampler's settings; idle rows make the batch divisible by ``shards``."""
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
    """The config's teacher; without a workdir there is no tape.

    A scripted teacher without an answer key gets the worked solutions of the training data, if there are any.

    Args:
        needs: the roles that will be used (`Method.asks`); the others need no key.
    """
    scripted = cfg.teacher.scripted
    answer_key = [(p.question, p.solution) for p in prompts if p.solution] if not scripted.answer_key else None
    share, host = 1 / hosts.count(), hosts.index()
    return build_teacher(
        cfg.teacher, seed=cfg.seed, answer_key=answer_key, share=share, host=host, workdir=workdir, needs=needs
    )


def make_teacher(cfg: ConfigDict) -> Teacher:
    """The teacher of a config, for use outside a run: ``teacher.blocking`` offers its methods as plain calls, and its
    coroutines can be awaited on any event loop, including that of a notebook.

    It records no tape unless ``teacher.tape.path`` names one.

    Raises:
        ConfigurationError: no API key, an unknown provider.
    """
    show_logs()
    return run_teacher(cfg, [], needs=("reference", "rubric", "verify", "score")).on_own_thread()
