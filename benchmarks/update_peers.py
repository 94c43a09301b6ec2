"""The peers' update, for `benchmarks.update`: Tunix (jax) and TRL's log-probs and loss in torch. Imports no ropd_jax.

    python benchmarks/update_peers.py tunix|torch|torch-lognormal DIR

DIR holds the benchmark's files: ``model/`` (Hugging Face), ``params.npz``, ``batch.npz``, ``lognormal.npz``. The output
is one JSON line. Both do what their trainers do in a step: forward, loss, backward, clipping if the trainer clips,
AdamW. Before each timed update the process writes ``TURN`` and waits for a line.
"""

from __future__ import annotations

import json
import pathlib
import resource
import sys
import time

import numpy as np

LR, CLIP = 1e-6, 100.0  # the policy ratio is never clipped, so that the gradient depends on every token


def timed(step, times: int, *, turns: bool = False) -> dict[str, list[float]]:
    """Wall-clock and own CPU seconds of each step; the machine's other work hardly affects the CPU seconds.

    ``turns``: each step waits for a line, so that several processes can alternate.
    """
    wall, cpu = [], []
    for _ in range(times):
        if turns:
            sys.stdout.write("TURN\n")
            sys.stdout.flush()
            sys.stdin.readline()
        start, start_cpu = time.perf_counter(), time.process_time()
        step()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return {"seconds": wall, "cpu": cpu}


def rss_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run_torch(where: pathlib.Path, batch: dict[str, np.ndarray], times: int) -> dict:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        from trl.trainer.utils import selective_log_softmax

        by = "TRL"
    except ImportError:

        def selective_log_softmax(logits, index):
            picked = torch.gather(logits, -1, index[..., None])[..., 0]
            return picked - torch.stack([torch.logsumexp(row, dim=-1) for row in logits])

        by = "TRL's formula"
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(where / "model", dtype=torch.float32)
    model.train()
    tokens, prompt = torch.tensor(batch["tokens"], dtype=torch.long), int(batch["prompt"])
    advantage, old = torch.tensor(batch["advantage"])[:, None], float(batch["old_logp"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)

    def loss_of(tokens, advantage, length=None, total=None):
        """The loss of all answer tokens; with ``length``, of the first tokens of each padded row, over ``total``."""
        n = tokens.shape[1] - prompt
        seen = None if length is None else (torch.arange(tokens.shape[1])[None] < length).long()
        logits = model(tokens, attention_mask=seen, logits_to_keep=n + 1).logits[:, :-1]
        ratio = torch.exp(selective_log_softmax(logits, tokens[:, prompt:]) - old)
        loss = -torch.min(ratio * advantage, torch.clamp(ratio, 1 - CLIP, 1 + CLIP) * advantage)
        return loss.mean() if seen is None else (loss * seen[:, prompt:]).sum() / total

    def advance():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    if "length" in batch:  # log-normal lengths, padded to the longest, in parts that fit into memory
        length = torch.tensor(batch["length"])[:, None]
        total, part = int((length - prompt).sum()), int(batch["part"])

        def padded():
            for a in range(0, len(tokens), part):
                loss_of(*(x[a : a + part] for x in (tokens, advantage, length)), total).backward()
            advance()

        return {"by": by, **timed(padded, times, turns=True), "rss_gib": rss_gib()}
    few = int(batch["few"])
    loss = loss_of(tokens[:few], advantage[:few])
    loss.backward()
    names = dict(model.named_parameters())
    grads = {k: names[k].grad.numpy() for k in json.loads(str(batch["names"]))}
    np.savez(where / "grads_torch.npz", **grads)
    optimizer.zero_grad()

    def step():
        loss_of(tokens, advantage).backward()
        advance()

    return {"by": by, "loss": float(loss), **timed(step, times, turns=True), "rss_gib": rss_gib()}


def run_tunix(where: pathlib.Path, batch: dict[str, np.ndarray], times: int) -> dict:
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx
    from tunix.models.llama3 import model as llama
    from tunix.rl import algo_core
    from tunix.rl.grpo import grpo_learner

    shape = json.loads(str(batch["shape"]))
    like = llama.ModelConfig(**shape, norm_eps=1e-5, rope_theta=1_000_000, weight_tying=True)
    model = llama.Llama3(like, rngs=nnx.Rngs(0))
    ours = dict(np.load(where / "params.npz"))
    model.embedder.input_embedding[...] = jnp.asarray(ours["embed/table_VD"])
    model.final_norm.w[...] = jnp.asarray(ours["final_norm/scale_D"])
    for i, layer in enumerate(model.layers):
        pairs = {
            "attn_norm/scale_D": layer.input_layernorm.w, "mlp_norm/scale_D": layer.post_attention_layernorm.w,
            "attn/q_DNH": layer.attn.q_proj.w, "attn/k_DKH": layer.attn.k_proj.w, "attn/v_DKH": layer.attn.v_proj.w,
            "attn/o_NHD": layer.attn.o_proj.w, "mlp/gate_DF": layer.mlp.gate_proj.kernel,
            "mlp/up_DF": layer.mlp.up_proj.kernel, "mlp/down_FD": layer.mlp.down_proj.kernel,
        }  # fmt: skip
        for name, param in pairs.items():
            assert param[...].shape == ours[f"layers/{name}"][i].shape, name
            param[...] = jnp.asarray(ours[f"layers/{name}"][i])
    config = grpo_learner.GRPOConfig(beta=0.0, epsilon=CLIP, loss_agg_mode="token-mean")
    config.temperature = 1.0  # its learner sets it from the sampler's
    tokens, prompt = batch["tokens"], int(batch["prompt"])

    def example(rows):
        done = tokens[rows, prompt:]
        return grpo_learner.TrainExample(
            prompt_ids=jnp.asarray(tokens[rows, :prompt]), prompt_mask=jnp.ones_like(tokens[rows, :prompt], bool),
            completion_ids=jnp.asarray(done), completion_mask=jnp.ones(done.shape, bool),
            advantages=jnp.asarray(batch["advantage"][rows]), ref_per_token_logps=None,
            old_per_token_logps=jnp.full(done.shape, float(batch["old_logp"]), jnp.float32),
        )  # fmt: skip

    def loss_fn(model, one):
        return algo_core.grpo_loss_fn(model, one, config, pad_id=-1, eos_id=-1)

    few = nnx.jit(nnx.value_and_grad(loss_fn, has_aux=True))
    (loss, _), grads = few(model, example(slice(0, int(batch["few"]))))
    last = shape["num_layers"] - 1
    flat = {"/".join(map(str, path)): np.asarray(x[...]) for path, x in nnx.to_flat_state(grads)}
    d = shape["embed_dim"]
    found = [
        flat["embedder/input_embedding"], flat["layers/0/attn/q_proj/w"].reshape(d, -1).T,
        flat[f"layers/{last}/mlp/down_proj/kernel"].T, flat["final_norm/w"],
    ]  # fmt: skip
    np.savez(where / "grads_tunix.npz", **dict(zip(json.loads(str(batch["names"])), found, strict=True)))
    del grads, flat, found
    optimizer = nnx.Optimizer(model, optax.adamw(LR), wrt=nnx.Param)

    @nnx.jit(donate_argnames=("optimizer",))  # as its PeftTrainer does
    def train_step(model, optimizer, one):
        out, grads = nnx.value_and_grad(loss_fn, has_aux=True)(model, one)
        norm = optax.global_norm(grads)
        optimizer.update(model, grads)
        return out, norm

    whole = example(slice(None))

    def step():
        jax.block_until_ready((train_step(model, optimizer, whole), nnx.state(model)))

    step()  # compiles
    return {"by": "Tunix", "loss": float(loss), **timed(step, times, turns=True), "rss_gib": rss_gib()}


if __name__ == "__main__":
    where = pathlib.Path(sys.argv[2])
    peer, _, case = sys.argv[1].partition("-")
    batch = dict(np.load(where / f"{case or 'batch'}.npz"))
    run = {"tunix": run_tunix, "torch": run_torch}[peer]
    sys.stdout.write("RESULT " + json.dumps(run(where, batch, int(batch["times"]))) + "\n")
