"""How the update grows: peak memory and time against the row length T and the number of rollouts G.

    make growth        # writes docs/update_growth.png and prints the slopes of the log-log lines

The model is small, so that the growing parts are visible next to the constant ones. Memory is what the compiled program
holds in addition to the state, exact and the same on every run. Time is the CPU seconds of one update after a first
one.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.update import PROMPT, config, model, sequences
from benchmarks.update_peers import timed
from ropd_jax.core.batches import pack, split_parts
from ropd_jax.methods import load_method
from ropd_jax.models import transformer
from ropd_jax.training.setup import read_config, update_config
from ropd_jax.training.update import State, make_update

LENGTHS = (512, 1024, 2048, 4096, 8192)
ROLLOUTS = (4, 8, 16, 32, 64)
COLUMNS = {"memory": "temporaries (MB)", "time": "CPU time (s)"}


def measure(lengths, row_len: int, microbatch: int) -> dict[str, float]:
    """Memory and time of one update on sequences with answers of these lengths, packed."""
    shape = model(smoke=True)
    cfg = config(**{"optim.microbatch": microbatch, "optim.remat": "block"})
    made, advantage = sequences(lengths, shape.vocab_size)
    yes = np.ones(len(made), bool)
    batch = pack(made, advantage, yes, yes, PROMPT + max(lengths), row_len=row_len, fixed=True)
    placed = jax.tree.map(jnp.asarray, split_parts(batch, microbatch))
    params, tx = transformer.init_params(shape, 0), read_config(cfg).optim.make(cfg.steps)
    held = [State(params, jax.jit(tx.init)(params))]
    update = make_update(update_config(cfg), shape, load_method("ropd", cfg), tx).lower(held[0], None, placed).compile()

    def step():
        held[:] = jax.block_until_ready(update(held[0], None, placed))

    seconds = timed(step, 2)["cpu"][1]
    return {"memory": update.memory_analysis().temp_size_in_bytes / 1e6, "time": seconds}


def slope(x, y) -> float:
    """The slope of the least-squares line through the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/update_growth.png"))
    args = parser.parse_args()
    cases = {
        "T, one sequence a row": (LENGTHS, [([T - PROMPT + 1], T) for T in LENGTHS]),
        "T, packed with sequences of 256": (LENGTHS, [([193] * (T // 256), T) for T in LENGTHS]),
        "G rollouts of 512": (ROLLOUTS, [([449] * G, 512) for G in ROLLOUTS]),
    }
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, (sizes, settings) in cases.items():
        found = [measure(lengths, row_len, 1) for lengths, row_len in settings]
        for axis, (key, label) in zip(axes, COLUMNS.items(), strict=True):
            values = [f[key] for f in found]
            k = slope(sizes, values)
            axis.loglog(sizes, values, "o-", base=2, label=f"{name}: slope {k:.2f}")
            axis.set(ylabel=label, xlabel="T or G")
            sys.stdout.write(f"{name}: {label} {' '.join(f'{v:.3g}' for v in values)}: slope {k:.2f}\n")
            sys.stdout.flush()
    for axis in axes:
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=130)
    sys.stdout.write(f"{args.out}\n")


if __name__ == "__main__":
    main()
