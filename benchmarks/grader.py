"""How many answers per second the math grader decides, and what a hostile answer costs.

    python -m benchmarks.grader --data DIR [--workers 2]

Needs a directory with math_500.jsonl. Three loads: golds boxed as they are (most need no algebra), every gold through
math-verify, and pairs of different golds (none must be accepted); then one answer in fifty that never ends.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time

from ropd_jax.evaluation.benchmarks import load_benchmark
from ropd_jax.evaluation.graders.math import grade_math
from ropd_jax.evaluation.graders.math_pool import verify_all

ENDLESS = "9^{9^{9^9}}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("ROPD_DATA", ""), help="directory with math_500.jsonl")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout_s", type=float, default=5.0)
    args = parser.parse_args()
    golds = [p.answer or "" for p in load_benchmark("math_500", args.data).prompts]
    how = {"workers": args.workers, "timeout_s": args.timeout_s}
    rng = random.Random(0)
    others = [rng.choice([o for o in golds if o != g]) for g in golds]
    hostile = [(g, o if i % 50 else f"{ENDLESS}+{i}") for i, (g, o) in enumerate(zip(golds, others, strict=True))]

    verify_all([("x", "x")], workers=args.workers)  # puts the import of sympy into the page cache
    rows = []
    for name, run in (
        ("golds boxed", lambda: grade_math(golds, [rf"\boxed{{{g}}}" for g in golds], **how)),
        ("golds, all by math-verify", lambda: verify_all([(g, g) for g in golds], **how)),
        ("pairs of different golds", lambda: grade_math(golds, [rf"\boxed{{{g}}}" for g in others], **how)),
        ("one in 50 never ends", lambda: verify_all(hostile, **how)),
    ):  # fmt: skip
        begin = time.monotonic()
        verdicts = run()
        seconds = time.monotonic() - begin
        counts = [sum(v.right is w for v in verdicts) for w in (True, False, None)]
        rows.append((name, len(verdicts), len(verdicts) / seconds, *counts))
    out = sys.stdout.write
    out(f"{args.workers} processes, {args.timeout_s:g} s per pair\n")
    out(f"{'load':<28}{'answers':>8}{'per s':>10}{'right':>7}{'wrong':>7}{'ungraded':>10}\n")
    for name, n, rate, right, wrong, ungraded in rows:
        out(f"{name:<28}{n:>8}{rate:>10.1f}{right:>7}{wrong:>7}{ungraded:>10}\n")


if __name__ == "__main__":
    main()
