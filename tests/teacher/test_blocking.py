"""A teacher on a thread of its own: blocking calls, and an end without noise."""

from __future__ import annotations

import gc
import re
import threading

import pytest

import ropd_jax as ropd
from tests.helpers import QUESTION, python, serving


def threads():
    return [t for t in threading.enumerate() if t.name == "teacher-loop"]


def test_a_teacher_that_nothing_refers_to_closes_its_thread():
    gc.collect()
    before = len(threads())
    teacher = ropd.make_teacher(ropd.default_config())
    assert teacher.blocking.references(QUESTION) and len(threads()) == before + 1
    del teacher
    gc.collect()
    assert len(threads()) == before


def test_a_teacher_that_becomes_garbage_on_its_own_thread_does_not_wait_for_itself():
    gc.collect()
    before = threads()
    held = [ropd.make_teacher(ropd.default_config())]
    loop = held[0].blocking._loop
    (thread,) = set(threads()) - set(before)

    async def drop():
        held.clear()
        gc.collect()

    loop.submit(drop()).result(5)
    thread.join(5)
    assert not thread.is_alive()


def test_close_twice_and_with_a_client_around_the_client():
    class Counts:
        def __init__(self, inner):
            self.inner, self.requests, self.closed = inner, 0, 0

        async def chat(self, request):
            self.requests += 1
            return await self.inner.chat(request)

        async def close(self):
            self.closed += 1
            await self.inner.close()

    teacher = ropd.make_teacher(ropd.default_config())
    teacher.client = counts = Counts(teacher.client)
    with teacher.blocking as blocking:
        assert len(blocking.references(QUESTION)) == counts.requests == 4
    blocking.close()
    assert counts.closed == 1
    with pytest.raises(RuntimeError, match="closed"):
        blocking.references(QUESTION)


@pytest.mark.parametrize("end", ["", "teacher.blocking.close()", "del teacher"])
def test_a_teacher_over_http_ends_without_noise(tmp_path, end):
    code = """
import ropd_jax as ropd
cfg = ropd.default_config()
cfg.teacher.provider, cfg.teacher.base_url = "openai", "{url}/v1"
teacher = ropd.make_teacher(cfg)
print(len(teacher.blocking.references("{question}")))
{end}
"""
    with serving() as url:
        done = python(code.format(url=url, end=end, question=QUESTION), tmp_path, "-W", "error", "-X", "dev")
    assert done.stdout.split() == ["4"]
    assert not re.search("Unclosed|Traceback|Warning|never awaited|Exception", done.stderr), done.stderr
