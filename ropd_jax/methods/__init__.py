"""ROPD and every baseline: what differs between them, and nothing else."""

from ropd_jax.methods.base import Held, Method, Notes, Pass, Tokens, load_method

__all__ = ["Held", "Method", "Notes", "Pass", "Tokens", "load_method"]
