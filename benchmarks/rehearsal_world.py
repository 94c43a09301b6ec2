"""The rehearsal's substitutes for the paper's models, data and APIs, all generated locally.

    Qwen/Qwen3-4B, ...   random students of the paper's families, under their names on the Hub: the shipped config.json
                         with smaller sizes, a byte-level BPE (Qwen) or a BPE with spaces and byte fallback (Gemma),
                         and their kind of chat template
    data/                DAPO-Math-17k, RaR and the benchmarks as files of a few rows, which the scripted teacher solves
    serving()            that teacher behind HTTP instead of GPT-5.2 and GPT-4.1. A fifth of its verdicts is wrong, so
                         that the rewards of a random student's answers differ and there is something to update

No text here is from a published data set.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import random
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

QWEN = "Qwen/Qwen3-4B"
WHITE_BOX = "Qwen/Qwen3-30B-A3B-Instruct-2507"
GEMMA = "google/gemma-3-4b-it"
SHRUNK = {  # of the shipped config.json: everything but the family and the longest text
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = {"sliding_window": 16, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16}
VOCABULARY = 400  # tokens; the table is padded to a multiple of 64, as Qwen3's is to 128

QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
INSTRUCT_TEMPLATE = QWEN_TEMPLATE.partition("{% if")[0]  # of the 2507 models, which do not think
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + (m['role'] if m['role'] == 'user' else 'model') + "
    "'\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{{ '<start_of_turn>model\n' }}"
)

# ------------------------------------------------------------------------------------------------------- students


def make_students(place: pathlib.Path, texts: Iterable[str]) -> None:
    """The three checkpoints under ``place``, by their names on the Hub; existing ones are kept.

    Args:
        texts: what the tokenizers are trained on.
    """
    texts = list(texts)
    qwen = _qwen_tokenizer(texts)  # one for both, as the white-box methods compare token by token
    for seed, (name, sizes, tokenizer, template) in enumerate((
        (QWEN, SHRUNK, qwen, QWEN_TEMPLATE),
        (WHITE_BOX, SHRUNK | EXPERTS, qwen, INSTRUCT_TEMPLATE),
        (GEMMA, SHRUNK | LOCAL, _gemma_tokenizer(texts), GEMMA_TEMPLATE),
    )):  # fmt: skip
        if not (place / name / "model.safetensors").exists():
            _make_student(place, name, sizes, tokenizer, template, seed)


def _make_student(
    home: pathlib.Path, name: str, sizes: Mapping[str, int], tokenizer: Any, template: str, seed: int
) -> None:
    from ropd_jax.models.transformer import init_params
    from ropd_jax.plan import shapes
    from ropd_jax.weights.families import read_config
    from ropd_jax.weights.hf import save_hf

    place = home / name
    place.mkdir(parents=True, exist_ok=True)
    raw = json.loads((shapes.facts()[place.name] / "config.json").read_text(encoding="utf-8"))
    raw |= dict(sizes) | {"vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64}
    (place / "config.json").write_text(json.dumps(raw))
    tokenizer.save(str(place / "tokenizer.json"))
    special = GEMMA_SPECIAL if name == GEMMA else QWEN_SPECIAL
    (place / "tokenizer_config.json").write_text(json.dumps(special | {"chat_template": template}))
    cfg = read_config(place)
    save_hf(place, cfg, init_params(cfg, seed), dtype="bfloat16", config=raw)


QWEN_SPECIAL = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
GEMMA_SPECIAL = {"bos_token": "<bos>", "eos_token": "<end_of_turn>", "pad_token": "<pad>"}


def _qwen_tokenizer(texts: list[str]) -> Any:
    """Byte-level BPE; ``<think>`` is one token, as in Qwen3, and a text like any other."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def _gemma_tokenizer(texts: list[str]) -> Any:
    """BPE over characters, spaces written as U+2581, bytes for what is unknown."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<pad>", "<bos>", "<eos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    tokenizer.train_from_iterator(
        [word for text in texts for word in text.split()],
        trainers.BpeTrainer(vocab_size=VOCABULARY + 256, special_tokens=[*special, *bytes_], show_progress=False),
    )
    return tokenizer


# ----------------------------------------------------------------------------------------------------------- data

FACTS = (  # question, one-line reason, answer: both sets are of this kind
    ("Which organ pumps blood through the human body?", "It contracts about 70 times a minute.", "the heart"),
    ("Which gas do green plants take up for photosynthesis?", "They build 1 sugar from 6 of it.", "carbon dioxide"),
    ("Which planet of the solar system has the largest mass?", "It has 318 times that of Earth.", "Jupiter"),
    ("Which vitamin does human skin make in sunlight?", "It takes about 15 minutes of sun.", "vitamin D"),
    ("Which particle in an atom has a negative charge?", "Its charge is 1 negative unit.", "the electron"),
    ("Which hormone lowers the sugar in human blood?", "The pancreas releases it within 10 minutes.", "insulin"),
    ("Which metal is liquid at room temperature?", "It melts at 39 degrees below 0.", "mercury"),
    ("Which cells carry oxygen in human blood?", "A drop holds about 5 million of them.", "red blood cells"),
    ("Which force keeps the planets near the Sun?", "It falls with the distance to the power of 2.", "gravity"),
    ("Which bone is the longest of the human body?", "It is about 48 centimetres long.", "the femur"),
    ("Which scale measures how acid a liquid is?", "It goes from 0 to 14.", "pH"),
    ("Which vessel carries blood away from the heart?", "Its wall has 3 layers.", "the artery"),
)
SIZES = {"dapo_math_17k": 24, "benchmark": 4}


def sums(n: int, seed: int) -> list[tuple[str, str]]:
    """(question, answer) of distinct sums of three numbers."""
    rng, found = random.Random(seed), {}
    while len(found) < n:
        a, b, c = (rng.randint(2, 99) for _ in range(3))
        found[f"What is {a} + {b} - {c}?"] = str(a + b - c)
    return list(found.items())


def make_data(place: pathlib.Path) -> None:
    """All files that the shipped configs and the benchmarks of Table 1 read, under ``place``."""
    place.mkdir(parents=True, exist_ok=True)
    math = sums(SIZES["dapo_math_17k"] + 4 * SIZES["benchmark"], seed=1)
    own, rest = math[: SIZES["dapo_math_17k"]], math[SIZES["dapo_math_17k"] :]
    rows: dict[str, list[dict[str, Any]]] = {
        "dapo_math_17k": [{"id": f"d{i}", "problem": q, "answer": a} for i, (q, a) in enumerate(own)]
    }
    rows["dapo_math_17k"][0]["problem"] = f"计算: {own[0][0].removeprefix('What is ').removesuffix('?')} ="
    for i, name in enumerate(("aime_2024", "aime_2025", "hmmt_feb_2025", "hmmt_nov_2025")):
        part = rest[i * SIZES["benchmark"] : (i + 1) * SIZES["benchmark"]]
        rows[name] = [{"id": f"{name}-{n}", "problem": q, "answer": a} for n, (q, a) in enumerate(part)]
    for name, offset in (("science", 0), ("medicine", 1)):
        facts = [
            {"question": q, "reference_answer": f"It is {a}.", "rubric": [
                {"title": "Names it", "description": f"Essential Criteria: Names {a}.", "weight": 5},
                {"title": "Evades", "description": "Pitfall Criteria: Does not give an answer.", "weight": -1},
            ]}
            for q, _, a in FACTS[offset:]
        ]  # fmt: skip
        rows[f"rar_{name}_train"], rows[f"rar_{name}_val"] = facts[:8], facts[8:]
    rows["gpqa_diamond"] = [
        {"Record ID": f"g{i}", "Question": q, "Correct Answer": a}
        | {f"Incorrect Answer {n}": FACTS[(i + n) % len(FACTS)][2] for n in (1, 2, 3)}
        for i, (q, _, a) in enumerate(FACTS[: SIZES["benchmark"]])
    ]
    rules = (("punctuation:no_comma", {}), ("change_case:english_lowercase", {}),
             ("length_constraints:number_words", {"relation": "less than", "num_words": 20}),
             ("startend:quotation", {}))  # fmt: skip
    rows["ifeval"] = [
        {"key": i, "prompt": f"Write one sentence about the number {i}.", "instruction_id_list": [name], "kwargs": [kw]}
        for i, (name, kw) in enumerate(rules)
    ]
    rows["healthbench"] = [
        {
            "prompt_id": f"h{i}",
            "prompt": [{"role": "user", "content": q}],
            "rubrics": [
                {"criterion": "Is at most 2,000 characters long.", "points": 5, "tags": ["axis:completeness"]},
                {"criterion": "Says something before its last line.", "points": 3, "tags": []},
                {"criterion": "Names its final answer exactly once, in the last line.", "points": -2, "tags": []},
            ],
            "example_tags": ["theme:rehearsal"],
        }
        for i, (q, _, _) in enumerate(FACTS[: SIZES["benchmark"]])
    ]
    for name, lines in rows.items():
        write_jsonl(place / f"{name}.jsonl", lines)
    write_jsonl(place / "answer_key.jsonl", ({"question": q, "solution": f"{why}\n#### {a}"} for q, why, a in FACTS))


def texts_of(place: pathlib.Path) -> list[str]:
    """All questions, for the tokenizers."""
    found = []
    for file in sorted(place.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found += [
                v for k, v in row.items() if isinstance(v, str) and k.lower() in ("problem", "question", "prompt")
            ]
    return found + ["Reason step by step, and put your final answer within \\boxed{}. Answer: the one of A to D."]


def write_jsonl(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


# --------------------------------------------------------------------------------------------------------- teacher


@contextlib.contextmanager
def serving(answer_key: pathlib.Path, port_file: pathlib.Path) -> Iterator[str]:
    """The scripted teacher's address, ``http://127.0.0.1:PORT/v1``; the same port as last time if it is free."""
    import asyncio

    from ropd_jax.teacher.scripted import server
    from ropd_jax.teacher.scripted.client import ScriptedClient

    port = int(port_file.read_text()) if port_file.exists() else 0
    with socket.socket() as probe:
        if port and not probe.connect_ex(("127.0.0.1", port)):
            port = 0  # in use
    ready, over, found = threading.Event(), [], []

    async def serve() -> None:
        scripted = ScriptedClient(answer_key=str(answer_key), wrong_verdict_rate=0.2)
        stop = asyncio.Event()
        over.append((asyncio.get_running_loop(), stop))
        async with server.running(scripted, port=port) as root:
            found.append(root)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    if not ready.wait(30):
        raise RuntimeError("the scripted teacher did not start within 30 s")
    port_file.write_text(found[0].rpartition(":")[2])
    try:
        yield f"{found[0]}/v1"
    finally:
        loop, stop = over[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
