"""Building blocks of the sampler's cache; `sampling.pages` uses them."""

from __future__ import annotations

from typing import NamedTuple

import jax

NOTHING = -1e30  # finite: the maximum of no scores


class Stored(NamedTuple):
    """Keys or values in the cache's dtype; int8 has a float32 scale for each head and slot, else None."""

    x: jax.Array
    scale: jax.Array | None


class KV(NamedTuple):
    """Keys and values of one layer."""

    k: Stored
    v: Stored


class Pages(NamedTuple):
    """Keys and values of one layer as the kernel reads them, both [M, K, S, H]; see `paged_attention.attend_paged`."""

    k: Stored
    v: Stored


class View(NamedTuple):
    """The slots that each row sees: all int32, constant within a chunk. `sampling.pages` has an example.

    Attributes:
        row_PG: the row of each rollout of each prompt slot; any row if the rollout has none.
        place_B: the index of a row in the flat ``row_PG``: rollout 2 of slot 1 with G = 4 is 6.
        prompt_len_P: cached tokens of each prompt (all but its last).
        owner_M: the row of a page; any row if the page is free.
        first_M: the position of slot 0 of a page in the sequence of its row; -1 if the page is free.
        table_BD: the pages of a row in order, padded with any page.
        depth_B: the number of pages of a row.
    """

    row_PG: jax.Array
    place_B: jax.Array
    prompt_len_P: jax.Array
    owner_M: jax.Array
    first_M: jax.Array
    table_BD: jax.Array
    depth_B: jax.Array


def rows(x: jax.Array, at: jax.Array) -> jax.Array:
    """The entries ``at`` along the first axis; all indices exist."""
    return x.at[at].get(mode="promise_in_bounds")
