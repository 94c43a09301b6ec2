"""Generated tokens per second: ours, Tunix's sampler and transformers.generate, compared with the machine's limits.

    make bench-rollout                                    # only ours and the bound; reports missing peers
    python -m benchmarks.rollout --tunix PYTHON --torch PYTHON              # about 25 minutes on two cores
    python -m benchmarks.rollout --tunix PYTHON --torch PYTHON --smoke      # a test run without figures

``--tunix`` and ``--torch`` are interpreters that have google-tunix, or torch and transformers. Every engine runs in its
own process, with the same float32 weights of SmolLM2-135M, the same 64-token prompts, temperature 1 and no stop tokens:

    equal16, equal64   2 and 8 prompts x 8 rollouts of 128 tokens
    lognormal          64 prompts x 8 rollouts, log-normal lengths (median 64, 99th percentile 512, at most 512), which
                       no engine knows in advance: ours gets the end of each rollout as it would from a stop token.
                       The peers decode a batch until its longest is done; they run ``--peer-batches`` batches of 64
                       rows (one prompt set after the other), and only the requested tokens count.

The first call of every case compiles and is not counted. The peers' log-normal batch takes minutes, so its first call
has only a few tokens, and Tunix compiles once more within the counted call. The bound is max(FLOPs / peak of a 2048^3
matmul, bytes of weights and live cache / bandwidth of a long sum) of each decode step plus the prompts' prefill, both
measured in the same run. The FLOPs of a prefill are counted in its program. ``busy`` is the share of the machine that
other processes took in the meantime. Above a few percent they distort the wall-clock ratios, and ``cpu`` (tokens per
CPU second, all threads) is more reliable.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rollout_peers import Window
from ropd_jax.sampling.engine import EngineConfig, empty_cache, layout, prefill, sample_groups
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.types import Message, Prompt
from ropd_jax.weights.student import load_checkpoint

PROMPT, G, ROWS = 64, 8, 64


def make_cases(vocab: int, *, tokens: int, prompts: int, longest: int) -> dict[str, dict]:
    """``prompts`` [P][64] and ``lengths`` [P][8] of each case."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, vocab, (max(prompts, ROWS // G), PROMPT)).tolist()
    sigma = np.log(512 / 64) / 2.3263
    drawn = np.exp(np.log(64) + sigma * rng.standard_normal((prompts, G)))
    lengths = np.clip(np.round(drawn), 1, longest).astype(int).tolist()
    equal = {f"equal{n}": {"prompts": ids[: n // G], "lengths": [[tokens] * G] * (n // G)} for n in (16, 64)}
    return equal | {"lognormal": {"prompts": ids[:prompts], "lengths": lengths}}


# --------------------------------------------------------------------------------------------------------- ours


def ours(cases: dict[str, dict], chunk: int, reps: int) -> None:
    student = load_checkpoint("smollm2")
    params = jax.tree.map(jnp.asarray, student.params)
    for name, case in cases.items():
        lengths = case["lengths"]
        engine = EngineConfig(
            rollouts=G,
            prompts=min(len(lengths), ROWS // G),
            prompt_len=PROMPT,
            max_tokens=max(map(max, lengths)),
            stop_ids=(student.cfg.vocab_size,),
            rule=SamplingRule(),
            chunk=chunk,
        )
        if name == next(iter(cases)):
            found = bounds(student.cfg, params, cases)
            found |= prefill_flops(student.cfg, engine, params)
            print(json.dumps({"bound": found}), flush=True)
        prompts = [Prompt(str(i), (Message("user", "?"),)) for i in range(len(lengths))]
        tokens = [np.asarray(t, np.int32) for t in case["prompts"]]
        for rep in range(2 if name == "lognormal" else reps + 1):
            with Window() as window:
                groups = sample_groups(
                    student.cfg, engine, params, student.tokenizer, prompts, tokens, seed=rep, step=0, limits=lengths
                )
                found = {g.index: [len(r.tokens_T) for r in g.rollouts] for g in groups}
            assert [found[i] for i in range(len(prompts))] == lengths
            if rep:
                print(json.dumps({"case": name, **window.row(sum(map(sum, lengths)))}), flush=True)


def prefill_flops(cfg, engine: EngineConfig, params) -> dict[str, float]:
    """FLOPs that XLA counts in the prefill of one prompt and its 8 rollouts, and those of one prompt's matmuls.

    For one layer (XLA counts the body of a scan once), before compiling (afterwards YNNPACK matmuls are not counted).
    """
    cfg, engine = dataclasses.replace(cfg, num_layers=1), dataclasses.replace(engine, prompts=1)
    one = params | {"layers": jax.tree.map(lambda x: x[:1], params["layers"])}
    cache = empty_cache(cfg, engine, layout(engine), pages=1)
    arrays = jnp.zeros((1, PROMPT), jnp.int32), jnp.full((1,), PROMPT - 1, jnp.int32), jnp.zeros((1,), jnp.int32)
    counted = prefill.lower(cfg, engine.dtype, one, cache.prompts, *arrays).cost_analysis()["flops"]
    return {"prefill_flops": counted, "prompt_flops": 2 * PROMPT * sum(x.size for x in jax.tree.leaves(one["layers"]))}


def bounds(cfg, params, cases: dict[str, dict]) -> dict[str, float]:
    """Tokens per second that weights, cache and matmuls allow, for each case."""

    def best(f, *args) -> float:
        jax.block_until_ready(f(*args))
        times = []
        for _ in range(10):
            start = time.perf_counter()
            jax.block_until_ready(f(*args))
            times.append(time.perf_counter() - start)
        return min(times)

    square, long = jnp.ones((2048, 2048)), jnp.ones((100_000_000,))
    peak = 2 * 2048**3 / best(jax.jit(lambda a: a @ a), square)
    bandwidth = 4e8 / best(jax.jit(jnp.sum), long)
    weights = sum(x.size for x in jax.tree.leaves(params))
    slot = 2 * cfg.num_kv_heads * cfg.head_dim * cfg.num_layers  # numbers in the cache for a token
    found = {"gemm_gflops": peak / 1e9, "read_gb_s": bandwidth / 1e9}
    for name, case in cases.items():
        lengths = np.array(case["lengths"])
        rows = min(lengths.size, ROWS)
        steps = lengths.sum() / rows  # every row always has work
        own = (lengths * (lengths + 1) / 2).sum() / lengths.sum()  # mean tokens of its own that a token attends to
        flops = rows * (2 * weights + 4 * cfg.num_heads * cfg.head_dim * cfg.num_layers * (PROMPT + own))
        read = 4 * (weights + slot * rows * (PROMPT / G + own))  # a prompt is read once for its rollouts
        prefill = 2 * len(lengths) * PROMPT * weights / peak
        found[name] = float(lengths.sum() / (steps * max(flops / peak, read / bandwidth) + prefill))
    return found


# -------------------------------------------------------------------------------------------------------- driver


def export(directory: pathlib.Path) -> pathlib.Path:
    """The weights for the peers: one .npz, layers stacked, names as `ropd_jax.models.transformer` has them."""
    student = load_checkpoint("smollm2")
    flat = jax.tree_util.tree_flatten_with_path(student.params)[0]
    names = {"/".join(key.key for key in path): np.asarray(x) for path, x in flat}
    np.savez(directory / "weights.npz", **names)
    cfg = student.cfg
    shape = {k: getattr(cfg, k) for k in ("vocab_size", "num_layers", "d_model", "num_heads", "num_kv_heads",
             "head_dim", "mlp_dim", "rope_theta", "norm_eps", "max_seq_len")}  # fmt: skip
    (directory / "shape.json").write_text(json.dumps(shape))
    return directory


def run(label: str, command: list[str], rows: list[dict], seconds: float) -> dict:
    bound: dict = {}
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}
    try:
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
        out, error = process.stdout, process.stderr if process.returncode else ""
    except subprocess.TimeoutExpired as late:
        out, error = (late.stdout or b"").decode(), f"stopped after {seconds:.0f} s"
    for line in out.splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            bound |= row.pop("bound", {})
            rows += [{"engine": label} | row] if row else []
    if error:
        print(f"{label} failed: {error.strip().splitlines()[-1]}", flush=True)
    return bound


def table(rows: list[dict], bound: dict) -> None:
    counted, prompt = (bound.get(k, 0) / 1e6 for k in ("prefill_flops", "prompt_flops"))
    print(f"\nprefill for {G} rollouts, per layer: {counted:.1f} MFLOP; one prompt through its weights: {prompt:.1f}")
    print(f"matmul peak {bound.get('gemm_gflops', 0):.0f} GFLOP/s, read {bound.get('read_gb_s', 0):.1f} GB/s")
    print(f"{'case':<10} {'engine':<13} {'tok/s':>8} {'of bound':>9} {'tok/cpu-s':>10} {'busy':>6} {'reps':>5}")
    cases = dict.fromkeys(r["case"] for r in rows)
    for case in cases:
        best: dict[str, dict] = {}
        for engine in dict.fromkeys(r["engine"] for r in rows):
            mine = [r for r in rows if r["case"] == case and r["engine"] == engine]
            if mine:
                best[engine] = top = max(mine, key=lambda r: r["tokens"] / r["seconds"])
                speed, cpu = top["tokens"] / top["seconds"], top["tokens"] / top["cpu"]
                share = f"{speed / bound[case]:.0%}" if case in bound else "?"
                print(
                    f"{case:<10} {engine:<13} {speed:>8.1f} {share:>9} {cpu:>10.1f} {top['busy']:>6.0%} {len(mine):>5}"
                )
        for key, what in (("seconds", "wall-clock"), ("cpu", "CPU time")):
            speeds = {e: r["tokens"] / r[key] for e, r in best.items()}
            mine = speeds.pop("ours", None)
            if mine and speeds:
                ratios = ", ".join(f"{mine / s:.2f} x {e}" for e, s in speeds.items())
                print(f"{case:<10} ours by {what}: {ratios}")


def main(argv: list[str] | None = None) -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--tunix", default="", help="an interpreter with google-tunix")
    ap.add_argument("--torch", default="", help="an interpreter with torch and transformers")
    ap.add_argument("--cases", default="equal16,equal64,lognormal")
    ap.add_argument("--tokens", type=int, default=128, help="tokens per rollout in the equal cases")
    ap.add_argument("--prompts", type=int, default=64, help="prompts of the log-normal case")
    ap.add_argument("--longest", type=int, default=512, help="maximum length in the log-normal case")
    ap.add_argument("--peer-batches", type=int, default=1, help="log-normal batches of 64 rows that the peers run")
    ap.add_argument("--chunk", type=int, default=8)
    ap.add_argument("--reps", type=int, default=2)
    ap.add_argument("--timeout", type=float, default=3600, help="seconds for each engine")
    ap.add_argument("--out", default="", help="also write the rows to this file, as JSON lines")
    ap.add_argument("--smoke", action="store_true", help="a test run: few tokens, prompts and repetitions")
    ap.add_argument("--worker", default="", help=argparse.SUPPRESS)
    args = ap.parse_args(argv)
    if args.smoke:
        args.tokens, args.prompts, args.longest, args.reps = 8, 12, 16, 1
    sizes = {"tokens": args.tokens, "prompts": args.prompts, "longest": args.longest}
    if args.worker:
        ours(json.loads(pathlib.Path(args.worker).read_text()), args.chunk, args.reps)
        return
    with tempfile.TemporaryDirectory() as name:
        directory = export(pathlib.Path(name))
        shape = json.loads((directory / "shape.json").read_text())
        wanted = args.cases.split(",")
        cases = {k: v for k, v in make_cases(shape["vocab_size"], **sizes).items() if k in wanted}
        (directory / "cases.json").write_text(json.dumps(cases))
        rows: list[dict] = []
        common = ["--chunk", str(args.chunk), "--reps", str(args.reps)]
        me = [sys.executable, "-m", "benchmarks.rollout", "--worker", str(directory / "cases.json"), *common]
        print("ours ...", flush=True)
        bound = run("ours", me, rows, args.timeout)
        for label, python in (("tunix", args.tunix), ("transformers", args.torch)):
            if not python:
                flag = "--tunix" if label == "tunix" else "--torch"
                print(f"{label}: no interpreter given ({flag}), left out", flush=True)
                continue
            print(f"{label} ...", flush=True)
            peer = pathlib.Path(__file__).with_name("rollout_peers.py")
            batches = ["--batches", str(args.peer_batches), "--reps", str(args.reps)]
            run(label, [python, str(peer), label, str(directory), *batches], rows, args.timeout)
        if args.out:
            pathlib.Path(args.out).write_text("".join(json.dumps(r) + "\n" for r in [{"bound": bound}, *rows]))
        table(rows, bound)


if __name__ == "__main__":
    main()
