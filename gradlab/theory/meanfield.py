"""Networks of infinite width: lengths, angles and gradients from layer to layer.

Poole, Lahiri, Raghu, Sohl-Dickstein and Ganguli 2016; Schoenholz, Gilmer, Ganguli and
Sohl-Dickstein 2017. Layers are z = phi(h), h = W z + b, W_ij ~ N(0, sigma_w²/width),
b ~ N(0, sigma_b²); q is the mean over neurons of h². Every function takes phi first and then
numbers or arrays, which broadcast, and is differentiable in sigma_w and sigma_b. Fixed points
are found as roots, not by iteration, which stalls at criticality.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.models.activations import Phi
from gradlab.theory import gauss

_Function = Callable[[Array], Array]

DEPTH_SCALES = 6.0
"""Schoenholz et al. 2017, figure 5: a network trains where its depth is at most six depth scales
1/|log chi_1| of the mean squared gradient."""

# Where fixed points are looked for: below is 0, above is inf.
_DECADES = (-25, 10)
_PER_DECADE = 3


def _elementwise(f: Callable[..., Array]) -> Callable[..., Any]:
    """`f(phi, *numbers)`, broadcast over the numbers, which become floating point."""

    def broadcast(phi: Phi, *numbers: ArrayLike) -> Any:
        floats = [jnp.asarray(number, float) for number in numbers]
        return jnp.vectorize(partial(f, phi))(*floats)

    broadcast.__name__, broadcast.__doc__ = f.__name__, f.__doc__
    return broadcast


# ---- lengths


@_elementwise
def V(phi: Phi, q: Array, sigma_w: Array, sigma_b: Array) -> Array:
    """`sigma_w² E[phi(√q z)²] + sigma_b²`: the next layer's q. Poole et al. 2016, section 2."""
    return sigma_w**2 * gauss.moments(phi).square(q) + sigma_b**2


@_elementwise
def V_slope(phi: Phi, q: Array, sigma_w: Array, sigma_b: Array) -> Array:
    """`dV/dq`, by Stein's lemma chi_1 + sigma_w² E[phi'' phi]: Schoenholz 2017, section 3."""
    return _slope(lambda q: V(phi, q, sigma_w, sigma_b), jnp.maximum(q, 1e-25))


@_elementwise
def q_star(phi: Phi, sigma_w: Array, sigma_b: Array) -> Array:
    """The fixed point of V that iteration from q = 1 leads to: V(q*) = q*.

    inf where lengths grow for ever (relu at sigma_w² > 2); nan where every q is a fixed point
    (relu at sigma_w² = 2, sigma_b = 0), so that q* is the input's.
    """
    slope = gauss.homogeneous(phi)
    if slope is not None:
        return _q_star_of_line(sigma_w**2 * slope, sigma_b**2)
    return _stable_root(lambda q: V(phi, q, sigma_w, sigma_b) - q)


@_elementwise
def chi(phi: Phi, q: Array, sigma_w: Array) -> Array:
    """`sigma_w² E[phi'(√q z)²]`: a layer's factor of the mean squared gradient where h² is q."""
    return sigma_w**2 * gauss.moments(phi).slope_square(q)


@_elementwise
def chi_1(phi: Phi, sigma_w: Array, sigma_b: Array) -> Array:
    """`sigma_w² E[phi'(√q* z)²]`: Poole et al. 2016, section 3. Critical at 1.

    The mean squared gradient of a layer is chi_1 times that of the next: Schoenholz et al. 2017,
    section 4. Where q* is inf or nan, the limit where E[phi'²] has one (relu), else nan.
    """
    return chi(phi, q_star(phi, sigma_w, sigma_b), sigma_w)


@_elementwise
def input_square(phi: Phi, sigma_w: Array, sigma_b: Array) -> Array:
    """`(q* - sigma_b²)/sigma_w²`: the mean square of an input whose first layer is at q* already.

    1 where there is no q*: there the activation is homogeneous, and chi_1 the same at every q.
    """
    square = (q_star(phi, sigma_w, sigma_b) - sigma_b**2) / sigma_w**2
    square = jnp.where(jnp.isfinite(square) & (square > 0), square, 1.0)
    return _unless_nan(sigma_w + sigma_b, square)


# ---- angles


@_elementwise
def C(phi: Phi, c: Array, q: Array, sigma_w: Array, sigma_b: Array) -> Array:
    """The next layer's correlation, `(sigma_w² E[phi(u1) phi(u2)] + sigma_b²)/V(q)`.

    Poole et al. 2016, section 3. Both inputs have length q, which is q* in the cited theory.
    """
    pair = sigma_w**2 * gauss.moments(phi).pair(q, c) + sigma_b**2
    return pair / V(phi, q, sigma_w, sigma_b)


@_elementwise
def c_star(phi: Phi, sigma_w: Array, sigma_b: Array) -> Array:
    """The stable fixed point of C at q*: 1 while chi_1 <= 1, below 1 in chaos.

    Poole et al. 2016, section 3; nan where q* is not finite and chi_1 > 1.
    """
    return 1 - _epsilon_star(phi, q_star(phi, sigma_w, sigma_b), sigma_w)


@_elementwise
def chi_c(phi: Phi, c: Array, q: Array, sigma_w: Array) -> Array:
    """`sigma_w² E[phi'(u1) phi'(u2)]`, which is C'(c) at q*: Schoenholz et al. 2017, section 3."""
    return sigma_w**2 * gauss.moments(phi).slope_pair(q, c)


# ---- depth scales, in layers


@_elementwise
def xi_q(phi: Phi, sigma_w: Array, sigma_b: Array) -> Array:
    """`-1/log dV/dq` at q*: layers in which q - q* falls by e.

    Schoenholz et al. 2017, section 3.
    """
    q = q_star(phi, sigma_w, sigma_b)
    return _layers_per_e(V_slope(phi, q, sigma_w, sigma_b))


@_elementwise
def xi_c(phi: Phi, sigma_w: Array, sigma_b: Array) -> Array:
    """`-1/log C'(c*)`: layers in which c - c* falls by e.

    Schoenholz et al. 2017, section 3.
    """
    return xi_c_at(phi, q_star(phi, sigma_w, sigma_b), sigma_w)


@_elementwise
def xi_c_at(phi: Phi, q: Array, sigma_w: Array) -> Array:
    """`xi_c` where q* is known already, `-1/log C'(c*)`: a root less to find, and to compile.

    Schoenholz et al. 2017, section 3.
    """
    c = 1 - _epsilon_star(phi, q, sigma_w)
    return _layers_per_e(chi_c(phi, c, q, sigma_w))


@_elementwise
def xi_grad(phi: Phi, sigma_w: Array, sigma_b: Array) -> Array:
    """`1/|log chi_1|`: layers in which the mean squared gradient changes by e.

    Schoenholz et al. 2017, section 4.
    """
    return 1 / jnp.abs(jnp.log(chi_1(phi, sigma_w, sigma_b)))


# ---- the edge of chaos


@_elementwise
def q_critical(phi: Phi, sigma_b: Array) -> Array:
    """The q* at which chi_1 = 1 for this sigma_b; nan where there is none.

    0 for tanh, erf and sin at sigma_b = 0; a homogeneous phi, such as relu, is critical at any q
    if sigma_b = 0: then nan, like its q*.
    """
    if gauss.homogeneous(phi) is not None:
        return jnp.full_like(sigma_b, jnp.nan)
    moments = gauss.moments(phi)

    def excess(q: Array) -> Array:
        return q - moments.square(q) / moments.slope_square(q) - sigma_b**2

    return _first_rise(excess)


@_elementwise
def sigma_w_critical(phi: Phi, sigma_b: Array) -> Array:
    """The sigma_w at which chi_1 = 1 for this sigma_b, `1/√E[phi'²]`; nan where there is none."""
    slope = gauss.homogeneous(phi)
    if slope is not None:
        return jnp.where(sigma_b == 0, 1 / jnp.sqrt(jnp.asarray(slope, float)), jnp.nan)
    return 1 / jnp.sqrt(gauss.moments(phi).slope_square(q_critical(phi, sigma_b)))


# ---- layer by layer


def lengths(phi: Phi, q_1: ArrayLike, sigma_w: ArrayLike, sigma_b: ArrayLike, depth: int) -> Array:
    """The length q in each of `depth` layers, `(depth,)`, the first being `q_1`."""
    first = jnp.asarray(q_1, float)

    def step(q: Array, _: None) -> tuple[Array, Array]:
        return V(phi, q, sigma_w, sigma_b), q

    return jax.lax.scan(step, first, None, length=depth)[1]


def correlations(
    phi: Phi, c_1: ArrayLike, q: ArrayLike, sigma_w: ArrayLike, sigma_b: ArrayLike, depth: int
) -> Array:
    """The correlation c in each of `depth` layers, `(depth,)`, from `c_1` on, at constant q."""
    first = jnp.asarray(c_1, float)

    def step(c: Array, _: None) -> tuple[Array, Array]:
        return C(phi, c, q, sigma_w, sigma_b), c

    return jax.lax.scan(step, first, None, length=depth)[1]


# ---- roots


def _q_star_of_line(slope: Array, intercept: Array) -> Array:
    """The fixed point of `slope q + intercept` that iteration from 1 leads to."""
    falls = slope < 1 - _rounding(slope)
    root = jnp.where(falls, intercept / jnp.where(falls, 1 - slope, 1), jnp.inf)
    held = ~falls & ~_above_one(slope) & (intercept == 0)
    return _unless_nan(slope + intercept, jnp.where(held, jnp.nan, root))


def _stable_root(f: _Function) -> Array:
    """The zero of f, q > 0, to which the sign of f leads from q = 1; 0 or inf beyond the grid."""
    grid = _grid()
    values = jax.vmap(f)(grid)
    positive = values > _rounding(grid) * grid
    start = _DECADES[0] * -_PER_DECADE  # the index of q = 1
    index = jnp.arange(grid.shape[0])
    up = jnp.min(jnp.where(~positive & (index >= start), index, grid.shape[0]))
    down = jnp.max(jnp.where(positive & (index <= start), index, -1)) + 1
    right = jnp.where(positive[start], up, down)
    return _unless_nan(values[start], _bisected(f, right, rising=False))


def _first_rise(f: _Function) -> Array:
    """The smallest zero of f, q > 0, at which f rises; 0 if f is nowhere below 0 before, else nan.

    Where f is as small as its own rounding (erf and sin: f ~ q³ beside terms of q) its sign says
    nothing: only values beyond that count, and a zero that it may move by a tenth is not known.
    """
    grid = _grid()
    num, values = grid.shape[0], jax.vmap(f)(grid)
    index, noise = jnp.arange(num), _rounding(grid) * grid
    first_above = jnp.min(jnp.where(values > noise, index, num))
    last_below = jnp.max(jnp.where((values < -noise) & (index < first_above), index, -1))
    right = jnp.min(jnp.where((values > 0) & (index > last_below), index, num))
    root = _bisected(f, jnp.where(last_below < 0, 0, right), rising=True)
    # A rounding of f moves its zero by as much over its slope.
    is_known = (root == 0) | (_rounding(root) < 0.1 * _slope(f, root))
    return jnp.where((first_above < num) & jnp.isfinite(root) & is_known, root, jnp.nan)


def _grid() -> Array:
    low, high = _DECADES
    return 10.0 ** (jnp.arange((high - low) * _PER_DECADE + 1) / _PER_DECADE + low)


def _bisected(f: _Function, right: Array, rising: bool) -> Array:
    """The zero of f between the grid points `right - 1` and `right`; 0 or inf off the grid."""
    grid = _grid()
    num = grid.shape[0]
    inside = (right > 0) & (right < num)
    k = jnp.clip(right, 1, num - 1)

    def halve(bracket: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        low, high = bracket
        middle = jnp.sqrt(low * high)
        before = (f(middle) > 0) != rising
        return (jnp.where(before, middle, low), jnp.where(before, high, middle)), None

    (low, high), _ = jax.lax.scan(halve, (grid[k - 1], grid[k]), None, length=26)
    root = _polished(f, jax.lax.stop_gradient(jnp.sqrt(low * high)))
    return jnp.where(inside, root, jnp.where(right <= 0, 0.0, jnp.inf))


def _polished(f: _Function, x: Array) -> Array:
    """A zero of f from one right to half its digits, and with it its first derivatives."""
    return _repeated(lambda x: x - f(x) / _slope(f, x), x, 3)


def _repeated(f: _Function, x: Array, num_times: int) -> Array:
    """`f(f(...f(x)))`, compiled once."""
    return jax.lax.scan(lambda x, _: (f(x), None), x, None, length=num_times)[0]


def _slope(f: _Function, x: Array) -> Array:
    slope: Array = jax.jvp(f, (x,), (jnp.ones_like(x),))[1]
    return slope


def _epsilon_star(phi: Phi, q: Array, sigma_w: Array) -> Array:
    """`1 - c*`, accurate however small: (1 - C)/(1 - c) - 1 falls, convex, with 1 - c."""
    moments, factor = gauss.moments(phi), chi(phi, q, sigma_w)
    chaos = _above_one(factor)
    finite = jnp.isfinite(q)
    q = jnp.where(finite & chaos, q, 1.0)
    sigma_w = jnp.where(finite & chaos, sigma_w, 1.0)

    def newton(epsilon: Array, q: Array, sigma_w: Array) -> Array:
        ratio = sigma_w**2 * moments.gap(q, epsilon) / (q * epsilon)
        slope = (sigma_w**2 * moments.slope_pair(q, 1 - epsilon) - ratio) / epsilon
        return epsilon - (ratio - 1) / slope

    held = jax.lax.stop_gradient((q, sigma_w))
    root = _converged(lambda epsilon: newton(epsilon, *held), finite & chaos)
    # The last digits, and the derivatives.
    root = _repeated(lambda epsilon: newton(epsilon, q, sigma_w), root, 2)
    return _unless_nan(factor, jnp.where(chaos, jnp.where(finite, root, jnp.nan), 0.0))


def _converged(newton: _Function, wanted: Array) -> Array:
    """The limit of Newton's iteration for a root between 0 and 1, right to half its digits."""

    def moving(state: tuple[Array, Array, Array]) -> Array:
        x, before, count = state
        return wanted & (jnp.abs(x - before) > 1e-6 * x) & (count < 60)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, _, count = state
        return jnp.clip(newton(x), x / 8, 1.0), x, count + 1

    start = (jnp.asarray(1.0), jnp.asarray(2.0), jnp.asarray(0))
    return jax.lax.while_loop(moving, step, start)[0]


# ---- what rounding leaves of an equality with 1


def _rounding(x: Array) -> Array:
    """What x may lie beside 1 because sigma_w = √2, say, is not a floating point number."""
    return jnp.asarray(2.0 ** (-49 if x.dtype == jnp.float64 else -20), x.dtype)


def _above_one(x: Array) -> Array:
    return x > 1 + _rounding(x)


def _layers_per_e(factor: Array) -> Array:
    """`-1/log factor`: inf for a factor of 1, nan above, where nothing decays, and of nan."""
    decays = factor < 1 - _rounding(factor)
    layers = -1 / jnp.log(jnp.where(decays, factor, 0.5))
    rest = jnp.where(_above_one(factor), jnp.nan, jnp.inf)
    return _unless_nan(factor, jnp.where(decays, layers, rest))


def _unless_nan(given: Array, value: Array) -> Array:
    """The value, and nan where what it was found from is nan: no comparison passes that on."""
    return jnp.where(jnp.isnan(given), jnp.nan, value)
