"""experiments/smollm2_lab.py: what is measured of answers, and what finished numbers spare and show."""

from __future__ import annotations

import argparse
import json
import sys
import types

import pytest

from experiments import smollm2_lab as lab
from ropd_jax.evaluation.benchmarks import load_benchmark

LIMIT = 12


def one(share: float, **more) -> dict:
    """Numbers of a student that meets ``share`` of every question's rules."""
    return {
        "rules": {f"q{i}": share for i in range(8)},
        "all": {f"q{i}": float(share == 1) for i in range(8)},
        "kinds": {"no_comma": share},
        "distinct": 1.0,
        "words": 9.5,
        "cut": 0.0,
        "oddness": 1.25,
        "ordinary": 38.0,
        "ordinary_tokens": 100,
        "shown": [{"question": "Write <a> | b.\nShort.", "answer": "<<Title>>\nA | b"}],
        **more,
    }


@pytest.fixture
def args(tmp_path):
    return argparse.Namespace(out=tmp_path / "out", results=tmp_path / "results", ifeval=None, limit=LIMIT, set=[])


def test_table_pairs_each_student_with_the_first_one():
    found = {"smollm2": one(0.5, ifeval={"a": 0.0, "b": 0.0}), "ropd-full-0": one(1.0, ifeval={"a": 1.0, "b": 1.0})}
    head, _, first, after = lab.table({**found, "t_judge-lora-1": one(0.5)}).splitlines()[:4]
    assert first.startswith("| before | 50.0 % [50.0, 50.0] |  |") and first.endswith("| 0.0 % [0.0, 65.8] |  |")
    assert "| ROPD | 100.0 % [67.6, 100.0] | +50.0 [+50.0, +50.0] | 100.0 %" in after and "+100.0" in after
    assert after.count("|") == head.count("|")
    last = lab.table({**found, "t_judge-lora-1": one(0.5)}).splitlines()[4]
    assert last.startswith("| T-Judge, lora-1 |") and last.endswith("|  |  |") and last.count("|") == head.count("|")


def test_answers_side_by_side_do_not_break_the_table_or_become_markup():
    text = lab.side_by_side({"smollm2": one(0.5), "ropd-full-0": one(1.0)}).splitlines()
    assert len(text) == 3 and text[2].count(" | ") == 2
    assert "Write &lt;a&gt; \\| b.<br>Short." in text[2] and "&lt;&lt;Title&gt;&gt;" in text[2]


def test_by_kind_leaves_unknown_cells_empty():
    text = lab.by_kind({"smollm2": one(0.5), "ropd-full-0": one(1.0, kinds={"title": 0.25})})
    assert text.splitlines()[0] == "| rules met | no comma | title |"
    assert text.splitlines()[2:] == ["| before | 50 % |  |", "| ROPD |  | 25 % |"]


def test_a_student_with_results_is_not_trained_again(args, monkeypatch, capsys):
    args.results.mkdir()
    for name, share in (("smollm2", 0.5), ("ropd-full-0", 1.0)):
        (args.results / f"{name}.json").write_text(json.dumps(one(share, rewards=[[1, 2], [0.5, 0.75]])))
    monkeypatch.setattr(lab, "ropd", lambda *words: pytest.fail(f"started {words}"))
    words = ["smollm2_lab.py", "--out", str(args.out), "--results", str(args.results), "--arms", "ropd"]
    monkeypatch.setattr(sys, "argv", words)
    lab.main()
    assert not lab.finished("ropd-full-0", argparse.Namespace(**{**vars(args), "ifeval": args.out}))
    monkeypatch.setattr(sys, "argv", [*words, "--show", "--out", str(args.out / "shown")])
    lab.main()
    assert (args.out / "shown" / "smollm2.md").exists()
    assert "| ROPD | 100.0 %" in capsys.readouterr().out and (args.out / "smollm2.png").exists()
    monkeypatch.setattr(lab, "ropd", lambda *words: (_ for _ in ()).throw(SystemExit(words[0])))
    monkeypatch.setattr(sys, "argv", [*words[:-1], "sft"])
    with pytest.raises(SystemExit, match="train"):
        lab.main()


def test_numbers_follow_from_the_stored_answers(args, monkeypatch):
    """No weights: only what is read of the answers."""
    prompts = load_benchmark("instructions", limit=LIMIT).prompts
    place = args.out / "measured" / "smollm2"
    (place / "instructions").mkdir(parents=True)
    rows = [
        {"id": p.id, "response": "Hello, there", "finish_reason": "length" if i else "stop"}
        for i, p in enumerate(prompts)
    ]
    (place / "instructions" / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "instructions" / "result.json").write_text("{}")
    tokenizer = types.SimpleNamespace(encode=lambda text: [1], apply_chat_template=lambda messages: [1])
    monkeypatch.setattr(lab, "load_student", lambda name: types.SimpleNamespace(tokenizer=tokenizer))
    monkeypatch.setattr(lab, "nats", lambda student, rows: 0.5)
    monkeypatch.setattr(lab, "ropd", lambda *words: pytest.fail("answers are there already"))
    lab.measure("smollm2", args)
    found = json.loads((args.results / "smollm2.json").read_text())
    kinds = [kind for p in prompts for kind in p.metadata["kinds"]]
    assert found["kinds"].keys() == set(kinds) and "rewards" not in found and "ifeval" not in found
    assert found["kinds"]["no_comma"] == 0.0 and found["kinds"]["fewer_words"] == 1.0
    for p in prompts:
        own = p.metadata["kinds"]
        share = sum(kind in ("fewer_words", "fewer_sentences") for kind in own) / len(own)
        assert found["rules"][p.id] == pytest.approx(share, abs=1e-9) or "language" in p.metadata["kinds"]
    assert found["cut"] == pytest.approx((LIMIT - 1) / LIMIT) and found["distinct"] == 0.0 and found["words"] == 2.0
    assert all("language" not in row["question"] for row in found["shown"]) and len(found["shown"]) <= lab.SHOWN


def test_committed_results_are_complete():
    """Each committed student has every held-out question, so its changes are paired by question."""
    stored = {p.stem: json.loads(p.read_text("utf-8")) for p in (lab.HERE / "results" / "smollm2").glob("*.json")}
    asked = {p.id for p in load_benchmark("instructions", limit=lab.QUESTIONS).prompts}
    assert lab.FIRST in stored
    for name, found in stored.items():
        assert found["rules"].keys() == found["all"].keys() == asked, name
        if name != lab.FIRST and not name.startswith("sft-"):
            assert len(found["rewards"][0]) == 40, name
