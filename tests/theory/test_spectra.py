"""Spectra of J Jᵀ: closed forms, the least value of the inverse, its series, a drawn product."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.theory import spectra

KEY = jax.random.key(3)


def test_the_largest_eigenvalue_of_a_linear_gaussian_product_has_its_closed_form() -> None:
    for depth, given in ((1, 4.0), (2, 6.75), (4, 12.20703125)):
        measured = math.exp(float(spectra.log_largest_eigenvalue(depth, 1.0, "gaussian")))
        assert measured == pytest.approx(given, rel=1e-14)  # rounding
    deep = math.exp(float(spectra.log_largest_eigenvalue(1000, 1.0, "gaussian")))
    assert deep == pytest.approx(math.e * 1000.5, rel=1e-6)  # e (depth + ½): next term 1/depth²


@pytest.mark.parametrize("weights", spectra.LAWS)
@pytest.mark.parametrize("p", [0.3, 0.5, 0.9])
def test_the_largest_eigenvalue_is_the_least_value_of_the_inverse(weights: Any, p: float) -> None:
    z = jnp.logspace(-4, 6, 200_001)
    for depth in (1, 3, 20):
        least = jnp.min(spectra.log_M_inverse(z, depth, p, weights))
        predicted = spectra.log_largest_eigenvalue(depth, p, weights)
        # The grid: a step of 1e-4 in log z; where the least value is at infinity, 1/z of its end.
        assert abs(float(least - predicted)) < 1e-5 * depth
        assert float(predicted) <= float(least) + 1e-12


@pytest.mark.parametrize("weights", spectra.LAWS)
def test_the_series_of_the_inverse_has_mean_1_and_the_variance_given(weights: Any) -> None:
    # M(z) = 1/z + m_2/z² + ...: at large z the inverse of M at y = M(z) is z.
    depth, p = 3, 0.6
    y = 1e-4
    z = math.exp(float(spectra.log_M_inverse(y, depth, p, weights)))
    m_2 = (y - 1 / z) * z * z
    # The third moment over z: of the order of 100 y.
    assert m_2 - 1 == pytest.approx(float(spectra.variance(depth, p, weights)), rel=0.01)


def test_deep_wide_linear_products_have_the_spectrum_predicted() -> None:
    width, depth = 250, 3
    W = jax.random.normal(KEY, (depth, width, width)) / math.sqrt(width)
    eigenvalues = np.linalg.svd(np.linalg.multi_dot(list(np.asarray(W))), compute_uv=False) ** 2
    largest = math.exp(float(spectra.log_largest_eigenvalue(depth, 1.0, "gaussian")))
    assert 0.85 < eigenvalues[0] / largest < 1.05  # finite width: a few percent low at 1000
    # Finite width and one draw: 10 % of the variance at width 250.
    assert np.var(eigenvalues) == pytest.approx(
        float(spectra.variance(depth, 1.0, "gaussian")), rel=0.15
    )


def test_an_orthogonal_linear_product_has_no_spread() -> None:
    assert float(spectra.variance(7, 1.0, "orthogonal")) == 0
    assert float(spectra.log_largest_eigenvalue(7, 1.0, "orthogonal")) == 0


@pytest.mark.parametrize(("depth", "p"), [(1, 0.5), (2, 0.5), (4, 0.75), (5, 0.9)])
def test_few_orthogonal_layers_reach_the_bound_that_no_product_exceeds(
    depth: int, p: float
) -> None:
    # The inverse falls for ever, to p^-depth, where depth (1 - p) is at most 1: at 1 too.
    found = float(spectra.log_largest_eigenvalue(depth, p, "orthogonal"))
    assert found == pytest.approx(-depth * math.log(p), rel=1e-15)


def test_unknown_weights_are_named() -> None:
    with pytest.raises(ValueError, match="one of gaussian, orthogonal, not 'haar'"):
        spectra.variance(1, 0.5, "haar")
