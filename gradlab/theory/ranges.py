"""The depth at which a product of Gaussian matrices leaves the range of a float format.

Matrices have independent entries N(0, sigma_w²/width); `log |P_k|` is the Frobenius norm's, nats.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaln
from jax.typing import ArrayLike

from gradlab.theory import products, scalar

_LN2 = math.log(2)


def mean_end(sigma_w: ArrayLike, width: int, name: str) -> Array:
    """`log(end)/exponent`, a depth: where the mean log norm leaves a format's normal numbers.

    By Newman's largest exponent.
    """
    format_ = scalar.FORMATS[name]
    unit = products.lyapunov_exponents(width, 1 / width)[0]
    rate = unit + jnp.log(jnp.asarray(sigma_w, float))
    return _LN2 * jnp.where(rate < 0, format_.log2_smallest_normal, format_.log2_overflow) / rate


def outside(path: Array, row: Array, width: int, name: str, chance: float) -> tuple[Array, Array]:
    """Where `log |P_k| = path` may be out of a format's range, and where it surely is, `(depth,)`.

    Args:
        path: the exact log norm behind every layer, `(depth,)`.
        row: the log norm of each factor's longest row, `(depth,)`.
        width: of the matrices.
        name: of the format.
        chance: that a product is turned away from its gradient further than is allowed for.
    """
    smallest, overflow = _inside(width, name)
    normal = _LN2 * scalar.FORMATS[name].log2_smallest_normal
    # No partial sum of an entry is above a row's norm times a column's.
    before = jnp.concatenate([jnp.array([math.log(width) / 2]), path[:-1]])
    over = before + row >= _LN2 * scalar.FORMATS[name].log2_overflow, path >= overflow
    # A flushed product of entries is off by the smallest normal number, a layer's product by width
    # (width + 1) of them in norm; what earlier layers lost has shrunk since. That is √2 of what is
    # left, 1/(1 - 1/√2), or more where the product is turned away from the direction v that the
    # layers to come keep: |<u, v>| is below x with a probability of less than x √(2 width/π), u
    # being uniform (its density at 0 is the largest).
    rate = jnp.maximum(-(path[-1] - path[0]) / path.size, 1 / path.size)
    turned = math.log(math.sqrt(2 * width / math.pi) / chance)
    lost = math.log(3.5 * width * (width + 1)) - jnp.log(-jnp.expm1(-rate)) + turned
    under = (path <= normal + lost) & (path[-1] < path[0]), path <= smallest
    return over[0] | under[0], over[1] | under[1]


def sure_end(sigma_w: ArrayLike, width: int, name: str, chance: float) -> tuple[Array, Array]:
    """The first and the last layer at which `outside` may first say surely, but for a `chance`.

    Derived, after Chernoff: of one vector v, `E |P_k v|^s = |v|^s m(s)^k` with
    `m(s) = (2 sigma_w²/n)^(s/2) Gamma((n + s)/2)/Gamma(n/2)`, s > -n, since layers are independent
    and blind to directions. The norm is at least that of a column, and its power s > 0 at most
    `n^max(s/2, 1)` times the columns' mean one (Jensen). Doob's inequality bounds all layers up to
    k at once, for any s; the best is taken. The last is infinite where the norm need not leave.
    """
    smallest, overflow = _inside(width, name)
    up, down = jnp.geomspace(1e-4, 1e4, 800), -jnp.geomspace(1e-4, 0.999 * width, 800)
    columns = jnp.maximum(up / 2, 1) * math.log(width)
    log_odds = math.log(3 / chance)  # that it leaves early above or below, or late
    # Each a power s, and what s times the log norm's growth in k layers must be above or below.
    above, below = (up, up * overflow - columns), (down, down * smallest)
    rises, falls = (down, down * overflow), (up, up * smallest - columns)

    def of(log_sigma: Array) -> tuple[Array, Array]:
        def ratio(power: Array, total: Array) -> tuple[Array, Array]:
            a = power * log_sigma + power / 2 * math.log(2 / width)
            return a + gammaln((width + power) / 2) - gammaln(width / 2), total - log_odds

        def kept(a: Array, left: Array) -> Array:
            return jnp.max(jnp.where(a > 0, left / a, jnp.where(left > 0, jnp.inf, 0.0)))

        def gone(a: Array, left: Array) -> Array:
            return jnp.min(jnp.where(a < 0, left / a, jnp.inf))

        first = jnp.minimum(kept(*ratio(*above)), kept(*ratio(*below)))
        last = jnp.minimum(gone(*ratio(*rises)), gone(*ratio(*falls)))
        return jnp.floor(jnp.maximum(first, 0.0)) + 1, jnp.ceil(last)

    return jnp.vectorize(of)(jnp.log(jnp.asarray(sigma_w, float)))


def _inside(width: int, name: str) -> tuple[float, float]:
    """The log norms between which an entry may still be in the range."""
    # An entry is at least the norm over the width, and by rounding, if no factor of two is lost,
    # half of that.
    format_ = scalar.FORMATS[name]
    smallest = _LN2 * (format_.log2_smallest - 1)
    return smallest, _LN2 * (format_.log2_overflow + 1) + math.log(width)
