"""What the compilers make of decode, prefill and update of Qwen3-4B: collectives and bytes a token, cycles, memory.

    make bench-hlo                                            # two layers of 36, all slices; half an hour on idle cores
    python -m benchmarks.hlo --slice v5e:4x4 --program decode --layers 36
    python -m benchmarks.hlo --out after.json --before before.json

No TPU and no GPU is needed: libtpu (pip install '.[tpu-aot]') compiles for TPUs, XLA:GPU (pip install '.[gpu-aot]')
for 8 H100; a slice whose compiler is not installed is left out. The config is experiments/qwen3_4b_math.py. A layer
adds the same each time, so two layers tell what 36 do, at a tenth of the time. Each program compiles in a process of
its own, one after another; what is known of an equal program is read from ~/.cache/ropd_jax/plan.

Of decoding the columns are of one token: what lies inside the loop over tokens. "cycles" are the TPU compiler's
estimates, without waits for memory and other chips; of a token they are a fixed part and that of one pass of each of
attention's loops (before blocks: a page of all rows; now: a block of 128 pages of the pool, of 256 prompt positions).
"cast" are results of conversions of at least 1 MB.
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

SLICES = ("v5e:4x4", "v6e:2x2", "v5p:2x2x1", "h100x8")
PROGRAMS = ("decode", "prefill", "update")
CHANGES = {"v6e:2x2": {"sampling.prompts_at_once": 4}}  # else it does not fit: docs/plan.md


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slice", action="append", help=f"one of {', '.join(SLICES)}; may be given again (all)")
    parser.add_argument("--program", action="append", choices=PROGRAMS, help="may be given again (all)")
    parser.add_argument("--layers", type=int, default=2, help="of the student; 36 is all (2)")
    parser.add_argument("--config", default="experiments/qwen3_4b_math.py", help="config file, FILE[:arg]")
    parser.add_argument("--out", help="JSON file of the results; what it has already stays and is not compiled again")
    parser.add_argument("--before", help="JSON file of earlier results, shown in the same table")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(compiled(args.slice[0], args.program[0], args.layers, args.config)))
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
    if name.startswith("h100"):
        return importlib.util.find_spec("jax_plugins.xla_cuda12") is not None
    return importlib.util.find_spec("libtpu") is not None


def compiled(name: str, program: str, layers: int, config: str) -> dict:
    """The compiler's report about one program, as JSON values."""
    from ropd_jax.plan import gpu, prepare

    gpu.prepare_gpu() if name.startswith("h100") else prepare(name)
    import jax

    from ropd_jax.configs import load_config
    from ropd_jax.parallel import mesh as mesh_lib
    from ropd_jax.plan import measure, programs
    from ropd_jax.plan.chips import parse_topology
    from ropd_jax.plan.compiled import compile_program
    from ropd_jax.plan.shapes import model_config

    cfg = load_config(config)
    cfg.update_from_flattened_dict(CHANGES.get(name, {}))
    model = model_config(cfg.student.checkpoint)
    model = dataclasses.replace(model, num_layers=layers, local_layers=model.local_layers[:layers])
    if name.startswith("h100"):
        chip, count = name.split("x")
        mesh = mesh_lib.update_mesh(cfg.mesh, devices=gpu.gpu_devices(chip, int(count)))
    else:
        mesh = measure.make_mesh(cfg, model, parse_topology(name))
    with jax.set_mesh(mesh):
        make = programs.update_programs if program == "update" else programs.sampler_programs
        one = next(p for p in make(cfg, model, mesh) if p.name == program)
        title = f"{name} as fsdp={mesh.shape['fsdp']} tp={mesh.shape['tp']}"
        return dataclasses.asdict(compile_program(one, slice_name=title, report=say))


def say(text: str) -> None:
    print(f"{time.strftime('%X')} {text}", file=sys.stderr, flush=True)


def table(found: dict[str, dict], before: dict[str, dict]) -> str:
    """Markdown: a row for each program; of decoding a token, of the others a call."""
    lines = [
        "| slice | layers | program | collectives | MB received | of all-gathers, MB | cycles, M | cast, MB "
        "| arguments, MB | temporaries, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
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
    work = one["loop"] or one
    gathers = sum(c["bytes"] for c in work["collectives"] if c["kind"] == "all-gather")
    return [
        str(sum(c["count"] for c in work["collectives"])),
        f"{sum(c['bytes'] for c in work['collectives']) / 1e6:,.2f}",
        f"{gathers / 1e6:,.2f}",
        f"{work['cycles'] / 1e6:,.2f}" + (f" + {one['inner_cycles'] / 1e6:,.3f} n" if one["loop"] else ""),
        f"{work['cast_bytes'] / 1e6:,.1f}",
        f"{one['arguments'] / 1e6:,.0f}",
        f"{one['temporaries'] / 1e6:,.0f}",
    ]


if __name__ == "__main__":
    main()
