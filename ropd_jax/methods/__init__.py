"""ROPD and every baseline: what differs between them, and nothing else."""

from ropd_jax.methods.base import Divergence, ExtraMemory, ExtraProgram, Extras, Method, Tokens
from ropd_jax.methods.check import check_judgement
from ropd_jax.methods.load import load_method, method_names

__all__ = [
    "Divergence",
    "ExtraMemory",
    "ExtraProgram",
    "Extras",
    "Method",
    "Tokens",
    "check_judgement",
    "load_method",
    "method_names",
]
