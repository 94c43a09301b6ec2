"""Log-probabilities of tokens next to the groups: writing, reading, and the position of each token."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from ropd_jax.text.pieces import piece_tokenizer
from ropd_jax.text.tokenizer import HFTokenizer
from ropd_jax.types import Judgement, Message, Prompt, Rollout, RolloutGroup
from ropd_jax.viewer.runs import Run
from ropd_jax.workdir.groups import GroupsLog
from ropd_jax.workdir.token_logprobs import file_of, read_token_logprobs, write_token_logprobs

TEXTS = ("Answer: 5\n", "häß 😀 x", "", "  two  spaces")


def byte_level(texts=TEXTS):
    """A byte-level BPE without merges, and one whole word."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_end|>"])
    return wrapped(backend, "<|im_end|>")


def sentencepiece():
    """Words that start with ▁, bytes for everything else, and a decoder that drops the first space."""
    words = ["▁", "▁Answer", ":", "▁5", "h", "x", "▁two", "▁spaces", "▁x", "\n"]
    vocab = {w: i for i, w in enumerate([*words, *(f"<0x{b:02X}>" for b in range(256)), "</s>"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrapped(backend, "</s>")


def wrapped(backend, eos):
    i = backend.token_to_id(eos)
    return HFTokenizer(backend, template="", special={"eos_token": eos}, stop_ids=(i,), pad_id=i)


def group(ids_and_texts, step=0, index=0):
    rollouts = tuple(
        Rollout(np.array(ids, np.int32), np.linspace(-3, 0, len(ids), dtype=np.float32), text, "stop")
        for ids, text in ids_and_texts
    )
    return RolloutGroup(Prompt("p", (Message("user", "q"),)), np.zeros(1, np.int32), rollouts, step, index)


def pieces(stored, text):
    """The text cut into its tokens' bytes."""
    data, ends = text.encode(), np.cumsum(stored["bytes"].astype(int))
    return [data[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def test_each_token_of_a_byte_level_vocabulary_stands_where_it_was_written(tmp_path):
    tokenizer = byte_level()
    stop = tokenizer.stop_ids[0]
    groups = [group([([*tokenizer.encode(t), stop], t) for t in TEXTS])]
    path = tmp_path / "step_000003.jsonl"
    write_token_logprobs(path, groups, tokenizer.token_bytes())
    for text, stored in zip(TEXTS, read_token_logprobs(path, 0), strict=True):
        assert pieces(stored, text) == [bytes([b]) for b in text.encode()] + [b""]
        assert len(stored["logp"]) == len(text.encode()) + 1 and "change" not in stored
    assert file_of(path).stat().st_mode & 0o777 == 0o600


def test_a_decoder_that_drops_the_first_space_and_writes_bytes(tmp_path):
    tokenizer = sentencepiece()
    vocab = tokenizer.vocab()
    ids = [vocab[w] for w in ("▁Answer", ":", "▁5", "<0xC3>", "<0xA4>", "▁x", "</s>")]
    text = tokenizer.decode(ids[:-1])
    assert text == "Answer: 5ä x"
    write_token_logprobs(tmp_path / "s.jsonl", [group([(ids, text)])], tokenizer.token_bytes())
    [stored] = read_token_logprobs(tmp_path / "s.jsonl", 0)
    assert pieces(stored, text) == [b"Answer", b":", b" 5", b"\xc3", b"\xa4", b" x", b""]


def test_half_a_character_at_the_end_has_no_place_and_other_texts_have_none_at_all(tmp_path):
    tokenizer = byte_level()
    ids = tokenizer.encode("ab😀")[:-2]
    text = tokenizer.decode(ids)
    assert text == "ab\ufffd"
    groups = [group([(ids, text), (tokenizer.encode("abc"), "something else")])]
    write_token_logprobs(tmp_path / "s.jsonl", groups, tokenizer.token_bytes())
    first, second = read_token_logprobs(tmp_path / "s.jsonl", 0)
    assert first["bytes"].tolist() == [1, 1, 0, 0] and second["bytes"].tolist() == [0, 0, 0]


def test_pieces_of_a_list(tmp_path):
    tokenizer = piece_tokenizer(["a", "bc", "ä", "<e>", "<p>"], eos="<e>", pad="<p>")
    assert tokenizer.token_bytes().tolist() == [1, 2, 2, 3, 3]


def test_numbers_come_back_to_half_precision_and_the_file_is_the_same_each_time(tmp_path):
    tokenizer = byte_level()
    logp = np.array([-0.001, -12.5, -1e9, 0.0], np.float32)
    ids = np.array(tokenizer.encode("abcd"), np.int32)
    one = RolloutGroup(Prompt("p", (Message("user", "q"),)), ids, (Rollout(ids, logp, "abcd", "stop"),), 0, 0)
    change = [[np.array([0.01, -0.3, 0.0, 2.0], np.float32)]]
    path = tmp_path / "s.jsonl"
    write_token_logprobs(path, [one], tokenizer.token_bytes(), change)
    before = file_of(path).read_bytes()
    write_token_logprobs(path, [one], tokenizer.token_bytes(), change)
    assert file_of(path).read_bytes() == before
    [stored] = read_token_logprobs(path, 0)
    np.testing.assert_allclose(stored["logp"].astype(np.float32)[[0, 1, 3]], logp[[0, 1, 3]], rtol=1e-3)
    assert np.isfinite(stored["logp"]).all()
    np.testing.assert_allclose(stored["change"].astype(np.float32), change[0][0], rtol=1e-3)


def test_a_repeated_step_without_them_leaves_none_of_the_first_time(tmp_path):
    one = group([([1, 2], "ab")])
    args = (0, [one], [Judgement((1.0,), (None,))], [[0.0]])
    path = GroupsLog(tmp_path, token_logprobs="on", token_bytes_V=np.ones(5, int)).write(*args)
    assert Run(tmp_path).tokens(0, 0)["answers"][0]["bytes"] == [1, 1]
    GroupsLog(tmp_path).write(*args)
    assert not file_of(path).exists() and read_token_logprobs(path, 0) is None
    assert "not stored" in Run(tmp_path).tokens(0, 0)["note"]


def bomb():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        head = io.BytesIO()
        np.lib.format.write_array(head, np.ones(1, np.int32))
        zipped.writestr("0.answers.npy", head.getvalue())
        zipped.writestr("0.logp.npy", b"\x00" * 50_000_000)
    return buffer.getvalue()


def changed(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


ONE = np.array([2], np.int32)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"not a file of ours", bomb(), changed(x=ONE),
        changed(**{"0.answers": ONE, "0.logp": np.zeros(3, np.float16)}),
        changed(**{"0.answers": ONE, "0.logp": np.array(["ab", "c"])}), changed(**{"0.answers": -ONE}),
        changed(**{"0.answers": ONE, "0.logp": np.array([{}, 1], object)}),
    ],
    ids=["empty", "text", "bomb", "other", "sizes", "kind", "negative", "pickle"],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_one_line_and_never_unpickled(tmp_path, data):
    path = tmp_path / "s.jsonl"
    file_of(path).write_bytes(data)
    with pytest.raises(ValueError, match=r"^s\.tokens\.npz cannot be read"):
        read_token_logprobs(path, 0)
