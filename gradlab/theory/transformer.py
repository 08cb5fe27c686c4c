"""Tokens on their way through transformer blocks, and gradients back: wide, attention uniform.

Each token has the mean square q, any two the product c q. Uniform attention gives all tokens their
mean. A sublayer is `after(skip x + branch inside(f(gain before(x))))`, the norms 0 or 1; a design
is those six numbers (before, inside, after, gain, skip, branch), each one or one a sublayer.
Weights are N(0, 1/width) and independent, so that no cross term of the squares is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.models.activations import PHI, Activation
from gradlab.theory import attention, gauss


class Signal(NamedTuple):
    """Tokens at each sublayer; each `(num_sublayers,)`.

    Attributes:
        square: their mean square in front of it.
        apart: 1 less the correlation of two of them, there.
        added: what the branch adds to the mean square.
        total: the mean square of the sum, in front of a norm after it.
        apart_after: the same behind it.
        slope: the factor of the squared gradient through the norms and factors of the branch.
    """

    square: Array
    apart: Array
    added: Array
    total: Array
    apart_after: Array
    slope: Array


class Gradient(NamedTuple):
    """A gradient on its way back; each `(num_sublayers,)`.

    Attributes:
        tokens: the sum of the tokens' squared gradients in front of a sublayer.
        together: the square of the sum of their gradients, there.
        weight: the squared gradient of the branch's last matrix, V or W_2, over the width.
    """

    tokens: Array
    together: Array
    weight: Array


class BlockLaws(NamedTuple):
    """Blocks of attention and W_2 relu(W_1 x), wide, by block or depth; `(depth,)` each.

    Attributes:
        square_law: the mean square of the sum behind each block.
        square_beyond: what a finite width may do to it where no norm stands in between.
        last_law: log |dL/dW_2|²/width² of the last block of so many, of a loss v · norm(token).
        last_beyond: what the width may take from its mean.
        by_block_law: the same of each block in the deepest network.
        by_block_beyond: what the width may take from its mean.
    """

    square_law: Array
    square_beyond: Array
    last_law: Array
    last_beyond: Array
    by_block_law: Array
    by_block_beyond: Array


class AttentionLaws(NamedTuple):
    """Layers of uniform attention alone, wide, of orthogonal tokens; `(depth,)` each.

    Attributes:
        log_apart_law: log (1 - correlation) of two tokens behind each.
        log_share_law: the mean log of |dL/dQ|²/|dL/dV|² of each, `query_share` of drawn directions.
        log_beyond: what a finite width may take from the log of a square.
    """

    log_apart_law: Array
    log_share_law: Array
    log_beyond: Array


def block_laws(
    design: Sequence[ArrayLike], depth: int, width: int, start: ArrayLike, num_tokens: int
) -> BlockLaws:
    """What blocks do, attention uniform, from orthogonal tokens of rms `start`. Derived.

    The last matrix's gradient is the root of its branch's share in the sum (Xiong et al. 2020,
    theorem 1, has a bound with a factor √log width).
    """
    relu, kinds = PHI["relu"], jnp.arange(2 * depth) % 2 == 0
    signals = signal(relu, design, kinds, jnp.square(start), 0.0, num_tokens)
    back = gradient(relu, design, kinds, signals, num_tokens)
    behind = jnp.cumsum(lost_to_width(design, signals, width)[::-1])[::-1]
    end, spread = signals.total, relative_variance(signals, design[2], width)
    # |g|² in front of the last sum is d over its square, or d behind a norm after it.
    norm = jnp.where(jnp.asarray(design[2]) > 0, 1.0, end[-1])
    # Of the mean logs of relu's |a|², of v less two directions, and of norms around it.
    ends = (2.5 + 3 + 1 + 4) / width
    return BlockLaws(
        end[1::2],
        # Two tokens' correlation varies by at most 1/d, and relu's kernel curves by at most 1/π.
        jnp.cumsum(jnp.full(2 * depth, 2 / width))[1::2],
        jnp.log(signals.added / end)[1::2],
        spread[1::2] / 2 + ends,
        jnp.log(back.weight / norm)[1::2],
        behind[1::2] + ends,
    )


def attention_laws(
    design: Sequence[ArrayLike], depth: int, width: int, num_tokens: int
) -> AttentionLaws:
    """What layers of attention do to what orthogonal tokens of mean square 1 differ by. Derived."""
    alone = signal(PHI["relu"], design, jnp.ones(depth, bool), 1.0, 0.0, num_tokens)
    into = jnp.where(jnp.asarray(design[0]) > 0, 1.0, alone.square)
    # |a|² of a direction among T - 1, and |K w|² of one among d, are chi squared: their mean logs.
    halves = jnp.array([(num_tokens - 1) / 2, width / 2])
    means = jnp.sum(jax.scipy.special.digamma(halves) - jnp.log(halves))
    return AttentionLaws(
        jnp.log(alone.apart_after),
        jnp.log(query_share(into, alone.apart, num_tokens)) + means,
        jnp.cumsum(lost_to_width(design, alone, width)),
    )


class PreLaws(NamedTuple):
    """Pre-LN blocks of attention and W_2 relu(W_1 x), wide; `(depth,)` each.

    Attributes:
        square_law: the mean square behind each.
        square_beyond: what a finite width may do to it.
        distance_law: |(J - I) u|²/|u|² of each, u a white direction.
        distance_beyond: what a finite width may do to that.
    """

    square_law: Array
    square_beyond: Array
    distance_law: Array
    distance_beyond: Array


def pre_laws(gain: Array, depth: int, width: int, num_tokens: int) -> PreLaws:
    """What Pre-LN blocks do whose norms are multiplied by `gain`, `(depth,)`, attention uniform.

    Derived, from orthogonal tokens of mean square 1.
    """
    relu, kinds, gain = PHI["relu"], jnp.arange(2 * depth) % 2 == 0, jnp.repeat(gain, 2)
    signals = signal(relu, (1, 0, 0, gain, 1, 1), kinds, 1.0, 0.0, num_tokens)
    apart = from_identity(relu, kinds, signals, num_tokens)
    # Two tokens' correlation varies by at most 1/d, and relu's kernel curves by at most 1/π.
    beyond = jnp.cumsum(2 * gain**2 / width)[1::2]
    spread = relative_variance(signals, 0, width)[1::2]
    square, distance = signals.total[1::2], (1 + apart[::2]) * (1 + apart[1::2]) - 1
    # A norm keeps d - 2 of d directions, and the mean of 1/s is off 1 over that of s.
    off = distance * (4 / width + spread + 2 * beyond / square)
    return PreLaws(square, beyond, distance, off)


def signal(
    phi: Activation,
    design: Sequence[ArrayLike],
    is_attention: ArrayLike,
    square: ArrayLike,
    correlation: ArrayLike,
    num_tokens: int,
    rows: attention.Rows = attention.uniform,
) -> Signal:
    """The signal through sublayers, attention where `is_attention`, else `W_2 phi(W_1 x)`.

    Derived; the kernel of phi is Cho and Saul's 2009 for relu. Xiong et al. 2020, lemma 2, has the
    squares' bounds: attention adds between 0 and 1. `rows` says what attention's rows are like.
    """
    flags = jnp.asarray(is_attention, bool)

    def step(state: tuple[Array, Array], at: Any) -> tuple[tuple[Array, Array], Signal]:
        (q, apart), (is_mixing, (before, inside, after, gain, skip, branch)) = state, at
        into = gain**2 * jnp.where(before > 0, 1.0, q)
        one, gap = _made(phi, is_mixing, into, apart, num_tokens, rows)
        scale = branch**2 / jnp.where(inside > 0, one, 1.0)
        total = skip**2 * q + scale * one
        apart_after = (skip**2 * apart * q + scale * gap) / total
        slope = scale * gain**2 / jnp.where(before > 0, q, 1.0)
        seen = Signal(q, apart, scale * one, total, apart_after, slope)
        return (jnp.where(after > 0, 1.0, total), apart_after), seen

    start = jnp.asarray(square, float), 1 - jnp.asarray(correlation, float)
    return jax.lax.scan(step, start, (flags, _spread(design, flags.size)))[1]


def gradient(
    phi: Activation,
    design: Sequence[ArrayLike],
    is_attention: ArrayLike,
    signal: Signal,
    num_tokens: int,
) -> Gradient:
    """The gradient back through the sublayers that gave `signal`, of a loss that reads one token.

    From a squared gradient of 1 behind the last sublayer. Derived: back through attention all
    tokens get the mean of the gradients, which keeps their sum; back through phi two tokens keep
    E phi'(h_1) phi'(h_2) of their product.
    """
    flags = jnp.asarray(is_attention, bool)

    def step(state: tuple[Array, Array], at: Any) -> tuple[tuple[Array, Array], Gradient]:
        (own, sums), (is_mixing, (before, _, after, gain, skip, _), sublayer) = state, at
        own, sums = (jnp.where(after > 0, part / sublayer.total, part) for part in (own, sums))
        into = gain**2 * jnp.where(before > 0, 1.0, sublayer.square)
        one, gap = _made(phi, is_mixing, into, sublayer.apart, num_tokens)
        scale = sublayer.added / one  # of the branch, behind its last matrix
        weight = scale * (one * own + (one - gap) * (sums - own))
        back_own, back_sums = _slopes(phi, is_mixing, into, sublayer.apart, num_tokens, own, sums)
        own = skip**2 * own + sublayer.slope * back_own
        sums = skip**2 * sums + sublayer.slope * back_sums
        return (own, sums), Gradient(own, sums, weight)

    one = jnp.ones(())
    start = one, one
    over = flags, _spread(design, flags.size), signal
    return jax.lax.scan(step, start, over, reverse=True)[1]


def from_identity(
    phi: Activation,
    is_attention: ArrayLike,
    signal: Signal,
    num_tokens: int,
) -> Array:
    """`E |(J - I) u|²/|u|²` of a sublayer z + f(z), u a white direction, `(num_sublayers,)`.

    Derived: attention gives every token the mean of u, which has 1/num_tokens of its square. Of two
    sublayers, whose branches are independent, 1 plus this multiplies.
    """
    one = jnp.ones(())
    return signal.slope * jnp.where(
        jnp.asarray(is_attention, bool), 1 / num_tokens, gauss.moments(phi).slope_square(one)
    )


def word_for_word(square: ArrayLike, depth: int) -> Array:
    """`s + √s`, over and over, `(depth,)`: Sun et al. 2025's theorem with every constant 1.

    Their variances grow by the factor 1 + Theta(1/√s) a block, of which they conclude exp(depth);
    the recursion itself grows as depth²/4 (derived). Not read; from a second source.
    """

    def step(s: Array, _: None) -> tuple[Array, Array]:
        return (s + jnp.sqrt(s),) * 2

    return jax.lax.scan(step, jnp.asarray(square, float), None, length=depth)[1]


def relative_variance(signal: Signal, after: ArrayLike, width: ArrayLike) -> Array:
    """That of a token's square behind each sublayer, in front of a norm, `(num_sublayers,)`.

    To first order in 1/width: |r + V u|² spreads by (4 |r|² |V u|² + v |V u|⁴)/n, v at most a
    rectifier's 5 (`residual.typical_log`), and independent sublayers add; a norm starts anew.
    """
    rest, added = signal.total - signal.added, signal.added
    own = (4 * rest * added + 5 * added**2) / jnp.asarray(width, float)
    return jnp.where(jnp.asarray(after) > 0, own, jnp.cumsum(own)) / signal.total**2


def lost_to_width(design: Sequence[ArrayLike], signal: Signal, width: ArrayLike) -> Array:
    """What a sublayer of that width may take from the mean log of a gradient's square.

    `(num_sublayers,)`, to first order. A branch that is the share s of the sum takes
    (4 s (1 - s) + 5 s²)/(2 n), as in `relative_variance`; each norm keeps n - 2 of n directions.
    """
    share, num_norms = signal.added / signal.total, sum(map(jnp.asarray, design[:3]))
    return (4 * share * (1 - share) + 5 * share**2 + 4 * num_norms) / (
        2 * jnp.asarray(width, float)
    )


def query_share(square: ArrayLike, apart: ArrayLike, num_tokens: int) -> Array:
    """`|dL/dQ|²/|dL/dV|²` of the last attention, at Q = 0, of a loss that reads one token.

    `q² (1 - c)² (T - 1)/(T (1 + (T - 1) c))` for tokens that go in with mean square q and the
    correlation c: what tokens differ by comes in twice, once as values, once as keys, so that it is
    0 where all are one (Noci et al. 2022, abstract). Derived.
    """
    q, apart = jnp.asarray(square, float), jnp.asarray(apart, float)
    one = num_tokens - (num_tokens - 1) * apart
    return jnp.square(q * apart) * (num_tokens - 1) / (num_tokens * one)


def _made(
    phi: Activation,
    is_mixing: Array,
    q: Array,
    apart: Array,
    num_tokens: int,
    rows: attention.Rows = attention.uniform,
) -> tuple[Array, Array]:
    """The mean square that a branch makes of tokens, and by how much two's product is below it."""

    def mixed() -> tuple[Array, Array]:
        own, shared = rows(q, apart, num_tokens)
        return q * (1 - apart * (1 - own)), q * apart * (own - shared)

    def fed() -> tuple[Array, Array]:
        kernel = gauss.moments(phi)
        return kernel.square(q), kernel.gap(q, apart)

    return jax.lax.cond(is_mixing, mixed, fed)


def _slopes(
    phi: Activation,
    is_mixing: Array,
    q: Array,
    apart: Array,
    num_tokens: int,
    own: Array,
    sums: Array,
) -> tuple[Array, Array]:
    """The tokens' squared gradients and their sum's square, behind a branch to in front of it."""
    kernel = gauss.moments(phi)
    fed = kernel.slope_square(q) * own
    return (
        jnp.where(is_mixing, sums / num_tokens, fed),
        jnp.where(is_mixing, sums, fed + kernel.slope_pair(q, 1 - apart) * (sums - own)),
    )


def _spread(design: Sequence[ArrayLike], size: int) -> tuple[Array, ...]:
    return tuple(jnp.broadcast_to(jnp.asarray(part, float), (size,)) for part in design)
