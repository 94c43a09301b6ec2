"""Tokens per second, slots and the resulting settings, with servers of known speed."""

from __future__ import annotations

import asyncio
import json
import types

import pytest

from benchmarks import virtual_time
from ropd_jax.cli import main as cli
from ropd_jax.plan import server_speed
from ropd_jax.plan.preflight import speed_line
from ropd_jax.plan.server_speed import Speed, measure, suggestions
from ropd_jax.teacher import ChatReply, Role, TransientError, TruncatedError, Usage
from ropd_jax.teacher.scripted.client import ScriptedClient
from tests.helpers import serving

TEACHER = {"concurrency": 64, "timeout_s": 120.0}


class Slots:
    """Writes 64 tokens in 0.1 s, on ``slots`` calls at a time."""

    def __init__(self, slots, usage=None, error=None):
        self._slots = asyncio.Semaphore(slots)
        self.usage, self.error, self.calls = usage or Usage(20, 64), error, 0

    async def chat(self, request):
        self.calls += 1
        if self.error and self.calls > 1:
            raise self.error
        async with self._slots:
            await asyncio.sleep(0.1)
        if self.calls % 2:
            raise TruncatedError("cut", usage=self.usage)
        return ChatReply("1, 2", usage=self.usage)

    async def close(self):
        pass


@pytest.fixture
def measured(monkeypatch):
    """`measure` in virtual time: the machine adds nothing to the seconds of the server."""
    clock = types.SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
    monkeypatch.setattr(server_speed, "time", clock)
    return lambda client, timeout_s=10.0: virtual_time.run(measure(client, "openai", "m", timeout_s=timeout_s))


@pytest.mark.parametrize(("slots", "found"), [(1, 1), (2, 2), (4, 4), (64, 4)])
def test_slots_and_tokens_a_second_are_measured(slots, found, measured):
    speed = measured(Slots(slots))
    assert speed.slots == found and speed.message == ""
    assert speed.tokens_per_s == pytest.approx(640)


def test_what_cannot_be_measured_is_unknown(measured):
    speed = measured(Slots(1, Usage()))
    assert speed.tokens_per_s is None and speed.slots == 1
    speed = measured(Slots(1, error=TransientError("x", cause="rate_limited")))
    assert speed.tokens_per_s and speed.slots is None and speed.message == "rate_limited: x"
    speed = measured(Slots(1), timeout_s=0.2)
    assert speed.slots is None and "0.2 s" in speed.message
    assert "unknown" in speed_line(speed)


def test_a_slow_small_server_gets_fewer_calls_and_more_time():
    roles = [("rubricator", "openai", Role("m", max_output_tokens=8192)), ("verifier", "openai", Role("other"))]
    lines = suggestions(TEACHER, roles, [Speed("openai", "m", 10.0, 1)])
    assert len(lines) == 2 and lines[0].startswith("teacher.concurrency=1: m processes one call at a time")
    assert lines[1].startswith("teacher.timeout_s=1230: at 10 tokens/s")  # 819 s and a half
    assert "teacher.rubricator.max_output_tokens=8192 takes 819 s" in lines[1]
    assert lines[1].endswith("teacher.rubricator.max_output_tokens=800")


def test_a_fast_large_server_gets_no_advice():
    roles = [("rubricator", "openai", Role("m", max_output_tokens=8192))]
    assert suggestions(TEACHER, roles, [Speed("openai", "m", 100.0, server_speed.TOGETHER)]) == []
    assert suggestions(TEACHER, roles, [Speed("openai", "m", None, None, "failed")]) == []
    assert suggestions(TEACHER | {"concurrency": 1}, roles, [Speed("openai", "m", 100.0, 1)]) == []


def test_preflight_shows_the_speed_of_a_server(capsys):
    with serving(ScriptedClient(latency_s=0.05)) as address:
        args = ["--config.teacher.provider=openai", f"--config.teacher.base_url={address}/v1"]
        assert cli.main(["preflight", "--config", "experiments/quickstart.py", "--json", *args]) == 0
        out = json.loads(capsys.readouterr().out)
        assert len(out["speeds"]) == 1  # one model for three roles
        assert out["speeds"][0]["provider"] == "openai" and isinstance(out["suggestions"], list)
        assert cli.main(["preflight", "--config", "experiments/quickstart.py", *args]) == 0
        assert "openai: scripted: " in capsys.readouterr().out.replace("\n", " ")
    assert cli.main(["preflight", "--config", "experiments/quickstart.py", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["speeds"] == []  # the scripted teacher has no speed
