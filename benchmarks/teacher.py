"""How close the teacher layer comes to what is possible. ``make bench-teacher``

1. Makespan of judging a step of 64 prompts, each a rubric (log-normal, mean 20 s) and then a verification (mean 8 s),
   over the lower bound max(longest chain, total work / concurrency): medians and 90th percentiles of 200 steps, through
   the real client in virtual time, in both orders of its queue. For comparison: other orders, a bound for orders that
   do not know the latencies, a schedule that knows them all (``benchmarks.schedule``), and the released code's design
   (a pool of four groups, each with sequential calls). One step also runs in real time, scaled down 100 times.
2. Calls per second through our client to an HTTP server that answers at once, next to a bare loop over the same SDK and
   next to a bare aiohttp loop, on the same machine. The server runs in its own process.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import math
import multiprocessing
import random
import statistics
import time
from collections.abc import Awaitable, Callable

import aiohttp
import openai
from aiohttp import web

from benchmarks import schedule, virtual_time
from ropd_jax.teacher import ChatReply, ChatRequest, make_client
from ropd_jax.teacher.traffic.limits import ORDERS, Limits
from ropd_jax.teacher.traffic.retries import LimitedClient
from ropd_jax.types import Message

SCALE = 100
PROMPTS = 64
CONCURRENCIES = (16, 32, Limits().concurrency)
MEANS = {"rubric": 20.0, "verify": 8.0}
SIGMA = 0.5  # of the logarithm: the slowest of 64 takes three times the mean


# ------------------------------------------------------------------------------------------------------ makespan


class Sleeping:
    """A client that takes a given time for each (purpose, prompt)."""

    def __init__(self, latency: dict[tuple[str, int], float], scale: float):
        self._latency, self._scale = latency, scale

    async def chat(self, request: ChatRequest) -> ChatReply:
        await asyncio.sleep(self._latency[request.purpose, int(request.messages[0].content)] / self._scale)
        return ChatReply("ok")

    async def close(self) -> None:
        """Nothing to close."""


def latencies(seed: int) -> dict[tuple[str, int], float]:
    """Seconds of each call of a step."""
    rng = random.Random(seed)
    calls = [(purpose, i) for i in range(PROMPTS) for purpose in MEANS]
    return {call: rng.lognormvariate(math.log(MEANS[call[0]]) - SIGMA**2 / 2, SIGMA) for call in calls}


def chains_of(latency: dict[tuple[str, int], float]) -> list[schedule.Chain]:
    """The same as chains of calls."""
    return [(latency["rubric", i], latency["verify", i]) for i in range(PROMPTS)]


async def ours(
    latency: dict[tuple[str, int], float], concurrency: int, order: str, scale: float = 1.0, *, first: bool = False
) -> float:
    """Seconds from the first call to the last reply, all groups at once through ``LimitedClient``.

    Args:
        first: the first step of a run, in which the slots grow from one to ``concurrency``.
    """
    limits = Limits(concurrency=concurrency, min_concurrency=concurrency, order=order, timeout_s=3_600)
    if first:
        limits = dataclasses.replace(limits, min_concurrency=Limits().min_concurrency, timeout_s=Limits().timeout_s)
    client = LimitedClient(Sleeping(latency, scale), limits)

    async def group(i: int) -> None:
        for purpose in MEANS:
            await client.chat(ChatRequest(purpose, (Message("user", str(i)),), "m"))

    return await _timed(asyncio.gather(*(group(i) for i in range(PROMPTS)))) * scale


async def official(latency: dict[tuple[str, int], float], scale: float = 1.0) -> float:
    """The same with a pool of four groups."""
    client, pool = Sleeping(latency, scale), asyncio.Semaphore(4)

    async def group(i: int) -> None:
        async with pool:
            for purpose in MEANS:
                await client.chat(ChatRequest(purpose, (Message("user", str(i)),), "m"))

    return await _timed(asyncio.gather(*(group(i) for i in range(PROMPTS)))) * scale


async def _timed(work: Awaitable) -> float:
    loop = asyncio.get_running_loop()
    start = loop.time()
    await work
    return loop.time() - start


def makespans(concurrency: int, seeds: int) -> dict[str, list[float]]:
    """Makespan over the bound, by design, of each seed."""
    out: dict[str, list[float]] = {}
    for seed in range(seeds):
        latency = latencies(seed)
        chains = chains_of(latency)
        took = {f"ours, {order}": virtual_time.run(ours(latency, concurrency, order)) for order in ORDERS}
        took["ours, first step of a run"] = virtual_time.run(ours(latency, concurrency, Limits().order, first=True))
        for name in ("first come", "whatever waits most"):
            took[name] = schedule.makespan(chains, concurrency, schedule.POLICIES[name])[0]
        took["not to be beaten blindly"] = schedule.online_bound(chains, concurrency)
        took["knows all latencies"] = schedule.clairvoyant(chains, concurrency)
        took["official design"] = virtual_time.run(official(latency))
        for name, seconds in took.items():
            out.setdefault(name, []).append(seconds / schedule.bound(chains, concurrency))
    return out


def median_and_p90(values: list[float]) -> tuple[float, float]:
    """Both by nearest rank."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[math.ceil(0.9 * len(ordered)) - 1]


def show_makespans(seeds: int) -> float:
    """Print the table; returns the worst of our medians, as a multiple of the blind bound."""
    worst = 0.0
    print(f"makespan over the bound, {PROMPTS} prompts, {seeds} steps: median (90th percentile)")
    columns = {concurrency: makespans(concurrency, seeds) for concurrency in CONCURRENCIES}
    print(f"  {'':<27}" + "".join(f"{c:>10} slots " for c in columns))
    for name in columns[CONCURRENCIES[0]]:
        cells = ("{:>8.3f} ({:.3f})".format(*median_and_p90(column[name])) for column in columns.values())
        print(f"  {name:<27} " + " ".join(cells))
    for column in columns.values():
        blind = max(1.1, statistics.median(column["not to be beaten blindly"]) * 1.02)
        worst = max(worst, statistics.median(column[f"ours, {Limits().order}"]) / blind)
    latency = latencies(0)
    for concurrency in CONCURRENCIES:
        took = asyncio.run(ours(latency, concurrency, Limits().order, SCALE))
        rate = took / schedule.bound(chains_of(latency), concurrency)
        print(f"  one step in real time, {concurrency} slots: {rate:.3f} of the bound")
    return worst


# ------------------------------------------------------------------------------------------------------- calls/s

BODY = {
    "id": "1", "object": "chat.completion", "created": 0, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "ok"}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}  # fmt: skip


def _serve(port) -> None:
    async def completions(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response(BODY)

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", completions)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


async def calls_per_s(url: str, n: int, at_once: int) -> dict[str, float]:
    """Calls per second of each kind of client, the median of three alternating turns."""
    one = openai.AsyncOpenAI(api_key="x", base_url=url, max_retries=0)
    client = make_client(provider="openai", base_url=url, concurrency=at_once)
    session = aiohttp.ClientSession()

    async def sdk(i: int) -> None:
        messages = [{"role": "user", "content": str(i)}]
        await one.chat.completions.create(model="m", messages=messages, seed=0, max_tokens=16)

    async def bare(i: int) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": str(i)}], "seed": 0, "max_tokens": 16}
        async with session.post(url + "/chat/completions", json=body) as reply:
            await reply.json()

    async def limited(i: int) -> None:
        await client.chat(ChatRequest("verify", (Message("user", str(i)),), "m", max_output_tokens=16))

    async def turn(call: Callable[[int], Awaitable[None]]) -> float:
        numbers = iter(range(n))

        async def work() -> None:
            for i in numbers:
                await call(i)

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(at_once)))
        return n / (time.perf_counter() - start)

    kinds = {"ours": limited, "bare openai SDK": sdk, "bare aiohttp": bare}
    for call in kinds.values():
        await call(0)
    turns = [{name: await turn(call) for name, call in kinds.items()} for _ in range(3)]
    await asyncio.gather(one.close(), client.close(), session.close())
    return {name: statistics.median(t[name] for t in turns) for name in kinds}


def main() -> int:
    """Print both tables; 1 if a median makespan is over 1.10 of the bound and over the blind bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--calls", type=int, default=1_000)
    args = parser.parse_args()
    worst = show_makespans(args.seeds)
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,), daemon=True)
    server.start()
    rates = asyncio.run(calls_per_s(f"http://127.0.0.1:{here.recv()}/v1", args.calls, 16))
    server.terminate()
    for name, rate in rates.items():
        print(f"{name:<16} {rate:>7.0f} calls/s  {rates['ours'] / rate:>6.1%} ours next to it")
    return int(worst > 1.0)


if __name__ == "__main__":
    raise SystemExit(main())
