"""Benchmarks during a run (``eval.benchmarks``): k answers per problem by the policy, graded as by ``ropd eval``.

They differ from an evaluation of the finished run: answers have at most ``sampling.max_tokens`` tokens, there are
``eval.benchmarks_k`` of them per problem, and only the metrics are stored. ``checkpoint.best_by`` can name one of them;
then checkpoints are selected on it, and it is not a test set of the run.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ropd_jax.data.questions import Questions, Tokens
from ropd_jax.evaluation.answers import Answer, by_problem
from ropd_jax.evaluation.benchmarks import Loaded, benchmark_of, load_benchmark
from ropd_jax.evaluation.grading import check_installed, grade_answers
from ropd_jax.evaluation.stats import clustered
from ropd_jax.parallel import hosts
from ropd_jax.sampling.engine import EngineConfig
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.training.sections import EvalConfig
from ropd_jax.types import THINK, RolloutGroup, UserError

if TYPE_CHECKING:
    from ropd_jax.text.tokenizer import Tokenizer

MULTIPLE = 16  # of a prompt's positions


@dataclasses.dataclass(frozen=True)
class RunBenchmark:
    """One benchmark of ``eval.benchmarks``: its problems, with their lengths under the student's chat template."""

    loaded: Loaded
    questions: Questions

    @property
    def prompt_len(self) -> int:
        """Positions of its longest prompt."""
        return -(-self.questions.longest // MULTIPLE) * MULTIPLE


def check_names(how: EvalConfig) -> None:
    """Raises UserError for a name in ``eval.benchmarks`` that is unknown, given twice, or judged by a model."""
    for name in how.benchmarks:
        if benchmark_of(name).grader == "healthbench":
            raise UserError(
                f"eval.benchmarks has {name!r}, which is graded by a paid model; expected benchmarks that a program "
                "grades: remove it, and use ropd eval after the run"
            )
    if len(set(how.benchmarks)) < len(how.benchmarks):
        raise UserError(f"eval.benchmarks={how.benchmarks!r} names a benchmark twice; expected each once")


def load_benchmarks(how: EvalConfig, tokenizer: Tokenizer) -> tuple[RunBenchmark, ...]:
    """The benchmarks of a run. Collective: every host must call it.

    Raises:
        UserError: no data, a missing grader, or hosts that read different rows.
    """
    found = []
    for name in how.benchmarks:
        loaded = load_benchmark(name, how.benchmarks_data, limit=how.benchmarks_limit or None)
        if hosts.index() == 0:
            check_installed(loaded.benchmark)
        tokens = Tokens(tokenizer)
        longest = max(len(tokens.of(p)) for p in loaded.prompts)
        found.append(RunBenchmark(loaded, Questions(loaded.prompts, {}, longest, tokens)))
    hosts.check_same("eval.benchmarks", {b.loaded.benchmark.name: b.loaded.found.sha for b in found})
    return tuple(found)


def engine_of(benchmark: RunBenchmark, how: EvalConfig, engine: EngineConfig, shards: int) -> EngineConfig:
    """The run's engine with the benchmark's sampling, ``eval.prompts_at_once`` rows and its own prompt length."""
    k, own = how.benchmarks_k, benchmark.loaded.benchmark.sampling
    prompts = -(-max(how.prompts_at_once // k, 1) // shards) * shards
    rule = SamplingRule(own.temperature, 0, own.top_p)
    return dataclasses.replace(engine, rollouts=k, prompts=prompts, prompt_len=benchmark.prompt_len, rule=rule)


def graded(loaded: Loaded, groups: list[RolloutGroup]) -> dict[str, Any]:
    """The metrics of a benchmark from groups of answers, in any order."""
    answers = [
        Answer(g.prompt.id, THINK + r.text if r.opened else r.text, r.finish_reason == "length")
        for g in groups
        for r in g.rollouts
    ]
    outcomes = grade_answers(loaded.benchmark, {p.id: p for p in loaded.prompts}, answers)
    values = []
    for places in by_problem(answers).values():
        known = [v for i in places if (v := outcomes[i].value) is not None]
        values.append(sum(known) / len(known) if known else None)
    estimate, name = clustered(values), loaded.benchmark.name
    return {
        f"eval/{name}": estimate.value,
        f"eval/{name}_low": estimate.low,
        f"eval/{name}_high": estimate.high,
        f"eval/{name}_n": estimate.n,
        f"eval/{name}_ungraded": estimate.ungraded,
        f"eval/{name}_truncated_frac": sum(bool(a.truncated) for a in answers) / max(len(answers), 1),
    }
