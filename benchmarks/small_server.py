"""The default settings with a server that has one slot. ``make small-server``, seconds.

By default llama.cpp, Ollama and LM Studio answer one call after another, and the other calls wait. A call that waits
longer than our time limit is lost, with the work on it. This benchmark simulates such a server in virtual time; it
drops a call whose client has left. For each mean time of a reply, and for groups of several roles, it prints:

    time over the ideal (the replies' own seconds, one after another), and calls sent per reply

    make small-server LLAMA=PYTHON MODEL=FILE.gguf

uses llama.cpp itself instead, with one slot (PYTHON has ``xllamacpp``): the same questions one after another, then all
at once. This takes several minutes. The time limit is lowered to a few replies, as with a large model.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import logging
import math
import random
import time
from collections.abc import Mapping, Sequence

from benchmarks import virtual_time
from benchmarks.llama_server import serving
from ropd_jax import configs
from ropd_jax.teacher import ChatReply, ChatRequest, TransientError
from ropd_jax.teacher.build import limit_options, make_client, role_of
from ropd_jax.teacher.clients.chat import Purpose
from ropd_jax.teacher.traffic.limits import Limits
from ropd_jax.teacher.traffic.retries import LimitedClient
from ropd_jax.teacher.traffic.tracing import ObservedClient
from ropd_jax.types import Message

Seconds = Mapping[Purpose, float]  # mean of a reply, by role, in the order of a group's requests
REPLIES = 100
REPLIES_IN_LIMIT = 6  # a real server: the default of 120 s would hold six replies of 20 s
_VERDICTS = 32
_SCHEMA = {
    "type": "object",
    "properties": {"v": {"type": "array", "items": {"type": "boolean"}, "minItems": _VERDICTS, "maxItems": _VERDICTS}},
    "required": ["v"],
    "additionalProperties": False,
}
ROLES: tuple[Seconds, ...] = (
    {"reference": 30.0, "rubric": 20.0, "verify": 5.0},
    {"rubric": 40.0, "verify": 8.0},
    {"rubric": 10.0, "verify": 60.0},
)


class OneSlot:
    """Answers one call after another, first come first served; log-normal times with this spread of the logarithm."""

    def __init__(self, seconds: Seconds, spread: float, slots: int = 1):
        self._seconds, self._spread = seconds, spread
        self._slots, self.calls = asyncio.Semaphore(slots), 0

    def takes_s(self, request: ChatRequest) -> float:
        """Seconds of a reply, a function of the request."""
        draw = random.Random(request.purpose + request.messages[0].content)
        return draw.lognormvariate(math.log(self._seconds[request.purpose]) - self._spread**2 / 2, self._spread)

    async def chat(self, request: ChatRequest) -> ChatReply:
        self.calls += 1
        async with self._slots:
            await asyncio.sleep(self.takes_s(request))
        return ChatReply("ok")

    async def close(self) -> None:
        """Nothing to close."""


def default_limits(**changes: float) -> Limits:
    """The limits of the default config."""
    return Limits(**limit_options(configs.default().teacher) | changes)


def measure(seconds: Seconds, spread: float, groups: int = REPLIES) -> tuple[float, float, int]:
    """(time over the ideal, calls per reply, calls given up) of groups, all waiting from the start."""

    async def run() -> tuple[float, float, int]:
        server = OneSlot(seconds, spread)
        client = LimitedClient(server, default_limits())
        chains = [[ChatRequest(role, (Message("user", str(i)),), "m") for role in seconds] for i in range(groups)]

        async def group(chain: list[ChatRequest]) -> int:
            try:
                for request in chain:
                    await client.chat(request)
            except TransientError:
                return 1
            return 0

        lost = sum(await asyncio.gather(*map(group, chains)))
        requests = [request for chain in chains for request in chain]
        ideal = sum(map(server.takes_s, requests))
        return asyncio.get_running_loop().time() / ideal, server.calls / len(requests), lost

    return virtual_time.run(run())


def random_refusals(share: float, concurrency: int, calls: int = 20_000) -> tuple[float, float]:
    """(limit at the end, calls per reply) with a server that refuses a share of the calls, whatever the load."""

    async def run() -> tuple[float, float]:
        rng, sent = random.Random(0), 0

        class Refusing:
            async def chat(self, request: ChatRequest) -> ChatReply:
                nonlocal sent
                sent += 1
                if rng.random() < share:
                    await asyncio.sleep(0.05)
                    raise TransientError("busy", cause="rate_limited")
                await asyncio.sleep(rng.lognormvariate(math.log(8.0) - 0.125, 0.5))
                return ChatReply("ok")

            async def close(self) -> None:
                """Nothing to close."""

        client = LimitedClient(Refusing(), default_limits(concurrency=concurrency, attempts=20))
        requests = (ChatRequest("verify", (Message("user", str(i)),), "m") for i in range(calls))
        await asyncio.gather(*map(client.chat, requests))
        return client.concurrency, sent / calls

    return virtual_time.run(run())


async def real(address: str, calls: int) -> tuple[float, float, float]:
    """(seconds of one reply, time of all at once over one after another, calls per reply) of a real server."""
    how = configs.default().teacher
    how.provider, how.base_url = "openai", address
    endpoint, _ = role_of(how, "verifier")

    def request(i: int) -> ChatRequest:  # replies of one length: the schema fixes the number of booleans
        asked = (Message("user", f"For each of the {_VERDICTS} numbers from {i} on: is it prime? Answer as JSON."),)
        return ChatRequest("verify", asked, "m", temperature=0.0, max_output_tokens=2048, json_schema=_SCHEMA)

    async def timed(asked: Sequence[int], *, at_once: bool, **changes: float) -> tuple[float, int]:
        client = make_client(**dataclasses.asdict(endpoint), **limit_options(how) | changes)
        numbers = itertools.count()
        client.inner = ObservedClient(client.inner, lambda purpose: contextlib.nullcontext(next(numbers)))
        begin = time.monotonic()
        if at_once:
            await asyncio.gather(*(client.chat(request(i)) for i in asked))
        else:
            for i in asked:
                await client.chat(request(i))
        await client.close()
        return time.monotonic() - begin, next(numbers)

    await timed([0], at_once=False)  # the model is read from the disk
    ideal, _ = await timed(range(1, calls + 1), at_once=False)
    limit_s = REPLIES_IN_LIMIT * ideal / calls
    took, sent = await timed(range(calls + 1, 2 * calls + 1), at_once=True, timeout_s=limit_s)
    return ideal / calls, took / ideal, sent / calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", metavar="PYTHON", help="use a real server; an interpreter with xllamacpp")
    parser.add_argument("--model", metavar="FILE.gguf")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=REPLIES)
    args = parser.parse_args()
    if not args.server:
        return simulated()
    with serving(args.server, args.model, args.threads) as address:
        seconds, time_over, calls = asyncio.run(real(address, args.calls))
    print(
        f"llama.cpp, one slot, {args.calls} replies of {seconds:.1f} s, time limit {REPLIES_IN_LIMIT} replies: "
        f"{time_over:.2f} x the time of one after another, {calls:.2f} calls per reply"
    )
    return int(max(time_over, calls) > 1.1)


def simulated() -> int:
    """Print the table; 1 if replies of one length (spread up to 0.2) cost more than a tenth above the ideal."""
    logging.disable(logging.ERROR)
    print(f"one slot, default settings, {REPLIES} groups: time over the ideal, calls per reply")
    worst = 0.0
    for mean in (1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 60.0, 100.0, 200.0):
        cells = [measure({"verify": mean}, spread) for spread in (0.0, 0.2, 0.5)]
        print(
            f"  {mean:3.0f} s a reply" + 25 * " " + " " + "   ".join("{:.2f} {:.2f} lost {}".format(*c) for c in cells)
        )
        worst = max(worst, *(max(c[:2]) for c in cells[:2]))
    for seconds in ROLES:
        cells = [measure(seconds, spread) for spread in (0.0, 0.2, 0.5)]
        worst = max(worst, *(max(c[:2]) for c in cells[:2]))
        name = " ".join(f"{role} {s:.0f} s" for role, s in seconds.items())
        print(f"  {name:<39} " + "   ".join("{:.2f} {:.2f} lost {}".format(*c) for c in cells))
    limit, calls = random_refusals(0.075, 500)
    print(f"a server that refuses 7.5 % at random: limit {limit:.0f} of 500, {calls:.2f} calls per reply")
    return int(worst > 1.1 or limit < 400)


if __name__ == "__main__":
    raise SystemExit(main())
