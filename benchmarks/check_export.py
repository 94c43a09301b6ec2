"""Does transformers load what ``ropd export`` writes, and compute the same?

    make check-export                                     tiny checkpoints of every family, and SmolLM2 if available
    python -m benchmarks.check_export --python OTHER      with torch and transformers in another interpreter

Each checkpoint is exported. Transformers' AutoModelForCausalLM and AutoTokenizer load the directory in a process that
never imports this package. Logits (float32), token ids of awkward texts and the text of a chat template are compared.
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
TEXTS = [
    "What is 12345 + 678?", " two  spaces\n\n\tand tabs ", "naïve café 北京 🙂 ﬁ", "<|im_start|>user\nHi<|im_end|>\n",
    "def f(x):\n    return x**2  # 'quoted' and \"quoted\"", "I'LL don't we've 1st 22nd", "", "a" * 50,
]  # fmt: skip
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]


def theirs(directory: str, out: str) -> None:
    """What transformers computes from a directory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    found: dict = {}
    if (pathlib.Path(directory) / "tokenizer.json").exists():
        tok = AutoTokenizer.from_pretrained(directory)
        found["ids"] = [tok(t, add_special_tokens=False)["input_ids"] for t in TEXTS]
        found["chat"] = tok.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
        found["ends"] = model.generation_config.eos_token_id
    tokens = np.random.default_rng(0).integers(1, min(model.config.vocab_size, 96), (2, 24))
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens), use_cache=False).logits.numpy()
        greedy = model.generate(torch.from_numpy(tokens[:1]), max_new_tokens=32, min_new_tokens=32, do_sample=False)
    np.savez(out, tokens=tokens, logits=logits, greedy=greedy[0, 24:].numpy(), text=json.dumps(found))


def ours(directory: str, tokens: np.ndarray) -> np.ndarray:
    import jax

    from ropd_jax.models import transformer
    from ropd_jax.weights.student import open_source
    from ropd_jax.weights.tensors import host_tree

    source = open_source(directory)
    cfg, params = source.cfg, host_tree(source, np.float32)
    tokens_BT = tokens.astype(np.int32)
    positions_BT = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)

    @jax.jit
    def forward(params):
        x_BTD = transformer.hidden(cfg, params, tokens_BT, positions_BT, np.ones_like(tokens_BT))
        return transformer.logits(cfg, params, x_BTD)

    return np.asarray(forward(params))


def here(what: str, where: str) -> str:
    """What we compute from a checkpoint and from its export: weights, logits, token ids, greedy text."""
    import jax

    from ropd_jax.models import transformer
    from ropd_jax.sampling.engine import EngineConfig, sample_groups
    from ropd_jax.sampling.rules import SamplingRule
    from ropd_jax.types import Message, Prompt
    from ropd_jax.weights.student import load_checkpoint

    questions = [
        "What is the capital of France?",
        "A box holds 12 eggs. How many eggs are in 7 boxes?",
        "Write a haiku.",
    ]
    prompts = [Prompt(str(i), (Message("user", q),)) for i, q in enumerate(questions)]
    seen = []
    for source in (what, where):
        student = load_checkpoint(source)
        params = jax.tree.map(jax.numpy.asarray, student.params)
        tokens = [student.tokenizer.apply_chat_template(p.messages) for p in prompts]
        row = np.array(tokens[0], np.int32)[None]
        at = np.arange(row.shape[1], dtype=np.int32)[None]
        x_BTD = transformer.hidden(student.cfg, params, row, at, np.ones_like(row))
        logits = np.asarray(transformer.logits(student.cfg, params, x_BTD))
        engine = EngineConfig(1, len(prompts), max(map(len, tokens)), 32, student.tokenizer.stop_ids, SamplingRule(0.0))
        groups = sample_groups(student.cfg, engine, params, student.tokenizer, prompts, tokens, seed=0, step=0)
        texts = {g.index: g.rollouts[0].text for g in groups}
        seen.append((student.params, tokens, logits, [texts[i] for i in range(len(prompts))]))
    a, b = seen
    same = jax.tree.all(jax.tree.map(lambda x, y: x.tobytes() == y.tobytes(), a[0], b[0]))
    gap = np.abs(a[2] - b[2]).max()
    return (
        f"{what} here, before and after: weights {'bit for bit equal' if same else 'DIFFER'}, token ids "
        f"{'equal' if a[1] == b[1] else 'DIFFER'}, max |logit difference| {gap:.1e}, greedy texts "
        f"{sum(x == y for x, y in zip(a[3], b[3], strict=True))}/{len(prompts)} equal, e.g. {a[3][0][:60]!r}"
    )


def check(name: str, what: str, python: str, folder: pathlib.Path) -> str:
    """One line: what was compared, and how far apart it is."""
    from ropd_jax.types import Message
    from ropd_jax.weights.student import find
    from ropd_jax.weights.tokenizer import load_tokenizer
    from ropd_jax.workdir import export

    where = folder / name
    export.export(what, str(where))
    out = str(folder / f"{name}.npz")
    subprocess.run([python, __file__, "--theirs", str(where), out], check=True)
    got = np.load(out)
    gap = np.abs(ours(str(where), got["tokens"]) - got["logits"]).max()
    row = np.concatenate([got["tokens"][0], got["greedy"]])[None]
    best = ours(str(where), row).argmax(-1)[0, 23:-1]
    said = f"{name}: max |logit difference| {gap:.1e}, greedy tokens equal {(best == got['greedy']).sum()}/32"
    found = json.loads(str(got["text"]))
    if found:
        mine = load_tokenizer(find(what))
        same = sum(mine.encode(t) == ids for t, ids in zip(TEXTS, found["ids"], strict=True))
        rendered = mine.render([Message(m["role"], m["content"]) for m in CHAT]) == found["chat"]
        said += f", token ids of {same}/{len(TEXTS)} texts, chat {'equal' if rendered else 'DIFFERS'}, "
        said += f"ends {found['ends']} ({list(mine.stop_ids)} here)\n" + here(what, str(where))
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="an interpreter with torch and transformers")
    parser.add_argument("--also", nargs="*", default=["smollm2"], help="further checkpoints that have a tokenizer")
    parser.add_argument("--only", action="store_true", help="skip the tiny families; only the further checkpoints")
    parser.add_argument("--theirs", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.theirs:
        theirs(*args.theirs)
        return 0
    from ropd_jax.types import UserError

    with tempfile.TemporaryDirectory() as folder:
        for name in [] if args.only else sorted(p.name for p in FAMILIES.iterdir()):
            sys.stdout.write(check(name, str(FAMILIES / name), args.python, pathlib.Path(folder)) + "\n")
            sys.stdout.flush()
        for what in args.also:
            try:
                sys.stdout.write(check(pathlib.Path(what).stem, what, args.python, pathlib.Path(folder)) + "\n")
            except UserError as e:
                sys.stdout.write(f"{what}: skipped ({e})\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
