"""The viewer on a large run: time to the first row, time to open a group, memory of the server and of the page.

    python -m benchmarks.viewer                   10,000 groups of 12 answers next to 1,000 of them

Each run consists of synthetic groups (8 criteria, 2 references, answers of about 700 characters), 20 per step. ``ropd
view`` serves it in a new process. The browser is headless Chromium.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

PER_STEP, ANSWERS, CRITERIA, REFERENCES = 20, 12, 8, 2
OPENED = 7  # groups opened per run; the median counts
WORDS = ("the", "sum", "of", "two", "odd", "numbers", "is", "even", "so", "we", "add", "both", "sides", "then", "check")


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words)) + f"\nAnswer: {rng.randrange(20)}"


def group(rng: random.Random, step: int, number: int) -> dict[str, Any]:
    """A line of ``groups/step_*.jsonl``."""
    rubric = [{"id": f"c{i}", "points": 1 + i % 4, "category": ("Step", "Final")[i % 2], "text": text(rng, 14)}
              for i in range(CRITERIA)]  # fmt: skip

    def verdicts() -> dict[str, bool]:
        return {c["id"]: rng.random() < 0.7 for c in rubric}

    answers = [{"text": text(rng, 150), "finish_reason": rng.choice(("stop", "stop", "stop", "length")), "tokens": 180,
                "verdicts": verdicts(), "reward": round(rng.random(), 3), "advantage": round(rng.gauss(0, 1), 3),
                "unscored": None} for _ in range(ANSWERS)]  # fmt: skip
    references = [{"text": text(rng, 120), "verdicts": verdicts(), "model": "synthetic"} for _ in range(REFERENCES)]
    return {"step": step, "group": number, "prompt_id": f"p-{step}-{number}", "question": text(rng, 40),
            "gold_answer": str(rng.randrange(20)), "references": references, "rubric": rubric,
            "answers": answers}  # fmt: skip


def make_run(run: pathlib.Path, groups: int) -> None:
    """A finished run with this many groups."""
    rng = random.Random(groups)
    (run / "groups").mkdir(parents=True)
    steps = groups // PER_STEP
    for step in range(steps):
        lines = (json.dumps(group(rng, step, number)) + "\n" for number in range(PER_STEP))
        (run / "groups" / f"step_{step:06d}.jsonl").write_text("".join(lines))
    (run / "config.json").write_text(json.dumps({"steps": steps, "method": "ropd"}))
    (run / "result.json").write_text("{}")
    rows = ({"step": s + 1, "reward/mean": 0.3 + 0.4 * s / steps + rng.gauss(0, 0.03)} for s in range(steps))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def resident_mb(pid: int) -> float:
    """Memory of a process, MB."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1e3


def heap_mb(page: Any) -> float:
    """JavaScript heap of a page after a collection, MB."""
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable")
    devtools.send("HeapProfiler.collectGarbage")
    found = {m["name"]: m["value"] for m in devtools.send("Performance.getMetrics")["metrics"]}
    return found["JSHeapUsedSize"] / 1e6


def measure(run: pathlib.Path, groups: int, browser: Any) -> dict[str, float]:
    """Seconds and MB of one run."""
    command = [sys.executable, "-m", "ropd_jax.cli.main", "view", str(run)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().strip()
        page = browser.new_page()
        began = time.perf_counter()
        page.goto(f"{url}#/{run.name}/groups")
        page.locator(".list tbody tr").first.wait_for()
        found = {"first row, s": time.perf_counter() - began}
        page.get_by_text(f"{groups:,} groups").wait_for(timeout=300_000)
        found["all groups indexed, s"] = time.perf_counter() - began
        opened, rng = [], random.Random(1)
        for _ in range(OPENED):
            step, number = rng.randrange(groups // PER_STEP), rng.randrange(PER_STEP)
            page.goto("about:blank")
            began = time.perf_counter()
            page.goto(f"{url}#/{run.name}/g/{step}/{number}")
            page.locator("article").nth(ANSWERS - 1).wait_for()
            opened.append(time.perf_counter() - began)
        found["open a group, s"] = statistics.median(opened)
        page.goto(f"{url}#/{run.name}/groups?sort=reward")
        page.locator("[aria-sort=ascending]").get_by_text("reward").wait_for(timeout=60_000)
        found["server, MB"] = resident_mb(server.pid)
        found["page, MB of heap"] = heap_mb(page)
        page.close()
        return found
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, nargs="+", default=[1_000, 10_000])
    sizes = parser.parse_args().groups
    found = {}
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        executable = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        for groups in sizes:
            run = pathlib.Path(place) / f"run{groups}"
            make_run(run, groups)
            found[groups] = measure(run, groups, browser)
        browser.close()
    print(f"{'':24}" + "".join(f"{groups:>10,}" for groups in sizes) + ("     ratio" if len(sizes) > 1 else ""))
    for name in found[sizes[0]]:
        values = [found[groups][name] for groups in sizes]
        ratio = f"{values[-1] / values[0]:10.1f}" if len(values) > 1 else ""
        print(f"{name:24}" + "".join(f"{value:10.2f}" for value in values) + ratio)


if __name__ == "__main__":
    main()
