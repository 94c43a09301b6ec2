"""Tokens outside of tokenizer.json, and state inside it: every id and text equals transformers'."""

from __future__ import annotations

import json
import logging

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from ropd_jax.types import Message, UserError
from ropd_jax.weights.tokenizer import load_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = (
    "the <|im_start|>user\n the <|im_end|> x <|endoftext|>",
    " <tool> <think> a</think>  the",
    "[PAD] <extra> <mine>  <|im_end|>\n",
    "the " * 40,  # longer than the stored truncation
)
N = 260  # tokens of the saved tokenizer


def token(content: str, **flags) -> dict:
    return dict(content=content, lstrip=False, rstrip=False, normalized=False, single_word=False, special=True) | flags


def by_id(*tokens: dict) -> dict:
    return {str(N + i): t for i, t in enumerate(tokens)}


START, END, THINK = token("<|im_start|>"), token("<|im_end|>"), token("<think>", special=False, normalized=True)
FILES = {  # the content of tokenizer_config.json, and further files
    "nothing": ({}, {}),
    "decoder": ({"added_tokens_decoder": {"0": token("<|endoftext|>")} | by_id(START, END)}, {}),
    "flags": ({"added_tokens_decoder": by_id(START | {"rstrip": True}, END | {"lstrip": True}, THINK)}, {}),
    "flags of a token that is there": ({"added_tokens_decoder": {"0": token("<|endoftext|>", lstrip=True)}}, {}),
    "added_tokens.json": ({}, {"added_tokens.json": {"<|im_end|>": N + 1, "<|im_start|>": N}}),
    "added_tokens.json, one is special": (
        {"eos_token": "<|im_end|>"},
        {"added_tokens.json": {"<|im_start|>": N, "<|im_end|>": N + 1}},
    ),
    "decoder before added_tokens.json": (
        {"added_tokens_decoder": by_id(START)},
        {"added_tokens.json": {"<|im_end|>": N}},
    ),
    "named": ({"bos_token": "<|im_start|>", "eos_token": END | {"__type": "AddedToken"}, "pad_token": "[PAD]"}, {}),
    "additional": ({"additional_special_tokens": ["<|im_start|>", "<tool>"], "eos_token": "<|im_end|>"}, {}),
    "extra": ({"extra_special_tokens": ["<|im_start|>", "<tool>"], "eos_token": "<|im_end|>"}, {}),
    "extra with names": (
        {"extra_special_tokens": {"image_token": "<extra>", "my_token": "<mine>"}, "eos_token": "<|im_end|>"},
        {},
    ),
    "special_tokens_map.json": (
        {},
        {
            "special_tokens_map.json": {
                "eos_token": "<|im_end|>",
                "bos_token": {k: v for k, v in START.items() if k != "special"},
                "additional_special_tokens": ["<tool>"],
            }
        },
    ),
    "decoder before special_tokens_map.json": (
        {"added_tokens_decoder": by_id(START)},
        {"special_tokens_map.json": {"eos_token": "<|im_end|>"}},
    ),
    "split": ({"split_special_tokens": True, "added_tokens_decoder": by_id(START, END, THINK)}, {}),
    "null": ({"bos_token": None, "unk_token": None}, {}),
    "a token of the model": ({"eos_token": "Ġthe"}, {}),
}


@pytest.fixture
def directory(tmp_path):
    """A tokenizer that was last used with truncation and padding, and saved in that state."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "Ġthe"]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    vocab = {piece: i for i, piece in enumerate(["<|endoftext|>", *pieces])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    backend.enable_truncation(16)
    backend.enable_padding(length=64, pad_token="<|endoftext|>", pad_id=0)
    backend.save(str(tmp_path / "tokenizer.json"))
    return write(tmp_path, {}, {"generation_config.json": {"eos_token_id": 0}})


def write(path, config, files):
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "chat_template": TEMPLATE,
    } | config
    for name, value in {"tokenizer_config.json": config, **files}.items():
        (path / name).write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("name", FILES)
def test_declared_tokens_and_stored_state_are_read_as_transformers_reads_them(directory, tmp_path, name):
    from transformers import AutoTokenizer

    write(directory, *FILES[name])
    ours, theirs = load_tokenizer(directory), AutoTokenizer.from_pretrained(str(directory))
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text
    chat = [{"role": "user", "content": "the question, " * 9}]
    ids = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ours.apply_chat_template([Message("user", "the question, " * 9)]) == ids and len(ids) > 16
    assert ours.vocab_size == len(theirs) and ours.pad_id == theirs.pad_token_id
    names = {key: ours.token_id(key) for key in theirs.special_tokens_map}
    assert names == {key: theirs.convert_tokens_to_ids(t) for key, t in theirs.special_tokens_map.items()}
    (tmp_path / "saved").mkdir()
    ours.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert [again.encode(t) for t in TEXTS] == [ours.encode(t) for t in TEXTS]


def test_a_declared_id_that_the_tokenizer_cannot_give_is_named(directory):
    for config, files in (
        ({"added_tokens_decoder": {str(N + 5): START}}, {}),
        ({}, {"added_tokens.json": {"<|im_start|>": N + 5}}),
    ):
        write(directory, config, files)
        with pytest.raises(UserError, match=rf"'<\|im_start\|>' has id {N + 5}, but .* whose next free id is {N};"):
            load_tokenizer(directory)
        (directory / "added_tokens.json").unlink(missing_ok=True)


@pytest.mark.parametrize("value", [7, {"0": 7}, {"x": START}, {"9": {"content": 7}}, [START], "x"])
def test_declarations_of_another_form_are_refused(directory, value):
    write(directory, {"added_tokens_decoder": value}, {})
    with pytest.raises(UserError, match="unexpected form") as e:
        load_tokenizer(directory)
    assert "\n" not in str(e.value)


def test_a_null_declaration_declares_nothing(directory):
    null = dict.fromkeys(("added_tokens_decoder", "extra_special_tokens", "split_special_tokens", "pad_token"))
    write(directory, null, {"added_tokens.json": {"<|im_start|>": N}})
    assert load_tokenizer(directory).encode("<|im_start|>") == [N]


def test_a_named_token_without_an_embedding_is_left_out(directory, caplog):
    """Fine-tunes declare a [PAD] or an <unk> behind the last row of the table. Neither is ever computed with."""
    (directory / "config.json").write_text(json.dumps({"vocab_size": N}))
    write(directory, {"pad_token": "[PAD]"}, {})
    tokenizer = load_tokenizer(directory)
    assert tokenizer.vocab_size == N and tokenizer.pad_id == tokenizer.stop_ids[-1]
    (directory / "config.json").write_text(json.dumps({"vocab_size": N + 1}))
    assert load_tokenizer(directory).pad_id == N and not caplog.records
    (directory / "config.json").write_text(json.dumps({"text_config": {"vocab_size": N}}))
    write(directory, {"unk_token": "<unk>", "additional_special_tokens": ["<tool>"]}, {})
    with caplog.at_level(logging.WARNING):
        assert load_tokenizer(directory).vocab_size == N
    for text in ("<unk>", "<tool>"):
        assert f"the special token '{text}' has no row in the table of {N} tokens; left out" in caplog.text


def test_stored_dropout_is_off_and_said(directory, caplog):
    raw = json.loads((directory / "tokenizer.json").read_text())
    raw["model"]["dropout"] = 0.9
    (directory / "tokenizer.json").write_text(json.dumps(raw))
    with caplog.at_level(logging.WARNING):
        tokenizer = load_tokenizer(directory)
    assert "dropout of 0.9 in tokenizer.json is disabled" in caplog.text
    assert {tuple(tokenizer.encode(" the the the")) for _ in range(20)} == {(N - 1,) * 3}


def test_templates_are_looked_for_where_transformers_looks(directory):
    from transformers import AutoTokenizer

    def text():
        chat = [{"role": "user", "content": "Q"}]
        theirs = AutoTokenizer.from_pretrained(str(directory)).apply_chat_template(chat, tokenize=False)
        assert load_tokenizer(directory).render([Message("user", "Q")]) == theirs
        return theirs

    own = [{"name": n, "template": f"{n} {{{{ messages[0].content }}}}"} for n in ("tool_use", "default")]
    write(directory, {"chat_template": own}, {})
    assert text() == "default Q"
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "rag.jinja").write_text("rag {{ messages[0].content }}")
    with pytest.raises(UserError, match="has the chat templates rag, but no default; save the one"):
        load_tokenizer(directory)
    (directory / "chat_template.jinja").write_text("file {{ messages[0].content }}")
    assert text() == "file Q"
    (directory / "chat_template.jinja").unlink()
    mine = directory / "mine.txt"
    mine.write_text("mine {{ messages[0].content }}")
    assert load_tokenizer(directory, chat_template=str(mine)).render([Message("user", "Q")]) == "mine Q"


def test_the_template_of_a_multimodal_checkpoints_processor_is_the_last_resort(directory):
    write(directory, {"chat_template": None}, {"chat_template.json": {"chat_template": "P {{ messages[0].content }}"}})
    assert load_tokenizer(directory).render([Message("user", "Q")]) == "P Q"
