"""Limits and retries: waits, attempts, adaptive slots, rates, order, time limits, shared and hedged calls.

All times are virtual, so they are exact on any machine.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random

import pytest

from benchmarks import virtual_time
from ropd_jax.teacher import (
    BlockedError,
    ChatReply,
    ChatRequest,
    ConfigurationError,
    ContextError,
    MalformedError,
    RequestError,
    TeacherStats,
    TransientError,
    TruncatedError,
    Usage,
    at_step,
)
from ropd_jax.teacher.traffic.limits import Limits
from ropd_jax.teacher.traffic.retries import LimitedClient
from ropd_jax.types import Message

REQUEST = ChatRequest("verify", (Message("user", "x"),), "m")


def ask(text, purpose="verify"):
    return ChatRequest(purpose, (Message("user", str(text)),), "m")


class Server:
    """Takes ``seconds`` per call (a number, or a function of the call's number); records when each call starts."""

    def __init__(self, seconds=1.0, usage=None):
        self.seconds, self.usage = seconds, usage or Usage()
        self.starts, self.requests, self.ended = [], [], 0
        self.running = self.peak = 0

    async def chat(self, request):
        self.starts.append(asyncio.get_running_loop().time())
        self.requests.append(request)
        seconds = self.seconds(len(self.starts)) if callable(self.seconds) else self.seconds
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await asyncio.sleep(seconds)
            self.ended += 1
            return ChatReply(request.messages[0].content, usage=self.usage)
        finally:
            self.running -= 1

    async def close(self):
        pass


class Capacity(Server):
    """Refuses with 429 all calls beyond ``capacity`` at once."""

    def __init__(self, capacity, seconds, **options):
        super().__init__(seconds, **options)
        self.capacity, self.refused = capacity, 0

    async def chat(self, request):
        if self.running >= self.capacity:
            self.refused += 1
            await asyncio.sleep(0.05)
            raise TransientError("busy", cause="rate_limited")
        return await super().chat(request)


def run_all(server, requests, stats=None, **limits):
    """The replies or errors, and the duration in seconds. Without ``min_concurrency``, all slots exist at once."""
    limits = {"min_concurrency": limits.get("concurrency", 64)} | limits

    async def run():
        client = LimitedClient(server, Limits(**limits), stats=stats)
        results = await asyncio.gather(*(client.chat(r) for r in requests), return_exceptions=True)
        return results, asyncio.get_running_loop().time(), client

    return virtual_time.run(run())


def waits(saying, *replies, **limits):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    client = LimitedClient(saying(*replies), Limits(**limits), sleep=sleep)
    return slept, lambda: asyncio.run(client.chat(REQUEST))


def test_waits_grow_with_jitter_and_are_bounded(saying):
    slept, run = waits(saying, *[TransientError("x")] * 7, "ok", attempts=8, first_wait_s=1.0, max_wait_s=10.0)
    assert run().text == "ok"
    for i, seconds in enumerate(slept):
        assert min(0.5 * 2**i, 10.0) <= seconds <= min(1.5 * 2**i, 10.0)
    assert len(slept) == 7


@pytest.mark.parametrize(
    "asked, least, most", [(7.0, 7.0, 7.7), (120.0, 60.0, 60.0), (0.001, 0.5, 1.5), (None, 0.5, 1.5)]
)
def test_retry_after_is_honoured_within_bounds(saying, asked, least, most):
    slept, run = waits(saying, TransientError("x", retry_after=asked), "ok")
    run()
    assert least <= slept[0] <= most


@pytest.mark.parametrize("error", [MalformedError("x"), BlockedError("x"), RequestError("x"), ConfigurationError("x")])
def test_other_failures_are_not_retried(saying, error):
    slept, run = waits(saying, error, "ok")
    with pytest.raises(type(error)):
        run()
    assert slept == []


def test_a_truncated_reply_is_asked_for_once_more_with_twice_the_limit(saying):
    client = saying(TruncatedError("x"), "whole")
    stats = TeacherStats()
    reply = asyncio.run(LimitedClient(client, stats=stats).chat(REQUEST))
    assert reply.text == "whole" and [r.max_output_tokens for r in client.requests] == [4096, 8192]
    assert stats.retries == {"truncated": 1}
    client = saying(TruncatedError("x"), TruncatedError("y"), "never")
    with pytest.raises(TruncatedError, match=r"x \(a second attempt reached 8192\)"):
        asyncio.run(LimitedClient(client).chat(REQUEST))
    assert len(client.requests) == 2


def test_a_model_that_allows_no_larger_limit_leaves_the_reply_truncated(saying):
    for refusal in (RequestError("too large"), ConfigurationError("max_tokens", cause="unsupported")):
        with pytest.raises(TruncatedError):
            asyncio.run(LimitedClient(saying(TruncatedError("x"), refusal)).chat(REQUEST))
    with pytest.raises(ConfigurationError):
        asyncio.run(LimitedClient(saying(TruncatedError("x"), ConfigurationError("key"))).chat(REQUEST))


class Context:
    """A model with a context of ``size`` tokens whose replies need ``needed`` tokens; the prompt has ``prompt``."""

    def __init__(self, size, prompt, needed, tells=True):
        self.size, self.prompt, self.needed, self.tells = size, prompt, needed, tells
        self.limits = []

    async def chat(self, request):
        limit = request.max_output_tokens
        self.limits.append(limit)
        if self.prompt + limit > self.size:
            room = self.size - self.prompt
            raise ContextError("too long", room=room if self.tells and room > 0 else None)
        if limit < self.needed:
            raise TruncatedError("cut", usage=Usage(self.prompt, limit))
        return ChatReply("whole")

    async def close(self):
        pass


@pytest.mark.parametrize(
    "model, limits, outcome",
    [
        (Context(20_000, 6_000, 1_000), [4096], "whole"),
        (Context(8_192, 6_000, 1_000), [4096, 2192], "whole"),  # lowered to fit
        (Context(20_000, 6_000, 5_000), [4096, 8192], "whole"),
        (Context(12_000, 6_000, 5_000), [4096, 8192, 6000], "whole"),  # twice as much does not fit, a little more does
        (Context(12_000, 6_000, 7_000), [4096, 8192, 6000], "context"),  # all that fits is not enough: in parts
        (Context(8_192, 6_000, 3_000), [4096, 2192], "context"),
        (Context(8_192, 8_000, 100), [4096], "context"),  # 192 tokens are too few to try
        (Context(8_192, 9_000, 100), [4096], "context"),  # the prompt itself is over
        (Context(8_192, 6_000, 1_000, tells=False), [4096], "context"),
        (Context(10_096, 6_000, 5_000), [4096, 8192], "context"),  # exactly the first limit fits, and the reply was cut
    ],
)
def test_the_limit_is_lowered_to_what_fits_before_anything_is_cut(model, limits, outcome):
    results, _, _ = run_all(model, [REQUEST])
    found = results[0].text if isinstance(results[0], ChatReply) else results[0].cause
    assert (model.limits, found) == (limits, outcome)
    if limits[-1] < 4096 and outcome == "context":
        assert results[0].usage == Usage(6_000, limits[-1])  # the truncated reply is paid for


def test_prompt_and_output_never_pass_the_context_twice():
    rng = random.Random(3)
    for _ in range(300):
        model = Context(rng.randrange(300, 30_000), rng.randrange(1, 20_000), rng.randrange(1, 9_000))
        run_all(model, [REQUEST])
        over = [limit for limit in model.limits if model.prompt + limit > model.size]
        assert len(model.limits) <= 3 and len(over) <= 1


def test_a_model_that_says_its_largest_output_is_asked_for_no_more(saying, caplog):
    client = saying(RequestError("at most 2048", room=2048), "one", "two", TruncatedError("cut"), "never")

    async def run():
        limited = LimitedClient(client)
        texts = [(await limited.chat(ask(i))).text for i in range(2)]
        with pytest.raises(TruncatedError):
            await limited.chat(ask("long"))
        return texts

    assert asyncio.run(run()) == ["one", "two"]
    assert [r.max_output_tokens for r in client.requests] == [4096, 2048, 2048, 2048]
    assert caplog.text.count("allows at most 2048") == 1


def test_a_retry_storm_is_one_line_every_few_seconds(caplog):
    caplog.set_level(logging.INFO, "ropd_jax.teacher.traffic.retries")

    class Down(Server):
        async def chat(self, request):
            raise TransientError("down", cause="unavailable")

    results, seconds, _ = run_all(Down(), [ask(i) for i in range(37)], attempts=9, max_wait_s=30.0)
    assert all(isinstance(r, TransientError) for r in results)
    lines = [r for r in caplog.records if "retrying" in r.getMessage()]
    assert seconds > 60 and 5 <= len(lines) <= seconds / 5 + 1
    assert "retrying 37, oldest 1 m, cause 503" in caplog.text
    assert lines[0].levelno == logging.INFO and lines[-1].levelno == logging.WARNING  # a single one is not a storm


def test_a_failure_is_logged_once_a_minute_for_each_cause(caplog):
    class Refusing(Server):
        async def chat(self, request):
            await super().chat(request)
            raise BlockedError("no") if "blocked" in request.messages[0].content else RequestError("seed is not known")

    texts = [*range(20), "blocked 1", "blocked 2"]
    run_all(Refusing(8.0), [ask(t) for t in texts], concurrency=2)  # 88 s
    lines = [r.getMessage() for r in caplog.records if "gave up" in r.getMessage()]
    assert lines == [
        "teacher: gave up on a verify call (bad_request): seed is not known",
        "teacher: gave up on a verify call (bad_request): seed is not known",
        "teacher: gave up on a verify call (blocked): no",
    ]


def test_no_more_calls_than_slots_run_at_once():
    server = Server(1.0)
    _, seconds, _ = run_all(server, [ask(i) for i in range(12)], concurrency=3)
    assert server.peak == 3 and seconds == 4.0


def test_waiting_for_the_next_attempt_holds_no_slot(saying):
    class Once(Server):
        failed = False

        async def chat(self, request):
            if not self.failed:
                self.failed = True
                raise TransientError("x")
            return await super().chat(request)

    server = Once(1.0)
    _, seconds, _ = run_all(server, [ask(0), ask(1)], concurrency=1, first_wait_s=0.5, max_wait_s=0.5)
    assert server.starts == [0.0, 1.0] and seconds == 2.0  # the second call ran while the first waited


def test_the_time_limit_does_not_count_the_queue():
    results, seconds, _ = run_all(Server(50.0), [ask(i) for i in range(6)], concurrency=1, timeout_s=60, attempts=1)
    assert [r.text for r in results] == ["0", "1", "2", "3", "4", "5"] and seconds == 300.0


def test_a_call_over_the_time_limit_is_a_transient_timeout():
    stats = TeacherStats()
    results, _, _ = run_all(Server(100.0), [REQUEST], stats, timeout_s=20.0, attempts=2)
    with pytest.raises(TransientError, match=r"teacher\.timeout_s=20"):
        raise results[0]
    assert results[0].cause == "timeout" and stats.retries == {"timeout": 1}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, ["busy", "3", "1", "4", "0", "2", "later"]),  # the step is over when its last group is
        (dict(order="finished_first"), ["busy", "0", "2", "later", "1", "4", "3"]),
    ],
)
def test_the_queue_goes_by_step_and_role_or_by_role_alone_then_first_come(limits, expected):
    server = Server(1.0)
    order = ["verify", "rubric", "verify", "reference", "rubric"]

    async def run():
        client = LimitedClient(server, Limits(concurrency=1, **limits))
        first = asyncio.create_task(at_step(0, client.chat(ask("busy", "reference"))))
        await asyncio.sleep(0.1)
        later = [at_step(1, client.chat(ask("later", "reference" if not limits else "verify")))]
        now = [at_step(0, client.chat(ask(i, p))) for i, p in enumerate(order)]
        tasks = [asyncio.create_task(c) for c in (now + later if limits else later + now)]
        await asyncio.gather(first, *tasks)

    virtual_time.run(run())
    assert [r.messages[0].content for r in server.requests] == expected


def test_a_retry_keeps_its_place_in_the_queue():
    class Once(Server):
        async def chat(self, request):
            if not self.requests:
                self.requests.append(request)
                raise TransientError("x")
            return await super().chat(request)

    server = Once(1.0)
    run_all(server, [ask(i) for i in range(5)], concurrency=1, first_wait_s=0.1)
    assert [r.messages[0].content for r in server.requests] == ["0", "1", "0", "2", "3", "4"]


@pytest.mark.parametrize(
    "cause, falls", [("rate_limited", True), ("unavailable", True), ("timeout", True), ("overloaded", True),
                     ("server_error", False), ("connection", False)]
)  # fmt: skip
def test_the_limit_falls_on_overload_only(cause, falls):
    class Failing(Server):
        async def chat(self, request):
            if self.ended >= 31:  # the limit has doubled to 32; then a burst fails
                await asyncio.sleep(0.1)
                raise TransientError("x", cause=cause)
            return await super().chat(request)

    _, _, client = run_all(Failing(), [ask(i) for i in range(70)], concurrency=32, min_concurrency=1, attempts=1)
    assert client.concurrency == (16.0 if falls else 32.0)


def test_calls_sent_before_a_cut_cut_nothing_more():
    server = Capacity(40, 1.0)
    _, _, client = run_all(
        server, [ask(i) for i in range(140)], concurrency=64, min_concurrency=1, first_wait_s=100.0, max_wait_s=100.0
    )
    assert 24 <= server.refused < 64 and client.concurrency == 32.0


def test_the_limit_stays_between_its_bounds():
    class Down(Server):
        async def chat(self, request):
            raise TransientError("x", cause="rate_limited")

    _, _, client = run_all(Down(), [ask(i) for i in range(50)], concurrency=40, min_concurrency=5)
    assert client.concurrency == 5.0
    _, _, client = run_all(Server(), [ask(i) for i in range(500)], concurrency=40, min_concurrency=1)
    assert client.concurrency == 40.0


@pytest.mark.parametrize("share, most, fewest", [(1.0, 64, 4), (0.25, 16, 1), (1 / 3, 21, 1), (0.001, 1, 1)])
def test_each_of_n_hosts_takes_its_share(share, most, fewest):
    assert Limits(share=share, min_concurrency=4).slots == (fewest, most)
    server = Server(1.0)
    run_all(server, [ask(i) for i in range(200)], share=share, min_concurrency=1)
    assert server.peak == most


def test_requests_a_minute_hold_in_every_minute():
    server = Server(0.5)
    _, seconds, _ = run_all(server, [ask(i) for i in range(60)], requests_per_minute=20)
    assert seconds == pytest.approx(59 * 3 + 0.5)
    assert max(sum(start <= s < start + 60 for s in server.starts) for start in server.starts) <= 20 + 1


def test_a_rate_below_one_a_second_lets_go_one_at_a_time():
    server = Server(0.1)
    run_all(server, [ask(i) for i in range(20)], requests_per_minute=6)
    assert [b - a for a, b in zip(server.starts, server.starts[1:], strict=False)] == pytest.approx([10.0] * 19)


def test_tokens_a_minute_follow_the_real_usage_and_not_the_estimate():
    server = Server(1.0, Usage(3_000, 1_000))  # the request itself has 4,096 of output and almost no input
    _, seconds, _ = run_all(server, [ask(i) for i in range(120)], tokens_per_minute=60_000)
    assert 120 * 4_000 / seconds * 60 == pytest.approx(60_000, rel=0.05)


def test_each_host_takes_its_share_of_the_rates():
    _, seconds, _ = run_all(Server(0.1), [ask(i) for i in range(31)], requests_per_minute=60, share=0.5)
    assert seconds == pytest.approx(30 * 2 + 0.1)


def test_identical_requests_in_flight_share_one_call_and_are_counted_once():
    server, stats = Server(1.0), TeacherStats()
    results, seconds, _ = run_all(server, [ask("a"), ask("a"), ask("b"), ask("a")], stats)
    assert [r.text for r in results] == ["a", "a", "b", "a"] and len(server.starts) == 2 and seconds == 1.0
    assert [r.source for r in results] == ["live", "shared", "live", "shared"]
    assert stats.shared == {"verify": 2}
    for reply in results:
        stats.called("verify", reply)
    assert stats.calls == {"verify": 2}


@pytest.mark.parametrize(
    "change", [dict(sample_index=1), dict(model="n"), dict(temperature=0.0), dict(json_schema={}),
               dict(max_output_tokens=7), dict(messages=(Message("system", "x"),))]
)  # fmt: skip
def test_requests_that_differ_in_anything_share_nothing(change):
    server = Server(1.0)
    run_all(server, [REQUEST, dataclasses.replace(REQUEST, **change)])
    assert len(server.starts) == 2


def test_a_shared_call_continues_when_one_caller_leaves_and_ends_when_all_have():
    async def run(leaving):
        server = Server(10.0)
        client = LimitedClient(server)
        tasks = [asyncio.create_task(client.chat(REQUEST)) for _ in range(3)]
        await asyncio.sleep(1)
        for task in tasks[:leaving]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)
        again = await client.chat(REQUEST)  # no caller joins a call that is being cancelled
        assert again.text == "x" and again.source == "live" and server.running == 0
        return server.ended, [isinstance(r, ChatReply) for r in results]

    assert virtual_time.run(run(2)) == (2, [False, False, True])
    assert virtual_time.run(run(3)) == (1, [False, False, False])


def test_cancelled_calls_give_their_slots_back():
    async def run():
        server = Server(1.0)
        client = LimitedClient(server, Limits(concurrency=2))
        for round_ in range(20):
            tasks = [asyncio.create_task(client.chat(ask((round_, i)))) for i in range(6)]
            await asyncio.sleep(random.Random(round_).choice([0, 0, 0.5, 1.0, 1.5]))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)
        start = asyncio.get_running_loop().time()
        await asyncio.gather(*(client.chat(ask(i)) for i in range(6)))
        return asyncio.get_running_loop().time() - start, server.running

    assert virtual_time.run(run()) == (pytest.approx(3.0), 0)


def test_hedging_sends_a_second_copy_of_a_straggler_and_takes_the_first_reply():
    slow_first = lambda n: 100.0 if n == 1 else 2.0  # noqa: E731
    server, stats = Server(slow_first), TeacherStats()
    results, seconds, _ = run_all(server, [REQUEST], stats, hedge_after_s=5.0)
    assert results[0].text == "x" and seconds == 7.0 and server.starts == [0.0, 5.0]
    assert stats.hedges == {"verify": 1} and server.running == 0
    server, stats = Server(slow_first), TeacherStats()
    _, seconds, _ = run_all(server, [REQUEST], stats)
    assert seconds == 100.0 and stats.hedges == {}


def test_a_failed_second_copy_does_not_end_the_first():
    class SecondFails(Server):
        async def chat(self, request):
            if len(self.starts) == 1:
                self.starts.append(None)
                raise TransientError("x", cause="rate_limited")
            return await super().chat(request)

    results, seconds, _ = run_all(SecondFails(9.0), [REQUEST], hedge_after_s=5.0)
    assert results[0].text == "x" and seconds == 9.0


@pytest.mark.parametrize(
    "options", [dict(concurrency=0), dict(min_concurrency=0), dict(attempts=0), dict(timeout_s=0), dict(max_wait_s=-1),
                dict(requests_per_minute=0), dict(tokens_per_minute=-5), dict(hedge_after_s=-1),
                dict(outage_wait_s=-1), dict(order="random")]
)  # fmt: skip
def test_numbers_out_of_range_are_named(options):
    with pytest.raises(ConfigurationError, match=rf"teacher\.{next(iter(options))} is .*; expected"):
        Limits(**options)
