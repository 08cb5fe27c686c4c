"""Normalised layers phi(N(W z)), and layers that do without: what they do to signal and gradient.

Infinite width. N divides by what W does to the length, so sigma_w drops out of every law here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.models.activations import Activation
from gradlab.theory import gauss, residual


def layer_norm_factor(phi: Callable[[Array], Array]) -> Array:
    """`E phi'(z)² / E phi(z)²`, `()`, of layers phi(h), h being W z less its mean, of length 1.

    Derived: W multiplies the mean squared gradient by sigma_w² E phi'(h)², as in Schoenholz et al.
    2017, section 4, at the length 1 that Ba, Kiros and Hinton 2016 give to h; dividing W z by its
    deviation, which is sigma_w times the root of E phi², divides by sigma_w² E phi². 1 for relu.
    """
    moments, one = gauss.moments(phi), jnp.asarray(1.0)
    return moments.slope_square(one) / moments.square(one)


def batch_norm_factor(phi: Callable[[Array], Array], batch_size: ArrayLike) -> Array:
    """`()`: that of layers phi(y), y being W z over a batch, of mean 0 and mean square 1 over it.

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


# ---- without a normaliser: activations of variance 1, weights of mean 0 and length 1


def centred_square(phi: Activation, q: ArrayLike) -> Array:
    """`Var phi(√q z)`, `()`: what is left of E phi² when weights of mean 0 take the mean away."""
    at = jnp.asarray(q, float)
    return gauss.moments(phi).square(at) - gauss.expect(phi, at, phi.kinks) ** 2


def unit_gain(phi: Activation) -> Array:
    """`1/√Var phi(z)`, `()`: the factor that gives an activation variance 1.

    Brock, De and Smith 2021, section 4 (who estimate it from draws). √(2 pi/(pi - 1)) for relu.
    """
    return 1 / jnp.sqrt(centred_square(phi, 1.0))


def skip_variances(alpha: ArrayLike, stages: Sequence[int]) -> Array:
    """The variance in front of every block and behind the last one, `(num_blocks + 1,)`.

    1 at the input; each block adds alpha², and the first one of a stage starts at 1 anew, since its
    shortcut is a layer too: Brock, De and Smith 2021, section 3.
    """
    added = jnp.concatenate([jnp.arange(1.0, size + 1) for size in stages])
    return jnp.concatenate([jnp.ones(1), 1 + jnp.square(jnp.asarray(alpha, float)) * added])


def first_of_stage(stages: Sequence[int]) -> Array:
    """1 for the first block of each stage and 0 for the others, `(num_blocks,)`."""
    return jnp.concatenate([(jnp.arange(size) == 0).astype(float) for size in stages])


def skip_gradient(
    phi: Activation, alpha: ArrayLike, stages: Sequence[int], num_layers: int, width: int
) -> tuple[Array, Array]:
    """The log of the squared gradient over the last, and what the width takes from its mean.

    `(num_blocks + 1,)` both, in front of each block and behind the last; the second to first order
    in 1/width. Derived: a
    branch of `num_layers` activations of variance 1 multiplies it by s^num_layers over the variance
    that it divides by, s = E phi'(z)²/Var phi(z), which is pi/(pi - 1) for relu. The shortcut of a
    stage's first block has one activation, whose factor spreads by 5/width for a rectifier.
    """
    one, square = jnp.asarray(1.0), jnp.square(jnp.asarray(alpha, float))
    s = gauss.moments(phi).slope_square(one) / centred_square(phi, 1.0)
    before, first = skip_variances(alpha, stages)[:-1], first_of_stage(stages)
    factors = jnp.where(first > 0, s / before, 1.0) + square * s**num_layers / before
    short = residual.typical_log(jnp.where(first > 0, 0.0, factors - 1), 5.0, width)[1]
    layers = jnp.stack([jnp.log(factors), short - first * 5 / (2 * width)])
    arriving = jnp.cumsum(layers[:, ::-1], axis=1)[:, ::-1]
    log, taken = jnp.pad(arriving, ((0, 0), (0, 1)))
    return log, taken


_KINDS = ("normaliser-free", "batch norm", "nothing")


def channel_statistics(
    phi: Activation, kind: str, alpha: ArrayLike, stages: Sequence[int], batch_size: int
) -> Array:
    """A channel's variance, squared mean, and variance in the branch, `(3, num_blocks)`.

    Behind each block, means over channels of infinite width, for the blocks of
    `networks.skip_block` of two activations and an input of independent N(0, 1): the mean square of
    one example and the covariance of two, layer by layer (Poole et al. 2016, equation 5).
    """
    if kind not in _KINDS:
        raise ValueError(f"kind is one of {', '.join(_KINDS)}, not {kind!r}.")
    moments, one = gauss.moments(phi), jnp.ones(())
    free, factor = kind == "normaliser-free", jnp.asarray(alpha, float)
    scale = unit_gain(phi) ** 2 if free else 1 / moments.square(one)

    def activated(q: Array, p: Array) -> Array:
        if kind == "batch norm":  # of mean 0 and mean square 1 over the batch, exactly
            q, p = one, -one / (batch_size - 1)
        mean = gauss.expect(phi, q, phi.kinks) ** 2 if free else jnp.zeros(())
        return scale * (jnp.stack([moments.square(q), moments.pair(q, p / q)]) - mean)

    def step(before: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        variance, first = at
        x = activated(*(before / variance if free else before))
        branch = activated(*x)
        skip = jnp.where(first > 0, x, before) + (factor**2 if free else 1.0) * branch
        return skip, jnp.stack([skip[0] - skip[1], skip[1], branch[0] - branch[1]])

    blocks = skip_variances(alpha, stages)[:-1], first_of_stage(stages)
    return jax.lax.scan(step, jnp.array([1.0, 0.0]), blocks)[1].T


def channel_mean_left(
    phi: Activation, alpha: ArrayLike, stages: Sequence[int], num_layers: int, width: int
) -> Array:
    """The squared mean that a width leaves a normaliser-free channel, at most, `(num_blocks,)`.

    Derived: two examples correlate by c of mean square 1/width, and an activation makes of it a
    covariance of gamma² E phi''(u1) phi''(u2) c²/2, gamma² c²/(4 pi) of a kink of slope 1.
    """
    passed = jnp.cumsum(first_of_stage(stages) + jnp.square(jnp.asarray(alpha)) * num_layers)
    return passed * unit_gain(phi) ** 2 / (4 * jnp.pi * width)
