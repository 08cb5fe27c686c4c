"""Laws of residual layers against fractions, mpmath and matrices that were drawn."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from gradlab.models.activations import PHI
from gradlab.theory import gauss, products, residual

EPS = 2.3e-16


@pytest.mark.parametrize("norms", [[0.5], [0.1, 0.2, 0.9], [1e-12] * 5, [0.0, 0.0]])
def test_bounds_are_the_products_of_one_plus_and_minus_the_norms(norms: list[float]) -> None:
    with mpmath.workdps(40):
        below = float(mpmath.fsum(mpmath.log(1 - mpmath.mpf(n)) for n in norms))
        above = float(mpmath.fsum(mpmath.log(1 + mpmath.mpf(n)) for n in norms))
    # A rounding for each log and each sum.
    allowed = 2 * len(norms) * EPS
    assert float(residual.log_lower_bound(jnp.asarray(norms))) == pytest.approx(below, rel=allowed)
    assert float(residual.log_upper_bound(jnp.asarray(norms))) == pytest.approx(above, rel=allowed)


def test_nothing_is_promised_of_a_branch_of_norm_one_and_nan_stays() -> None:
    found = residual.log_lower_bound(np.array([[0.5, 1.0], [0.5, 3.0], [0.5, math.inf]]))
    np.testing.assert_array_equal(found, [-math.inf] * 3)
    for bound in (residual.log_lower_bound, residual.log_upper_bound):
        assert np.isnan(bound(np.array([0.5, math.nan])))


def test_every_singular_value_of_a_drawn_product_is_within_the_bounds() -> None:
    branches = np.random.default_rng(0).normal(size=(6, 5, 5)) * 0.08
    norms = np.linalg.norm(branches, 2, axis=(1, 2))
    assert norms.max() < 1
    product = np.linalg.multi_dot([np.eye(5) + branch for branch in branches])
    logs = np.log(np.linalg.svd(product, compute_uv=False))
    assert float(residual.log_lower_bound(jnp.asarray(norms))) <= logs.min()
    assert logs.max() <= float(residual.log_upper_bound(jnp.asarray(norms)))


@pytest.mark.parametrize("w", [-0.5, -2.5, 0.25, -1.0])
@pytest.mark.parametrize("depth", [1, 50, 10**6])
def test_the_scalar_product_is_a_power_of_one_plus_w(w: float, depth: int) -> None:
    got = float(residual.log10_scalar_product(w, depth))
    expected = depth * math.log10(abs(1 + w)) if w != -1 else -math.inf
    assert got == pytest.approx(expected, rel=3 * EPS)


@pytest.mark.parametrize("depth", [1, 2, 10])
def test_the_second_moment_of_a_linear_chain_is_a_power(depth: int) -> None:
    s = 0.25
    exact = (1 + Fraction(s) ** 2) ** depth
    assert float(residual.linear_second_moment(s, depth)) == pytest.approx(
        float(exact), rel=4 * EPS * depth
    )
    log = float(residual.log_linear_second_moment(s, depth))
    assert log == pytest.approx(math.log(exact), rel=4 * EPS)


def test_the_second_moment_is_that_of_drawn_layers() -> None:
    s, depth, width, num = 0.5, 3, 4, 20000
    G = np.random.default_rng(0).normal(size=(num, depth, width, width)) / math.sqrt(width)
    v = np.zeros((num, width, 1))
    v[:, 0] = 1
    for k in range(depth):
        v = v + s * G[:, k] @ v
    squares = (v**2).sum(axis=(1, 2))
    error = squares.std() / math.sqrt(num)
    assert abs(squares.mean() - float(residual.linear_second_moment(s, depth))) < 4 * error


@pytest.mark.parametrize("name", ["tanh", "erf", "linear"])
def test_a_layers_factor_and_lengths_follow_from_the_averages(name: str) -> None:
    phi, sigma_w, sigma_b, factor, start = PHI[name], 1.3, 0.2, 0.5, 0.7
    q = jnp.asarray(0.9)
    chi = sigma_w**2 * float(gauss.moments(phi).slope_square(q))
    got = residual.gradient_factor(phi, q, sigma_w, factor)
    assert float(got) == pytest.approx(1 + factor**2 * chi, rel=8 * EPS)
    lengths = jax.jit(lambda: residual.lengths(phi, start, sigma_w, sigma_b, factor, 4))()
    state, expected = start, []
    for _ in range(4):
        expected.append(sigma_w**2 * state + sigma_b**2)
        state += factor**2 * float(gauss.moments(phi).square(jnp.asarray(expected[-1])))
    np.testing.assert_allclose(lengths, expected, rtol=1e-14)  # some roundings of sums of one sign


def test_a_linear_branch_of_gain_one_has_lengths_that_double() -> None:
    lengths = residual.lengths(PHI["linear"], 1.0, 1.0, 0.0, 1.0, 6)
    np.testing.assert_allclose(lengths, 2.0 ** np.arange(6), rtol=1e-14)


def test_a_normalised_branch_is_one_part_in_what_it_is_added_to() -> None:
    added, slope = residual.preactivation(PHI["relu"], 1.0, 2**0.5, 1.0, 1000, normalised=True)

    # The product of 1 + 1/l to 1000 is 1001.
    assert float(jnp.prod(1 + added)) == pytest.approx(1001, rel=1e-12)
    np.testing.assert_allclose(slope, added, rtol=1e-12)


def test_the_typical_log_is_that_of_a_noncentral_chi_squared() -> None:
    width, c = 2000, 0.5  # |r + √c g|²/n of normal numbers g: twice c over n is its variance
    g = jax.random.normal(jax.random.key(1), (4000, width))
    logs = jnp.log(jnp.mean((1 + jnp.sqrt(c) * g) ** 2, axis=1))
    law, added = residual.typical_log(c, 2.0, width)
    error = float(jnp.std(logs)) / 4000**0.5

    assert abs(float(jnp.mean(logs) - law - added)) < 4 * error + 10 * float(added) ** 2
    np.testing.assert_allclose(jnp.var(logs), -2 * added, rtol=0.1)


@pytest.mark.parametrize("c", [0.1, 0.5, 4.0])
def test_the_typical_log_is_right_to_second_order_in_the_width(c: float) -> None:
    widths = np.array([100, 400])
    exact = [products.identity_plus_log_mean(int(n), math.sqrt(c / n)) for n in widths]
    law, added = residual.typical_log(c, 2.0, widths)
    left = np.array([law + own - one for own, one in zip(added, exact, strict=True)])

    assert left[0] == pytest.approx(16 * left[1], rel=0.1)  # third order: a few over the width
    assert (np.abs(left) < 0.1 * np.abs(added)).all()
