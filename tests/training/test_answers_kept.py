"""Answers that cannot be sampled again are found when their step is repeated, and are lost only by being used."""

from __future__ import annotations

import dataclasses

import numpy as np

from ropd_jax.training.answers_kept import KeptAnswers, names_of
from tests.training.test_accumulate import group


def step_of(n, step=3):
    groups = [group(i, step=step) for i in range(n)]
    return groups, [g.prompt for g in groups], [g.prompt_tokens_T for g in groups]


def same(a, b):
    return (a.prompt, a.step, a.index) == (b.prompt, b.step, b.index) and all(
        np.array_equal(x.tokens_T, y.tokens_T) and np.array_equal(x.logp_T, y.logp_T) and x.text == y.text
        for x, y in zip(a.rollouts, b.rollouts, strict=True)
    )


def test_a_repeated_step_finds_what_it_had(tmp_path):
    groups, prompts, tokens = step_of(3)
    kept, names, G = KeptAnswers(tmp_path / "rollouts"), names_of(prompts), len(groups[0].rollouts)
    kept.add(groups[2], names[2])
    kept.add(groups[0], names[0])
    found = KeptAnswers(tmp_path / "rollouts").find(3, prompts, tokens, G)
    assert sorted(found) == [0, 2] and all(same(found[i], groups[i]) for i in found)
    assert kept.find(4, prompts, tokens, G) == {} and kept.find(3, prompts, tokens, G + 1) == {}
    assert sorted(kept.find(3, prompts[::-1], tokens[::-1], G)) == []  # another place: another group


def test_a_kill_while_writing_costs_the_last_group_only(tmp_path):
    groups, prompts, tokens = step_of(2)
    kept, names, G = KeptAnswers(tmp_path), names_of(prompts), len(groups[0].rollouts)
    for g, name in zip(groups, names, strict=True):
        kept.add(g, name)
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-40])
    assert sorted(kept.find(3, prompts, tokens, G)) == [0]
    kept.add(groups[1], names[1])
    assert sorted(kept.find(3, prompts, tokens, G)) == [0, 1]


def test_earlier_steps_are_forgotten(tmp_path):
    kept = KeptAnswers(tmp_path)
    for step in (1, 2, 3):
        kept.add(dataclasses.replace(group(0, step=step)), "a")
    kept.forget_before(3)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000003.jsonl.gz"]
