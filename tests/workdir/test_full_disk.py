"""Every writer of a run on a full disk, on one that fails, and on one that is read-only.

Essential files end the run with a one-line error that names the path; others are disabled with one warning.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
from orbax.checkpoint._src.metadata import checkpoint as metadata

from ropd_jax.teacher.clients.chat import ChatReply, ChatRequest, Usage
from ropd_jax.teacher.tape.store import Tape
from ropd_jax.teacher.traffic.budget import Budget
from ropd_jax.types import Message, UserError
from ropd_jax.utils.tracing import Timeline, span
from ropd_jax.utils.writing import Dispensable
from ropd_jax.workdir import orbax_io
from ropd_jax.workdir.checkpoint import Checkpoints
from ropd_jax.workdir.config import claim
from ropd_jax.workdir.curves import curves_png
from ropd_jax.workdir.groups import GroupsLog
from ropd_jax.workdir.metrics import Metrics
from ropd_jax.workdir.progress import Progress
from ropd_jax.workdir.result import write_result
from ropd_jax.workdir.trackers import Start, make_trackers

LONG = "x" * 20_000  # more than a page, so that it cannot fit into the rest of one


@pytest.fixture
def disk(tmp_path):
    """A file system of 12 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(place)]
    if os.getuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("a file system of a few megabytes can only be mounted by root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def stack(monkeypatch):
    """Closes what a test opens; a group is one long line."""
    monkeypatch.setattr("ropd_jax.workdir.groups.group_row", lambda *one: {"text": LONG})
    with contextlib.ExitStack() as stack:
        yield stack


def fill(place):
    with contextlib.suppress(OSError), open(place / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def recorded(tape):
    request = ChatRequest("verify", (Message("user", LONG + os.urandom(9_000).hex()),), "m", 0.0, 10)
    tape.put("scripted", request, ChatReply(os.urandom(20_000).hex(), "stop", Usage(1, 1), "m", 0.1))


def opened(kind, place, stack):
    """(the write, words of its error) for an essential file; what is opened is open before the disk is full."""
    if kind == "config":
        return lambda: claim(place / "run", {"a": LONG}), "run"
    if kind == "metrics":
        metrics = stack.enter_context(contextlib.closing(Metrics(place)))
        return lambda: metrics.log(1, {f"a/{i}": 0.5 for i in range(2_000)}), "metrics.jsonl"
    if kind == "metrics at a resume":
        (place / "metrics.jsonl").write_text("".join(f'{{"step": {i}, "a": "{LONG}"}}\n' for i in range(3)))
        return lambda: Metrics(place, start_step=9).close(), "metrics.jsonl"
    if kind == "groups":
        return lambda: GroupsLog(place).write(3, [None], [None], [None]), "step_000003.jsonl"
    if kind == "result":
        return lambda: write_result(place, {"a": LONG}), "result.json"
    if kind == "tape":
        tape = stack.enter_context(contextlib.closing(Tape(place / "tape.sqlite")))
        recorded(tape)
        return lambda: recorded(tape), "tape.sqlite"
    checkpoints = stack.enter_context(contextlib.closing(Checkpoints(place / "checkpoints", keep=1)))
    return lambda: checkpoints.save(1, {"a": np.zeros(100_000)}, {}), "checkpoint"


KINDS = ("config", "metrics", "metrics at a resume", "groups", "result", "tape", "checkpoint")


@pytest.mark.parametrize("kind", KINDS)
def test_an_essential_file_on_a_full_disk_is_one_line_that_names_it(kind, disk, stack):
    write, word = opened(kind, disk, stack)
    fill(disk)
    with pytest.raises((UserError, OSError)) as error:
        write()
    if kind == "checkpoint":  # `Session` turns it into one line
        assert error.value.errno == errno.ENOSPC
    else:
        assert isinstance(error.value, UserError) and word in str(error.value)
        assert "\n" not in str(error.value) and "pace" in str(error.value)
    (disk / "filler").unlink()
    assert not list(disk.rglob("*.part"))
    opened(kind, disk, stack)[0]()  # with free space it works again


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("kind", ["config", "metrics", "groups", "result"])
def test_an_essential_file_that_fails_is_one_line_that_names_it(kind, number, tmp_path, monkeypatch, stack):
    write, word = opened(kind, tmp_path, stack)

    def fails(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("ropd_jax.utils.files.os.fsync", fails)
    if kind == "metrics":
        monkeypatch.setattr("json.dumps", fails)
    with pytest.raises(UserError, match=f"{word}.*{os.strerror(number)}") as error:
        write()
    assert "\n" not in str(error.value)


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def test_tensorboard_on_a_full_disk_is_left_out_with_one_warning_and_nothing_waits(disk, caplog):
    (disk / "tensorboard").mkdir()
    trackers = make_trackers(("tensorboard",), Start({}, disk, "run"))
    fill(disk)
    values = {f"room/{i}": 0.5 for i in range(300)}
    done = threading.Event()

    def log():
        for step in range(40):  # tensorboardX waits forever at the eleventh
            trackers.log(step, values)
        trackers.finish(0)
        done.set()

    threading.Thread(target=log, daemon=True).start()
    assert done.wait(20)
    assert len(warnings_of(caplog)) == 1 and "tensorboard cannot be written (No space" in warnings_of(caplog)[0]


def test_the_timeline_on_a_full_disk_is_left_out_with_one_warning(disk, caplog):
    with Timeline(disk).recording() as timeline:
        fill(disk)
        for _ in range(3):
            for _ in range(300):
                with span("update"):
                    pass
            timeline.flush()
    assert len(warnings_of(caplog)) == 1 and "timeline.jsonl cannot be written (No space" in warnings_of(caplog)[0]


def test_curves_and_spending_on_a_full_disk_are_left_out_with_one_warning(disk, caplog):
    log = Metrics(disk)
    log.log(1, {"reward/mean": 0.5})
    log.close()
    budget = Budget(path=disk / "spent.json")
    budget.roles = {}
    fill(disk)
    with Dispensable("curves.png"):
        curves_png(disk)
    budget.begin("verify" * 2_000)
    budget.save()
    budget.save()
    assert [text.split(" ")[0].rpartition("/")[2] for text in warnings_of(caplog)] == ["curves.png", "spent.json"]


def test_a_terminal_that_is_gone_does_not_end_a_run(caplog):
    class Gone:
        encoding, is_open = "utf-8", True

        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

        def flush(self):
            raise OSError(errno.EIO, "Input/output error")

        def isatty(self):
            return False

    with Progress(3, file=Gone(), every_s=0.0) as progress:
        for step in range(3):
            progress.step(step, {})
            progress.report("sampling")
    assert warnings_of(caplog) == ["progress cannot be written (Input/output error); the run continues without"]


def test_writes_that_end_after_one_has_failed_print_nothing(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    orbax_io._quiet_after_a_failure.__wrapped__()
    late, other = RuntimeError("Event loop is closed"), RuntimeError("another error")
    for error in (late, other):
        sys.unraisablehook(types.SimpleNamespace(exc_type=RuntimeError, exc_value=error))
    assert [one.exc_value for one in printed] == [other]


def test_errors_of_orbaxs_metadata_are_raised_by_the_save_and_only_logged_by_the_close(tmp_path, monkeypatch, caplog):
    """Orbax raises the first of its two failed writes in the save, and the second one when it is closed."""

    def fails(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(metadata._MetadataStoreImpl, "write", fails)
    monkeypatch.setattr(metadata._MetadataStoreImpl, "update", fails)
    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.raises(OSError, match="the disk ran full while a checkpoint was written"):
        checkpoints.save(1, {"a": np.ones(3)}, {}, wait=True)
    caplog.clear()
    checkpoints.close()
    assert [r.getMessage() for r in caplog.records if r.name == "ropd_jax.workdir.checkpoint"] == [
        f"[Errno 28] the disk ran full while a checkpoint was written: '{tmp_path}'"
    ]


def test_threads_that_wait_for_a_failed_save_do_not_keep_the_process():
    from orbax.checkpoint._src.futures import future

    orbax_io._end_with_the_process()
    thread = future._SignalingThread(target=lambda: None, send_signals=[], receive_signals=[])
    assert thread.daemon
