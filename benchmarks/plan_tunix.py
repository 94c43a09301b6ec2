"""Memory of Tunix's GRPO update on a TPU slice, compiled without a TPU, to compare with ``ropd plan``.

    PYTHON -m benchmarks.plan_tunix --topology v5e:4x4 --layers 1           # PYTHON has google-tunix and libtpu

Qwen3-4B as implemented by Tunix: `PeftTrainer._train_step` with its GRPO loss, gradients accumulated by
`optax.MultiSteps`, AdamW, float32 parameters and bfloat16 computation, its flash attention, remat of whole layers. Only
shapes are used. Tunix does not scan its layers, so the time to compile grows with their number; ``--layers`` limits it.

Only `shard` is replaced: it constrains activations only if the default device is not a CPU. Here it always constrains
them, as it would on the slice.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
import types

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

ROWS_OF_A_STEP = 256  # 32 prompts x 8 rollouts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--topology", default="v5e:4x4", help="slice, as jax names it (default: v5e:4x4)")
    parser.add_argument("--tp", type=int, default=1, help="size of the tp axis; fsdp is the rest (default: 1)")
    parser.add_argument("--layers", type=int, default=36, help="number of layers, at most 36 (default: 36)")
    parser.add_argument("--prompt", type=int, default=2048, help="positions of a prompt (default: 2,048)")
    parser.add_argument("--answer", type=int, default=8192, help="positions of an answer (default: 8,192)")
    parser.add_argument("--rows", type=int, default=0, help="rows per call (default: one per fsdp shard)")
    args = parser.parse_args()

    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax import nnx
    from jax.experimental import topologies
    from jax.interpreters import pxla
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from tunix.models.qwen3 import model as qwen3
    from tunix.rl import algo_core
    from tunix.rl.grpo import grpo_learner
    from tunix.sft.peft_trainer import PeftTrainer

    def shard(x, axes):
        mesh = pxla.thread_resources.env.physical_mesh
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))

    qwen3.shard = shard
    devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
    fsdp = len(devices) // args.tp
    mesh = Mesh(np.asarray(devices).reshape(fsdp, args.tp), ("fsdp", "tp"))
    rows = args.rows or fsdp
    like = dataclasses.replace(
        qwen3.ModelConfig.qwen3_4b(),
        num_layers=args.layers,
        dtype=jnp.bfloat16,
        param_dtype=jnp.float32,
        use_flash_attention=True,
        remat_config=qwen3.RematConfig.DECODER,
    )
    adam = optax.MultiSteps(optax.adamw(1e-6), max(ROWS_OF_A_STEP // rows, 1))

    @nnx.eval_shape
    def made():
        model = qwen3.Qwen3(like, rngs=nnx.Rngs(0))
        return model, nnx.Optimizer(model, adam, wrt=nnx.Param)

    graph, params, rest = nnx.split(made, nnx.Param, ...)
    config = grpo_learner.GRPOConfig(beta=0.0, epsilon=0.2, loss_agg_mode="token-mean")
    config.temperature = 1.0
    trainer = types.SimpleNamespace(
        gen_model_input_fn=lambda x: {"train_example": x, "algo_config": config},
        loss_fn=lambda model, train_example, algo_config: algo_core.grpo_loss_fn(
            model, train_example, algo_config=config, pad_id=0, eos_id=1
        ),
        _lora_enabled=False,
        _has_aux=True,
    )

    def step(params, rest, example):
        model, optimizer = nnx.merge(graph, params, rest)
        said = PeftTrainer._train_step(trainer, model, optimizer, example)
        _, params, rest = nnx.split((model, optimizer), nnx.Param, ...)
        return params, rest, said

    def on_mesh(tree):
        def one(x, spec):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec or PartitionSpec()))

        return jax.tree.map(one, tree, nnx.get_partition_spec(tree))

    def by_row(length, dtype):
        spec = PartitionSpec("fsdp", *([None] if length else []))
        return jax.ShapeDtypeStruct((rows, length) if length else (rows,), dtype, sharding=NamedSharding(mesh, spec))

    example = grpo_learner.TrainExample(
        prompt_ids=by_row(args.prompt, jnp.int32), prompt_mask=by_row(args.prompt, jnp.bool_),
        completion_ids=by_row(args.answer, jnp.int32), completion_mask=by_row(args.answer, jnp.bool_),
        advantages=by_row(0, jnp.float32), ref_per_token_logps=None,
        old_per_token_logps=by_row(args.answer, jnp.float32),
    )  # fmt: skip
    print(f"lowering {args.layers} layers, {rows} x ({args.prompt} + {args.answer})", file=sys.stderr, flush=True)
    start = time.monotonic()
    with mesh:
        lowered = jax.jit(step, donate_argnums=(1,)).lower(on_mesh(params), on_mesh(rest), example)
        print(f"compiling for {args.topology}, fsdp={fsdp} tp={args.tp}", file=sys.stderr, flush=True)
        said = vars(args) | {"rows": rows, "fsdp": fsdp}
        try:
            m = lowered.compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            said["refused"] = str(error)[:600]
        else:
            said |= {
                name.removesuffix("_size_in_bytes"): getattr(m, name)
                for name in ("argument_size_in_bytes", "output_size_in_bytes", "alias_size_in_bytes",
                             "temp_size_in_bytes", "generated_code_size_in_bytes")
            }  # fmt: skip
    print(json.dumps(said | {"compiled_in_s": round(time.monotonic() - start)}))


if __name__ == "__main__":
    main()
