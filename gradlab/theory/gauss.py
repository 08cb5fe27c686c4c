"""Gaussian averages of an activation: E f(√q z) and E F(√q z1, √q z2), in closed form or by rules.

Smooth activations are integrated by the trapezoidal rule in t, z = scale sinh t, which resolves
both the width 1 of the Gaussian and the width 1/√q of the activation, and converges as
exp(-constant/step): Trefethen and Weideman 2014, section 14. At kinks the integral is split, and
the nodes crowd towards each kink. (Gauss-Hermite quadrature across a kink is wrong at 2e-5.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from gradlab.models.activations import LEAK, PHI, Phi

_finfo: Any = jnp.finfo  # JAX gives it no types.

Rule = tuple[Array, Array]  # nodes z and weights, the normal density included

_REACH = 10.0  # the density there is 8e-23
_NUM_SMOOTH = 97
_NUM_KINKED = 112
_NUM_BETWEEN = 161


class Moments(Protocol):
    """The averages that mean field theory is made of; z is N(0, 1), u1 and u2 correlate by c."""

    def square(self, q: Array) -> Array:
        """E phi(√q z)²."""

    def slope_square(self, q: Array) -> Array:
        """E phi'(√q z)²."""

    def pair(self, q: Array, c: Array) -> Array:
        """E phi(u1) phi(u2)."""

    def slope_pair(self, q: Array, c: Array) -> Array:
        """E phi'(u1) phi'(u2)."""

    def gap(self, q: Array, epsilon: Array) -> Array:
        """E (phi(u1) - phi(u2))² / 2 at c = 1 - epsilon, without cancellation."""

    def slope_gap(self, q: Array, epsilon: Array) -> Array:
        """E (phi'(u1) - phi'(u2))² / 2 at c = 1 - epsilon, without cancellation."""


def moments(phi: Phi) -> Moments:
    """The averages of `phi`: closed forms where they are known, else by quadrature."""
    name = getattr(phi, "name", "")
    if name in CLOSED and PHI[name] is phi:
        return CLOSED[name]
    return Quadrature(phi)


def homogeneous(phi: Phi) -> float | None:
    """E phi(z)² where phi(a h) = a phi(h) for a > 0, so that E phi(√q z)² is that times q."""
    known = moments(phi)
    return known.half_square if isinstance(known, PiecewiseLinear) else None


def degree(phi: Phi) -> Array:
    """The power of q as which E phi(√q z)² grows where q is large, `()`: 1 as |h|, 0 if bounded."""
    square = moments(phi).square
    one, two = (square(jnp.asarray(q)) for q in (1e8, 2e8))
    return jnp.log2(two / one)


# ---- rules


def smooth_rule(centre: Array, scale: Array) -> Rule:
    """Nodes and weights, `(num_nodes,)`, for an integrand of finest width `scale`, at `centre`."""
    centre = jnp.clip(centre, -_REACH, _REACH)
    low, high = jnp.arcsinh((-_REACH - centre) / scale), jnp.arcsinh((_REACH - centre) / scale)
    t = low + jnp.linspace(0.0, 1.0, _NUM_SMOOTH) * (high - low)
    z = centre + scale * jnp.sinh(t)
    return z, (high - low) / (_NUM_SMOOTH - 1) * scale * jnp.cosh(t) * _density(z)


def split_rule(edges: Array) -> Rule:
    """Nodes and weights, `(num_nodes,)`, of an integral split at `edges`, `(num_edges,)`."""
    edges = jnp.clip(edges, -_REACH, _REACH)
    outside = [_outward(edges[0], -1.0), _outward(edges[-1], 1.0)]
    between = [_between(edges[k], edges[k + 1]) for k in range(edges.shape[0] - 1)]
    nodes, weights = zip(*outside, *between, strict=True)
    z = jnp.concatenate(nodes)
    return z, jnp.concatenate(weights) * _density(z)


def _outward(edge: Array, sign: float) -> Rule:
    """From an edge to infinity, the distance being exp(t - exp(-t)): Takahasi and Mori 1974."""
    t = jnp.linspace(-3.7, 3.1, _NUM_KINKED)
    distance = jnp.exp(t - jnp.exp(-t))
    return edge + sign * distance, (t[1] - t[0]) * distance * (1 + jnp.exp(-t))


def _between(left: Array, right: Array) -> Rule:
    """Between two edges, by tanh-sinh: Takahasi and Mori 1974."""
    t = jnp.linspace(-3.3, 3.3, _NUM_BETWEEN)
    y = math.pi / 2 * jnp.sinh(t)
    half = (right - left) / 2
    weights = (t[1] - t[0]) * half * (math.pi / 2 * jnp.cosh(t)) / jnp.square(jnp.cosh(y))
    return left + half + half * jnp.tanh(y), weights


def _density(z: Array) -> Array:
    return jnp.exp(-z * z / 2) / math.sqrt(2 * math.pi)


# ---- averages by rules


def expect(f: Phi, q: Array, kinks: tuple[float, ...]) -> Array:
    """`E f(√q z)`, scalar, for a function that is smooth but for its kinks."""
    z, weights = _rule(q, jnp.asarray(0.0), kinks)
    return jnp.sum(weights * f(_root(q) * z))


def expect_pair(
    f: Callable[[Array, Array], Array], q: Array, epsilon: Array, kinks: tuple[float, ...]
) -> Array:
    """`E f(u1, u2)`, scalar: variances q, correlation 1 - epsilon."""
    root = _root(q)
    sine = _small_root(epsilon * (2 - epsilon))

    def given(z1: Array) -> Array:
        centre = z1 - epsilon * z1
        z2, weights = _rule(q * sine * sine, root * centre, kinks)
        return jnp.sum(weights * f(root * z1, root * centre + root * sine * z2))

    z1, weights = _rule(q, jnp.asarray(0.0), kinks)
    return jnp.sum(weights * jax.vmap(given)(z1))


def _rule(q: Array, mean: Array, kinks: tuple[float, ...]) -> Rule:
    """The rule for f(mean + √q z)."""
    root = _root(q)
    if not kinks:
        return smooth_rule(-mean / root, 1 / jnp.sqrt(1 + q))
    return split_rule((jnp.asarray(kinks) - mean) / root)


def _root(q: Array) -> Array:
    """√q, with a finite derivative at q = 0."""
    return jnp.sqrt(jnp.maximum(q, 1e-30))


def _small_root(x: Array) -> Array:
    """√x for any normal number, with a finite derivative at 0."""
    return jnp.sqrt(jnp.maximum(x, _finfo(x.dtype).tiny))


@dataclass(frozen=True)
class Quadrature:
    """The moments of any activation, by quadrature."""

    phi: Phi

    @property
    def kinks(self) -> tuple[float, ...]:
        """Where the integrals are split."""
        return tuple(getattr(self.phi, "kinks", ()))

    def dphi(self, h: Array) -> Array:
        """phi'(h), elementwise."""
        slope: Array = jax.jvp(self.phi, (h,), (jnp.ones_like(h),))[1]
        return slope

    def square(self, q: Array) -> Array:
        """E phi(√q z)²."""
        return expect(lambda h: jnp.square(self.phi(h)), q, self.kinks)

    def slope_square(self, q: Array) -> Array:
        """E phi'(√q z)²."""
        return expect(lambda h: jnp.square(self.dphi(h)), q, self.kinks)

    def pair(self, q: Array, c: Array) -> Array:
        """E phi(u1) phi(u2)."""
        return expect_pair(lambda a, b: self.phi(a) * self.phi(b), q, 1 - c, self.kinks)

    def slope_pair(self, q: Array, c: Array) -> Array:
        """E phi'(u1) phi'(u2)."""
        return expect_pair(lambda a, b: self.dphi(a) * self.dphi(b), q, 1 - c, self.kinks)

    def gap(self, q: Array, epsilon: Array) -> Array:
        """E (phi(u1) - phi(u2))² / 2."""
        return expect_pair(
            lambda a, b: jnp.square(self.phi(a) - self.phi(b)) / 2, q, epsilon, self.kinks
        )

    def slope_gap(self, q: Array, epsilon: Array) -> Array:
        """E (phi'(u1) - phi'(u2))² / 2."""
        return expect_pair(
            lambda a, b: jnp.square(self.dphi(a) - self.dphi(b)) / 2, q, epsilon, self.kinks
        )


# ---- closed forms


@dataclass(frozen=True)
class PiecewiseLinear:
    """phi(h) = h for h > 0, slope h below: Cho and Saul 2009, equation 6 (order 1), and a line."""

    slope: float

    @property
    def half_square(self) -> float:
        """E phi(z)²: half of the sum of both slopes squared."""
        return (1 + self.slope**2) / 2

    @property
    def _parts(self) -> tuple[float, float]:
        """The weights of h and of |h| in phi, squared."""
        return ((1 + self.slope) / 2) ** 2, ((1 - self.slope) / 2) ** 2

    def square(self, q: Array) -> Array:
        """E phi(√q z)²."""
        return self.half_square * q

    def slope_square(self, q: Array) -> Array:
        """E phi'(√q z)², the same at every q."""
        return jnp.full_like(q, self.half_square)

    def pair(self, q: Array, c: Array) -> Array:
        """E phi(u1) phi(u2)."""
        odd, even = self._parts
        folded = 2 / math.pi * (_cosine(c) + c * _arcsin(c))
        return q * (odd * c + even * folded)

    def slope_pair(self, q: Array, c: Array) -> Array:
        """E phi'(u1) phi'(u2)."""
        odd, even = self._parts
        return odd + even * 2 / math.pi * _arcsin(c) + jnp.zeros_like(q)

    def gap(self, q: Array, epsilon: Array) -> Array:
        """E (phi(u1) - phi(u2))² / 2, in the angle between u1 and u2."""
        odd, even = self._parts
        folded = 2 / math.pi * _sin_less_a_cos(epsilon)
        return q * (odd * epsilon + even * (epsilon - folded))

    def slope_gap(self, q: Array, epsilon: Array) -> Array:
        """E (phi'(u1) - phi'(u2))² / 2: at kinks it falls as slowly as √epsilon."""
        return self._parts[1] * 2 / math.pi * _angle(epsilon) + jnp.zeros_like(q)


@dataclass(frozen=True)
class Erf:
    """phi = erf: Williams 1997, equation 11; the slopes are Gaussian integrals."""

    def square(self, q: Array) -> Array:
        """E phi(√q z)²."""
        return self.pair(q, jnp.ones_like(q))

    def slope_square(self, q: Array) -> Array:
        """E phi'(√q z)²."""
        return 4 / math.pi / jnp.sqrt(1 + 4 * q)

    def pair(self, q: Array, c: Array) -> Array:
        """E phi(u1) phi(u2)."""
        return 2 / math.pi * jnp.arcsin(2 * q * c / (1 + 2 * q))

    def slope_pair(self, q: Array, c: Array) -> Array:
        """E phi'(u1) phi'(u2)."""
        return 4 / math.pi / jnp.sqrt(1 + 4 * q + 4 * q * q * (1 - c) * (1 + c))

    def gap(self, q: Array, epsilon: Array) -> Array:
        """E (phi(u1) - phi(u2))² / 2: the difference of two arcsines as one."""
        a, below_one = 2 * q / (1 + 2 * q), 1 / (1 + 2 * q)
        b = a - a * epsilon
        # From what each sine is below 1: for large q the sines themselves have no digits for it.
        cosine_a = _root(below_one * (1 + a))
        cosine_b = _root((below_one + a * epsilon) * (below_one + a * (2 - epsilon)))
        near = a * epsilon * (2 - epsilon) / (cosine_b + (1 - epsilon) * cosine_a)
        sine = jnp.where(epsilon > 1, a * cosine_b - b * cosine_a, near)
        return 2 / math.pi * jnp.arctan2(sine, a * b + cosine_a * cosine_b)

    def slope_gap(self, q: Array, epsilon: Array) -> Array:
        """E (phi'(u1) - phi'(u2))² / 2."""
        beyond = 4 * q * q * epsilon * (2 - epsilon) / (1 + 4 * q)
        return -self.slope_square(q) * jnp.expm1(-jnp.log1p(beyond) / 2)


@dataclass(frozen=True)
class Sine:
    """phi = sin: the characteristic function of the normal distribution."""

    def square(self, q: Array) -> Array:
        """E phi(√q z)²."""
        return -jnp.expm1(-2 * q) / 2

    def slope_square(self, q: Array) -> Array:
        """E phi'(√q z)²."""
        return (1 + jnp.exp(-2 * q)) / 2

    def pair(self, q: Array, c: Array) -> Array:
        """E phi(u1) phi(u2)."""
        sign = jnp.where(c < 0, -1.0, 1.0)  # the average is odd in c, and expm1 overflows for c < 0
        size = sign * c
        return -sign * jnp.exp(-q * (1 - size)) * jnp.expm1(-2 * q * size) / 2

    def slope_pair(self, q: Array, c: Array) -> Array:
        """E phi'(u1) phi'(u2)."""
        return (jnp.exp(-q * (1 - c)) + jnp.exp(-q * (1 + c))) / 2

    def gap(self, q: Array, epsilon: Array) -> Array:
        """E (phi(u1) - phi(u2))² / 2."""
        return -jnp.expm1(-q * epsilon) * (1 + jnp.exp(-q * (2 - epsilon))) / 2

    def slope_gap(self, q: Array, epsilon: Array) -> Array:
        """E (phi'(u1) - phi'(u2))² / 2."""
        return jnp.expm1(-q * epsilon) * jnp.expm1(-q * (2 - epsilon)) / 2


def _cosine(sine: Array) -> Array:
    return _root((1 - sine) * (1 + sine))


def _angle(epsilon: Array) -> Array:
    """The angle whose cosine is 1 - epsilon, right however small."""
    return 2 * jnp.arcsin(_small_root(epsilon / 2))


def _sin_less_a_cos(epsilon: Array) -> Array:
    """`sin a - a cos a` of the angle a whose cosine is 1 - epsilon, right however small."""
    a = _angle(epsilon)
    square = a * a
    # The difference itself loses 1/a roundings of epsilon; the next term is below one to a = 0.1.
    series = a * square * (1 / 3 - square * (1 / 30 - square * (1 / 840 - square / 45360)))
    return jnp.where(a < 0.1, series, jnp.sin(a) - a * (1 - epsilon))


def _arcsin(c: Array) -> Array:
    """The arcsine, with a finite derivative at c = ±1."""
    inside = jnp.abs(c) < 1
    return jnp.where(inside, jnp.arcsin(jnp.where(inside, c, 0.0)), math.pi / 2 * jnp.sign(c))


CLOSED: dict[str, Moments] = {
    "linear": PiecewiseLinear(1.0),
    "relu": PiecewiseLinear(0.0),
    "leaky_relu": PiecewiseLinear(LEAK),
    "erf": Erf(),
    "sin": Sine(),
}
