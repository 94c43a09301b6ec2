"""What the host side of a run costs at a million prompts on 64 hosts, before and after: `make bench-hosts`.

    before    every host tokenizes every prompt and keeps prompts and tokens; the hosts exchange {id: checksum}, pickled
    after     a host tokenizes every 64th prompt and keeps few tokens; prompts are packed; the hosts exchange digests

"Before" is the code of commit 594b70a, repeated here in a few lines (`before`); "after" is `data.questions`. Each runs
as one host of 64 in its own process; the messages from the other hosts are assumed to have the size of its own. The
prompts are sums of about 130 characters, and each byte is a token.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import random
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

HOSTS = 64
P = 32  # prompts of a step
STEPS = 20


def write_prompts(path: pathlib.Path, n: int) -> None:
    rng = random.Random(0)
    with path.open("w") as file:
        for i in range(n):
            terms = " + ".join(str(rng.randrange(10_000, 100_000)) for _ in range(15))
            file.write(json.dumps({"id": f"sum-{i}", "question": f"Add these numbers: {terms}", "answer": "0"}) + "\n")


class OneOfMany:
    """Host 0 of 64; the others send the same as this one. Counts pickled bytes."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def count(self) -> int:
        return HOSTS

    def index(self) -> int:
        return 0

    def exchange(self, value: Any) -> list[Any]:
        self.sent.append(len(pickle.dumps(value)))
        return [value] * HOSTS

    def check_same(self, what: str, value: Callable[[], Iterable[tuple[str, Any]]]) -> None:
        from ropd_jax.parallel import digests

        self.exchange(digests.total(value()))


class Plain:
    """Tokens without a chat template, which a process of its own renders: the pass over a million prompts is the same,
    and what a template adds for each of them is measured apart (``template_ms``)."""

    def __init__(self) -> None:
        self.counted = 0

    def apply_chat_template(self, messages) -> list[int]:
        self.counted += 1
        return list(messages[-1].content.encode())


def before(data, tokenizer) -> dict[str, Any]:
    from ropd_jax.data.load import load_prompts
    from ropd_jax.data.prompts import disjoint

    hosts = OneOfMany()
    begin = time.monotonic()
    common = dict(source=data.source, task=data.task, template=data.template)
    held = load_prompts(**common, path=data.heldout_path)
    train = list(disjoint(load_prompts(**common, path=data.path, size=data.size), held))
    loaded_s = time.monotonic() - begin
    tokens = {p.id: np.asarray(tokenizer.apply_chat_template(p.messages), np.int32) for p in train}
    longest = max(len(tokens[p.id]) for p in train)
    counted_s = time.monotonic() - begin - loaded_s
    hosts.exchange({i: zlib.crc32(t.tobytes()) for i, t in tokens.items()})
    setup_s = time.monotonic() - begin

    def step(i: int) -> list[np.ndarray]:
        order = np.random.default_rng((0, 0)).permutation(len(train))
        return [tokens[train[j].id] for j in order[i * P : (i + 1) * P]]

    return measured(
        hosts, step, longest, setup_s=setup_s, loaded_s=loaded_s, counted_s=counted_s, counted=tokenizer.counted
    )


def after(data, tokenizer) -> dict[str, Any]:
    from ropd_jax.data import questions
    from ropd_jax.data.prompts import PromptStream

    hosts, begin, counted_s = OneOfMany(), time.monotonic(), [0.0]
    count = questions._count

    def timed(*args):
        start = time.monotonic()
        try:
            return count(*args)
        finally:
            counted_s[0] += time.monotonic() - start

    questions._count = timed
    train, _ = questions.load_questions(data, tokenizer, hosts)
    setup_s = time.monotonic() - begin
    stream, counted = PromptStream(train.prompts, P, 0), tokenizer.counted
    return measured(
        hosts, lambda i: train.tokens_of(stream.batch(i)), train.longest,
        setup_s=setup_s, loaded_s=setup_s - counted_s[0], counted_s=counted_s[0],
        counted=counted,
    )  # fmt: skip


def measured(hosts: OneOfMany, step: Callable[[int], list[np.ndarray]], longest: int, **seconds) -> dict[str, Any]:
    kept = memory_mb()
    begin = time.monotonic()
    checksum = zlib.crc32(b"".join(t.tobytes() for i in range(STEPS) for t in step(i)))
    step_ms = (time.monotonic() - begin) / STEPS * 1e3
    padded = [max(1 << 10, 1 << (n - 1).bit_length()) for n in hosts.sent]
    return {
        "sent_bytes": sum(hosts.sent),
        "on_one_device_mb": HOSTS * max(padded) / 1e6,
        "kept_mb": kept,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "step_ms": step_ms,
        "longest": longest,
        "checksum": checksum,  # of the tokens of all steps: before and after must agree
        **seconds,
    }


def memory_mb() -> float:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def child(mode: str, directory: pathlib.Path) -> dict[str, Any]:
    from ropd_jax import configs
    from ropd_jax.types import Message
    from ropd_jax.weights.student import find
    from ropd_jax.weights.tokenizer import load_tokenizer

    data = configs.default().data
    data.source, data.task, data.size, data.heldout_size = "jsonl", "", 1 << 40, 1 << 40
    data.path, data.heldout_path = str(directory / "train.jsonl"), str(directory / "held.jsonl")
    real, tokenizer = load_tokenizer(find("tiny", weights=False)), Plain()
    texts = [Message("user", json.loads(line)["question"]) for line in (directory / "train.jsonl").open()][:200]
    begin = time.monotonic()
    for message in texts:
        real.apply_chat_template([message])
    template_ms = (time.monotonic() - begin) / len(texts) * 1e3
    base = memory_mb()
    found = {"before": before, "after": after}[mode](data, tokenizer) | {"template_ms": template_ms}
    return found | {"kept_mb": found["kept_mb"] - base, "peak_mb": found["peak_mb"] - base}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--child", choices=("before", "after"), help="internal")
    parser.add_argument("--directory", type=pathlib.Path)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.directory)))
        return
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        write_prompts(directory / "train.jsonl", args.prompts)
        (directory / "held.jsonl").write_text('{"id": "h", "question": "1 + 1", "answer": "2"}\n')
        found = {}
        for mode in ("after", "before"):
            command = [sys.executable, "-m", "benchmarks.hosts", "--child", mode, "--directory", name]
            found[mode] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(mode, json.dumps(found[mode]), flush=True)
    assert found["before"]["checksum"] == found["after"]["checksum"], "the tokens differ from those of before"
    print(f"\n{args.prompts:,} prompts, one host of {HOSTS}\n")
    print(f"{'':32}{'before':>16}{'after':>16}{'before/after':>14}")
    names = {
        "sent_bytes": "bytes sent per host",
        "on_one_device_mb": "MB on one device of each host",
        "kept_mb": "MB of host memory kept",
        "peak_mb": "MB of host memory, peak",
        "counted": "prompts tokenized by a host",
        "counted_s": "s to tokenize, without template",
        "template_ms": "ms per prompt with the template",
        "setup_s": "s until the prompts are known",
        "step_ms": "ms per step for the prompts",
    }
    for key, text in names.items():
        b, a = found["before"][key], found["after"][key]
        print(f"{text:32}{b:>16,.1f}{a:>16,.1f}{b / max(a, 1e-9):>14,.1f}")


if __name__ == "__main__":
    main()
