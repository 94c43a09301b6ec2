"""Does PEFT load the adapters that ``ropd export RUN --adapter`` writes, and compute the same?

    make check-export
    python -m benchmarks.check_adapter --python OTHER     with torch, transformers and peft in another interpreter

For each tiny dense family, a run with adapters that are not zero is exported twice: merged and as an adapter.
`peft.PeftModel` loads base and adapter in a process that never imports this package. Its logits (float32) are compared
with ours, for the separate adapters and for the merged directory.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

FAMILIES = pathlib.Path(__file__).parents[1] / "tests" / "golden" / "families"
SECTION = {"rank": 4, "alpha": 12.0, "targets": ["attn.*", "mlp.*"], "base_dtype": "float32"}


def theirs(base: str, adapter: str, out: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, adapter).eval()
    tokens = np.random.default_rng(0).integers(1, 96, (2, 24))
    with torch.no_grad():
        np.savez(out, tokens=tokens, logits=model(torch.from_numpy(tokens), use_cache=False).logits.numpy())


def check(name: str, python: str, folder: pathlib.Path) -> str:
    import jax
    import jax.numpy as jnp

    from benchmarks.check_export import ours
    from ropd_jax.models import transformer
    from ropd_jax.models.lora import Lora, attach, init_adapters
    from ropd_jax.weights.student import open_source
    from ropd_jax.weights.tensors import host_tree
    from ropd_jax.workdir import export
    from ropd_jax.workdir.checkpoint import Checkpoints

    source = open_source(FAMILIES / name)
    cfg, base = source.cfg, host_tree(source, np.float32)
    lora, keys = Lora.from_config(SECTION), iter(jax.random.split(jax.random.key(1), 99))
    adapters = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), init_adapters(cfg, lora, 0))
    run = folder / f"{name}_run"
    checkpoints = Checkpoints(run / "checkpoints", keep=1)
    checkpoints.save(1, {"params": adapters}, {})
    checkpoints.close()
    student = {"checkpoint": str(FAMILIES / name), "chat_template": "", "lora": SECTION}
    (run / "config.json").write_text(json.dumps({"student": student}))
    for to, adapter in (("merged", False), ("adapter", True)):
        export.export(str(run), str(folder / f"{name}_{to}"), adapter=adapter)
    out = str(folder / f"{name}.npz")
    files = str(FAMILIES / name), str(folder / f"{name}_adapter"), out
    subprocess.run([python, __file__, "--theirs", *files], check=True)
    got = np.load(out)
    tokens = got["tokens"].astype(np.int32)
    positions = np.broadcast_to(np.arange(24, dtype=np.int32), tokens.shape)

    def forward(params):
        x_BTD = transformer.hidden(cfg, params, tokens, positions, np.ones_like(tokens))
        return transformer.logits(cfg, params, x_BTD)

    plain = np.asarray(jax.jit(forward)(jax.tree.map(jnp.asarray, base)))
    beside = np.asarray(jax.jit(forward)(attach(lora, base, adapters)))
    gaps = [np.abs(x - got["logits"]).max() for x in (beside, ours(str(folder / f"{name}_merged"), tokens), plain)]
    return "{}: max |logit - PEFT's|: adapters {:.1e}, merged {:.1e}; without adapters {:.1e}".format(name, *gaps)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="an interpreter with torch, transformers and peft")
    parser.add_argument("--theirs", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.theirs:
        theirs(*args.theirs)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for name in sorted(p.name for p in FAMILIES.iterdir() if p.name != "qwen3_moe"):
            sys.stdout.write(check(name, args.python, pathlib.Path(folder)) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
