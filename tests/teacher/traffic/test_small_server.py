"""Home servers: one slot, slow replies, random refusals; how the default settings handle them."""

from __future__ import annotations

import asyncio
import logging

import pytest

from benchmarks import small_server, virtual_time
from ropd_jax.teacher import ChatReply, ChatRequest, TransientError, TruncatedError
from ropd_jax.teacher.traffic.admission import AdaptiveLimit, Pace
from ropd_jax.teacher.traffic.limits import Limits
from ropd_jax.teacher.traffic.retries import MOST_TIME, LimitedClient
from ropd_jax.types import Message


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("groups", [13, 100])
@pytest.mark.parametrize("spread", [0.0, 0.2])
@pytest.mark.parametrize("seconds", [1.0, 5.0, 20.0, 30.0, 40.0])
def test_one_slot_takes_a_tenth_more_than_the_ideal_at_most(seconds, spread, groups):
    over, calls, lost = small_server.measure({"verify": seconds}, spread, groups)
    assert over <= 1.1 and calls <= 1.1 and lost == 0


@pytest.mark.parametrize("seconds", small_server.ROLES)
def test_roles_of_different_lengths_share_one_slot(seconds):
    over, calls, lost = small_server.measure(seconds, 0.2)
    assert over <= 1.1 and calls <= 1.1 and lost == 0


@pytest.mark.parametrize("seconds", [100.0, 300.0, 500.0])
def test_replies_longer_than_the_time_limit_come_all_the_same(seconds):
    over, calls, lost = small_server.measure({"verify": seconds}, 0.2, 60)
    assert lost == 0 and over <= 1.2 and calls <= 1.2


@pytest.mark.parametrize("concurrency", [16, 64, 500])
def test_random_refusals_do_not_hold_the_limit_down(concurrency):
    limit, calls = small_server.random_refusals(0.075, concurrency, 20 * concurrency)
    assert limit > 0.9 * concurrency and calls < 1.1


class Parallel:
    """Answers everything at once, in ``seconds`` each."""

    def __init__(self, seconds):
        self.seconds, self.running, self.peak = seconds, 0, 0

    async def chat(self, request):
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.running -= 1
        return ChatReply("ok")

    async def close(self):
        pass


@pytest.mark.parametrize(("seconds", "rounds"), [(1.0, 16), (50.0, 17), (100.0, 22)])
def test_a_large_server_gets_all_slots_within_a_few_rounds_however_slow_it_is(seconds, rounds):
    server = Parallel(seconds)

    async def run():
        client = LimitedClient(server, small_server.default_limits())
        requests = (ChatRequest("verify", (Message("user", str(i)),), "m") for i in range(500))
        await asyncio.gather(*map(client.chat, requests))
        return asyncio.get_running_loop().time()

    assert virtual_time.run(run()) <= rounds * seconds and server.peak == 64


def test_a_cut_starts_from_what_is_in_flight_and_goes_down_to_one():
    limit = AdaptiveLimit(1, 64, 120.0)
    limit.value = 64.0
    for _ in range(5):  # 5 timeouts with 4 calls in flight
        limit.overloaded(limit.epoch, in_flight=4, load=4, seconds=120.0, role="verify", late=True)
    assert limit.slots == 2
    for _ in range(3):
        limit.overloaded(limit.epoch, in_flight=2, load=2, seconds=120.0, role="verify", late=True)
    assert limit.slots == 1


def test_the_limit_doubles_with_each_round_of_a_slow_start():
    limit, seen = AdaptiveLimit(1, 64, 120.0), []
    for _ in range(6):
        for _ in range(limit.slots):
            limit.succeeded(limit.epoch, in_demand=True, load=limit.slots, seconds=1.0)
        seen.append(limit.slots)
    assert seen == [2, 4, 8, 16, 32, 64]


def test_pace_tells_one_slot_from_many():
    one, many = (Pace(10.0, 1, 10.0, 1) for _ in range(2))
    assert one.queueing is None  # not known
    for _ in range(20):
        one.add(40.0, 4)
        many.add(10.0, 4)
    assert one.queueing == pytest.approx(1.0, abs=0.01) and many.queueing == pytest.approx(0.0, abs=0.01)
    assert one.expected(8) == pytest.approx(80.0, rel=0.01)


def limits_of_tries(failures, **changes):
    """The seconds after which each attempt of one request is given up, if the first ones end as in ``failures``."""
    spent = []

    class Server:
        async def chat(self, request):
            start = asyncio.get_running_loop().time()
            try:
                if len(spent) < len(failures) and failures[len(spent)] is not None:
                    raise failures[len(spent)]
                await asyncio.sleep(1e6)
            finally:
                spent.append(asyncio.get_running_loop().time() - start)

        async def close(self):
            pass

    async def run():
        client = LimitedClient(Server(), Limits(timeout_s=100.0, **changes))
        with pytest.raises(TransientError):
            await client.chat(ChatRequest("verify", (Message("user", "x"),), "m"))

    virtual_time.run(run())
    return spent


def test_twice_the_token_limit_gets_twice_the_time():
    assert limits_of_tries([TruncatedError("x")], attempts=1) == pytest.approx([0.0, 200.0])
    assert limits_of_tries([], attempts=1) == pytest.approx([100.0])


def test_a_lone_call_that_is_late_gets_more_time_up_to_a_bound():
    spent = limits_of_tries([], attempts=6)
    assert spent[:2] == pytest.approx([100.0, 200.0]) and spent[-1] == pytest.approx(100.0 * MOST_TIME)
    assert max(spent) == pytest.approx(spent[-1])
