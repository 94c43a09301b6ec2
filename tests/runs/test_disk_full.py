"""Whole runs on a disk that fills up: a one-line error, a checkpoint elsewhere, and the same parameters in the end."""

from __future__ import annotations

import errno
import os
import re
import shutil

import pytest

from ropd_jax.teacher.tape.store import Tape
from ropd_jax.train import train
from ropd_jax.types import UserError
from ropd_jax.workdir.groups import GroupsLog
from tests.helpers import trees_max_diff
from tests.runs.test_train import finished_params, tiny_config
from tests.workdir.test_full_disk import disk, fill, warnings_of  # noqa: F401 - a fixture


def config():
    return tiny_config(steps=2, checkpoint__every=2, checkpoint__keep=1)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(config(), workdir)
    return workdir


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROPD_CACHE", str(tmp_path / "cache"))


def full_at(monkeypatch, place, what, name, when):
    """Fills the disk before the call of a method for which ``when`` is true; it stays full until `fill` is undone."""
    method = getattr(what, name)

    def call(self, *args, **options):
        if when(self, *args, **options):
            fill(place)
        return method(self, *args, **options)

    monkeypatch.setattr(what, name, call)


@pytest.mark.parametrize("writer", ["groups", "tape"])
def test_a_disk_that_is_full_ends_a_run_that_can_be_resumed(writer, disk, whole_run, monkeypatch, caplog):  # noqa: F811
    if writer == "groups":
        full_at(monkeypatch, disk, GroupsLog, "write", lambda self, step, *more: step == 0)
    else:
        full_at(monkeypatch, disk, Tape, "put", lambda self, *a, step, **k: step == 1)
    with pytest.raises(UserError, match=r"cannot write .*(step_000000.jsonl|tape.sqlite) \(.*pace") as error:
        train(config(), disk / "run")
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    (disk / "filler").unlink()
    saved = next(text for text in warnings_of(caplog) if "saved a checkpoint after step 1" in text)
    command = re.search(r"to resume from it: cp -r (\S+) (\S+)", saved)
    shutil.copytree(command[1], f"{command[2]}{os.path.basename(command[1])}")
    train(config(), disk / "run")
    assert trees_max_diff(finished_params(disk / "run", 2), finished_params(whole_run, 2)) == 0.0


def test_what_a_run_can_do_without_is_left_out_and_the_run_ends_as_always(tmp_path, whole_run, monkeypatch, caplog):
    def fails(*args, **options):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("ropd_jax.workdir.tensorboard.Board._write", fails)
    monkeypatch.setattr("ropd_jax.training.session.curves_png", fails)
    monkeypatch.setattr("ropd_jax.utils.tracing.write_atomic", fails)
    monkeypatch.setattr("ropd_jax.teacher.traffic.budget.create_private", fails)
    (tmp_path / "run").mkdir()
    cfg = config().copy_and_resolve_references()
    with cfg.unlocked():
        cfg.log.trackers = ("tensorboard",)
    result = train(cfg, tmp_path / "run")
    assert result["steps"] == 2
    assert trees_max_diff(finished_params(tmp_path / "run", 2), finished_params(whole_run, 2)) == 0.0
    lost = [text for text in warnings_of(caplog) if "the run continues without" in text]
    names = {text.split(" ")[0].rpartition("/")[2] for text in lost}
    assert len(lost) == len(names) and names == {"tensorboard", "curves.png", "spent.json"}
