"""Several sources: how they are read, their proportions, and their own templates."""

from __future__ import annotations

import asyncio
import collections
import json
import logging

import numpy as np
import pytest

from ropd_jax import configs
from ropd_jax.data.mixture import held_out_of, interleaved, sources_of, split, step_counts
from ropd_jax.data.questions import load_questions, no_heldout, training_prompts
from ropd_jax.data.stream import PromptStream
from ropd_jax.teacher import ConfigurationError, Teacher
from ropd_jax.teacher.roles import templates
from ropd_jax.teacher.roles.rubricator import TEMPLATE
from ropd_jax.training.validate import check_data
from ropd_jax.types import Message, Prompt, UserError
from tests.helpers import Asked, IdTokenizer


class Words(IdTokenizer):
    def encode(self, text):
        return [2] * len(text.split())


def section(tmp_path, sources, **changes):
    for name, n in (("a", 30), ("b", 20), ("held", 9)):
        rows = [{"id": f"{i}", "question": f"{name} {i} ?", "answer": str(i)} for i in range(n)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = configs.default().data
    cfg.source, cfg.task, cfg.size, cfg.heldout_size, cfg.prompts_per_step = "jsonl", "", 0, 8, 8
    cfg.sources = tuple(sources)
    cfg.update(changes)
    return cfg


def two(tmp_path, **more):
    return (
        {"path": str(tmp_path / "a.jsonl"), "weight": 3, **more},
        {"path": str(tmp_path / "b.jsonl"), "name": "second", "template": "Say: {question}", "system": "Be brief."},
    )


def stream_of(n_by_source, shares, batch, seed=3, most=0.0):
    prompts = [Prompt(f"{s}:{i}", (Message("user", f"{s} {i}"),), source=s) for s, n in n_by_source.items()
               for i in range(n)]  # fmt: skip
    return PromptStream(prompts, batch, seed, shares=shares, most=most)


def test_one_source_is_a_mixture_of_one():
    data = configs.default().data
    (one,) = sources_of(data)
    assert (one.name, one.share, one.data["task"]) == ("", 1.0, "chain_sum")
    prompt = Prompt("a", ())
    assert one.mark(prompt) is prompt


def test_sources_take_what_they_do_not_say_from_the_section(tmp_path):
    data = section(tmp_path, two(tmp_path), template="Q: {question}")
    a, b = sources_of(data)
    assert (a.name, a.share, a.data["template"]) == ("a", 0.75, "Q: {question}")
    assert (b.name, b.share, b.data["template"], b.data["source"]) == ("second", 0.25, "Say: {question}", "jsonl")
    check_data(data)
    prompts = training_prompts(data)
    assert collections.Counter(p.source for p in prompts) == {"a": 30, "second": 20}
    assert prompts[0].id == "a:0" and prompts[30].id == "second:0"  # equal ids of two files stay apart
    assert [m.content for m in prompts[30].messages] == ["Be brief.", "Say: b 0 ?"]


@pytest.mark.parametrize(("entry", "said"), [
    ("a.jsonl", "expected a mapping"),
    ({"pth": "a"}, "no key 'pth'"),
    ({"name": "x", "weight": 0}, "weight=0 of source 'x'"),
    ({"name": "x", "weight": float("nan")}, "weight=nan"),
    ({"name": "x", "weight": True}, "weight=True"),
    ({"name": "x/y"}, "name='x/y'"),
    ({"name": "x", "size": -1}, "size=-1"),
    ({"name": "x", "path": 3}, "path=3"),
    ({"name": "x", "options": 3}, "options=3"),
    ({"name": "a"}, "2 sources named 'a'"),
    ({"name": "x", "path": ""}, "data.sources, x: path is empty"),
    ({"name": "x", "path": "x", "template": "no place"}, "data.sources, x: template="),
    ({"name": "x", "source": "reasoning_gym", "size": 0}, "data.sources, x: size=0"),
])  # fmt: skip
def test_an_entry_that_is_no_source_is_refused(tmp_path, entry, said):
    data = section(tmp_path, [{"path": "a", "name": "a"}, entry])
    with pytest.raises(UserError) as error:
        check_data(data)
    assert said in str(error.value)


def test_counts_sum_to_the_step_and_follow_the_weights_for_ever():
    shares = [0.6, 0.3, 0.07, 0.03]
    counts_NS = np.array([step_counts(shares, 8, 11, t) for t in range(4000)])
    assert (counts_NS.sum(axis=1) == 8).all() and counts_NS.min() >= 0
    wanted_NS = 8 * np.arange(1, 4001)[:, None] * np.array(shares)
    assert np.abs(np.cumsum(counts_NS, axis=0) - wanted_NS).max() < 6  # at every step, not only at the end
    for share, column in zip(shares, counts_NS.T, strict=True):
        assert set(column) <= {int(8 * share), int(8 * share) + 1}
    assert not np.array_equal(counts_NS[:50], [step_counts(shares, 8, 12, t) for t in range(50)])


def test_each_source_has_its_own_epochs_and_any_step_can_come_first():
    sizes, shares = {"a": 13, "b": 7}, {"a": 0.75, "b": 0.25}
    stream = stream_of(sizes, shares, 8)
    batches = [[p.id for p in stream.batch(t)] for t in range(60)]
    assert all(len(set(ids)) == 8 for ids in batches)  # nothing twice in a step
    for t in (59, 3, 0, 31):  # as after a resume
        assert [p.id for p in stream_of(sizes, shares, 8).batch(t)] == batches[t]
        assert [p.id for p in stream.batch(t)] == batches[t]
    drawn = collections.Counter(i for ids in batches for i in ids)
    for name, n in sizes.items():
        counts = [drawn[f"{name}:{i}"] for i in range(n)]
        assert sum(counts) == pytest.approx(480 * shares[name], abs=3)
        mean = sum(counts) / n
        assert all(0.6 * mean < c < 1.4 * mean for c in counts)
    assert {ids[0][0] for ids in batches} == {"a", "b"}  # a step does not always start with the same source
    assert [p.id for p in stream.batch(4, shard=1, shards=2)] == batches[4][1::2]


def test_spare_prompts_follow_the_weights():
    stream = stream_of({"a": 100, "b": 100}, {"a": 0.9, "b": 0.1}, 8)
    found = [p.source for r in range(50) for p in stream.spare(0, r, 4)]
    assert 0.8 < found.count("a") / len(found) < 0.98
    assert not {p.id for p in stream.spare(0, 0, 4, without={"a:1"})} & {"a:1"}


def test_a_source_with_fewer_prompts_than_a_step_needs_is_refused():
    with pytest.raises(UserError, match="'b' has 3 training prompts, but provides up to 4"):
        stream_of({"a": 20, "b": 3}, {"a": 0.5, "b": 0.5}, 8)


def test_held_out_questions_come_in_proportion_and_any_beginning_has_both(tmp_path):
    sources = (
        {"source": "reasoning_gym", "task": "chain_sum", "size": 40, "weight": 3},
        {"path": str(tmp_path / "a.jsonl"), "heldout_path": str(tmp_path / "held.jsonl"), "weight": 1},
        {"path": str(tmp_path / "b.jsonl"), "name": "without"},
    )
    data = section(tmp_path, sources)
    train, held = load_questions(data, Words())
    assert collections.Counter(p.source for p in held.prompts) == {"chain_sum": 6, "a": 2}
    assert {p.source for p in held.prompts[:4]} == {"chain_sum", "a"}
    assert {p.source for p in train.prompts} == {"chain_sum", "a", "without"}
    only = section(tmp_path, sources, heldout_from="a")
    assert {p.source for p in load_questions(only, Words())[1].prompts} == {"a"}
    with pytest.raises(UserError, match="heldout_from='aa' is not a source"):
        no_heldout(section(tmp_path, sources, heldout_from="aa"))
    with pytest.raises(UserError, match="without a heldout_path"):
        no_heldout(section(tmp_path, sources, heldout_from="without"))
    assert no_heldout(section(tmp_path, sources[2:] + two(tmp_path)[:1])) == "no source has a heldout_path"
    assert [s.name for s in held_out_of(data, sources_of(data))] == ["chain_sum", "a"]


def test_a_question_of_two_sources_or_of_the_held_out_set_is_asked_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data = section(tmp_path, two(tmp_path, heldout_path=str(tmp_path / "held.jsonl")))
    with (tmp_path / "b.jsonl").open("a") as file:
        file.write(json.dumps({"question": "a 1 ?"}) + "\n" + json.dumps({"question": "held 0 ?"}) + "\n")
    train, held = load_questions(data, Words())
    assert train.dropped == {"duplicate": 1, "in_held_out": 1} and len(held.prompts) == 8
    assert "training prompts: 50 (a 30, second 20)" in caplog.text


def test_split_and_interleave():
    assert split(8, [3, 1]) == [6, 2] and sorted(split(3, [1, 1])) == [1, 2] and split(1, [1, 1, 1]).count(1) == 1
    for total in range(1, 40):
        parts = split(total, [5, 3, 0.1])
        assert sum(parts) == total and min(parts) >= (total >= 3)
    assert [s for s, _ in interleaved([4, 2])] == [0, 1, 0, 0, 1, 0]


def test_a_source_has_its_own_rubric_and_verifier_templates(tmp_path, sum_prompt, sum_answers):
    own = tmp_path / "mine.md"
    own.write_text("For this source only.\n" + templates.load(TEMPLATE))
    data = section(tmp_path, two(tmp_path, rubricator_template=str(own)))
    a, b = sources_of(data)
    assert (a.templates, b.templates) == ({"rubric": str(own)}, {})
    client = Asked()
    teacher = Teacher(client, references_m=2)
    teacher.check_templates(a.templates, "data.sources, a")
    with pytest.raises(ConfigurationError, match=r"data.sources, a: .*nothing.md"):
        teacher.check_templates({"verify": "nothing.md"}, "data.sources, a")
    for source in (a, b):
        asyncio.run(teacher.induce_rubric(source.mark(sum_prompt), ["Answer: 16", "16"], sum_answers))
    shown = ["For this source only." in r.messages[0].content for r in client.requests]
    assert shown[0] and not shown[-1]
    assert teacher.template_id("rubric", a.mark(sum_prompt)).startswith(str(own))


def test_a_row_cannot_choose_a_template(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"question": "q", "templates": {"rubric": "/etc/passwd"}, "source": "s"}\n')
    data = section(tmp_path, [{"path": str(tmp_path / "x.jsonl")}, *two(tmp_path)])
    prompt = training_prompts(data)[0]
    assert prompt.templates == {} and prompt.source == "x"
