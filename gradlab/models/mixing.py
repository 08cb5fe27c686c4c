"""Matrices that mix several residual streams: drawn freely, or made doubly stochastic by sweeps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def near_identity(key: Array, depth: int, num_streams: int, deviation: ArrayLike) -> Array:
    """`I + s G`, G of independent N(0, 1), `(depth, num_streams, num_streams)`."""
    G = jax.random.normal(key, (depth, num_streams, num_streams))
    return jnp.eye(num_streams)[None] + jnp.asarray(deviation) * G


def logits(key: Array, depth: int, num_streams: int, shared: ArrayLike, fresh: ArrayLike) -> Array:
    """`shared` N(0, 1) alike in all layers plus `fresh` N(0, 1) of each, `(depth, n, n)`."""
    key_shared, key_fresh = jax.random.split(key)
    size = num_streams, num_streams
    alike = jnp.asarray(shared) * jax.random.normal(key_shared, size)
    return alike[None] + jnp.asarray(fresh) * jax.random.normal(key_fresh, (depth, *size))


def sinkhorn(logits: Array, num_sweeps: int) -> Array:
    """`exp(logits)` with columns, then rows, divided by their sums, so many times, `(..., n, n)`.

    Sinkhorn and Knopp 1967; Xie et al. 2025, equation 9 (columns first). Rows sum to 1; what is
    missing of a doubly stochastic matrix after so many sweeps is missing in the columns.
    """

    def sweep(M: Array, _: None) -> tuple[Array, None]:
        M = M / jnp.sum(M, axis=-2, keepdims=True)
        return M / jnp.sum(M, axis=-1, keepdims=True), None

    start = jnp.exp(logits - jnp.max(logits, axis=(-2, -1), keepdims=True))
    return jax.lax.scan(sweep, start, None, length=num_sweeps)[0]
