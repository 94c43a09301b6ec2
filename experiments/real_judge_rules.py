"""Labels for the question whether a judge reads single rules better than it grades whole answers.

A pretrained student answers questions with two to four rules (`ropd_jax.data.instructions`). IFEval's own checks say
which rules each answer follows, so every verdict and every grade of a judge can be compared with a truth that no judge
has seen. Only groups with both kinds of answers tell two judges apart: of each question that has at least `EACH`
answers that follow all rules and `EACH` that do not, the first `EACH` of both kinds are kept. The choice depends on the
truth alone.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterable

import jax

from ropd_jax import load_student, sample
from ropd_jax.data import instructions
from ropd_jax.data.ifeval import follows
from ropd_jax.parallel.mesh import make_mesh
from ropd_jax.teacher.labels import LabelledAnswer, LabelledCriterion, LabelledQuestion
from ropd_jax.teacher.scripted.instructions import RULE, read
from ropd_jax.types import RolloutGroup
from ropd_jax.utils.files import write_atomic

EACH = 2  # kept answers of a question that follow all rules, and as many that do not
ROLLOUTS = 8
MAX_TOKENS = 56  # as experiments/smollm2_rules.py
TEMPERATURE = 0.7
CHUNK = 8  # questions that are sampled together


def write_labels(student: str, file: pathlib.Path, questions: int, seed: int, report: Callable[[str], None]) -> None:
    """Samples answers until enough questions have both kinds, and writes their labels; not if the file exists.

    Args:
        student: a checkpoint.
        questions: labelled questions.
        seed: of the questions and of the answers.

    Raises:
        SystemExit: 40 times as many questions were sampled, and too few have both kinds of answers.
    """
    if file.exists():
        return
    weights = load_student(student, mesh=make_mesh(1, 1, jax.local_devices()[:1]))
    prompts = list(instructions.items("train", 40 * questions, seed))
    found: list[LabelledQuestion] = []
    for start in range(0, len(prompts), CHUNK):
        groups = sample(
            weights, prompts[start : start + CHUNK], n=ROLLOUTS, max_tokens=MAX_TOKENS, temperature=TEMPERATURE,
            seed=seed + start, rows=CHUNK * ROLLOUTS,
        )  # fmt: skip
        found += labelled(groups)
        report(f"{start + len(groups)} questions are answered; {len(found)} of {questions} have both kinds of answers")
        if len(found) >= questions:
            rows = [json.dumps(one.as_row(), ensure_ascii=False) for one in found[:questions]]
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, "".join(row + "\n" for row in rows))
            return
    raise SystemExit(
        f"of {len(prompts)} questions only {len(found)} have {EACH} answers of {ROLLOUTS} that follow all rules and "
        f"{EACH} that do not, expected {questions}; ask for fewer questions, or take another student"
    )


def labelled(groups: Iterable[RolloutGroup]) -> list[LabelledQuestion]:
    """The groups that have `EACH` answers of both kinds, with the truth of each rule and answer."""
    found = []
    for group in groups:
        task = read(group.prompt.messages[-1].content)
        assert task is not None, "a question of this source"
        criteria = tuple(
            LabelledCriterion(f"c{i}", RULE.format(rule.text), "Rule", "constraint", 1)
            for i, rule in enumerate(task.rules, 1)
        )
        answers = []
        for i, rollout in enumerate(group.rollouts, 1):
            truth = tuple(follows(group.prompt.metadata["instructions"], rollout.answer))
            answers.append(LabelledAnswer(f"a{i}", rollout.answer, correct=all(truth), truth=truth))
        both = [[a for a in answers if a.correct is kind][:EACH] for kind in (True, False)]
        if all(len(some) == EACH for some in both):
            kept = tuple(sorted(both[0] + both[1], key=lambda a: a.id))
            found.append(LabelledQuestion(group.prompt.id, group.prompt.messages[-1].content, criteria, kept, "rules"))
    return found
