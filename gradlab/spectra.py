"""Every singular value of a long product to high relative accuracy, and Lyapunov exponents.

Two quantities with two names. The *singular values* of `P_k` are those of the finite product;
the *Lyapunov exponents* are the rates at which the diagonal of a forward QR grows. Their logs
differ by a fraction of a nat to a few at any depth, which vanishes only in the rate.

The product is kept as `L diag(d) U` with `L` and `U` well conditioned and an exponent for every
entry of `d`: a rank-revealing decomposition, which determines every singular value to high
relative accuracy (Demmel et al. 1999), and in which nothing is ever lost beside a larger number.
A layer is taken in by Gaussian elimination (`elimination`), and `jacobi.svd` ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab import chain, doubled, elimination, jacobi, linearisation, loops, scaled
from gradlab.chain import Layer, Model
from gradlab.doubled import Doubled
from gradlab.elimination import Eliminated, Quick
from gradlab.scaled import Scaled

# Elimination in working precision may lose this much of a logarithm (nats), by one layer that is
# nearly singular or by all of a deep chain. Otherwise, as in float32 by every layer, it is refined.
_LOSS = 1e-11
# And no column may be overtaken by another in a layer by more than this, or than twice the width.
_OVERTAKEN = 16.0

# And no direction may catch up on another by more powers of two than this: random networks of 100
# layers were seen to reach 10, chains of random triangles 13 and more.
_CAUGHT_UP = 12

# From the factors after a layer, what the layer was, and what was seen before, to what is seen.
See = Callable[["Factors", "Step", Any], Any]


class Spectrum(NamedTuple):
    """Singular values in descending order, and those of them that rounding has made unknowable.

    Attributes:
        singular_values: `(num_depths, width_0)`, one exponent an entry; zero where a unit is dead
            or the chain has been narrower.
        lost: `(num_depths, width_0)`: the rank was lost other than by a row of zeros, so the true
            value is zero or too small, beside the entries of one layer, to be known.
    """

    singular_values: Scaled
    lost: Array

    @property
    def log(self) -> Array:
        """`log sigma_i` (nats): minus infinity for an exact zero, nan where `lost`."""
        return jnp.where(self.lost, jnp.nan, scaled.log_magnitude(self.singular_values))


class Exponents(NamedTuple):
    """Lyapunov exponents (nats a layer, `(width,)`, descending) and their standard errors."""

    values: Array
    standard_errors: Array


class Factors(NamedTuple):
    """`P_k = L diag(d) U`, with r columns left.

    Attributes:
        L: `(width_k, r)`, in doubled digits, since later layers magnify its rounding; a column is
            zero where d is.
        d: `(r,)`, an exponent an entry, roughly descending, zero where the rank is lost.
        U: `(r, width_0)`, its rows' largest entries in [1, 2), or zero where d is.
        lost: `(r,)`, where d was set to zero because it was made of rounding.
    """

    L: Doubled
    d: Scaled
    U: Array
    lost: Array


class Gaps(NamedTuple):
    """How far directions were behind others, in powers of two.

    Attributes:
        largest: `(r, r)`, the most that direction i ever was behind direction j, negative.
        caught_up: `(r,)`, the most that any has caught up on j since then, at most to where j is.
    """

    largest: Array
    caught_up: Array


class Step(NamedTuple):
    """One layer: the factors before it, with columns in pivots' order, its Jacobian, and its `L R`.

    `J` is `(width_k, width_{k-1})`, by a power of two as `L R = J before.L` needs it; `error`, a
    scalar, is the relative error of a term in those sums.
    """

    before: Factors
    J: Array
    eliminated: Eliminated
    error: Array


def singular_values(model: Model, x: Array, depths: Sequence[int]) -> Spectrum:
    """All singular values of `P_k` for every k in `depths`, `(num_depths, width_0)`.

    One for every input direction. The error of each log is a few roundings a layer and the log's
    own ulp, whatever the size of the others and however nearly singular the layers, as long as no
    direction falls very far behind another and catches up (`certificate.singular_value_bound`).

    Args:
        model: the chain.
        x: its input, `(width_0,)`.
        depths: ascending depths from 1 to the model's.
    """
    factors, _ = at_depths(model, x, depths, None, ())
    values = jax.vmap(lambda f: _svd(f).singular_values)(factors)
    # Zeros come last, and of those the ones that were lost are not known to be zero.
    num_known = jnp.sum(factors.d.mantissa != 0, axis=1, keepdims=True)
    place = jnp.arange(x.size)[None, :]
    num_lost = jnp.sum(factors.lost, axis=1, keepdims=True)
    return Spectrum(values, (place >= num_known) & (place < num_known + num_lost))


def log_singular_values(model: Model, x: Array, depths: Sequence[int]) -> Array:
    """`log sigma_i(P_k)` (nats) for every k in `depths`, `(num_depths, width_0)`.

    Minus infinity for an exact zero (a dead unit), nan where the rank is lost to rounding.
    """
    return singular_values(model, x, depths).log


def singular_vectors(model: Model, x: Array) -> jacobi.Decomposition:
    """The singular values of `P_L` with both sides' vectors, one a column.

    The columns of `right`, `(width_0, r)`, are the input directions in the order in which they
    survive; those of `left`, `(width_L, r)`, are what becomes of them; r is the smallest width.
    """
    return _svd(walk(model, x, None, ())[0])


def lyapunov_exponents(model: Model, x: Array, burn_in: int, num_batches: int) -> Exponents:
    """The mean growth of each direction of a forward QR (Benettin et al. 1980), `(width,)`.

    Args:
        model: a chain that keeps its width.
        x: its input, `(width,)`.
        burn_in: layers at the start that align the directions and are not counted.
        num_batches: contiguous batches of layers whose means give the standard error; they must
            be longer than the memory of the chain. At least 2.
    """
    logs = log_growth(model, x)[burn_in:]
    if not 2 <= num_batches <= logs.shape[0]:
        raise ValueError(
            f"num_batches is {num_batches}; allowed are 2 to {logs.shape[0]}, the layers left."
        )
    length = logs.shape[0] // num_batches
    means = jnp.mean(logs[: length * num_batches].reshape(num_batches, length, -1), axis=1)
    error = jnp.std(means, axis=0, ddof=1) / num_batches**0.5
    return Exponents(jnp.mean(means, axis=0), error)


def log_growth(model: Model, x: Array) -> Array:
    """`log R_ii` (nats) of the forward QR `J_k Q_{k-1} = Q_k R`, `(depth, width)`: increments."""
    parts = chain.checked(model, x)
    carry: tuple[Array, Array] = x, orthogonal_start(x)
    logs = []
    for segment in parts:
        carry, log = loops.scan(partial(_grow, segment.layer), carry, segment)
        logs.append(log)
    if carry[0].shape != x.shape or any(log.shape[1] != x.size for log in logs):
        raise ValueError("Lyapunov exponents belong to a chain that keeps its width.")
    return jnp.concatenate(logs)


def orthogonal_start(x: Array) -> Array:
    """The orthogonal matrix that a forward QR starts from, `(width_0, width_0)`.

    Fixed and without structure: it makes sure that no direction that a layer singles out lies
    exactly along one of its columns, where it would stay.
    """
    normal = np.random.default_rng(0).normal(size=(x.size, x.size))
    return jnp.asarray(np.linalg.qr(normal)[0], x.dtype)


def start(x: Array) -> Factors:
    """The factors of the empty product."""
    eye = jnp.eye(x.size, dtype=x.dtype)
    zeros = jnp.zeros(x.size, jnp.int32)
    return Factors(Doubled(eye, 0 * eye), Scaled(eye.sum(axis=0), zeros), eye, zeros > 0)


def advance(
    layer: Layer,
    params: Any,
    z: Array,
    factors: Factors,
    gaps: Gaps,
    may_be_quick: Any,
    with_step: bool,
) -> tuple[Array, Factors, Gaps, Step | None]:
    """The next state, the factors after one layer, and what the layer was, if that is wanted.

    `may_be_quick` is an array, or None for never.
    """
    z_next, linear = linearisation.linearise(layer, params, z)

    def jacobian() -> Array:
        return linear.jacobian(params)

    def careful() -> tuple[Factors, Gaps, Any]:
        J = scaled.scale(jacobian())
        done = elimination.careful(J.mantissa, factors.L, scaled.log_2(factors.d))
        before = _in_order(factors, done.order)
        after, _ = _absorb(before, done, J.exponent[0, 0])
        largest = gaps.largest[done.order[:, None], done.order[None, :]]
        permuted = Gaps(largest, gaps.caught_up[done.order])
        return after, permuted, (before, done) if with_step else ()

    columns = linear.times(params, factors.L.high)
    quick = elimination.quick(columns)
    can_refine = columns.shape[1] <= columns.shape[0]

    def absorbed(done: Eliminated) -> tuple[tuple[Factors, Gaps, Any], Array]:
        after, T = _absorb(factors, done, jnp.zeros((), jnp.int32))
        return (after, gaps, (factors, done) if with_step else ()), T

    def refined() -> tuple[tuple[Factors, Gaps, Any], Array]:
        return absorbed(elimination.refined(jacobian(), factors.L, quick))

    def refined_or_careful() -> tuple[Factors, Gaps, Any]:
        return loops.unless(loss <= limit, refined()[0], careful)

    is_refined = can_refine and may_be_quick is None
    best, T = refined() if is_refined else absorbed(quick.done)
    loss = _loss(quick, factors.d, T)
    # Refining squares what rounding has made of the factors.
    limit = scaled.eps(z.dtype) ** 0.5 / 2 if can_refine else _LOSS
    stands = loss <= (limit if is_refined else _LOSS)
    if can_refine and may_be_quick is not None:
        stands = stands & may_be_quick
        after, gaps, seen = loops.unless(stands, best, refined_or_careful)
    else:
        after, gaps, seen = loops.unless(stands, best, careful)
    gaps = _next_gaps(gaps, after.d)
    if not with_step:
        return z_next, after, gaps, None
    J = jacobian()
    J = jnp.where(loss <= limit, J, scaled.scale(J).mantissa)
    own = elimination.eps(z.dtype) if is_refined else scaled.eps(z.dtype)
    beyond = jnp.where(loss <= limit, elimination.eps(z.dtype), doubled.eps(z.dtype))
    error = jnp.where(stands, own, beyond)
    return z_next, after, gaps, Step(seen[0], J, seen[1], error.astype(z.dtype))


def _next_gaps(gaps: Gaps, d: Scaled) -> Gaps:
    r = len(d.mantissa)
    # A direction that is gone comes back no more, and none catches up on it.
    is_gone = d.mantissa == 0
    own, other = (jnp.where(is_gone, far, d.exponent) for far in (-(2**30), 2**30))
    gap = jnp.minimum(own[:, None] - other[None, :], 0)
    largest = jnp.minimum(gaps.largest[:r, :r], gap)
    return Gaps(largest, jnp.maximum(gaps.caught_up[:r], jnp.max(gap - largest, axis=0)))


def _in_order(factors: Factors, order: Array) -> Factors:
    """The factors with the directions in another order."""
    L = jax.tree.map(lambda part: part[:, order], factors.L)
    return Factors(L, *jax.tree.map(lambda leaf: leaf[order], factors[1:]))


def _absorb(before: Factors, layer: Eliminated, exponent: Array) -> tuple[Factors, Array]:
    """`L R diag(d) U 2^exponent` as factors, and the T of `R diag(d) = diag(new d) T`."""
    k = layer.R.shape[0]
    d = before.d
    pivots = jnp.abs(jnp.diagonal(layer.R))
    gone = pivots == 0
    new = Scaled(pivots * d.mantissa[:k], d.exponent[:k] + exponent)
    # Columns are in descending order: the ratio is large only where that has changed.
    shift = jnp.minimum(d.exponent[None, :] - d.exponent[:k, None], 64)
    row = 1 / jnp.where(gone, 1, new.mantissa)[:, None]
    T = layer.R * row * d.mantissa[None, :] * scaled.power_of_two(shift, layer.R.dtype)
    U = scaled.rescale(Scaled(linearisation.matmul(T, before.U), new.exponent[:, None]))
    new = scaled.rescale(Scaled(new.mantissa, U.exponent[:, 0]))
    L = jax.tree.map(lambda part: jnp.where(gone[None, :], 0, part), layer.L)
    return Factors(L, new, U.mantissa, before.lost[:k] | layer.lost), T


def _loss(quick: Quick, d: Scaled, T: Array) -> Array:
    """What the quick elimination of a layer may lose (nats); infinite where it cannot be told."""
    R, k, sizes = quick.done.R, quick.done.R.shape[0], quick.sizes
    pivots = jnp.diagonal(R)
    gone = pivots == 0
    # Rounding changes a row by its size; R^-1 carries that to the columns. Signs without
    # a pattern give a fair sample of it.
    signs = jnp.asarray(np.random.default_rng(0).choice([-1, 1], size=k), R.dtype)
    square = jnp.where(gone[:, None], jnp.eye(k, dtype=R.dtype), R[:, :k])
    change = jax.lax.linalg.triangular_solve(
        square, jnp.where(gone, 0, sizes * signs)[:, None], left_side=True
    )
    largest, reach = jnp.max(sizes), 2.0 ** (scaled.largest_exponent(R.dtype) // 2)
    can_be_told = (
        (jnp.max(jnp.abs(T)) <= max(_OVERTAKEN, 2 * k))
        & (largest < reach)
        & (largest > 1 / reach)
        # A pivot may be gone with a dead unit, or with a direction that is gone already.
        & jnp.all(~gone | (sizes == 0) | (d.mantissa[:k] == 0))
    )
    return jnp.where(can_be_told, scaled.eps(R.dtype) * jnp.max(jnp.abs(change)), jnp.inf)


def _svd(factors: Factors) -> jacobi.Decomposition:
    """The decomposition of `L diag(d) U`."""
    d = factors.d
    U = jacobi.triangular(Scaled(factors.U.T * d.mantissa[None, :], d.exponent[None, :]))
    side = jacobi.svd(Scaled(factors.L.high @ U.L.mantissa, U.L.exponent))
    return side._replace(right=U.Q @ side.right)


def walk(model: Model, x: Array, see: See | None, seen: Any) -> tuple[Factors, Any]:
    """The last factors, and `seen` after `seen = see(factors, step, seen)` at every layer."""
    return _walk(model, x, see is not None, see or _nothing, seen)


def _walk(model: Model, x: Array, with_steps: bool, see: Any, seen: Any) -> tuple[Factors, Any]:
    parts = chain.checked(model, x)

    def attempt(may_be_quick: Any) -> tuple[Factors, Any, Gaps]:
        def step(layer: Layer, carry: Any, params: Any) -> tuple[Any, None]:
            z, factors, seen, gaps = carry
            z, factors, gaps, taken = advance(
                *(layer, params, z, factors, gaps, may_be_quick, with_steps)
            )
            return (z, factors, see(factors, taken, seen), gaps), None

        none = Gaps(jnp.zeros((x.size, x.size), jnp.int32), jnp.zeros(x.size, jnp.int32))
        carry = x, start(x), seen, none
        for segment in parts:
            carry, _ = loops.scan(partial(step, segment.layer), carry, segment)
        return carry[1:]

    # Rounding is magnified by every direction that falls behind another and catches up; how far
    # the worst of them does grows with the number of layers and of directions.
    num_steps = chain.depth(model) * max(chain.widths(model, x))
    if num_steps * scaled.eps(x.dtype) > _LOSS:
        return attempt(None)[:2]

    # If it was too far, which is known at the end, then once more, and no layer is quick.
    def is_unfinished(state: Any) -> Array:
        count, (_, _, gaps) = state
        return (count == 0) | ((count == 1) & jnp.any(gaps.caught_up > _CAUGHT_UP))

    shapes = jax.eval_shape(attempt, jax.ShapeDtypeStruct((), bool))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    _, (factors, seen, _) = jax.lax.while_loop(
        is_unfinished,
        lambda state: (state[0] + 1, attempt(state[0] == 0)),
        (jnp.zeros((), jnp.int32), nothing),
    )
    return factors, seen


def at_depths(
    model: Model, x: Array, depths: Sequence[int], see: See | None, seen: Any
) -> tuple[Factors, Any]:
    """`(factors, seen)` as they stand at every depth asked for, `(num_depths, ...)`.

    The factors are padded with zeros to the input's width, and their columns to the largest.

    Args:
        model: the chain.
        x: its input, `(width_0,)`.
        depths: ascending depths from 1 to the model's.
        see: as in `walk`.
        seen: what it starts from, a pytree of arrays.
    """
    chain.checked(model, x)
    num_layers = chain.depth(model)
    slots = _slots(depths, num_layers)
    shape = x.size, max(chain.widths(model, x))
    if list(depths) == [num_layers]:
        factors, seen = walk(model, x, see, seen)
        return jax.tree.map(lambda leaf: leaf[None], (_padded(factors, shape), seen))

    def store(factors: Factors, step: Any, carry: Any) -> Any:
        count, seen, stored = carry
        seen = (see or _nothing)(factors, step, seen)
        stored = jax.tree.map(
            lambda old, leaf: jax.lax.dynamic_update_index_in_dim(old, leaf, slots[count], 0),
            stored,
            (_padded(factors, shape), seen),
        )
        return count + 1, seen, stored

    empty = jax.tree.map(
        lambda leaf: jnp.zeros((len(depths) + 1, *leaf.shape), leaf.dtype),
        (_padded(start(x), shape), seen),
    )
    carry = jnp.zeros((), jnp.int32), seen, empty
    _, (_, _, stored) = _walk(model, x, see is not None, store, carry)
    at_each: tuple[Factors, Any] = jax.tree.map(lambda leaf: leaf[:-1], stored)
    return at_each


def _nothing(factors: Factors, step: Any, seen: Any) -> Any:
    del factors, step
    return seen


def _slots(depths: Sequence[int], num_layers: int) -> Array:
    """For every layer the slot that its factors go to: the last one for what nobody asked for."""
    wanted = list(depths)
    if not wanted or wanted != sorted(set(wanted) & set(range(1, num_layers + 1))):
        raise ValueError(
            f"depths must be ascending whole numbers from 1 to {num_layers}, not {wanted}."
        )
    slots = np.full(num_layers, len(wanted))
    slots[np.array(wanted) - 1] = np.arange(len(wanted))
    return jnp.asarray(slots)


def _padded(factors: Factors, shape: tuple[int, int]) -> Factors:
    """Factors of r directions as factors of `shape[0]`, the columns of L padded to `shape[1]`."""

    def pad(leaf: Array, *shape: int) -> Array:
        return jnp.zeros(shape, leaf.dtype).at[tuple(map(slice, leaf.shape))].set(leaf)

    L = jax.tree.map(lambda part: pad(part, *shape[::-1]), factors.L)
    rest = jax.tree.map(lambda leaf: pad(leaf, shape[0], *leaf.shape[1:]), factors[1:])
    return Factors(L, *rest)


def _grow(layer: Layer, carry: tuple[Array, Array], params: Any) -> Any:
    z, A = linearisation.push(layer, params, *carry)
    Q, R, _ = jacobi.graded_qr(A)
    return (z, Q), jnp.log(jnp.diagonal(R))
