"""Values of a run that cannot work, found before minutes are lost or the moment they appear."""

from __future__ import annotations

import logging
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ropd_jax.core.batches import TokenSequence
from ropd_jax.core.losses import AGGREGATIONS, KL_KINDS, RATIOS
from ropd_jax.core.moments import MOMENTS
from ropd_jax.core.optim import SCHEDULES
from ropd_jax.core.rewards import OVERLONG
from ropd_jax.data.grader import gradable
from ropd_jax.data.mixture import MixtureSource, held_out_of, sources_of
from ropd_jax.data.questions import no_heldout
from ropd_jax.methods import Method
from ropd_jax.models.attention import KERNELS, KERNELS_SHARED
from ropd_jax.models.config import ModelConfig
from ropd_jax.models.lora import adapted
from ropd_jax.models.transformer import REMAT
from ropd_jax.parallel import hosts
from ropd_jax.parallel.xla_options import xla_options
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.sampling.server_config import OPENAI, OWN, ServerConfig, check_rule
from ropd_jax.teacher.build import role_of
from ropd_jax.training.profile import profile_range
from ropd_jax.training.sections import OptimConfig, OverlapConfig, RunConfig
from ropd_jax.training.update import check_learning
from ropd_jax.types import Prompt, UserError
from ropd_jax.utils.writing import Dispensable
from ropd_jax.workdir.token_logprobs import MODES
from ropd_jax.workdir.trackers import check_trackers

log = logging.getLogger(__name__)
SHORTEST = 16  # positions of a prompt: lengths are rounded up to a multiple of it
MOST_SHARED = 2_048  # positions of a row with shared prompts: its kernel meets all pairs of blocks, seen or not


def check_run(cfg: RunConfig) -> None:
    """Raise for values that cannot work, by themselves or together.

    Raises:
        UserError: naming the value, what was expected and the remedy.
    """
    if cfg.log.token_logprobs not in MODES:
        raise UserError(f"log.token_logprobs={cfg.log.token_logprobs!r}; expected one of {', '.join(MODES)}")
    sampling, loss, optim = cfg.sampling, cfg.loss, cfg.optim
    for key, value, known in (
        ("loss.aggregation", loss.aggregation, AGGREGATIONS),
        ("loss.ratio", loss.ratio, RATIOS),
        ("loss.kl_kind", loss.kl_kind, KL_KINDS),
        ("loss.overlong", loss.overlong, OVERLONG),
        ("optim.schedule", optim.schedule, SCHEDULES),
        ("optim.moments", optim.moments, MOMENTS),
        ("optim.remat", optim.remat, tuple(REMAT)),
        ("optim.attention", optim.attention, ("auto", *KERNELS)),
        ("student.dtype", cfg.dtype, ("float32", "bfloat16")),
    ):
        if value not in known:
            raise UserError(f"{key}={value!r}; expected one of {', '.join(known)}")
    check_learning(loss, optim)
    check_trackers(cfg.log.trackers)
    profile_range(cfg.log.profile_steps)
    P, m = cfg.prompts_per_step, optim.minibatches
    if P % m:
        raise UserError(f"optim.minibatches={m} does not divide data.prompts_per_step={P}; choose a divisor of {P}")
    if loss.min_scored > sampling.rollouts:
        raise UserError(
            f"loss.min_scored={loss.min_scored} is more than a group has (sampling.rollouts={sampling.rollouts}), so "
            f"every group would be invalid; expected 2 to {sampling.rollouts}"
        )
    if 0 < loss.dual_clip <= 1:
        raise UserError(f"loss.dual_clip={loss.dual_clip}; expected 0 (off) or more than 1, 3.0 in the released code")
    check_warmup(optim, cfg.steps)
    if loss.overlong == "shape" and not 0 < loss.overlong_buffer <= sampling.max_tokens:
        raise UserError(
            f"loss.overlong_buffer={loss.overlong_buffer} with loss.overlong='shape'; expected 1 to "
            f"sampling.max_tokens={sampling.max_tokens}, for instance a fifth of it"
        )
    if loss.is_cap and loss.ratio == "sequence":
        raise UserError("loss.is_cap cannot be combined with loss.ratio='sequence'; set loss.is_cap=0.0 for GSPO")
    if loss.is_clip and not (loss.is_cap or cfg.overlap.staleness or cfg.overlap.straggler_timeout_s):
        raise UserError(
            "loss.is_clip=True multiplies the clipped loss by importance weights, but loss.is_cap=0.0 leaves them out; "
            "set loss.is_cap, 2.0 in the released code, or loss.is_clip=False"
        )
    if sampling.resample and jax.process_count() > 1:
        raise UserError(
            f"sampling.resample={sampling.resample} samples again depending on the rewards, which does not work "
            "on several hosts; set it to 0"
        )
    check_overlap(cfg.overlap, resample=sampling.resample, ratio=loss.ratio)
    if sampling.engine not in (OWN, OPENAI):
        raise UserError(f"sampling.engine={sampling.engine!r}; expected {OWN} or {OPENAI} (docs/engine.md)")


def check_student(student: ModelConfig, how: RunConfig) -> None:
    """Raises UserError for adapters or lengths that do not fit the student's shape."""
    if how.lora.rank:
        adapted(student, how.lora)
        if how.lora.rank > student.d_model:
            raise UserError(
                f"student.lora.rank={how.lora.rank} is more than the student's width {student.d_model}; expected a low "
                f"rank, 1 to {student.d_model}, e.g. 16"
            )
    check_length(SHORTEST, how.sampling.max_tokens, how.optim.row_len, student)


def check_sample_mesh(update: jax.sharding.Mesh, sample: jax.sharding.Mesh, *, copy_weights: bool) -> None:
    """Raises UserError for a sampler on its own mesh without its own copy of the weights."""
    if sample is not update and not copy_weights:
        sizes = [f"fsdp={m.shape['fsdp']} tp={m.shape['tp']}" for m in (sample, update)]
        raise UserError(
            f"sampling.copy_weights=False: the sampler's mesh ({sizes[0]}) is not the update's ({sizes[1]}), so it "
            "needs its own weights; set sampling.copy_weights=True, or one mesh for both (mesh.fsdp and mesh.tp)"
        )


def check_data(data: Mapping[str, Any]) -> None:
    """Raises UserError for sources that cannot work: a template without a place for the question, sizes, paths."""
    held = not no_heldout(data)
    held_from = {s.name for s in held_out_of(data, sources_of(data))} if held else set()
    for source in sources_of(data):
        _check_source(source, data, held=source.name in held_from)
    if 0 < data["curriculum"] <= 1:
        raise UserError(
            f"data.curriculum={data['curriculum']:g}; expected 0 (off) or more than 1: 4 draws a prompt at most 4 "
            "times and at least a quarter as often as without"
        )


def _check_source(source: MixtureSource, data: Mapping[str, Any], *, held: bool) -> None:
    own, where = source.data, f"data.sources, {source.name}: " if source.name else "data."
    if "{question}" not in own["template"]:
        raise UserError(f"{where}template={own['template']!r:.80} has no {{question}}; put it where the question goes")
    if not source.name and 0 < (own["size"] or 0) < data["prompts_per_step"]:
        raise UserError(
            f"data.prompts_per_step={data['prompts_per_step']} is more than data.size={own['size']}; expected at most "
            "as many prompts per step as there are: lower it, or raise data.size"
        )
    if own["source"] == "jsonl" and not own["path"]:
        raise UserError(f"{where}path is empty with {where}source='jsonl'; expected a JSONL file of questions")
    for key, size in (("size", own["size"]), ("heldout_size", data["heldout_size"]))[: 1 + held]:
        if not size and own["source"] in ("reasoning_gym", "instructions"):
            none = "; data.heldout=False is a run without held-out data" if key == "heldout_size" else ""
            raise UserError(
                f"{where}{key}={size} means a whole set, but {own['source']} is endless; expected 1 or more{none}"
            )
    drawn = own["source"] == "published" and own["heldout_path"] in ("", own["path"])
    if held and drawn and not data["heldout_size"]:
        raise UserError(
            f"data.heldout_size={data['heldout_size']} takes all of {own['task']} for the held-out set, and leaves "
            "nothing to train on; give a number, or data.heldout=False for a run without held-out data"
        )


def check_exact(weight: float, method: Method, name: str) -> None:
    """Raises UserError for ``rewards.exact_weight`` with a method whose reward has no room for it.

    Args:
        name: of the method, for the message.
    """
    if weight and not method.takes_exact:
        why = "rewards by the exact grade already" if method.exact_rewards else "trains on no judged reward"
        raise UserError(
            f"rewards.exact_weight={weight:g}, but method={name} {why}; expected a method that does (ropd, rar, "
            "t_judge), or rewards.exact_weight=0"
        )


def check_curriculum(most: float, method: Method, name: str) -> None:
    """Raises UserError for ``data.curriculum`` with a method that samples no answers, so that no pass rate is known."""
    if most and not method.needs_rollouts:
        raise UserError(
            f"data.curriculum={most:g}, but method={name} samples no answers that would have a pass rate; set it to 0"
        )


def check_gradable(weight: float, prompts: Iterable[Prompt]) -> None:
    """Raises UserError for ``rewards.exact_weight`` if no answer to any training prompt has an exact grade; the log
    says how many prompts have none."""
    if not weight:
        return
    graded = [gradable(p) for p in prompts]
    if not any(graded):
        raise UserError(
            f"rewards.exact_weight={weight:g}, but none of the {len(graded)} training prompts has a gold answer that "
            "an exact grader can compare; expected rows with an answer (docs/data.md), or rewards.exact_weight=0"
        )
    if without := graded.count(False):
        log.warning(
            "%d of %d training prompts have no exact grade: for them only the method's reward counts",
            without, len(graded),
        )  # fmt: skip


def check_concurrency(teacher: Mapping[str, Any]) -> None:
    """Raises UserError if the least number of requests in flight is above the most."""
    least, most = teacher["min_concurrency"], teacher["concurrency"]
    if least > most:
        raise UserError(f"teacher.min_concurrency={least} is above teacher.concurrency={most}; expected 1 to {most}")


def check_warmup(optim: OptimConfig, steps: int) -> None:
    """Raises UserError for a warm-up that is longer than a schedule that falls, which would then never fall."""
    updates = (optim.schedule_steps or steps) * optim.minibatches
    if optim.schedule != "constant" and optim.warmup_steps > updates:
        raise UserError(
            f"optim.warmup_steps={optim.warmup_steps} is more than the {updates} updates of optim.schedule="
            f"{optim.schedule!r}; expected at most {updates}: lower it, or set optim.schedule=constant"
        )


def note_warmup(optim: OptimConfig, steps: int) -> None:
    """Log a warm-up that does not end: with a constant rate a run of a few steps is the beginning of a longer one."""
    if optim.warmup_steps > (updates := steps * optim.minibatches):
        log.info(
            "optim.warmup_steps=%d is more than the run's %d updates: the learning rate never reaches optim.lr=%g",
            optim.warmup_steps, updates, optim.lr,
        )  # fmt: skip


def check_judge(teacher: Mapping[str, Any], judged: int) -> None:
    """The held-out judge must be another model than those whose verdicts become rewards.

    Args:
        teacher: ``cfg.teacher``.
        judged: ``eval.judged``.
    """
    if not teacher["judge"]["model"]:
        return
    if judged < 2:
        raise UserError(f"eval.judged={judged}; expected at least 2 answers to judge")
    where, judge = role_of(teacher, "judge")
    for key in ("rubricator", "verifier", "scorer"):
        other, role = role_of(teacher, key)
        if (other, role.model) == (where, judge.model):
            raise UserError(
                f"teacher.judge is the same model as teacher.{key} ({where.provider}: {judge.model}); the drift alarm "
                "needs a judge that gives no rewards: name another model"
            )


BEST_BY = ("accuracy", "sampled_accuracy", "judge")


def check_best(cfg: RunConfig, *, with_judge: bool, without_heldout: str) -> None:
    """Raises UserError if ``checkpoint.keep_best`` would have nothing to compare."""
    how, every = cfg.checkpoint, cfg.eval.every
    known = (*BEST_BY, *cfg.eval.benchmarks)
    if how.best_by not in known:
        raise UserError(f"checkpoint.best_by={how.best_by!r}; expected one of {', '.join(known)}")
    if not how.keep_best:
        return
    if how.best_by in cfg.eval.benchmarks:
        every = cfg.eval.benchmark_steps
    elif without_heldout:
        raise UserError(
            f"checkpoint.keep_best={how.keep_best} needs held-out data, but {without_heldout}; give some, or set "
            "checkpoint.keep_best=0"
        )
    if how.best_by == "judge" and not with_judge:
        raise UserError("checkpoint.best_by='judge' without teacher.judge.model; name a judge, or take 'accuracy'")
    if how.best_by == "sampled_accuracy" and not cfg.eval.sampled:
        raise UserError("checkpoint.best_by='sampled_accuracy' with eval.sampled=False; set it, or take 'accuracy'")
    key = "eval.every" if every == cfg.eval.every else "eval.benchmarks_every"
    both = math.lcm(how.every, every)
    if both >= cfg.steps:
        raise UserError(
            f"checkpoint.keep_best={how.keep_best}, but no checkpoint before the last is evaluated: "
            f"checkpoint.every={how.every} and {key}={every} first meet at step {both} of {cfg.steps}; "
            "make one a multiple of the other"
        )


def note_best(cfg: RunConfig) -> None:
    """Warn of a run whose checkpoints are chosen on a benchmark."""
    name = cfg.checkpoint.best_by
    if cfg.checkpoint.keep_best and name in cfg.eval.benchmarks:
        log.warning(
            "checkpoint.best_by=%s keeps the checkpoints that do best on a benchmark, which is then not a test set of "
            "this run: its result overstates the accuracy on new problems. Report another one, or the last checkpoint",
            name,
        )


def check_overlap(how: OverlapConfig, *, resample: int, ratio: str) -> None:
    """Raises UserError for an overlap (``cfg.stream``) that cannot work."""
    if how.straggler_timeout_s and (how.deterministic or not how.groups):
        raise UserError(
            f"stream.straggler_timeout_s={how.straggler_timeout_s:g} makes the groups of a step depend on time; it "
            "needs stream.groups above 0 and stream.deterministic=False"
        )
    stale = "stream.staleness=1" if how.staleness else "stream.straggler_timeout_s" if how.straggler_timeout_s else ""
    if stale and resample:
        raise UserError(f"{stale} cannot be combined with sampling.resample; set one of them to 0")
    if stale and ratio == "sequence":
        raise UserError(f"{stale} needs importance weights per token; set loss.ratio='token'")
    if stale and how.cap < 1:
        raise UserError(f"stream.cap={how.cap}; expected at least 1, 2.0 in the released code")


def check_server(server: ServerConfig, cfg: RunConfig, rule: SamplingRule, *, without_heldout: str) -> None:
    """Raises UserError for a run whose rollouts cannot come from a server (``sampling.engine=openai``).

    Args:
        without_heldout: why there is no held-out data; "" if there is.
    """
    check_rule(rule)
    if server.sync == "vllm_lora" and not cfg.lora.rank:
        raise UserError(
            "sampling.server.sync='vllm_lora' sends adapters, but student.lora.rank is 0; expected adapters, or 'vllm' "
            "or 'sglang', which send all weights"
        )
    if not server.sync_every and not without_heldout:
        raise UserError(
            "sampling.server.sync_every=0 never gives the server new weights, so held-out answers would not be the "
            "trained student's; set data.heldout=False, or sync_every to 1 or more"
        )
    if jax.process_count() > 1:
        raise UserError(
            "sampling.engine='openai' works with one host that trains; use sampling.engine='own' with several"
        )
    if cfg.loss.ratio == "sequence":
        raise UserError("sampling.engine='openai' needs importance weights per token; set loss.ratio='token'")
    if cfg.overlap.cap < 1:
        raise UserError(f"stream.cap={cfg.overlap.cap}; expected at least 1, 2.0 in the released code")


def check_length(prompt_len: int, max_tokens: int, row_len: int, model_cfg: ModelConfig) -> None:
    """Raises UserError when prompt and answer together are longer than the checkpoint supports.

    Args:
        prompt_len: tokens of the longest prompt.
        max_tokens: ``sampling.max_tokens``. row_len: ``optim.row_len``.
    """
    total = prompt_len + max_tokens
    if total > model_cfg.max_seq_len:
        raise UserError(
            f"prompts of {prompt_len} tokens and sampling.max_tokens={max_tokens} make {total}, but the "
            f"student supports {model_cfg.max_seq_len}; lower data.max_prompt_tokens or sampling.max_tokens"
        )
    if row_len and row_len < total - 1:
        raise UserError(
            f"optim.row_len={row_len} is too short for prompts of {prompt_len} tokens and "
            f"sampling.max_tokens={max_tokens}; expected at least {total - 1}, or 0 for one sequence per row"
        )


def check_shared_prompts(optim: OptimConfig, method: Method, student: ModelConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError when ``optim.shared_prompts`` is set and rows, kernel, student or method do not allow it."""
    if not optim.shared_prompts:
        return
    cp = mesh.shape.get("cp", 1)
    problem = ""
    if not 0 < optim.row_len <= MOST_SHARED:
        problem = f"optim.row_len={optim.row_len}: prompts are shared in packed rows of 1 to {MOST_SHARED} positions"
    elif optim.attention not in ("auto", *KERNELS_SHARED) or cp > 1:
        known = " and ".join(KERNELS_SHARED)
        problem = f"optim.attention={optim.attention!r} and mesh.cp={cp}: only {known} know shared prompts, without cp"
    elif student.local_layers:
        problem = f"the student has layers that see {student.window} positions only: these are counted along a row"
    elif method.divergence is not None:
        problem = f"{type(method).__name__} reads whole distributions, whose rows hold each prompt before its answer"
    elif type(method).extras is not Method.extras:
        problem = f"{type(method).__name__} reads the rows itself and expects each prompt before its answer"
    if problem:
        raise UserError(f"optim.shared_prompts=True: {problem}; change it, or set optim.shared_prompts=False")


def check_xla_options(text: str) -> None:
    """Raises UserError when the compiler of this machine's platform does not know one of ``optim.xla_options``."""
    options = xla_options(text, jax.default_backend())
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"optim.xla_options={text!r}: {str(error).splitlines()[0]}; remove or correct it") from error


@jax.jit
def _all_finite(arrays: Sequence[jax.Array]) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in arrays]))


def all_finite(params: Any) -> bool:
    """Whether every floating-point number of a tree of arrays is one."""
    return bool(_all_finite([x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)]))


def check_finite(
    metrics: Mapping[str, Any],
    step: int,
    workdir: pathlib.Path,
    rows: Sequence[TokenSequence],
    advantage_PG: np.ndarray,
    *,
    finite: bool,
) -> None:
    """Stop on a loss, gradient or parameter that is not finite; the step's sequences are saved for a look.

    Args:
        finite: `all_finite` of the parameters after the step.

    Raises:
        FloatingPointError: naming the values and the file with the sequences.
    """
    bad = [f"{k}={metrics[k]}" for k in ("update/loss", "update/grad_norm") if not np.isfinite(metrics.get(k, 0.0))]
    if not finite:
        bad.append("parameters of the student are NaN or infinite")
    if not bad:
        return
    path = workdir / f"nonfinite_step_{step:06d}.npz"
    if hosts.index() == 0:
        arrays: dict[str, Any] = {"advantage_PG": advantage_PG}
        arrays |= {f"completion_{i}": s.completion_T for i, s in enumerate(rows)}
        arrays |= {f"old_logp_{i}": s.old_logp_T for i, s in enumerate(rows)}
        with Dispensable(str(path)):
            np.savez_compressed(path, **arrays)
    raise FloatingPointError(
        f"step {step}: {', '.join(bad)}; the step's sequences are in {path}; "
        "lower optim.lr, or look for an extreme old log-prob"
    )
