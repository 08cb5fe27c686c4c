"""What a transformer block makes of tokens, in plain sums and products, and how far a model is off.

Vaswani et al. 2017, equations 1 and 2, and a norm by moments; no function of `gl.transformer`. Each
number goes with a bound of its rounding, to first order in eps: a running error analysis (Higham
2002, sections 3.1 and 3.3), in which a sum of n products is off by n eps of their sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.arithmetic import precision, scaled
from gradlab.models.transformer import Design, Weights


@dataclass(frozen=True)
class _Rounded:
    """A matrix, and by how much rounding may have moved each entry of it."""

    value: Array
    error: Array

    @property
    def T(self) -> _Rounded:
        return _Rounded(self.value.T, self.error.T)

    def __add__(self, other: _Rounded) -> _Rounded:
        total = self.value + other.value
        return _Rounded(total, self.error + other.error + _eps(total) * jnp.abs(total))

    def __matmul__(self, other: _Rounded) -> _Rounded:
        a, b = jnp.abs(self.value), jnp.abs(other.value)
        own = (a.shape[1] * _eps(a)) * (a @ b)
        return _Rounded(self.value @ other.value, self.error @ b + a @ other.error + own)

    def times(self, factor: ArrayLike) -> _Rounded:
        """The matrix times a number that is exact."""
        value = jnp.asarray(factor) * self.value
        return _Rounded(value, jnp.abs(factor) * self.error + _eps(value) * jnp.abs(value))


_Branch = Callable[[Weights, _Rounded], _Rounded]


@precision.highest
def block_by_hand(weights: Weights, design: Design, tokens: Array) -> Array:
    """Tokens `(num_tokens, width)` behind a block: attention, then a feed-forward layer."""
    return _behind(weights, design, tokens, [_attention, _feed_forward]).value


@precision.highest
def attention_errors(weights: Weights, design: Design, states: Array) -> Array:
    """How far states of attention alone are off what it makes of those before, `(depth, 2)`.

    In each layer the largest deviation of an entry, and the most that rounding allows one: the
    bound of either way.

    Args:
        weights: of `depth` layers; W_1 and W_2 are not used.
        design: the same in all layers.
        states: `(depth + 1, num_tokens * width)`, the input first.
    """
    return _errors(weights, design, states, [_attention])


@precision.highest
def block_errors(weights: Weights, design: Design, states: Array) -> Array:
    """The same of blocks, attention and then a feed-forward layer, `(depth, 2)`."""
    return _errors(weights, design, states, [_attention, _feed_forward])


def _errors(weights: Weights, design: Design, states: Array, branches: Sequence[_Branch]) -> Array:
    width = weights.V.shape[-1]

    def one(at: tuple[Weights, Array, Array]) -> Array:
        weights, z, behind = at
        x = _behind(weights, design, z.reshape(-1, width), branches)
        off = jnp.abs(behind.reshape(x.value.shape) - x.value)
        return jnp.stack([jnp.max(off), 2 * jnp.max(x.error)])

    return jax.lax.map(one, (weights, states[:-1], states[1:]))


def _behind(
    weights: Weights, design: Design, tokens: Array, branches: Sequence[_Branch]
) -> _Rounded:
    x = _exact(tokens)
    for branch in branches:
        added = branch(weights, _norm(x, design.before).times(design.gain))
        added = _norm(added, design.inside).times(design.branch)
        x = _norm(x.times(design.skip) + added, design.after)
    return x


def _attention(weights: Weights, x: _Rounded) -> _Rounded:
    """`softmax(Q x · K x / √width) V x`, a row of logits less its largest."""
    logits = (x @ _exact(weights.Q).T) @ (x @ _exact(weights.K).T).T
    logits = logits.times(x.value.shape[1] ** -0.5)
    below = logits.value - jnp.max(logits.value, axis=1, keepdims=True)
    e = jnp.exp(below)
    shares = e / jnp.sum(e, axis=1, keepdims=True)
    # An exponential is off by its exponent's error and two eps of its own, their sum by one more
    # for each, and the quotient by both; by how much the largest logit is off is in all alike.
    eps = _eps(shares)
    exponent = jnp.max(logits.error + eps * jnp.abs(below), axis=1, keepdims=True)
    relative = 2 * (exponent + 2 * eps) + (len(shares) + 1) * eps
    return _Rounded(shares, shares * relative) @ (x @ _exact(weights.V).T)


def _feed_forward(weights: Weights, x: _Rounded) -> _Rounded:
    """`W_2 relu(W_1 x)`: a relu moves no error away."""
    h = x @ _exact(weights.W_1).T
    return _Rounded(jnp.where(h.value > 0, h.value, 0.0), h.error) @ _exact(weights.W_2).T


def norm_by_hand(x: Array) -> Array:
    """Each row less its mean, over its deviation."""
    return _norm(_exact(x), 1.0).value


def _norm(x: _Rounded, on: ArrayLike) -> _Rounded:
    """Each row less its mean, over its deviation; as it is where `on` is 0."""
    num, eps, kept = x.value.shape[1], _eps(x.value), jnp.asarray(on) > 0
    size = jnp.mean(jnp.abs(x.value), axis=1, keepdims=True)
    centred = x.value - jnp.mean(x.value, axis=1, keepdims=True)
    error = x.error + jnp.mean(x.error, axis=1, keepdims=True) + num * eps * size
    error = error + eps * jnp.abs(centred)
    # What is not taken has a slope too, which must not be infinite.
    spread = jnp.sqrt(jnp.where(kept, jnp.mean(centred**2, axis=1, keepdims=True), 1.0))
    # By the triangle inequality the deviation is off by the rms of what its entries are off by.
    of_spread = jnp.sqrt(jnp.mean(error**2, axis=1, keepdims=True)) + (num + 3) * eps * spread
    y = centred / spread
    rounded = _Rounded(y, error / spread + jnp.abs(y) * (of_spread / spread + eps))
    return _Rounded(
        jnp.where(kept, rounded.value, x.value), jnp.where(kept, rounded.error, x.error)
    )


def _exact(value: Array) -> _Rounded:
    return _Rounded(value, jnp.zeros_like(value))


def _eps(value: Array) -> float:
    return scaled.eps(value.dtype)
