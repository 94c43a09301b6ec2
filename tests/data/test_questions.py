"""Questions are counted in shares and tokenized on use; the result is that of a single host."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.simulated_hosts import SimulatedHosts
from ropd_jax import configs
from ropd_jax.data import packed, questions
from ropd_jax.data.load import load_prompts
from ropd_jax.data.packed import Packed
from ropd_jax.data.questions import load_questions
from ropd_jax.data.stream import PromptStream
from ropd_jax.types import Message, Prompt, UserError
from tests.helpers import IdTokenizer


def data(tmp_path, lengths, **changes):
    """A section ``data`` whose i-th training prompt has ``lengths[i]`` tokens."""
    for name, rows in (("train", lengths), ("held", [3, 4])):
        first = 10 if name == "train" else 50
        lines = [{"id": f"{name}{i}", "question": " ".join([str(first + i)] * n)} for i, n in enumerate(rows)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    cfg = configs.default().data
    cfg.source, cfg.task, cfg.max_prompt_tokens = "jsonl", "", 8
    cfg.path, cfg.heldout_path = str(tmp_path / "train.jsonl"), str(tmp_path / "held.jsonl")
    cfg.update(changes)
    return cfg


LENGTHS = [2, 9, 7, 1, 30, 5, 8, 2, 9, 3, 6]


@pytest.mark.parametrize("n", [2, 3, 16])
def test_any_number_of_hosts_keeps_the_prompts_and_the_length_that_one_keeps(tmp_path, n):
    section = data(tmp_path, LENGTHS)
    train, held = load_questions(section, IdTokenizer())
    assert [p.id for p in train.prompts] == [f"train{i}" for i, length in enumerate(LENGTHS) if length <= 8]
    assert (train.longest, held.longest, train.dropped) == (8, 4, {"too_long": 3})

    simulated, counted = SimulatedHosts(n), []

    class Counting(IdTokenizer):
        def apply_chat_template(self, messages):
            counted.append(messages)
            return super().apply_chat_template(messages)

    for found in simulated.run(lambda i: load_questions(section, Counting(), simulated)):
        for mine, ours in zip(found, (train, held), strict=True):
            assert list(mine.prompts) == list(ours.prompts)
            assert mine[1:3] == ours[1:3]
    assert len(counted) == len(LENGTHS) + 2  # each prompt is counted by one host
    assert max(simulated.sent) < 200


def test_the_last_tokens_are_kept_up_to_a_limit(monkeypatch):
    asked = []

    class Counting(IdTokenizer):
        def apply_chat_template(self, messages):
            asked.append(messages[0].content)
            return super().apply_chat_template(messages)

    monkeypatch.setattr(questions, "KEPT", 5)
    tokens = questions.Tokens(Counting())
    a, b, c = (Prompt(name, (Message("user", text),)) for name, text in (("a", "2 2"), ("b", "3 3"), ("c", "4 4")))
    assert [tokens.of(p).tolist() for p in (a, b, a, c, b, a)] == [[2, 2], [3, 3], [2, 2], [4, 4], [3, 3], [2, 2]]
    assert asked == ["2 2", "3 3", "4 4", "2 2"]  # c took the place of a, which came first


def test_tokens_are_those_of_the_chat_template_and_are_made_when_asked(tmp_path):
    train, _ = load_questions(data(tmp_path, LENGTHS), IdTokenizer())
    batch = PromptStream(train.prompts, 3, seed=5).batch(1)
    for prompt, tokens_T in zip(batch, train.tokens_of(batch), strict=True):
        assert tokens_T.dtype == np.int32 and tokens_T.tolist() == IdTokenizer().encode(prompt.question)
    assert list(train.find({"train3", "train5"})) == ["train3", "train5"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ["all 2 training prompts are longer than data.max_prompt_tokens=8 (the shortest has 9 tokens)"]),
        ({"max_prompt_tokens": 9}, ["a training prompt of host 1 is not that of host 0: train1 is "]),
    ],
)
def test_an_error_is_every_hosts(tmp_path, change, expected):
    (tmp_path / "other").mkdir()
    sections = [data(tmp_path, [9, 9], **change), data(tmp_path / "other", [9, 10 if change else 9], **change)]
    simulated = SimulatedHosts(2)
    found = simulated.run(lambda i: load_questions(sections[i], IdTokenizer(), simulated))
    assert all(isinstance(e, UserError) and expected[0] in str(e) for e in found), found


def test_what_one_host_cannot_tokenize_ends_all(tmp_path):
    class Refuses(IdTokenizer):
        def encode(self, text):
            if text.startswith("13"):
                raise UserError("character '3' is not among the pieces")
            return super().encode(text)

    section, simulated = data(tmp_path, [1] * 6), SimulatedHosts(3)
    found = simulated.run(lambda i: load_questions(section, Refuses(), simulated))
    assert [str(e) for e in found] == ["character '3' is not among the pieces"] * 3


@pytest.mark.parametrize("in_memory", [1, 1 << 20])
def test_packed_prompts_are_the_prompts(monkeypatch, in_memory):
    monkeypatch.setattr(packed, "IN_MEMORY", in_memory)  # 1: in a file
    prompts = [Prompt(f"p{i}", (Message("user", "é" * i),), metadata={"n": [i]}) for i in range(9)]
    found = Packed(prompts)
    assert list(found) == prompts and found[4] == prompts[4] and found[-1] == prompts[-1] and found[2:5] == prompts[2:5]
    assert [p.metadata for p in found] == [p.metadata for p in prompts]
    chosen = found.select([7, 1])
    del found
    assert list(chosen) == [prompts[7], prompts[1]] and len(chosen) == 2
    with pytest.raises(IndexError):
        chosen[2]


def test_a_file_is_read_line_by_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "a\xe2\x80\xa8b"}\r\n\n{"question": "c"}')
    found = load_prompts(source="jsonl", path=str(path))
    assert [(p.id, p.question) for p in found] == [("a-1", "a\u2028b"), ("a-3", "c")]
    path.write_bytes(b'{"question": "a"}\n' * 2_000 + b'{"question": "\xff"}\n')
    with pytest.raises(UserError, match="byte 36014 is not UTF-8"):
        load_prompts(source="jsonl", path=str(path))
