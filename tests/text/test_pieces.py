"""Tokenizers over a list of pieces, such as that of the tiny student."""

from __future__ import annotations

import pathlib
import random
import string
import subprocess
import sys

import pytest

from ropd_jax.text.pieces import piece_tokenizer
from ropd_jax.types import Message, UserError
from ropd_jax.weights.tokenizer import load_tokenizer

TINY = pathlib.Path(__file__).parents[2] / "ropd_jax" / "assets" / "quickstart_student"
PIECES = ["<pad>", "<eos>", *string.printable, " + ", " = ", "Answer: ", "ab", "abc", "bcd"]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'Q: ' + m['content'] + '\n' }}{% else %}"
    "{{ raise_exception('users only') }}{% endif %}{% endfor %}A: "
)


@pytest.fixture
def tokenizer():
    return piece_tokenizer(PIECES, eos="<eos>", pad="<pad>", template=TEMPLATE)


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


def greedy(text):
    """Longest match, implemented in the slow way."""
    ids = []
    while text:
        piece = max((p for p in PIECES[2:] if text.startswith(p)), key=len)
        ids.append(PIECES.index(piece))
        text = text.removeprefix(piece)
    return ids


def test_ids_are_those_of_greedy_longest_match(tokenizer):
    rng = random.Random(1)
    for _ in range(500):
        text = "".join(rng.choice([*PIECES[-6:], *"abcd =+\n<eos>"]) for _ in range(rng.randrange(40)))
        assert tokenizer.encode(text) == greedy(text)


def test_chat_is_that_of_the_template(tokenizer):
    chat = [Message("user", "1 + 1")]
    assert tokenizer.decode(tokenizer.apply_chat_template(chat)) == "Q: 1 + 1\nA: "
    with pytest.raises(UserError, match=r"rejects messages of roles \[user, assistant\]: users only"):
        tokenizer.apply_chat_template([*chat, Message("assistant", "2")])


def test_unknown_character_is_named(tokenizer):
    with pytest.raises(UserError, match=r"character '½' \(U\+00BD, place 2 of 'a ½'\) is not among the \d+ pieces"):
        tokenizer.encode("a ½")


def test_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.vocab_size, again.stop_ids, again.pad_id) == (len(PIECES), tokenizer.stop_ids, tokenizer.pad_id)
    for text in ("abcd", "3 + 4 = 7\nAnswer: 7", "".join(PIECES)):
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(again.encode(text)) == text
    chat = [Message("user", "abc")]
    assert again.apply_chat_template(chat) == tokenizer.apply_chat_template(chat)


@pytest.mark.parametrize(
    "pieces, ends, message",
    [
        (["a", "<eos>", "a", "<pad>"], {}, "piece 'a' occurs twice"),
        (["a", ""], {}, "non-empty strings"),
        ([], {}, "non-empty strings"),
        (["a", "<pad>"], {}, r"eos='<eos>' is not one of the 2 pieces"),
        (["a", "<pad>", "<eos>"], {"pad": "<none>"}, r"pad='<none>' is not one of the 3 pieces"),
    ],
)
def test_pieces_that_cannot_be_used_are_named(pieces, ends, message):
    with pytest.raises(UserError, match=message):
        piece_tokenizer(pieces, **({"eos": "<eos>", "pad": "<pad>"} | ends))


def test_directory_of_an_earlier_version_is_named_with_the_remedy(tmp_path):
    (tmp_path / "char_tokenizer.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"char_tokenizer\.json is a format that is no longer supported; export .* again"
    ):
        load_tokenizer(tmp_path)


def test_tiny_student_needs_neither_jax_nor_transformers(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    code = (
        "import sys; from ropd_jax.weights.tokenizer import load_tokenizer; load_tokenizer(sys.argv[1]).encode('1');"
        "sys.exit(bool({'jax', 'transformers', 'gguf'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_the_shipped_tokenizer_keeps_its_ids():
    task = "State the final answer to the following arithmetic problem: "
    pieces = ["<pad>", "<eos>", task, "Answer: ", " =\n", " + ", " - ", " = ", "\n", *map(chr, range(32, 127))]
    shipped, chat = load_tokenizer(TINY), [Message("user", "What is 1 + 2?")]
    assert (shipped.stop_ids, shipped.pad_id, shipped.vocab_size) == ((1,), 0, 104)
    assert [shipped.decode([i]) for i in range(104)] == pieces
    assert shipped.encode(task + "1 + 2 =\n") == [2, 26, 5, 27, 4]
    assert shipped.render(chat) == "What is 1 + 2?\n"
    assert shipped.apply_chat_template(chat) == piece_tokenizer(pieces, eos="<eos>", pad="<pad>").apply_chat_template(
        chat
    )
