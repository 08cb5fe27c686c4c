"""How alike tokens become, block by block, of any logits and skips: Post-LN blocks, wide.

A block is attention, then W_2 relu(W_1 x), with a norm behind each sum and one factor of the
identity. Giorlandino and Goldt 2026 (arXiv:2505.24333; the authors' code read) have it in the limit
of many tokens; with `attention.random_logits` it holds for any number of them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.models.activations import PHI
from gradlab.theory import attention, transformer

_STEP = 0.02  # of differences over the correlation


class Expansion(NamedTuple):
    """A block's law about correlations in front of it, `(num_places,)` each.

    Attributes:
        at: where it is expanded.
        value: the correlation behind the block.
        slope: its first derivative.
        curvature: its second.
        third: its third.
    """

    at: Array
    value: Array
    slope: Array
    curvature: Array
    third: Array


def by_block(
    skip: ArrayLike, start: ArrayLike, depth: int, num_tokens: int, rows: attention.Rows
) -> Array:
    """The correlation of two tokens behind each of so many blocks, from `start`, `(depth,)`."""
    is_attention = jnp.arange(2 * depth) % 2 == 0
    design = 0.0, 0.0, 1.0, 1.0, skip, 1.0
    seen = transformer.signal(PHI["relu"], design, is_attention, 1.0, start, num_tokens, rows)
    return 1 - seen.apart_after[1::2]


def expansion(skip: ArrayLike, at: Array, num_tokens: int, rows: attention.Rows) -> Expansion:
    """What a block makes of correlations near those `at`, to third order, by differences."""
    middle = jnp.clip(at, 2 * _STEP, 1 - 2 * _STEP)
    near = middle[None] + _STEP * jnp.arange(-2.0, 3.0)[:, None]
    found = jax.lax.map(lambda c: by_block(skip, c, 1, num_tokens, rows)[0], near.reshape(-1))
    a, b, value, d, e = found.reshape(near.shape)
    return Expansion(
        middle,
        value,
        (a - 8 * b + 8 * d - e) / (12 * _STEP),
        (b - 2 * value + d) / _STEP**2,
        (e - 2 * d + 2 * b - a) / (2 * _STEP**3),
    )


def predictions(
    sizes: Array, near: Array, start: float, depth: int, num_tokens: int, num_nodes: int
) -> tuple[Array, Array, Expansion]:
    """Of networks of (logits, skip) `(num_networks, 2)`: their laws, `(num_networks, depth)` each.

    Behind each block, of so many tokens and in the limit of many; and a block's about `near`.
    """

    def one(given: tuple[Array, Array]) -> tuple[Array, Array, Expansion]:
        (logits, skip), at = given
        exact, limit = attention.random_logits(logits, num_nodes), attention.many_tokens(logits)
        through = skip, start, depth, num_tokens
        return (
            by_block(*through, exact),
            by_block(*through, limit),
            expansion(skip, at, num_tokens, exact),
        )

    found: tuple[Array, Array, Expansion] = jax.lax.map(one, (sizes, near))
    return found


def merging(skip: ArrayLike) -> Array:
    """How many times smaller a block makes the squared differences of tokens that are nearly one.

    `1 + 1/skip²`, whatever the logits: a softmax of equal tokens is uniform, so that attention adds
    to what they share alone, and relu keeps small differences. Derived.
    """
    return 1 + 1 / jnp.square(jnp.asarray(skip, float))
