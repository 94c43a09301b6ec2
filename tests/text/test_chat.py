"""Chat templates in use: thinking on and off, system messages, and whether the text has the sampler's tokens."""

from __future__ import annotations

import json
import logging

import jinja2
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from ropd_jax.text import chat
from ropd_jax.text.retokenize import retokenized
from ropd_jax.types import Message, Prompt, Rollout, RolloutGroup, UserError
from ropd_jax.weights.student import load_checkpoint
from ropd_jax.weights.tokenizer import load_tokenizer

SYSTEM, USER = Message("system", "Be brief."), Message("user", "1 + 1?")
# As in Qwen3: an empty thought is prefilled for a student that should not think.
QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
# As in Gemma 2.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}{{ '<start_of_turn>model\n' }}"
)
DROPS = "{% for m in messages if m.role == 'user' %}Q: {{ m.content }}\nA:{% endfor %}"


@pytest.fixture
def directory(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(["<|im_end|>", "<|endoftext|>", *alphabet, "12"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("1", "2")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_end|>", "<|endoftext|>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": QWEN}))
    return tmp_path


def test_thinking_is_the_templates_default_unless_it_is_set(directory):
    start = "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    text = {e: load_tokenizer(directory, enable_thinking=e).render([USER]) for e in (None, True, False)}
    assert text == {None: start, True: start, False: start + "<think>\n\n</think>\n\n"}


def test_thinking_of_a_template_that_never_asks_for_it_is_refused(directory, tmp_path):
    mine = tmp_path / "mine.jinja"
    mine.write_text(GEMMA)
    with pytest.raises(UserError, match=r"enable_thinking=False, but this student's chat template never reads it"):
        load_tokenizer(directory, chat_template=str(mine), enable_thinking=False)
    with pytest.raises(UserError, match="enable_thinking=True"):
        load_checkpoint("tiny", enable_thinking=True)
    load_checkpoint("tiny", enable_thinking=None)


def test_system_message_goes_where_the_template_has_it(caplog):
    assert chat.render(QWEN, [SYSTEM, USER], {}).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")
    assert not caplog.records


@pytest.mark.parametrize(
    "template, text",
    [
        (GEMMA, "<bos><start_of_turn>user\nBe brief.\n\n1 + 1?<end_of_turn>\n<start_of_turn>model\n"),
        (DROPS, "Q: Be brief.\n\n1 + 1?\nA:"),
    ],
    ids=["refused", "dropped"],
)
def test_system_message_without_a_form_stands_before_the_users_and_it_is_said_once(template, text, caplog):
    chat._report_merged.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert chat.render(template, [SYSTEM, USER], {"bos_token": "<bos>"}) == text
    assert len(caplog.records) == 1 and "not support a system message" in caplog.text


def test_system_message_that_can_stand_nowhere_is_an_error():
    with pytest.raises(UserError, match=r"drops the system message; change data\.system"):
        chat.render("{{ 'always this' }}", [SYSTEM, USER], {})
    with pytest.raises(UserError, match=r"rejects messages of roles \[system, user\]: never"):
        chat.render("{{ raise_exception('never') }}", [SYSTEM, USER], {})


ENVIRONMENT = [  # features of the rendering environment that templates of published checkpoints use
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|{% endfor %}",
    "a {%- generation -%}  b {% set x = 1 %}{%- endgeneration %} c{{ x is defined }}",
    "{% set x = 0 %}{% generation %}{{ x }}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "{% for m in messages %}{% if loop.index > 1 %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
    "{{ messages | tojson }}",
    "{{ messages | tojson(indent=2) }}",
    "{{ {'b': 'é<&>', 'a': [1, 2.5, none, true]} | tojson(ensure_ascii=true, sort_keys=true) }}",
    "{{ {'b': 'é', 'a': 1} | tojson(ensure_ascii=False, separators=(',', ':')) }}",
    "{{ tools is none }}{{ documents is none }}{{ tools is defined }}{{ xml_tools is defined }}",
    "{{ bos_token }}{{ eos_token }}{{ unk_token is defined }}{{ add_generation_prompt }}",
    "{{ dict(a=1, b=2) | tojson }}{{ dict.fromkeys(['x'], 0) | tojson }}",
    "{% set ns = namespace(n=0, self=3) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% set ns = namespace(_x=1) %}",
    "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(messages[0].content) }}",
    "  {% if true %}\n    x\n  {% endif %}\n\n{{ 'y' }}\n",
    "{{ messages[0]['content'].split('+')[0].strip() }}{{ messages[0].content | trim | length }}",
    "{{ strftime_now('%Y') | length }}{{ strftime_now is defined }}",
    "{{ raise_exception('only users') }}",
    "{{ messages.append(1) }}",
    "{{ missing.attribute }}",
]


@pytest.mark.parametrize("template", ENVIRONMENT)
def test_the_environment_of_templates_is_that_of_transformers(template):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    special = {"bos_token": "<bos>", "eos_token": "</s>"}
    messages = [{"role": "user", "content": " 1 + 1?é "}, {"role": "assistant", "content": "2"}]
    try:
        expected = utils.render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=True, **special
        )
    except (TypeError, ValueError, jinja2.TemplateError):
        with pytest.raises(UserError, match="rejects messages"):
            chat.render(template, [Message(**m) for m in messages], special)
    else:
        assert chat.render(template, [Message(**m) for m in messages], special) == expected[0][0]


def test_strftime_now_is_the_time_of_the_request_in_the_users_zone(monkeypatch):
    class Fixed(chat.datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 7, 26, 9, 5, 1, 123)

    monkeypatch.setattr(chat.datetime, "datetime", Fixed)
    assert chat.render("{{ strftime_now('%d %b %Y %H:%M:%S.%f') }}", [USER], {}) == "26 Jul 2024 09:05:01.000123"


@pytest.mark.parametrize(
    "generation, config, stop",
    [
        ([1, 0], 0, (0, 1)),  # the template's end of turn first, then what generation_config.json lists
        ([257, 258], 0, (0, 257, 258, 1)),  # a list of others, followed by the tokenizer's own ends
        (257, 258, (0, 257, 258, 1)),
        (None, 1, (0, 1)),
    ],
)
def test_stop_tokens_are_all_that_the_checkpoint_declares(directory, generation, config, stop):
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    (directory / "config.json").write_text(json.dumps({"eos_token_id": config}))
    assert load_tokenizer(directory).stop_ids == stop


def group(tokenizer, *answers, prompt=(USER,)):
    rollouts = tuple(
        Rollout(np.array(ids, np.int32), np.zeros(len(ids), np.float32), tokenizer.decode(text), reason)
        for ids, text, reason in answers
    )
    tokens = np.array(tokenizer.apply_chat_template(prompt), np.int32)
    return RolloutGroup(Prompt("q", tuple(prompt)), tokens, rollouts, 0, 0)


def test_rollouts_whose_text_has_other_tokens_are_counted(directory):
    tokenizer = load_tokenizer(directory)
    one, two, twelve, stop = *(tokenizer.encode(t)[0] for t in ("1", "2", "12")), tokenizer.stop_ids[0]
    half = tokenizer.encode("é")[0]  # the first of its two bytes
    cases = [
        (([twelve, stop], [twelve], "stop"), 0),
        (([two, one], [two, one], "length"), 0),
        (([stop, one, stop], [stop, one], "stop"), 0),  # a special token in the text becomes itself again
        (([one, two, stop], [one, two], "stop"), 1),  # sampled apart, written together
        (([twelve, half], [twelve, half], "length"), 1),  # cut inside a character
    ]
    for answer, differ in cases:
        assert retokenized(tokenizer, [group(tokenizer, answer)]) == (differ, 1), answer
    assert retokenized(tokenizer, [group(tokenizer, *(a for a, _ in cases))] * 2) == (4, 10)
    assert retokenized(tokenizer, []) == (0, 0)


def test_the_tiny_students_pieces_are_retokenized_too():
    tokenizer = load_checkpoint("tiny").tokenizer
    question = (Message("user", "1 + 1 ="),)
    ids = tokenizer.encode("1 + 1 = 2")
    apart = [tokenizer.encode(c)[0] for c in "1 + 1 = 2"]
    stop = tokenizer.stop_ids[0]
    answers = ([*ids, stop], ids, "stop"), ([*apart, stop], apart, "stop")
    differ, total = retokenized(tokenizer, [group(tokenizer, *answers, prompt=question)])
    assert (differ, total) == (int(apart != ids), 2)
