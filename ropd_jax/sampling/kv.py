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
    """Keys and values of one layer as the kernel reads them, both [M, K, S, H]; see `pages.attend_paged`."""

    k: Stored
    v: Stored
