"""The lock in buckets, on loopback: S3 (moto) rejects a second create on its own, the emulator of GCS does not."""

from __future__ import annotations

import os
import socket

import pytest

from ropd_jax.types import UserError
from ropd_jax.workdir import lock_files
from ropd_jax.workdir.lock import Lock, LockLost, locked
from ropd_jax.workdir.lock_files import records_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of the emulators


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module", params=["s3", "gs"])
def bucket(request):
    """The URL of an empty bucket."""
    place, port = pytest.MonkeyPatch(), free_port()
    if request.param == "s3":
        server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", port, verbose=False)
        library = pytest.importorskip("s3fs").S3FileSystem
        keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
            place.setenv(name, value)
    else:
        place.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        place.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        emulator = pytest.importorskip("gcp_storage_emulator.server")
        server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="ropd-runs")
        library = pytest.importorskip("gcsfs").GCSFileSystem
    server.start()
    library.clear_instance_cache()
    if request.param == "s3":
        library().mkdir("ropd-runs")
    yield f"{request.param}://ropd-runs"
    library.clear_instance_cache()
    server.stop()
    place.undo()


def test_a_record_is_created_once(bucket, monkeypatch):
    monkeypatch.setattr(lock_files, "SETTLE_S", 0.0)
    records = records_of(f"{bucket}/a/lock")
    assert records.numbers() == [] and records.read(1) is None
    assert records.create(1, b"one") and not records.create(1, b"two")
    assert records.read(1) == b"one" and records.numbers() == [1]
    records.overwrite(1, b"six")
    assert records.read(1) == b"six"
    records.delete(1)
    records.delete(1)
    records.close()
    assert records.numbers() == []


def test_one_process_holds_a_bucket_and_a_lost_lock_is_noticed(bucket, monkeypatch):
    monkeypatch.setattr(lock_files, "SETTLE_S", 0.0)
    with (
        locked(f"{bucket}/b"),
        pytest.raises(UserError, match=f"pid {os.getpid()} on host .* has been running here since"),
    ):
        Lock(f"{bucket}/b").acquire()
    hung = Lock(f"{bucket}/b", beat_s=9.0, stale_s=0.0)
    hung.acquire()
    taker = Lock(f"{bucket}/b", beat_s=9.0, stale_s=0.0)
    taker.acquire()
    with pytest.raises(LockLost, match="has taken over this directory"):
        hung.check()
    hung.release()
    taker.check()
    taker.release()


def test_of_two_that_both_created_a_record_the_last_writer_has_it(bucket, monkeypatch):
    """A server without exclusive creation: the other process writes while this one waits to read again."""
    if bucket.startswith("s3"):
        pytest.skip("it excludes")
    records = records_of(f"{bucket}/c/lock")
    monkeypatch.setattr(lock_files.time, "sleep", lambda s: records.overwrite(1, b"other"))
    assert not records.create(1, b"mine")


def test_a_bucket_with_a_typing_error_is_one_line_and_is_not_created(bucket):
    url = f"{bucket}-typo/runs/a"
    with pytest.raises(UserError, match=r"--workdir .*/runs/a: the bucket .*-typo does not exist; create") as refused:
        Lock(url).acquire()
    assert "\n" not in str(refused.value)
    import fsspec

    fs, _ = fsspec.core.url_to_fs(bucket)
    assert not [name for name in fs.ls("") if "typo" in str(name)]
