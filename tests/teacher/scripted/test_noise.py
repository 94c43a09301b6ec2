"""Noise of the scripted verifier: rates by kind, halo, bias by position and length; replies stay deterministic."""

from __future__ import annotations

import asyncio
import json

import pytest

from ropd_jax.teacher import ConfigurationError, Teacher
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.teacher.scripted.noise import Noise
from ropd_jax.types import Criterion, Message, Prompt, Rubric

N = 4_000


def verdicts(noise, truth, kind="method", answer="{}", **more):
    how = {"criteria": ["c"], "question": "q", "place": 0, "answers": 1} | more
    return [noise.apply([truth], [kind], answer=answer.format(i), **how)[0] for i in range(N)]


def share(values):
    return sum(values) / len(values)


def both(rate):
    return {"false_positive": {"other": rate}, "false_negative": {"other": rate}}


def test_rates_are_those_of_the_kind_and_of_the_truth():
    noise = Noise({"method": 0.3, "other": 0.1}, {"method": 0.05})
    sigma = 3 * (0.25 / N) ** 0.5
    assert share(verdicts(noise, False)) == pytest.approx(0.3, abs=sigma)
    assert share(verdicts(noise, True)) == pytest.approx(0.95, abs=sigma)
    assert share(verdicts(noise, False, "form")) == pytest.approx(0.1, abs=sigma)
    assert share(verdicts(noise, False, None)) == pytest.approx(0.1, abs=sigma)
    assert all(verdicts(noise, True, "form"))


def test_the_same_request_gets_the_same_verdicts_and_another_place_only_the_bias():
    noise = Noise(**both(0.3))
    first = verdicts(noise, True, place=0, answers=4)
    assert first == verdicts(noise, True, place=0, answers=4) == verdicts(noise, True, place=3, answers=4)
    biased = Noise(**both(0.3), position=-0.2)
    early, late = (verdicts(biased, True, place=p, answers=4) for p in (0, 3))
    assert share(early) - share(late) == pytest.approx(0.2, abs=0.02)
    # monotone: no verdict becomes true at a later position
    assert all(a or not b for a, b in zip(early, late, strict=True))
    assert verdicts(biased, True, place=0, answers=1) == verdicts(noise, True)


def test_length_counts_by_doublings_from_400_characters():
    noise = Noise(**both(0.4), length=0.1)
    usual, twice, most, more = (
        share(verdicts(noise, True, answer=f"{{:0>{n}}}")) for n in (400, 800, 400 * 8, 400 * 64)
    )
    assert twice - usual == pytest.approx(0.1, abs=0.03)
    assert most - usual == pytest.approx(0.3, abs=0.03) and more == pytest.approx(most, abs=0.03)


def test_a_halo_gives_all_criteria_of_an_answer_one_opinion():
    noise = Noise(halo=0.5)
    truths = [True, False, True, False]
    rows = [
        noise.apply(truths, [None] * 4, criteria=list("abcd"), question="q", answer=str(i), place=0, answers=1)
        for i in range(N)
    ]
    equal = [len(set(row)) == 1 for row in rows]
    assert share(equal) == pytest.approx(0.5, abs=0.03)
    assert share([row[0] for row, same in zip(rows, equal, strict=True) if same]) == pytest.approx(0.5, abs=0.05)
    assert all(row == truths for row, same in zip(rows, equal, strict=True) if not same)


def test_a_share_is_redrawn_in_another_request():
    noise = Noise(**both(0.5), redraw=0.4)
    one, same, other = (verdicts(noise, True, request=r) for r in ("1", "1", "2"))
    assert one == same
    assert share([a != b for a, b in zip(one, other, strict=True)]) == pytest.approx(0.4 * 0.5, abs=0.03)


def test_another_sample_of_a_request_redraws():
    labels = [("How are you?", f"a{i}", "Is polite.", True, None) for i in range(200)]
    client = ScriptedClient(labels=labels, noise={"kinds": {"other": {"false_negative": 0.5}}, "redraw": 1.0})
    first, second = (client._truths.rows("How are you?", ["Is polite."], [q[1] for q in labels], n) for n in (0, 1))
    assert share([a != b for a, b in zip(first, second, strict=True)]) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    "value, message",
    [
        ('{"kinds": ', "cannot read teacher.scripted.noise"),
        ("nowhere.json", "cannot read teacher.scripted.noise='nowhere.json'"),
        ('{"hallo": 0.1}', "unknown key 'hallo'"),
        ('{"halo": 1.5}', "halo is 1.5; expected a number 0 to 1"),
        ('{"halo": true}', "halo is True"),
        ('{"position": -2}', "position is -2; expected a number -1 to 1"),
        ('{"kinds": {"fact": {"false_positive": 0.1}}}', "kind 'fact'; expected one of final_result"),
        ('{"kinds": {"form": {"fp": 0.1}}}', "form: unknown key 'fp'"),
        ('{"kinds": {"form": {"false_positive": "x"}}}', "kinds.form.false_positive is 'x'"),
        ('{"kinds": [1]}', "kinds is [1]"),
        ('{"schema_version": "ropd.calibration.v1", "noise": null}', "has no noise"),
    ],
)
def test_a_wrong_noise_is_an_error_that_names_the_value(value, message):
    with pytest.raises(ConfigurationError) as error:
        ScriptedClient(noise=value)
    assert message in str(error.value)


def test_a_noise_is_read_from_text_mapping_file_and_report(tmp_path):
    given = {"kinds": {"other": {"false_positive": 0.1}}, "halo": 0.2}
    wanted = Noise({"other": 0.1}, {}, 0.2)
    (tmp_path / "noise.json").write_text(json.dumps(given))
    (tmp_path / "report.json").write_text(json.dumps({"schema_version": "ropd.calibration.v1", "noise": given}))
    for value in (given, json.dumps(given), str(tmp_path / "noise.json"), str(tmp_path / "report.json")):
        assert Noise.read(value) == wanted
    assert Noise.read("") is None


RUBRIC = Rubric((Criterion("c1", "Is polite.", 1), Criterion("c2", 'Shows at least one calculation with "=".', 1)))


def asked(client, answers):
    prompt = Prompt("p", (Message("user", "How are you?"),))
    return asyncio.run(Teacher(client).verify(prompt, RUBRIC, answers, key="k"))


def test_labels_are_known_and_everything_else_is_decided_by_rule(tmp_path):
    row = {"question": "How are you?", "answer": "Fine.\n", "criterion": "Is polite.", "truth": True}
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(row) + "\n")
    for labels in (str(path), [("How are you?", "Fine.\n", "Is polite.", True, None)]):
        client = ScriptedClient(labels=labels)
        found = asked(client, ["Fine.\n", "Bad."])
        assert found.passed == ((True, False), None)  # "Bad." has no label, and politeness no rule
    with pytest.raises(ConfigurationError, match=r"teacher\.scripted\.labels: .*cannot read"):
        ScriptedClient(labels=str(tmp_path / "none.jsonl"))


def test_noise_leaves_what_is_not_known_unknown():
    client = ScriptedClient(labels=[("How are you?", "a", "Is polite.", True, "form")], noise='{"halo": 1.0}')
    found = asked(client, ["a", "b"])
    assert found.passed[1] is None and found.passed[0] in ((True, True), (False, False))
