"""The wall in the loss of a recurrent neuron: where its gradient has a closed form.

One neuron, x_t = w phi(x_{t-1}) + b, and an error on its state after many steps: Pascanu, Mikolov
and Bengio 2013, figure 6. At a fixed point of the neuron every step has the same derivative.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

Phi = Callable[[Array], Array]


def bias_of_fixed_point(phi: Phi, w: ArrayLike, x: ArrayLike) -> Array:
    """The b at which x is a fixed point, `x - w phi(x)`."""
    return jnp.asarray(x - w * phi(jnp.asarray(x)))


def gradient_norm(phi: Phi, w: ArrayLike, x: ArrayLike, num_steps: int, target: ArrayLike) -> Array:
    """The length of the gradient over (w, b) of `(phi(x_T) - target)²` where x is a fixed point.

    With m = w phi'(x): dx_T/db = (m^T - 1)/(m - 1) and dx_T/dw is phi(x) times that, a geometric
    sum of what each step contributes. m = 1 is the edge, where the sum is T.
    """
    y, slope = phi(jnp.asarray(x)), jax.grad(phi)(jnp.asarray(x, float))
    m = jnp.asarray(w) * slope
    at_edge = jnp.abs(m - 1) < 1e-9
    growth = jnp.where(at_edge, num_steps, (m**num_steps - 1) / jnp.where(at_edge, 1, m - 1))
    return 2 * jnp.abs(y - target) * slope * jnp.sqrt(1 + y**2) * growth
