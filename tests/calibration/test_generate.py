"""The shipped labels: the generator's bytes, labels checked by independent rules, and enough of every kind."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from ropd_jax.calibration.generate import FAMILIES, LABELS, SEEDS, as_jsonl, generate
from ropd_jax.calibration.labels import load
from ropd_jax.teacher.labels import read_labels
from ropd_jax.teacher.roles.kinds import KINDS
from tests.calibration.rules import decide, result_of

PARTS = tuple(SEEDS)


@pytest.mark.parametrize("part", PARTS)
def test_the_generator_reproduces_the_shipped_bytes(part):
    assert as_jsonl(generate(part)) == (LABELS / f"{part}.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("part", PARTS)
def test_the_loader_reads_what_the_generator_made(part):
    assert read_labels(LABELS / f"{part}.jsonl") == generate(part)
    assert load(part=part)[0] == generate(part)


@pytest.mark.parametrize("part, seed", [(part, seed) for part in PARTS for seed in (None, 1, 2, 3)])
def test_every_truth_is_that_of_an_independent_rule(part, seed):
    wrong = [
        (q.id, a.id, c.text, truth)
        for q in generate(part, seed)
        for a in q.answers
        for c, truth in zip(q.criteria, a.truth, strict=True)
        if decide(q.question, c.text, a.text) != truth
    ]
    assert wrong == []


@pytest.mark.parametrize("part", PARTS)
def test_an_answer_is_correct_if_it_has_the_right_result(part):
    for q in generate(part):
        final = next((i for i, c in enumerate(q.criteria) if c.kind == "final_result"), None)
        for a in q.answers:
            if q.family == "instructions":
                assert a.correct == all(a.truth)
            elif q.family == "facts":
                assert a.correct == all(a.truth[:3])
            else:
                assert a.correct == a.truth[final]
        if q.family not in ("instructions", "facts"):
            assert result_of(q.question) in q.criteria[final].text


@pytest.mark.parametrize("part", PARTS)
def test_there_is_enough_of_every_family_kind_and_verdict(part):
    questions = generate(part)
    verdicts, families, made = defaultdict(Counter), defaultdict(Counter), Counter()
    for q in questions:
        for a in q.answers:
            made[a.kind] += 1
            for c, truth in zip(q.criteria, a.truth, strict=True):
                verdicts[c.kind][truth] += 1
                families[q.family][truth] += 1
    assert len(questions) >= 40 and set(families) == set(FAMILIES) and len(FAMILIES) >= 6
    assert sum(sum(n.values()) for n in verdicts.values()) >= 400
    assert set(verdicts) == set(KINDS)
    for counts in (*verdicts.values(), *families.values()):
        assert sum(counts.values()) >= 150 and 0.3 < counts[True] / sum(counts.values()) < 0.75
    assert {"right", "wrong", "wrong_right_steps", "right_wrong_steps", "empty", "off_topic", "hostile"} == set(made)
    assert min(made.values()) >= 8
    first = [q.family for q in questions[: len(FAMILIES)]]
    assert sorted(first) == sorted(FAMILIES)  # so that --limit has all of them


@pytest.mark.parametrize("part", PARTS)
def test_pairs_differ_in_text_and_in_no_truth(part):
    pairs = Counter()
    for q in generate(part):
        answers = {a.id: a for a in q.answers}
        for a in q.answers:
            if a.like:
                plain = answers[a.like]
                assert (a.truth, a.correct, a.kind) == (plain.truth, plain.correct, plain.kind)
                assert len(a.text) > len(plain.text)
                assert a.differs != "style" or "**" in a.text or "## " in a.text
                pairs[a.differs] += 1
    assert pairs["length"] >= 40 and pairs["style"] >= 40


def test_the_parts_share_no_question_and_no_country():
    dev, heldout = (generate(part) for part in PARTS)
    assert not {q.question for q in dev} & {q.question for q in heldout}
    capitals = [{c.text for q in part for c in q.criteria if q.family == "facts"} for part in (dev, heldout)]
    shared = capitals[0] & capitals[1]
    assert all("Names" not in text and "States" not in text for text in shared)


def test_a_hostile_answer_never_meets_the_decisive_criterion():
    for q in generate("dev"):
        for a in q.answers:
            if a.kind == "hostile":
                assert not a.correct and not a.truth[0]
            if a.kind == "empty":
                assert a.text == "" and not any(a.truth)
