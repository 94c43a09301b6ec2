"""The host's side of the engine: which rollout decodes in which row, which prompt slot and pages are whose. No jax.

Rows, prompt slots and pages are split into ``parts`` (the mesh's ``fsdp`` axis); a prompt and all its rollouts stay
in one part, and every index of a `View` counts within the part. The life of a rollout:

    pending --take_prompts--> ready (its prompt is prefilled) --admit--> in a row --absorb--> ended

The lowest free place is taken first, so what a run does is a function of the prompts and their lengths alone.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
from collections.abc import Sequence

import numpy as np

PAGES_A_ROW = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # sizes of the pool, times the rows
FEWEST_ROWS = 16  # of a part: fewer are not worth a compilation, and XLA's CPU matmuls give other bits below 16


@dataclasses.dataclass
class Job:
    """One rollout: the ``g``-th of prompt ``index``; what it has so far."""

    index: int
    g: int
    limit: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logp: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Part:
    """Free places of one part, as heaps, and rollouts whose prompt is prefilled."""

    rows: list[int]
    slots: list[int]
    pages: list[int] = dataclasses.field(default_factory=lambda: [0])
    ready: collections.deque[tuple[int, Job]] = dataclasses.field(default_factory=collections.deque)


class Slots:
    """Books of all parts.

    Attributes:
        job: the rollout of each row, or None.
        token, t, limit, base, done, key: state of the rows that the device needs (see `engine.Rows`), all parts one
            behind the other; so are the arrays of ``view``, by the names of `pages.View`.
    """

    def __init__(
        self,
        *,
        parts: int,
        rows: int,
        slots: int,
        page: int,
        prompt_lens: Sequence[int],
        limits: Sequence[Sequence[int]],
        key_PG2: np.ndarray,
    ):
        self.parts, self.rows, self.slots, self.page, self.pages = parts, rows, slots, page, 1
        self.prompt_lens, self.limits, self.key_PG2 = prompt_lens, limits, key_PG2
        self.rollouts = len(limits[0]) if limits else 1
        self.pending = collections.deque(range(len(prompt_lens)))
        self.left = [self.rollouts] * len(prompt_lens)  # rollouts of each prompt that have not ended
        self.slot_of: dict[int, tuple[int, int]] = {}  # prompt -> (part, slot)
        self.part = [Part(list(range(rows)), list(range(slots))) for _ in range(parts)]
        depth = -(-max((max(x) for x in limits), default=1) // page) + 1
        self.own_pages: dict[int, list[int]] = {}  # row -> its pages in order
        B, P = parts * rows, parts * slots
        self.job: list[Job | None] = [None] * B
        self.token, self.t, self.limit, self.base = (np.zeros(B, np.int32) for _ in range(4))
        self.done, self.key = np.ones(B, bool), np.zeros((B, 2), np.uint32)
        self.view = {
            "row_PG": np.zeros((P, self.rollouts), np.int32),
            "place_B": np.zeros(B, np.int32),
            "prompt_len_P": np.zeros(P, np.int32),
            "owner_M": np.zeros(parts, np.int32),
            "first_M": np.zeros(parts, np.int32),
            "table_BD": np.zeros((B, depth), np.int32),
            "depth_B": np.zeros(B, np.int32),
        }

    @property
    def unfinished(self) -> bool:
        return any(self.left)

    # --- prompts enter

    def take_prompts(self, most: int) -> list[list[tuple[int, int]]]:
        """(prompt, slot) of those to prefill now, for each part at most ``most``; empty where nothing is due."""
        taken: list[list[tuple[int, int]]] = [[] for _ in self.part]
        if not any(len(p.rows) > len(p.ready) and p.slots for p in self.part):
            return taken
        for _ in range(most):
            for number, part in enumerate(self.part):
                if self.pending and part.slots:
                    index, slot = self.pending.popleft(), heapq.heappop(part.slots)
                    taken[number].append((index, slot))
                    self.slot_of[index] = (number, slot)
                    self.view["prompt_len_P"][number * self.slots + slot] = self.prompt_lens[index] - 1
                    for g in range(self.rollouts):
                        part.ready.append((slot, Job(index, g, self.limits[index][g])))
        return taken

    def admit(self, last_tokens: Sequence[int]) -> None:
        """Ready rollouts into free rows. ``last_tokens``: the last token of each prompt, which decoding starts from."""
        for number, part in enumerate(self.part):
            while part.rows and part.ready:
                (slot, job), row = part.ready.popleft(), heapq.heappop(part.rows)
                b = number * self.rows + row
                self.job[b] = job
                self.token[b], self.t[b], self.limit[b] = last_tokens[job.index], 0, job.limit
                self.base[b], self.done[b] = self.prompt_lens[job.index] - 1, False
                self.key[b] = self.key_PG2[job.index, job.g]
                self.view["row_PG"][number * self.slots + slot, job.g] = row
                self.view["place_B"][b] = slot * self.rollouts + job.g
                self.view["depth_B"][b] = 0
                self.own_pages[b] = []

    # --- rows go on and end

    def absorb(self, tokens_CB: np.ndarray, logp_CB: np.ndarray, t_B: np.ndarray, done_B: np.ndarray) -> list[int]:
        """What a chunk gave; returns the rows that have ended in it (they stay until `release`)."""
        ended = []
        for b, job in enumerate(self.job):
            if job is not None:
                n = int(t_B[b] - self.t[b])
                job.tokens += tokens_CB[:n, b].tolist()
                job.logp += logp_CB[:n, b].tolist()
                self.token[b], self.t[b], self.done[b] = job.tokens[-1], t_B[b], done_B[b]
                if done_B[b]:
                    ended.append(b)
        return ended

    def release(self, b: int) -> Job:
        """The row's places become free, and its prompt's where this was its last rollout."""
        job, number = self.job[b], b // self.rows
        assert job is not None
        part = self.part[number]
        self.job[b], self.done[b] = None, True
        heapq.heappush(part.rows, b % self.rows)
        for page in self.own_pages.pop(b):
            heapq.heappush(part.pages, page)
        self.left[job.index] -= 1
        if not self.left[job.index]:
            number, slot = self.slot_of.pop(job.index)
            heapq.heappush(self.part[number].slots, slot)
            self.view["prompt_len_P"][number * self.slots + slot] = 0
        return job

    # --- pages

    def full(self) -> list[int]:
        """Rows whose stage is full."""
        return [b for b, j in enumerate(self.job) if j and self.t[b] == self.page * (1 + self.view["depth_B"][b])]

    def pages_missing(self) -> int:
        """The size of the pool (pages of a part) that a commit now needs, 0 where it has it."""
        due = np.bincount([b // self.rows for b in self.full()], minlength=self.parts).tolist()
        needed = max(self.pages - len(p.pages) + n for p, n in zip(self.part, due, strict=True))
        return 0 if needed <= self.pages else pool_size(needed, self.rows)

    def grow(self, pages: int) -> None:
        old, self.pages = self.pages, pages
        for name in PAGE_VIEWS:
            x = np.zeros((self.parts, pages), np.int32)
            x[:, :old] = self.view[name].reshape(self.parts, old)
            self.view[name] = x.reshape(-1)
        for part in self.part:
            part.pages += range(old, pages)
            heapq.heapify(part.pages)

    def commit(self) -> np.ndarray:
        """The page that each row's full stage becomes, ``pages`` (none) where it is not full."""
        at_B = np.full(self.parts * self.rows, self.pages, np.int32)
        for b in self.full():
            number = b // self.rows
            at_B[b] = page = heapq.heappop(self.part[number].pages)
            m = number * self.pages + page
            self.view["owner_M"][m] = b % self.rows
            self.view["first_M"][m] = self.base[b] + self.t[b] - self.page
            self.view["table_BD"][b, self.view["depth_B"][b]] = page
            self.view["depth_B"][b] += 1
            self.own_pages[b].append(page)
        return at_B

    # --- the tail: fewer rows

    def rows_enough(self) -> int:
        """To how many rows a part can be halved while nothing waits; as it is where it cannot."""
        if self.pending or any(p.ready for p in self.part):
            return self.rows
        return halved(self.rows, self.rows - min(len(p.rows) for p in self.part))

    def shrink(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Live rows and pages move to the front of smaller arrays.

        Returns: the old places (row, page) of the new rows and pages within their parts; 0 where they are empty.
        """
        used = max(self.pages - len(p.pages) for p in self.part)
        pages = pool_size(used, rows) if used else 1
        from_B, from_M = np.zeros((self.parts, rows), np.int32), np.zeros((self.parts, pages), np.int32)
        row_arrays = ("token", "t", "limit", "base", "key")
        old = {name: getattr(self, name) for name in row_arrays} | self.view
        new = {n: np.zeros((self.parts * rows, *old[n].shape[1:]), old[n].dtype) for n in row_arrays}
        view = {n: np.zeros((self.parts * rows, *x.shape[1:]), np.int32) for n, x in old.items() if n in ROW_VIEWS}
        view |= {n: np.zeros(self.parts * pages, np.int32) for n in PAGE_VIEWS}
        view |= {n: self.view[n] for n in ("row_PG", "prompt_len_P")}
        jobs: list[Job | None] = [None] * (self.parts * rows)
        own: dict[int, list[int]] = {}
        for number in range(self.parts):
            live = [b for b in range(number * self.rows, (number + 1) * self.rows) if self.job[b] is not None]
            moved = 0
            for row, b in enumerate(live):
                to, job = number * rows + row, self.job[b]
                assert job is not None
                from_B[number, row], jobs[to], own[to] = b % self.rows, job, []
                for name, x in (new | {n: view[n] for n in ROW_VIEWS}).items():
                    x[to] = old[name][b]
                view["row_PG"][number * self.slots + self.slot_of[job.index][1], job.g] = row
                for d, page in enumerate(self.own_pages[b]):
                    from_M[number, moved] = page
                    m = number * pages + moved
                    view["owner_M"][m], view["first_M"][m] = row, self.view["first_M"][number * self.pages + page]
                    view["table_BD"][to, d] = moved
                    own[to].append(moved)
                    moved += 1
            self.part[number].rows = list(range(len(live), rows))
            self.part[number].pages = list(range(moved, pages))
        for name, x in new.items():
            setattr(self, name, x)
        # a row index that no live rollout has may lie beyond the new rows
        view["row_PG"] = np.minimum(view["row_PG"], rows - 1)
        self.rows, self.pages, self.job, self.own_pages, self.view = rows, pages, jobs, own, view
        self.done = np.array([j is None for j in jobs])
        return from_B.reshape(-1), from_M.reshape(-1)


ROW_VIEWS = ("place_B", "table_BD", "depth_B")
PAGE_VIEWS = ("owner_M", "first_M")


def pool_size(pages: int, rows: int) -> int:
    """The smallest size of a pool that holds so many pages: few sizes, because each is a compilation."""
    return next((n * rows for n in PAGES_A_ROW if n * rows >= pages), pages)


def halved(rows: int, needed: int) -> int:
    """``rows`` halved while the needed ones fit and the number stays a multiple of FEWEST_ROWS."""
    while rows % (2 * FEWEST_ROWS) == 0 and rows // 2 >= needed:
        rows //= 2
    return rows
