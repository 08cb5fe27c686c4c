"""QR by its definition, row by row: the factors in exact arithmetic give back what was factored."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.arithmetic import qr

ROW_SORTED = jax.jit(qr.row_sorted)
SHAPES = [(1, 1), (5, 1), (6, 4), (4, 4), (3, 5), (9, 9)]


def product(Q: Any, R: Any) -> Any:
    """`Q R` in fractions."""
    exact = np.vectorize(lambda value: Fraction(float(value)), otypes=[object])
    return exact(np.asarray(Q)) @ exact(np.asarray(R))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("decades", [0, 15])
def test_every_row_is_right_beside_itself_whatever_its_scale(
    shape: tuple[int, int], dtype: str, decades: int
) -> None:
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-decades, decades, shape[0])
    A = jnp.asarray(rng.normal(size=shape) * scale[:, None], dtype)
    Q, R = ROW_SORTED(A)
    eps, k = float(jnp.finfo(dtype).eps), min(shape)
    assert (Q.shape, R.shape) == ((shape[0], k), (k, shape[1]))
    # Householder's method: m n roundings of half an ulp for each column, and a growth of rows of
    # at most √m (1 + √2)^(n - 1), which random rows do not come near (Cox and Higham 1998): √m.
    allowed = shape[0] * shape[1] * np.sqrt(shape[0]) * eps
    rows = np.abs(np.asarray(A, float)).max(axis=1)
    error = np.abs((product(Q, R) - product(A, np.eye(shape[1]))).astype(float)).max(axis=1)
    assert (error / rows).max() <= allowed
    gram = product(Q.T, Q).astype(float)
    np.testing.assert_allclose(gram, np.eye(k), rtol=0, atol=allowed)
    np.testing.assert_array_equal(np.tril(R, -1), np.zeros(R.shape))
    assert (np.diagonal(R) >= 0).all()


def test_an_upper_triangle_with_a_positive_diagonal_is_its_own_factor() -> None:
    R = jnp.asarray([[4.0, 1.0, -2.0], [0.0, 2.0, 5.0], [0.0, 0.0, 1.0]])
    found_Q, found_R = ROW_SORTED(R)
    # A few roundings of numbers up to 5.
    np.testing.assert_allclose(found_Q, np.eye(3), rtol=0, atol=1e-15 * 8)
    np.testing.assert_allclose(found_R, R, rtol=0, atol=1e-15 * 8 * 5)


def test_zeros_stay_zeros_and_nan_is_not_hidden() -> None:
    Q, R = ROW_SORTED(jnp.zeros((4, 3)))
    np.testing.assert_array_equal(R, np.zeros((3, 3)))
    np.testing.assert_array_equal(Q.T @ Q, np.eye(3))
    assert np.isnan(ROW_SORTED(jnp.eye(3).at[1, 1].set(jnp.nan))[1]).any()
