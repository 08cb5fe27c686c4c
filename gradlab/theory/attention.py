"""Attention at random: the softmax of independent normal logits, exactly and for many tokens.

The weights p_i = exp(s x_i)/Z are the Gibbs weights of Derrida's random energy model (Derrida 1981,
Physical Review B 24, 2613), as Giorlandino and Goldt 2026 (arXiv:2505.24333) point out. For a
finite number of tokens the means below are exact, derived here: 1/Z^k is an integral of
t^(k-1) exp(-t Z) over t, under which the tokens are independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

# Nodes of the trapezoidal rules; the integrands are analytic in a strip of half-width pi/2 of the
# logarithm of t, so that a rule's error is exp(-pi²/step): below 1e-10 up to s = 20.
_NUM_TOKEN, _NUM_LOG_T = 801, 1201
_REACH = 9.0  # of a standard normal number: beyond it is 1e-19 of its mass


class RandomRow(NamedTuple):
    """Means over random rows of logits.

    Attributes:
        entropy: `-sum p_i log p_i` (nats).
        participation: `sum p_i²`: 1/T of equal weights, 1 of one that has all.
        jacobian_square: the squared Frobenius norm of `diag(p) - p pᵀ`.
    """

    entropy: Array
    participation: Array
    jacobian_square: Array


class Overlaps(NamedTuple):
    """Means over two random rows of logits that are correlated, entry by entry.

    Attributes:
        own: `sum p_i²`, the same of either row.
        shared: `sum p_i p'_i`: 1/T of equal weights and of independent rows, own of equal rows.
    """

    own: Array
    shared: Array


def critical_std(num_tokens: ArrayLike) -> Array:
    """`√(2 log T)`: the standard deviation of logits at which one token takes a finite share.

    Derrida 1981: the critical temperature of the random energy model.
    """
    return jnp.sqrt(2 * jnp.log(num_tokens))


def limit_entropy(std: ArrayLike, num_tokens: ArrayLike) -> Array:
    """`log T - s²/2` below the critical standard deviation, and 0 above it: Derrida 1981.

    The limit of many tokens, in units of log T.
    """
    return jnp.maximum(jnp.log(num_tokens) - jnp.square(std) / 2, 0.0)


def limit_participation(std: ArrayLike, num_tokens: ArrayLike) -> Array:
    """`1 - s_c/s` above the critical standard deviation, and 0 below it, for many tokens.

    Gross and Mézard 1984 (Nuclear Physics B 240, 431); derived there with replicas.
    """
    return jnp.maximum(1 - critical_std(num_tokens) / std, 0.0)


def left_of_differences(rest: Array, sigma_q: ArrayLike) -> Array:
    """The mean square of what attention leaves of small differences between tokens, `()`.

    Of tokens that are one but for `rest`, `(num_tokens, width)`, whose rows add up to 0:
    `sigma_q² |R|² |R Rᵀ|²/(T³ width³)`, the mean over Q, K and V of variances sigma_q²/width and
    1/width. Derived: to first order in the logits a token gets `V sum_j (Q r_i · K r_j) r_j /(T
    √width)` for itself, which takes differences to their third power.
    """
    num_tokens, width = rest.shape
    gram = jnp.sum(jnp.square(rest @ rest.T))
    return jnp.square(sigma_q) * jnp.sum(jnp.square(rest)) * gram / (num_tokens * width) ** 3


def overlaps(
    std: ArrayLike, correlation: ArrayLike, num_tokens: ArrayLike, num_nodes: int = 160
) -> Overlaps:
    """The means of two softmaxes of T N(0, s²) logits, correlated entry by entry, `()` each.

    Exact for every T and correlations from 0 to 1: with x_i = √c g_i + √(1-c) a_i, and the same g
    of the other row, `E sum p p' = T ∫∫ E_g[m(t) m(t')] (E_g[h(t) h(t')])^(T-1) dt dt'/(t t')`,
    where h and m are the means over a of exp(-t e^(s x)) and t e^(s x) exp(-t e^(s x)). Derived. In
    the limit of many tokens two rows share nothing unless they are one (disorder chaos). Nodes are
    `num_nodes` in g and a; `overlaps_error` bounds what they leave.
    """
    s, c, count = (jnp.asarray(one, float) for one in (std, correlation, num_tokens))
    x, weight = _normal_nodes(num_nodes)
    first, last = -(_REACH * s + jnp.log(count) + 37), _REACH * s + 6
    num_log_t = 3 * num_nodes // 2
    u = first + (last - first) * jnp.linspace(0.0, 1.0, num_log_t)
    step = (last - first) / (num_log_t - 1)
    logit = jnp.sqrt(c) * x[:, None] + jnp.sqrt(1 - c) * x[None]
    term = jnp.exp(u[:, None, None] + s * logit[None])
    left = jnp.exp(-term)
    gone = -jnp.expm1(-term) @ weight  # 1 - h
    first_moment, second_moment = (term * left) @ weight, (jnp.square(term) * left) @ weight
    single = gone @ weight
    both = single[:, None] + single[None] - (gone * weight[None]) @ gone.T  # 1 - E h h'
    kept, pair_kept = (
        jnp.exp((count - 1) * jnp.log1p(-jnp.minimum(lost, 1.0))) for lost in (single, both)
    )
    own = count * step * jnp.sum((second_moment @ weight) * kept)
    pairs = (first_moment * weight[None]) @ first_moment.T
    return Overlaps(own, count * jnp.square(step) * jnp.sum(pairs * pair_kept))


def overlaps_error(std: ArrayLike, num_tokens: ArrayLike, num_nodes: int = 160) -> Array:
    """What the rule of `overlaps` may be off by, of numbers below 1.

    A trapezoidal rule of step h is off by 2 M/(exp(2 pi b/h) - 1) where the integrand is analytic
    in a strip of half-width b and its integral there at most M (Trefethen and Weideman 2014,
    theorem 5.1): exp(s x) turns by pi/2 at pi/(2 s), the logarithm of t at pi/2, and M is about 1.
    The power T - 1 multiplies it.
    """
    s, step_x = jnp.asarray(std, float), 2 * _REACH / (num_nodes - 1)
    step_u = (2 * _REACH * s + 60) / (3 * num_nodes // 2 - 1)
    left = jnp.exp(-(math.pi**2) / (s * step_x)) + jnp.exp(-(math.pi**2) / step_u)
    return 2 * jnp.asarray(num_tokens, float) * left


# What rows of attention are like, of tokens of mean square q whose correlation is 1 - apart.
Rows = Callable[[Array, Array, int], Overlaps]


def uniform(square: Array, apart: Array, num_tokens: int) -> Overlaps:
    """Rows without queries: every token takes of all alike."""
    del square, apart
    return Overlaps(*(jnp.full((), 1 / num_tokens),) * 2)


def random_logits(sigma_q: ArrayLike, num_nodes: int = 160) -> Rows:
    """Rows of queries and keys of variances sigma_q²/width and 1/width.

    A token's logits have the deviation `sigma_q q`; what they have in common, of correlated tokens,
    a softmax takes out, and rows of two tokens are as correlated as those. Derived; many tokens:
    Giorlandino and Goldt 2026 (arXiv:2505.24333; the authors' code read).
    """

    def rows(square: Array, apart: Array, num_tokens: int) -> Overlaps:
        std = jnp.asarray(sigma_q) * square * jnp.sqrt(apart)
        return overlaps(std, 1 - apart, num_tokens, num_nodes)

    return rows


def many_tokens(sigma_q: ArrayLike) -> Rows:
    """The same in the limit of many tokens, in units of the critical deviation at so many.

    `1 - s_c/s` above it and nothing below, and nothing shared: the authors' update, word for word.
    """

    def rows(square: Array, apart: Array, num_tokens: int) -> Overlaps:
        std = jnp.asarray(sigma_q) * square * jnp.sqrt(apart)
        own = limit_participation(std, num_tokens)
        return Overlaps(own, jnp.zeros_like(own))

    return rows


def softmax_row(std: ArrayLike, num_tokens: ArrayLike) -> RandomRow:
    """The means of a softmax of T independent N(0, s²) logits, exact for every T, `()` each.

    With phi(t) = E exp(-t e^(s x)) and E_k(t) = E (t e^(s x))^k exp(-t e^(s x)):
    E log Z = ∫ [e^-t - phi^T] dt/t; E sum p^k = T/Γ(k) ∫ E_k phi^(T-1) dt/t; and
    E (sum p²)² = E sum p⁴ + T(T-1)/Γ(4) ∫ E_2² phi^(T-2) dt/t. The entropy is log Z - s d log Z/ds,
    whose second term is s² (1 - sum p²) in the mean (Stein 1981).
    """
    s, count = jnp.asarray(std, float), jnp.asarray(num_tokens, float)
    x, weight = _normal_nodes(_NUM_TOKEN)
    # Above u = log t every token's term is gone; below it none has begun to tell.
    first, last = -(_REACH * s + jnp.log(count) + 37), _REACH * s + 6
    u = first + (last - first) * jnp.linspace(0.0, 1.0, _NUM_LOG_T)
    step = (last - first) / (_NUM_LOG_T - 1)
    v = u[:, None] + s * x[None, :]
    gone = -jnp.expm1(-jnp.exp(v)) @ weight  # 1 - phi, without cancellation
    log_phi = jnp.log1p(-jnp.minimum(gone, 1.0))

    def moment(k: int) -> Array:
        return jnp.exp(k * v - jnp.exp(v)) @ weight

    def kept(power: Array) -> Array:
        # phi^0 is 1 also where nothing is left of phi, whose logarithm is then infinite.
        return jnp.exp(jnp.where(power > 0, power * log_phi, 0.0))

    def share(k: int) -> Array:
        return count / math.gamma(k) * step * jnp.sum(moment(k) * kept(count - 1))

    square, cube, fourth = (share(k) for k in (2, 3, 4))
    pairs = count * (count - 1) / 6 * step * jnp.sum(jnp.square(moment(2)) * kept(count - 2))
    log_sum = step * jnp.sum(jnp.exp(-jnp.exp(u)) - kept(count))
    entropy = log_sum - jnp.square(s) * (1 - square)
    return RandomRow(entropy, square, square - 2 * cube + fourth + pairs)


def _normal_nodes(number: int) -> tuple[Array, Array]:
    """Nodes and weights of the trapezoidal rule for the mean over a standard normal number."""
    x = jnp.linspace(-_REACH, _REACH, number)
    weight = jnp.exp(-jnp.square(x) / 2)
    return x, weight / jnp.sum(weight)
