"""Texts with rules: the scripted teacher reads, follows and checks the rules that IFEval's own checks grade."""

from __future__ import annotations

import asyncio
import collections
import random

import pytest

from ropd_jax.core.rewards import pass_rate
from ropd_jax.data import instructions
from ropd_jax.data.ifeval import follows
from ropd_jax.data.load import load_prompts
from ropd_jax.teacher import Teacher, make_client
from ropd_jax.teacher.scripted import instructions as rules
from ropd_jax.teacher.scripted.sentences import TOPICS
from ropd_jax.types import UserError

DRAWN = {part: tuple(instructions.items(part, 250, 7)) for part in instructions.PARTS}
EVERY = [p for drawn in DRAWN.values() for p in drawn]
BROKEN = (
    "",
    "   ",
    "12 34",
    "{}",
    "[1]",
    "a, b",
    "<<>>",
    "**",
    "* *",
    '"',
    "- a\n- b",
    "P.S. x",
    "null",
    "\u2028",
    "}{",
)


def test_held_out_items_share_neither_topic_nor_combination_with_training_items():
    def seen(part):
        topics = {rules.read(p.question).topic.phrase for p in DRAWN[part]}
        return topics, {frozenset(p.metadata["kinds"]) for p in DRAWN[part]}

    (topics, kinds), (held_topics, held_kinds) = seen("train"), seen("heldout")
    assert not topics & held_topics and not kinds & held_kinds
    assert len(topics | held_topics) > 0.9 * len(TOPICS) == 0.9 * len({t.phrase for t in TOPICS})
    assert {k for ks in kinds for k in ks} == rules.KINDS.keys() == {k for ks in held_kinds for k in ks}


def test_an_item_is_a_function_of_part_and_seed():
    assert [p.messages for p in instructions.items("train", 5, 10)][3:] == [
        p.messages for p in instructions.items("train", 5, 13)
    ][:2]
    assert (
        next(iter(instructions.items("heldout", 1, 10))).question
        != next(iter(instructions.items("train", 1, 10))).question
    )


def test_the_teacher_reads_every_rule_and_its_references_follow_them_by_ifevals_checks():
    alone = 0
    for prompt in EVERY:
        task = rules.read(prompt.question)
        assert [r.kind for r in task.rules] == prompt.metadata["kinds"]
        texts = {rules.write(task, variant) for variant in range(3)}
        alone += len(texts) == 1
        for text in texts:
            assert all(follows(prompt.metadata["instructions"], text)), (prompt.question, text)
            assert all(rules.check(c, text) for _, c in rules.criteria_of(task)), (prompt.question, text)
    assert alone < 0.05 * len(EVERY)  # few sentences are short enough for some rules


def test_a_question_that_is_not_of_this_family_is_not_read():
    known = DRAWN["train"][0].question
    assert rules.read(known) is not None
    for other in (
        "What is 2 + 2?",
        known.replace("about ", "on "),
        f"{known}\n- Sing it.",
        known.split("\n")[0] + "\n",
    ):
        assert rules.read(other) is None
    assert rules.read(known.replace(rules.read(known).topic.phrase, "a dragon")) is None


def test_the_teachers_checks_are_ifevals_on_other_texts_too():
    """IFEval accepts any JSON, but the question asks for two keys. langdetect, which IFEval uses to find languages,
    accepts texts without words as any language, and knows 55 of them."""
    rng = random.Random(0)
    texts = [rules.write(rules.read(p.question), 0) for p in EVERY]
    texts += [t[: len(t) // 2] for t in texts[:120]] + [t.replace(".", ", and") for t in texts[:60]] + list(BROKEN)
    wrong, seen = collections.Counter(), collections.Counter()
    for prompt in EVERY:
        for text in rng.sample(texts, 12):
            for rule, right in zip(
                rules.read(prompt.question).rules, follows(prompt.metadata["instructions"], text), strict=True
            ):
                seen[rule.kind, right] += 1
                wrong[rule.kind] += rule.holds(text) > right if rule.kind == "json" else rule.holds(text) != right
    by_language = {"language"}
    assert {kind for kind, n in wrong.items() if n} <= by_language
    assert all(wrong[k] < 0.03 * (seen[k, True] + seen[k, False]) for k in by_language)
    assert all(seen[kind, right] for kind in rules.KINDS for right in (True, False))


@pytest.mark.parametrize(
    ("text", "fluent"),
    [
        ("The lighthouse looks different in the soft light of morning.", True),
        ("the little little bridge is the little little little branch.", False),
        ("A bridge is old. A bridge is old.", False),
        ("bridge river bridge lake bridge sea bridge", False),
        ("Yes.", False),
    ],
)
def test_sense(text, fluent):
    assert rules.check(rules.FLUENT, text) is fluent


@pytest.mark.parametrize(
    ("text", "finished"),
    [("A bridge over", False), ("A bridge.", True), ('"A bridge."', True), ("- one\n- two", True), ("", False)],
)
def test_a_text_that_breaks_off_is_not_finished(text, finished):
    assert rules.check(rules.FINISHED, text) is finished


def test_one_group_from_references_to_rewards():
    prompt = DRAWN["train"][1]
    task = rules.read(prompt.question)
    good, other = rules.write(task, 9), "Bananas are yellow and yellow and"
    teacher = Teacher(make_client(provider="scripted", scripted={}))

    async def judged():
        references = await teacher.references(prompt)
        rubric = await teacher.induce_rubric(prompt, references, [good, other])
        return rubric, await teacher.verify(prompt, rubric, [good, other], key="a")

    rubric, verdicts = asyncio.run(judged())
    weights = [c.points for c in rubric.criteria]
    assert pass_rate(weights, verdicts.passed[0]) == 1.0
    assert pass_rate(weights, verdicts.passed[1]) < 0.7
    assert [c.category for c in rubric.criteria][: len(task.rules)] == ["Rule"] * len(task.rules)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(UserError, match="has the parts train and heldout"):
        load_prompts(source="instructions", path="test", size=3)
    with pytest.raises(UserError, match="at least 1"):
        load_prompts(source="instructions", path="train", size=0)
