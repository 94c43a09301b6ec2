"""A tokenizer and a table that do not have the same ids: padding, gaps, tokens without a row."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import models

from ropd_jax.models import transformer
from ropd_jax.sampling.sample import sample
from ropd_jax.text.tokenizer import HFTokenizer
from ropd_jax.types import UserError
from ropd_jax.weights.hf import save_hf
from ropd_jax.weights.student import find, load_checkpoint
from ropd_jax.weights.vocabulary import fit
from tests.helpers import TINY


def tokenizer(vocab, added=(), stop_ids=(1,)):
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.add_special_tokens([tokenizers.AddedToken(t, special=True) for t in added])
    return HFTokenizer(backend, template="{{ 1 }}", special={}, stop_ids=stop_ids, pad_id=0)


LETTERS = {"<pad>": 0, "<eos>": 1} | {chr(95 + i): i for i in range(2, 20)}


@pytest.mark.parametrize(
    ("vocab", "stop_ids", "unused"),
    [
        (LETTERS | {chr(300 + i): i for i in range(20, 64)}, (1,), ()),
        (LETTERS, (1,), ((20, 64),)),  # the table is padded, as in Qwen
        ({t: i for t, i in LETTERS.items() if i not in (5, 7, 8)}, (1,), ((5, 6), (7, 9), (20, 64))),  # gaps
        (LETTERS, (1, 30), ((20, 30), (31, 64))),  # generation_config.json ends an answer with an id without a text
        (LETTERS | {f"[PAD{i}]": i for i in range(20, 64)}, (1,), ((20, 64),)),  # as in a GGUF file
        (LETTERS | {"[PAD9]": 20}, (1,), ((21, 64),)),  # a token that only has such a name
    ],
)
def test_ids_without_a_token_are_unused(vocab, stop_ids, unused):
    cfg, same = fit(TINY, made := tokenizer(vocab, stop_ids=stop_ids), "here")
    assert cfg == dataclasses.replace(TINY, unused=unused) and same is made


def test_tokens_without_a_row_are_refused_in_one_line():
    vocab = {chr(300 + i): i for i in range(63)}
    fit(TINY, tokenizer(vocab, ["<|im_end|>"]), "here")  # 64 tokens, 64 rows
    said = (
        r"^here: the tokenizer has 2 tokens beyond the 64 rows of the embedding table, the first is '<tool>' \(id 64\);"
    )
    with pytest.raises(UserError, match=said) as refused:
        fit(TINY, tokenizer(vocab, ["<|im_end|>", "<tool>", "</tool>"]), "here")
    assert "\n" not in str(refused.value)


def test_gemma_3s_image_token_without_a_row_is_cut_into_other_tokens():
    text = "<image_soft_token>"
    vocab = {chr(300 + i): i for i in range(63 - len(set(text)))}
    vocab |= {c: len(vocab) + i for i, c in enumerate(sorted(set(text)))}
    made = tokenizer(vocab, ["<|im_end|>", text])
    assert made.encode(text) == [64]
    cfg, without = fit(TINY, made, "here")
    assert cfg == TINY and without.vocab_size == 64 and max(without.encode(text)) < 63
    assert without.encode("<|im_end|>") == [63] and without.stop_ids == made.stop_ids


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """The tiny student with 104 tokens in a table of 120 rows, of which it prefers the last 16."""
    path, tiny = tmp_path_factory.mktemp("padded"), load_checkpoint("tiny")
    assert tiny.cfg.tied and tiny.cfg.vocab_size == tiny.tokenizer.vocab_size == 104 and not tiny.cfg.unused
    table_VD = tiny.params["embed"]["table_VD"]
    params = tiny.params | {"embed": {"table_VD": np.concatenate([table_VD, 3 * table_VD[2:18]])}}
    save_hf(path, dataclasses.replace(tiny.cfg, vocab_size=120), params)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(find("tiny") / name, path / name)
    return path


def test_a_student_with_a_padded_table_answers_as_the_one_without(padded):
    student, tiny = load_checkpoint(str(padded)), load_checkpoint("tiny")
    assert student.cfg.unused == ((104, 120),) and len(student.params["embed"]["table_VD"]) == 120
    how = dict(n=4, max_tokens=12, temperature=1.5, seed=3)
    (ours,), (theirs,) = (sample(s, "1 + 2 =", **how) for s in (student, tiny))
    for a, b in zip(ours.rollouts, theirs.rollouts, strict=True):
        assert a.text == b.text and max(a.tokens_T) < 104
        np.testing.assert_allclose(a.logp_T, b.logp_T, atol=1e-5)
    tokens_BT = jnp.arange(6, dtype=jnp.int32)[None]
    x_BTD = transformer.hidden(student.cfg, jax.tree.map(jnp.asarray, student.params), tokens_BT, tokens_BT,
                               jnp.ones_like(tokens_BT))  # fmt: skip
    raw, masked = (transformer.logits(dataclasses.replace(student.cfg, unused=u), student.params, x_BTD)
                   for u in ((), student.cfg.unused))  # fmt: skip
    assert float(jax.nn.softmax(raw)[..., 104:].sum(-1).max()) > 0.5  # without the mask it would sample them
    assert float(jax.nn.softmax(masked)[..., 104:].max()) == 0.0
    np.testing.assert_array_equal(masked[..., :104], raw[..., :104])


def test_a_checkpoint_whose_tokenizer_is_larger_is_refused_before_its_weights_are_read(padded, tmp_path):
    shutil.copytree(padded, tmp_path / "larger")
    file = tmp_path / "larger" / "tokenizer.json"
    backend = tokenizers.Tokenizer.from_file(str(file))
    backend.add_special_tokens([f"<{i}>" for i in range(20)])
    backend.save(str(file))
    config = json.loads((tmp_path / "larger" / "config.json").read_text())
    assert config["vocab_size"] == 120
    with pytest.raises(UserError, match=r"larger: the tokenizer has 4 tokens beyond the 120 rows .* '<16>' \(id 120\)"):
        load_checkpoint(str(tmp_path / "larger"))
