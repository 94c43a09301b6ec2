"""Host memory while a checkpoint is read onto a mesh, measured in a separate process.

    make load-memory                              2.2 GB in 5 files, on one device and on a mesh of 4 x 2
    python -m benchmarks.load_memory --gb 0.2     smaller

Writes a synthetic checkpoint, reads it in a new process, and compares the process's peak (VmHWM, reset before reading)
with what it held before. On CPU the shards are in host memory, so their bytes are subtracted; the rest is what the
loader needs. The limit is the largest tensor + 1 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from ropd_jax.models.config import ModelConfig
from ropd_jax.weights.hf import HFSource, save_hf
from ropd_jax.weights.tensors import put_leaf, tensors_of

GB = 10**9


def config(gb: float) -> ModelConfig:
    """Qwen3's shape, a few layers of it: a quarter of the bytes is the embedding, the largest tensor."""
    return ModelConfig(
        vocab_size=int(17_600 * gb) // 8 * 8, num_layers=max(2, round(4.2 * gb)), d_model=2048, num_heads=16,
        num_kv_heads=8, head_dim=128, mlp_dim=6144, rope_theta=1e6, norm_eps=1e-6, tied=True, max_seq_len=4096,
        qk_norm=True,
    )  # fmt: skip


def write(path: pathlib.Path, gb: float) -> tuple[int, int]:
    """(bytes of all files, of the largest tensor)."""
    cfg, rng, params = config(gb), np.random.default_rng(0), {}
    for t in tensors_of(cfg):
        put_leaf(params, t, rng.random((*t.stack, *t.sizes), np.float32))
    save_hf(path, cfg, params, shard_bytes=int(gb * GB / 4.5))
    files = list(path.glob("*.safetensors"))
    return sum(f.stat().st_size for f in files), max(4 * int(np.prod(t.sizes)) for t in tensors_of(cfg))


def status(key: str) -> int:
    line = next(x for x in pathlib.Path("/proc/self/status").read_text().splitlines() if x.startswith(key + ":"))
    return int(line.split()[1]) * 1024


def child(path: str, fsdp: int, tp: int) -> None:
    import jax

    from ropd_jax.parallel import mesh as mesh_lib
    from ropd_jax.weights.load import stream

    mesh = mesh_lib.make_mesh(fsdp, tp)
    source = HFSource(path)
    jax.jit(lambda x: x + 1)(np.float32(0)).block_until_ready()
    before = status("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    params = stream(source, mesh)
    peak = status("VmHWM")
    held = sum(s.data.nbytes for x in jax.tree.leaves(params) for s in x.addressable_shards)
    sys.stdout.write(json.dumps({"before": before, "peak": peak, "shards": held}) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.2)
    parser.add_argument("--child", nargs=3, metavar=("PATH", "FSDP", "TP"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], int(args.child[1]), int(args.child[2]))
        return 0
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        total, largest = write(pathlib.Path(folder), args.gb)
        files = len(list(pathlib.Path(folder).glob("*.safetensors")))
        sys.stdout.write(f"{total / GB:.2f} GB in {files} files, largest tensor {largest / 1e6:.0f} MB\n")
        for fsdp, tp in ((1, 1), (4, 2)):
            flags = "--xla_force_host_platform_device_count=8"
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.load_memory", "--child", folder, str(fsdp), str(tp)],
                env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            seen = json.loads(done.stdout)
            extra = seen["peak"] - seen["before"] - seen["shards"]
            ok = extra <= largest + GB
            bad += not ok
            sys.stdout.write(
                f"mesh {fsdp} x {tp}: shards {seen['shards'] / 1e6:.0f} MB, peak besides them {extra / 1e6:.0f} MB, "
                f"allowed {(largest + GB) / 1e6:.0f} MB: {'ok' if ok else 'TOO MUCH'}\n"
            )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
