"""CPU seconds of a run's first and second start: what the cache of compiled programs saves.

    python -m benchmarks.start                       # the quickstart, one step, on a fresh cache; under a minute

Both starts use the same command in a new directory, each in its own process. Only CPU seconds are compared, because
wall-clock time depends on the machine's other work.
"""

from __future__ import annotations

import os
import pathlib
import resource
import subprocess
import sys
import tempfile

COMMAND = [sys.executable, "-m", "ropd_jax.cli.main", "train", "--config", "experiments/quickstart.py"]
CHANGES = ["--config.steps=1", "--config.optim.warmup_steps=0", "--config.log.trackers=()"]


def start(place: pathlib.Path, name: str) -> tuple[float, str]:
    """(CPU seconds, the line about programs) of one start."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"XDG_CACHE_HOME": str(place / "cache")}
    env |= {"JAX_PLATFORMS": "cpu", "MPLCONFIGDIR": str(place / "matplotlib")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*COMMAND, *CHANGES, "--workdir", str(place / name)], env=env, capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = next(line for line in done.stderr.splitlines() if "programs compiled" in line)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, line


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        seconds = []
        for name in ("first", "second"):
            cpu_s, line = start(pathlib.Path(place), name)
            seconds.append(cpu_s)
            sys.stdout.write(f"{name} start: {cpu_s:.1f} CPU seconds; {line}\n")
        sys.stdout.write(f"second / first: {seconds[1] / seconds[0]:.2f}\n")


if __name__ == "__main__":
    main()
