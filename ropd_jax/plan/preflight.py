"""The requests that a run will send to its teacher, before anything is spent (``ropd preflight``).

    1. plan      calls of each role from the config; prompt sizes measured with the real templates and questions
    2. at most   every answer as long as its limit allows; a token counts as 4 characters
    3. expected  the tape's means for the same role and model, if there is a tape; hours as well
    4. check     one cheap call per role and model: key, address, model
    5. speed     five short calls per model: tokens per second, slots, and settings that fit (`plan.server_speed`)

Unknown values are never numbers: a model without a price has no dollars, a role without a tape has no hours.
Retries and repeated requests are not included.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from rich import box
from rich.table import Table
from rich.text import Text

from ropd_jax.data.golds import reference_of
from ropd_jax.data.questions import no_heldout, training_prompts
from ropd_jax.plan.server_speed import TOGETHER, Speed, measure, suggestions
from ropd_jax.teacher import Budget, Prices, Role, Tape, TeacherError, Usage, make_client
from ropd_jax.teacher.build import (
    ROLE_KEYS,
    asking_of,
    limit_options,
    reference_sources,
    role_of,
)
from ropd_jax.teacher.calibration import summary
from ropd_jax.teacher.check import Asked, Check, asked_of, first_call, sources_of
from ropd_jax.teacher.clients.chat import ChatRequest
from ropd_jax.teacher.clients.endpoint import Endpoint
from ropd_jax.teacher.roles import references as reference_role
from ropd_jax.teacher.roles import rubricator, scorer, verifier
from ropd_jax.teacher.tape.inspect import tape_stats
from ropd_jax.teacher.traffic.budget import dollars
from ropd_jax.types import Criterion, Prompt, Rubric
from ropd_jax.utils import tables

CHARS_PER_TOKEN = 4
_MEASURED = 32  # questions with which the templates are rendered
_SPEED_S = 120.0
_WIDEST = 12  # maximum number of criteria of a rubric
_RUBRIC = Rubric(tuple(Criterion(f"c{i}", "x" * 160, 3, "reasoning") for i in range(1, _WIDEST + 1)))


@dataclasses.dataclass(frozen=True)
class RolePlan:
    """One role of one model. Tokens, dollars and hours are for the whole run; None if unknown.

    Attributes:
        calls: requests, without retries and repeated requests.
        tokens_max, usd_max: if every answer is as long as its limit allows.
        tokens, usd, hours: by the tape's means.
    """

    role: str
    provider: str
    model: str
    calls: int
    input_tokens_max: int
    output_tokens_max: int
    usd_max: float | None
    tokens: int | None
    usd: float | None
    hours: float | None


def plan(
    cfg: ConfigDict,
    prompts: Sequence[Prompt],
    *,
    asks: Mapping[str, int],
    once: Collection[str] = ("reference",),
    tape: Tape | None,
) -> list[RolePlan]:
    """The requests of a run, by role and model.

    Args:
        prompts: the training set.
        asks, once: calls for one group by role, and the roles called once per prompt (``Method.asks``, ``asks_once``).
        tape: the estimate uses its means.
    """
    t = cfg.teacher
    if t.tape.mode == "replay":
        return []
    prices = Prices.load(t.prices)
    groups = cfg.steps * cfg.data.prompts_per_step
    asked = min(groups, len(prompts)) if t.tape.mode == "record" else groups  # the tape answers repetitions
    sources = () if t.index or "reference" not in asks else reference_sources(t)
    rows = [
        ("reference", *source, asked * len(range(i, t.references, len(sources)))) for i, source in enumerate(sources)
    ]
    for role, n in asks.items():
        if role != "reference":
            calls = n * (asked if role in once else groups)
            if role == "verify":
                calls *= (1 + t.health.repeat_frac) * _verify_calls(cfg)
            rows += [(role, *source, round(calls)) for source in sources_of(t, role)]
    if t.judge.model and not no_heldout(cfg.data):
        evaluations = 2 + (cfg.steps - 1) // cfg.eval.every
        rows.append(("judge", *role_of(t, "judge"), evaluations * cfg.eval.judged))
    known = {(r["role"], r["provider"], r["model"]): r for r in (tape_stats(tape) if tape else ())}
    sizes, at_once = _prompt_tokens(cfg, prompts), t.concurrency
    return [
        _row(role, endpoint, how, calls, sizes[role], prices, known.get((role, endpoint.provider, how.model)), at_once)
        for role, endpoint, how, calls in rows
    ]


def _row(
    role: str,
    endpoint: Endpoint,
    how: Role,
    calls: int,
    prompt_tokens: int,
    prices: Prices,
    seen: dict[str, Any] | None,
    concurrency: int,
) -> RolePlan:
    price = prices.find(endpoint.provider, how.model, endpoint.base_url)
    most = Usage(prompt_tokens, how.max_output_tokens)
    usd_max = None if price is None else price.cost(most)
    tokens = usd = hours = None
    if seen and seen["input_tokens_mean"] is not None and seen["output_tokens_mean"] is not None:
        sent, received = seen["input_tokens_mean"], seen["output_tokens_mean"]
        mean = Usage(sent, received, None, seen["cached_tokens_mean"])
        tokens = round(calls * (sent + received))
        usd = None if price is None else price.cost(mean)
    if seen and seen["latency_s_mean"] is not None:
        hours = calls * seen["latency_s_mean"] / concurrency / 3600
    return RolePlan(
        role,
        endpoint.provider,
        how.model,
        calls,
        calls * prompt_tokens,
        calls * how.max_output_tokens,
        None if usd_max is None else calls * usd_max,
        tokens,
        None if usd is None else calls * usd,
        hours,
    )


def _prompt_tokens(cfg: ConfigDict, prompts: Sequence[Prompt]) -> dict[str, int]:
    """Mean tokens of each role's prompt, rendered with answers of the maximum length."""
    t = cfg.teacher
    some = prompts[:: max(1, len(prompts) // _MEASURED)][:_MEASURED]

    def text(tokens: int) -> str:
        chars = tokens * CHARS_PER_TOKEN
        return "x" * (min(chars, t.max_answer_chars) if t.max_answer_chars else chars)

    longest = text(t.reference.max_output_tokens)
    references = [f"{i}{longest}"[: len(longest)] for i in range(t.references)]  # different, so that all are shown
    answers = [text(cfg.sampling.max_tokens)] * cfg.sampling.rollouts
    sizes = {}
    for role in ROLE_KEYS:
        lengths = [
            sum(len(m.content) for m in _request(t, role, p, references, answers, _RUBRIC).messages) for p in some
        ]
        sizes[role] = round(statistics.fmean(lengths) / CHARS_PER_TOKEN)
    return sizes


def _request(
    t: ConfigDict, role: str, prompt: Prompt, references: Sequence[str], answers: Sequence[str], rubric: Rubric
) -> ChatRequest:
    """The request that the teacher would send, with these answers."""
    how = role_of(t, ROLE_KEYS[role])[1].wording()
    if not how["template"]:
        del how["template"]  # the template belongs to the role
    if role == "reference":
        return reference_role.reference_request(prompt.question, **how, sample_index=0)
    if role == "rubric":
        return rubricator.rubric_request(prompt.question, references, answers, **how)
    if role in ("score", "judge"):
        blind = role == "judge"  # the held-out judge sees one answer and no rubric; a free-text gold is its reference
        gold = [known] if blind and (known := reference_of(prompt)) else []
        how.setdefault("template", scorer.TEMPLATE if blind and not gold else scorer.VARIANTS[0])
        return scorer.score_request(
            prompt.question,
            answers[:1] if blind else answers,
            references=gold if blind else references,
            rubric=None if blind else rubric,
            lowest=1,
            highest=10,
            **how,
        )
    asking = asking_of(t)  # the largest of the group's calls
    shown = [*answers, *references][: asking.answers_per_call or None]
    how |= {"form": asking.form, "examples": asking.examples}
    return verifier.verify_request(prompt.question, asking.cut(rubric)[0], shown, **how)


def _verify_calls(cfg: ConfigDict) -> int:
    """Calls to each verifier for one group, under a rubric of ``_RUBRIC``'s size."""
    asking, answers = asking_of(cfg.teacher), cfg.sampling.rollouts + cfg.teacher.references
    return asking.votes * len(asking.cut(_RUBRIC)) * math.ceil(answers / (asking.answers_per_call or answers))


# ------------------------------------------------------------------------------------------------------ checks


async def check(
    cfg: ConfigDict, prompts: Sequence[Prompt], asks: Collection[str] = ("reference", "rubric", "verify")
) -> list[Check]:
    """One call for each role and model, with the first prompt; the scripted teacher is included."""
    t = cfg.teacher
    answer_key = [(p.question, p.solution) for p in prompts if p.solution] if not t.scripted.answer_key else None
    scripted = dict(t.scripted) | ({} if answer_key is None else {"answer_key": answer_key})
    found = []
    for name, endpoint, how in _asked(t, asks):
        request = _request(t, name, prompts[0], ["Answer: 1"], ["Answer: 2"], _RUBRIC)
        request = dataclasses.replace(request, model=how.model, temperature=how.temperature)
        budget = Budget(prices=Prices.load(t.prices))
        checked = await first_call(t, name, endpoint, how, request, scripted=scripted, budget=budget)
        found.append(dataclasses.replace(checked, usd=budget.total().cost_usd if budget.total().calls else 0.0))
    return found


def check_rollouts(cfg: ConfigDict) -> Check:
    """Requests two tokens from the rollout server (``sampling.engine``), with their ids and log-probs."""
    from ropd_jax.sampling.external import RolloutServer
    from ropd_jax.training.setup import server_config

    how, begin, error = server_config(cfg), time.monotonic(), None
    server = RolloutServer(how)
    try:
        server.check([0], 2**31)
    except TeacherError as e:
        error = e
    finally:
        server.close()
    return Check("rollouts", server.shown, how.model or "its only model", time.monotonic() - begin, error)


def _asked(t: ConfigDict, asks: Collection[str]) -> list[Asked]:
    """Each role in use, references first and the judge last, with each of its models."""
    ordered = sorted(asks, key=lambda role: role != "reference")
    return asked_of(t, (*ordered, *(("judge",) if t.judge.model else ())))


async def speeds(cfg: ConfigDict, checks: Sequence[Check], asks: Collection[str]) -> tuple[list[Speed], list[str]]:
    """(the speed of each model that passed its check, better settings), without the scripted teacher."""
    t, passed = cfg.teacher, {(c.provider, c.model) for c in checks if c.ok}
    asked = [(r, e, how) for r, e, how in _asked(t, asks) if (e.provider, how.model) in passed]
    models = dict.fromkeys((e, how.model) for _, e, how in asked if e.provider != "scripted")
    found = []
    for endpoint, model in models:
        client = make_client(**dataclasses.asdict(endpoint), **limit_options(t))
        try:
            found.append(await measure(client.inner, endpoint.provider, model, timeout_s=_SPEED_S))
        finally:
            await client.close()
    return found, suggestions(t, [(ROLE_KEYS[r], e.provider, how) for r, e, how in asked], found)


# ------------------------------------------------------------------------------------------------------- print


def run(cfg: ConfigDict, *, tape: pathlib.Path | None = None, calls: bool = True, as_json: bool = False) -> list[Check]:
    """Plans, checks and prints; returns the checks.

    Args:
        tape: the estimate uses the means of this tape.
        calls: whether to check with one cheap call per role; without it the list is empty.
    """
    from ropd_jax.methods import load_method
    from ropd_jax.training.validate import check_exact, check_gradable

    calibration = summary(cfg.teacher.calibration)  # an unreadable report fails before anything is sent
    prompts = training_prompts(cfg.data).prompts
    recorded = Tape(tape, read_only=True) if tape else None
    method = load_method(cfg.method, cfg)
    check_exact(cfg.rewards.exact_weight, method, cfg.method)
    check_gradable(cfg.rewards.exact_weight, prompts)
    try:
        rows = plan(cfg, prompts, asks=method.asks, once=method.asks_once, tape=recorded)
    finally:
        if recorded:
            recorded.close()
    checks = asyncio.run(check(cfg, prompts, tuple(method.asks))) if calls and cfg.teacher.tape.mode != "replay" else []
    if calls and cfg.sampling.engine != "own":
        checks.append(check_rollouts(cfg))
    measured, better = asyncio.run(speeds(cfg, checks, tuple(method.asks)))
    if as_json:
        out = {
            "roles": [dataclasses.asdict(r) for r in rows],
            "total": _total(rows),
            "checks": [_json_of(c) for c in checks],
            "speeds": [dataclasses.asdict(s) for s in measured],
            "suggestions": better,
            "calibration": calibration,
            "prices_as_of": Prices.load(cfg.teacher.prices).as_of,
        }
        sys.stdout.write(json.dumps(out) + "\n")
    else:
        _show(cfg, rows, checks, tape)
        for line in (*map(speed_line, measured), *(f"Better: {line}" for line in better)):
            tables.console().print(line, soft_wrap=True, markup=False)
        if "verify" in method.asks:
            tables.console().print(calibration_line(calibration, cfg.teacher.verifier.model), soft_wrap=True)
    return checks


def _json_of(check: Check) -> dict[str, Any]:
    names = ("role", "provider", "model", "ok", "seconds", "usd", "message")
    return {name: getattr(check, name) for name in names}


def speed_line(speed: Speed) -> str:
    """The measured speed of a model, as a line."""
    rate = "tokens per second unknown" if speed.tokens_per_s is None else f"{speed.tokens_per_s:.3g} tokens per second"
    more = "at least " if speed.slots == TOGETHER else ""
    slots = "calls at a time unknown" if speed.slots is None else f"{more}{speed.slots} at a time"
    return f"{speed.provider}: {speed.model}: {rate}, {slots}" + (f" ({speed.message})" if speed.message else "")


def calibration_line(found: Mapping[str, Any] | None, model: str) -> str:
    """What is known about the verifier's verdicts, or how to measure it."""
    if found is None:
        return (
            "The error rate of this verifier is unknown: ropd calibrate-judge --config FILE measures it, and "
            "teacher.calibration=DIR/report.json records it with the run."
        )
    kappa, accuracy = (_interval(found[name]) for name in ("kappa", "accuracy"))
    other = "" if found["model"] == model else f" That was {found['model']}; this run's verifier is {model}."
    return f"Verifier: kappa {kappa}, accuracy {accuracy} in form {found['form']} ({found['report']}).{other}"


def _interval(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "unknown"
    known = None not in (found["low"], found["high"])
    return f"{found['value']:.2f}" + (f" [{found['low']:.2f}, {found['high']:.2f}]" if known else "")


def _total(rows: Sequence[RolePlan]) -> dict[str, Any]:
    """Sums over the roles; None if one of them is unknown."""
    names = ("calls", "input_tokens_max", "output_tokens_max", "usd_max", "tokens", "usd", "hours")
    columns = {name: [getattr(r, name) for r in rows] for name in names}
    return {name: None if None in values else sum(values) for name, values in columns.items()}


def _show(cfg: ConfigDict, rows: Sequence[RolePlan], checks: Sequence[Check], tape: pathlib.Path | None) -> None:
    console = tables.console(highlight=True)
    groups = cfg.steps * cfg.data.prompts_per_step
    title = f"{cfg.steps} steps x {cfg.data.prompts_per_step} prompts = {groups:,} groups"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("role", no_wrap=True)
    table.add_column("model", overflow="fold")
    columns = [
        "calls",
        "tokens at most",
        "cost at most",
        *(["tokens by tape", "cost by tape", "hours"] if tape else []),
    ]
    for name in columns:
        table.add_column(name, justify="right")
    total = _total(rows)
    for r in rows:
        table.add_row(r.role, r.model, *_cells(vars(r))[: len(columns)])
    if rows:
        table.add_section()
        table.add_row("all", "", *_cells(total)[: len(columns)])
    console.print(table)
    console.print(
        "At most: input + output if every answer is as long as its limit, a token counted as 4 characters; without "
        "retries and repeated requests. "
        + (
            f"By tape: means of {tape}; hours: the teacher's only, at {cfg.teacher.concurrency} calls at once. "
            if tape
            else "The expected cost and the hours are unknown without --tape. "
        )
        + f"List prices of {Prices.load(cfg.teacher.prices).as_of}.",
        style="dim",
    )
    cap = cfg.teacher.budget.usd
    if cap and total["usd_max"] is not None and total["usd_max"] > cap:
        console.print(f"teacher.budget.usd={cap:g} can end the run before its last step.")
    for c in checks:
        mark = Text("ok    ", style="green") if c.ok else Text("FAILED", style="red")
        console.print(mark, f"{c.role}: {c.provider}: {c.model} ", end="")
        console.print(c.message, soft_wrap=True)


def _cells(row: dict[str, Any]) -> list[str]:
    unknown = "unknown"
    most = f"{_short(row['input_tokens_max'])} + {_short(row['output_tokens_max'])}"
    return [
        f"{row['calls']:,}",
        most,
        unknown if row["usd_max"] is None else dollars(row["usd_max"]),
        unknown if row["tokens"] is None else _short(row["tokens"]),
        unknown if row["usd"] is None else dollars(row["usd"]),
        unknown if row["hours"] is None else f"{row['hours']:.2g}",
    ]


def _short(n: int) -> str:
    """``1,234,567`` as ``1.23M``."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= unit:
            return f"{n / unit:.3g}{name}"
    return str(n)
