"""A teacher for scripts and notebooks: its questions as blocking calls, and as coroutines on any event loop.

    teacher = ropd.make_teacher(cfg)
    teacher.blocking.references("What is 7 * 6?")           in a script, or a notebook cell
    await teacher.references(prompt)                        in a coroutine, on any loop

A client keeps pooled connections and locks that belong to one event loop. To make both uses work together, even in a
notebook whose own loop is already running, the client runs on its own loop in its own thread::

    your thread or loop                    the teacher's thread
    teacher.references -> ThreadedClient.chat  ==>  client.chat -> provider
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import weakref
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ropd_jax.teacher.traffic.budget import Budget
from ropd_jax.teacher.traffic.event_loop import TeacherLoop
from ropd_jax.types import Message, Prompt, Rubric, Verdicts

if TYPE_CHECKING:
    from ropd_jax.teacher.clients.chat import ChatClient, ChatReply, ChatRequest

T = TypeVar("T")


class Questions(Protocol):
    """The questions that a `Teacher` answers."""

    client: ChatClient
    budget: Budget | None

    async def references(self, prompt: Prompt) -> tuple[str, ...]: ...

    async def induce_rubric(self, prompt: Prompt, references: Sequence[str], answers: Sequence[str]) -> Rubric: ...

    async def verify(self, prompt: Prompt, rubric: Rubric, answers: Sequence[str], *, key: str) -> Verdicts: ...

    async def close(self) -> None: ...


class ThreadedClient:
    """A ``ChatClient`` that runs another one on its own loop, and can be awaited on any loop."""

    def __init__(self, inner: ChatClient, loop: TeacherLoop):
        self.inner, self._loop = inner, loop

    async def chat(self, request: ChatRequest) -> ChatReply:
        """Returns the inner client's reply, or raises its error."""
        return await asyncio.wrap_future(self._loop.submit(self.inner.chat(request)))

    async def close(self) -> None:
        await asyncio.wrap_future(self._loop.submit(self.inner.close()))


class Blocking:
    """The teacher's questions as blocking calls. Prompts can be strings.

    Usable as a context manager, which closes the teacher at the end. A teacher that is left open is closed when it is
    garbage-collected or when the program ends.

    Attributes:
        teacher: the teacher to ask.
    """

    def __init__(self, teacher: Questions):
        self.teacher, self._loop = teacher, TeacherLoop()
        self._left_open = weakref.finalize(teacher, _close_left_open, self._loop, teacher.client, teacher.budget)
        teacher.client = ThreadedClient(teacher.client, self._loop)

    def references(self, prompt: str | Prompt) -> tuple[str, ...]:
        """The teacher's own answers to the prompt; see `Teacher.references`."""
        return self.run(self.teacher.references(as_prompt(prompt)))

    def induce_rubric(self, prompt: str | Prompt, references: Sequence[str], answers: Sequence[str]) -> Rubric:
        """A rubric from the contrast of references and answers; see `Teacher.induce_rubric`."""
        return self.run(self.teacher.induce_rubric(as_prompt(prompt), references, answers))

    def verify(self, prompt: str | Prompt, rubric: Rubric, answers: Sequence[str], *, key: str = "") -> Verdicts:
        """True or false for each criterion and each answer; see `Teacher.verify`."""
        prompt = as_prompt(prompt)
        return self.run(self.teacher.verify(prompt, rubric, answers, key=key or prompt.id))

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs any coroutine of the teacher and waits for its result. Ctrl-C cancels it."""
        future = self.submit(coroutine)
        try:
            return future.result()
        finally:
            future.cancel()  # no effect if it is done

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Starts a coroutine of the teacher; several can run at the same time."""
        return self._loop.submit(coroutine)

    def close(self) -> None:
        """Closes the client's connections and its thread. Idempotent."""
        if self._left_open.detach() is None:
            return
        try:
            self.run(self.teacher.close())
        finally:
            self._loop.close()

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _close_left_open(loop: TeacherLoop, client: ChatClient, budget: Budget | None) -> None:
    """Closes the client of a teacher that was never closed. Must not refer to the teacher."""
    loop.on_close(client.close)

    def close() -> None:
        with contextlib.suppress(RuntimeError, TimeoutError):  # a program that is ending cannot start a thread
            loop.close()
        if budget is not None and budget.total().calls:
            budget.save()

    if loop.is_current_thread():  # this can run on any thread, and the loop's own cannot wait for itself
        threading.Thread(target=close, daemon=True).start()
    else:
        close()


def as_prompt(prompt: str | Prompt) -> Prompt:
    """Turns a string into a prompt with one user message; the string is also its id."""
    return Prompt(prompt, (Message("user", prompt),)) if isinstance(prompt, str) else prompt
