"""Every singular value of a long product to high relative accuracy, and Lyapunov exponents.

Two quantities with two names. The *singular values* of `P_k` are those of the finite product;
the *Lyapunov exponents* are the rates at which the diagonal of a forward QR grows. Their logs
differ by a fraction of a nat to a few at any depth, which vanishes only in the rate.

The product is kept as `L diag(d) U` (`graded`): a rank-revealing decomposition, which determines
every singular value to high relative accuracy (Demmel et al. 1999); `jacobi.svd` ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab import chain, graded, jacobi, linearisation, loops, scaled
from gradlab.chain import Layer, Model
from gradlab.graded import Factors, Gaps, Step
from gradlab.scaled import Scaled

# Up to how many powers of two by which a direction has caught up on another no layer of a chain
# needs to be refined, and none to be taken in carefully. Random networks of 100 to 10^4 layers were
# seen to reach 10 to 14, chains of random triangles 12 to 37.
_CAUGHT_UP = np.array([12, 16], np.int32)

# From the factors after a layer, what the layer was, and what was seen before, to what is seen.
See = Callable[[Factors, Step, Any], Any]


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
    values = jax.vmap(lambda f: jacobi.singular_values(_column_scaled(f)[0]))(factors)
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
    X, Q = _column_scaled(walk(model, x, None, ())[0])
    decomposition = jacobi.svd(X)
    return decomposition._replace(right=Q @ decomposition.right)


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


def _column_scaled(factors: Factors) -> tuple[Scaled, Array]:
    """`X` and an orthogonal `Q` with `L diag(d) U = X Q^T`, and an exponent a column in `X`."""
    d = factors.d
    U = jacobi.triangular(Scaled(factors.U.T * d.mantissa[None, :], d.exponent[None, :]))
    return Scaled(factors.L @ U.L.mantissa, U.L.exponent), U.Q


def walk(model: Model, x: Array, see: See | None, seen: Any) -> tuple[Factors, Any]:
    """The last factors, and `seen` after `seen = see(factors, step, seen)` at every layer."""
    return _walk(model, x, see is not None, see or _nothing, seen)


def _walk(model: Model, x: Array, with_steps: bool, see: Any, seen: Any) -> tuple[Factors, Any]:
    parts = chain.checked(model, x)

    def quickly() -> _Walked:
        def step(layer: Layer, carry: Any, params: Any) -> tuple[Any, None]:
            z, factors, gaps, loss, seen = carry
            z, factors, own, taken = graded.advance_quickly(layer, params, z, factors, with_steps)
            gaps = graded.next_gaps(gaps, factors.d)
            return (z, factors, gaps, jnp.maximum(loss, own), see(factors, taken, seen)), None

        carry = x, graded.start(x), graded.no_gaps(x), jnp.zeros((), x.dtype), seen
        for segment in parts:
            carry, _ = loops.scan(partial(step, segment.layer), carry, segment)
        _, factors, gaps, loss, after = carry
        needed = jnp.where(loss <= graded.LOSS, _grade(factors, gaps), graded.REFINED)
        return _Walked(factors, after, needed)

    def exactly(grade: Array) -> _Walked:
        def step(layer: Layer, carry: Any, params: Any) -> tuple[Any, None]:
            z, factors, gaps, seen = carry
            z, factors, gaps, taken = graded.advance_exactly(
                *(layer, params, z, factors, gaps, grade, with_steps)
            )
            return (z, factors, gaps, see(factors.factors, taken, seen)), None

        start = graded.start(x)
        carry = x, graded.Exactly(start, jnp.zeros_like(start.L)), graded.no_gaps(x), seen
        for segment in parts:
            carry, _ = loops.scan(partial(step, segment.layer), carry, segment)
        _, (factors, _), gaps, after = carry
        return _Walked(factors, after, _grade(factors, gaps))

    # A few roundings a layer in each of the directions.
    num_steps = chain.depth(model) * max(chain.widths(model, x))
    if num_steps * scaled.eps(x.dtype) <= graded.LOSS:
        first = quickly()
    else:
        shapes = jax.eval_shape(exactly, jnp.zeros((), jnp.int32))
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        first = nothing._replace(needed=jnp.asarray(graded.REFINED, jnp.int32))
    # How many digits it takes is known at the end: if there were too few, then once more.
    _, walked = jax.lax.while_loop(
        lambda state: state[0] < state[1].needed,
        lambda state: (state[1].needed, exactly(state[1].needed)),
        (jnp.asarray(graded.QUICK, jnp.int32), first),
    )
    return walked.factors, walked.seen


class _Walked(NamedTuple):
    """The end of a way through a chain, and the grade that it should have had, at least."""

    factors: Factors
    seen: Any
    needed: Array


def _grade(factors: Factors, gaps: Gaps) -> Array:
    """What a chain that ends like this has to be gone through with, at least.

    Rounding is magnified by every direction that falls behind another and catches up.
    """
    by_gaps = jnp.sum(jnp.max(gaps.caught_up) > _CAUGHT_UP, dtype=jnp.int32)
    # Where rounding has ended a direction, nobody knows on whom it would have caught up.
    return jnp.where(jnp.any(factors.lost), graded.CAREFUL, by_gaps)


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
        (_padded(graded.start(x), shape), seen),
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

    L = pad(factors.L, *shape[::-1])
    rest = jax.tree.map(lambda leaf: pad(leaf, shape[0], *leaf.shape[1:]), factors[1:])
    return Factors(L, *rest)


def _grow(layer: Layer, carry: tuple[Array, Array], params: Any) -> Any:
    z, A = linearisation.push(layer, params, *carry)
    Q, R, _ = jacobi.graded_qr(A)
    return (z, Q), jnp.log(jnp.diagonal(R))
