"""What a save costs: the time that it blocks the run, against a synchronous one; signal to complete checkpoint; damage.

    make bench-save                                    a student of SmolLM2-135M's shape, random weights and moments
    python -m benchmarks.save --layers 2 --repeats 1   smaller
    python -m benchmarks.save --dir gs://bucket/tmp    another disk, or a bucket

In each pair of saves, one waits for its write, as all saves did before, and one returns after the copy while an update
runs that donates the arrays. Then SIGTERM is sent while the student samples. Finally 16 bytes of a small checkpoint are
overwritten at random places: does Orbax notice when it loads them, and do the checksums?
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.sampling.engine import EngineConfig, sample_groups
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.training.update import State
from ropd_jax.types import Message, Prompt
from ropd_jax.utils.interrupt import Interrupt, Interrupted
from ropd_jax.weights.families import read_config
from ropd_jax.workdir import checksums
from ropd_jax.workdir.checkpoint import Checkpoints

SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000, "tie_word_embeddings": True,
    "hidden_act": "silu",
}  # fmt: skip


class Numbers:
    """A tokenizer whose text is token ids."""

    stop_ids, pad_id, vocab_size = (0,), 0, SMOLLM2_135M["vocab_size"]

    def decode(self, ids) -> str:
        return " ".join(map(str, ids))


def student(layers: int) -> ModelConfig:
    with tempfile.TemporaryDirectory() as directory:
        text = json.dumps(SMOLLM2_135M | {"num_hidden_layers": layers})
        (pathlib.Path(directory) / "config.json").write_text(text)
        return read_config(directory)


def random_state(cfg: ModelConfig, seed: int = 0) -> State:
    """Parameters and two moments of the optimizer, all random, as after the first step of a run."""
    rng = np.random.default_rng(seed)

    def tree():
        draw = lambda x: jnp.asarray(rng.standard_normal(x.shape, np.float32) * np.float32(0.02))  # noqa: E731
        return jax.tree.map(draw, transformer.param_shapes(cfg))

    return State(tree(), (tree(), tree()), ())


def blocking(directory: epath.Path, state: State, repeats: int) -> tuple[State, dict[str, list[float]]]:
    """Seconds: ``sync`` and ``copy`` are how long a save blocks, ``write`` how long it writes during the update."""
    found: dict[str, list[float]] = {"sync": [], "copy": [], "write": [], "update": []}
    update = jax.jit(lambda tree: jax.tree.map(lambda x: x * jnp.float32(0.999), tree), donate_argnums=0)
    checkpoints = Checkpoints(directory, keep=1)
    step = 0
    for _ in range(repeats):
        for name in ("sync", "copy"):
            step += 1
            begin = time.monotonic()
            checkpoints.save(step, state, {}, wait=name == "sync")
            found[name].append(time.monotonic() - begin)
            begin = time.monotonic()
            state = jax.block_until_ready(update(state))
            if name == "copy":
                found["update"].append(time.monotonic() - begin)
                checkpoints.wait()
                found["write"].append(checkpoints.times()["time/checkpoint_write_s"])
            else:
                checkpoints.times()
    checkpoints.close()
    return state, found


def signalled(directory: epath.Path, cfg: ModelConfig, state: State) -> tuple[float, float]:
    """Seconds from SIGTERM to the end of the chunk of sampling, and to the complete checkpoint."""
    prompt = Prompt("p", (Message("user", "1"),))
    tokens_T = np.arange(1, 9, dtype=np.int32)
    engine = EngineConfig(
        rollouts=4, prompts=1, prompt_len=16, max_tokens=4096, stop_ids=(), rule=SamplingRule(1.0), page_chunks=64
    )
    interrupt, chunks = Interrupt(), []

    def check() -> None:
        chunks.append(1)
        if len(chunks) == 2:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        interrupt.check()

    checkpoints = Checkpoints(directory, keep=1)
    with interrupt.listening(), jax.set_mesh(mesh_lib.make_mesh(1, 1, jax.devices()[:1])):
        try:
            for _ in sample_groups(
                cfg, engine, state.params, Numbers(), [prompt], [tokens_T], seed=0, step=0, check=check
            ):
                pass
        except Interrupted:
            stopped = interrupt.waited_s()
            checkpoints.save(1, state, {}, wait=True)
            return stopped or 0.0, interrupt.waited_s() or 0.0
        finally:
            checkpoints.close()
    raise RuntimeError("sampling finished before the signal came")


def damaged(trials: int) -> dict[str, int]:
    """Counts of checkpoints with 16 overwritten bytes at a random place: how many Orbax refuses, how many it loads
    with other numbers or with the same, and how many the checksums find."""
    found = {"refused by Orbax": 0, "loaded with other numbers": 0, "loaded with the same numbers": 0}
    sums, rng = 0, random.Random(0)
    values = {"w": jnp.asarray(np.random.default_rng(1).standard_normal((128, 128), np.float32)), "n": jnp.zeros(4)}
    with tempfile.TemporaryDirectory() as folder:
        whole = pathlib.Path(folder) / "whole"
        checkpoints = Checkpoints(whole, keep=1)
        checkpoints.save(1, values, {}, wait=True)
        for trial in range(trials):
            one = pathlib.Path(folder) / str(trial)
            shutil.copytree(whole, one)
            file = rng.choice(sorted(p for p in (one / "1").rglob("*") if p.is_file()))  # each file equally often
            data = bytearray(file.read_bytes())
            at = rng.randrange(max(len(data) - 15, 1))
            data[at : at + 16] = rng.randbytes(len(data[at : at + 16]))
            file.write_bytes(bytes(data))
            sums += bool(checksums.damage(epath.Path(one / "1")))
            reader = Checkpoints(one, keep=1)
            try:
                got, _ = reader.restore(1, values)
                pairs = zip(jax.tree.leaves(got), jax.tree.leaves(values), strict=True)
                same = all(np.array_equal(a, b) for a, b in pairs)
                found["loaded with the same numbers" if same else "loaded with other numbers"] += 1
            except Exception:
                found["refused by Orbax"] += 1
            finally:
                reader.close()
            shutil.rmtree(one)
        checkpoints.close()
    return found | {"found by the checksums": sums}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=SMOLLM2_135M["num_hidden_layers"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--damages", type=int, default=100)
    parser.add_argument("--dir", default="", help="directory for the checkpoints (default: a temporary one)")
    args = parser.parse_args()
    folder = epath.Path(args.dir or tempfile.mkdtemp()) / "bench-save"
    show = sys.stdout.write
    cfg = student(args.layers)
    state = random_state(cfg)
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    show(f"{sum(x.size for x in jax.tree.leaves(state.params)) / 1e6:.0f} M parameters, {size / 1e9:.2f} GB\n")
    try:
        state, found = blocking(folder / "blocking", state, args.repeats)
        middle = {name: statistics.median(values) for name, values in found.items()}
        show("".join(f"{name:>8} {', '.join(f'{x:.2f}' for x in values)} s\n" for name, values in found.items()))
        show(f"a save blocks for {middle['copy'] / middle['sync']:.3f} of the time of a synchronous one; ")
        show(f"{size / middle['write'] / 1e9:.2f} GB/s written and checksummed during an update\n")
        stopped, complete = signalled(folder / "signal", cfg, state)
        show(f"SIGTERM while sampling: stopped after {stopped:.2f} s, complete checkpoint after {complete:.2f} s; ")
        show(f"{(complete - stopped) / middle['sync']:.2f} of a synchronous save\n")
    finally:
        folder.rmtree(missing_ok=True)
    counts = damaged(args.damages)
    show("".join(f"{count:>5} of {args.damages} {what}\n" for what, count in counts.items()))


if __name__ == "__main__":
    main()
