"""``ropd train --workdir gs://...``, repeatedly killed by SIGKILL and SIGTERM, and resumed each time by a new machine.

    python -m benchmarks.kill_bucket --kills 4

The bucket is an emulator of Google's on loopback. After every kill the machine's cache, with the staging directory and
the compiled programs, is removed, so that the run can only resume from the bucket. At the end its parameters, metrics
and groups must equal those of an undisturbed run in a local directory. Exits with 1 if not.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import ropd_jax
from ropd_jax.utils import buckets
from ropd_jax.utils.logs import show_all_logs
from tests.buckets import gcs

log = logging.getLogger("kill_bucket")
STEPS, EVERY = 6, 2
CONFIG = f"{os.path.dirname(os.path.dirname(ropd_jax.__file__))}/experiments/quickstart.py"


def command(workdir: str) -> list[str]:
    keys = [
        f"--config.steps={STEPS}", f"--config.checkpoint.every={EVERY}", f"--config.eval.every={STEPS}",
        "--config.data.heldout_size=32", "--config.data.prompts_per_step=4",
    ]  # fmt: skip
    return [sys.executable, "-m", "ropd_jax.cli.main", "train", "--config", CONFIG, "--workdir", workdir, *keys]


def start(workdir: str, room: pathlib.Path, name: str) -> subprocess.Popen:
    environ = os.environ | {"ROPD_CACHE": str(room / "cache"), "JAX_PLATFORMS": "cpu"}
    with (room / f"{name}.log").open("w") as file:
        return subprocess.Popen(command(workdir), env=environ, stdout=file, stderr=file)


def steps_in(url: str) -> int:
    """The number of steps whose logs are in the bucket."""
    return len([name for name in buckets.listing(f"{url}/groups") if name.endswith(".jsonl")])


def state_of(workdir: str) -> dict[str, Any]:
    run = ropd_jax.open_run(workdir)
    metrics = {k: v for k, v in run.metrics().items() if not k.startswith(("time/", "teacher/", "sample/tokens_per_s"))}
    return {"groups": [group.answers for group in run.groups()], "metrics": metrics, "steps": run.result["steps"]}


def same_parameters(one: str, other: str) -> bool:
    import jax
    import numpy as np

    a, b = (jax.tree.leaves(ropd_jax.load_student(run).params) for run in (one, other))
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def killed(url: str, number: int, room: pathlib.Path, rng: random.Random) -> dict[str, Any]:
    """Starts or resumes the run, and kills it up to 3 s after its next step has reached the bucket."""
    name = signal.Signals(number).name
    before, process = steps_in(url), start(url, room, name)
    while process.poll() is None and steps_in(url) <= before:
        time.sleep(0.05)
    time.sleep(rng.uniform(0.0, 3.0))
    begin = time.monotonic()
    process.send_signal(number)
    code = process.wait()
    found = {"signal": name, "exit": code, "seconds to the end": round(time.monotonic() - begin, 1)}
    shutil.rmtree(room / "cache", ignore_errors=True)
    checkpoints = buckets.listing(f"{url}/checkpoints")
    complete = [s for s in checkpoints if "commit_success.txt" in buckets.listing(f"{url}/checkpoints/{s}")]
    return found | {"steps logged": steps_in(url), "complete": sorted(map(int, filter(str.isdigit, complete)))}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    show_all_logs()
    rng, url = random.Random(args.seed), f"{gcs()}/runs/killed"
    with tempfile.TemporaryDirectory(prefix="kill_bucket_") as directory:
        room = pathlib.Path(directory)
        local = str(room / "local")
        if start(local, room, "local").wait() != 0:
            raise SystemExit((room / "local.log").read_text()[-3000:])
        for n in range(args.kills):
            number = (signal.SIGKILL, signal.SIGTERM)[n % 2]
            log.info("%s", json.dumps(killed(url, number, room, rng)))
        begin = time.monotonic()
        code = start(url, room, "last").wait()
        text = (room / "last.log").read_text()
        if code != 0:
            raise SystemExit(text[-3000:])
        log.info("resumed to the end in %.1f s", time.monotonic() - begin)
        log.info("%s", "\n".join(line for line in text.splitlines() if "resumed" in line or "WARN" in line))
        os.environ["ROPD_CACHE"] = str(room / "reader")
        mine, theirs = state_of(url), state_of(local)
        bad = [key for key in mine if mine[key] != theirs[key]]
        bad += [] if same_parameters(url, local) else ["parameters"]
        objects = buckets.prepare(url).find(url, detail=True).values()
        log.info("%d objects, %.1f MB in the bucket", len(objects), sum(o["size"] for o in objects) / 1e6)
        log.info("differs from the local run: %s", ", ".join(bad) or "nothing")
        return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
