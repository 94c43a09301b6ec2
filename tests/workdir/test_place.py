"""What a run in a bucket uploads and when, and how it resumes elsewhere; in ``memory://``, without training."""

from __future__ import annotations

import itertools
import json
import logging
import pathlib
import random
import shutil

import pytest

from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest, Usage
from ropd_jax.teacher.clients.errors import TransientError
from ropd_jax.teacher.tape import parts
from ropd_jax.teacher.tape.store import Tape, body_key, insert_reply, insert_request, request_body, request_row
from ropd_jax.types import Message, UserError
from ropd_jax.utils import buckets, paths
from ropd_jax.workdir import place as place_module
from ropd_jax.workdir.place import Place, stored_tape

_numbers = itertools.count()


@pytest.fixture
def url(tmp_path, monkeypatch):
    """An empty folder, which `Place` accepts, although memory would not keep a real run."""
    monkeypatch.setenv("ROPD_CACHE", str(tmp_path / "machine"))
    monkeypatch.setattr(place_module.paths, "as_path", lambda path, what="": pathlib.PurePath(path))
    return f"memory://runs/{next(_numbers)}"


def started(url):
    place = Place(url)
    place.fetch()
    (place.files / "config.json").write_text("{}")
    return place


def new_machine(place, tmp_path):
    place.close()
    shutil.rmtree(tmp_path / "machine")


def record(tape, n, text="reply"):
    request = ChatRequest("verify", (Message("user", f"question {n}"),), "m", 0.0, 10)
    return tape.put("scripted", request, ChatReply(text, "stop", Usage(1, 1), "m", 0.1), step=n)


def sent_by(monkeypatch):
    """Bytes of every upload from now on."""
    sent, put, append = [], buckets.put, buckets.append
    monkeypatch.setattr(
        buckets, "put", lambda files, *a: (sent.extend(p.stat().st_size for p in files.values()), put(files, *a))
    )
    monkeypatch.setattr(buckets, "append", lambda url, tail: (sent.append(len(tail)), append(url, tail)))
    return sent


def test_a_step_uploads_what_has_changed(url, monkeypatch):
    place = started(url)
    place.upload()
    sent = sent_by(monkeypatch)
    place.upload()
    assert sent == []
    (place.files / "groups").mkdir()
    (place.files / "groups" / "step_000000.jsonl").write_text("one\n")
    (place.files / ".metrics.jsonl.part").write_text("half")
    place.upload()
    assert sent == [4] and list(buckets.listing(f"{url}/groups")) == ["step_000000.jsonl"]
    assert set(buckets.listing(url)) == {"config.json", "groups"}
    place.close()


def test_a_log_that_grows_is_sent_once(url, monkeypatch):
    place, row, steps = started(url), "x" * 9_999 + "\n", 200
    sent = sent_by(monkeypatch)
    with open(place.files / "metrics.jsonl", "a") as log:
        for _ in range(steps):
            log.write(row)
            log.flush()
            place.upload()
    n = steps * len(row)
    assert buckets.size(f"{url}/metrics.jsonl") == n
    early = place_module.WHOLE // len(row)  # steps in which the whole file was sent
    assert sum(sent) < n + (early + 2) ** 2 / 2 * len(row)  # 5.5 MB; whole files each time would be 200 MB
    place.close()


def test_a_log_that_is_cut_at_a_resume_is_sent_whole(url):
    place = started(url)
    for text in ("a" * 400_000, "a" * 300_000 + "b" * 200_000):
        part = place.files / ".part"
        part.write_text(text)
        part.replace(place.files / "metrics.jsonl")
        place.upload()
        assert buckets.prepare(url).cat_file(f"{url}/metrics.jsonl").decode() == text
    place.close()


def test_an_upload_that_fails_is_one_warning_and_is_made_up_for(url, monkeypatch, caplog):
    place = started(url)
    (place.files / "metrics.jsonl").write_text("1\n")
    with monkeypatch.context() as patch:
        patch.setattr(buckets.prepare(url), "put", lambda *a: 1 / 0)
        place.upload()
        place.upload()
        warned = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert len(warned) == 1 and "the next step tries again" in caplog.text
        with pytest.raises(UserError, match="cannot write memory://"):
            place.upload_all()
    place.upload()
    assert set(buckets.listing(url)) == {"config.json", "metrics.jsonl"}
    place.close()


def test_the_tape_is_uploaded_in_parts_and_put_together_on_another_machine(url, tmp_path, monkeypatch):
    place = started(url)
    tape = Tape(place.files / "tape.sqlite")
    request = ChatRequest("verify", (Message("user", "late"),), "m", 0.0, 10)
    for n in range(300):
        record(tape, n, "reply " * 40)
    tape.put_failure("scripted", request, TransientError("slow", cause="timeout"), step=3)
    place.upload_all()
    sent = sent_by(monkeypatch)
    for n in range(300, 304):
        record(tape, n)
        place.upload_all()
        place.upload_all()  # nothing new: nothing is sent
    tape.put("scripted", request, ChatReply("late", "stop", Usage(1, 1), "m", 0.1), step=3)  # deletes the failure
    place.upload_all()
    whole = buckets.size(f"{url}/tape.sqlite")
    assert len(sent) == 5 and sorted(sent)[3] < whole / 4  # parts, and once the whole tape instead of many parts
    keys, late = tape.keys(), request
    tape.close()
    new_machine(place, tmp_path)
    again = Place(url)
    again.fetch()
    for found in (again.files / "tape.sqlite", stored_tape(url)):
        copy = Tape(found)
        assert copy.keys() == keys and record(copy, 0, "another").text == "reply " * 40
        entry = next(e for e in copy.entries() if e.body["messages"] == [["user", late.messages[0].content]])
        assert entry.reply.text == "late" and entry.failures == ()
        assert copy.path.stat().st_mode & 0o777 == 0o600
        copy.close()
    again.close()


def test_uploads_of_a_tape_add_up_to_a_few_times_its_size(url, monkeypatch):
    place = started(url)
    tape = Tape(place.files / "tape.sqlite")
    sent = sent_by(monkeypatch)
    for n in range(40):
        with tape.using() as db, db:  # one transaction: what costs time here is the disk
            for i in range(10):
                body = request_body("scripted", ChatRequest("verify", (Message("user", f"{n} {i}"),), "m", 0.0, 10))
                insert_request(db, request_row(body_key(body), "verify", body, {}))
                insert_reply(
                    db, body_key(body), ChatReply(random.randbytes(2_000).hex(), "stop", Usage(1, 1), "m", 0.1)
                )
        place.upload_all()
    size = buckets.size(f"{url}/tape.sqlite")
    assert sum(sent) < 8 * size  # whole tapes each time: 20 times
    tape.close()
    place.close()


def test_replies_that_only_this_machine_has_are_kept_and_uploaded(url):
    place = started(url)
    tape = Tape(place.files / "tape.sqlite")
    record(tape, 1)
    place.upload_all()
    record(tape, 2)  # paid for, and the process is killed
    tape.close()
    place.close()
    again = Place(url)
    again.fetch()
    again.upload_all()
    copy = Tape(stored_tape(url), read_only=True)
    assert len(copy.keys()) == 2
    copy.close()
    again.close()


def answers(place):
    return {path.name: path.read_text() for path in (place.files / "rollouts").glob("*")}


def test_answers_of_a_rollout_server_are_uploaded_and_are_there_on_another_machine(url, tmp_path):
    place = started(url)
    (place.files / "rollouts").mkdir()
    for step, text in ((6, "a"), (7, "bc")):
        (place.files / "rollouts" / f"step_{step:06d}.jsonl.gz").write_text(text)
        place.upload()
    new_machine(place, tmp_path)
    again = Place(url)
    again.fetch()
    assert answers(again) == {"step_000006.jsonl.gz": "a", "step_000007.jsonl.gz": "bc"}
    (again.files / "rollouts" / "step_000006.jsonl.gz").unlink()  # a checkpoint has made it unnecessary
    again.upload()
    assert set(buckets.listing(f"{url}/rollouts")) == {"step_000007.jsonl.gz"}
    assert buckets.listing(url).keys() == {"config.json", "rollouts"}
    again.close()


def test_answers_that_only_this_machine_has_are_kept_if_they_continue_those_in_the_bucket(url):
    place = started(url)
    place.upload()
    (place.files / "rollouts").mkdir()
    (place.files / "rollouts" / "step_000005.jsonl.gz").write_text("a")  # the first step after a checkpoint
    place.close()
    again = Place(url)
    again.fetch()
    assert answers(again) == {"step_000005.jsonl.gz": "a"}
    again.upload()
    (again.files / "rollouts" / "step_000005.jsonl.gz").write_text("ab")  # killed after more of this step and the next
    (again.files / "rollouts" / "step_000006.jsonl.gz").write_text("c")
    again.close()
    last = Place(url)
    last.fetch()
    assert answers(last) == {"step_000005.jsonl.gz": "ab", "step_000006.jsonl.gz": "c"}
    last.upload()
    assert buckets.prepare(url).cat_file(f"{url}/rollouts/step_000005.jsonl.gz") == b"ab"
    last.close()


def test_answers_of_a_machine_that_was_replaced_do_not_come_back(url):
    place = started(url)
    place.upload()
    (place.files / "rollouts").mkdir()
    for step, text in ((4, "old"), (6, "mine"), (8, "mine")):
        (place.files / "rollouts" / f"step_{step:06d}.jsonl.gz").write_text(text)
    place.close()
    fs = buckets.prepare(url)
    for step in (6, 7):  # what the other machine has sampled
        fs.pipe_file(f"{url}/rollouts/step_{step:06d}.jsonl.gz", b"theirs")
    again = Place(url)
    again.fetch()
    assert answers(again) == {"step_000006.jsonl.gz": "theirs", "step_000007.jsonl.gz": "theirs"}
    again.close()


def test_of_the_spending_the_larger_number_is_kept_and_what_is_taken_over_is_deleted(url):
    place = started(url)
    (place.files / "spent.json").write_text(json.dumps({"verify": {"calls": 5, "usd": 1.0}}))
    (place.files / "spent.1.json").write_text("{}")
    place.upload()
    (place.files / "spent.json").write_text(json.dumps({"verify": {"calls": 7, "usd": 1.5}}))
    place.close()
    again = Place(url)
    again.fetch()
    assert json.loads((again.files / "spent.json").read_text()) == {"verify": {"calls": 7, "usd": 1.5}}
    (again.files / "spent.1.json").unlink()
    again.upload()
    assert "spent.1.json" not in buckets.listing(url)
    again.close()


def test_a_run_that_was_deleted_in_the_bucket_starts_afresh(url, caplog):
    place = started(url)
    (place.files / "metrics.jsonl").write_text("old\n")
    place.upload()
    place.close()
    buckets.prepare(url).rm(url, recursive=True)
    again = Place(url)
    again.fetch()
    assert not list(again.files.iterdir()) and "files of an earlier run" in caplog.text
    assert (again.files.with_name(f"{again.files.name}.before1") / "metrics.jsonl").read_text() == "old\n"
    again.close()


def test_a_run_that_was_killed_before_its_first_upload_starts(url):
    fs = buckets.prepare(url)
    fs.pipe_file(f"{url}/lock/1.json", b"{}")
    fs.pipe_file(f"{url}/xla/jit_f-cache", b"program")
    Place(url).fetch()


def test_nothing_is_uploaded_once_another_run_has_the_bucket(url):
    place = started(url)
    place.upload_all()
    (place.files / "metrics.jsonl").write_text("{}\n")
    place.abandon()
    place.upload()
    place.upload_all()
    place.close()
    assert set(buckets.listing(url)) == {"config.json"}
    assert (place.files / "metrics.jsonl").exists()


def test_a_local_place_uploads_nothing_and_is_the_directory_itself(tmp_path):
    place = Place(tmp_path / "run")
    place.fetch()
    place.upload()
    place.upload_all()
    place.close()
    assert place.files == tmp_path / "run" and not place.files.exists()


def test_a_part_of_a_tape_is_a_tape_of_what_was_added(tmp_path):
    tape = Tape(tmp_path / "tape.sqlite")
    record(tape, 1)
    mark = parts.newest(tape.path)
    record(tape, 2)
    assert parts.part(tape.path, mark, tmp_path / "part.sqlite") != mark
    part = Tape(tmp_path / "part.sqlite", read_only=True)
    assert len(part.keys()) == 1 and len(tape.keys()) == 2
    tape.close()
    part.close()


def test_names_in_the_cache_are_readable_and_differ():
    names = {paths.folder_name(u) for u in ("gs://b/runs/a", "gs://b/runs_a", "s3://b/runs/a", "/runs/a")}
    assert len(names) == 4 and all("runs_a-" in name for name in names)
