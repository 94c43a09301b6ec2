"""The requests of a group: noted while it is judged, found on the tape, opened one by one; reasons; nothing written."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from experiments import quickstart
from ropd_jax.methods import load_method
from ropd_jax.teacher import Tape, TapedClient, Teacher, TransientError
from ropd_jax.teacher.recorded import note, recording
from ropd_jax.teacher.roles import forms, verifier
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.training.collect import judge_by
from ropd_jax.types import Call, Message, Prompt, Rollout, RolloutGroup, UserError
from ropd_jax.viewer import calls as calls_module
from ropd_jax.viewer.runs import Run
from ropd_jax.workdir.groups import GroupsLog, read_groups

QUESTION = "State the final answer to the following arithmetic problem: 9 + 5 - 1 + 3 ="
ANSWERS = ("9 + 5 = 14\n14 - 1 = 13\n13 + 3 = 16\nAnswer: 16", "<think>no</think>Answer: 17", "Answer: 18")


class Failing(ScriptedClient):
    """A scripted teacher whose calls of one role fail for a temporary cause."""

    def __init__(self, role=""):
        super().__init__()
        self.role = role

    async def chat(self, request):
        if request.purpose == self.role:
            raise TransientError("the server was busy", cause="timeout")
        return await super().chat(request)


def judged(run, step=0, answers=ANSWERS, *, client=None, form="keyed_reasons", question=QUESTION, **how):
    """Judges a group of the run with its tape, and writes it; returns the row."""
    method = load_method("ropd", quickstart.get_config())
    tape = Tape(run / "tape.sqlite")
    taped = TapedClient(lambda: client or ScriptedClient(), tape, mode="record", provider="scripted")
    teacher = Teacher(taped, references_m=2, tape=tape, asking=verifier.Asking(form=form, **how))
    rollouts = tuple(Rollout(np.zeros(3, np.int32), np.zeros(3, np.float32), text, "stop") for text in answers)
    group = RolloutGroup(
        Prompt("q", (Message("user", question),), answer="16"), np.zeros(1, np.int32), rollouts, step, 0
    )
    judgement = asyncio.run(judge_by(method, teacher, group))
    tape.close()
    path = GroupsLog(run).write(step, [group], [judgement], [[0.0] * len(answers)])
    (run / "config.json").write_text("{}")
    return json.loads(path.read_text())


def without_calls(run, step=0):
    """As written by a version that recorded no calls."""
    path = run / "groups" / f"step_{step:06d}.jsonl"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "calls"}) + "\n")


def files(run):
    return {p.name: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_work_notes_its_own_calls_and_those_of_its_tasks():
    async def work(name):
        note("verify", name)
        await asyncio.sleep(0)
        note("reference", name)

    async def one(names):
        with recording() as calls:
            await asyncio.gather(*map(work, names))
        return calls()

    async def both():
        return await asyncio.gather(one("ab"), one("c"))

    first, second = asyncio.run(both())
    assert first == (Call("reference", "a"), Call("reference", "b"), Call("verify", "a"), Call("verify", "b"))
    assert second == (Call("reference", "c"), Call("verify", "c"))
    note("verify", "nobody records this")


def test_a_group_names_its_requests_and_they_open_to_what_was_sent(tmp_path):
    row = judged(tmp_path)
    assert [role for role, _ in row["calls"]] == ["reference", "reference", "rubric", "verify"]
    before = files(tmp_path)
    run = Run(tmp_path)
    found = run.calls(0, 0)
    assert found["noted"] and found["note"] == ""
    assert [c["role"] for c in found["calls"]] == ["reference", "reference", "rubric", "verify"]
    rubric, verify = found["calls"][2:]
    assert set(verify["shown"]) == {"R0", "R1", "0", "1", "2"}
    assert set(rubric["shown"]) == {"R0", "0", "1", "2"}  # equal references are shown once
    assert verify["failures"] == [] and verify["finish_reason"] == "stop"
    whole = run.call(verify["key"])
    with_tape = Tape(tmp_path / "tape.sqlite", read_only=True, fleeting=True)
    entry = with_tape.entry(verify["key"])
    with_tape.close()
    assert whole["messages"] == entry.body["messages"] and whole["reply"] == entry.reply.text
    assert QUESTION in whole["messages"][0][1] and "Answer: 17" in whole["messages"][1][1]
    assert whole["parameters"]["json_schema"] == entry.body["json_schema"] and "messages" not in whole["parameters"]
    assert files(tmp_path) == before  # SQLite also leaves no files behind
    assert next(read_groups(tmp_path)).judgement.calls == tuple(Call(*c) for c in row["calls"])


@pytest.mark.parametrize("form", ["keyed_reason", "keyed_reasons", "keyed"])
def test_each_verdict_has_its_reason_if_the_form_has_reasons(tmp_path, form):
    row = judged(tmp_path, form=form)
    reasons = Run(tmp_path).calls(0, 0)["reasons"]
    ids, labels = [c["id"] for c in row["rubric"]], ["0", "1", "2", "R0", "R1"]
    if form == "keyed":
        assert reasons == []
        return
    wanted = {(a, c) for a in labels for c in (ids if form == "keyed_reasons" else [None])}
    assert {(r["answer"], r["criterion"]) for r in reasons} == wanted
    assert all(r["text"] for r in reasons)


def test_a_reason_stands_at_the_answer_that_it_is_about(tmp_path, monkeypatch):
    def told(ids, row, reason):
        return {i: {"reason": f"{i} is {v}", "met": v} for i, v in zip(ids, row, strict=True)}

    form = forms.FORMS["keyed_reasons"]

    def write(ids, rows, reason):
        return {"schema_version": forms.VERSION, "answers": {str(n): told(ids, r, "") for n, r in enumerate(rows, 1)}}

    monkeypatch.setitem(forms.FORMS, "keyed_reasons", forms.Form(form.name, form.schema, write, form.read))
    row = judged(tmp_path, criteria_per_call=2, answers_per_call=2)
    items = {str(i): a for i, a in enumerate(row["answers"])} | {f"R{i}": r for i, r in enumerate(row["references"])}
    reasons = Run(tmp_path).calls(0, 0)["reasons"]
    assert len(reasons) == len(row["rubric"]) * len(items)
    for r in reasons:
        assert r["met"] is items[r["answer"]]["verdicts"][r["criterion"]]
        assert r["text"] == f"{r['criterion']} is {items[r['answer']]['verdicts'][r['criterion']]}"


def test_requests_of_an_older_group_are_found_by_question_and_texts(tmp_path):
    first = judged(tmp_path, 0)
    second = judged(tmp_path, 1, ("Answer: 3", "Answer: 4"))
    judged(tmp_path, 2, question=QUESTION.replace("9 +", "8 +"))
    for step in range(3):
        without_calls(tmp_path, step)
    run = Run(tmp_path)
    for step, row in enumerate((first, second)):
        found = run.calls(step, 0)
        assert not found["noted"] and found["note"] == ""
        assert {c["key"] for c in found["calls"]} == {key for _, key in row["calls"]}


def test_what_failed_is_listed_with_its_cause(tmp_path):
    row = judged(tmp_path, client=Failing("verify"))
    assert row["answers"][0]["unscored"] == "timeout"
    calls = Run(tmp_path).calls(0, 0)["calls"]
    assert [(f["step"], f["cause"]) for f in calls[-1]["failures"]] == [(0, "timeout")] and not calls[0]["failures"]
    assert calls[-1]["finish_reason"] is None
    assert Run(tmp_path).call(calls[-1]["key"])["reply"] is None


def test_a_text_with_its_middle_cut_out_is_recognised():
    blocks = [("answer 1", "a" * 50 + "\n[... 100 characters cut ...]\n" + "b" * 40)]
    row = {"references": [], "answers": [{"text": "a" * 100 + "b" * 89}, {"text": "a" * 90 + "b" * 100}]}
    assert calls_module.Texts.of(row).shown(blocks) == [("answer 1", "1")]


def test_a_run_without_a_tape_or_with_another_file_says_so(tmp_path):
    judged(tmp_path)
    tape = tmp_path / "tape.sqlite"
    aside = tape.rename(tmp_path / "elsewhere.sqlite")
    assert "no tape here" in Run(tmp_path).calls(0, 0)["note"]
    with pytest.raises(UserError, match="has no tape"):
        Run(tmp_path).call("0" * 64)
    (tmp_path / "config.json").write_text(json.dumps({"teacher": {"tape": {"path": str(aside)}}}))
    assert len(Run(tmp_path).calls(0, 0)["calls"]) == 4
    with pytest.raises(UserError, match="has no request"):
        Run(tmp_path).call("0" * 64)
    aside.write_bytes(b"not SQLite at all" * 100)
    with pytest.raises(UserError, match="not a tape"):
        Run(tmp_path).calls(0, 0)


def test_a_tape_that_is_being_written_can_be_read(tmp_path):
    judged(tmp_path)
    writer = Tape(tmp_path / "tape.sqlite")
    with writer.using():
        assert len(Run(tmp_path).calls(0, 0)["calls"]) == 4
    writer.close()
