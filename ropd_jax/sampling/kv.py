"""What the sampler's cache is made of; how it is used: `sampling.pages`."""

from __future__ import annotations

from typing import NamedTuple

import jax

NOTHING = -1e30  # finite: the maximum of no scores


class Stored(NamedTuple):
    """Keys or values in the cache's dtype; int8 carries a float32 scale for each head and slot, else None."""

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
