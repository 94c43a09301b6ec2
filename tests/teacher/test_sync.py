"""Teachers on several hosts sync: nothing is paid for twice, caps are not exceeded, tapes are complete."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import threading

import pytest

from ropd_jax.teacher import Teacher, sync
from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest, Usage
from ropd_jax.teacher.clients.errors import BudgetError, ConfigurationError
from ropd_jax.teacher.rubric_store import RubricStore, lineage_of
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.teacher.tape.store import Tape
from ropd_jax.teacher.traffic.budget import Budget, Caps, Spent
from ropd_jax.teacher.traffic.stats import TeacherStats
from ropd_jax.types import Criterion, Message, Rubric


def request(text):
    return ChatRequest("reference", (Message("user", text),), "m", 0.7, 100, None, 0)


def teacher(directory, host, **options):
    name = f"tape.{host}.sqlite" if host else "tape.sqlite"
    return Teacher(ScriptedClient(), tape=Tape(directory / name), **options)


def put(tape, text, step=0):
    tape.put("scripted", request(text), ChatReply(f"answer to {text}", "stop", Usage(3, 2), "m"), step=step)


def together_on(n, work):
    """``work(host, exchange)`` on n threads, with an exchange like that of hosts."""
    barrier, values = threading.Barrier(n, timeout=30), [None] * n

    def run(host):
        def exchange(value):
            values[host] = value
            barrier.wait()
            everything = list(values)
            barrier.wait()
            return everything

        return work(host, exchange)

    with concurrent.futures.ThreadPoolExecutor(n) as pool:
        return list(pool.map(run, range(n)))


def synced(teachers):
    """The deltas of one sync of the teachers."""
    deltas = [sync.delta(t, [f"p{i}"]) for i, t in enumerate(teachers)]
    for host, t in enumerate(teachers):
        sync.merge(t, host, deltas)
    return deltas


# ---------------------------------------------------------------------------------------------------------- tape


def test_after_a_sync_each_tape_has_every_answer_and_sends_none_twice(tmp_path):
    both = [teacher(tmp_path, host) for host in (0, 1)]
    put(both[0].tape, "a")
    put(both[1].tape, "b")
    put(both[1].tape, "c")
    assert [len(d.entries) for d in synced(both)] == [1, 2]
    assert both[0].tape.keys() == both[1].tape.keys() and len(both[0].tape.keys()) == 3
    put(both[0].tape, "d")
    assert [len(d.entries) for d in synced(both)] == [1, 0]
    key = next(e.key for e in both[1].tape.entries() if e.body["messages"][0][1] == "d")
    assert both[1].tape.get(key).text == "answer to d"


def test_a_failure_reaches_the_other_tapes_with_its_step(tmp_path):
    both = [teacher(tmp_path, host) for host in (0, 1)]
    both[1].tape.put_failure("scripted", request("x"), BudgetError("gone"), step=4)
    synced(both)
    (entry,) = both[0].tape.entries()
    assert entry.reply is None and [f.step for f in entry.failures] == [4]


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_a_start_gives_every_host_what_a_killed_run_left_on_any_tape(hosts, tmp_path, monkeypatch):
    monkeypatch.setattr(sync, "PIECE", 100)  # one answer at a time
    left = [teacher(tmp_path, host) for host in (0, 1)]
    for text in "abcd":
        put(left[0].tape, text)
    put(left[1].tape, "a")
    put(left[1].tape, "only on the second")
    for t in left:
        t.tape.close()
    new = [teacher(tmp_path, host) for host in range(hosts)]
    together_on(hosts, lambda host, exchange: sync.start(new[host], host, exchange))
    assert [len(t.tape.keys()) for t in new] == [5] * hosts
    assert all(not d.entries for d in (synced(new) if hosts > 1 else ()))


def test_refresh_on_several_hosts_is_refused(tmp_path):
    def start(host, exchange):
        with pytest.raises(ConfigurationError, match=r"refresh.*one host only"):
            sync.start(teacher(tmp_path, host, refreshes=True), host, exchange)

    together_on(2, start)


# -------------------------------------------------------------------------------------------------------- budget


def calls(budget, n):
    """The number of n calls that the budget allows."""
    done = 0
    with contextlib.suppress(BudgetError):
        for _ in range(n):
            budget.begin("verify")
            budget.end("verify", "openai", "m", "", Usage(10, 5))
            done += 1
    return done


def test_hosts_never_pass_a_cap_together_and_share_what_is_left():
    both = [Budget(Caps(calls=100)) for _ in range(2)]

    def sync_budgets():
        roles, steps = [dict(b.roles) for b in both], [dict(b.steps) for b in both]
        for i, b in enumerate(both):
            b.merge(roles[1 - i : 2 - i], steps[1 - i : 2 - i])

    sync_budgets()
    assert calls(both[0], 1000) == 50  # half of 100
    sync_budgets()
    assert both[1].total().calls == 50
    assert [calls(b, 1000) for b in both] == [25, 25]  # half of the remaining 50
    sync_budgets()
    assert [b.total().calls for b in both] == [100, 100]
    assert [calls(b, 1) for b in both] == [0, 0]
    assert both[0].as_metrics()["teacher/spent_tokens"] == 100 * 15
    assert both[0].state()["verify"]["input_tokens"] == 1000


def test_host_0_takes_over_what_the_others_have_spent(tmp_path):
    for host, name in enumerate(("spent.json", "spent.1.json", "spent.12.json")):
        row = {"verify": {"calls": 10**host, "input_tokens": 5, "usd": 0.5}}
        (tmp_path / name).write_text(json.dumps(row))
    (tmp_path / "spent.old.json").write_text("not ours")
    first, second = Budget(path=tmp_path / "spent.json"), Budget(path=tmp_path / "spent.1.json")
    first.absorb()
    second.forget()
    assert first.total() == Spent(calls=111, input_tokens=15, usd=1.5) and second.total().calls == 0
    assert Budget(path=tmp_path / "spent.json").total().calls == 111  # and it is on disk
    assert sorted(p.name for p in tmp_path.iterdir()) == ["spent.json", "spent.old.json"]


# ----------------------------------------------------------------------------------------- counters and rubrics


def test_counts_are_those_of_all_hosts_once(tmp_path):
    both = [teacher(tmp_path, host, budget=Budget()) for host in (0, 1)]
    both[0].restore({"stats": TeacherStats(calls={"verify": 7}).as_dict()}, host=0)
    both[1].restore({"stats": TeacherStats(calls={"verify": 7}).as_dict()}, host=1)
    both[1].stats.count("retries", "timeout")
    for _ in range(2):
        synced(both)
    for t in both:
        assert t.metrics()["teacher/calls"] == 7.0 and t.metrics()["teacher/retries_timeout"] == 1.0
        assert t.state()["stats"]["calls"] == {"verify": 7}


def test_a_reusable_rubric_is_known_to_all(tmp_path):
    rubric = Rubric((Criterion("c1", "states the sum", 5, "accuracy"),))
    both = [teacher(tmp_path, host, store=RubricStore("per_epoch")) for host in (0, 1)]
    both[1].store.add("p1", 0, rubric, lineage_of(0, "m", "t", ["r"], ["a"]), saturated=False)
    assert both[0].store.find("p1", 3) is None
    synced(both)
    found, lineage = both[0].store.find("p1", 3)
    assert found == rubric and lineage.step == 0
    assert both[0].store.state() == both[1].store.state()


def test_a_teacher_without_a_tape_syncs_too():
    both = [Teacher(ScriptedClient()) for _ in range(2)]
    together_on(2, lambda host, exchange: sync.start(both[host], host, exchange))
    assert [d.entries for d in synced(both)] == [(), ()]
    assert asyncio.run(both[0].close()) is None
