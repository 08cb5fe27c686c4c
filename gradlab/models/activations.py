"""The activations phi, each with its first two derivatives: a table, nothing else.

jax differentiates tanh as (1 + y)(1 - y), which is exactly 0 wherever y has rounded to 1; the
logistic, erf, elu and gelu lose their tails in similar ways. Every entry here carries its
derivatives in closed form, evaluated without cancellation in the tails and registered as the
rule of automatic differentiation, so that `jax.jacfwd` of a layer is its Jacobian.

Right to a few units in the last place wherever the exact result is a normal number of the type.
Results below the smallest normal number are 0 on devices that flush subnormals (XLA on CPU does).
Near a sign change that is not at h = 0 (of gelu', say) the error is a few units in the last place
of the terms that cancel. float16 and bfloat16 are evaluated in float32 and rounded once. At a kink
the derivative is the one from the left for relu, leaky_relu, elu, selu and 0 for hard_tanh.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

Phi = Callable[[Array], Array]

# Klambauer et al. 2017, equation 14: the constants that make (mean 0, variance 1) a fixed point.
_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946
LEAK = 0.01  # Maas et al. 2013


@dataclass(frozen=True)
class Activation:
    """An activation: called, it returns phi(h), with the shape and type of `h`.

    `dphi` and `d2phi` are its derivatives, functions as well. `kinks` are the points at which
    phi or its derivatives are not smooth: a quadrature must not cross them.
    """

    name: str
    phi: Phi
    dphi: Phi
    d2phi: Phi
    kinks: tuple[float, ...] = ()

    def __call__(self, h: ArrayLike) -> Array:
        """`phi(h)`, elementwise."""
        return self.phi(floating(h))


def floating(h: ArrayLike) -> Array:
    """`h` as an array, or a TypeError where it is not one of real floating point numbers."""
    h = jnp.asarray(h)
    if not jnp.issubdtype(h.dtype, jnp.floating):
        raise TypeError(f"an activation acts on real floating point numbers, not on {h.dtype}")
    return h


def _wide(f: Phi) -> Phi:
    """`f`, evaluated in float32 where the type is shorter, and rounded once."""

    def evaluated(h: Array) -> Array:
        h = floating(h)
        if h.dtype.itemsize < 4:
            return f(h.astype(jnp.float32)).astype(h.dtype)
        return f(h)

    return evaluated


def _with_rule(value: Phi, slope: Phi) -> Phi:
    """`value`, whose derivative is `slope` in both modes of automatic differentiation."""
    f = jax.custom_jvp(value)
    f.defjvps(lambda tangent, _, h: slope(h) * tangent)
    return f


def _activation(
    name: str, phi: Phi, dphi: Phi, d2phi: Phi, kinks: tuple[float, ...] = ()
) -> Activation:
    second = _wide(d2phi)
    first = _with_rule(_wide(dphi), second)
    return Activation(name, _with_rule(_wide(phi), first), first, second, kinks)


def _constant(value: float) -> Phi:
    return lambda h: jnp.full_like(h, value)


def _left_right(left: Phi, right: Phi) -> Phi:
    """`left` for h <= 0, `right` for h > 0, nan for nan."""
    return lambda h: jnp.where(h > 0, right(h), jnp.where(h <= 0, left(h), h))


# ---- the pieces that must not cancel
#
# What decays is kept as a product of two equal roots, and factors that grow are multiplied in
# between, since exp(-2 |h|), say, would underflow before 4 exp(-2 |h|) does.


def _sech(h: Array) -> Array:
    s = jnp.exp(-jnp.abs(h))
    # A square that XLA does not see, or it would take another exponential for it.
    return 2 * s / (1 + s * jnp.maximum(s, 0))


def _square(h: Array) -> tuple[Array, Array]:
    """Two numbers whose sum is h² exactly, up to the rounding of the second and smaller one."""
    num_bits = {4: (8, 11), 8: (11, 25)}[h.dtype.itemsize]  # half of the mantissa's
    head = jax.lax.reduce_precision(h, *num_bits)
    return head * head, (h - head) * (h + head)


def _gauss(h: Array, factor: float) -> Array:
    """exp(-factor h²), for a power of two: the rounding of h² alone would cost h² units."""
    large, small = _square(_finite(h))
    head = jnp.exp(-factor * large)
    return head + head * jnp.expm1(-factor * small)


def _finite(h: Array) -> Array:
    """`h` with ±inf, and all beyond the underflow of exp(-|h|), made finite."""
    return jnp.clip(h, -1e3, 1e3)


def _mills(size: Array) -> Array:
    """The upper tail of the normal distribution over exp(-size²/2), for size >= 0.

    Midpoint rule of step 1/2 for erfc, and what its contour misses: Matta and Reichel 1971. Every
    term is positive. (jax.scipy.special.erfcx is 0 near 9.2 in float32.)
    """
    x = size / math.sqrt(2)
    nodes = [((n + 0.5) / 2) ** 2 for n in reversed(range(12))]
    midpoints = sum((math.exp(-t) / (x * x + t) for t in nodes), jnp.zeros_like(x))
    near = jnp.minimum(x, 2 * math.pi)
    missed = jnp.exp(near * (near - 4 * math.pi)) / (1 + jnp.exp(-4 * math.pi * near))
    return x / (2 * math.pi) * midpoints + missed


# ---- the members, each as (phi, phi', phi'')


def _d2tanh(h: Array) -> Array:
    sech = _sech(h)
    return (-2 * jnp.tanh(h) * sech) * sech


def _dlogistic(h: Array) -> Array:
    return jnp.square(_sech(h / 2) / 2)


def _d2logistic(h: Array) -> Array:
    return -jnp.tanh(h / 2) * _dlogistic(h)


def _derf(h: Array) -> Array:
    root = _gauss(h, 0.5)
    return (2 / math.sqrt(math.pi) * root) * root


def _d2erf(h: Array) -> Array:
    root = _gauss(h, 0.5)
    return (-4 / math.sqrt(math.pi) * _finite(h) * root) * root


def _gelu(h: Array) -> Array:
    root = _gauss(h, 0.25)
    size = jnp.abs(_finite(h))
    tail = (size * _mills(size) * root) * root
    return jnp.maximum(h, 0) - tail


def _dgelu(h: Array) -> Array:
    root = _gauss(h, 0.25)
    size = jnp.abs(_finite(h))
    tail = ((_mills(size) - size / math.sqrt(2 * math.pi)) * root) * root
    return jnp.where(h > 0, 1 - tail, tail)


def _d2gelu(h: Array) -> Array:
    root = _gauss(h, 0.25)
    large, small = _square(_finite(h))
    return ((2 - large - small) / math.sqrt(2 * math.pi) * root) * root


def _silu(h: Array) -> Array:
    h = jnp.maximum(h, -1e3)
    return jnp.where(h < 0, (h * _sech(h / 2) / 2) * jnp.exp(h / 2), h * jax.nn.sigmoid(h))


def _dsilu(h: Array) -> Array:
    h = _finite(h)
    s, half = jnp.exp(-jnp.abs(h / 2)), _sech(h / 2) / 2
    return jnp.where(h < 0, half * (s + h * half), 1 / (1 + s * s) + h * half * half)


def _d2silu(h: Array) -> Array:
    half = _sech(h / 2) / 2
    return (half * (2 - _finite(h) * jnp.tanh(h / 2))) * half


def _softplus(h: Array) -> Array:
    return jnp.maximum(h, 0) + jnp.log1p(jnp.exp(-jnp.abs(h)))


def _softsign(h: Array) -> Array:
    return jnp.where(jnp.isinf(h), jnp.sign(h), h / (1 + jnp.abs(h)))


def _dsoftsign(h: Array) -> Array:
    return jnp.square(1 / (1 + jnp.abs(h)))


def _d2softsign(h: Array) -> Array:
    r = 1 / (1 + jnp.abs(h))
    return (-2 * jnp.sign(h) * r) * jnp.square(r)


def _inside(h: Array) -> Array:
    return jnp.where(jnp.isnan(h), h, (jnp.abs(h) < 1).astype(h.dtype))


def _scaled_exp(scale: float) -> Phi:
    def evaluated(h: Array) -> Array:
        root = jnp.exp(jnp.minimum(h, 0) / 2)
        return (scale * root) * root

    return evaluated


def _scaled_expm1(scale: float) -> Phi:
    return lambda h: scale * jnp.expm1(jnp.minimum(h, 0))


_zero, _one = _constant(0.0), _constant(1.0)
_selu_left = _SELU_SCALE * _SELU_ALPHA

_MEMBERS = (
    _activation("linear", lambda h: h, _one, _zero),
    _activation("tanh", jnp.tanh, lambda h: jnp.square(_sech(h)), _d2tanh),
    _activation("logistic", jax.nn.sigmoid, _dlogistic, _d2logistic),
    _activation("erf", jax.lax.erf, _derf, _d2erf),
    _activation("softsign", _softsign, _dsoftsign, _d2softsign, (0.0,)),
    _activation("hard_tanh", lambda h: jnp.clip(h, -1, 1), _inside, _zero, (-1.0, 1.0)),
    _activation("sin", jnp.sin, jnp.cos, lambda h: -jnp.sin(h)),
    _activation("relu", _left_right(_zero, lambda h: h), _left_right(_zero, _one), _zero, (0.0,)),
    _activation(
        "leaky_relu",
        _left_right(lambda h: LEAK * h, lambda h: h),
        _left_right(_constant(LEAK), _one),
        _zero,
        (0.0,),
    ),
    _activation(
        "elu",
        _left_right(_scaled_expm1(1.0), lambda h: h),
        _left_right(_scaled_exp(1.0), _one),
        _left_right(_scaled_exp(1.0), _zero),
        (0.0,),
    ),
    _activation(
        "selu",
        _left_right(_scaled_expm1(_selu_left), lambda h: _SELU_SCALE * h),
        _left_right(_scaled_exp(_selu_left), _constant(_SELU_SCALE)),
        _left_right(_scaled_exp(_selu_left), _zero),
        (0.0,),
    ),
    _activation("gelu", _gelu, _dgelu, _d2gelu),
    _activation("silu", _silu, _dsilu, _d2silu),
    _activation("softplus", _softplus, jax.nn.sigmoid, _dlogistic),
)

PHI: dict[str, Activation] = {member.name: member for member in _MEMBERS}


def leaky(slope: ArrayLike) -> Activation:
    """The activation h for h > 0, `slope` h below, whose slope may be traced: He et al. 2015."""
    a = jnp.asarray(slope)
    phi = _left_right(lambda h: a.astype(h.dtype) * h, lambda h: h)
    dphi = _left_right(lambda h: jnp.full_like(h, a), _one)
    return Activation("leaky", phi, dphi, _zero, (0.0,))
