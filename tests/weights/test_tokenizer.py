"""Tokenizers of real checkpoints: from GGUF metadata and from Hugging Face directories."""

from __future__ import annotations

import json
import random

import pytest
import tokenizers
from gguf import GGUFWriter
from tokenizers import decoders, models, pre_tokenizers, trainers

from ropd_jax.types import Message, UserError
from ropd_jax.weights.gguf import find_smollm2
from ropd_jax.weights.gguf_tokenizer import byte_level_bpe
from ropd_jax.weights.tokenizer import load_tokenizer

TEMPLATE = (
    "{% for m in messages %}\n    {% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}\n"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
RENDERED = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n"
)
CHAT = [Message("system", "Be brief."), Message("user", "What is 12 + 30?")]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = (
    "Hello  world\n\n\t 1234 x",
    " leading, trailing ",
    "ünïcødé 你好 🙂 ½ ٣٤ \u00a0\u200b",
    "def f(x):\n    return x**2  # It's we'll\r\n",
    "<|im_end|> a<|endoftext|>b <|im_start|>",
    "",
    "2024-01-02T03:04:05 3.14159e-10 1,000,000",
)


@pytest.fixture(scope="module")
def trained():
    """A byte-level BPE with smollm's cut, trained on a few lines: (tokenizers.Tokenizer, tokens, merges, types)."""
    backend = tokenizers.Tokenizer(models.BPE())
    cut = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(cut)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = ["system user assistant What is the answer to 12 + 30?", "the answer is 42, the world is the world"]
    backend.train_from_iterator(lines * 5, trainer)
    tokens = [t for t, _ in sorted(backend.get_vocab().items(), key=lambda x: x[1])]
    merges = [" ".join(m) for m in json.loads(backend.to_str())["model"]["merges"]]
    return backend, tokens, merges, [3] * 3 + [1] * (len(tokens) - 3)


def write_gguf(path, trained, **changes):
    _, tokens, merges, types = trained
    keys = {
        "ggml.model": "gpt2",
        "ggml.pre": "smollm",
        "ggml.tokens": tokens,
        "ggml.token_type": types,
        "ggml.merges": merges,
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.padding_token_id": 2,
        "chat_template": TEMPLATE,
    } | changes
    writer = GGUFWriter(path, "llama")
    for key, value in keys.items():
        kinds = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}
        add = kinds.get(type(value))
        if add is not None:
            add(f"tokenizer.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture
def directory(tmp_path, trained):
    """A Hugging Face directory's tokenizer files."""
    trained[0].save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    special = {
        "bos_token": "<|im_start|>",
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>"},
        "pad_token": "<|endoftext|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | special))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    return tmp_path


def edit(file, **changes):
    raw = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))


def test_gguf_tokenizer_encodes_as_the_one_it_was_written_from(tmp_path, trained):
    ours = load_tokenizer(write_gguf(tmp_path / "t.gguf", trained))
    for text in TEXTS:
        assert ours.encode(text) == trained[0].encode(text, add_special_tokens=False).ids
        assert ours.decode(ours.encode(text)) == text
    assert (ours.stop_ids, ours.pad_id, ours.vocab_size) == ((2, 0), 2, 290)
    assert ours.render(CHAT) == RENDERED
    assert ours.apply_chat_template(CHAT) == trained[0].encode(RENDERED, add_special_tokens=False).ids


def assert_saved_for_transformers(ours, path, model_type: str, texts):
    """The files of ``save`` give the same ids and texts in transformers and here."""
    from transformers import AutoTokenizer

    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    ours.save(path)
    theirs, again = AutoTokenizer.from_pretrained(str(path)), load_tokenizer(path)
    for text in texts:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == again.encode(text) == ids, text
        assert theirs.decode(ids) == again.decode(ids) == ours.decode(ids)
    assert again.template == ours.template and again.stop_ids == ours.stop_ids and again.pad_id == ours.pad_id


QWEN_CUT = (  # as in their tokenizer.json
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize("pre", ["qwen2", "deepseek-r1-qwen", "llama-bpe", "llama3", "llama-v3"])
def test_gguf_of_qwen_and_llama3_encodes_as_the_tokenizer_it_was_written_from(tmp_path, trained, pre):
    theirs = tokenizers.Tokenizer.from_str(trained[0].to_str())
    qwen = "qwen" in pre
    cut = QWEN_CUT if qwen else QWEN_CUT.replace(r"\p{N}|", r"\p{N}{1,3}|")
    split = pre_tokenizers.Split(tokenizers.Regex(cut), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if qwen:
        theirs.normalizer = tokenizers.normalizers.NFC()
    ours = load_tokenizer(write_gguf(tmp_path / "t.gguf", trained, **{"ggml.pre": pre}))
    for text in (*TEXTS, "e\u0301", "12345", "I'LL we'Ve", "  \n\n  x"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ours.encode("e\u0301")) == ("é" if qwen else "e\u0301")
    assert_saved_for_transformers(ours, tmp_path / "d", "qwen3" if qwen else "llama", TEXTS)


def test_a_gguf_file_without_pre_says_that_its_cut_is_a_guess(tmp_path, trained, caplog):
    with caplog.at_level("WARNING"):
        load_tokenizer(write_gguf(tmp_path / "t.gguf", trained))
        assert not caplog.records
        ours = load_tokenizer(write_gguf(tmp_path / "t.gguf", trained, **{"ggml.pre": ...}))
    assert len(caplog.records) == 1 and "has no tokenizer.ggml.pre" in caplog.text and "(default)" in caplog.text
    named = load_tokenizer(write_gguf(tmp_path / "u.gguf", trained, **{"ggml.pre": "default"}))
    assert [ours.encode(t) for t in TEXTS] == [named.encode(t) for t in TEXTS]


@pytest.mark.parametrize("prefix", [False, True])
def test_gguf_of_sentencepiece_encodes_as_the_tokenizer_it_was_written_from(tmp_path, prefix):
    """Gemma's kind (no space in front) and Llama 2's, spaces visible, unknown characters as bytes."""
    from tokenizers import normalizers

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    data = [f"<0x{i:02X}>" for i in range(256)]
    theirs = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    prepend = [normalizers.Prepend("▁")] if prefix else []
    theirs.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    if not prefix:
        theirs.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    theirs.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=[*special, *data], show_progress=False)
    lines = ["the answer is 42, the world is  the world", "Hello user, what is 12 + 30?\n\n", "def f(x): return x**2"]
    theirs.train_from_iterator(lines * 5, trainer)
    tokens = [t for t, _ in sorted(theirs.get_vocab().items(), key=lambda x: x[1])]
    types = [3, 3, 3, 2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 262)
    path = write_gguf(
        tmp_path / "t.gguf",
        (None, tokens, ["a b"], types),
        **{
            "ggml.model": "llama", "ggml.scores": [float(-i) for i in range(len(tokens))], "ggml.merges": ...,
            "ggml.add_space_prefix": prefix, "ggml.bos_token_id": 2, "ggml.eos_token_id": 1,
            "ggml.padding_token_id": 0, "ggml.unknown_token_id": 3,
            "chat_template": "{{ bos_token }}<start_of_turn>user\n{{ messages[0].content }}<end_of_turn>\n",
        },
    )  # fmt: skip
    ours = load_tokenizer(path)
    for text in (*TEXTS, "the world", "<start_of_turn>user\nthe<end_of_turn>"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text
        assert ours.decode(ours.encode(text)) == text or prefix
    assert len(ours.encode("the world is")) < 8 and ours.encode("🙂")[-4:] == [6 + b for b in "🙂".encode()]
    assert_saved_for_transformers(ours, tmp_path / "d", "llama" if prefix else "gemma3_text", TEXTS)
    assert ours.stop_ids == (5, 1) and ours.pad_id == 0 and ours.render(CHAT).startswith("<bos><start_of_turn>")


def test_each_digit_is_a_token_under_smollm_and_not_under_gpt2():
    """Merges that would join digits are never used if the split separates them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "12", "Ġ1"]
    args = (tokens, ["1 2", "Ġ 1"], [1] * len(tokens))
    split = {pre: byte_level_bpe(*args, pre, "here") for pre in ("smollm", "gpt-2")}
    assert split["smollm"].encode("12 1").tokens == ["1", "2", "Ġ", "1"]
    assert split["gpt-2"].encode("12 1").tokens == ["12", "Ġ1"]


def test_directory_equals_transformers(directory):
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(directory), AutoTokenizer.from_pretrained(str(directory))
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids) == text
    chat = [{"role": m.role, "content": m.content} for m in CHAT]
    assert ours.render(CHAT) == RENDERED == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ours.apply_chat_template(CHAT) == ids
    assert (ours.stop_ids, ours.pad_id) == ((2, 0), theirs.pad_token_id)


def test_end_of_turn_of_the_template_is_the_first_stop_token(directory):
    """A base model's eos ends a text, but the answers of a chat end with the turn."""
    edit(directory / "generation_config.json", eos_token_id=0)
    edit(directory / "tokenizer_config.json", eos_token="<|endoftext|>")
    assert load_tokenizer(directory).stop_ids == (2, 0)
    edit(directory / "tokenizer_config.json", chat_template="{{ messages[0].content }}")
    assert load_tokenizer(directory).stop_ids == (0,)


def test_template_is_looked_for_where_checkpoints_keep_it(directory, tmp_path):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "D {{ messages[0].content }}"}]
    edit(directory / "tokenizer_config.json", chat_template=named)
    assert load_tokenizer(directory).render(CHAT) == "D Be brief."
    (directory / "chat_template.jinja").write_text("J {{ bos_token }}{{ messages[0].content }}")
    assert load_tokenizer(directory).render(CHAT) == "J <|im_start|>Be brief."
    mine = tmp_path / "mine.jinja"
    mine.write_text("M {{ messages[0].content }} {{ messages[1].content }}")
    assert load_tokenizer(directory, chat_template=str(mine)).render(CHAT) == "M Be brief. What is 12 + 30?"


def test_missing_template_names_checkpoint_and_remedy(directory, tmp_path, trained):
    edit(directory / "tokenizer_config.json", chat_template=...)
    gguf = write_gguf(tmp_path / "t.gguf", trained, chat_template=...)
    for path in (directory, gguf):
        with pytest.raises(UserError, match="has no chat template") as e:
            load_tokenizer(path)
        assert str(path) in str(e.value) and "--config.student.chat_template=FILE" in str(e.value)
    mine = tmp_path / "mine.jinja"
    mine.write_text(TEMPLATE)
    assert load_tokenizer(directory, chat_template=str(mine)).render(CHAT) == RENDERED
    assert load_tokenizer(gguf, chat_template=str(mine)).render(CHAT) == RENDERED


def test_template_that_cannot_be_used_is_named(directory, tmp_path):
    mine = tmp_path / "mine.jinja"
    with pytest.raises(UserError, match=r"student\.chat_template='.*mine\.jinja' cannot be read"):
        load_tokenizer(directory, chat_template=str(mine))
    mine.write_text(" \n")
    with pytest.raises(UserError, match="is empty"):
        load_tokenizer(directory, chat_template=str(mine))
    mine.write_text("ok\n{% for m in messages %}")
    with pytest.raises(UserError, match=r"mine\.jinja, line 2: not a Jinja chat template"):
        load_tokenizer(directory, chat_template=str(mine))
    with pytest.raises(UserError, match=r"rejects messages of roles \[tool\]: no tools here"):
        load_tokenizer(directory).apply_chat_template([Message("tool", "x")])


def test_template_cannot_reach_into_the_program(directory):
    edit(directory / "tokenizer_config.json", chat_template="{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UserError, match="rejects messages"):
        load_tokenizer(directory).apply_chat_template(CHAT)


def test_directory_without_or_with_damaged_tokenizer_is_named(directory, tmp_path):
    (directory / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read as a tokenizer .* fetch it again"):
        load_tokenizer(directory)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer; expected tokenizer\.json"):
        load_tokenizer(directory)
    (directory / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match="transformers cannot convert its tokenizer"):
        load_tokenizer(directory)


def test_checkpoint_that_names_no_end_is_named(directory):
    edit(directory / "generation_config.json", eos_token_id=...)
    edit(directory / "tokenizer_config.json", eos_token=..., pad_token=..., chat_template="{{ messages[0].content }}")
    text = (directory / "tokenizer.json").read_text().replace("<|endoftext|>", "<|nothing|>")
    (directory / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="does not declare which token ends an answer"):
        load_tokenizer(directory)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"ggml.model": "bert"}, r"tokenizer\.ggml\.model='bert' is not supported; expected 'gpt2'"),
        ({"ggml.model": "llama"}, r"no metadata key 'tokenizer\.ggml\.scores'"),
        ({"ggml.pre": "tekken"}, r"tokenizer\.ggml\.pre='tekken' is not supported yet; supported: smollm, gpt-2"),
        ({"ggml.tokens": ...}, r"no metadata key 'tokenizer\.ggml\.tokens'"),
        ({"ggml.token_type": [1, 1]}, "2 token types for 290 tokens"),
        ({"ggml.merges": ["q z"]}, "merge 'q z' is not made of tokens"),
        ({"ggml.eos_token_id": 999}, "eos_token_id=999, expected below 290"),
    ],
)
def test_gguf_tokenizer_that_is_not_supported_is_named(tmp_path, trained, changes, said):
    with pytest.raises(UserError, match=said) as e:
        load_tokenizer(write_gguf(tmp_path / "t.gguf", trained, **changes))
    assert "t.gguf" in str(e.value) and "\n" not in str(e.value)


@pytest.fixture(scope="module")
def smollm2():
    try:
        return load_tokenizer(find_smollm2())
    except UserError as e:
        pytest.skip(str(e))


def test_smollm2_template_renders_as_its_authors_wrote_it(smollm2):
    assert smollm2.render([Message("user", "Hi")]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert smollm2.render(CHAT) == RENDERED
    ids = smollm2.apply_chat_template(CHAT)
    assert ids[:3] == [1, 9690, 198] and ids[-3:] == [520, 9531, 198]
    assert (smollm2.stop_ids, smollm2.pad_id, smollm2.vocab_size) == ((2, 0), 2, 49_152)


def test_smollm2_round_trip(smollm2):
    rng = random.Random(0)
    wild = "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0xA0, 0xD7FF)])) for _ in range(2000))
    for text in (*TEXTS, wild):
        assert smollm2.decode(smollm2.encode(text)) == text
    assert smollm2.encode("1234") == [33, 34, 35, 36]
    for i in range(smollm2.vocab_size):
        if i < 17:
            assert smollm2.encode(smollm2.decode([i])) == [i]
