"""Every method on the quickstart's student, task and scripted teacher: only the method differs.

    ropd train --config mini:method=t_judge,setting=slips --workdir runs/t_judge
    make mini                                                            every method, setting and seed: one table

method    ropd, sft, t_judge, ovd, ovd_filter, gad, rlvr, rar, rar_implicit, lopd, lopd_full, exopd; dropout and
          per_criterion (of ropd), ruler, evolving, cort, cripo, rgsd, rcsd, rlcf (docs/methods.md)
setting   a teacher that should be learned from, but not imitated:
            skips   its references give the first line and then the answer; a student with this style is mostly wrong
            slips   15 % of its lines have a small error, which is carried on to its answer
            prose   right and complete, in one running sentence that the student has never seen
          plain     a teacher as good as the task allows, in the student's own words
          judge     plain, but its verdicts and grades err as those of a real 1.5B model did on such sums
                    (measured by ropd calibrate-judge; docs/real_judge.md)
variant   grpo, dr_grpo, dapo, gspo: the GRPO family; none is the quickstart's (released ROPD's mixture)
teacher   checkpoint of the white-box teacher of lopd, lopd_full and exopd (experiments/mini_lab.py makes it)

All methods start from the same cold start, see the same prompts in the same order and share one learning rate, 1e-4;
nothing was tuned for any of them. Hardware: 2 CPU cores. Time: half a minute per run. Expected: experiments/README.md.
"""

from __future__ import annotations

import pathlib

from ropd_jax.configs import load_config
from ropd_jax.types import UserError

HERE = pathlib.Path(__file__).parent
METHODS = {  # name -> keys of the config
    "ropd": {},
    "sft": {"method": "sft"},
    "t_judge": {"method": "t_judge"},
    "ovd": {"method": "ovd"},
    "ovd_filter": {"method": "ovd", "ovd.mode": "filter"},
    "gad": {"method": "gad", "gad.warmup_steps": 8, "gad.lr": 1e-3, "gad.clip_norm": 1.0},
    "rlvr": {"method": "rlvr"},
    "rar": {"method": "rar"},
    "rar_implicit": {"method": "rar", "rar.mode": "implicit"},
    "lopd": {"method": "lopd"},
    "lopd_full": {"method": "lopd", "lopd.mode": "full"},
    "exopd": {"method": "exopd"},
    "dropout": {"ropd.dropout": 0.3},
    "per_criterion": {"ropd.advantage": "per_criterion", "loss.normalize_std": True},
    "ruler": {"method": "ruler"},
    "evolving": {"method": "evolving"},
    "cort": {"method": "cort"},
    "cripo": {"method": "cripo", "cripo.warmup_steps": 8},
    "rgsd": {"method": "rgsd"},
    "rcsd": {"method": "rcsd"},
    "rlcf": {"method": "rlcf"},
}
SETTINGS = {
    "plain": {},
    "skips": {"teacher.scripted.style": "skips"},
    "slips": {"teacher.scripted.slip_rate": 0.15},
    "prose": {"teacher.scripted.style": "prose"},
    "judge": {"teacher.scripted.noise": str(HERE / "results" / "real_judge" / "sums_noise.json")},
}
TAUGHT = ("skips", "slips", "prose")  # the settings of `make mini`
UNTAUGHT = ("rlvr", "lopd", "lopd_full", "exopd")  # without a text teacher, so the setting changes nothing
WHITE_BOX = ("lopd", "lopd_full", "exopd")
VARIANTS = {
    "": {},
    "grpo": {"loss.normalize_std": True, "loss.aggregation": "seq_mean", "loss.clip_high": 0.2, "loss.kl_coef": 0.04},
    "dr_grpo": {"loss.aggregation": "seq_mean_token_sum_norm", "loss.clip_high": 0.2},
    "dapo": {"loss.normalize_std": True, "sampling.resample": 2, "loss.overlong": "shape", "loss.overlong_buffer": 12},
    "gspo": {
        "loss.normalize_std": True,
        "loss.aggregation": "seq_mean",
        "loss.ratio": "sequence",
        "loss.clip_low": 3e-4,
        "loss.clip_high": 4e-4,
    },
}


def get_config(arg: str = ""):
    given = dict(part.partition("=")[::2] for part in arg.split(",") if part)
    known = {"method": METHODS, "setting": SETTINGS, "variant": VARIANTS}
    for key, value in given.items():
        if key not in (*known, "teacher") or (key in known and value not in known[key]):
            choices = {k: list(v) for k, v in known.items()}
            raise UserError(f"{key}={value!r} in experiments/mini.py:{arg}; expected teacher=DIR or one of {choices}")
    method, setting = given.get("method", "ropd"), given.get("setting", "plain")
    cfg = load_config(str(HERE / "quickstart.py")).unlock()
    cfg.steps = 32
    cfg.sampling.max_tokens = 60  # a sum in prose is longer than a sum in lines
    cfg.eval.size = 200  # during training; before and after, all 500
    cfg.checkpoint.every = cfg.steps  # a run is short: a killed one starts from scratch
    cfg.optim.row_len, cfg.optim.microbatch = 80, 16  # packed: an update takes a third of the time (lab log)
    cfg.log.trackers = ()
    if method in WHITE_BOX:
        cfg.lopd.checkpoint = given.get("teacher", "runs/mini/teacher")
    for keys in (SETTINGS[setting], METHODS[method], VARIANTS[given.get("variant", "")]):
        cfg.update_from_flattened_dict(keys)
    return cfg
