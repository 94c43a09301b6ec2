"""Runs a calibration: labelled questions go through the run's own verifier, with its tape and its budget.

    1. read    the labels and the request forms
    2. ask     each group twice, the second time in another order; optionally the scorer once; the probes once, last
    3. report  the verdicts compared with the labels

If a budget cap is reached, it stops and reports what was judged until then.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ropd_jax.calibration import labels as label_files
from ropd_jax.calibration.bias import Look, Said
from ropd_jax.calibration.forms import Form, form_of, read_forms, with_form
from ropd_jax.calibration.measure import SCALE, measure
from ropd_jax.calibration.probes import is_probing, measure_probes, probing
from ropd_jax.calibration.report import complete, write_comparison, write_report
from ropd_jax.calibration.traffic import CountingClient, Traffic
from ropd_jax.teacher import BudgetError, ConfigurationError, Prices, Teacher, TeacherError, build_teacher
from ropd_jax.teacher.build import panel_sources, role_of
from ropd_jax.teacher.calibration import SCHEMA_VERSION
from ropd_jax.teacher.labels import LabelledQuestion, read_labels, verdict_rows
from ropd_jax.teacher.roles import scorer as scorer_role
from ropd_jax.teacher.roles.marks import shuffled
from ropd_jax.utils.every import Every
from ropd_jax.utils.paths import only_local

log = logging.getLogger(__name__)

PROGRESS_S = 2.0  # seconds between two progress lines
MOST_ANSWERS = 12  # per group: 8 rollouts and 4 references, as in the paper
_ENDPOINT = ("provider", "base_url", "api_key_env")
_ORDERS = 8  # number of keys tried to get another order


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a calibration.

    Attributes:
        labels, part, limit: see `labels.load`.
        forms: the forms to compare (`forms.read_forms`); "" means the config's own.
        scorer: also ask the scorer.
        reorder: ask every group a second time, in another order.
        probes: also measure what wrong answers gain by appearance (`probes`).
    """

    labels: str = ""
    part: str = "dev"
    limit: int = 0
    forms: str = ""
    scorer: bool = False
    reorder: bool = True
    probes: bool = False


def main(teacher: Mapping[str, Any], options: Options, *, seed: int, out: str | os.PathLike[str]) -> list[dict]:
    """Asks, measures and writes ``report.json`` and ``report.md`` into ``out``; returns the report of each form.

    With several forms, each has its own folder in ``out``, and ``out`` itself has the comparison. The tape and the
    spending are also in ``out``, so a second call with the same options pays for nothing.

    Args:
        teacher: ``cfg.teacher``, a ConfigDict or a plain mapping.
        seed: for the fences, the order in which answers are shown, and the intervals.

    Raises:
        UserError: labels, forms or teacher cannot be used, or the budget is reached before the first verdict.
    """
    forms = read_forms(options.forms, teacher["verifier"])
    questions, source, sha = label_files.load(options.labels, part=options.part, limit=options.limit)
    about = {"source": source, "sha": sha, "part": options.part, "limit": options.limit or None}
    probes = probing(questions) if options.probes else []
    out = only_local(out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    teachers = [_plain_teacher(teacher, form, questions, probes) for form in forms]
    for plain in teachers:  # check every form before paying for the first one
        asyncio.run(build_teacher(plain | {"tape": plain["tape"] | {"mode": "off"}}, needs=_needs(options)).close())
    reports: list[dict] = []
    for form, plain in zip(forms, teachers, strict=True):
        try:
            report = calibrate(plain, questions, about, options, seed=seed, workdir=out)
        except BudgetError as e:
            if not reports:
                raise
            log.warning("form %s was not used: %s", form, e)
            reports[-1]["stopped"] = str(e)
            break
        reports.append(report)
        write_report(report, out / str(form).replace("/", "_") if len(forms) > 1 else out)
        if report["stopped"]:
            break
    if len(forms) > 1:
        write_comparison(reports, [str(f) for f in forms], out)
    return reports


def calibrate(
    teacher: Mapping[str, Any],
    questions: Sequence[LabelledQuestion],
    about: Mapping[str, Any],
    options: Options,
    *,
    seed: int,
    workdir: pathlib.Path | None,
) -> dict[str, Any]:
    """The report of one form.

    Raises:
        ConfigurationError: the teacher cannot work.
        BudgetError: the budget is reached before the first verdict.
    """
    needs = _needs(options)
    asked = build_teacher(teacher, seed=seed, workdir=workdir, needs=needs)
    counting = CountingClient(asked.client, _prices(teacher, needs))
    asked.client = counting
    before = (asked.budget.total().cost_usd or 0.0) if asked.budget else 0.0
    started = time.monotonic()
    groups = [*questions, *(probing(questions) if options.probes else ())]
    found, stopped = asyncio.run(_ask_all(asked, groups, options, at_once=teacher["concurrency"], cut=_cut(teacher)))
    seconds = time.monotonic() - started
    said = [one for one in found if not is_probing(one.question)]
    if not said and stopped:
        raise BudgetError(f"no question could be judged. {stopped}")
    (endpoint, how), *others = panel_sources(teacher)
    total = asked.budget.total() if asked.budget else None
    verify = counting.roles.get("verify", Traffic())
    verdicts = sum(
        len(one.question.criteria) * len(look.causes) for one in found for look in (one.first, one.again) if look
    )
    return complete(
        {
            "schema_version": SCHEMA_VERSION,
            "verifier": {
                "provider": endpoint.provider,
                "model": " + ".join([how.model, *(role.model for _, role in others)]),
                "temperature": how.temperature,
                "template": asked.template_id("verify"),
                "form": str(form_of(teacher["verifier"])),
                "settings": {key: value for key, value in teacher["verifier"].items() if key not in _ENDPOINT},
            },
            "labels": {**about, "questions": len(questions), "asked": len({one.question.id for one in said})},
            "seed": seed,
            "stopped": stopped,
            **measure(said, seed=seed),
            "probes": measure_probes([one for one in found if is_probing(one.question)], seed=seed)
            if options.probes
            else None,
            "traffic": {
                **verify.as_dict(),
                "verdicts": verdicts,
                "wall_seconds": None if verify.taped else seconds,
                "spent_usd": None if total is None or total.cost_usd is None else total.cost_usd - before,
                "reasks": dict(asked.stats.reasks),
                "retries": dict(asked.stats.retries),
                "failures": dict(asked.stats.failures),
                "per_1000_verdicts": verify.per_1000(verdicts),
                "scorer": counting.roles["score"].as_dict() if "score" in counting.roles else None,
            },
        }
    )


def _plain_teacher(
    teacher: Mapping[str, Any], form: Form, questions: Sequence[LabelledQuestion], probes: Sequence[LabelledQuestion]
) -> dict[str, Any]:
    """``cfg.teacher`` as plain data, in this form.

    A scripted verifier gets the labels, and no tape: a tape would replay the verdicts of an earlier noise setting.
    """
    plain: dict[str, Any] = teacher.to_dict() if hasattr(teacher, "to_dict") else dict(teacher)
    plain["verifier"] = with_form(plain["verifier"], form)
    plain["index"] = ""  # no references are needed
    if role_of(plain, "verifier")[0].provider == "scripted":
        plain["scripted"] = dict(plain["scripted"])
        known = plain["scripted"]["labels"] or list(verdict_rows(questions))
        if probes:
            rows = verdict_rows(read_labels(known)) if isinstance(known, str) else known
            known = [*rows, *verdict_rows(probes)]
        plain["scripted"]["labels"] = known
        plain["tape"] = dict(plain["tape"]) | {"mode": "off"}
    return plain


def _needs(options: Options) -> tuple[str, ...]:
    return ("verify", "score") if options.scorer else ("verify",)


def _prices(teacher: Mapping[str, Any], needs: Sequence[str]) -> dict[tuple[str, str], Any]:
    prices = Prices.load(teacher["prices"])
    asked = {"verify": panel_sources(teacher), "score": (role_of(teacher, "scorer"),)}
    return {
        (purpose, how.model): prices.find(endpoint.provider, how.model, endpoint.base_url)
        for purpose in needs
        for endpoint, how in asked[purpose]
    }


def _cut(teacher: Mapping[str, Any]) -> int:
    return form_of(teacher["verifier"]).answers_per_call


# -------------------------------------------------------------------------------------------------------------- ask


async def _ask_all(
    teacher: Teacher, questions: Sequence[LabelledQuestion], options: Options, *, at_once: int, cut: int
) -> tuple[list[Said], str | None]:
    """The verdicts on each group, and the reason for stopping early, or None."""
    parts = [(f"{q.id}/{n}", part) for q in questions for n, part in enumerate(label_files.groups(q, MOST_ANSWERS))]
    once = dataclasses.replace(options, reorder=False, scorer=False)
    slots, progress = asyncio.Semaphore(max(1, 2 * at_once)), Every(PROGRESS_S)
    done, stopped = 0, None

    async def one(key: str, part: LabelledQuestion) -> Said | None:
        nonlocal done, stopped
        async with slots:
            if stopped:
                return None
            said, reached = await _ask(teacher, part, key, once if is_probing(part) else options, cut)
        stopped = stopped or reached
        if said is None:
            return None
        done += 1
        if progress():
            log.info("%d of %d groups are verified", done, len(parts))
        return said

    tasks = [asyncio.ensure_future(one(key, part)) for key, part in parts]
    try:
        found = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await teacher.close()
    if stopped:
        log.warning("the budget was reached after %d of %d groups; the report covers these", done, len(parts))
    return [said for said in found if said is not None], stopped


async def _ask(
    teacher: Teacher, part: LabelledQuestion, key: str, options: Options, cut: int
) -> tuple[Said | None, str | None]:
    """The verdicts on one group until the budget was reached, and the budget error, or None."""
    texts = [a.text for a in part.answers]
    first_key = f"calibrate/{key}"
    try:
        first = await _look(teacher, part, texts, first_key, cut)
    except BudgetError as e:
        return None, str(e)
    order = shuffled(texts, seed=teacher.seed, key=first_key)
    keys = (f"{first_key}/again{i}" for i in range(_ORDERS))
    other = next((k for k in keys if shuffled(texts, seed=teacher.seed, key=k) != order), None)
    again = scores = None
    try:
        if options.reorder and other is not None:
            again = await _look(teacher, part, texts, other, cut, 1)
        if options.scorer:
            scores = await _scores(teacher, part, texts, first_key)
    except BudgetError as e:
        return Said(part, first, again, scores), str(e)
    return Said(part, first, again, scores), None


async def _look(teacher: Teacher, part: LabelledQuestion, texts: list[str], key: str, cut: int, look: int = 0) -> Look:
    order = shuffled(texts, seed=teacher.seed, key=key)
    places: list[float | None] = [None] * len(texts)
    for start in range(0, len(order), cut or len(order)):
        shown = order[start : start + (cut or len(order))]
        for place, index in enumerate(shown):
            places[index] = place / (len(shown) - 1) if len(shown) > 1 else None
    try:
        verdicts = await teacher.verify(part.prompt, part.rubric, texts, key=key, look=look)
    except ConfigurationError:
        raise
    except TeacherError as e:
        return Look((None,) * len(texts), (e.cause,) * len(texts), tuple(places))
    return Look(verdicts.passed, verdicts.causes, tuple(places))


async def _scores(teacher: Teacher, part: LabelledQuestion, texts: list[str], key: str) -> tuple[int | None, ...]:
    low, high = SCALE
    try:
        marks = await teacher.score(
            part.prompt, texts, key=key, lowest=low, highest=high, template=scorer_role.TEMPLATE
        )
    except ConfigurationError:
        raise
    except TeacherError:
        return (None,) * len(texts)
    return marks.values
