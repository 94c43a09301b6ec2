"""The signal study of real_judge.py: answers of a student, judged group by group, and stored like the groups of a run.

    STUDY/setting.json        the settings of the study; a later start must have the same
    STUDY/rollouts.jsonl      the student's answers, one line per problem
    STUDY/rubric/groups/      one file per problem: references, rubric, verdicts and rewards of the judge
    STUDY/t_judge/groups/     the same answers graded by T-Judge, with the same references
    STUDY/scripted/groups/    the same answers judged by the scripted teacher, which has the worked solutions
    STUDY/forms/NAME/groups/  the same answers and rubrics, verified in another form
    STUDY/given/NAME/groups/  the same answers, verified with the rubrics of the scripted teacher
    STUDY/whitebox.jsonl      log-prob and overlap of the judge's own weights

Each is a directory that `ropd view`, `ropd rubrics` and `ropd_jax.workdir.groups.read_groups` can read. A problem that
has a file is not judged again, so an interrupted study can be resumed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ropd_jax import configs, load_student, sample
from ropd_jax.analysis.teacher_signals import score_run
from ropd_jax.calibration.forms import read_forms, with_form
from ropd_jax.data.grader import grade
from ropd_jax.data.reading import read_source
from ropd_jax.evaluation.benchmarks import Loaded, load_benchmark
from ropd_jax.methods import Method, load_method
from ropd_jax.parallel.mesh import make_mesh
from ropd_jax.teacher import Teacher, build_teacher
from ropd_jax.teacher.judge_group import judge
from ropd_jax.teacher.recorded import recording
from ropd_jax.training.collect import judge_by
from ropd_jax.types import Judgement, Prompt, Rollout, RolloutGroup
from ropd_jax.utils.files import numbered_rows, write_atomic
from ropd_jax.workdir.groups import GroupsLog, StoredGroup, read_groups

BENCHMARK = "gsm8k"
TEMPLATE = (
    "{question}\n\nSolve this step by step in a few short lines. End with a line of its own, 'Answer: X', where X is "
    "the number."
)
CHUNK = 8  # problems that are sampled together
TOP_K = 24  # of the overlap, as in the paper
NOWHERE = "http://127.0.0.1:1/v1"  # an address that is never opened
WHITEBOX_ROWS = 8  # answers in one batch; their logits over 150,000 words take 80 MB for each row
ARMS = RUBRIC, T_JUDGE, SCRIPTED = "rubric", "t_judge", "scripted"
FORMS, GIVEN = "forms", "given"
RUBRICS = {FORMS: RUBRIC, GIVEN: SCRIPTED}  # verdicts once more -> whose references and rubrics they use
TAPE = "tape.sqlite"  # in the directory above the study's
ROLLOUTS, WHITEBOX = "rollouts.jsonl", "whitebox.jsonl"


Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Setting:
    """The settings of a study. They are fixed once the study has begun; only more problems can be added.

    Attributes:
        student: the name of the model that answers.
        judge: the model's name in requests to the server.
        rollouts: answers to each problem; ``max_tokens`` is their limit.
        template: the student's message, with {question}.
        form: of the verdicts (`ropd_jax.calibration.forms`).
        references: m.
        criteria: fewest and most criteria of a rubric.
    """

    student: str
    judge: str
    rollouts: int = 8
    max_tokens: int = 320
    temperature: float = 0.7
    template: str = TEMPLATE
    form: str = "keyed/1"
    references: int = 2
    criteria: tuple[int, int] = (4, 6)
    seed: int = 0


def agreed(setting: Setting, place: pathlib.Path) -> None:
    """Writes the setting of a new study, or compares it with the stored one.

    Raises:
        SystemExit: a value differs.
    """
    file, now = place / "setting.json", json.loads(json.dumps(dataclasses.asdict(setting)))
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        for key in before.keys() | now.keys():
            if before.get(key) != now.get(key):
                raise SystemExit(
                    f"{place} was begun with {key}={before.get(key)!r}, and this start has {now.get(key)!r}; "
                    "repeat the first value, or choose another --out"
                )
        return
    place.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(now, indent=1) + "\n")


def problems(data: str, groups: int, template: str) -> Loaded:
    """The first problems of the benchmark, in the order of its file.

    Raises:
        UserError: no data there.
    """
    return load_benchmark(BENCHMARK, data, limit=groups, template=template)


def solutions(data: str) -> list[tuple[str, str]]:
    """(question, worked solution) of every problem that has one: the scripted teacher's answer key."""
    from ropd_jax.data.published import BENCHMARKS

    rows, _ = read_source(BENCHMARKS[BENCHMARK], data)
    pairs = ((r.get("problem") or r.get("question"), r.get("solution") or r.get("answer")) for r in rows)
    return [(q, s) for q, s in pairs if isinstance(q, str) and isinstance(s, str) and "####" in s]


# --------------------------------------------------------------------------------------------------------- answers


def sampled(
    setting: Setting, student: str, prompts: Sequence[Prompt], place: pathlib.Path, report: Report
) -> list[RolloutGroup]:
    """One group of answers per problem; missing ones are sampled and stored, a few problems at a time.

    Raises:
        SystemExit: the stored answers are of other problems.
    """
    kept = stored_rollouts(place)
    weights = None
    while len(kept) < len(prompts):
        part = prompts[len(kept) : len(kept) + CHUNK]
        begin = time.monotonic()
        weights = weights or load_student(student, mesh=make_mesh(1, 1, jax.local_devices()[:1]))
        groups = sample(
            weights, part, n=setting.rollouts, max_tokens=setting.max_tokens, temperature=setting.temperature,
            seed=setting.seed, rows=CHUNK * setting.rollouts,
        )  # fmt: skip
        kept += [rollouts_row(group) for group in groups]
        write_atomic(place / ROLLOUTS, "".join(json.dumps(row) + "\n" for row in kept))
        report(
            f"sampled {len(kept)} of {len(prompts)} problems, {time.monotonic() - begin:.0f} s for the last {len(part)}"
        )
    return stored_groups(place, prompts)


def stored_groups(place: pathlib.Path, prompts: Sequence[Prompt]) -> list[RolloutGroup]:
    """The groups of the problems that have been sampled."""
    rows = stored_rollouts(place)
    return [restored(row, prompt, step) for step, (row, prompt) in enumerate(zip(rows, prompts, strict=False))]


def stored_rollouts(place: pathlib.Path) -> list[dict[str, Any]]:
    """What `rollouts_row` made of each problem that has been sampled."""
    file = place / ROLLOUTS
    return [row for _, row in numbered_rows(file)] if file.exists() else []


def rollouts_row(group: RolloutGroup) -> dict[str, Any]:
    """The answers of a group as plain data, with the number of their tokens instead of the tokens."""
    answers = [
        {"text": r.text, "finish_reason": r.finish_reason, "tokens": len(r.tokens_T), "opened": r.opened}
        for r in group.rollouts
    ]
    return {"id": group.prompt.id, "answers": answers}


def restored(row: Mapping[str, Any], prompt: Prompt, step: int) -> RolloutGroup:
    """The group that `rollouts_row` wrote; tokens and log-probs are zeros of the right number."""
    if row["id"] != prompt.id:
        raise SystemExit(f"stored answers are of problem {row['id']!r}, the data have {prompt.id!r}; use the same data")
    rollouts = tuple(
        Rollout(np.zeros(a["tokens"], np.int32), np.zeros(a["tokens"], np.float32), a["text"], a["finish_reason"],
                opened=a["opened"])
        for a in row["answers"]
    )  # fmt: skip
    return RolloutGroup(prompt, np.zeros(0, np.int32), rollouts, step=step, index=0)


# ---------------------------------------------------------------------------------------------------------- judges


Prepare = Callable[[Teacher], None]
Done = Callable[[RolloutGroup, float], None]
Ask = Callable[[RolloutGroup], Awaitable[Judgement]]
Lane = tuple[Teacher, Mapping[pathlib.Path, tuple[Method, Ask]]]  # a teacher, and what it writes into each folder


def _as_it_is(teacher: Teacher) -> None:
    """Leaves the teacher as it is."""


def _silent(group: RolloutGroup, seconds: float) -> None:
    """Reports nothing."""


def judge_config(setting: Setting, address: str, tape: pathlib.Path) -> ConfigDict:
    """The config of a judge that gets one request at a time; without an address nothing is recorded."""
    cfg = configs.default()
    teacher = cfg.teacher
    teacher.provider, teacher.base_url = "openai", address or NOWHERE
    teacher.concurrency = teacher.min_concurrency = 1
    teacher.timeout_s, teacher.attempts, teacher.outage_wait_s = 3600.0, 3, 60.0
    limits = {"reference": 512, "rubricator": 1_500, "verifier": 3_000, "scorer": 1_000}
    for role, most in limits.items():
        teacher[role].model, teacher[role].max_output_tokens = setting.judge, most
    teacher.verifier.update(with_form(teacher.verifier.to_dict(), read_forms(setting.form, teacher.verifier)[0]))
    teacher.tape.path = str(tape)
    return of_study(cfg if address else without_tape(cfg), setting)


def without_tape(cfg: ConfigDict) -> ConfigDict:
    """The config, which now records nothing."""
    cfg.teacher.tape.mode, cfg.teacher.tape.path = "off", ""
    return cfg


def of_study(cfg: ConfigDict, setting: Setting) -> ConfigDict:
    """The config with the study's sizes."""
    cfg.teacher.references = setting.references
    cfg.seed = setting.seed
    cfg.data.prompts_per_step, cfg.sampling.rollouts = 1, setting.rollouts
    cfg.ropd.least_criteria, cfg.ropd.most_criteria = setting.criteria
    return cfg


def judge_all(
    setting: Setting,
    groups: Sequence[RolloutGroup],
    place: pathlib.Path,
    data: str,
    *,
    address: str = "",
    lanes: int = 1,
    prepare: Prepare = _as_it_is,
    done: Done = _silent,
) -> None:
    """All judgements of a study: the judge's rubric rewards and T-Judge grades, and the scripted teacher's rewards.

    Stored judgements are not repeated.

    Args:
        data: directory of the benchmark, whose worked solutions the scripted teacher needs.
        address: of the judge's server; "" needs a client from ``prepare``, and records nothing.
        lanes: groups that are judged side by side, each with one request at a time.
        prepare: called with each lane's teacher before the first question, e.g. to replace its client.
        done: called after each group that was judged, with its seconds.

    Raises:
        ConfigurationError: the server cannot be reached, or refuses.
    """
    cfg = of_study(without_tape(configs.default()), setting)
    teacher = build_teacher(cfg.teacher, seed=cfg.seed, answer_key=solutions(data))
    ask_all([(teacher, {place / SCRIPTED: by_method("ropd", cfg, teacher)})], groups)
    cfg = judge_config(setting, address, place.parent / TAPE)

    def lane() -> Lane:
        teacher = build_teacher(cfg.teacher, seed=cfg.seed, needs=("reference", "rubric", "verify", "score"))
        prepare(teacher)
        arms = ((RUBRIC, "ropd"), (T_JUDGE, "t_judge"))
        return teacher, {place / folder: by_method(name, cfg, teacher) for folder, name in arms}

    ask_all([lane() for _ in range(lanes)], groups, done)


def verify_all(
    setting: Setting,
    groups: Sequence[RolloutGroup],
    place: pathlib.Path,
    *,
    folder: str,
    address: str = "",
    lanes: int = 1,
    prepare: Prepare = _as_it_is,
    done: Done = _silent,
) -> None:
    """Verifies judged groups again, with stored references and rubrics, in the form of the setting.

    Args:
        groups: have a rubric, see `has_rubric`. The other arguments are those of `judge_all`.
        folder: FORMS or GIVEN; says whose references and rubrics are used (RUBRICS), and where the verdicts go.
    """
    cfg, arm = judge_config(setting, address, place.parent / TAPE), place / RUBRICS[folder]
    method, judgements = load_method("ropd", cfg), {s: g.judgement for s, g in groups_in(arm).items()}

    def lane() -> Lane:
        teacher = build_teacher(cfg.teacher, seed=cfg.seed, needs=("verify",))
        prepare(teacher)

        async def again(group: RolloutGroup) -> Judgement:
            known = judgements[group.step]
            references = list(zip(known.references, known.reference_models, strict=True))
            answers = tuple(r.answer for r in group.rollouts)
            with recording() as calls:
                judgement = await judge(
                    teacher, group.prompt, answers, step=group.step, references=references,
                    rubric=(known.rubric, known.lineage),
                )  # fmt: skip
            return dataclasses.replace(judgement, calls=calls())

        return teacher, {place / folder / folder_of(setting.form): (method, again)}

    ask_all([lane() for _ in range(lanes)], groups, done)


def has_rubric(place: pathlib.Path, arm: str) -> set[int]:
    """The problems of a study for which the arm has a rubric that could be used."""
    return {step for step, g in groups_in(place / arm).items() if g.judgement.rubric is not None}


def is_mixed(group: RolloutGroup) -> bool:
    """Whether a problem has right and wrong answers."""
    return {True, False} <= {grade(group.prompt, r.answer) for r in group.rollouts}


def folder_of(form: str) -> str:
    """The folder of a form: ``keyed/1`` -> ``keyed-1``."""
    return form.replace("/", "-")


def form_named(folder: str) -> str:
    """The form of a folder."""
    return folder.replace("-", "/")


def by_method(name: str, cfg: ConfigDict, teacher: Teacher) -> tuple[Method, Ask]:
    """A method, and how it judges a group with the teacher."""
    method = load_method(name, cfg)
    return method, functools.partial(judge_by, method, teacher)


def ask_all(lanes: Sequence[Lane], groups: Iterable[RolloutGroup], done: Done = _silent) -> None:
    """Judges each group for each folder that lacks it, and stores it there. Closes the teachers.

    Args:
        lanes: each takes the next group when it has finished one.
    """
    waiting = iter(groups)

    async def one_after_the_other(asks: Mapping[pathlib.Path, tuple[Method, Ask]]) -> None:
        for group in waiting:
            begin = time.monotonic()
            missing = [folder for folder in asks if not stored(folder, group.step)]
            for folder in missing:
                method, ask = asks[folder]
                write(folder, method, group, await ask(group))
            if missing:
                done(group, time.monotonic() - begin)

    async def side_by_side() -> None:
        tasks = [asyncio.ensure_future(one_after_the_other(asks)) for _, asks in lanes]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for teacher, _ in lanes:
                await teacher.close()

    asyncio.run(side_by_side())


def stored(folder: pathlib.Path, step: int) -> bool:
    """True if the folder has the judged group of this problem."""
    return (folder / "groups" / f"step_{step:06d}.jsonl").exists()


def write(folder: pathlib.Path, method: Method, group: RolloutGroup, judgement: Judgement) -> None:
    """Stores one judged group as a separate step."""
    advantages = np.asarray(method.step_advantages([group], [judgement], group.step).advantage_PG)
    GroupsLog(folder).write(group.step, [group], [judgement], advantages.tolist())


def groups_in(folder: pathlib.Path) -> dict[int, StoredGroup]:
    """The judged groups of a folder by problem; {} if there are none."""
    return {g.step: g for g in read_groups(folder)} if (folder / "groups").is_dir() else {}


def is_judged(place: pathlib.Path, step: int) -> bool:
    """Whether every arm of the study has judged the problem."""
    return all(stored(place / arm, step) for arm in ARMS)


def judged(place: pathlib.Path) -> dict[int, StoredGroup]:
    """The groups of the rubric's arm by problem, for the problems that every arm has judged."""
    return {step: group for step, group in groups_in(place / RUBRIC).items() if is_judged(place, step)}


# -------------------------------------------------------------------------------------------------------- white box


def whitebox(student: str, weights: str, place: pathlib.Path, report: Report) -> None:
    """Adds the signals of the judge's own weights: mean log-prob, and overlap with the student's next tokens.

    Scored problems are skipped. The folder of the rubric's groups gets the config of a run that
    starts from the student, as `score_run` needs it.
    """
    run, file = place / RUBRIC, place / WHITEBOX
    cfg = configs.default()
    cfg.student.checkpoint = student
    (run / "checkpoints").mkdir(exist_ok=True)
    write_atomic(run / "config.json", cfg.to_json() + "\n")
    rows = [row for _, row in numbered_rows(file)] if file.exists() else []
    for first, end in ranges(sorted(judged(place).keys() - {row["step"] for row in rows})):
        begin, part = time.monotonic(), place / "whitebox.part.jsonl"
        score_run(run, weights, part, steps=(first, end), top_k=TOP_K, rows=WHITEBOX_ROWS)
        rows += [row for _, row in numbered_rows(part)]
        write_atomic(file, "".join(json.dumps(row) + "\n" for row in rows))
        part.unlink()
        report(f"scored problems {first} to {end - 1} by the judge's weights, {time.monotonic() - begin:.0f} s")


def ranges(steps: Sequence[int]) -> Iterator[tuple[int, int]]:
    """[first, end) of each run of consecutive numbers: 0 1 2 5 6 -> (0, 3), (5, 7)."""
    begin = 0
    for i in range(1, len(steps) + 1):
        if i == len(steps) or steps[i] != steps[i - 1] + 1:
            yield steps[begin], steps[i - 1] + 1
            begin = i
