"""ROPD and every baseline: what differs between them, and nothing else."""

from ropd_jax.methods.base import Method, Notes, Tokens, load_method

__all__ = ["Method", "Notes", "Tokens", "load_method"]
