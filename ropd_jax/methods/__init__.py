"""ROPD and every baseline: what differs between them, and nothing else."""

from ropd_jax.methods.base import Method, load_method

__all__ = ["Method", "load_method"]
