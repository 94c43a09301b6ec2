"""Memory and time of Qwen3-4B on three slices: ``ropd plan`` on each, as one table; seconds are per step.

    make bench-plan                                   # all; ten minutes to compile on two idle cores, then cached
    python -m benchmarks.plan --topology v5e:4x4
    python -m benchmarks.plan --topology gpu:h100x8   # with the packages of the extra gpu-aot

Needs libtpu (pip install '.[tpu-aot]') but no TPU. The config is experiments/qwen3_4b_math.py: rows of 10,240 tokens,
32 prompts x 8 rollouts. If the unchanged config does not fit, the setting that makes it fit gets its own row.
"""

from __future__ import annotations

import argparse
import sys
import time

from ropd_jax.plan import prepare

SLICES = ("v5e:4x4", "v5p:2x2x1", "v6e:2x2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--topology", action="append", help="one slice; repeatable (default: all three)")
    parser.add_argument("--config", default="experiments/qwen3_4b_math.py", help="config file, FILE[:arg]")
    args = parser.parse_args()
    for name in args.topology or SLICES:
        prepare(name)

    from ropd_jax.configs import load_config
    from ropd_jax.plan import fit, measure
    from ropd_jax.plan.chips import parse_topology
    from ropd_jax.plan.shapes import model_config

    cfg = load_config(args.config)
    model = model_config(cfg.student.checkpoint)

    def say(text: str) -> None:
        print(f"{time.strftime('%X')} {text}", file=sys.stderr, flush=True)

    columns = ["slice", "setting", "program", "parameters", "optimizer", "KV cache", "temporaries", "peak, GB"]
    columns += ["of the chip", "at least, s", "expected, s"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name in args.topology or SLICES:
        topology = parse_topology(name)
        found = measure.measure(cfg, model, topology, say)
        _rows(name, "as it is", found, topology)
        if found.fits is False:
            advice = fit.remedy(cfg, model, topology, found, say)
            if advice.keys is None:
                print(f"| {name} | none of {len(advice.tried)} tried fits |" + " |" * 9, flush=True)
                continue
            found = measure.measure(fit.changed(cfg, advice.keys), model, topology, say)
            _rows(name, fit.words(advice.keys), found, topology)


def _rows(name, setting, found, topology) -> None:
    usable = topology.chip.a_device().usable
    seconds = [{x.name: x.seconds for x in part} for part in (found.bounds, found.expected)]
    for m, c in zip(found.memory, found.compiled, strict=True):
        gb = [f"{x / 1e9:.2f}" for x in (m.parameters, m.optimizer, m.kv_cache, m.temporaries, m.peak)]
        if not c.fits:
            gb[3:] = ["unknown", f">= {gb[4]}"]
        s = ["" if (x := part.get(c.name)) is None else f"{x:.2f}" for part in seconds]
        cells = [name, setting, m.program, *gb, f"{m.peak / usable:.0%}", *s]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
