"""One run per directory, on a disk and on a bucket: who gets it, who is rejected, who notices its loss."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from ropd_jax.types import UserError
from ropd_jax.workdir import lock as lock_module
from ropd_jax.workdir.lock import Holder, Lock, LockLost, locked

QUICK = {"beat_s": 0.05, "stale_s": 0.4}


class WaitedTime:
    """The module ``time`` for `lock_module`, whose seconds pass only while this process sleeps.

    So a lock is stale after as many reads of its record as on an idle machine, however long each takes, and no process
    is late with its heartbeats.
    """

    strftime, gmtime = staticmethod(time.strftime), staticmethod(time.gmtime)

    def __init__(self):
        self.now_s, self.meanwhile = 0.0, lambda: None

    def monotonic(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds
        time.sleep(0.001)
        self.meanwhile()


@pytest.fixture
def waited(monkeypatch):
    monkeypatch.setattr(lock_module, "time", clock := WaitedTime())
    return clock


@pytest.fixture(params=["disk", "memory"])
def directory(request, tmp_path):
    if request.param == "disk":
        yield str(tmp_path / "runs" / "a")
        return
    import fsspec

    url = f"memory://{request.node.name}/a"
    yield url
    fsspec.filesystem("memory").store.clear()


def records(directory):
    import fsspec

    fs, path = fsspec.core.url_to_fs(directory)
    fs.invalidate_cache()
    return {f: json.loads(fs.cat_file(f)) for f in fs.find(f"{path}/lock")}


def put(directory, number, **changes):
    """Writes the record of a process of another host, with changes."""
    import fsspec

    fs, path = fsspec.core.url_to_fs(directory)
    values = dict(pid=4711, host="tpu-3", machine="other", born=1, since="2026-01-01 00:00:00 UTC", token="t", beat=1)
    holder = Holder(**(values | {"at_s": time.monotonic()} | changes))
    fs.makedirs(f"{path}/lock", exist_ok=True)
    fs.pipe_file(f"{path}/lock/{number}.json", holder.record())


def this_machine(**changes):
    return {"machine": lock_module._machine(), "host": "here", **changes}


def ended_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    born = lock_module._born(process.pid)
    process.wait()
    return {"pid": process.pid, "born": born or 1}


def test_a_second_process_is_refused_in_one_line_and_the_lock_is_released_at_the_end(directory):
    with locked(directory):
        [holder] = records(directory).values()
        with pytest.raises(UserError) as refused:
            Lock(directory).acquire()
        text = str(refused.value)
        assert f"pid {os.getpid()} on host {holder['host']} has been running here since {holder['since']}" in text
        assert "\n" not in text and len(records(directory)) == 1
    assert records(directory) == {}
    if "://" not in directory:
        assert not pathlib.Path(directory).exists()  # it was made for the lock only
    with locked(directory):
        pass


def test_an_exception_releases_the_lock_and_what_was_there_before_stays(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_process_that_is_gone_is_taken_over_at_once(directory, caplog, waited):
    put(directory, 3, **this_machine(**ended_process()))
    with locked(directory), caplog.at_level("WARNING"):
        assert waited.now_s == 0
        assert [pathlib.PurePath(name).name for name in records(directory)] == ["4.json"]
    assert "its process has ended" in caplog.text


def test_a_pid_that_another_process_has_by_now_is_not_its_holder(directory):
    put(directory, 1, **this_machine(pid=os.getpid(), born=(lock_module._born(os.getpid()) or 0) - 1))
    with locked(directory):
        pass


def test_a_zombie_is_gone(directory):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    put(directory, 1, **this_machine(pid=process.pid, born=lock_module._born(process.pid)))
    with pytest.raises(UserError, match=f"pid {process.pid} on host here has been running"):
        Lock(directory).acquire()
    process.kill()
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but its exit code has not been collected yet
    with locked(directory):
        pass
    process.wait()


def test_another_host_is_refused_as_soon_as_its_record_changes_and_taken_over_if_it_does_not(directory, waited):
    put(directory, 1)
    beats = itertools.count(2)
    waited.meanwhile = lambda: put(directory, 1, beat=next(beats))
    with pytest.raises(UserError, match="pid 4711 on host tpu-3 has been running here since 2026-01-01 00:00:00 UTC"):
        Lock(directory).acquire()
    assert waited.now_s <= lock_module.BEAT_S
    waited.meanwhile, begin = lambda: None, waited.now_s
    lock = Lock(directory)
    lock.acquire()
    assert 0 <= waited.now_s - begin - lock_module.STALE_S <= lock_module.BEAT_S
    lock.release()


@pytest.mark.parametrize("clock", [0.0, 1e6, -1e6])
def test_no_decision_reads_the_system_clock(directory, clock, monkeypatch):
    now = time.time
    with locked(directory):
        monkeypatch.setattr(time, "time", lambda: now() + clock)
        with pytest.raises(UserError, match="has been running here"):
            Lock(directory).acquire()


def test_a_hung_process_of_this_machine_is_taken_over_and_stops_when_it_wakes_up(directory, caplog, waited):
    hung = Lock(directory)
    hung.acquire()
    hung.check()
    hung._over.set()  # no more heartbeats
    hung._thread.join()
    with pytest.raises(UserError, match="has been running here"):
        Lock(directory).acquire()
    waited.now_s += lock_module.STALE_S
    taker = Lock(directory)
    taker.acquire()
    assert "no heartbeat for" in caplog.text
    with pytest.raises(LockLost, match=f"pid {os.getpid()} on host .* has taken over this directory"):
        hung.check()
    hung.release()  # does not touch the new one
    taker.check()
    taker.release()
    with pytest.raises(LockLost):
        hung.check()


def test_a_record_that_was_removed_by_hand_is_a_lost_lock(directory):
    import fsspec

    with locked(directory) as lock:
        fsspec.core.url_to_fs(directory)[0].rm_file(next(iter(records(directory))))
        with pytest.raises(LockLost, match="somebody has taken over"):
            lock.check()


def test_a_heartbeat_keeps_the_lock(directory, waited):
    holder = Lock(directory, beat_s=0.01)
    holder.acquire()
    waited.now_s += lock_module.STALE_S
    while all(record["at_s"] < waited.now_s for record in records(directory).values()):
        time.sleep(0.01)
    with pytest.raises(UserError, match="has been running here"):
        Lock(directory).acquire()
    holder.check()
    holder.release()


@pytest.mark.parametrize("record", [b"", b"{", b'{"pid": 1}', b"[]", b"\xff\xfe"])
def test_an_unreadable_record_is_taken_over_when_it_does_not_change(tmp_path, record):
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock" / "1.json").write_bytes(record)
    lock = Lock(tmp_path, **QUICK)
    lock.acquire()
    lock.check()
    lock.release()


def _compete(directory, ended, all_have_ended):
    lock_module.time = WaitedTime()
    lock = Lock(directory)
    try:
        lock.acquire()
    except UserError as refused:
        ended.put(str(refused))
        return
    ended.put("")
    all_have_ended.wait()  # a process that comes late finds the lock held
    lock.check()


@pytest.mark.parametrize("stale", [False, True])
def test_of_several_processes_that_start_at_once_exactly_one_gets_the_lock(tmp_path, stale):
    if stale:
        put(str(tmp_path), 1)
    context = multiprocessing.get_context("forkserver")  # other tests have started threads here
    ended, all_have_ended = context.Queue(), context.Event()
    processes = [context.Process(target=_compete, args=(str(tmp_path), ended, all_have_ended)) for _ in range(6)]
    for process in processes:
        process.start()
    messages = sorted(ended.get(timeout=240) for _ in processes)
    all_have_ended.set()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * 6
    assert messages[0] == "" and all("has been running here since" in message for message in messages[1:])


def test_a_disk_without_hard_links_works_too(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with locked(tmp_path), pytest.raises(UserError, match="has been running here"):
        Lock(tmp_path).acquire()


@pytest.mark.parametrize("make", ["file", "below a file"])
def test_a_directory_that_cannot_be_written_is_one_line(tmp_path, make):
    (tmp_path / "f").write_text("")
    where = tmp_path / "f" if make == "file" else tmp_path / "f" / "run"
    with pytest.raises(UserError, match=r"--workdir .*f is a file; expected a directory"):
        Lock(where).acquire()


def test_a_killed_holder_leaves_a_lock_that_the_next_one_takes_over(tmp_path):
    code = (
        f"import time; from ropd_jax.workdir.lock import Lock; Lock({str(tmp_path)!r}).acquire(); "
        "print(1, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    with pytest.raises(UserError, match=f"pid {process.pid} on host"):
        Lock(tmp_path).acquire()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with locked(tmp_path):
        pass
