"""Rubric-based on-policy distillation (ROPD, arXiv 2605.07396) in JAX. Start reading at ``ropd_jax.train``."""

__version__ = "0.1.0"
