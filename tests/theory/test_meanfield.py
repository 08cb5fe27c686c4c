import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.models.activations import PHI
from gradlab.theory import gauss, meanfield, residual

TANH, RELU = PHI["tanh"], PHI["relu"]
KEY = jax.random.key(11)
ROOT_2 = math.sqrt(2)


@cache
def jitted(f: Any, phi: Any) -> Any:
    return jax.jit(lambda *numbers: f(phi, *numbers))


def at(f: Any, phi: Any, *numbers: Any) -> Any:
    return np.asarray(jitted(f, phi)(*(jnp.asarray(number, float) for number in numbers)))


# ---- Gaussian averages


def test_the_formulas_of_erf_and_relu_are_those_of_the_literature() -> None:
    q = 1.7
    erf = gauss.moments(PHI["erf"])
    assert float(erf.square(jnp.asarray(q))) == pytest.approx(
        2 / math.pi * math.asin(2 * q / (1 + 2 * q)), rel=1e-14
    )
    assert float(erf.slope_square(jnp.asarray(q))) == pytest.approx(
        4 / math.pi / math.sqrt(1 + 4 * q), rel=1e-14
    )
    for c in (-1.0, -0.3, 0.0, 0.8, 1.0):
        known = (math.sqrt(1 - c * c) + c * (math.pi - math.acos(c))) / math.pi
        assert float(at(meanfield.C, RELU, c, q, ROOT_2, 0.0)) == pytest.approx(known, abs=1e-14)


# ---- fixed points


def test_tanh_has_the_fixed_points_and_depth_scales_given() -> None:
    # Half a unit of the last digit given.
    given = {
        meanfield.q_star: (0.60704679, 4.07912388),
        meanfield.chi_1: (0.93980743, 1.58522477),
        meanfield.c_star: (1.0, 0.12210375),
    }
    for f, values in given.items():
        np.testing.assert_allclose(at(f, TANH, [1.3, 2.5], 0.3), values, atol=6e-9)
    assert float(at(meanfield.xi_q, TANH, [1.3, 2.5], 0.3)[0]) == pytest.approx(1.33767, abs=6e-6)
    assert float(at(meanfield.xi_c, TANH, [1.3, 2.5], 0.3)[0]) == pytest.approx(16.10817, abs=6e-6)


def test_tanh_has_the_edge_of_chaos_given() -> None:
    sigma_b = jnp.sqrt(jnp.asarray([0.05, 0.01]))
    sigma_w = at(meanfield.sigma_w_critical, TANH, sigma_b)
    np.testing.assert_allclose(sigma_w**2, [1.7609546396, 1.4242052905], atol=6e-11)
    q = at(meanfield.q_critical, TANH, sigma_b)
    assert float(q[0]) == pytest.approx(0.5700478816, abs=6e-11)
    np.testing.assert_allclose(at(meanfield.q_star, TANH, sigma_w, sigma_b), q, rtol=1e-12)
    # 1e-12: rounding, amplified by the conditioning of a root.
    np.testing.assert_allclose(at(meanfield.chi_1, TANH, sigma_w, sigma_b), 1.0, atol=1e-12)


@pytest.mark.parametrize("name", ["tanh", "logistic", "softsign"])
def test_fixed_points_are_fixed_and_iteration_leads_to_them(name: str) -> None:
    phi, sigma_w, sigma_b = PHI[name], jnp.asarray([0.7, 1.1]), 0.4
    q = at(meanfield.q_star, phi, sigma_w, sigma_b)
    np.testing.assert_allclose(at(meanfield.V, phi, q, sigma_w, sigma_b), q, rtol=1e-13)
    run = jax.jit(lambda: meanfield.lengths(phi, jnp.ones(2), sigma_w, sigma_b, 400))()
    np.testing.assert_allclose(run[-1], q, rtol=1e-12)  # rounding over 1 - dV/dq


def test_c_star_is_fixed_and_attracts() -> None:
    sigma_w, sigma_b = 2.5, 0.3
    q, c = (
        at(meanfield.q_star, TANH, sigma_w, sigma_b),
        at(meanfield.c_star, TANH, sigma_w, sigma_b),
    )
    run = jax.jit(lambda: meanfield.correlations(TANH, 0.9, q, sigma_w, sigma_b, 200))()
    np.testing.assert_allclose(run[-1], c, atol=1e-12)  # rounding over 1 - C'
    distance = np.abs(run[60:62] - c)
    rate = -1 / math.log(distance[1] / distance[0])
    # The next term of the expansion in the distance, which after 60 layers is about 1e-5.
    assert rate == pytest.approx(float(at(meanfield.xi_c, TANH, sigma_w, sigma_b)), rel=1e-4)


def test_at_criticality_nothing_iterates_for_ever() -> None:
    q = at(meanfield.q_star, TANH, [0.5, 1.0, 1.0 + 1e-6], 0.0)
    np.testing.assert_array_equal(q[:2], 0.0)
    # V = sigma_w² (q - 2 q²) to first order: q* = sigma_w² - 1 over 2.
    assert float(q[2]) == pytest.approx(1e-6, rel=1e-5)
    np.testing.assert_allclose(at(meanfield.c_star, TANH, [0.5, 1.0, 1.5], 0.0)[:2], 1.0)
    assert abs(float(at(meanfield.c_star, TANH, [0.5, 1.0, 1.5], 0.0)[2])) < 1e-12
    scales = at(meanfield.xi_q, TANH, [0.5, 1.0, 1.5], 0.0)
    assert float(scales[0]) == pytest.approx(-1 / math.log(0.25))
    assert float(scales[1]) == math.inf


@pytest.mark.parametrize("name", ["tanh", "erf", "sin", "selu", "relu", "leaky_relu"])
def test_without_biases_the_edge_is_where_the_slope_at_zero_says(name: str) -> None:
    """`1/√E phi'(0)²`, over both sides of a kink; where q* is 0 or any number."""
    phi = PHI[name]
    slopes = phi.dphi(jnp.asarray([-1e-9, 1e-9]))
    # 1e-9: the slope's own change that near to 0; 1e-14: the quadrature's sum of a hundred terms.
    found, q = at(meanfield.sigma_w_critical, phi, 0.0), at(meanfield.q_critical, phi, 0.0)
    np.testing.assert_allclose(found, 1 / np.sqrt(np.mean(slopes**2)), rtol=2e-9)
    assert q == 0 or name in ("relu", "leaky_relu")


def test_the_edge_of_sin_is_known_where_biases_are_small_or_not_at_all() -> None:
    sigma_b = np.array([1e-13, 1e-8, 1e-5, 1e-3])
    q = at(meanfield.q_critical, PHI["sin"], sigma_b)
    # q - tanh q = sigma_b², where q³/3 is far below the rounding of q it is not known.
    assert np.isnan(q[0])
    expected = (3 * sigma_b[1:] ** 2) ** (1 / 3)
    # The next term of tanh is 2/5 q² of q³/3; a rounding of q moves it by eps/q².
    np.testing.assert_allclose(q[1:], expected, rtol=np.max(2 / 15 * q[1:] ** 2) + 1e-4)


def test_relu_says_where_lengths_grow_for_ever_and_where_they_stay() -> None:
    sigma_w = jnp.asarray([1.0, ROOT_2, 1.6])
    for sigma_b, expected in ((0.0, [0.0, math.nan, math.inf]), (0.3, [0.18, math.inf, math.inf])):
        np.testing.assert_allclose(at(meanfield.q_star, RELU, sigma_w, sigma_b), expected)
    np.testing.assert_allclose(at(meanfield.chi_1, RELU, sigma_w, 0.3), [0.5, 1.0, 1.28])
    np.testing.assert_array_equal(at(meanfield.c_star, RELU, sigma_w, 0.3), [1, 1, math.nan])
    assert float(at(meanfield.xi_grad, RELU, 1.0, 0.3)) == pytest.approx(1 / math.log(2))
    np.testing.assert_allclose(at(meanfield.sigma_w_critical, RELU, [0.0, 0.1]), [ROOT_2, math.nan])


def test_other_activations_have_no_fixed_point_either_where_lengths_grow() -> None:
    assert float(at(meanfield.q_star, PHI["elu"], 1.6, 0.1)) == math.inf
    assert float(at(meanfield.q_star, PHI["gelu"], 1.6, 0.1)) == math.inf


@pytest.mark.parametrize("phi", [TANH, RELU], ids=["tanh", "relu"])
def test_a_deviation_that_is_no_number_leaves_none(phi: Any) -> None:
    of_both = (meanfield.q_star, meanfield.c_star, meanfield.xi_q, meanfield.input_square)
    for f in (*of_both, meanfield.chi_1, meanfield.xi_c, meanfield.xi_grad):
        assert np.isnan(at(f, phi, math.nan, 0.3)), f.__name__
    for f in (meanfield.q_star, meanfield.input_square):
        assert np.isnan(at(f, phi, 1.1, math.nan)), f.__name__


def test_selu_holds_mean_0_and_variance_1() -> None:
    # Klambauer et al. 2017: at sigma_w = 1, sigma_b = 0 lengths 1 are a fixed point.
    assert float(at(meanfield.q_star, PHI["selu"], 1.0, 0.0)) == pytest.approx(1.0, abs=1e-12)


# ---- derivatives


def all_predictions(sigma_w: Any, sigma_b: Any) -> Any:
    names = ("q_star", "chi_1", "c_star", "xi_q", "xi_c")
    return jnp.stack([getattr(meanfield, name)(PHI["erf"], sigma_w, sigma_b) for name in names])


def test_predictions_are_differentiable_in_both_deviations() -> None:
    h = 1e-5
    points = jnp.asarray([[0.9, 0.3], [2.5, 0.3]])

    def f(point: Any) -> Any:
        return all_predictions(*point)

    exact = jax.jit(jax.vmap(jax.jacfwd(f)))(points)
    reverse = jax.jit(jax.vmap(jax.jacrev(f)))(points)
    shifts = h * jnp.asarray([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    values = jax.jit(jax.vmap(f))((points[:, None] + shifts[None]).reshape(-1, 2)).reshape(
        2, 2, 2, 5
    )
    numeric = jnp.swapaxes((values[:, :, 0] - values[:, :, 1]) / (2 * h), 1, 2)
    # Rounding, in two orders; the numeric slope: h² times a third derivative, and rounding over
    # h times the conditioning of the root.
    np.testing.assert_allclose(reverse, exact, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(exact, numeric, rtol=2e-6, atol=1e-7)


def test_a_user_function_works_and_equals_the_table() -> None:
    def mine(h: Any) -> Any:
        return jnp.tanh(h)

    for f in (meanfield.q_star, meanfield.chi_1):
        np.testing.assert_allclose(at(f, mine, 2.5, 0.3), at(f, TANH, 2.5, 0.3), rtol=1e-13)


# ---- against networks of finite width


def test_a_wide_network_has_the_length_and_the_factor_predicted() -> None:
    width, depth, sigma_w, sigma_b = 400, 12, 1.5, 0.3

    def layer(state: Any, key: Any) -> Any:
        z, v = state
        key_W, key_b = jax.random.split(key)
        W = sigma_w / math.sqrt(width) * jax.random.normal(key_W, (width, width))
        h = W @ z + sigma_b * jax.random.normal(key_b, (width,))
        v = TANH.dphi(h) * (W @ v)
        return (jnp.tanh(h), v), (jnp.mean(h * h), jnp.sum(v * v))

    start = jnp.ones(width) / math.sqrt(width)
    keys = jax.random.split(KEY, depth)
    _, (q, square) = jax.jit(lambda: jax.lax.scan(layer, (start, start), keys))()
    # Finite width: sd of q about √(2/width) = 7 %, of which half after averaging; of the mean log
    # factor over 8 layers about √(3/width/8) = 3 %. Three of them.
    assert np.mean(q[4:]) == pytest.approx(
        float(at(meanfield.q_star, TANH, sigma_w, sigma_b)), rel=0.1
    )
    measured = (math.log(square[-1]) - math.log(square[3])) / 8
    assert measured == pytest.approx(
        math.log(float(at(meanfield.chi_1, TANH, sigma_w, sigma_b))), abs=0.09
    )


def test_a_wide_residual_network_grows_as_predicted() -> None:
    width, depth, sigma_w, sigma_b, factor = 400, 8, 1.5, 0.3, 0.5

    def layer(state: Any, key: Any) -> Any:
        z, v = state
        key_W, key_b = jax.random.split(key)
        W = sigma_w / math.sqrt(width) * jax.random.normal(key_W, (width, width))
        h = W @ z + sigma_b * jax.random.normal(key_b, (width,))
        v = v + factor * TANH.dphi(h) * (W @ v)
        return (z + factor * jnp.tanh(h), v), (jnp.mean(h * h), jnp.sum(v * v))

    key_z, key_v, key_layers = jax.random.split(KEY, 3)
    z = jax.random.normal(key_z, (width,))
    z = z / jnp.sqrt(jnp.mean(z * z))
    v = jax.random.normal(key_v, (width,))
    v = v / jnp.linalg.norm(v)
    keys = jax.random.split(key_layers, depth)
    _, (q, square) = jax.jit(lambda: jax.lax.scan(layer, (z, v), keys))()
    predicted = residual.lengths(TANH, 1.0, sigma_w, sigma_b, factor, depth)
    # Finite width: three times √(2/width) for a length, √(depth/width) for the growth.
    np.testing.assert_allclose(q, predicted, rtol=0.2)
    growth = jnp.prod(residual.gradient_factor(TANH, predicted, sigma_w, factor))
    assert float(square[-1]) == pytest.approx(float(growth), rel=0.4)
