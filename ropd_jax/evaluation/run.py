"""``ropd eval``: a student's answers to a benchmark, sampled by the engine, stored as they come, then graded.

    1. which weights   a checkpoint by name, or one of a run's by a rule that is said beforehand (`choose_step`)
    2. answers.jsonl   k lines a problem, written when its last sample has ended; a stopped command goes on after them
    3. result.json     ``ropd grade`` on that file: so anyone can grade the same answers again

The random stream of a sample is a function of (seed, problem, which sample), so an interrupted evaluation ends with
the answers of an undisturbed one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ropd_jax import configs
from ropd_jax.evaluation import results
from ropd_jax.evaluation.answers import by_problem, read_answers
from ropd_jax.evaluation.benchmarks import Loaded, Sampling, load_benchmark, slug
from ropd_jax.evaluation.grade_file import grade_file
from ropd_jax.evaluation.grading import check_installed
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.sampling.engine import EngineConfig, sample_groups
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.types import Prompt, RolloutGroup, UserError
from ropd_jax.utils.files import write_atomic
from ropd_jax.utils.interrupt import Interrupt, Interrupted
from ropd_jax.utils.text import clock
from ropd_jax.weights.student import Student, load_checkpoint
from ropd_jax.workdir.metrics import read_metrics
from ropd_jax.workdir.policy import kept_steps, load_policy, run_config

log = logging.getLogger(__name__)

RULES = ("last", "heldout")
_SAY_EVERY_S = 10.0


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is asked for on the command line; None and "" stand for the benchmark's or the run's own.

    Attributes:
        what: a run's directory, or a checkpoint by any name that `student.find` knows.
        rows: sequences decoded side by side; k of them belong to one problem.
        thinking: of the chat template, where it knows the two modes (Qwen3).
        pick: which checkpoint of a run, see `choose_step`.
    """

    what: str
    benchmark: str
    data: str = ""
    template: str = ""
    out: str = ""
    against: str = ""
    k: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    limit: int | None = None
    rows: int = 64
    seed: int = 0
    dtype: str = ""
    thinking: bool | None = None
    pick: str = "last"


def main(cfg: ConfigDict, wanted: Wanted) -> int:
    """Sample, grade and show; returns 0, or 130 when the user stopped it.

    Args:
        cfg: its ``teacher`` is HealthBench's judge; a run's own config is read from the run.

    Raises:
        UserError: whatever of this the user can mend.
    """
    if wanted.pick not in RULES:
        raise UserError(f"--pick={wanted.pick} is unknown; expected {' or '.join(RULES)}")
    loaded = load_benchmark(wanted.benchmark, wanted.data, limit=wanted.limit, template=wanted.template)
    check_installed(loaded.benchmark)
    before = results.read_result(wanted.against) if wanted.against else None
    sampling = _sampling(wanted, loaded.benchmark.sampling)
    run = run_config(wanted.what)
    chosen = choose_step(pathlib.Path(wanted.what), run, wanted.pick) if run else None
    out = pathlib.Path(wanted.out or _default_out(wanted, chosen))
    facts = {
        "student": wanted.what,
        "checkpoint": chosen,
        "template": loaded.benchmark.template,
        "sampling": dataclasses.asdict(sampling),
        "seed": wanted.seed,
        "thinking": run.student.enable_thinking if run and wanted.thinking is None else wanted.thinking,
        "dtype": wanted.dtype or (run.student.dtype if run else "float32"),
    }
    _claim(out, {"benchmark": wanted.benchmark, "data": loaded.found.sha, **facts})
    interrupt = Interrupt()
    with interrupt.listening(), contextlib.ExitStack() as stack:
        try:
            _answer(run or configs.default(), wanted, loaded, sampling, facts, out, interrupt, stack)
        except Interrupted:
            log.warning("stopped; the answers so far are in %s. To go on: the same command", out / "answers.jsonl")
            return 130
    device = jax.devices()[0].device_kind
    result = grade_file(cfg, loaded, out / "answers.jsonl", out=str(out / "result.json"), device=device, **facts)
    if before is not None:
        result["difference"] = {"against": wanted.against, **results.compare(before, result)}
    write_atomic(out / "result.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    results.show(result)
    log.info("answers and result: %s", out)
    return 0


# -------------------------------------------------------------------------------------------- which weights, and why


def choose_step(run: pathlib.Path, cfg: ConfigDict, rule: str) -> dict[str, Any]:
    """The checkpoint of a run and the reason, for the result. It is never chosen on a benchmark.

    ``last``: the newest one. ``heldout``: of those that are kept the one with the best ``eval/accuracy`` on the run's
    own held-out set, the earliest of equal ones.

    Raises:
        UserError: no checkpoint, or none with a held-out accuracy.
    """
    steps = kept_steps(run)
    if not steps:
        raise UserError(f"{run} has no checkpoint yet; expected a run that has saved one")
    if rule == "last":
        return {"step": steps[-1], "rule": "last", "why": f"the newest of the {len(steps)} kept"}
    measured = dict(zip(*read_metrics(run).get("eval/accuracy", ((), ())), strict=True))
    known = {s: measured[s] for s in steps if measured.get(s) is not None}
    if not known:
        raise UserError(
            f"{run}: no kept checkpoint (steps {', '.join(map(str, steps))}) has a held-out accuracy; "
            "expected --pick last, or a run with eval.every equal to checkpoint.every"
        )
    best = max(known, key=lambda s: (known[s], -s))
    name = cfg.data.heldout_path or f"{cfg.data.source}:{cfg.data.task} (seed={cfg.data.heldout_seed})"
    why = f"best accuracy ({known[best]:.4f}) on the held-out set {name} of steps {', '.join(map(str, known))}"
    return {"step": best, "rule": "heldout", "why": why}


def _student(cfg: ConfigDict, wanted: Wanted, facts: dict[str, Any], mesh: jax.sharding.Mesh) -> Student:
    """On the mesh, with the run's own weights where a run is asked for."""
    if facts["checkpoint"]:
        return load_policy(wanted.what, facts["checkpoint"]["step"], thinking=facts["thinking"], mesh=mesh)
    return load_checkpoint(
        wanted.what, chat_template=cfg.student.chat_template, enable_thinking=facts["thinking"], mesh=mesh
    )


# ---------------------------------------------------------------------------------------------------- the answers


def _answer(cfg, wanted, loaded: Loaded, sampling: Sampling, facts, out, interrupt, stack) -> None:
    """Sample what ``answers.jsonl`` lacks."""
    path = out / "answers.jsonl"
    todo = remaining(path, loaded.prompts, sampling.k)
    if not todo:
        log.info("%s has all %d answers already", path, len(loaded.prompts) * sampling.k)
        return
    mesh = mesh_lib.make_mesh(cfg.mesh.fsdp, cfg.mesh.tp)
    student = _student(cfg, wanted, facts, mesh)
    tokens = {p.id: np.asarray(student.tokenizer.apply_chat_template(p.messages), np.int32) for p in loaded.prompts}
    prompt_len = -(-max(map(len, tokens.values())) // 16) * 16
    if prompt_len + sampling.max_tokens > student.cfg.max_seq_len:
        raise UserError(
            f"prompts of {prompt_len} tokens and answers of {sampling.max_tokens} make more than the "
            f"{student.cfg.max_seq_len} that the student was made for; give --max_tokens "
            f"{student.cfg.max_seq_len - prompt_len} or less"
        )
    shards = mesh.shape["fsdp"]
    engine = EngineConfig(
        rollouts=sampling.k,
        prompts=-(-max(1, wanted.rows // sampling.k) // shards) * shards,
        prompt_len=prompt_len,
        max_tokens=sampling.max_tokens,
        stop_ids=student.tokenizer.stop_ids,
        rule=SamplingRule(sampling.temperature, 0, sampling.top_p),
        dtype=facts["dtype"],
    )
    stack.enter_context(jax.set_mesh(mesh))
    groups = sample_groups(
        student.cfg, engine, student.params, student.tokenizer, todo, [tokens[p.id] for p in todo],
        seed=wanted.seed, step=0,
    )  # fmt: skip
    log.info("%s: %d problems x %d answers of at most %d tokens, %d side by side", loaded.benchmark.title, len(todo),
             sampling.k, sampling.max_tokens, engine.prompts * sampling.k)  # fmt: skip
    _write(path, groups, len(todo), interrupt)


def remaining(path: pathlib.Path, prompts: Sequence[Prompt], k: int) -> list[Prompt]:
    """The problems without k answers in the file; what a kill has left half written is cut off."""
    if not path.exists():
        return list(prompts)
    whole = path.read_bytes()
    end = whole.rfind(b"\n") + 1
    write_atomic(path, whole[:end].decode("utf-8"))
    if not end:
        return list(prompts)
    answers = read_answers(path, {p.id: p for p in prompts})
    places = by_problem(answers)
    done = {i for i, at in places.items() if len(at) == k}
    if len(done) < len(places):
        lines = whole[:end].decode("utf-8").split("\n")[:-1]
        write_atomic(path, "".join(f"{lines[n]}\n" for i in done for n in places[i]))
    return [p for p in prompts if p.id not in done]


def answer_lines(group: RolloutGroup) -> str:
    """One line a sample, as `ropd grade` reads it."""
    rows = (
        {"id": group.prompt.id, "sample": n, "response": r.text, "finish_reason": r.finish_reason,
         "tokens": len(r.tokens_T)}
        for n, r in enumerate(group.rollouts)
    )  # fmt: skip
    return "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)


def _write(path: pathlib.Path, groups, of: int, interrupt: Interrupt) -> None:
    begin = said = time.monotonic()
    tokens = 0
    with path.open("a", encoding="utf-8") as file:
        for done, group in enumerate(groups, 1):
            file.write(answer_lines(group))
            file.flush()
            os.fsync(file.fileno())
            tokens += sum(len(r.tokens_T) for r in group.rollouts)
            now = time.monotonic()
            if now - said > _SAY_EVERY_S or done == of:
                said = now
                left = (now - begin) / done * (of - done)
                rate, spent = tokens / (now - begin), clock(now - begin)
                log.info("answered %d of %d problems in %s  tok/s %.0f  %s left", done, of, spent, rate, clock(left))
            interrupt.check()


# ------------------------------------------------------------------------------------------------------- settings


def _sampling(wanted: Wanted, own: Sampling) -> Sampling:
    given = {name: getattr(wanted, name) for name in ("k", "temperature", "top_p", "max_tokens")}
    sampling = dataclasses.replace(own, **{name: value for name, value in given.items() if value is not None})
    if sampling.k > 1 and sampling.temperature == 0:
        raise UserError(f"--k={sampling.k} at temperature 0 gives one answer {sampling.k} times; give --k 1")
    return sampling


def _default_out(wanted: Wanted, chosen: dict[str, Any] | None) -> pathlib.Path:
    name = slug(wanted.benchmark, wanted.thinking)
    if chosen is not None:
        return pathlib.Path(wanted.what) / "eval" / f"{name}_step{chosen['step']}"
    return pathlib.Path("evals") / pathlib.Path(wanted.what).name / name


def _claim(out: pathlib.Path, settings: dict[str, Any]) -> None:
    """Make the directory these settings' own, or check that it is.

    Raises:
        UserError: it belongs to other settings, holds something else, or cannot be written.
    """
    path = out / "settings.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if path.exists() and (out / "answers.jsonl").exists():
            there = json.loads(path.read_text(encoding="utf-8"))
            now = json.loads(json.dumps(settings))
            if changed := [k for k in now if there.get(k) != now[k]]:
                shown = "; ".join(f"{k}: {there.get(k)} there, {now[k]} now" for k in changed)
                raise UserError(f"{out} holds answers of other settings ({shown}); choose another --out")
        elif any(out.iterdir()) and not path.exists():
            raise UserError(f"--out {out} is not empty and holds no evaluation; choose another directory")
        else:
            write_atomic(path, json.dumps(settings, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; choose a directory that can be written") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); choose another --out") from error
