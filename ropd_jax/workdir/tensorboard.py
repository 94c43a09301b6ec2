"""Scalars for TensorBoard, written by the logging thread itself: a full disk raises there, and nothing can block.

tensorboardX's own writer passes events to a thread through a bounded queue. If that thread dies of a full disk, the
queue fills up and the run waits forever.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import struct
import time
from collections.abc import Mapping
from typing import Any

from ropd_jax.utils.writing import Dispensable

FILE_BYTES = 1 << 20  # per event file; then a new one begins, so that little is uploaded to a bucket again


class Board:
    """The event files of one process.

    Args:
        directory: gets ``events.out.tfevents.*``.
        purge_step: TensorBoard drops events of an earlier process from this step on.
    """

    def __init__(self, directory: pathlib.Path, *, purge_step: int):
        self._directory = directory
        self._guard = Dispensable(str(directory))
        self._file: Any = None
        self._number = 0
        with self._guard:
            self._open(purge_step)

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Append the known values of a step."""
        if self._guard.lost:
            return
        from tensorboardX.proto.summary_pb2 import Summary

        with self._guard:
            if self._file.tell() > FILE_BYTES:
                self.close()
                self._open(None)
            known = [Summary.Value(tag=n, simple_value=float(v)) for n, v in values.items() if v is not None]
            self._write(step=step, summary=Summary(value=known))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # `log` has already flushed every event and reported errors
                self._file.close()

    def _open(self, purge_step: int | None) -> None:
        from tensorboardX.proto.event_pb2 import SessionLog

        self._directory.mkdir(parents=True, exist_ok=True)
        self._number += 1
        now = time.time()
        name = f"events.out.tfevents.{now:.0f}.{os.uname().nodename}.{os.getpid()}.{self._number:04d}"
        self._file = open(self._directory / name, "ab")  # noqa: SIM115 - see close()
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def _write(self, **event: Any) -> None:
        """One record of a TFRecord file: length, its checksum, the event, its checksum."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        data = Event(wall_time=time.time(), **event).SerializeToString()
        length = struct.pack("<Q", len(data))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        self._file.write(b"".join((length, sums[0], data, sums[1])))
        self._file.flush()
