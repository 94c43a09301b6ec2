"""One page about a machine with TPUs or GPUs, to paste into an issue: under ten minutes, no data, no key.

    make tpu-check                                    # or gpu-check: installs what is missing, then
    python -m benchmarks.chip_check --out runs/chip_check.md
    python -m benchmarks.chip_check --small           # on any CPU, a minute or two: a test run, marked as such
    python -m benchmarks.chip_check --curve           # on a CPU: regenerates the stored curve of the quickstart

    devices      what JAX sees, and its versions
    quickstart   all 48 steps of experiments/quickstart.py on all devices: the reward curve next to those of three
                 seeds on a CPU (benchmarks/chip_check_cpu.json), which differ in their random numbers, as a chip's in
                 rounding
    shapes       layers of Qwen3-4B's sizes (few of them, random weights, bfloat16): tokens per second of decoding, the
                 gap between the sampler's and the trainer's log-probs, tokens per second and MFU of the update; next to
                 the bound and the expectation of `ropd plan` for the same programs

Each section runs even if another failed. A failure is a line of the page, and the exit code is then 1. MFU is the
number of operations that the gradient needs (without recomputation), divided by the time and the published peak of all
devices.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import pathlib
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ropd_jax.configs import load_config
from ropd_jax.core.advantages import Advantages
from ropd_jax.core.batches import TokenSequence
from ropd_jax.methods import load_method
from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.plan import count, measure, programs
from ropd_jax.plan.chips import CPU, Topology, chips
from ropd_jax.plan.shapes import model_config
from ropd_jax.sampling.engine import sample_groups
from ropd_jax.train import train
from ropd_jax.training.rescore import changes_of
from ropd_jax.training.setup import read_config, update_config
from ropd_jax.training.update import State, make_update, on_mesh, step_parts
from ropd_jax.types import Message, Prompt, RolloutGroup
from ropd_jax.workdir.metrics import read_metrics

CURVE = pathlib.Path(__file__).with_name("chip_check_cpu.json")
WINDOW, SEEDS = 4, 3  # steps of the quickstart that are averaged; runs on a CPU
KINDS = {  # part of a device's kind, in lower case -> chip of chips.toml; the first match counts
    "v6 lite": "v6e", "v5 lite": "v5e", "tpu7x": "7x", "tpu v5": "v5p", "tpu v4": "v4",
    "h200": "h200", "h100": "h100", "b200": "b200", "a100": "a100", "4090": "4090",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes of a check. ``prompts`` are per device, with 8 rollouts each."""

    quickstart_steps: int
    model: dict[str, Any]
    prompts: int
    prompt_tokens: int
    answer_tokens: int
    updates: int


LARGE = Size(48, {"num_layers": 4, "vocab_size": 32_768}, 8, 128, 512, 3)
TINY = {"num_layers": 2, "vocab_size": 256, "d_model": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
SMALL = Size(2, TINY | {"mlp_dim": 128}, 2, 16, 24, 1)


def say(text: str) -> None:
    print(f"{time.strftime('%X')} {text}", file=sys.stderr, flush=True)


def topology_here(devices: Sequence[Any]) -> Topology:
    """The slice or box that these devices are; a chip without published figures counts as a CPU."""
    kind = devices[0].device_kind.lower()
    name = next((chip for part, chip in KINDS.items() if part in kind), None)
    if name is None:
        return Topology(CPU, (len(devices),))
    chip = chips()[name]
    if chip.platform == "gpu":
        return Topology(chip, (len(devices),))
    sides = tuple(max(c) + 1 for c in zip(*(d.coords for d in devices), strict=True))
    return Topology(chip, sides[:2] if chip.axes == 2 else sides)


# ------------------------------------------------------------------------------------------------------- sections


def devices_section(size: Size) -> list[str]:
    found = jax.devices()
    names = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "nvidia-cudnn-cu12", "ropd_jax")
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    stats = found[0].memory_stats() or {}
    limit = f"{stats['bytes_limit'] / 1e9:.1f} GB each" if "bytes_limit" in stats else "memory unknown"
    return [
        f"{len(found)} x {found[0].device_kind} ({found[0].platform}), {limit}; the plan treats them as "
        f"{topology_here(found)}; Python {sys.version.split()[0]}, {', '.join(versions)}"
    ]


def quickstart_section(size: Size) -> list[str]:
    cpu = json.loads(CURVE.read_text(encoding="utf-8"))
    start = time.monotonic()
    rewards, gap = quickstart(min(size.quickstart_steps, len(cpu[0])), seed=0)
    lines = [f"{len(rewards)} steps in {time.monotonic() - start:.0f} s; update/logp_gap at most {gap:.1e}", ""]
    return lines + curve_table(rewards, cpu)


def quickstart(steps: int, seed: int) -> tuple[list[float], float]:
    """(mean reward of each step, the largest gap between the sampler's and the trainer's log-probs)."""
    cfg = load_config("experiments/quickstart.py")
    cfg.steps, cfg.seed, cfg.data.heldout, cfg.checkpoint.every = steps, seed, False, steps
    cfg.optim.warmup_steps = min(cfg.optim.warmup_steps, steps)
    with tempfile.TemporaryDirectory() as where:
        train(cfg, where)
        metrics = read_metrics(pathlib.Path(where))
    rewards, gaps = ([float(x) for x in metrics[n][1] if x is not None] for n in ("reward/mean", "update/logp_gap"))
    return [round(x, 4) for x in rewards], max(gaps)


def curve_table(rewards: Sequence[float], cpu: Sequence[Sequence[float]]) -> list[str]:
    """A table of mean rewards over `WINDOW` steps each, next to those of the CPU's seeds.

    Within the range of the seeds, widened by twice their standard deviation, they count as equal.

    With seeds at 0.40, 0.44 and 0.45 (deviation 0.026) that is 0.347 to 0.503.
    """
    lines = ["| steps | here | CPU, three seeds | within noise |", "|---|---|---|---|"]
    starts = range(0, len(rewards), WINDOW)
    windows = [[statistics.fmean(x[i : min(i + WINDOW, len(rewards))]) for x in (rewards, *cpu)] for i in starts]
    noise = statistics.fmean(statistics.stdev(seeds) for _, *seeds in windows)
    for i, (here, *seeds) in zip(starts, windows, strict=True):
        low, high = min(seeds), max(seeds)
        equal = "yes" if low - 2 * noise <= here <= high + 2 * noise else "**no**"
        last = min(i + WINDOW, len(rewards)) - 1
        lines.append(f"| {i} to {last} | {here:.3f} | {low:.3f} to {high:.3f} | {equal} |")
    return lines


class NoText:
    """A tokenizer for random tokens: each of them decodes to the empty text."""

    def decode(self, tokens: Sequence[int]) -> str:
        return ""


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What the sections on Qwen3-4B's sizes share: config, model, mesh, weights, rollouts and the plan's figures."""

    cfg: ConfigDict
    model: ModelConfig
    mesh: jax.sharding.Mesh
    params: Any
    groups: list[RolloutGroup]
    sampled_s: float
    plan: measure.Measured


def shape_config(size: Size, devices: int) -> tuple[ConfigDict, ModelConfig]:
    """The math config with these sizes, on one mesh axis, every answer of full length; and the model."""
    cfg = load_config("experiments/qwen3_4b_math.py")
    cfg.data.prompts_per_step, cfg.data.max_prompt_tokens = size.prompts * devices, size.prompt_tokens
    cfg.sampling.max_tokens, cfg.sampling.prompts_at_once, cfg.sampling.rollouts = size.answer_tokens, 0, 8
    cfg.optim.row_len, cfg.optim.microbatch, cfg.stream.groups = 0, 4 * devices, 0
    cfg.mesh.fsdp, cfg.mesh.tp = -1, 1
    model = model_config(cfg.student.checkpoint)
    local = model.local_layers[: size.model["num_layers"]]
    return cfg, dataclasses.replace(model, **size.model, local_layers=local)


def make_shapes(size: Size, devices: Sequence[Any]) -> Shapes:
    """Samples twice (the first call compiles) and gets the plan's figures for the same programs."""
    cfg, model = shape_config(size, len(devices))
    mesh = mesh_lib.make_mesh(cfg.mesh.fsdp, cfg.mesh.tp, devices=devices)
    say("shapes: the plan compiles update, prefill and decoding")
    plan = measure.measure(cfg, model, topology_here(devices), say, cache=False, mesh=mesh)
    params = transformer.init_params(model, 0)
    params = mesh_lib.put(jax.device_get(params), mesh, mesh_lib.RULES.storage(params))
    say("shapes: sampling, a first time to compile")
    sample(cfg, model, mesh, params, seed=0)
    say("shapes: sampling")
    start = time.perf_counter()
    groups = sample(cfg, model, mesh, params, seed=1)
    return Shapes(cfg, model, mesh, params, groups, time.perf_counter() - start, plan)


def sample(cfg: ConfigDict, model: ModelConfig, mesh, params, *, seed: int) -> list[RolloutGroup]:
    rng = np.random.default_rng(seed)
    n, G = cfg.data.prompts_per_step, cfg.sampling.rollouts
    tokens = list(rng.integers(3, model.vocab_size, (n, cfg.data.max_prompt_tokens)).astype(np.int32))
    prompts = [Prompt(str(i), (Message("user", "?"),)) for i in range(n)]
    with jax.set_mesh(mesh):
        engine = dataclasses.replace(programs.engine_of(cfg, mesh), stop_ids=(model.vocab_size,))
        limits = [[cfg.sampling.max_tokens] * G] * n
        found = sample_groups(model, engine, params, NoText(), prompts, tokens, seed=seed, step=0, limits=limits)  # type: ignore[arg-type]
        return sorted(found, key=lambda g: g.index)


def against(plan: measure.Measured, names: Sequence[str], took: float) -> str:
    """``bound x s (y times), expected ...`` of these phases together."""

    def of(parts: Sequence[Any]) -> float | None:
        known = [p.seconds for p in parts if p.name in names]
        return None if None in known or not known else sum(known)

    found = []
    for word, seconds in (("bound", of(plan.bounds)), ("expected", of(plan.expected))):
        found.append(f"{word} unknown" if seconds is None else f"{word} {seconds:.3f} s ({took / seconds:.2f} x)")
    return "; ".join(found)


def decode_section(s: Shapes) -> list[str]:
    tokens = sum(len(r.tokens_T) for g in s.groups for r in g.rollouts)
    return [
        f"{len(s.groups)} prompts of {s.cfg.data.max_prompt_tokens} tokens x {s.cfg.sampling.rollouts} answers of "
        f"{s.cfg.sampling.max_tokens}: {tokens / s.sampled_s:,.0f} tokens/s; {s.sampled_s:.3f} s with prefill, "
        f"{against(s.plan, measure.SAMPLER, s.sampled_s)}"
    ]


def gap_section(s: Shapes) -> list[str]:
    length = s.cfg.data.max_prompt_tokens + s.cfg.sampling.max_tokens
    with jax.set_mesh(s.mesh):
        changes = changes_of(update_config(s.cfg), s.model, s.params, None, s.groups, s.mesh, length)
    gap_T = np.abs(np.concatenate([x_T for group in changes for x_T in group]))
    return [
        f"log-prob of {gap_T.size:,} tokens, sampler against trainer, {s.cfg.student.dtype}: mean {gap_T.mean():.1e}, "
        f"largest {gap_T.max():.1e} (about 1e-2 is usual for bfloat16)"
    ]


def update_section(s: Shapes, times: int) -> list[str]:
    method, tx = load_method("ropd", s.cfg), read_config(s.cfg).optim.make(s.cfg.steps)
    rows = [TokenSequence(g.prompt_tokens_T, r.tokens_T, r.logp_T) for g in s.groups for r in g.rollouts]
    sampled, yes_B = sum(len(r.completion_T) for r in rows), np.ones(len(rows), bool)
    advantage_B = np.random.default_rng(0).standard_normal(len(rows)).astype(np.float32)
    length = s.cfg.data.max_prompt_tokens + s.cfg.sampling.max_tokens
    took = []
    with jax.set_mesh(s.mesh):
        batch = step_parts(
            rows, Advantages(advantage_B, yes_B, yes_B), method, s.mesh, read_config(s.cfg).optim, length
        )
        update = make_update(update_config(s.cfg), s.model, method, tx)
        state = State(jax.tree.map(jnp.copy, s.params), jax.jit(tx.init)(s.params))
        for i in range(times + 1):
            say(f"update {i} of {times}" + (", which compiles" if i == 0 else ""))
            placed = on_mesh(batch, method, None, s.mesh)
            start = time.perf_counter()
            state, metrics = jax.block_until_ready(update(state, None, *placed))
            took.append(time.perf_counter() - start)
    seconds, each = statistics.median(took[1:]), length - 1
    flops = count.update_flops(
        s.model, tokens=len(rows) * each, contexts=len(rows) * count.contexts(s.model, 0, each), remat=False
    )
    devices = s.mesh.devices.flatten().tolist()
    peak = topology_here(devices).chip.a_device().flops
    mfu = "MFU unknown: no peak is published for this device" if peak is None else (
        f"MFU {flops / (seconds * peak * s.mesh.size):.1%}"
    )  # fmt: skip
    stats = devices[0].memory_stats() or {}
    planned = max(m.peak for m in s.plan.memory)
    used = f"{stats['peak_bytes_in_use'] / 1e9:.2f} GB" if "peak_bytes_in_use" in stats else "unknown"
    return [
        f"{len(rows)} rows of {each} tokens, {sampled:,} sampled, loss {float(metrics['update/loss']):.3g}: "
        f"{seconds:.3f} s (median of {times}), {len(rows) * each / seconds:,.0f} tokens/s, {mfu}; "
        f"{against(s.plan, ('update',), seconds)}",
        "",
        f"Peak memory of a device so far: {used}; largest of the plan's programs {planned / 1e9:.3g} GB.",
    ]


# ----------------------------------------------------------------------------------------------------------- page


def failure(error: Exception) -> str:
    """One line of the page."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error).strip().splitlines() or [""]
    return f"**failed**: {type(error).__name__}: {text[0][:300]} ({pathlib.Path(where.filename).name}:{where.lineno})"


def run(size: Size) -> tuple[list[str], int]:
    """(lines of the page, how many sections failed)."""
    title = "# Check of a chip" if size is LARGE else "# Check of a chip, with small sizes: a test run without figures"
    page, failed = [title, "", f"{time.strftime('%Y-%m-%d')}, `python -m benchmarks.chip_check`", ""], 0
    held: list[Shapes] = []

    def shapes() -> Shapes:
        if not held:
            held.append(make_shapes(size, jax.devices()))
        return held[0]

    def named(layers: int) -> str:
        return f"Layers of Qwen3-4B, {layers} of 36" if size is LARGE else "Small layers"

    layers = named(size.model["num_layers"])
    sections: list[tuple[str, Callable[[], list[str]]]] = [
        ("Devices", lambda: devices_section(size)),
        ("Quickstart", lambda: quickstart_section(size)),
        (f"{layers}: decoding", lambda: decode_section(shapes())),
        (f"{layers}: sampler against trainer", lambda: gap_section(shapes())),
        (f"{layers}: update", lambda: update_section(shapes(), size.updates)),
    ]
    for name, section in sections:
        say(name)
        try:
            lines = section()
        except Exception as error:
            traceback.print_exc()
            failed += 1
            lines = [failure(error)]
        page += [f"## {name}", "", *lines, ""]
    return page, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="small sizes, for a machine without a chip")
    parser.add_argument("--curve", action="store_true", help=f"write {CURVE.name} from runs on this CPU")
    parser.add_argument("--out", default="runs/chip_check.md", help="file of the page (default: runs/chip_check.md)")
    args = parser.parse_args()
    if args.curve:
        seeds = [quickstart(LARGE.quickstart_steps, seed)[0] for seed in range(SEEDS)]
        CURVE.write_text(json.dumps(seeds) + "\n", encoding="utf-8")
        return
    small = args.small or jax.devices()[0].platform == "cpu"
    if small and not args.small:
        say("no TPU and no GPU here: small sizes")
    page, failed = run(SMALL if small else LARGE)
    text = "\n".join(page)
    out = pathlib.Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(text)
    say(f"written to {out}" + (f"; {failed} sections failed" if failed else ""))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
