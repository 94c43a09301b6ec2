"""One loop, one thread: results come back, closing cancels and closes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

import pytest

from ropd_jax.teacher import Teacher, TeacherLoop


def test_coroutines_run_on_one_thread_and_give_results_and_errors():
    async def name():
        return threading.current_thread().name

    async def fail():
        raise ValueError("x")

    with TeacherLoop() as loop:
        assert {loop.submit(name()).result(5) for _ in range(3)} == {"teacher-loop"}
        with pytest.raises(ValueError, match="x"):
            loop.submit(fail()).result(5)


def test_close_cancels_what_is_in_flight_closes_clients_and_ends_the_thread(saying):
    cancelled = threading.Event()
    started = threading.Event()

    async def hang():
        started.set()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    client = saying()
    loop = TeacherLoop(Teacher(client).close)
    future = loop.submit(hang())
    assert started.wait(5)
    loop.close()
    loop.close()
    assert cancelled.is_set() and client.closed
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(5)
    assert all(t.name != "teacher-loop" for t in threading.enumerate())

    async def late():
        return 1

    with pytest.raises(RuntimeError, match="closed"):
        loop.submit(late())


def test_a_client_is_closed_on_the_loop_that_used_it():
    seen = []

    async def closer():
        seen.append(threading.current_thread().name)

    loop = TeacherLoop()
    loop.on_close(closer)
    loop.close()
    assert seen == ["teacher-loop"]


def test_cancelling_the_future_cancels_the_coroutine():
    done = threading.Event()

    async def hang():
        try:
            await asyncio.sleep(600)
        finally:
            done.set()

    with TeacherLoop() as loop:
        future = loop.submit(hang())
        loop.submit(asyncio.sleep(0.01)).result(5)
        assert future.cancel()
        assert done.wait(5)
