"""Networks of infinite width with dropout: how alike two inputs stay, and for how many layers.

Schoenholz, Gilmer, Ganguli and Sohl-Dickstein 2017, section 5 (not read; derived here): a layer is
z = phi(h), h = W (m z)/keep + b, each mask entry m being 1 with the probability `keep`, else 0.
Masks of two inputs are independent, so that lengths grow by 1/keep and products do not: not even an
input is like itself, and where a network without dropout is critical there is no critical point.
Lengths settle at `meanfield.q_star` of weights that are larger by 1/√keep.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.models.activations import Phi
from gradlab.theory import gauss, meanfield

# Halvings while the root is nearly double, then digits that double.
_NUM_STEPS = 40


def apart(phi: Phi, q: ArrayLike, epsilon: ArrayLike, sigma_w: ArrayLike, keep: ArrayLike) -> Array:
    """1 less the correlation of two inputs behind a layer, from `epsilon`, 1 less it in front.

    At the length q = q*: `(sigma_w²/q) [(1 - keep)/keep E phi² + E (phi(u1) - phi(u2))²/2]`,
    without cancellation. It is above 0 at epsilon = 0 for any keep below 1.
    """
    one = _one(phi)
    moved: Array = jnp.vectorize(one)(*(jnp.asarray(x, float) for x in (q, epsilon, sigma_w, keep)))
    return moved


def apart_star(phi: Phi, q: ArrayLike, sigma_w: ArrayLike, keep: ArrayLike) -> Array:
    """Its fixed point, 1 - c*, where q is q*; at keep = 1 that of no dropout, but for the edge.

    `apart` is concave in epsilon (C is convex: Poole et al. 2016), above epsilon at 0 and not above
    it at 1: Newton's iteration from 1 falls to the one root, and beyond it by rounding alone.
    On the edge itself, without dropout, the root is double, and some digits are left of 0.
    """
    one, moments = _one(phi), gauss.moments(phi)

    def root(q: Array, sigma_w: Array, keep: Array) -> Array:
        def step(epsilon: Array, _: None) -> tuple[Array, None]:
            # The slope of a gap in epsilon is q E phi'(u1) phi'(u2).
            slope = jnp.square(sigma_w) * moments.slope_pair(q, 1 - epsilon)
            lower = epsilon - (one(q, epsilon, sigma_w, keep) - epsilon) / (slope - 1)
            return jnp.maximum(lower, 0.0), None

        return jax.lax.scan(step, jnp.ones_like(q), None, length=_NUM_STEPS)[0]

    found: Array = jnp.vectorize(root)(*(jnp.asarray(x, float) for x in (q, sigma_w, keep)))
    return found


def depth_scale(phi: Phi, q: ArrayLike, epsilon: ArrayLike, sigma_w: ArrayLike) -> Array:
    """`-1/log C'(c*)`, `C' = sigma_w² E phi'(u1) phi'(u2)`: layers in which c - c* falls by e.

    At c* = 1 - epsilon. Finite at any keep below 1, on the edge too: with d = (1 - keep) E phi²
    sigma_w²/(q keep) it goes as 1/√(2 C'' d) of a smooth phi, and as d^(-1/3) of one with a kink.
    """
    correlation = 1 - jnp.asarray(epsilon, float)
    slope: Array = meanfield.chi_c(phi, correlation, q, sigma_w)
    return -1 / jnp.log(slope)


def _one(phi: Phi) -> Callable[..., Array]:
    moments = gauss.moments(phi)

    def one(q: Array, epsilon: Array, sigma_w: Array, keep: Array) -> Array:
        lost = (1 - keep) / keep * moments.square(q)
        return jnp.square(sigma_w) / q * (lost + moments.gap(q, epsilon))

    return one
