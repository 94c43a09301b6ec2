"""The scheduler of the sampler, on the host: assigns rows, prompt slots and pages to rollouts. No jax.

Rows, prompt slots and pages are split into ``parts`` (the mesh axis ``fsdp``). A prompt and all its rollouts stay in
one part, and every index of a `View` counts within the part. The life of a rollout:

    pending --take_prompts--> ready (its prompt is prefilled) --admit--> in a row --absorb--> ended --release--> out
                                ^------------- make_room: no page is left ------------'

The lowest free place is taken first, so the schedule is a function of the prompts and their lengths.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
from collections.abc import Sequence

import numpy as np

PAGES_A_ROW = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # sizes of the pool, times the rows
FEWEST_ROWS = 16  # in a part: fewer are not worth a compilation, and XLA's CPU matmuls round differently below 16


@dataclasses.dataclass
class Job:
    """One rollout: the ``g``-th of prompt ``index``; what it has so far."""

    index: int
    g: int
    limit: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logp: list[float] = dataclasses.field(default_factory=list)
    drawn_logp: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Part:
    """Free places of one part, as heaps, and rollouts whose prompt is prefilled."""

    rows: list[int]
    slots: list[int]
    pages: list[int] = dataclasses.field(default_factory=lambda: [0])
    ready: collections.deque[tuple[int, Job]] = dataclasses.field(default_factory=collections.deque)


class Slots:
    """Scheduler state of all parts.

    Args:
        rows, slots: of each part. most: rollouts in rows at the same time, over all parts: with 8 parts of 2 rows, 10
            leave one row idle in 6 parts. 0 is all rows.
        most_pages: of a part's pool, at least as many as one rollout can need; 0 is as many as are needed.

    Attributes:
        job: the rollout of each row, or None.
        token, t, limit, base, done, key: state of the rows that the device needs (see `engine.Rows`). The parts
            follow one another: with 16 rows per part, row 3 of part 1 is at 19.
        view: the arrays of `kv.View` by name, laid out the same way.
        restarts, lost_tokens: the number of rollouts that had to make room, and of the tokens that they must resample.
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
        most: int = 0,
        most_pages: int = 0,
    ):
        self.parts, self.rows, self.slots, self.page, self.pages = parts, rows, slots, page, 1
        self.prompt_lens, self.limits, self.key_PG2 = prompt_lens, limits, key_PG2
        self.rollouts = len(limits[0]) if limits else 1
        self.left = [sum(n > 0 for n in row) for row in limits]  # rollouts of each prompt that have not ended
        self.pending = collections.deque(i for i, n in enumerate(self.left) if n)
        self.slot_of: dict[int, tuple[int, int]] = {}  # prompt -> (part, slot)
        own = [most // parts + (n < most % parts) if most else rows for n in range(parts)]
        self.part = [Part(list(range(n)), list(range(slots if n else 0))) for n in own]
        depth = -(-max((max(x) for x in limits), default=1) // page) + 1
        self.most_pages = most_pages
        self.restarts = self.lost_tokens = 0
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
            "first_M": np.full(parts, -1, np.int32),
            "table_BD": np.zeros((B, depth), np.int32),
            "depth_B": np.zeros(B, np.int32),
        }

    @property
    def unfinished(self) -> bool:
        return any(self.left)

    # --- prompts enter

    def take_prompts(self, most: int) -> list[list[tuple[int, int]]]:
        """(prompt, slot) of the prompts to prefill now, per part, at most ``most`` each."""
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
                    for g, limit in enumerate(self.limits[index]):
                        if limit:
                            part.ready.append((slot, Job(index, g, limit)))
        return taken

    def admit(self, last_tokens: Sequence[int]) -> None:
        """Move ready rollouts into rows. ``last_tokens``: the last token of each prompt, which decoding starts from."""
        for number, part in enumerate(self.part):
            while part.rows and part.ready and self._has_room(number):
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

    # --- rows continue and end

    def absorb(
        self,
        tokens_CB: np.ndarray,
        logp_CB: np.ndarray,
        drawn_logp_CB: np.ndarray,
        t_B: np.ndarray,
        done_B: np.ndarray,
    ) -> list[int]:
        """Add the tokens of a chunk; returns the rows that ended in it, which stay in place until `release`."""
        ended = []
        for b, job in enumerate(self.job):
            if job is not None:
                n = int(t_B[b] - self.t[b])
                job.tokens += tokens_CB[:n, b].tolist()
                job.logp += logp_CB[:n, b].tolist()
                job.drawn_logp += drawn_logp_CB[:n, b].tolist()
                self.token[b], self.t[b], self.done[b] = job.tokens[-1], t_B[b], done_B[b]
                if done_B[b]:
                    ended.append(b)
        return ended

    def release(self, b: int) -> Job:
        """Free the row and its pages, and the slot of its prompt after the last rollout; returns the rollout."""
        job = self._leave(b)
        self.left[job.index] -= 1
        if not self.left[job.index]:
            number, slot = self.slot_of.pop(job.index)
            heapq.heappush(self.part[number].slots, slot)
            self.view["prompt_len_P"][number * self.slots + slot] = 0
        return job

    def _leave(self, b: int) -> Job:
        """Free the row and its pages; returns the rollout that was in it."""
        job, number = self.job[b], b // self.rows
        assert job is not None
        part = self.part[number]
        self.job[b], self.done[b] = None, True
        heapq.heappush(part.rows, b % self.rows)
        for page in self.own_pages.pop(b):
            self.view["first_M"][number * self.pages + page] = FREE["first_M"]
            heapq.heappush(part.pages, page)
        return job

    # --- too few pages

    def make_room(self) -> None:
        """Move rollouts back to the ready ones until the pool has a page for each full stage.

        Those with the fewest tokens are moved, so the longest always continue. They restart from their prompt, ahead
        of all other ready ones: the same random stream and the same programs produce the same tokens again.
        """
        if not self.most_pages:
            return
        for number, part in enumerate(self.part):
            while len(due := [b for b in self.full() if b // self.rows == number]) > self._pages_left(number):
                rows = range(number * self.rows, (number + 1) * self.rows)
                live = [b for b in rows if self.job[b] and (b in due or self.own_pages[b])]
                assert len(live) > 1, "the pool is smaller than what one rollout needs"
                b = min(live, key=lambda b: (self.t[b], -b))
                job = self._leave(b)
                self.restarts, self.lost_tokens = self.restarts + 1, self.lost_tokens + len(job.tokens)
                for values in (job.tokens, job.logp, job.drawn_logp):
                    values.clear()
                part.ready.appendleft((self.slot_of[job.index][1], job))

    def _pages_left(self, number: int) -> int:
        """Free pages of a part's pool, including those it can still grow by."""
        return self.most_pages - self.pages + len(self.part[number].pages)

    def _has_room(self, number: int) -> bool:
        """Whether another rollout can enter: there must be a page for it and for each rollout in a row."""
        if not self.most_pages:
            return True
        live = sum(self.job[b] is not None for b in range(number * self.rows, (number + 1) * self.rows))
        return not live or self._pages_left(number) > live

    # --- pages

    def full(self) -> list[int]:
        """Rows whose stage is full."""
        return [b for b, j in enumerate(self.job) if j and self.t[b] == self.page * (1 + self.view["depth_B"][b])]

    def pages_missing(self) -> int:
        """The size of the pool (pages of a part) that the next commit needs; 0 if it is large enough."""
        due = np.bincount([b // self.rows for b in self.full()], minlength=self.parts).tolist()
        needed = max(self.pages - len(p.pages) + n for p, n in zip(self.part, due, strict=True))
        if needed <= self.pages:
            return 0
        size = pool_size(needed, self.rows)
        return min(size, self.most_pages) if self.most_pages else size

    def grow(self, pages: int) -> None:
        old, self.pages = self.pages, pages
        for name in PAGE_VIEWS:
            x = np.full((self.parts, pages), FREE[name], np.int32)
            x[:, :old] = self.view[name].reshape(self.parts, old)
            self.view[name] = x.reshape(-1)
        for part in self.part:
            part.pages += range(old, pages)
            heapq.heapify(part.pages)

    def commit(self) -> np.ndarray:
        """The page that the stage of each row becomes; ``pages``, which is out of range, if the stage is not full.

        A row with base 5 whose pages hold 4 slots: at t = 4 its stage holds positions 5 to 8, and becomes its first
        page with ``first_M`` 5 (5 + 4 - 4).
        """
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

    def compact(self, block: int, most: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Move pages to free places below them, if fewer blocks can then hold all pages.

        One part with blocks of 2; pages 0, 3 and 4 are used, 1, 2 and 5 free: page 4 moves to place 1.

        Args:
            block: pages that are read together. most: moves of a part at a time.

        Returns:
            (from_M, to_M), both [parts * most]: places within the part; ``pages`` in ``to_M``, which is out of range,
            means no move. None if nothing moves.
        """
        from_M, to_M = np.zeros((self.parts, most), np.int32), np.full((self.parts, most), self.pages, np.int32)
        for number, part in enumerate(self.part):
            begin, used = number * self.pages, self.pages - len(part.pages)
            places = np.flatnonzero(self.view["first_M"][begin : begin + self.pages] >= 0)[::-1]
            beyond = places[places >= -(-used // block) * block][:most].tolist()
            for n, old in enumerate(beyond):
                new = heapq.heapreplace(part.pages, old)
                from_M[number, n], to_M[number, n] = old, new
                b = number * self.rows + int(self.view["owner_M"][begin + old])
                d = self.own_pages[b].index(old)
                self.own_pages[b][d] = self.view["table_BD"][b, d] = new
                for name in PAGE_VIEWS:
                    self.view[name][begin + new] = self.view[name][begin + old]
                self.view["first_M"][begin + old] = FREE["first_M"]
        return None if (to_M == self.pages).all() else (from_M.reshape(-1), to_M.reshape(-1))

    # --- the tail: fewer rows

    def rows_enough(self) -> int:
        """The number of rows that a part can be halved to; unchanged if it cannot, or while rollouts wait."""
        if self.pending or any(p.ready for p in self.part):
            return self.rows
        return halved(self.rows, self.rows - min(len(p.rows) for p in self.part))

    def shrink(self, rows: int, pages: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Move live rows and their pages to the front of smaller arrays.

        One part with 4 rows and 4 pages; rollouts x and y live. x0 is the first page of x, x1 the second:

                 rows  0  1  2  3         pages  0   1   2   3
            before     .  x  .  y                x1  .   x0  y0      table of x: 2, 0; of y: 3
            shrink(2)  x  y                      x0  x1  y0  .       table of x: 0, 1; of y: 2

        This returns from_B = 1, 3 and from_M = 2, 0, 3, 0, by which the device gathers stages and pages. The pool has
        4 pages again, since 3 are used and its sizes are multiples of the rows (`pool_size`).

        Args:
            pages: of the new pool of a part, at least as many as are used; 0 is the fewest.

        Returns:
            (from_B, from_M): the old place, within its part, of each new row and page; 0 if the new one is empty.
        """
        used = max(self.pages - len(p.pages) for p in self.part)
        pages = pages or (pool_size(used, rows) if used else 1)
        from_B, from_M = np.zeros((self.parts, rows), np.int32), np.zeros((self.parts, pages), np.int32)
        old = {name: getattr(self, name) for name in ROW_ARRAYS} | self.view
        new = {n: np.zeros((self.parts * rows, *old[n].shape[1:]), old[n].dtype) for n in (*ROW_ARRAYS, *ROW_VIEWS)}
        new |= {n: np.full(self.parts * pages, FREE[n], np.int32) for n in PAGE_VIEWS}
        new |= {n: self.view[n] for n in PROMPT_VIEWS}
        jobs: list[Job | None] = [None] * (self.parts * rows)
        own: dict[int, list[int]] = {}
        for number in range(self.parts):
            live = [b for b in range(number * self.rows, (number + 1) * self.rows) if self.job[b] is not None]
            moved = 0  # number of pages of this part that have been placed
            for row, b in enumerate(live):
                to, job = number * rows + row, self.job[b]
                assert job is not None
                from_B[number, row], jobs[to] = b % self.rows, job
                for name in (*ROW_ARRAYS, *ROW_VIEWS):
                    new[name][to] = old[name][b]
                new["row_PG"][number * self.slots + self.slot_of[job.index][1], job.g] = row
                own[to] = list(range(moved, moved + len(self.own_pages[b])))
                for d, page in enumerate(self.own_pages[b]):
                    m = number * pages + moved
                    from_M[number, moved] = page
                    new["owner_M"][m], new["first_M"][m] = row, old["first_M"][number * self.pages + page]
                    new["table_BD"][to, d] = moved
                    moved += 1
            self.part[number].rows = list(range(len(live), rows))
            self.part[number].pages = list(range(moved, pages))
        for name in ROW_ARRAYS:
            setattr(self, name, new.pop(name))
        # the entry of an ended rollout can be beyond the new rows; any row is fine
        new["row_PG"] = np.minimum(new["row_PG"], rows - 1)
        self.rows, self.pages, self.job, self.own_pages, self.view = rows, pages, jobs, own, new
        self.done = np.array([j is None for j in jobs])
        return from_B.reshape(-1), from_M.reshape(-1)


ROW_ARRAYS = ("token", "t", "limit", "base", "key")  # of `engine.Rows`; ``done`` follows from the jobs
ROW_VIEWS = ("place_B", "table_BD", "depth_B")
PAGE_VIEWS = ("owner_M", "first_M")
FREE = {"owner_M": 0, "first_M": -1}  # of a free page
PROMPT_VIEWS = ("row_PG", "prompt_len_P")


def pool_size(pages: int, rows: int) -> int:
    """The smallest pool size for this many pages. There are few sizes, because each needs a compilation.

    With 16 rows: 16, 32, 48, 64, 96 ... pages; 50 pages give 64.
    """
    return next((n * rows for n in PAGES_A_ROW if n * rows >= pages), pages)


def halved(rows: int, needed: int) -> int:
    """``rows`` halved while the needed ones fit and the number stays a multiple of FEWEST_ROWS.

    128 rows of which 20 are needed become 32; 48 rows stay 48, since 24 is not a multiple of 16.
    """
    while rows % (2 * FEWEST_ROWS) == 0 and rows // 2 >= needed:
        rows //= 2
    return rows
