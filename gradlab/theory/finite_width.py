"""What a finite width does to the log of a gradient.

The log of a fluctuating factor falls short of the log of its mean. For linear and relu layers the
mean log is known exactly (Hanin and Nica 2020; `products`); here it is computed layer by layer for
any activation, with the distribution of the layers' lengths. The weights and biases are Gaussian,
W_ij ~ N(0, sigma_w²/width). Derived here, on the assumption of mean field theory that a gradient
does not see its activations but along the state itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from gradlab.models.activations import Activation
from gradlab.theory import gauss, meanfield, residual

# Where lengths q are followed: in steps of the log, from where chi is that of q = 0, or from
# sigma_b², to so many times the largest length of infinite width.
_SMALLEST, _LARGEST, _NUM_LENGTHS = 1e-6, 20.0, 97

# Below this q averages are those of this q (`gauss`).
_NO_LENGTH = 1e-30

# A normal variable in seven places, exact for polynomials of degree 13.
_PLACES, _SHARES = np.polynomial.hermite_e.hermegauss(7)
_SHARES = _SHARES / _SHARES.sum()

# log t of an integral over t > 0 by the trapezoidal rule, which converges as exp(-10/step).
_LOG_T = np.linspace(-16.0, 34.0, 151)


class Growth(NamedTuple):
    """What each layer does to log |gradient| (nats) on its way back; each `(depth,)`.

    Attributes:
        infinite: the law of infinite width, half the log of the factor of the mean square.
        first: what the width adds to it, to first order in 1/width at least.
        second: the size of what is left out.
    """

    infinite: Array
    first: Array
    second: Array


def arriving(growth: Growth) -> Growth:
    """What has happened to log |gradient| when it arrives behind each layer: sums, `(depth,)`."""
    return jax.tree.map(lambda layers: jnp.cumsum(layers[::-1])[::-1] - layers, growth)


def plain(
    phi: Activation, q_1: ArrayLike, sigma_w: ArrayLike, sigma_b: ArrayLike, width: int, depth: int
) -> Growth:
    """The growth through layers phi(W z + b), the first of which has an h of mean square `q_1`.

    A layer multiplies the squared norm by |W^T D r|²/|r|², D = diag phi'(h), whose mean log is
    that of sigma_w²/n sum_i phi'(h_i)² g_i², where g_i is N(0, 1) and h_i N(0, q): `log_of_mean`.
    W^T D r along the state z is not free but known from h, and so is what a row keeps of it from
    layer to layer: its mean square there, e/n more than of a free row, adds terms in 1/n. A length
    q is a random number whose distribution is followed. Exact for linear and relu, where neither
    e nor any average depends on lengths.
    """
    weight, bias = jnp.asarray(sigma_w, float), jnp.asarray(sigma_b, float)
    q = meanfield.lengths(phi, q_1, weight, bias, depth)
    infinite = jnp.log(meanfield.chi(phi, q, weight)) / 2
    if gauss.homogeneous(phi) is not None:
        short = log_of_mean(phi, jnp.ones(()), width) / 2
        return Growth(infinite, jnp.full(depth, short), jnp.zeros(depth))
    lowest = jnp.maximum(bias**2, _SMALLEST)
    highest = jnp.maximum(_LARGEST * jnp.max(q), 2 * lowest)
    lengths = jnp.geomspace(lowest, highest, _NUM_LENGTHS)

    def given(q: Array) -> Array:
        log = jnp.log(meanfield.chi(phi, q, weight)) + log_of_mean(phi, q, width)
        return jnp.stack([log, _relative_variance(phi, q), *_along(phi, q, bias)])

    probability = _followed(phi, q[0], lengths, weight, bias, width, depth)
    log, variance, *kept = jnp.moveaxis(probability @ jax.vmap(given)(lengths), -1, 0)
    along = jax.lax.scan(_row_along, jnp.zeros(()), kept, reverse=True)[1]
    size = jnp.abs(along) / width
    second = (size**2 + size * variance / width) / 2
    return Growth(infinite, (log + along / width) / 2 - infinite, second)


def _row_along(e: Array, layer: list[Array]) -> tuple[Array, Array]:
    """What e is in front of a layer, given it behind, and what both do to n |W^T D r|²/|r|²."""
    new, kept, joint = layer
    before = new + kept * e
    return before, before + (joint - 1) * e


def mean_lengths(
    phi: Activation,
    q_1: ArrayLike,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    width: int,
    depth: int,
    excess: ArrayLike = 0.0,
) -> tuple[Array, Array]:
    """The mean q in each layer at infinite width, and what the width adds, `(depth,)` each.

    To first order in 1/width. The first q is `q_1` exactly, of an input of any direction; `excess`
    is the excess kurtosis of the weights, 0 of normal ones and -6/5 of uniform ones. Derived: with
    m(q) = E phi(√q z)², what is added to q moves the next one by m', and the variance v of q and
    the fourth cumulant k of h by (v + k/3) m''/2, since h² spreads as Edgeworth 1905 has it.
    """
    weight, bias = jnp.square(jnp.asarray(sigma_w, float)), jnp.square(jnp.asarray(sigma_b, float))
    first = jnp.asarray(q_1, float)

    # All that is known of a layer but q is over a power of q: lengths may vanish.
    def step(layer: Any, _: None) -> tuple[Any, tuple[Array, Array]]:
        q, added, variance, cumulant = layer
        at = jnp.maximum(q, _NO_LENGTH)
        mean = gauss.expect(lambda h: jnp.square(phi(h)), at, phi.kinks)

        def average(power: int, hermite: Callable[[Array], Array]) -> Array:
            def f(h: Array) -> Array:
                return (jnp.square(phi(h)) / mean) ** power * hermite(h / jnp.sqrt(at))

            return gauss.expect(f, at, phi.kinks)

        fourth = average(2, jnp.ones_like)
        slope = average(1, lambda z: z**2 - 1) / 2  # by parts, so are all derivatives
        curvature = average(1, lambda z: z**4 - 6 * z**2 + 3) / 4
        behind = weight * mean + bias
        share = weight * mean / behind
        moved = share * (slope * added + curvature * (variance / 2 + cumulant / 6))
        spread = share**2 * (slope**2 * variance + (fourth - 1) / width)
        return (behind, moved, spread, excess * share**2 * fourth / width), (q, q * added)

    start = first, jnp.zeros(()), jnp.zeros(()), 3 * excess * (1 - bias / first) ** 2 / width
    return jax.lax.scan(step, start, None, length=depth)[1]


def left_of_gradient(
    phi: Activation,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    excess: ArrayLike,
    width: int,
    depth: int,
) -> tuple[Array, Array, Array]:
    """What is left behind k layers phi(W z + b) of an input of mean square 1, `(depth,)` each.

    chi of layer k, `log |dL/dz_0| - log |dL/dz_k|` (nats), and the size of what that leaves out:
    weights that are not normal, of an `excess` kurtosis, move q by less than is added to it; and
    (w r)² of a column w spreads by 2 + excess sum r⁴, 6/n of half the units, which its mean of n
    halves in the log norm.
    """
    weight, bias = jnp.asarray(sigma_w, float), jnp.asarray(sigma_b, float)
    sizes = phi, weight**2 + bias**2, weight, bias, width, depth
    growth = plain(*sizes)
    q, added = mean_lengths(*sizes, excess)
    chi, moved = (meanfield.chi(phi, each, weight) for each in (q, q + added))
    columns = 1.5 * jnp.abs(jnp.asarray(excess, float)) / width**2
    beyond = growth.second + jnp.abs(jnp.log(moved / chi)) / 2 + columns
    return chi, jnp.cumsum(growth.infinite + growth.first), jnp.cumsum(beyond)


def log_of_mean(phi: Activation, q: Array, width: int) -> Array:
    """`E log S` (nats), S the mean over `width` of phi'(h_i)² g_i², over its mean, h_i ~ N(0, q).

    By Frullani's integral of (exp(-t) - E exp(-t S))/t, with E exp(-t S) the power `width` of one
    neuron's. Where all phi' are 0 there is no log: it is the mean over the other draws. Where the
    integral ends costs 4e-6 at width 1, 1e-6 to width 3, and less than 1e-7 from width 8 on.
    """
    mean = gauss.expect(lambda h: jnp.square(phi.dphi(h)), q, phi.kinks)

    def log_transform(log_t: Array) -> Array:
        def short(h: Array) -> Array:  # 1 less the transform of a neuron with phi'(h), chi² in g
            return -jnp.expm1(-jnp.log1p(2 * jnp.exp(log_t) * jnp.square(phi.dphi(h)) / unit) / 2)

        unit = mean * width
        return width * jnp.log1p(-jnp.minimum(gauss.expect(short, q, phi.kinks), 1 - 1e-7))

    log_t = jnp.asarray(_LOG_T, float)
    transform = jnp.exp(jax.vmap(log_transform)(log_t))
    off = transform[-1]  # the probability of S = 0
    alive = (transform - off) / (1 - off)
    return jnp.sum(jnp.exp(-jnp.exp(log_t)) - alive) * (log_t[1] - log_t[0])


def _along(phi: Activation, q: Array, sigma_b: Array) -> tuple[Array, ...]:
    """What a layer adds to e, the share of e that it keeps, and phi'² along the state.

    In front of a layer the row along z is sum_i phi'(h_i) r_i (h_i - b_i)/|z|, of which h_i knows
    the share 1 - sigma_b²/q; r along phi(h) comes through as a number, and all of its rest as
    noise. phi'² is weighed by phi², over its mean.
    """
    slope = _slope_square(phi)
    average = partial(gauss.expect, q=q, kinks=phi.kinks)
    known = 1 - jnp.minimum(sigma_b**2 / q, 1)
    square, mean = average(lambda h: jnp.square(phi(h))), average(slope)
    new = known * (average(lambda h: jnp.square(h) * slope(h)) / (q * mean) - 1)
    through = average(lambda h: phi.dphi(h) * h * phi(h)) ** 2 / (q * square * mean)
    joint = average(lambda h: jnp.square(phi(h)) * slope(h)) / (square * mean)
    return new, known * through, joint


def _relative_variance(phi: Activation, q: Array) -> Array:
    """That of phi'(h)² g², g being N(0, 1): three kurtoses of phi' less 1."""
    slope = _slope_square(phi)
    fourth = gauss.expect(lambda h: jnp.square(slope(h)), q, phi.kinks)
    return 3 * fourth / jnp.square(gauss.expect(slope, q, phi.kinks)) - 1


def _slope_square(phi: Activation) -> Any:
    return lambda h: jnp.square(phi.dphi(h))


def _followed(
    phi: Activation,
    q_1: Array,
    lengths: Array,
    sigma_w: Array,
    sigma_b: Array,
    width: int,
    depth: int,
) -> Array:
    """The probability of each of `lengths` in every layer, `(depth, num_lengths)`.

    Given q, the next one is sigma_w² m + sigma_b², m the mean over `width` of phi(h_i)². Its
    distribution is taken for gamma's of the same mean and variance, which it is for a linear layer.
    """

    def next_ones(q: Array) -> Array:
        mean = gauss.expect(lambda h: jnp.square(phi(h)), q, phi.kinks)
        square = gauss.expect(lambda h: jnp.square(jnp.square(phi(h))), q, phi.kinks)
        ninth = (square / mean**2 - 1) / (9 * width)
        # A gamma variable is nearly the cube of a normal one: Wilson and Hilferty 1931.
        cube_root = 1 - ninth + jnp.sqrt(ninth) * jnp.asarray(_PLACES, float)
        return sigma_w**2 * mean * jnp.maximum(cube_root, 0.0) ** 3 + sigma_b**2

    def step(probability: Array, _: None) -> tuple[Array, Array]:
        return probability @ moves, probability

    shares = jax.vmap(jax.vmap(lambda q: _shared(q, lengths)))(jax.vmap(next_ones)(lengths))
    moves = jnp.einsum("qpn,p->qn", shares, jnp.asarray(_SHARES, float))
    return jax.lax.scan(step, _shared(q_1, lengths), None, length=depth)[1]


def _shared(q: Array, lengths: Array) -> Array:
    """Shares of a length q among `lengths`, `(num_lengths,)`: Lagrange's of degree 3 in log q.

    They keep the mean, the variance and the skewness of log q, so that no step of the grid spreads
    what is followed.
    """
    step = jnp.log(lengths[1] / lengths[0])
    at = jnp.log(jnp.clip(q, lengths[0], lengths[-1]) / lengths[0]) / step
    left = jnp.clip(jnp.floor(at).astype(int) - 1, 0, lengths.size - 4)
    x = at - left
    shares = jnp.stack(
        [
            -(x - 1) * (x - 2) * (x - 3) / 6,
            x * (x - 2) * (x - 3) / 2,
            -x * (x - 1) * (x - 3) / 2,
            x * (x - 1) * (x - 2) / 6,
        ]
    )
    return jnp.zeros(lengths.size).at[left + jnp.arange(4)].add(shares)


def residual_branch(
    phi: Activation,
    mean_square: ArrayLike,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    factor: ArrayLike,
    width: int,
    depth: int,
) -> Growth:
    """The growth through layers z + factor phi(W z + b), from a state of the mean square given.

    |r + W^T D r|² is a noncentral chi² of relative variance (4 chi + chi² v)/(1 + chi)² over the
    width, v being that of phi'(h)² g². For a linear branch that is all; of others it leaves out
    what is known along the state, and the lengths, so that it is only the size of the first order.

    nan unless phi' is even, as that of an odd phi and of the logistic is: else a gradient turns
    towards the state, which grows along one direction, layer by layer.
    """
    q = residual.lengths(phi, mean_square, sigma_w, sigma_b, factor, depth)
    chi = residual.gradient_factor(phi, q, sigma_w, factor) - 1
    spread = jax.vmap(lambda q: _relative_variance(phi, q))(q)
    variance = (4 * chi + chi**2 * spread) / (width * (1 + chi) ** 2)
    h = jnp.linspace(0.0, 8.0, 17)
    known = jnp.where(jnp.allclose(phi.dphi(-h), phi.dphi(h)), 1.0, jnp.nan)
    return Growth(known * jnp.log1p(chi) / 2, -known * variance / 4, known * variance**2 / 2)
