"""What one drawn layer does to the length of a state, and to the correlation of two."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.models import ensembles
from gradlab.models.activations import Phi


def moved(
    key: Array,
    phi: Phi,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    width: int,
    lengths: Array,
    correlations: Array,
    q: Array,
) -> tuple[Array, Array]:
    """Mean squares behind W phi(h) + b, `(num_lengths,)`, and mean products, `(num_correlations,)`.

    The mean over all weights and states is that of infinite width, at any width.

    Args:
        key: weights, biases and states, which are normal.
        phi: an activation.
        sigma_w: standard deviation of W √width.
        sigma_b: of the biases.
        width: number of neurons.
        lengths: `(num_lengths,)` variance of a state's entries.
        correlations: `(num_correlations,)` of the entries of a pair.
        q: their variance.
    """
    key_layer, key_states = jax.random.split(key)
    made = (key_layer, 1, width, phi, sigma_w, sigma_b)
    layer = jax.vmap(ensembles.random(*made, draw="gaussian", layer="preactivation"))
    first, second = jax.random.normal(key_states, (2, 1, width))
    c = correlations[:, None]
    long = layer(jnp.sqrt(lengths)[:, None] * first)
    one = layer(jnp.sqrt(q) * first)
    other = layer(jnp.sqrt(q) * (c * first + jnp.sqrt((1 - c) * (1 + c)) * second))
    return jnp.mean(long**2, axis=1), jnp.mean(one * other, axis=1)
