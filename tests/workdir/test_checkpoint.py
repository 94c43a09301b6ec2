"""Saving on one mesh and resuming on another; saves in the background; damage of every kind to every file."""

from __future__ import annotations

import contextlib
import errno
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from orbax.checkpoint._src.futures import future

from ropd_jax import configs
from ropd_jax.models import transformer
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.training.setup import read_config
from ropd_jax.training.update import State
from ropd_jax.types import UserError
from ropd_jax.utils import buckets
from ropd_jax.workdir import checksums
from ropd_jax.workdir.checkpoint import Checkpoints, saved_params, surplus_steps
from ropd_jax.workdir.config import claim
from ropd_jax.workdir.orbax_io import Writer
from tests.buckets import gcs
from tests.helpers import TINY, trees_max_diff


def placed(mesh, tx, seed):
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), transformer.param_shapes(TINY))
    params = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
    return State(params, jax.jit(tx.init)(params))


def test_a_state_saved_on_8x1_is_restored_on_4x2_bit_for_bit(tmp_path):
    cfg = configs.default()
    cfg.optim.moments = "int8"  # bytes and their scales, in addition to float32
    tx = read_config(cfg).optim.make(cfg.steps)
    first, other = mesh_lib.make_mesh(8, 1), mesh_lib.make_mesh(4, 2)
    with jax.set_mesh(first):
        state = placed(first, tx, seed=0)
        _, opt_state = jax.jit(tx.update)(state.params, state.opt_state, state.params)  # moments that are not 0
        state = state._replace(opt_state=opt_state)
        with contextlib.closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
            checkpoints.save(3, state, {"seconds": 1.5})
    with jax.set_mesh(other), contextlib.closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
        like = placed(other, tx, seed=1)
        restored, host = checkpoints.restore(3, like)
    assert host == {"seconds": 1.5}
    assert trees_max_diff(restored, state) == 0.0
    for there, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        assert there.sharding.is_equivalent_to(wanted.sharding, there.ndim) and there.dtype == wanted.dtype
    q_LDNH = restored.params["layers"]["attn"]["q_DNH"].addressable_data(0)
    assert q_LDNH.shape[1:3] == (TINY.d_model // 4, TINY.num_heads // 2)


def test_an_optimizer_state_of_optax_adamw_as_earlier_versions_saved_it_is_restored(tmp_path):
    cfg = configs.default()
    schedule = optax.join_schedules(
        [optax.linear_schedule(1e-8, 1e-6, 99), optax.cosine_decay_schedule(1e-6, 9)], [100]
    )
    with jax.numpy_dtype_promotion("standard"):
        old = optax.chain(optax.identity(), optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=0.1))
        tx = read_config(cfg).optim.make(cfg.steps)
        mesh = mesh_lib.make_mesh(1, 1, jax.devices()[:1])
        with jax.set_mesh(mesh), contextlib.closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
            state = placed(mesh, old, seed=0)
            _, opt_state = jax.jit(old.update)(state.params, state.opt_state, state.params)
            checkpoints.save(3, state._replace(opt_state=opt_state), {}, wait=True)
            restored, _ = checkpoints.restore(3, placed(mesh, tx, seed=1))
    assert trees_max_diff(restored, state._replace(opt_state=opt_state)) == 0.0
    assert jax.tree.structure(restored.opt_state) == jax.tree.structure(opt_state)


def test_a_run_may_go_on_on_another_mesh_and_not_with_another_student(tmp_path):
    claim(tmp_path / "run", {"mesh": {"fsdp": 8, "tp": 1}, "optim": {"xla_options": ""}})
    claim(tmp_path / "run", {"mesh": {"fsdp": 4, "tp": 2}, "optim": {"xla_options": "xla_tpu_a=1"}})
    with pytest.raises(UserError, match="student: absent there, other now"):
        claim(tmp_path / "run", {"mesh": {"fsdp": 4, "tp": 2}, "optim": {"xla_options": ""}, "student": "other"})


# ------------------------------------------------------------------------------------------- in the background


def numbers(seed):
    return {"w": jnp.asarray(np.random.default_rng(seed).normal(size=(64, 64)).astype(np.float32)), "n": jnp.zeros(())}


@contextlib.contextmanager
def opened(directory, **how):
    checkpoints = Checkpoints(directory, **({"keep": 9} | how))
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def stepped(directory):
    return sorted(p.name for p in directory.iterdir())


def test_arrays_may_be_given_away_as_soon_as_a_save_returns(tmp_path):
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree), donate_argnums=0)
    state, expected = numbers(0), []
    with opened(tmp_path) as checkpoints:
        for step in range(1, 6):
            expected.append(np.array(state["w"], copy=True))
            checkpoints.save(step, state, {})
            state = advance(state)
        checkpoints.wait()
        assert sum(t.name.startswith("checkpoint-") for t in threading.enumerate()) == 0
        for step in range(1, 6):
            np.testing.assert_array_equal(checkpoints.restore(step, state)[0]["w"], expected[step - 1])
        assert {"time/checkpoint_s", "time/checkpoint_write_s"} == checkpoints.times().keys()
        assert checkpoints.times() == {}


def test_a_save_returns_before_its_write_and_the_next_one_waits_for_it(tmp_path, monkeypatch):
    go, writing = threading.Event(), []

    def hold(writer):
        writing.append(1)
        assert go.wait(60)
        join(writer)

    join = Writer.join
    monkeypatch.setattr(Writer, "join", hold)
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, numbers(1), {})
        checkpoints.save(1, numbers(1), {})  # in flight: not repeated
        assert checkpoints.has(1) and checkpoints.writing and not checkpoints.has(2)
        threading.Timer(0.2, go.set).start()
        checkpoints.save(2, numbers(2), {}, wait=True)
        assert len(writing) == 2 and {"1", "2"} <= set(stepped(tmp_path))


@pytest.mark.parametrize("error", (ValueError("a\nlong\ntrace"), OSError(errno.ENOSPC, "No space left on device")))
def test_a_failed_write_is_raised_in_one_line_and_leaves_the_one_before(tmp_path, monkeypatch, error, caplog):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, numbers(1), {}, wait=True)

        def fail(*args, **kwargs):
            raise error

        monkeypatch.setattr(checksums, "seal", fail)
        checkpoints.save(2, numbers(2), {})
        with pytest.raises((UserError, OSError)) as caught:
            checkpoints.save(3, numbers(3), {})
        monkeypatch.undo()
        text = str(caught.value)
        assert f"{tmp_path / '2'}" in text and "\n" not in text
        assert isinstance(caught.value, OSError) == isinstance(error, OSError)
        assert checkpoints.latest() == 1 and not any(r.exc_info for r in caplog.records)
        checkpoints.save(2, numbers(2), {}, wait=True)
        assert stepped(tmp_path) == ["1", "2"]


def test_what_a_killed_write_left_is_removed(tmp_path):
    (tmp_path / "7.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    with opened(tmp_path) as checkpoints:
        assert checkpoints.latest() is None and stepped(tmp_path) != []  # a process that only reads removes nothing
        assert checkpoints.restore_newest(numbers(0)) is None and stepped(tmp_path) == []


# ------------------------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    with opened(directory) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, numbers(step), {"seconds": step})
    return directory


def overwritten(path, at=0.5):
    data = bytearray(path.read_bytes())
    begin = int(at * max(len(data) - 16, 0))
    data[begin : begin + 16] = bytes(b ^ 0x5A for b in data[begin : begin + 16])
    path.write_bytes(bytes(data))


DAMAGES = {
    "overwritten at its beginning": lambda path: overwritten(path, 0.0),
    "overwritten in the middle": overwritten,
    "overwritten at its end": lambda path: overwritten(path, 1.0),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_of_any_file_is_found_and_the_file_named(kind, two_saved, tmp_path):
    whole = epath.Path(two_saved / "4")
    names = sorted(str(p.relative_to(whole)) for p in (two_saved / "4").rglob("*") if p.is_file())
    assert len(names) >= 12 and checksums.damage(whole) == ""
    for number, name in enumerate(names):
        copy = epath.Path(shutil.copytree(two_saved / "4", tmp_path / str(number)))
        DAMAGES[kind](copy / name)
        assert checksums.sealed(copy) and checksums.damage(copy).startswith(f"{name} ")
        found = [checksums.damage(copy, share=(host, 3)) for host in range(3)]  # each of three hosts checks a third
        assert any(text.startswith(f"{name} ") for text in found)


@pytest.mark.parametrize(
    "name", ("state/d/*", "state/ocdbt.process_0/d/*", "state/_METADATA", "host/metadata", "checksums")
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(name, two_saved, tmp_path, caplog):
    directory = shutil.copytree(two_saved, tmp_path / "checkpoints")
    (directory / "damaged-4").mkdir()  # from earlier damage
    overwritten(file := sorted((directory / "4").glob(name))[0])
    with opened(directory) as checkpoints, caplog.at_level("INFO"):
        found = checkpoints.restore_newest(numbers(0))
        assert found.step == 2 and found.host == {"seconds": 2} and checkpoints.latest() == 2
        np.testing.assert_array_equal(found.state["w"], numbers(2)["w"])
        checkpoints.save(4, numbers(4), {}, wait=True)  # its number is free
    assert stepped(directory) == ["2", "4", "damaged-4", "damaged-4-2"]
    assert len(list((directory / "damaged-4-2").rglob("*"))) == len(list((two_saved / "4").rglob("*")))
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert file.relative_to(directory / "4").as_posix() in warning and "\n" not in warning
    assert "damaged-4-2" in warning and "after step 2" in warning


def test_a_run_of_which_all_checkpoints_are_damaged_does_not_begin_again(two_saved, tmp_path):
    directory = shutil.copytree(two_saved, tmp_path / "checkpoints")
    for step in (2, 4):
        overwritten(directory / str(step) / "host" / "metadata")
    for _ in range(2):  # the second time there are only damaged ones
        with (
            opened(directory) as checkpoints,
            pytest.raises(UserError, match=r"only damaged .*2.*4.*undamaged copy.*step 0"),
        ):
            checkpoints.restore_newest(numbers(0))
    with pytest.raises(UserError, match="no checkpoint"):
        saved_params(directory, None, {})
    (directory / "damaged-4").rename(directory / "4")
    shutil.copyfile(two_saved / "4" / "host" / "metadata", directory / "4" / "host" / "metadata")
    with opened(directory) as checkpoints:
        assert checkpoints.restore_newest(numbers(0)).step == 4


def test_a_bucket_that_does_not_answer_is_not_taken_for_damage(two_saved, monkeypatch):
    url = f"{gcs()}/silent/checkpoints"
    buckets.push(two_saved / "4", f"{url}/4")
    for name in ("_sum_file", "_parse"):  # while a file is read, and while the list is
        with monkeypatch.context() as patch, opened(epath.Path(url)) as checkpoints:
            patch.setattr(checksums, name, refuse)
            with pytest.raises(UserError, match=r"cannot read gs://bkt/silent/checkpoints/4 \(.*reset"):
                checkpoints.restore_newest(numbers(0))
            with pytest.raises(UserError, match=r"cannot read gs://bkt/silent/checkpoints/4 \(.*reset"):
                saved_params(url, None, {})
    with opened(epath.Path(url)) as checkpoints:
        assert checkpoints.restore_newest(numbers(0)).step == 4


def refuse(*args):
    raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


def without_checksums(directory):
    """As written by versions before checksums."""
    for path in [p for p in directory.rglob("checksums*") if p.is_file()]:
        path.unlink()


def test_checkpoints_of_an_earlier_version_are_loaded(two_saved, tmp_path, caplog):
    directory = shutil.copytree(two_saved, tmp_path / "checkpoints")
    without_checksums(directory)
    with opened(directory) as checkpoints, caplog.at_level("INFO"):
        assert checkpoints.restore_newest(numbers(0)).step == 4
    assert "has no checksums" in caplog.text and not [r for r in caplog.records if r.levelname == "WARNING"]


# tensorstore reports its other reads to an event loop that the first failure has closed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ("truncated", "missing"))
@pytest.mark.parametrize("name", ("state/_METADATA", "state/manifest.ocdbt", "host/metadata"))
def test_without_checksums_what_cannot_be_loaded_is_set_aside_too(kind, name, two_saved, tmp_path, caplog):
    directory = shutil.copytree(two_saved, tmp_path / "checkpoints")
    without_checksums(directory)
    DAMAGES[kind](directory / "4" / name)
    with opened(directory) as checkpoints:
        assert checkpoints.restore_newest(numbers(0)).step == 2
    assert stepped(directory) == ["2", "damaged-4"]


def test_another_student_is_not_taken_for_damage(two_saved, tmp_path):
    directory = shutil.copytree(two_saved, tmp_path / "checkpoints")
    with (
        opened(directory) as checkpoints,
        pytest.raises(UserError, match=r"w of shape \[64, 64\], expected w of shape \[3\]"),
    ):
        checkpoints.restore_newest(numbers(0) | {"w": jnp.zeros(3)})
    assert stepped(directory) == ["2", "4"]


def test_the_parameters_of_a_damaged_checkpoint_are_refused_with_the_one_before(tmp_path):
    like = {"w": jax.ShapeDtypeStruct((64, 64), np.float32)}
    with opened(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"params": {"w": numbers(step)["w"]}}, {})
    for step in (2, 3):
        overwritten(tmp_path / str(step) / "state" / "_METADATA")
    with pytest.raises(UserError, match=r"/3 is damaged: state/_METADATA .* the one before is step 1"):
        saved_params(tmp_path, None, like)
    step, params = saved_params(tmp_path, 1, like)
    np.testing.assert_array_equal(params["w"], numbers(1)["w"])
    assert stepped(tmp_path) == ["1", "2", "3"]  # a process that only reads renames nothing


# --------------------------------------------------------------------------------------------- what is kept


def test_the_best_are_kept_beside_the_last():
    scores = {1: 0.5, 2: 0.9, 3: None, 4: 0.9, 5: 0.1, 6: 0.7}
    steps = [1, 2, 3, 4, 5, 6, 7]
    assert surplus_steps(steps, 2, 0, scores) == {1, 2, 3, 4, 5}
    assert surplus_steps(steps, 2, 1, scores) == {1, 2, 3, 5}  # of equal ones the later is kept
    assert surplus_steps(steps, 2, 3, scores) == {1, 3, 5}  # 2, 4 and 6, which is one of the last
    assert surplus_steps(steps, 9, 1, scores) == set()


def test_the_best_survive_a_resume(tmp_path):
    scores = {1: 0.2, 2: 0.8, 3: 0.4, 4: 0.3}
    for begin in (1, 3):
        with opened(tmp_path, keep=1, keep_best=1, scores=lambda: scores) as checkpoints:
            for step in (begin, begin + 1):
                checkpoints.save(step, numbers(step), {})
    assert stepped(tmp_path) == ["2", "4"]


def test_a_clock_that_is_set_ahead_during_a_write_ends_no_save(tmp_path, monkeypatch):
    now, ahead = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: now() + ahead[0])
    with contextlib.closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
        begin = future.time.time()
        checkpoints.save(1, numbers(1), {})
        ahead[0] = 86_400.0
        assert future.get_remaining_time(begin, 3600) > 3000
        checkpoints.wait()
        assert checkpoints.restore(1, numbers(0))[1] == {}
