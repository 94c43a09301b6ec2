"""The tape file: keys, versions, secrets, kills, several processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zlib

import pytest
from aiohttp import web

from ropd_jax.teacher import Tape, TapedClient, TransientError, make_client
from ropd_jax.teacher.clients.errors import ConfigurationError
from ropd_jax.teacher.tape import store
from ropd_jax.teacher.tape.batch_jobs import Ledger
from ropd_jax.teacher.tape.inspect import export_tape
from ropd_jax.teacher.tape.store import body_key, request_body
from tests.teacher.tape.taping import TEXT, chat, replaying, request, taped


def test_the_key_is_made_of_all_that_is_sent_and_nothing_else():
    base = body_key(request_body("openai", request()))
    others = [
        body_key(request_body("gemini", request())),
        *(
            body_key(request_body("openai", request(**change)))
            for change in (
                {"model": "n"},
                {"temperature": 0.0},
                {"temperature": None},
                {"limit": 101},
                {"schema": {"type": "object"}},
                {"index": 1},
                {"text": TEXT + " "},
            )
        ),
    ]
    assert len({base, *others}) == 9
    assert body_key(request_body("openai", request(purpose="verify"))) == base
    assert body_key(request_body("openai", request(temperature=0))) == body_key(
        request_body("openai", request(temperature=0.0))
    )


def test_making_a_tape_leaves_no_trace_until_it_is_used(tmp_path):
    taped(Tape(tmp_path / "sub" / "tape.sqlite"), None)
    assert list(tmp_path.iterdir()) == []


def test_no_key_and_no_header_enters_the_tape(tape, tmp_path, monkeypatch):
    secret = "sk-very-secret-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    headers = []

    async def answer(http):
        headers.append(http.headers["Authorization"])
        return web.json_response({"error": {"message": f"key {secret} is over its limit"}}, status=429)

    async def run():
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        client = TapedClient(
            lambda: make_client(provider="openai", base_url=url, attempts=1), tape, mode="record", provider="openai"
        )
        try:
            with pytest.raises(TransientError):
                await client.chat(request())
        finally:
            await client.close()
            await runner.cleanup()

    asyncio.run(run())
    assert secret in headers[0]
    export_tape(tape, tmp_path / "out.jsonl")
    tape.close()
    everything = (tmp_path / "tape.sqlite").read_bytes() + (tmp_path / "out.jsonl").read_bytes()
    assert b"over its limit" in everything
    for word in (secret, "Authorization", "Bearer"):
        assert word.encode() not in everything


def test_a_tape_of_version_1_is_read_and_grows(tape, saying, tmp_path):
    chat(taped(tape, saying("old")), request())
    tape.close()
    with contextlib.closing(sqlite3.connect(tape.path)) as db, db:
        db.execute("ALTER TABLE replies DROP COLUMN address")
        db.execute("DROP TABLE batches")
        db.execute("PRAGMA user_version = 1")
    with contextlib.closing(Tape(tape.path, read_only=True)) as old:
        assert chat(replaying(old), request()).text == "old" and [e.address for e in old.entries()] == [None]
    client = taped(tape, saying("new"), address="http://one")
    assert (chat(client, request()).text, chat(client, request(index=1)).text) == ("old", "new")
    assert sorted(str(e.address) for e in tape.entries()) == ["None", "http://one"] and Ledger(tape).jobs() == []


def test_texts_are_compressed_and_survive_it(tape, saying):
    long = "the same step again\n" * 20_000
    chat(taped(tape, saying(long)), request(long, purpose="verify"))
    assert chat(replaying(tape), request(long, purpose="verify")).text == long
    assert tape.query("SELECT length(body) FROM requests")[0][0] < len(long) / 50
    body = tape.query("SELECT body FROM requests")[0][0]
    assert json.loads(zlib.decompress(body))["messages"] == [["user", long]]


WRITER = """
import asyncio, sys
from ropd_jax.teacher import ChatReply, ChatRequest, Tape, TapedClient
from ropd_jax.types import Message

class Echo:
    async def chat(self, request):
        return ChatReply(request.messages[0].content[:40] * 50)

async def main(path, start):
    client = TapedClient(Echo, Tape(path), mode="record", provider="scripted")
    async def one(i):
        await client.chat(ChatRequest("verify", (Message("user", f"{i} " * 2000),), "m", sample_index=i))
        sys.stdout.write(f"{i}\\n"); sys.stdout.flush()
    for i in range(start, 10**6, 4):
        await asyncio.gather(*(one(i + k) for k in range(4)))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def test_a_killed_recorder_loses_only_what_was_in_flight(tmp_path):
    path, said, start = tmp_path / "tape.sqlite", set(), 0
    for round_ in range(10):
        command = [sys.executable, "-c", WRITER, str(path), str(start)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(1 + 7 * round_)]
            os.kill(process.pid, signal.SIGKILL)
            lines += process.stdout.readlines()
        said |= {int(x) for x in lines if x.endswith("\n")}
        start = max(said) + 1
        tape = Tape(path, read_only=True)
        assert tape.query("PRAGMA integrity_check") == [("ok",)]
        held = {i for (i,) in tape.query("SELECT sample_index FROM requests JOIN replies USING(key)")}
        tape.close()
        assert said <= held  # answered requests are there
        assert len(held) - len(said) <= 4 * (round_ + 1)  # and the others were in flight


def test_another_process_reads_while_one_writes_and_a_read_only_place_will_do(tape, tmp_path, saying):
    chat(taped(tape, saying("four")), request())
    code = "import sys; from ropd_jax.teacher import Tape; t = Tape(sys.argv[1], read_only=True); " \
           "print(t.query('SELECT count(*) FROM replies')[0][0])"  # fmt: skip
    out = subprocess.run([sys.executable, "-c", code, str(tape.path)], capture_output=True, text=True, check=True)
    assert out.stdout == "1\n"
    chat(taped(tape, saying("five")), request(index=1))
    reader = Tape(tape.path, read_only=True)
    assert reader.query("SELECT count(*) FROM replies") == [(2,)]
    reader.close()


@pytest.fixture
def half_made(tmp_path):
    """A new tape that another connection is preparing: it holds the write lock, and the file is not in WAL mode yet."""
    path = tmp_path / "new.sqlite"
    path.touch()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield path, other


def test_a_new_tape_waits_for_the_connection_that_prepares_it(half_made, saying):
    path, other = half_made
    release = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
    release.start()
    with contextlib.closing(Tape(path)) as tape:
        chat(taped(tape, saying("four")), request())
        assert tape.query("SELECT count(*) FROM replies") == [(1,)]
    release.join()


def test_a_tape_that_stays_locked_says_so_after_the_wait(half_made, saying, monkeypatch):
    monkeypatch.setattr(store, "_WAIT_S", 0.2)
    path, began = half_made[0], time.monotonic()
    with contextlib.closing(Tape(path)) as tape, pytest.raises(ConfigurationError) as caught:
        chat(taped(tape, saying("four")), request())
    assert time.monotonic() - began >= 0.2
    assert str(path) in str(caught.value) and "give each run its own tape" in str(caught.value)
