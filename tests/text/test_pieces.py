"""The tiny student's tokenizer."""

from __future__ import annotations

import json
import random
import string
import subprocess
import sys

import pytest

from ropd_jax.text.chars import CharTokenizer
from ropd_jax.types import Message, UserError
from ropd_jax.weights.tokenizer import load_tokenizer

PIECES = ["<pad>", "<eos>", *string.printable, " + ", " = ", "Answer: ", "ab", "abc", "bcd"]
CHAT = {"user": ["Q: ", "\n"], "assistant": ["", "<eos>"], "generation": "A: "}


@pytest.fixture
def tokenizer():
    return CharTokenizer(PIECES, eos="<eos>", pad="<pad>", chat_template=CHAT)


def pieces(tokenizer, text):
    return [PIECES[i] for i in tokenizer.encode(text)]


def test_longest_piece_wins(tokenizer):
    assert pieces(tokenizer, "abcd") == ["abc", "d"]
    assert pieces(tokenizer, "abbcd") == ["ab", "bcd"]
    assert pieces(tokenizer, "3 + 4 = 7\nAnswer: 7") == ["3", " + ", "4", " = ", "7", "\n", "Answer: ", "7"]
    assert pieces(tokenizer, "3 +4") == ["3", " ", "+", "4"]
    assert tokenizer.encode("") == []


def test_round_trip_of_any_printable_text(tokenizer):
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(rng.choice(PIECES[2:]) for _ in range(rng.randrange(30)))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_text_becomes_eos_or_pad(tokenizer):
    assert not {0, 1} & set(tokenizer.encode("<eos><pad>"))
    assert tokenizer.decode(tokenizer.encode("<eos>")) == "<eos>"


def test_ids_are_places_in_the_list(tokenizer):
    assert (tokenizer.stop_ids, tokenizer.pad_id, tokenizer.vocab_size) == ((1,), 0, len(PIECES))


def test_chat_is_prefix_content_suffix_and_the_start_of_the_answer(tokenizer):
    chat = [Message("user", "1 + 1")]
    assert tokenizer.decode(tokenizer.apply_chat_template(chat)) == "Q: 1 + 1\nA: "
    with pytest.raises(UserError, match=r"role 'system' has no form .* it knows user, assistant"):
        tokenizer.apply_chat_template([Message("system", "x"), *chat])


def test_unknown_character_is_named(tokenizer):
    with pytest.raises(UserError, match=r"character '½' \(U\+00BD, place 2 of 'a ½'\) is not among the \d+ pieces"):
        tokenizer.encode("a ½")


def test_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, CharTokenizer)
    assert (again.pieces, again.stop_ids, again.pad_id) == (tokenizer.pieces, tokenizer.stop_ids, tokenizer.pad_id)
    assert again.apply_chat_template([Message("user", "abc")]) == tokenizer.apply_chat_template(
        [Message("user", "abc")]
    )


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"type": "bpe"}, "type is 'bpe', expected 'ropd_char'"),
        ({"eos": ...}, "lacks 'eos'"),
        ({"eos": "<end>"}, r"eos='<end>' is not one of the \d+ pieces"),
        ({"pieces": ["a", "<eos>", "a", "<pad>"]}, "piece 'a' occurs twice"),
        ({"pieces": ["a", ""]}, "non-empty strings"),
        ({"pieces": "abc"}, "expected pieces as a list"),
        ({"chat_template": {"user": "Q: "}}, r"expected \{\"user\": \[prefix, suffix\]"),
        ({"chat_template": {"generation": ""}}, "expected"),
    ],
)
def test_damaged_file_is_named(tokenizer, tmp_path, changes, said):
    tokenizer.save(tmp_path)
    file = tmp_path / "char_tokenizer.json"
    raw = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))
    with pytest.raises(UserError, match=said) as e:
        load_tokenizer(tmp_path)
    assert str(file) in str(e.value)
    file.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load_tokenizer(tmp_path)


def test_another_template_for_it_is_refused_not_ignored(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    with pytest.raises(UserError, match="cannot replace the one in"):
        load_tokenizer(tmp_path, chat_template="x.jinja")


def test_tiny_student_needs_neither_jax_nor_transformers(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    code = (
        "import sys; from ropd_jax.weights.tokenizer import load_tokenizer; load_tokenizer(sys.argv[1]).encode('1');"
        "sys.exit(bool({'jax', 'transformers', 'tokenizers', 'gguf', 'jinja2'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
