"""Normalised layers phi(N(W z)): what they multiply the mean squared gradient by.

Infinite width. N divides by what W does to the length, so sigma_w drops out of every law here.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.theory import gauss


def layer_norm_factor(phi: Callable[[Array], Array]) -> Array:
    """`E phi'(z)² / E phi(z)²`, `()`, of layers phi(h), h being W z less its mean, of length 1.

    Derived: W multiplies the mean squared gradient by sigma_w² E phi'(h)², as in Schoenholz et al.
    2017, section 4, at the length 1 that Ba, Kiros and Hinton 2016 give to h; dividing W z by its
    deviation, which is sigma_w times the root of E phi², divides by sigma_w² E phi². 1 for relu.
    """
    moments, one = gauss.moments(phi), jnp.asarray(1.0)
    return moments.slope_square(one) / moments.square(one)


def batch_norm_factor(phi: Callable[[Array], Array], batch_size: ArrayLike) -> Array:
    """The factor of layers phi(y), y being W z over a batch, of mean 0 and mean square 1 over it.

    For a homogeneous phi, such as relu; nan for another one, and for batches below 4, where the
    mean is infinite. Yang, Pennington, Rao, Sohl-Dickstein and Schoenholz 2019 have its limits:
    (B - 2)/(B - 3) for the identity, pi/(pi - 1) for relu as the batch size B grows.

    Derived: the Gram matrix of a deep layer has one value on and one off its diagonal, so y/√B is
    uniform on the sphere of mean 0, and independent of |h|, for which E 1/|h|² is 1/(c (B - 3)),
    c = sigma_w² (E phi(y_1)² - E phi(y_1) phi(y_2)). The Jacobian of one unit is D times
    √B/|h| (I - y yᵀ/B) G, D = diag(phi'(y)) and G what takes the mean away; a gradient that has
    come through a layer is white but for its mean. With D y = phi(y) what is left is
    tr(G D G D) - (E phi(y_1)² - E phi(y_1) phi(y_2)) (B - 1)/B, at the correlation -1/(B - 1).
    """
    B = jnp.asarray(batch_size, float)
    moments, one = gauss.moments(phi), jnp.asarray(1.0)
    between = -1 / (B - 1)
    spread = moments.square(one) - moments.pair(one, between)
    slopes = moments.slope_square(one) * (1 - 1 / B) + moments.slope_pair(one, between) / B
    factor = B / (B - 3) * (slopes / spread - 1 / B)
    known = (B > 3) & (gauss.homogeneous(phi) is not None)
    return jnp.where(known, factor, jnp.nan)
