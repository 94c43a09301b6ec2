"""Reward hacking with a judge whose faults are known: one run of experiments/hacking_lab.py.

    ropd train --config hacking:bias=round,arm=t_judge --config.seed=1 --workdir runs/hacking/one
    make hacking                               every bias, arm and seed; a table and a picture (docs/hacking.md)

bias      none, or the feature that the scripted judge rewards: any name of ropd_jax/teacher/scripted/bias.py, with
          bounds if it takes some. BIASES are those of the matrix, chosen by the lab's probe: a student can learn a
          feature only if some of its answers have it and others do not.
arm       ropd; ropd with dropout (0.3 of the criteria hidden), per_criterion (advantages) or votes (the majority of
          three); t_judge (a grade); rgsd (no verdicts)
dose      0 to 1, default 1: the chance that a false verdict on an answer with the whole feature becomes true
student   tiny (default): the quickstart's 0.37 M parameters on sums, as experiments/mini.py. smollm2: the 135 M
          parameters and rules of experiments/smollm2_rules.py, with its own biases; 24 steps take half an hour

All runs of a student share cold start, prompts, learning rate and steps; nothing was tuned for any of them.
Hardware: 2 CPU cores. Time: a minute per run (tiny). Expected: docs/hacking.md.
"""

from __future__ import annotations

import pathlib

from ropd_jax.configs import load_config
from ropd_jax.types import UserError

NONE = "none"
BIASES = {  # of the matrix, by student
    "tiny": (NONE, "length@10-40", "brevity@2-17", "work", "round", "compound"),
    "smollm2": (NONE, "length@10-40", "self_praise", "confident", "echo", "compound"),
}
ARMS = {  # name -> keys of the config
    "ropd": {},
    "t_judge": {"method": "t_judge"},
    "rgsd": {"method": "rgsd"},
    "dropout": {"ropd.dropout": 0.3},
    "per_criterion": {"ropd.advantage": "per_criterion"},
    "votes": {"teacher.verifier.votes": 3, "teacher.verifier.temperature": 0.7},
}
UNJUDGED = ("rgsd",)  # uses no verdicts, so a bias does not change the run
DOSE = 1.0
STUDENTS = {"tiny": "mini.py", "smollm2": "smollm2_rules.py"}


def get_config(arg: str = ""):
    given = dict(part.partition("=")[::2] for part in arg.split(",") if part)
    student, bias = given.pop("student", "tiny"), given.pop("bias", NONE)
    arm, dose = given.pop("arm", "ropd"), given.pop("dose", str(DOSE))
    if given or student not in STUDENTS or arm not in ARMS:
        raise UserError(
            f"experiments/hacking.py:{arg}; expected student= one of {', '.join(STUDENTS)}, arm= one of "
            f"{', '.join(ARMS)}, bias= and dose="
        )
    cfg = load_config(str(pathlib.Path(__file__).with_name(STUDENTS[student]))).unlock()
    if student == "tiny":
        cfg.steps = 48
        cfg.data.heldout_size = 200
    cfg.teacher.scripted.bias = "" if bias == NONE else f"{bias}:{dose}"
    cfg.loss.normalize_std = (
        True  # in every arm: per_criterion needs it, and it makes small differences of reward count
    )
    cfg.eval.every = 6
    cfg.eval.size = 0  # the drift alarm compares evaluations of the same questions
    cfg.eval.sampled = False
    cfg.checkpoint.every = cfg.steps
    cfg.log.trackers = ()
    cfg.log.token_logprobs = "off"
    cfg.update_from_flattened_dict(ARMS[arm])
    return cfg
