"""``PromptStream``: the P prompts of each step, from one source or several, with or without a curriculum.

Without a curriculum they are a function of (seed, step). With one they also depend on the pass rates up to two steps
before: step t can be sampled while step t - 1 is judged (``stream.staleness``). A resumed run draws the same prompts,
because the checkpoint holds the state and the pass rates that are not yet part of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ropd_jax.data import curriculum, mixture
from ropd_jax.data.prompts import PromptSet
from ropd_jax.types import Prompt, UserError

LAG = 2  # steps between a pass rate and the first draw that uses it
Places = tuple[np.ndarray, ...]  # for a step and each source, the places of its prompts


class PromptStream:
    """The P prompts of each step.

    With one source, a new permutation for each epoch is drawn from (seed, epoch); an epoch has n // P steps and no
    prompt twice. The n % P prompts left over differ from epoch to epoch. With n = 7 and P = 3, for example::

        epoch 0   [4 0 6] [2 5 1]  3      steps 0 and 1; prompt 3 is left over
        epoch 1   [1 6 3] [0 2 4]  5      steps 2 and 3; prompt 5 is left over

    With several sources, each has its own epochs: one ends at the step that needs more prompts than it has left.

    Args:
        batch: P.
        shares: of the prompts by ``Prompt.source``, in the order of the sources; empty for one source.
        most: ``data.curriculum``; 0 for none.

    Raises:
        UserError: fewer prompts than a batch, or than a source's part of it.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt] | PromptSet,
        batch: int,
        seed: int,
        *,
        shares: Mapping[str, float] | None = None,
        most: float = 0.0,
    ):
        if not 1 <= batch <= len(prompts):
            raise UserError(
                f"{len(prompts)} training prompts, but {batch} per step; expected at least one batch: "
                "give more prompts or a smaller batch"
            )
        self._prompts, self._batch, self._seed, self._most = prompts, batch, seed, most
        self.steps_per_epoch = len(prompts) // batch  # of one source
        self.shares = dict(shares) if shares and len(shares) > 1 else {}
        self._parts = self._divided() if self.shares else [np.arange(len(prompts))]
        self._order: dict[int, tuple[int, np.ndarray]] = {}  # by source: an epoch and its permutation
        self._at = (0, [(0, 0)] * len(self._parts))  # a step, and by source its epoch and the prompts used of it
        self._next = 0  # the curriculum's next step
        parts = self._parts if most else []
        self._states = [curriculum.first_state(len(part), (seed, 6, s)) for s, part in enumerate(parts)]
        self._before: dict[int, list[curriculum.CurriculumState]] = {}  # states before each of the last steps was drawn
        self._drawn: dict[int, Places] = {}
        self._rates: dict[int, dict[str, float]] = {}  # of the last steps, by step and prompt id
        self._places: dict[str, tuple[int, int]] = {}

    @property
    def has_curriculum(self) -> bool:
        """Whether `learn` has an effect."""
        return bool(self._most)

    def _divided(self) -> list[np.ndarray]:
        """For each source, the places of its prompts."""
        found: dict[str, list[int]] = {name: [] for name in self.shares}
        for i, prompt in enumerate(self._prompts):
            found[prompt.source].append(i)
        for name, share in self.shares.items():
            most = int(np.ceil(self._batch * share - 1e-9))
            if len(found[name]) < most:
                raise UserError(
                    f"source {name!r} has {len(found[name])} training prompts, but provides up to {most} of the "
                    f"{self._batch} in a step; expected at least as many: give it more prompts or less weight"
                )
        return [np.asarray(places, np.int64) for places in found.values()]

    def batch(self, step: int, *, shard: int = 0, shards: int = 1) -> list[Prompt]:
        """The P prompts of step 0, 1, 2, ...

        With several hosts, host ``shard`` of ``shards`` gets every ``shards``-th prompt of the batch.
        """
        parts = self._by_curriculum(step) if self._most else self._by_epoch(step)
        places = np.concatenate([part[inside] for part, inside in zip(self._parts, parts, strict=True)])
        if self.shares:  # else every batch would start with the same source
            places = np.random.default_rng((self._seed, step, 2)).permutation(places)
        return [self._prompts[i] for i in places[shard::shards]]

    def spare(self, step: int, round: int, n: int, *, without: Collection[str] = ()) -> list[Prompt]:
        """At most ``n`` prompts that are not in ``without`` (ids), drawn from (seed, step, round).

        Shares of sources and the curriculum apply: the higher a prompt's share, the earlier it tends to come.
        """
        rng = np.random.default_rng((self._seed, step, round, 1))
        if self.shares or self._most:
            order = np.argsort(rng.exponential(size=len(self._prompts)) / self._weights(), kind="stable")
        else:
            order = rng.permutation(len(self._prompts))
        free = (self._prompts[i] for i in order)
        return list(itertools.islice((p for p in free if p.id not in without), n))

    # --- epochs

    def _counts(self, step: int) -> Sequence[int]:
        if not self.shares:
            return [self._batch]
        return mixture.step_counts(list(self.shares.values()), self._batch, self._seed, step).tolist()

    def _by_epoch(self, step: int) -> Places:
        at, used = self._at if self._at[0] <= step else (0, [(0, 0)] * len(self._parts))
        if not self.shares:  # a shortcut
            epoch, place = divmod(step, self.steps_per_epoch)
            at, used = step, [(epoch, place * self._batch)]
        while at < step:
            counts = self._counts(at)
            used = [self._room(s, *used[s], n) for s, n in enumerate(counts)]
            used = [(epoch, first + n) for (epoch, first), n in zip(used, counts, strict=True)]
            at += 1
        self._at = at, used
        places = []
        for s, n in enumerate(self._counts(step)):
            epoch, first = self._room(s, *used[s], n)
            places.append(self._permutation(s, epoch)[first : first + n])
        return tuple(places)

    def _room(self, source: int, epoch: int, used: int, n: int) -> tuple[int, int]:
        """(epoch, first place) of the next ``n`` prompts of a source."""
        return (epoch, used) if used + n <= len(self._parts[source]) else (epoch + 1, 0)

    def _permutation(self, source: int, epoch: int) -> np.ndarray:
        if self._order.get(source, (-1,))[0] != epoch:  # 15 ms for a million prompts
            key = (self._seed, epoch, 4, source) if self.shares else (self._seed, epoch)
            self._order[source] = epoch, np.random.default_rng(key).permutation(len(self._parts[source]))
        return self._order[source][1]

    # --- curriculum

    def _by_curriculum(self, step: int) -> Places:
        assert step in self._drawn or step >= self._next, f"step {step} is drawn after step {self._next - 1}"
        while self._next <= step:
            self._draw(self._next)
        return self._drawn[step]

    def _draw(self, step: int) -> None:
        self._before[step] = self._states
        known: list[dict[int, float]] = [{} for _ in self._parts]
        for prompt, rate in self._rates.get(step - LAG, {}).items():
            source, place = self._place_of(prompt)
            known[source][place] = rate
        learnt = [curriculum.learnt(state, rates) for state, rates in zip(self._states, known, strict=True)]
        counts, seed = self._counts(step), self._seed
        found = [
            curriculum.drawn(state, n, self._most, (seed, step, 3, s))
            for s, (state, n) in enumerate(zip(learnt, counts, strict=True))
        ]
        self._states, self._drawn[step] = [state for state, _ in found], tuple(places for _, places in found)
        self._next = step + 1
        for old in (self._drawn, self._before, self._rates):
            for s in [s for s in old if s < step - 2 * LAG]:
                del old[s]

    def learn(self, step: int, rates: Mapping[str, float]) -> None:
        """Takes the pass rates, 0 to 1, of the prompts that a step has judged, by prompt id."""
        if self._most:
            self._rates[step] = dict(rates)

    def _place_of(self, prompt_id: str) -> tuple[int, int]:
        if not self._places:
            for s, part in enumerate(self._parts):
                for place, i in enumerate(part):
                    self._places[self._prompts[i].id] = s, place
        return self._places[prompt_id]

    def _factors(self) -> list[np.ndarray]:
        most, counts = self._most, self._counts(max(self._next - 1, 0))
        return [
            curriculum.factors(state.rate_N, most, at_once=max(n, 1))
            for state, n in zip(self._states, counts, strict=True)
        ]

    def _weights(self) -> np.ndarray:
        """One weight per prompt, proportional to its frequency."""
        weights = np.ones(len(self._prompts))
        shares = list(self.shares.values()) or [1.0]
        known = self._factors() if self._most else [np.ones(len(part)) for part in self._parts]
        for share, part, factor_N in zip(shares, self._parts, known, strict=True):
            weights[part] = share / len(part) * factor_N
        return weights

    def metrics(self) -> dict[str, float | None]:
        """Current metrics of the curriculum; empty without one."""
        if not self._most:
            return {}
        rate_N = np.concatenate([state.rate_N for state in self._states])
        known_N, factor_N = ~np.isnan(rate_N), np.concatenate(self._factors())
        return {
            "curriculum/seen_frac": float(known_N.mean()),
            "curriculum/pass_rate": float(rate_N[known_N].mean()) if known_N.any() else None,
            "curriculum/factor_min": float(factor_N.min()),
            "curriculum/factor_max": float(factor_N.max()),
        }

    # --- checkpoints

    def state(self, done: int) -> dict[str, Any] | None:
        """The state for a checkpoint after ``done`` steps, as JSON; None without a curriculum."""
        if not self._most:
            return None
        while self._next < done:  # a step that came from a checkpoint and was not redrawn
            self._draw(self._next)
        states = self._before.get(done, self._states)
        rates = {str(s): dict(found) for s, found in self._rates.items() if done - LAG <= s < done}
        return {"step": done, "sources": [state.as_json() for state in states], "rates": rates}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Resume from `state`."""
        if not self._most or state is None:
            return
        self._next = state["step"]
        self._states = [curriculum.CurriculumState.from_json(one) for one in state["sources"]]
        self._rates = {int(step): dict(found) for step, found in state["rates"].items()}
        self._before, self._drawn = {}, {}
