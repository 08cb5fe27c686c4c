"""The singular values and vectors of a chain's product, from its factors.

`L diag(d) U` becomes a column-scaled matrix times an orthogonal one by a QR of `U^T diag(d)`, and
one-sided Jacobi ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gradlab.arithmetic import scaled
from gradlab.arithmetic.scaled import Scaled
from gradlab.measuring.product_svd import factorisation, one_sided
from gradlab.measuring.product_svd.factors import Factors
from gradlab.measuring.product_svd.one_sided import Decomposition
from gradlab.models import chain
from gradlab.models.chain import Model


class Spectrum(NamedTuple):
    """Singular values in descending order, and those of them that rounding has made unknowable.

    Attributes:
        singular_values: `(num_depths, width_0)`, one exponent an entry; zero where a unit is dead
            or the chain has been narrower, nan where `lost`.
        lost: `(num_depths, width_0)`: the rank was lost other than by a row of zeros, so the true
            value is zero or too small, beside the rounding of one layer, to be known.
    """

    singular_values: Scaled
    lost: Array

    @property
    def log(self) -> Array:
        """`log sigma_i` (nats): minus infinity for an exact zero, nan where `lost`."""
        return scaled.log_magnitude(self.singular_values)


def singular_values(model: Model, x: Array, depths: Sequence[int]) -> Spectrum:
    """All singular values of `P_k` for every k in `depths`, `(num_depths, width_0)`."""
    factors, _ = factorisation.factorise(model, x, depths, None, ())
    # One after another: together, all depths would turn as often as the slowest.
    values = jax.lax.map(
        lambda at_one: one_sided.singular_values(_column_scaled(at_one, x.size)[0]), factors
    )
    lost = jax.vmap(_lost, (0, None))(factors, x.size)
    return Spectrum(_unknown_where(lost, values), lost)


def singular_vectors(model: Model, x: Array) -> Decomposition:
    """The singular values of `P_L` with both sides' vectors, one a column."""
    padded, _ = factorisation.factorise(model, x, (chain.depth(model),), None, ())
    widths = chain.widths(model, x)
    factors = jax.tree.map(lambda leaf: leaf[0], padded)
    X, Q = _column_scaled(factors._replace(L=factors.L[: widths[-1]]), min(x.size, *widths))
    found = one_sided.svd(X)
    values = found.singular_values
    values = _unknown_where(_lost(factors, values.mantissa.size), values)
    return found._replace(singular_values=values, right=Q @ found.right)


def _lost(factors: Factors, num: int) -> Array:
    """Which of `num` singular values are lost, `(num,)`: of the zeros, which come last, the first.

    The others are known to be zero.
    """
    num_known = jnp.sum(factors.d.mantissa != 0)
    index = jnp.arange(num)
    return (index >= num_known) & (index < num_known + factors.num_lost)


def _unknown_where(lost: Array, values: Scaled) -> Scaled:
    return Scaled(jnp.where(lost, jnp.nan, values.mantissa), values.exponent)


def _column_scaled(factors: Factors, num: int) -> tuple[Scaled, Array]:
    """`X` and an orthogonal `Q` with `L diag(d) U = X Q^T`, and an exponent a column in `X`.

    Of the columns of the factors no more than the first `num` are directions.
    """
    L, (d, U) = factors.L[:, :num], jax.tree.map(lambda leaf: leaf[:num], (factors.d, factors.U))
    right = one_sided.triangular(Scaled(U.T * d.mantissa[None, :], d.exponent[None, :]))
    return Scaled(L @ right.L.mantissa, right.L.exponent), right.Q
