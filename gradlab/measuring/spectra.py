"""Every singular value of a long product to high relative accuracy, and Lyapunov exponents.

Two quantities with two names. The *singular values* of `P_k` are those of the finite product;
the *Lyapunov exponents* are the rates at which the diagonal of a forward QR grows. Their logs
differ by a fraction of a nat to a few at any depth, which vanishes only in the rate.

The product is kept as `L diag(d) U` (`passes`): a rank-revealing decomposition, which determines
every singular value to high relative accuracy (Demmel et al. 1999); `one_sided.svd` ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.arithmetic import precision, scaled
from gradlab.arithmetic.scaled import Scaled
from gradlab.measuring import linearisation, loops
from gradlab.measuring.product_svd import one_sided, passes
from gradlab.measuring.product_svd.graded import Factors
from gradlab.models import chain
from gradlab.models.chain import Layer, Model


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


@precision.highest
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
    factors, _ = passes.through(model, x, depths, None, ())
    # One after another: together, all depths would turn as often as the slowest.
    values = jax.lax.map(
        lambda at_one: one_sided.singular_values(_column_scaled(at_one, x.size)[0]), factors
    )
    # Zeros come last, and of those the ones that were lost are not known to be zero.
    num_known = jnp.sum(factors.d.mantissa != 0, axis=1)
    num_known, num_lost = (num[:, None] for num in (num_known, factors.num_lost))
    place = jnp.arange(x.size)[None, :]
    return Spectrum(values, (place >= num_known) & (place < num_known + num_lost))


def log_singular_values(model: Model, x: Array, depths: Sequence[int]) -> Array:
    """`log sigma_i(P_k)` (nats) for every k in `depths`, `(num_depths, width_0)`.

    Minus infinity for an exact zero (a dead unit), nan where the rank is lost to rounding.
    """
    return singular_values(model, x, depths).log


@precision.highest
def singular_vectors(model: Model, x: Array) -> one_sided.Decomposition:
    """The singular values of `P_L` with both sides' vectors, one a column.

    The columns of `right`, `(width_0, r)`, are the input directions in the order in which they
    survive; those of `left`, `(width_L, r)`, are what becomes of them; r is the smallest width.
    """
    padded, _ = passes.through(model, x, (chain.depth(model),), None, ())
    widths = chain.widths(model, x)
    factors = jax.tree.map(lambda leaf: leaf[0], padded)
    X, Q = _column_scaled(factors._replace(L=factors.L[: widths[-1]]), min(x.size, *widths))
    decomposition = one_sided.svd(X)
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


@precision.highest
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


def _column_scaled(factors: Factors, num: int) -> tuple[Scaled, Array]:
    """`X` and an orthogonal `Q` with `L diag(d) U = X Q^T`, and an exponent a column in `X`.

    Of the columns of the factors no more than the first `num` are directions.
    """
    L, (d, U) = factors.L[:, :num], jax.tree.map(lambda leaf: leaf[:num], (factors.d, factors.U))
    right = one_sided.triangular(Scaled(U.T * d.mantissa[None, :], d.exponent[None, :]))
    return Scaled(L @ right.L.mantissa, right.L.exponent), right.Q


def _grow(layer: Layer, carry: tuple[Array, Array], params: Any) -> Any:
    z, A = linearisation.push(layer, params, *carry)
    Q, R, _ = one_sided.graded_qr(A)
    return (z, Q), jnp.log(jnp.diagonal(R))
