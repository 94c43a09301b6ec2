"""The update next to its peers, on one machine, in one run. ``make bench-update``

Shapes of SmolLM2-135M, random float32 weights, GRPO loss, AdamW. First the gradients are compared on a few rows: ours,
Tunix's and torch's (TRL's log-probs). Then each updates in its own process, so that peak memory is measured separately.
The speed of a shared machine drifts, so updates of ours and of the peer alternate.

1. Equal lengths, 16 x 192 tokens (64 of prompt): tokens per second, peak RSS, and for ours what the compiled program
   reports in addition to the state (exact). The share of the GEMM peak counts the FLOPs that the gradient needs
   (forward and twice that backward, the output head on answers only), not those that remat adds.
2. Log-normal lengths: the same tokens padded to the longest, and packed; torch padded to the longest for comparison.

    --smoke           small shapes, seconds
    --tunix PYTHON    an interpreter with google-tunix; without it Tunix is left out, with a note in the output
    --torch PYTHON    one with torch, transformers and trl; likewise
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.update_peers import timed
from ropd_jax import configs
from ropd_jax.core.batches import TokenSequence, make_batch, pack, real_frac, split_parts
from ropd_jax.methods import load_method
from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.training.setup import read_config, update_config
from ropd_jax.training.update import State, make_update
from ropd_jax.weights.hf import save_hf

SMOL = dict(vocab_size=49_152, num_layers=30, d_model=576, num_heads=9, num_kv_heads=3, head_dim=64, mlp_dim=1_536)
SMALL = dict(vocab_size=2_048, num_layers=3, d_model=96, num_heads=6, num_kv_heads=2, head_dim=16, mlp_dim=256)
ROWS, LENGTH, PROMPT, FEW = 16, 192, 64, 2
OLD_LOGP = -10.8  # for every sampled token; about ln(1/V), so that no ratio is far from 1
SEQUENCES, LONGEST, ROW_LEN = 16, 512, 512  # the log-normal case
PEERS = str(pathlib.Path(__file__).with_name("update_peers.py"))
PADDED_PART = 4  # rows that a peer processes at once there: with all 16, only its logits take 1.4 GB per copy


def model(smoke: bool) -> ModelConfig:
    """The student's config with rope base 1e6, which Tunix's Llama uses regardless of its config."""
    shape = SMALL if smoke else SMOL
    return ModelConfig(**shape, rope_theta=1e6, norm_eps=1e-5, tied=True, max_seq_len=8_192)


def config(**changes):
    cfg = configs.default()
    cfg.loss.aggregation, cfg.loss.clip_low, cfg.loss.clip_high = "token_mean", 100.0, 100.0
    cfg.optim.schedule, cfg.optim.warmup_steps, cfg.optim.weight_decay = "constant", 0, 0.0
    cfg.optim.b2, cfg.optim.remat, cfg.optim.logprob_chunk = 0.999, "dots", 128
    cfg.update_from_flattened_dict(changes)
    return cfg


def sequences(lengths, vocab: int, seed: int = 0) -> tuple[list[TokenSequence], np.ndarray]:
    """Random sequences with answers of these lengths, and their advantages."""
    rng = np.random.default_rng(seed)
    made = [
        TokenSequence(
            *(rng.integers(3, vocab, k).astype(np.int32) for k in (PROMPT, n)), np.full(n, OLD_LOGP, np.float32)
        )
        for n in lengths
    ]
    return made, rng.normal(size=len(made)).astype(np.float32)


def log_normal_lengths(seed: int = 1) -> np.ndarray:
    """Answer lengths of 16 sequences; the longest one determines the cost of padding."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(80), 0.9, SEQUENCES), 8, LONGEST - PROMPT).astype(int)
    lengths[0] = LONGEST - PROMPT
    return lengths


def flops(cfg: ModelConfig, lengths, answers) -> float:
    """What one gradient needs: 6 per weight and token, the head only on answers; scores and values of visible pairs."""
    weights = cfg.d_model * cfg.head_dim * 2 * (cfg.num_heads + cfg.num_kv_heads) + 3 * cfg.d_model * cfg.mlp_dim
    pairs = sum(n * (n + 1) / 2 for n in lengths)
    layers = 6 * weights * sum(lengths) + 12 * cfg.num_heads * cfg.head_dim * pairs
    return cfg.num_layers * layers + 6 * cfg.vocab_size * cfg.d_model * sum(answers)


def gemm_peak() -> dict[str, float]:
    """FLOP per second, by the clock and by CPU time, of a float32 matmul of 2048 x 2048: the best of 10 each."""
    multiply, x = jax.jit(jnp.matmul), jnp.ones((2048, 2048))
    took = timed(lambda: multiply(x, x).block_until_ready(), 11)
    return {key: 2 * 2048**3 / min(values[1:]) for key, values in took.items()}


# ------------------------------------------------------------------------------------------------- a worker: ours


def worker(case: str, where: pathlib.Path, smoke: bool, times: int) -> dict:
    """One case of ours in this process: ``gradient``, ``equal``, ``padded`` or ``packed``."""
    shape = model(smoke)
    params = transformer.init_params(shape, 0)
    if case == "gradient":
        return gradient(shape, params, where)
    lengths = [LENGTH - PROMPT] * ROWS if case == "equal" else log_normal_lengths()
    made, advantage = sequences(lengths, shape.vocab_size)
    yes = np.ones(len(made), bool)
    cfg = config(**{"optim.microbatch": 2 if case == "equal" else 1})
    longest = PROMPT + max(lengths)
    if case == "packed":
        batch = pack(made, advantage, yes, yes, longest, row_len=ROW_LEN, fixed=True)
    else:
        batch = make_batch(made, advantage, yes, yes, longest)
    batch = split_parts(batch, cfg.optim.microbatch)
    tx = read_config(cfg).optim.make(cfg.steps)
    state = State(params, jax.jit(tx.init)(params))
    placed = jax.tree.map(jnp.asarray, batch)
    start = time.perf_counter()
    update = make_update(update_config(cfg), shape, load_method("ropd", cfg), tx).lower(state, None, placed).compile()
    compile_s = time.perf_counter() - start
    held = [state]

    def step():
        held[:] = jax.block_until_ready(update(held[0], None, placed))

    del state
    peaks, measured = [gemm_peak()], {"seconds": [], "cpu": []}
    for _ in range(times):
        for key, values in timed(step, 1, turns=True).items():
            measured[key] += values
        peaks.append(gemm_peak())
    gemm = {key: max(peak[key] for peak in peaks) for key in measured}
    sizes = [len(s.prompt_T) + len(s.completion_T) - 1 for s in made]
    return {
        **measured, "gemm": gemm, "flops": flops(shape, sizes, lengths), "compile_s": compile_s,
        "temp_mb": update.memory_analysis().temp_size_in_bytes / 1e6, "real_frac": real_frac(batch),
        "rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "loss": float(held[1]["update/loss"]),
    }  # fmt: skip


def gradient(shape: ModelConfig, params, where: pathlib.Path) -> dict:
    """The gradient of a few rows as the update makes it: with SGD at rate 1 the parameters move by it."""
    made, advantage = sequences([LENGTH - PROMPT] * ROWS, shape.vocab_size)
    yes = np.ones(FEW, bool)
    batch = split_parts(make_batch(made[:FEW], advantage[:FEW], yes, yes, LENGTH), 1)
    before = jax.device_get(params)
    tx, cfg = optax.sgd(1.0), config()
    update = make_update(update_config(cfg), shape, load_method("ropd", cfg), tx)
    state, metrics = update(State(params, tx.init(params)), None, jax.tree.map(jnp.asarray, batch))
    moved = jax.tree.map(lambda a, b: a - np.asarray(b), before, jax.device_get(state.params))
    np.savez(where / "grads_ours.npz", **named(shape, moved))
    return {"loss": float(metrics["update/loss"])}


def named(shape: ModelConfig, tree) -> dict[str, np.ndarray]:
    """Four of the parameters under their Hugging Face names and in those layouts."""
    layers = tree["layers"]
    return {
        "model.embed_tokens.weight": tree["embed"]["table_VD"],
        "model.layers.0.self_attn.q_proj.weight": layers["attn"]["q_DNH"][0].reshape(shape.d_model, -1).T,
        f"model.layers.{shape.num_layers - 1}.mlp.down_proj.weight": layers["mlp"]["down_FD"][-1].T,
        "model.norm.weight": tree["final_norm"]["scale_D"],
    }


# --------------------------------------------------------------------------------------------------------- report


def prepare(where: pathlib.Path, smoke: bool, times: int) -> None:
    """Weights and batch for the peers."""
    shape = model(smoke)
    params = jax.device_get(transformer.init_params(shape, 0))
    save_hf(where / "model", shape, params)
    flat = {"/".join(str(k.key) for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    np.savez(where / "params.npz", **flat)
    made, advantage = sequences([LENGTH - PROMPT] * ROWS, shape.vocab_size)
    tunix = dict(
        num_layers=shape.num_layers, vocab_size=shape.vocab_size, embed_dim=shape.d_model, hidden_dim=shape.mlp_dim,
        num_heads=shape.num_heads, head_dim=shape.head_dim, num_kv_heads=shape.num_kv_heads,
    )  # fmt: skip
    np.savez(
        where / "batch.npz", tokens=np.stack([np.concatenate([s.prompt_T, s.completion_T]) for s in made]),
        advantage=advantage, prompt=PROMPT, few=FEW, old_logp=OLD_LOGP, times=times, shape=json.dumps(tunix),
        names=json.dumps(list(named(shape, params))),
    )  # fmt: skip
    lengths = log_normal_lengths()
    made, advantage = sequences(lengths, shape.vocab_size)
    tokens = np.zeros((SEQUENCES, PROMPT + max(lengths)), np.int32)
    for row, s in zip(tokens, made, strict=True):
        row[: PROMPT + len(s.completion_T)] = np.concatenate([s.prompt_T, s.completion_T])
    np.savez(
        where / "lognormal.npz", tokens=tokens, length=PROMPT + lengths, part=PADDED_PART, advantage=advantage,
        prompt=PROMPT, old_logp=OLD_LOGP, times=min(times, 2),
    )  # fmt: skip


class Worker:
    """A process that prepares, updates on request (`timed`), and prints its result at the end."""

    def __init__(self, command: list[str]):
        self.command, self.result, self.ended = command, None, False
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.listen()

    def listen(self) -> None:
        """Blocks until the worker waits for its turn or has ended."""
        for line in self.process.stdout:
            if line == "TURN\n":
                return
            if line.startswith("RESULT "):
                self.result = json.loads(line.removeprefix("RESULT "))
        self.ended = True
        if self.process.wait() or self.result is None:
            self.errors.seek(0)
            say(f"{' '.join(self.command[1:4])} failed:\n{self.errors.read()[-2000:]}")
            self.result = None

    def turn(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.listen()


def in_turns(*commands: list[str]) -> list[dict | None]:
    """The results of workers that update alternately; None for one that failed (its error is shown)."""
    workers = [Worker(command) for command in commands]
    while waiting := [w for w in workers if not w.ended]:
        for one in waiting:
            one.turn()
    return [w.result for w in workers]


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--tunix")
    parser.add_argument("--torch")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--worker", nargs=2, metavar=("CASE", "DIR"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        case, where = args.worker
        say("RESULT " + json.dumps(worker(case, pathlib.Path(where), args.smoke, args.times)))
        return
    with tempfile.TemporaryDirectory() as name:
        compare(pathlib.Path(name), args)


def compare(where: pathlib.Path, args: argparse.Namespace) -> None:
    prepare(where, args.smoke, args.times)
    shared = [f"--times={args.times}", *(["--smoke"] if args.smoke else [])]

    def ours(case: str) -> list[str]:
        return [sys.executable, "-m", "benchmarks.update", "--worker", case, str(where), *shared]

    (gradient,) = in_turns(ours("gradient"))
    assert gradient, "our own gradient failed"
    say(f"equal lengths, {ROWS} x {LENGTH}, {args.times} updates each, in turns; tokens/s of the best, ours = 1:")
    for peer, python in (("tunix", args.tunix), ("torch", args.torch)):
        if not python:
            say(f"  {peer}: not compared (no --{peer} PYTHON)")
            continue
        equal, got = in_turns(ours("equal"), [python, PEERS, peer, str(where)])
        if equal and got:
            mine, theirs = (dict(np.load(where / f"grads_{who}.npz")) for who in ("ours", peer))
            off = max(np.linalg.norm(mine[k] - theirs[k]) / np.linalg.norm(theirs[k]) for k in mine)
            say(f"  gradient of {FEW} rows: ours next to {got['by']}: relative distance {off:.1e}, "
                f"loss {gradient['loss']:.6f} and {got['loss']:.6f}")  # fmt: skip
            say_ours(equal)
            say(f"  {got['by']} {ratio(equal, got)}   peak RSS {got['rss_gib']:.1f} GiB, all {times_of(got)}")
    if not (args.tunix or args.torch):
        say_ours(in_turns(ours("equal"))[0])
    cases = [ours("padded"), ours("packed")]
    padded, packed, *other = in_turns(
        *cases, *([[args.torch, PEERS, "torch-lognormal", str(where)]] * bool(args.torch))
    )
    assert padded and packed, "our own update failed"
    say(f"log-normal lengths, {SEQUENCES} sequences, {sum(log_normal_lengths()) + SEQUENCES * PROMPT:,} tokens:")
    for how, got in (("padded", padded), ("packed", packed)):
        say(f"  {how} {ratio(padded, got)}   {got['real_frac']:.1%} of the positions are real, temporaries "
            f"{got['temp_mb']:,.0f} MB, {share_of(got)}, all {times_of(got)}")  # fmt: skip
    for got in filter(None, other):
        say(f"  ours packed {ratio(got, packed)} of {got['by']} padded, {PADDED_PART} rows at a time, peak RSS "
            f"{got['rss_gib']:.1f} GiB, all {times_of(got)}")  # fmt: skip


def say_ours(equal: dict) -> None:
    say(f"  ours 1.00   peak RSS {equal['rss_gib']:.1f} GiB, temporaries {equal['temp_mb']:,.0f} MB, {share_of(equal)} "
        f"({equal['gemm']['seconds'] / 1e9:.0f} GFLOP/s), all {times_of(equal)}")  # fmt: skip


def times_of(got: dict) -> str:
    return " ".join(f"{s:.1f}" for s in got["seconds"]) + " s, CPU " + " ".join(f"{s:.1f}" for s in got["cpu"]) + " s"


def share_of(got: dict) -> str:
    clock, cpu = (got["flops"] / min(got[key]) / got["gemm"][key] for key in ("seconds", "cpu"))
    return f"{clock:.0%} of the GEMM peak ({cpu:.0%} by CPU time)"


def ratio(one: dict, other: dict) -> str:
    """Tokens per second of the second relative to the first: of the best, of the medians, and by CPU time."""
    best, cpu = (min(one[key]) / min(other[key]) for key in ("seconds", "cpu"))
    middle = statistics.median(one["seconds"]) / statistics.median(other["seconds"])
    return f"{best:.2f} (medians {middle:.2f}, CPU time {cpu:.2f})"


if __name__ == "__main__":
    main()
