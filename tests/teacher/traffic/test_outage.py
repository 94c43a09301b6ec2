"""Outages: calls wait for an unreachable server and lose nothing; other failures are given up as before.

The times are virtual. A run that waits for a real server that is down: ``tests/runs/test_outage.py``.
"""

from __future__ import annotations

import asyncio
import logging

import pytest

from benchmarks import virtual_time
from ropd_jax.teacher import (
    BudgetError,
    ChatReply,
    ChatRequest,
    ConfigurationError,
    OutageError,
    Teacher,
    TeacherStats,
    TransientError,
)
from ropd_jax.teacher.judge_group import judge
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.teacher.traffic import outage
from ropd_jax.teacher.traffic.limits import Limits
from ropd_jax.teacher.traffic.retries import LimitedClient
from ropd_jax.types import Message


def ask(text, purpose="verify", model="m"):
    return ChatRequest(purpose, (Message("user", str(text)),), model)


class Away:
    """Takes one second per call.

    Between ``begin`` and ``end`` every call fails with ``cause``, including those in flight.
    """

    def __init__(self, begin, end, cause="connection", inner=None):
        self.begin, self.end, self.cause, self.inner = begin, end, cause, inner
        self.sent, self.asked = [], []

    async def chat(self, request):
        now = asyncio.get_running_loop().time
        (self.asked if request.messages == outage.QUESTION else self.sent).append(now())
        if not self.begin <= now() < self.end:
            await asyncio.sleep(1.0)
        if self.begin <= now() < self.end:
            if self.cause == "timeout":
                await asyncio.sleep(3600)
            raise TransientError(f"cannot reach the server ({self.cause})", cause=self.cause)
        if self.inner is not None and request.messages != outage.QUESTION:
            return await self.inner.chat(request)
        return ChatReply(request.messages[0].content)

    async def close(self):
        pass


def run_all(server, requests, *, every=0.0, **limits):
    """(replies or errors, seconds, counters); one request starts every ``every`` seconds."""
    stats = TeacherStats()

    async def run():
        client = LimitedClient(server, Limits(**{"outage_wait_s": 1800.0} | limits), stats=stats)

        async def one(i, request):
            await asyncio.sleep(i * every)
            return await client.chat(request)

        results = await asyncio.gather(*(one(i, r) for i, r in enumerate(requests)), return_exceptions=True)
        return results, asyncio.get_running_loop().time()

    return *virtual_time.run(run()), stats


@pytest.mark.parametrize("cause", outage.CAUSES)
@pytest.mark.parametrize("begin", [0.0, 7.5])
def test_two_minutes_without_a_server_lose_no_call(cause, begin):
    server = Away(begin, begin + 120.0, cause)
    results, seconds, stats = run_all(server, [ask(i) for i in range(60)], every=1.0, timeout_s=10.0)
    assert [r.text for r in results] == [str(i) for i in range(60)]
    # A server that lets calls hang is back before they have used up their attempts, which take longer and longer.
    assert stats.outages == ({} if cause == "timeout" else {cause: 1}) and stats.waiting_for == {}
    assert seconds < begin + 120.0 + 15.0 + 60.0 + (80.0 if cause == "timeout" else 0.0)


def test_while_it_is_away_only_the_small_question_is_sent():
    server = Away(0.0, 600.0)
    run_all(server, [ask(i) for i in range(40)], min_concurrency=40)
    down = [t for t in server.sent if t < 600.0]
    assert len(down) == 40 * 5 and max(down) < 40.0  # the attempts of each, before the outage is known
    assert 30 < len(server.asked) < 60  # at least once in 15 seconds


def test_the_wait_says_who_since_when_and_how_long(caplog):
    caplog.set_level(logging.WARNING, "ropd_jax.teacher.traffic.outage")
    run_all(Away(0.0, 120.0), [ask(i) for i in range(3)])
    lines = [r.getMessage() for r in caplog.records if r.name == outage.__name__]
    assert "'m' has been unreachable since " in lines[0] and "3 calls wait" in lines[5]
    assert "for up to another 29:" in lines[0] and lines[0].endswith("cannot reach the server (connection)")
    assert 15 <= len(lines) <= 26  # every five seconds
    assert "'m' answers again, after 2:" in lines[-1]


def test_the_progress_line_is_there_while_it_lasts():
    stats, seen = TeacherStats(), []

    async def run():
        client = LimitedClient(Away(0.0, 100.0), Limits(outage_wait_s=600.0), stats=stats)
        teacher = Teacher(client, stats=stats)
        call = asyncio.create_task(client.chat(ask("x")))
        for _ in range(12):
            await asyncio.sleep(10.0)
            seen.append(teacher.waiting_for)
        await call

    virtual_time.run(run())
    assert "waiting for m since " in seen[5] and "connection" in seen[5] and "at most 9:" in seen[5]
    assert seen[-1] == ""


def test_after_the_longest_wait_the_run_stops_instead_of_losing_groups():
    results, seconds, _ = run_all(Away(0.0, 1e9), [ask(i) for i in range(5)], outage_wait_s=300.0)
    assert all(isinstance(r, OutageError) and isinstance(r, ConfigurationError) for r in results)
    assert 300.0 <= seconds < 330.0
    text = str(results[0])
    assert "'m' could not be reached for 5:" in text and "teacher.outage_wait_s=300" in text and "same command" in text


def test_without_a_wait_calls_are_given_up():
    results, seconds, stats = run_all(Away(0.0, 1e9), [ask(i) for i in range(5)], outage_wait_s=0.0)
    assert all(isinstance(r, TransientError) for r in results) and seconds < 60.0 and stats.outages == {}


@pytest.mark.parametrize("cause", ["rate_limited", "server_error", "overloaded"])
def test_a_server_that_refuses_is_there(cause):
    results, _, stats = run_all(Away(0.0, 1e9, cause), [ask(i) for i in range(5)])
    assert all(isinstance(r, TransientError) for r in results) and stats.outages == {}


class Poison(Away):
    """Answers everything except the texts in ``bad``."""

    def __init__(self, bad, cause):
        super().__init__(0.0, 0.0)
        self.bad, self.how = bad, cause

    async def chat(self, request):
        if request.messages[0].content in self.bad:
            await asyncio.sleep(1.0)
            raise TransientError("x", cause=self.how)
        return await super().chat(request)


@pytest.mark.parametrize("cause", outage.CAUSES)
@pytest.mark.parametrize("others", [0, 30])
def test_a_request_that_breaks_the_server_each_time_is_given_up(cause, others):
    server = Poison({"bad"}, cause)
    results, seconds, stats = run_all(server, [ask("bad"), *(ask(i) for i in range(others))], every=1.0)
    assert isinstance(results[0], TransientError) and results[0].cause == cause
    assert all(isinstance(r, ChatReply) for r in results[1:])
    assert stats.outages == {} and seconds < 60.0


def test_one_model_away_stops_no_other():
    class OneAway(Away):
        async def chat(self, request):
            return await (super().chat(request) if request.model == "m" else asyncio.sleep(1.0, ChatReply("ok")))

    server = OneAway(0.0, 120.0, "unavailable")
    times = {}

    async def run():
        client = LimitedClient(server, Limits(outage_wait_s=600.0))

        async def one(i, model):
            await client.chat(ask(i, model=model))
            times[model] = asyncio.get_running_loop().time()

        await asyncio.gather(*(one(i, model) for i in range(20) for model in ("m", "n")))

    virtual_time.run(run())
    assert times["n"] < 60.0 and 120.0 < times["m"] < 180.0


def test_cancelled_callers_leave_nothing_behind():
    async def run():
        stats = TeacherStats()
        client = LimitedClient(Away(0.0, 200.0), Limits(outage_wait_s=600.0), stats=stats)
        calls = [asyncio.create_task(client.chat(ask(i))) for i in range(4)]
        await asyncio.sleep(60.0)
        assert stats.waiting_for
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(0)
        assert not stats.waiting_for and len(asyncio.all_tasks()) == 1
        reply = await client.chat(ask("later"))  # its own outage
        assert reply.text == "later" and stats.outages == {"connection": 2}
        await client.close()

    virtual_time.run(run())


def test_closing_ends_the_wait():
    async def run():
        client = LimitedClient(Away(0.0, 1e9), Limits(outage_wait_s=600.0))
        call = asyncio.create_task(client.chat(ask("x")))
        await asyncio.sleep(60.0)
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await call

    virtual_time.run(run())


def test_a_spent_budget_ends_the_wait():
    class Spent(Away):
        async def chat(self, request):
            if asyncio.get_running_loop().time() > 50.0:
                raise BudgetError("spent")
            return await super().chat(request)

    results, seconds, _ = run_all(Spent(0.0, 1e9), [ask(i) for i in range(5)])
    assert all(isinstance(r, BudgetError) for r in results) and seconds < 90.0


def test_the_limit_starts_low_after_an_outage():
    peaks = []

    class Counting(Away):
        running = 0

        async def chat(self, request):
            self.running += 1
            if asyncio.get_running_loop().time() > 200.0:
                peaks.append(self.running)
            try:
                return await super().chat(request)
            finally:
                self.running -= 1

    server = Counting(20.0, 200.0)
    results, _, _ = run_all(server, [ask(i) for i in range(2000)])
    assert all(isinstance(r, ChatReply) for r in results)
    assert max(peaks[:4]) <= 3 and max(peaks) > 16


def judged_with(server, sum_prompt, sum_answers, n=24):
    """Judgements of n groups, one started every second, through the whole teacher."""

    async def run():
        stats = TeacherStats()
        client = LimitedClient(server, Limits(outage_wait_s=1800.0), stats=stats)
        teacher = Teacher(client, references_m=2, stats=stats)

        async def one(step):
            await asyncio.sleep(step)
            return await judge(teacher, sum_prompt, sum_answers, step=step)

        return await asyncio.gather(*(one(i) for i in range(n)))

    return virtual_time.run(run())


def test_groups_are_judged_in_an_outage_as_without_one(sum_prompt, sum_answers):
    without = judged_with(Away(0.0, 0.0, inner=ScriptedClient()), sum_prompt, sum_answers)
    within = judged_with(Away(5.0, 125.0, inner=ScriptedClient()), sum_prompt, sum_answers)
    assert within == without and all(None not in j.rewards for j in within)
