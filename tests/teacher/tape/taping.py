"""Requests and clients for the tests of the tape."""

from __future__ import annotations

import asyncio

import pytest

from ropd_jax.teacher import ChatRequest, Tape, TapedClient, at_step
from ropd_jax.types import Message

TEXT = "What is 2 + 2?"


def request(text=TEXT, *, purpose="reference", model="m", temperature=0.7, limit=100, schema=None, index=0):
    return ChatRequest(purpose, (Message("user", text),), model, temperature, limit, schema, index)


@pytest.fixture
def tape(tmp_path):
    tape = Tape(tmp_path / "tape.sqlite")
    yield tape
    tape.close()


def taped(tape, client, mode="record", **more):
    return TapedClient(lambda: client, tape, mode=mode, provider="scripted", **more)


def replaying(tape, **more):
    def no_client():
        raise AssertionError("a replay made a client")

    return TapedClient(no_client, tape, mode="replay", provider="scripted", **more)


def chat(client, what, step=None):
    return asyncio.run(client.chat(what) if step is None else at_step(step, client.chat(what)))
