"""Kill a recording teacher fifty times (SIGKILL, at any moment), let it finish, and compare with an undisturbed one.

    make kill-tape            python -m benchmarks.kill_tape --kills 50

The child judges groups (references, rubric, verdicts) through a tape and the scripted teacher, eight groups at once.
After each kill the tape must open and be intact. In the end the scores must equal those of an undisturbed run, and the
number of calls can exceed that of the undisturbed run only by the calls in flight at the kills.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from ropd_jax.teacher import Tape, TapedClient, Teacher, TeacherError
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.types import Message, Prompt

log = logging.getLogger("kill_tape")
AT_ONCE = 8
IN_FLIGHT = AT_ONCE * 4  # calls: four references per group


class Counting:
    """The scripted teacher; writes one byte to a file for each call that is sent."""

    def __init__(self, path: pathlib.Path):
        self._inner = ScriptedClient(latency_s=0.004, slip_rate=0.2, wrong_verdict_rate=0.05)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the process

    async def chat(self, request):
        self._file.write(b".")
        return await self._inner.chat(request)

    async def close(self):
        self._file.close()


async def judge_all(tape: pathlib.Path, calls: pathlib.Path, groups: int) -> list[list[float | None]]:
    """Scores of every group, in order."""
    client = TapedClient(lambda: Counting(calls), Tape(tape), mode="record", provider="scripted")
    teacher, slots = Teacher(client), asyncio.Semaphore(AT_ONCE)

    async def one(i: int) -> list[float | None]:
        a, b, c = i % 90 + 3, i % 7 + 2, i % 11 + 4
        prompt = Prompt(
            f"g{i}", (Message("user", f"State the final answer to the following problem: {a} + {b} - {c} ="),)
        )
        answers = [f"{a} + {b} = {a + b}\n{a + b} - {c} = {a + b - c}\nAnswer: {a + b - c}", f"Answer: {a + b}"]
        async with slots:
            try:
                references = await teacher.references(prompt)
                rubric = await teacher.induce_rubric(prompt, references, answers)
                verdicts = await teacher.verify(prompt, rubric, [*answers, *references], key=prompt.id)
            except TeacherError as e:
                return [e.cause]
            return list(verdicts.scores(rubric))

    try:
        return await asyncio.gather(*(one(i) for i in range(groups)))
    finally:
        await client.close()


def child(tape: pathlib.Path, calls: pathlib.Path, groups: int, out: pathlib.Path) -> None:
    out.write_text(json.dumps(asyncio.run(judge_all(tape, calls, groups))))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--groups", type=int, default=2_000)
    parser.add_argument("--child", nargs=3, type=pathlib.Path, metavar=("TAPE", "CALLS", "OUT"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.child:
        child(args.child[0], args.child[1], args.groups, args.child[2])
        return 0
    with tempfile.TemporaryDirectory() as name:
        return trial(pathlib.Path(name), args.kills, args.groups)


def trial(room: pathlib.Path, kills: int, groups: int) -> int:
    def command(which: str) -> list[str]:
        files = [str(room / f"{which}.{end}") for end in ("sqlite", "calls", "json")]
        return [sys.executable, "-m", "benchmarks.kill_tape", "--groups", str(groups), "--child", *files]

    start = time.monotonic()
    subprocess.run(command("alone"), check=True)
    alone_s, rng, killed, held = time.monotonic() - start, random.Random(0), 0, [0]
    while killed < kills:
        process = subprocess.Popen(command("killed"))
        while not (room / "killed.calls").exists() or process.poll() is not None:
            time.sleep(0.01)
        time.sleep(1.0 + rng.random() * 0.6)  # imports take the first second
        if process.poll() is not None:
            log.info("finished before kill %d; use more --groups", killed + 1)
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
        tape = Tape(room / "killed.sqlite", read_only=True)
        whole = tape.query("PRAGMA integrity_check") == [("ok",)]
        held.append(tape.query("SELECT count(*) FROM replies")[0][0])
        tape.close()
        if not whole or held[-1] < held[-2]:
            log.error("kill %d: the tape is damaged or has lost replies: %s", killed, held[-2:])
            return 1
    subprocess.run(command("killed"), check=True)
    sent = {which: (room / f"{which}.calls").stat().st_size for which in ("alone", "killed")}
    scores = {which: json.loads((room / f"{which}.json").read_text()) for which in ("alone", "killed")}
    same, extra = scores["alone"] == scores["killed"], sent["killed"] - sent["alone"]
    log.info("groups %d, %d calls, %.1f s undisturbed", groups, sent["alone"], alone_s)
    log.info("killed %d times while %d replies were recorded: the tape was intact each time", killed, held[-1])
    log.info("calls sent twice: %d (%.1f per kill; at most %d in flight)", extra, extra / max(killed, 1), IN_FLIGHT)
    log.info("scores equal to those of the undisturbed run: %s", same)
    return 0 if same and extra <= killed * IN_FLIGHT else 1


if __name__ == "__main__":
    sys.exit(main())
