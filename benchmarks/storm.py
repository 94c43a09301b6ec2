"""A storm: many groups with a teacher that fails every fifth call, in every possible way.

    make storm        10,000 groups, then the adaptive limit next to fixed ones; minutes on one CPU core

Each group is compared with an oracle, the same teacher without faults: its references must be among the oracle's, its
rubric must be the one that the oracle induces from these references, and every verdict must be the oracle's. A missing
verdict must have a cause. All waiting is in virtual time (``benchmarks.virtual_time``), so a hang of two minutes costs
nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import itertools
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Iterator

import numpy as np

from benchmarks import virtual_time
from ropd_jax.teacher import (
    ChatReply,
    ChatRequest,
    Teacher,
    TeacherStats,
    TransientError,
    make_client,
)
from ropd_jax.teacher.judge_group import judge
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.teacher.scripted.server import running
from ropd_jax.teacher.scripted.tasks import uniform
from ropd_jax.teacher.traffic.limits import Limits
from ropd_jax.teacher.traffic.retries import LimitedClient
from ropd_jax.types import Judgement, Message, Prompt

FAULTS = (
    "rate_limited", "unavailable", "server_error", "timeout", "hang", "bad_request", "context", "blocked", "refused",
    "truncated", "empty", "no_schema", "broken_json", "prose", "answer_missing", "verdict_short", "wrong_index",
)  # fmt: skip
FREE_TEXT = 11  # the first ones also apply to free text: half an essay cannot be told from a whole one
MEAN_S = 8.0  # of a call


# ------------------------------------------------------------------------------------------------------- groups


@dataclasses.dataclass
class Storm:
    """The results of the groups.

    Attributes:
        scored: groups with at least two scored rollouts. lost: the others, which have a cause.
        wrong: what differed from the oracle, or had neither a reward nor a cause. Must stay empty.
        causes: unscored rollouts by cause.
        faults: faulty calls by kind. calls: all calls that reached the server.
        memory_mb: resident memory after every 500 groups.
    """

    scored: int = 0
    lost: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)
    causes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    faults: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    calls: int = 0
    memory_mb: list[float] = dataclasses.field(default_factory=list)
    hours: float = 0.0
    retries: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def growth_mb(self) -> float:
        """Growth of the memory over the second half, by a straight line; MB per thousand groups."""
        half = self.memory_mb[len(self.memory_mb) // 2 :]
        return float(np.polyfit(np.arange(len(half)) / 2, half, 1)[0]) if len(half) > 2 else math.nan


def groups(n: int, seed: int) -> Iterator[tuple[Prompt, tuple[str, ...]]]:
    """n chain sums, each with four answers of a student: worked out, without steps, wrong, with a slip."""
    rng = random.Random(seed)
    for i in range(n):
        terms = [rng.randrange(2, 99) for _ in range(rng.randrange(3, 6))]
        signs = [rng.choice("+-") for _ in terms[1:]]
        question = f"{terms[0]} " + " ".join(f"{s} {t}" for s, t in zip(signs, terms[1:], strict=True)) + " ="
        slip = rng.randrange(1, len(terms))

        def worked(off: int, terms=terms, signs=signs, slip=slip) -> str:
            total, lines = terms[0], []
            for k, (sign, term) in enumerate(zip(signs, terms[1:], strict=True), 1):
                now = total + (term if sign == "+" else -term) + (off if k == slip else 0)
                lines.append(f"{total} {sign} {term} = {now}")
                total = now
            return "\n".join([*lines, f"Answer: {total}"])

        right = worked(0)
        answers = (right, right.splitlines()[-1], f"Answer: {rng.randrange(500, 999)}", worked(rng.choice((-1, 1, 10))))
        yield Prompt(f"sum-{i}", (Message("user", f"State the final answer: {question}"),)), answers


def storm(
    n: int,
    *,
    fault_rate: float = 0.2,
    seed: int = 0,
    at_once: int = 64,
    references: int = 2,
    provider: str = "scripted",
    spoiled: float = 0.0,
) -> Storm:
    """Judge n groups, ``at_once`` at a time, and compare each with the oracle.

    ``provider`` openai or gemini: through its SDK and HTTP on loopback, in real time (a hang then ends after a second).
    ``spoiled`` is a share of inverted verdicts, to check that the oracle detects them.
    """
    out = Storm()
    http = provider != "scripted"

    def fault(request: ChatRequest, attempt: int) -> str | None:
        out.calls += 1
        text = request.messages[-1].content
        if uniform("storm", seed, text, request.sample_index, attempt) >= fault_rate:
            return None
        kinds = FAULTS[: FREE_TEXT if request.json_schema is None else None]
        kinds = tuple(k for k in kinds if not http or k != "no_schema")  # over HTTP it switches the schema off for good
        kind = kinds[int(uniform("kind", seed, text, request.sample_index, attempt) * len(kinds))]
        out.faults[kind] += 1
        return kind

    @contextlib.asynccontextmanager
    async def opened(stats: TeacherStats) -> AsyncIterator[LimitedClient]:
        if not http:
            scripted = ScriptedClient(latency_s=MEAN_S, fault=fault, wrong_verdict_rate=spoiled)
            yield LimitedClient(scripted, Limits(), stats=stats)
            return
        async with running(ScriptedClient(fault=fault)) as root:
            url = root + "/v1" if provider == "openai" else root
            short = dict(timeout_s=1.0, first_wait_s=0.01, max_wait_s=0.1)
            client = make_client(provider=provider, base_url=url, stats=stats, **short)
            yield client
            await client.close()

    async def run() -> None:
        stats = TeacherStats()
        async with opened(stats) as client:
            await judge_all(client, stats)

    async def judge_all(client: LimitedClient, stats: TeacherStats) -> None:
        teacher = Teacher(client, references_m=references, stats=stats, max_answer_chars=60_000)
        oracle = Teacher(ScriptedClient(), references_m=references)
        source = iter(groups(n, seed))
        done = itertools.count(1)

        async def work() -> None:
            for prompt, answers in source:
                judgement = await judge(teacher, prompt, answers, step=0)
                await _check(out, oracle, prompt, answers, judgement)
                if next(done) % 500 == 0:
                    out.memory_mb.append(_resident_mb())

        async with asyncio.TaskGroup() as workers:
            for _ in range(at_once):
                workers.create_task(work())
        out.hours = asyncio.get_running_loop().time() / 3600
        out.retries = dict(stats.retries)
        assert not stats.cut, "nothing here is long enough to be cut"

    asyncio.run(run()) if http else virtual_time.run(run())
    return out


async def _check(out: Storm, oracle: Teacher, prompt: Prompt, answers: tuple[str, ...], got: Judgement) -> None:
    def wrong(what: str) -> None:
        out.wrong.append(f"{prompt.id}: {what}")

    scored = sum(r is not None for r in got.rewards)
    out.scored += scored >= 2
    out.lost += scored < 2
    out.causes.update(c for c in got.causes if c is not None)
    if len(got.rewards) != len(answers) or len(got.causes) != len(answers):
        wrong("not one reward and one cause for each rollout")
    if any((r is None) != bool(c) for r, c in zip(got.rewards, got.causes, strict=True)):
        wrong("a rollout with neither reward nor cause, or with both")
    known = iter(await oracle.references(prompt))
    if not all(text in known for text in got.references):
        wrong("a reference that the teacher did not write")
    if got.rubric is None:
        if scored:
            wrong("a reward without a rubric")
        return
    if got.rubric != await oracle.induce_rubric(prompt, got.references, answers):
        wrong("another rubric")
    right = await oracle.verify(prompt, got.rubric, answers + got.references, key="oracle")
    for reward, expected in zip(got.rewards, right.scores(got.rubric), strict=False):
        if reward is not None and reward != expected:
            wrong(f"reward {reward}, the oracle's is {expected}")
    for verdicts, expected in zip(got.passed + got.reference_passed, right.passed, strict=False):
        if verdicts is not None and verdicts != expected:
            wrong("another verdict")


def _resident_mb() -> float:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096 / 1e6


# -------------------------------------------------------------------------------------------------- throughput


class HiddenCapacity:
    """Serves up to ``capacity`` calls at once, log-normal times of mean 8 s, and answers 429 to any more."""

    def __init__(self, capacity: int, seed: int = 1):
        self._capacity, self._running, self.refused = capacity, 0, 0
        self._latency = random.Random(seed)

    async def chat(self, request: ChatRequest) -> ChatReply:
        if self._running >= self._capacity:
            self.refused += 1
            await asyncio.sleep(0.05)
            raise TransientError("busy", cause="rate_limited")
        self._running += 1
        try:
            await asyncio.sleep(self._latency.lognormvariate(math.log(MEAN_S) - 0.125, 0.5))
            return ChatReply("ok")
        finally:
            self._running -= 1

    async def close(self) -> None:
        """Nothing to close."""


def calls_per_s(capacity: int, low: int, high: int, n: int = 800, *, started: bool = True) -> float:
    """Calls per (virtual) second for n calls, all waiting from the start, with slots between low and high.

    Args:
        started: n calls have been answered before, so that the limit has grown to what the server can handle, as in all
            steps of a run but the first.
    """

    async def run() -> float:
        limits = Limits(concurrency=high, min_concurrency=low, attempts=1_000)
        client = LimitedClient(HiddenCapacity(capacity), limits)
        now = asyncio.get_running_loop().time
        ends: list[float] = []

        async def call(i: int) -> None:
            await client.chat(ChatRequest("verify", (Message("user", str(i)),), "m"))
            ends.append(now())

        before = n if started else 0
        await asyncio.gather(*(call(i) for i in range(before + n)))
        return n / (ends[-1] - (ends[before - 1] if before else 0.0))

    return virtual_time.run(run())


def adaptive_share(capacity: int, n: int = 800, *, started: bool = True) -> tuple[float, int, float]:
    """(throughput of the adaptive limit as a share of the best fixed one, that limit, its calls per second)."""
    candidates = (capacity // 2, capacity - 1, capacity, capacity + 1)
    fixed = {k: calls_per_s(capacity, k, k, n, started=started) for k in candidates}
    best = max(fixed, key=fixed.__getitem__)
    default = Limits()
    adaptive = calls_per_s(capacity, default.min_concurrency, default.concurrency, n, started=started)
    return adaptive / fixed[best], best, fixed[best]


def main() -> int:
    """Print the figures; 1 if anything was lost, wrong or slow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=10_000)
    parser.add_argument("--fault_rate", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    start = time.monotonic()
    s = storm(args.groups, fault_rate=args.fault_rate, seed=args.seed)
    print(f"{args.groups} groups in {time.monotonic() - start:.0f} s ({s.hours:.1f} h of virtual time)")
    print(f"{s.calls} calls, {sum(s.faults.values())} of them faulty ({sum(s.faults.values()) / s.calls:.1%}):")
    print("  " + ", ".join(f"{kind} {n}" for kind, n in s.faults.most_common()))
    print("retries: " + ", ".join(f"{k} {v}" for k, v in sorted(s.retries.items(), key=lambda kv: -kv[1])))
    print(f"scored {s.scored}, unscored with a cause {s.lost}, lost {args.groups - s.scored - s.lost}")
    print(f"wrong {len(s.wrong)}" + "".join(f"\n  {w}" for w in s.wrong[:10]))
    print("unscored rollouts: " + ", ".join(f"{cause} {n}" for cause, n in s.causes.most_common()))
    if s.memory_mb:
        growth = f"{s.growth_mb:+.2f} MB per thousand groups in the second half"
        print(f"memory {s.memory_mb[0]:.0f} -> {s.memory_mb[-1]:.0f} MB; {growth}")
    shares = []
    for capacity in (6, 10, 16, 32, 40):
        share, best, rate = adaptive_share(capacity)
        shares.append(share)
        first = adaptive_share(capacity, started=False)[0]
        print(
            f"hidden capacity {capacity:>2}: best fixed limit {best}, {rate:.2f} calls/s; adaptive {share:.1%} of it, "
            f"{first:.1%} over the first 800 calls of a run"
        )
    return int(bool(s.wrong) or s.scored + s.lost != args.groups or min(shares) < 0.9 or s.growth_mb > 1.0)


if __name__ == "__main__":
    raise SystemExit(main())
