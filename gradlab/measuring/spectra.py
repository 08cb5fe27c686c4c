"""Every singular value of a long product to high relative accuracy, and Lyapunov exponents.

Two quantities with two names. The *singular values* of `P_k` are those of the finite product;
the *Lyapunov exponents* are the rates at which the diagonal of a forward QR grows. Their logs
differ by a fraction of a nat to a few at any depth, which vanishes only in the rate.

The former are found by `product_svd`, which keeps every one of them to high relative accuracy;
`docs/product_svd.md` says how.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.arithmetic import precision, qr, scaled
from gradlab.measuring import compiled, linearisation, loops, product_svd, roundings
from gradlab.measuring.product_svd import Decomposition, Spectrum
from gradlab.models import chain
from gradlab.models.chain import Layer, Model


class Exponents(NamedTuple):
    """Lyapunov exponents (nats a layer, `(width,)`, descending) and their standard errors.

    Minus infinity where a unit is dead, and last of all nan where a layer takes a direction so near
    to nothing that rounding is all that is left of it.
    """

    values: Array
    standard_errors: Array


@precision.highest
@compiled.once
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
    return product_svd.singular_values(model, x, depths)


def log_singular_values(model: Model, x: Array, depths: Sequence[int]) -> Array:
    """`log sigma_i(P_k)` (nats) for every k in `depths`, `(num_depths, width_0)`.

    Minus infinity for an exact zero (a dead unit), nan where the rank is lost to rounding.
    """
    return singular_values(model, x, depths).log


@precision.highest
@compiled.once
def singular_vectors(model: Model, x: Array) -> Decomposition:
    """The singular values of `P_L` with both sides' vectors, one a column.

    The columns of `right`, `(width_0, r)`, are the input directions in the order in which they
    survive; those of `left`, `(width_L, r)`, are what becomes of them; r is the smallest width.
    """
    return product_svd.singular_vectors(model, x)


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
    values, errors = jnp.mean(means, axis=0), jnp.std(means, axis=0, ddof=1) / num_batches**0.5
    # A QR may let a direction lead that others overtake later, or that no layer mixes with them.
    order = jnp.argsort(-values)
    return Exponents(values[order], errors[order])


@precision.highest
@compiled.once
def log_growth(model: Model, x: Array) -> Array:
    """`log R_ii` (nats) of the forward QR `J_k Q_{k-1} = Q_k R`, `(depth, width)`: increments.

    nan where rounding may change `R_ii` by more than a tenth: there it is all that is left of a
    direction. Minus infinity where a unit is dead.
    """
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


def _grow(layer: Layer, carry: tuple[Array, Array], params: Any) -> Any:
    z, linear = linearisation.linearise(layer, params, carry[0])
    A = linear.times(params, carry[1])
    Q, R = qr.row_sorted(A)
    is_known = _is_known(A, Q, R, roundings.of_jacobian(linear, params))
    return (z, Q), jnp.where(is_known, jnp.log(jnp.diagonal(R)), jnp.nan)


def _is_known(A: Array, Q: Array, R: Array, uncertain: Array | None) -> Array:
    """Whether rounding may change each entry of the diagonal of R by less than a tenth.

    Of a change D of A it is `(Q^T D R^-1)_ii`, relative and to first order. D is the layer's own
    (the columns that it is multiplied by are orthonormal) and that of a row-wise stable QR, whose
    roundings are independent of each other (Higham and Mary 2019). Zeros have rows of zeros.
    """
    m, num = A.shape
    rows = m**0.5 * scaled.eps(A.dtype) * jnp.max(jnp.abs(A), axis=1)
    if uncertain is not None:
        rows += jnp.sum(uncertain, axis=1)
    k = min(m, num)
    pivots, eye = jnp.diagonal(R), jnp.eye(k, dtype=R.dtype)
    square = jnp.where((pivots == 0)[:, None], eye, R[:, :k])
    inverse = jax.scipy.linalg.solve_triangular(square, eye)
    change = jnp.linalg.norm(Q * rows[:, None], axis=0) * jnp.linalg.norm(inverse, axis=0)
    num_dead = jnp.sum(jnp.all(A == 0, axis=1))
    is_dead = (pivots == 0) & (jnp.sum(pivots == 0) <= num_dead)
    return is_dead | ((pivots != 0) & (change < roundings.UNKNOWN))
