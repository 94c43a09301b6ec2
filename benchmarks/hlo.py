"""Compiled decode, prefill and update of Qwen3-4B: collectives and bytes per token, cycles, memory.

    make bench-hlo                                            # two layers of 36, all slices; half an hour on idle cores
    python -m benchmarks.hlo --slice v5e:4x4 --program decode --layers 36
    python -m benchmarks.hlo --out after.json --before before.json
    python -m benchmarks.hlo --program decode --set sampling.attention=xla --out xla.json     # then --before xla.json

No TPU or GPU is needed: libtpu (pip install '.[tpu-aot]') compiles for TPUs, XLA:GPU (pip install '.[gpu-aot]') for 8
H100. A slice whose compiler is not installed is left out. The config is experiments/qwen3_4b_math.py. Each layer adds
the same amount, so two layers show what 36 do, in a tenth of the time. Each program compiles in its own process, one
after another; known results for an equal program are read from ~/.cache/ropd_jax/plan.

For decoding the columns are per token: what is inside the loop over tokens. "cycles" are the TPU compiler's estimates,
without waits for memory and other chips. Per token they are a fixed part plus one pass of each of attention's loops (a
block of 128 pages of the pool, or of 256 prompt positions). "cast" counts results of conversions of at least 1 MB.

The kernel (`sampling.kernel`) has no loops for the compiler to count and is bound by the memory that it reads. "token
step" is therefore arithmetic: the fixed cycles at the chip's clock, and the cache positions over its bandwidth. The
first figure is for `MEAN_POSITIONS`, the second for all rows at full length. Without the kernel it uses the cycles of
the passes instead of the memory. It does not include collectives, and covers only the compiled layers: compile all of
them.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

from ropd_jax.plan import gpu

SLICES = ("v5e:4x4", "v6e:2x2", "v5p:2x2x1", "h100x8")
PROGRAMS = ("decode", "prefill", "update")
GHZ = {"v5e": 1.5}  # others are not published
MEAN_POSITIONS = 48_000  # read by a part per token step in `benchmarks.slots_replay`: answers of 3.6k tokens
CHANGES = {"v6e:2x2": {"sampling.prompts_at_once": 4}}  # does not fit otherwise: docs/plan.md


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slice", action="append", help=f"one of {', '.join(SLICES)}; repeatable (default: all)")
    parser.add_argument("--program", action="append", choices=PROGRAMS, help="repeatable (default: all)")
    parser.add_argument("--layers", type=int, default=2, help="layers of the student, at most 36 (default: 2)")
    parser.add_argument("--config", default="experiments/qwen3_4b_math.py", help="config file, FILE[:arg]")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a config key; repeatable")
    parser.add_argument("--out", help="JSON file of the results; existing entries are kept and not compiled again")
    parser.add_argument("--before", help="JSON file of earlier results, shown in the same table")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(compiled(args.slice[0], args.program[0], args.layers, args.config, args.set)))
        return
    found = read(args.out)
    for name in args.slice or SLICES:
        if not installed(name):
            print(f"{name}: its compiler is not installed, left out", file=sys.stderr)
            continue
        for program in args.program or PROGRAMS:
            key = f"{name} {program} {args.layers}"
            if key not in found:
                command = [sys.executable, "-m", "benchmarks.hlo", "--child", "--slice", name, "--program", program]
                command += ["--layers", str(args.layers), "--config", args.config]
                command += [x for change in args.set for x in ("--set", change)]
                child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
                if child.returncode:
                    print(f"{key}: failed with exit code {child.returncode}", file=sys.stderr)
                    continue
                found[key] = json.loads(child.stdout.splitlines()[-1])
                if args.out:
                    pathlib.Path(args.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found, read(args.before)))


def read(file: str | None) -> dict[str, dict]:
    path = pathlib.Path(file) if file else None
    return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}


def installed(name: str) -> bool:
    """Whether the compiler for a slice is there."""
    if name.startswith("h100"):
        return not gpu.missing()
    return importlib.util.find_spec("libtpu") is not None


def compiled(name: str, program: str, layers: int, config: str, changes: list[str]) -> dict:
    """The compiler's report about one program, as JSON values; for decoding also what `_token_step` needs."""
    from ropd_jax.plan import prepare

    topology = f"gpu:{name}" if name.startswith("h100") else name
    prepare(topology)
    import jax

    from ropd_jax.configs import load_config
    from ropd_jax.plan import measure, programs
    from ropd_jax.plan.chips import parse_topology
    from ropd_jax.plan.compiled import compile_program
    from ropd_jax.plan.shapes import model_config
    from ropd_jax.sampling import paged_attention, pages
    from ropd_jax.sampling.engine import layout

    cfg = load_config(config)
    cfg.update_from_flattened_dict(CHANGES.get(name, {}) | dict(_change(change) for change in changes))
    model = model_config(cfg.student.checkpoint)
    model = dataclasses.replace(model, num_layers=layers, local_layers=model.local_layers[:layers])
    mesh = measure.make_mesh(cfg, model, parse_topology(topology))
    with jax.set_mesh(mesh):
        make = programs.update_programs if program == "update" else programs.sampler_programs
        one = next(p for p in make(cfg, model, mesh) if p.name == program)
        own = mesh if program == "update" else programs.sampling_mesh(cfg, mesh)
        title = f"{name} as fsdp={own.shape['fsdp']} tp={own.shape['tp']}"
        found = dataclasses.asdict(compile_program(one, slice_name=title, report=say))
        if program == "decode" and (ghz := GHZ.get(name.split(":")[0])):
            engine = programs.engine_of(cfg, mesh)
            heads = 2 * model.num_kv_heads // own.shape["tp"] * model.head_dim
            with jax.set_mesh(own):
                rows = layout(engine).rows
            found["token"] = {
                "kernel": pages.uses_kernel(engine.attention, model, engine.page),
                "ghz": ghz,
                "bandwidth": parse_topology(name).chip.bandwidth,
                "position_bytes": int(layers * heads * programs.cache_itemsize(cfg)),
                "full": rows * engine.max_tokens,
                "block": paged_attention.BLOCK * engine.page,
            }
        return found


def _change(text: str) -> tuple[str, Any]:
    """``mesh.tp=2`` as a number, ``sampling.attention=xla`` as a text."""
    key, value = text.split("=", 1)
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def say(text: str) -> None:
    print(f"{time.strftime('%X')} {text}", file=sys.stderr, flush=True)


def table(found: dict[str, dict], before: dict[str, dict]) -> str:
    """Markdown: one row per program; decoding per token, the others per call."""
    lines = [
        "| slice | layers | program | collectives | MB received | of all-gathers, MB | cycles, M | cast, MB "
        "| arguments, MB | temporaries, MB | token step, ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, one in found.items():
        name, program, layers = key.split()
        cells = _cells(one)
        if earlier := before.get(key):
            cells = [a if a == b else f"{a} -> {b}" for a, b in zip(_cells(earlier), cells, strict=True)]
        what = "decode, a token" if program == "decode" else program
        lines.append(f"| {name} | {layers} | {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(one: dict) -> list[str]:
    if not one["fits"]:
        return ["does not fit", "", "", "", "", "", f"peak >= {one['peak'] / 1e6:,.0f}"]
    work, token = one["loop"] or one, one.get("token")
    steps = [f"{_token_step(one, n):.1f}" for n in (MEAN_POSITIONS, token["full"])] if token else []
    gathers = sum(c["bytes"] for c in work["collectives"] if c["kind"] == "all-gather")
    return [
        str(sum(c["count"] for c in work["collectives"])),
        f"{sum(c['bytes'] for c in work['collectives']) / 1e6:,.2f}",
        f"{gathers / 1e6:,.2f}",
        f"{work['cycles'] / 1e6:,.2f}" + (f" + {one['inner_cycles'] / 1e6:,.3f} n" if one["loop"] else ""),
        f"{work['cast_bytes'] / 1e6:,.1f}",
        f"{one['arguments'] / 1e6:,.0f}",
        f"{one['temporaries'] / 1e6:,.0f}",
        " / ".join(steps),
    ]


def _token_step(one: dict, positions: int) -> float:
    """Milliseconds if a part reads this many positions of the cache; see the module docstring."""
    t = one["token"]
    fixed = one["loop"]["cycles"] / t["ghz"] / 1e6
    if t["kernel"]:
        return fixed + positions * t["position_bytes"] / t["bandwidth"] * 1e3
    return fixed + -(-positions // t["block"]) * one["inner_cycles"] / t["ghz"] / 1e6


if __name__ == "__main__":
    main()
