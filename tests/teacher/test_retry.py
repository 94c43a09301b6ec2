"""Bounded patience: waits, attempts, slots, time limits."""

from __future__ import annotations

import asyncio
import email.utils

import pytest

from ropd_jax.teacher import ChatReply, ChatRequest, MalformedError, TeacherStats, TransientError
from ropd_jax.teacher.client import error_for_status, parse_retry_after
from ropd_jax.teacher.retry import RetryingClient
from ropd_jax.types import Message

REQUEST = ChatRequest("verify", (Message("user", "x"),), "m")


def waits(saying, *replies, **options):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    client = RetryingClient(saying(*replies), sleep=sleep, **options)
    return slept, lambda: asyncio.run(client.chat(REQUEST))


def test_waits_grow_with_jitter_and_are_bounded(saying):
    slept, run = waits(saying, *[TransientError("x")] * 7, "ok", attempts=8, first_wait_s=1.0, max_wait_s=10.0)
    assert run().text == "ok"
    for i, seconds in enumerate(slept):
        assert min(0.5 * 2**i, 10.0) <= seconds <= min(1.5 * 2**i, 10.0)
    assert len(slept) == 7


@pytest.mark.parametrize(
    "asked, least, most", [(7.0, 7.0, 7.0), (120.0, 60.0, 60.0), (0.001, 0.5, 1.5), (None, 0.5, 1.5)]
)
def test_retry_after_is_honoured_within_bounds(saying, asked, least, most):
    slept, run = waits(saying, TransientError("x", retry_after=asked), "ok")
    run()
    assert least <= slept[0] <= most


def test_other_failures_are_not_retried(saying):
    slept, run = waits(saying, MalformedError("x"), "ok")
    with pytest.raises(MalformedError):
        run()
    assert slept == []


def test_no_more_calls_than_slots_run_at_once_and_waiting_holds_none(saying):
    running, peak = 0, 0

    class Client(saying):
        async def chat(self, request):
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(0.005)
            running -= 1
            return ChatReply("ok")

    async def run():
        client = RetryingClient(Client(), concurrency=3)
        await asyncio.gather(*(client.chat(REQUEST) for _ in range(12)))

    asyncio.run(run())
    assert peak == 3


def test_the_time_limit_does_not_count_the_queue(saying):
    class Client(saying):
        async def chat(self, request):
            await asyncio.sleep(0.05)
            return ChatReply("ok")

    async def run():
        client = RetryingClient(Client(), concurrency=1, timeout_s=0.15, attempts=1)
        return await asyncio.gather(*(client.chat(REQUEST) for _ in range(6)))  # the last waits 0.25 s

    assert [r.text for r in asyncio.run(run())] == ["ok"] * 6


def test_a_call_over_the_time_limit_is_a_transient_timeout(saying):
    class Client(saying):
        async def chat(self, request):
            await asyncio.sleep(5)

    stats = TeacherStats()
    client = RetryingClient(Client(), timeout_s=0.02, attempts=2, first_wait_s=0.001, stats=stats)
    with pytest.raises(TransientError, match=r"teacher\.timeout_s=0\.02") as e:
        asyncio.run(client.chat(REQUEST))
    assert e.value.cause == "timeout" and stats.retries == {"timeout": 1}


@pytest.mark.parametrize(
    "text, seconds",
    [("3", 3.0), ("1.5", 1.5), ("12s", 12.0), (" 7 ", 7.0), ("soon", None), ("-3", None), ("", None), (None, None),
     ("nan", None), ("9" * 400, None)],
)  # fmt: skip
def test_retry_after_values(text, seconds):
    assert parse_retry_after(text) == seconds


def test_retry_after_dates():
    now = 1_700_000_000.0
    assert parse_retry_after(email.utils.formatdate(now + 90, usegmt=True), now=now) == 90.0
    assert parse_retry_after(email.utils.formatdate(now - 90, usegmt=True), now=now) == 0.0


@pytest.mark.parametrize(
    "status, message, cause",
    [
        (400, "This model's maximum context length is 8192 tokens", "context"),
        (400, "The input token count (1300000) exceeds the maximum number of tokens allowed (1048576).", "context"),
        (413, "prompt is too long", "context"),
        (422, "bad field", "bad_request"),
        (502, "bad gateway", "server_error"),
        (529, "overloaded", "overloaded"),
    ],
)
def test_causes_of_http_answers(status, message, cause):
    error = error_for_status(status, message, provider="openai", model="m")
    assert error.cause == cause and f"answered {status} for model 'm'" in str(error)
