"""One-sided Jacobi against singular values in arbitrary precision, columns of any scale."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlab.arithmetic import scaled
from gradlab.arithmetic.scaled import Scaled
from gradlab.measuring.product_svd import one_sided
from tests import arbitrary

WIDTH = 5
SVD = jax.jit(one_sided.svd)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0, 3, 5000]))
def test_jacobi_is_right_for_columns_of_any_scale(seed: int, spread: Any) -> None:
    rng = np.random.default_rng(seed)
    Y = rng.normal(size=(7, WIDTH))
    e = np.sort(rng.integers(-spread, spread + 1, size=WIDTH))[rng.permutation(WIDTH)]
    side = SVD(Scaled(jnp.asarray(Y), jnp.asarray(e, jnp.int32)[None]))
    exact = arbitrary.log_singular_values([Y], bits=25_000, exponents=e)
    # A few roundings for each of five columns, magnified by the condition of Y, and ulps.
    bound = 2.3e-16 * (20 * np.linalg.cond(Y) + 2 * np.abs(exact))
    assert (np.abs(scaled.log_magnitude(side.singular_values) - exact) <= bound).all()


@pytest.mark.parametrize("spread", [0, 200])
@pytest.mark.parametrize(("num_rows", "num_columns"), [(1, 1), (4, 1), (2, 2), (9, 8), (13, 13)])
def test_values_are_the_same_with_and_without_vectors(
    num_rows: Any, num_columns: Any, spread: Any
) -> None:
    rng = np.random.default_rng(num_columns)
    Y = rng.normal(size=(num_rows, num_columns))
    e = rng.integers(-spread, 1, size=num_columns)
    X = Scaled(jnp.asarray(Y), jnp.asarray(e, jnp.int32)[None])
    both, alone = SVD(X), scaled.log_magnitude(jax.jit(one_sided.singular_values)(X))
    values = np.asarray(scaled.log_magnitude(both.singular_values))
    # A few roundings a column, magnified by the condition of Y, and the ulp of the log.
    rounding = 2.3e-16 * 20 * num_columns * np.linalg.cond(Y)
    assert (np.abs(alone - values) <= rounding + 2.3e-16 * np.abs(values)).all()
    for vectors in (np.asarray(both.left), np.asarray(both.right)):
        gram = vectors.T @ vectors
        np.testing.assert_allclose(gram, np.eye(num_columns), rtol=0, atol=5e-15 * num_columns)
    product = (np.asarray(both.left) * np.exp(values)) @ np.asarray(both.right).T
    # Beside the largest entry: vectors are right as vectors, not entry by entry.
    np.testing.assert_allclose(product, Y * 2.0**e, rtol=0, atol=rounding * np.abs(Y).max())
