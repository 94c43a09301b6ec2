"""The page of metrics: what a line of ``metrics.jsonl`` can hold.

A part of a name in capitals changes from run to run: ``eval/NAME_low`` is ``eval/accuracy_low``, and so on. What the
code says of its own metrics is taken from there: the counters of the teacher from `TeacherStats`, ``health/...`` from
`ropd_jax.teacher.health`. tests/test_docs.py compares the page with the names in the code and with a run.
"""

from __future__ import annotations

import dataclasses
import re

from docs.generator.markdown import attributes, table, two_columns
from ropd_jax.teacher import health
from ropd_jax.teacher.traffic.stats import TeacherStats

HEAD = """# Metrics

Each line of `metrics.jsonl` has a `step` and some of these numbers; the trackers of `log.trackers` get the same. The
step is the number of finished steps, so an evaluation before the first one is step 0. A value that is not known is
`null`; it never becomes 0. `ropd.open_run(DIR).metrics()` reads the file, and `.metrics_frame()` returns it as a pandas
table.

A part of a name in capitals stands for something: a role (`reference`, `rubric`, `verify`, `score`, `judge`), a cause,
a source, a benchmark. `KEY` is a role or a cause.
"""

ROOMS: dict[str, tuple[str, dict[str, str]]] = {  # room -> (title, name -> meaning)
    "reward": (
        "Rewards",
        {
            "mean": "mean reward of the scored rollouts of the step",
            "std": "their standard deviation over the whole step",
            "reference_mean": "mean weighted pass rate of the references, under the same rubrics",
            "all_criteria_mean": "mean reward under the whole rubric, if criteria are hidden or weighted",
            "rubric_mean": "mean of the method's part of the reward (`rewards.exact_weight`)",
            "exact_mean": "mean of the exact part of the reward (`rewards.exact_weight`)",
            "without_exact_frac": "share of the rollouts without an exact grade (`rewards.exact_weight`)",
            "unscored_CAUSE": "rollouts of the step that are unscored for this cause",
        },
    ),
    "group": (
        "Groups",
        {
            "invalid_frac": "share of groups with fewer scored rollouts than `loss.min_scored`; they are left out",
            "zero_variance_frac": "share of groups whose scored rollouts all have the same reward: no direction",
            "deferred": "groups that a later step takes over (`stream.straggler_timeout_s`)",
            "resampled": "prompts that were drawn in place of groups of equal rewards (`sampling.resample`)",
            "replaced": "groups of equal rewards that were replaced by them",
        },
    ),
    "sample": (
        "Rollouts",
        {
            "accuracy": "share of right answers among those that the exact grader knows; no reward comes from it",
            "tokens_per_s": "sampled tokens divided by the seconds of sampling",
            "length_mean": "mean tokens of a rollout",
            "truncated_frac": "share of rollouts that were cut at `sampling.max_tokens`",
            "retokenized_frac": "share of rollouts whose text would be tokenized to other tokens",
            "cut_mass": "probability that `sampling.top_k` and `sampling.top_p` left out, mean over tokens",
        },
    ),
    "update": (
        "The update",
        {
            "loss": "the loss; near 0 while the policy that samples is the one that is updated",
            "grad_norm": "norm of the gradient before clipping",
            "entropy": "entropy of the policy, nats per token",
            "tokens": "completion tokens of the update",
            "real_frac": "share of the positions of the batch that hold a token",
            "count": "optimizer updates in the step",
            "logp_gap": "mean |log-prob of the learner − of the sampler| of a sampled token, before the update",
            "logp_gap_max": "the largest of these",
            "clip_frac": "share of tokens whose ratio was clipped",
            "capped_frac": "share of tokens whose importance weight was capped (`loss.is_cap`, `stream.cap`)",
            "kl": "KL to the initial student per token (`loss.kl_coef`)",
            "told_gap": "log-prob of a token told the rubric minus not told it, mean (rgsd, rcsd)",
            "token_weight_spread": "mean |weight − 1| of a token (cort)",
            "flipped_frac": "share of tokens whose sign of the advantage was flipped (cripo)",
            "unexplored_gap": "divergence from the student told the unexplored criteria, mean (cripo)",
            "teacher_gap": "log-prob of the student minus of the white-box teacher, mean (lopd, exopd)",
            "divergence": "divergence over the vocabulary from the white-box teacher (`lopd.mode=full`) or from the "
            "student told the rubric (`rgsd.mode=full`, `top_k`), mean per token in nats",
        },
    ),
    "eval": (
        "Evaluation",
        {
            "NAME": "`accuracy` (greedy), `sampled_accuracy` (one sample per question) or a benchmark's mean",
            "NAME_low": "lower end of its 95 % interval",
            "NAME_high": "upper end of its 95 % interval",
            "NAME_n": "graded answers; problems of a benchmark",
            "NAME_ungraded": "answers or problems that the grader could not decide",
            "NAME_truncated_frac": "share of answers that were cut at the token limit",
            "judge": "mean grade of the held-out judge, from 0 to 1 (`teacher.judge`)",
            "judge_error": "its standard error",
            "judge_n": "answers that it graded",
            "judge_ungraded": "answers that it left without a grade",
            "drift": "1 if the drift alarm fired at this evaluation, else 0",
            "drift_since": "the step of the best evaluation so far, with which it compares",
            "drift_MEASURE_change": "change since then of `accuracy` or `judge`",
            "drift_reward_change": "change of the mean reward since then",
        },
    ),
    "gold": (
        "A judge whose faults are known",
        {
            "reward_mean": "mean reward that the scripted judge would give without its biases",
            "gap_mean": "how far the rewards are above that",
            "quality_mean": "quality of the answers, without any rubric",
        },
    ),
    "time": (
        "Time, in seconds",
        {
            "step_s": "the step from its first to its last moment",
            "sample_s": "sampling; prefill included",
            "teacher_wait_s": "waiting for the teacher with nothing else to do",
            "update_s": "the update",
            "checkpoint_s": "how long a save held the run up",
            "checkpoint_write_s": "from then to the complete checkpoint, in the background",
        },
    ),
    "source": (
        "Sources of a mixture",
        {
            "NAME_groups": "groups of the step that come from this source (`data.sources`)",
            "NAME_share": "their share",
            "NAME_reward_mean": "their mean reward",
        },
    ),
    "curriculum": (
        "The curriculum (`data.curriculum`)",
        {
            "seen_frac": "share of the prompts with a known pass rate",
            "pass_rate": "mean pass rate of these",
            "factor_min": "smallest factor by which a prompt's chance is changed",
            "factor_max": "largest such factor",
        },
    ),
    "context": (
        "Scores under another prompt (rgsd, rcsd, cort, cripo)",
        {
            "NAME_frac": "share of the rollouts that were scored under this context",
            "too_long_frac": "share of the rollouts with a told rubric that were too long to be scored",
        },
    ),
    "gad": (
        "The discriminator (gad)",
        {
            "loss": "its loss",
            "grad_norm": "norm of its gradient before clipping",
            "pairs_right_frac": "share of pairs in which it prefers the teacher's answer",
        },
    ),
}
TEACHER = {  # what is not a counter of `TeacherStats`
    "unscored_frac": "share of the step's rollouts without a score",
    "failed_frac": "share of invalid groups in the window of `teacher.failed_window` groups",
    "concurrency": "slots for requests at the moment",
    "cost_usd": "dollars since the start of the run; `null` if a model has no price",
    "cost_usd_ROLE": "dollars of one role",
    "step_cost_usd": "dollars of this step",
    "spent_calls": "requests sent to the provider since the start, retries included",
    "spent_tokens": "input and output tokens since the start",
    "unpriced_calls": "requests to models without a price",
    "unmetered_calls": "replies without token counts",
    "unmetered_usd": "at most what these cost",
}


def rooms() -> dict[str, tuple[str, dict[str, str]]]:
    """room -> (title, name -> meaning), including the descriptions in the code."""
    counted = attributes(TeacherStats.__doc__)
    counters: dict[str, str] = {}
    for field in dataclasses.fields(TeacherStats):
        if field.name == "gauges":
            continue
        counters[field.name] = counted[field.name].rstrip(".")
        if field.name != "duplicate_references":
            counters[f"{field.name}_KEY"] = "the same for one role or cause"
    parts = {
        "health": ("Health of the criteria", _health()),
        "teacher": ("The teacher, since the start of the run", {**TEACHER, **counters}),
    }
    found = {**ROOMS, **parts}
    order = ("reward", "group", "sample", "update", "eval", "time", "health", "teacher")
    return {room: found[room] for room in (*order, *(room for room in found if room not in order))}


def names() -> list[str]:
    """Every name on the page, ``room/name``."""
    return [f"{room}/{name}" for room, (_, rows) in rooms().items() for name in rows]


def pattern(name: str) -> re.Pattern[str]:
    """The regular expression of a name with parts in capitals."""
    return re.compile(re.sub(r"[A-Z]+", r"[\\w.:,=-]+", re.escape(name)))


def page() -> str:
    """The page."""
    parts = [HEAD]
    for room, (title, rows) in rooms().items():
        both = {name: f", `{room}/{name}_KEY`" if f"{name}_KEY" in rows else "" for name in rows}
        shown = [(f"`{room}/{n}`{both[n]}", _cap(m)) for n, m in rows.items() if not n.endswith("_KEY")]
        parts += [f"## {title}", table(("Metric", "Meaning"), shown)]
    return "\n\n".join(parts) + "\n"


def _health() -> dict[str, str]:
    rows = two_columns(health.__doc__)
    extra = {
        "criteria_mean": "mean number of criteria of a rubric",
        "repeated_groups": "groups that were verified twice (`teacher.health.repeat_frac`)",
    }
    return {**{name: text.replace("``", "`") for name, text in rows.items()}, **extra}


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]
