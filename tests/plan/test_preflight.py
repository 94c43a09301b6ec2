"""``ropd preflight``: counts worked out by hand, checks by a local server, nothing unknown is 0."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ropd_jax.cli import main as cli
from ropd_jax.plan import preflight
from ropd_jax.teacher import ChatReply, ChatRequest, Tape, Usage
from ropd_jax.types import Message, Prompt
from tests.helpers import serving
from tests.runs.test_train import tiny_config

PROMPTS = [Prompt(f"p{i}", (Message("user", f"What is {i} + 2 ="),)) for i in range(10)]


def rows_of(cfg, **more):
    options = {"asks": {"reference": 1, "rubric": 1, "verify": 1}, "tape": None} | more
    return {r.role: r for r in preflight.plan(cfg, PROMPTS, **options)}


@pytest.fixture
def server():
    with serving(api_key="the-key") as address:
        yield address


def preflight_json(capsys, *args):
    code = cli.main(["preflight", "--config", "experiments/quickstart.py", "--json", *args])
    return code, json.loads(capsys.readouterr().out)


# --------------------------------------------------------------------------------------------------------- plan


def test_calls_follow_from_the_config():
    rows = rows_of(tiny_config(steps=5))  # 5 * 4 groups, 10 questions, m = 4
    assert {k: r.calls for k, r in rows.items()} == {"reference": 40, "rubric": 20, "verify": 20}
    assert rows_of(tiny_config(steps=5, teacher__tape__mode="off"))["reference"].calls == 80
    assert rows_of(tiny_config(steps=5, teacher__health__repeat_frac=0.5))["verify"].calls == 30
    assert set(rows_of(tiny_config(), asks={"reference": 1})) == {"reference"}
    assert rows_of(tiny_config(teacher__tape__mode="replay")) == {}


def test_every_member_of_a_panel_casts_every_vote():
    cfg = tiny_config(steps=5, teacher__verifier__votes=3, teacher__verifier__panel=("a", "b"))
    rows = [r for r in preflight.plan(cfg, PROMPTS, asks={"verify": 1}, tape=None) if r.role == "verify"]
    assert [(r.model, r.calls) for r in rows] == [("a", 60), ("b", 60)]


def test_the_held_out_judge_is_planned_with_the_free_text_gold_that_it_is_shown():
    gold = "The rate doubles because the concentration of A doubles, and so on for a while. " * 100
    cfg = tiny_config(steps=5, eval__every=5, teacher__judge__model="other")

    def planned(answer):
        prompts = [dataclasses.replace(p, answer=answer) for p in PROMPTS]
        return {r.role: r for r in preflight.plan(cfg, prompts, asks={"verify": 1}, tape=None)}

    plain, free = planned("5"), planned(gold)
    judged = plain["judge"].calls
    assert judged and free["judge"].calls == judged
    grown = free["judge"].input_tokens_max - plain["judge"].input_tokens_max
    assert grown == pytest.approx(judged * len(gold) / 4, rel=0.1)
    assert free["verify"].input_tokens_max == plain["verify"].input_tokens_max  # no teacher used for rewards sees it


def test_prompts_are_measured_on_the_templates_with_answers_as_long_as_they_may_be():
    short, long = (rows_of(tiny_config(steps=1, sampling__max_tokens=n)) for n in (48, 1048))
    grown = long["verify"].input_tokens_max - short["verify"].input_tokens_max
    assert grown == 4 * 4 * 1000  # 4 groups, 4 rollouts
    assert long["reference"].input_tokens_max == short["reference"].input_tokens_max
    assert short["verify"].input_tokens_max > 4 * 4 * 8192  # four references at their limit
    assert short["rubric"].output_tokens_max == 4 * 8192


def test_dollars_at_most_by_hand():
    cfg = tiny_config(steps=1, teacher__provider="openai", teacher__verifier__model="gpt-4.1")
    row = rows_of(cfg)["verify"]
    assert row.usd_max == pytest.approx((row.input_tokens_max * 2 + row.output_tokens_max * 8) / 1e6)
    assert rows_of(cfg)["rubric"].usd_max is None  # a model without a price


def test_the_tape_gives_the_expected_tokens_dollars_and_hours(tmp_path):
    tape = Tape(tmp_path / "tape.sqlite")
    for i in range(2):
        ask = ChatRequest("verify", (Message("user", "x"),), "gpt-4.1", sample_index=i)
        tape.put("openai", ask, ChatReply("ok", usage=Usage(1000 + 2000 * i, 100, 0, 500), latency_s=9.0))
    cfg = tiny_config(steps=5, teacher__provider="openai", teacher__verifier__model="gpt-4.1", teacher__concurrency=10)
    rows = rows_of(cfg, tape=tape)
    tape.close()
    assert rows["verify"].tokens == 20 * 2100
    assert rows["verify"].usd == pytest.approx(20 * (1500 * 2 + 500 * 0.5 + 100 * 8) / 1e6)
    assert rows["verify"].hours == pytest.approx(20 * 9 / 10 / 3600)
    assert (rows["rubric"].tokens, rows["rubric"].usd, rows["rubric"].hours) == (None, None, None)


# ------------------------------------------------------------------------------------------------------- checks


def test_the_scripted_teacher_passes_and_costs_nothing(capsys):
    code, out = preflight_json(capsys)
    assert code == 0
    assert [(c["role"], c["ok"], c["usd"]) for c in out["checks"]] == [
        ("reference", True, 0.0),
        ("rubric", True, 0.0),
        ("verify", True, 0.0),
    ]
    assert out["total"]["calls"] == 48 * 16 * 6 and out["total"]["usd_max"] == 0.0 and out["total"]["hours"] is None


@pytest.mark.parametrize("provider", ["openai", "gemini"])
def test_checks_reach_a_server_through_the_real_sdk(provider, server, capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", "the-key")
    url = server + ("/v1" if provider == "openai" else "")
    args = [f"--config.teacher.provider={provider}", f"--config.teacher.base_url={url}"]
    code, out = preflight_json(capsys, *args, "--config.teacher.api_key_env=MY_KEY")
    assert code == 0 and [c["ok"] for c in out["checks"]] == [True] * 3
    assert out["total"]["usd_max"] is None  # no price for this server
    monkeypatch.setenv("MY_KEY", "another")
    code, out = preflight_json(capsys, *args, "--config.teacher.api_key_env=MY_KEY")
    assert code == 2 and all("unauthorized" in c["message"] for c in out["checks"])
    assert "another" not in json.dumps(out)


def test_a_missing_key_and_a_dead_server_are_failed_checks(capsys, monkeypatch):
    code, out = preflight_json(capsys, "--config.teacher.provider=gemini")
    assert code == 2 and all("GEMINI_API_KEY" in c["message"] for c in out["checks"])
    dead = ["--config.teacher.provider=openai", "--config.teacher.base_url=http://127.0.0.1:9/v1"]
    code, out = preflight_json(capsys, *dead)
    assert code == 2 and all(c["message"].startswith("connection: ") for c in out["checks"])
    code, out = preflight_json(capsys, *dead, "--no-calls")
    assert (code, out["checks"]) == (0, [])


def test_the_table_for_people(capsys):
    assert cli.main(["preflight", "--config", "experiments/quickstart.py"]) == 0
    text = capsys.readouterr().out
    assert "768 groups" in text and "3,072" in text and "4,608" in text and text.count("ok ") == 3


def test_the_rollout_server_is_asked_for_two_tokens():
    from tests.rollout_server import serving as rollouts
    from tests.sampling.test_external import Counting

    fake = Counting()
    with rollouts(fake) as url:
        cfg = tiny_config(sampling__engine="openai", sampling__server__base_url=url, sampling__server__sync="vllm")
        found = preflight.check_rollouts(cfg)
        assert found.ok and (found.role, found.provider) == ("rollouts", url) and "answers in" in found.message
        [body] = [b for path, b in fake.calls if path == "/v1/completions"]
        assert body["max_tokens"] == 2
        fake.spoil = lambda reply: {"choices": []}
        assert "sent 0 answers" in preflight.check_rollouts(cfg).message
    assert not preflight.check_rollouts(cfg).ok  # no server is listening any more


def test_a_plan_counts_no_sampler_if_a_server_samples():
    from ropd_jax.plan import programs

    cfg = tiny_config(sampling__engine="openai")
    assert programs.sampler_programs(cfg, None, None) == []
    assert programs.kv_cache_bytes(cfg, None, None) == programs.decode_weights_bytes(cfg, None, None) == (0, 0)
