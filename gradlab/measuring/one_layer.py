"""What one drawn layer is and does: its entries, a state's length, the correlation of two."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.arithmetic import scaled
from gradlab.models import ensembles
from gradlab.models.activations import Phi


def norm_error(x: Array) -> Array:
    """The largest |mean| or |mean square - 1| of a row, `()`: 0 behind a norm, to rounding."""
    means = jnp.mean(x, axis=-1), jnp.mean(x * x, axis=-1) - 1
    return jnp.max(jnp.abs(jnp.stack(means)))


def step_error(layers: ensembles.Affine, phi: Phi, states: Array) -> Array:
    """How far states are off W phi(z) + b of those before them, and may be by rounding, `(2,)`.

    The largest of both; a sum of n products is off by n + 1 roundings of their sizes (Higham 2002,
    section 3.1), in either of two ways.

    Args:
        layers: W `(depth, width, width)` and b `(depth, width)`.
        phi: an activation.
        states: `(depth + 1, width)`, the input first.
    """
    terms, eps = layers.W * phi(states[:-1])[:, None], scaled.eps(states.dtype)
    off = states[1:] - jnp.sum(terms, axis=2) - layers.b
    size = jnp.sum(jnp.abs(terms), axis=2) + jnp.abs(layers.b)
    rounding = 2 * (states.shape[1] + 2) * eps * size
    return jnp.stack([jnp.max(jnp.abs(off)), jnp.max(rounding)])


def moved(
    key: Array,
    phi: Phi,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    width: int,
    lengths: Array,
    correlations: Array,
    q: Array,
    num_states: int,
) -> tuple[Array, Array, Array]:
    """Mean squares behind W phi(h) + b of states h, mean products of pairs, moments of W.

    The mean over all weights and states is that of infinite width, at any width. Many states go
    through one matrix: they see as many of its directions, each of which it stretches differently.

    Args:
        key: weights, biases and states, which are normal.
        phi: an activation.
        sigma_w: standard deviation of W √width.
        sigma_b: of the biases.
        width: number of neurons.
        lengths: `(num_lengths,)` variance of a state's entries.
        correlations: `(num_correlations,)` of the entries of a pair.
        q: their variance.
        num_states: of each kind, over which the means are taken.
    """
    key_layer, key_states = jax.random.split(key)
    made = (key_layer, 1, width, phi, sigma_w, sigma_b)
    layer = ensembles.random(*made, draw="gaussian", layer="preactivation")
    each = jax.vmap(jax.vmap(layer))
    first, second = jax.random.normal(key_states, (2, num_states, width))
    c = correlations[:, None, None]
    long = each(jnp.sqrt(lengths)[:, None, None] * first[None])
    one = each(jnp.sqrt(q) * first[None])
    other = each(jnp.sqrt(q) * (c * first[None] + jnp.sqrt((1 - c) * (1 + c)) * second[None]))
    return (
        jnp.mean(long**2, axis=(1, 2)),
        jnp.mean(one * other, axis=(1, 2)),
        ensembles.realised(layer.params.W / sigma_w),
    )
