"""What a finite width does, against exact laws and chains of random layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl
from gradlab.theory import finite_width, products


@pytest.mark.parametrize(
    ("name", "sigma_w", "exact"),
    [
        ("linear", 1.3, products.linear_log_mean(200)),
        ("relu", 2**0.5, products.relu_log_mean(200)),
    ],
)
def test_it_is_the_exact_law(name: str, sigma_w: float, exact: float) -> None:
    phi = gl.activations.PHI[name]
    growth = finite_width.plain(phi, 1.0, sigma_w, 0.0, 200, 3)
    half = exact / 2 + np.log(sigma_w**2 * (0.5 if name == "relu" else 1.0)) / 2

    np.testing.assert_allclose(growth.infinite + growth.first, half, atol=1e-12)
    assert not growth.second.any()


@pytest.mark.parametrize("width", [2, 5, 300])
def test_the_log_of_a_mean_is_that_of_chi_squared_and_of_relu(width: int) -> None:
    linear, relu = (
        float(finite_width.log_of_mean(gl.activations.PHI[name], jnp.ones(()), width))
        for name in ("linear", "relu")
    )

    assert linear == pytest.approx(products.linear_log_mean(width), abs=1e-12)
    # It is cut where 2^-width is all that is left: rounding, where that is not small.
    assert relu == pytest.approx(products.relu_log_mean(width), abs=1e-3 if width == 2 else 1e-6)


# In chaos; at the edge, where lengths wander far from the fixed point; and not symmetric.
@pytest.mark.parametrize(
    ("name", "sigma_w", "sigma_b", "width", "num_draws"),
    [
        pytest.param("tanh", 2.0, 0.2, 64, 400, marks=pytest.mark.verify),
        ("tanh", 1.25, 0.01, 16, 2000),
        ("logistic", 2.0, 0.2, 16, 1000),
    ],
)
def test_a_gradient_falls_short_by_what_the_width_does(
    name: str, sigma_w: float, sigma_b: float, width: int, num_draws: int
) -> None:
    phi, depth = gl.activations.PHI[name], 20
    q = gl.theory.meanfield.q_star(phi, sigma_w, sigma_b)

    def grown(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 3)
        model = gl.ensembles.gaussian(keys[0], depth, width, phi, sigma_w, sigma_b)
        x = gl.ensembles.inputs(keys[1], width, (q - sigma_b**2) / sigma_w**2)
        row = jax.random.normal(keys[2], (width,))
        norms = gl.jacobians.log_gradient_norms(model, x, lambda z: row @ z)
        return norms[0] - norms[-1]

    draws = jax.jit(lambda key: jax.lax.map(grown, jax.random.split(key, num_draws)))(
        jax.random.key(1)
    )
    law = finite_width.plain(phi, q, sigma_w, sigma_b, width, depth)
    mean, error = gl.estimate.mean(draws)
    first = float(jnp.sum(law.first))

    assert abs(mean - float(jnp.sum(law.infinite)) - first) < 4 * error + float(jnp.sum(law.second))
    assert -first > 8 * error  # the infinite width alone would be seen to be wrong


def test_a_linear_residual_layer_is_a_noncentral_chi_square() -> None:
    phi, width, sigma_w = gl.activations.PHI["linear"], 50, 1.5
    law = finite_width.residual_branch(phi, 1.0, sigma_w, 0.0, 1.0, width, 1)
    G = jax.random.normal(jax.random.key(2), (200_000, width)) * sigma_w / width**0.5
    logs = jnp.log(jnp.sum(G.at[:, 0].add(1.0) ** 2, axis=1)) / 2
    mean, error = gl.estimate.mean(logs)

    assert abs(mean - float(law.infinite[0] + law.first[0])) < 4 * error + float(law.second[0])


def test_a_residual_branch_whose_slope_is_not_even_has_no_law() -> None:
    law = finite_width.residual_branch(gl.activations.PHI["relu"], 1.0, 1.0, 0.0, 1.0, 50, 2)

    assert np.isnan(law.infinite).all()


def test_the_mean_length_of_normal_weights_is_that_of_an_exact_integral() -> None:
    phi, width, sigma_w, q_1 = gl.activations.PHI["sin"], 400, 1.3, 0.8
    q, added = finite_width.mean_lengths(phi, q_1, sigma_w, 0.0, width, 3)
    # q_3 is sigma_w² (1 - E exp(-2 q_2))/2, q_2 a mean of independent sin², with exact transform.
    z, weights = np.polynomial.hermite_e.hermegauss(200)
    neuron = np.exp(-2 * sigma_w**2 * np.sin(np.sqrt(q_1) * z) ** 2 / width) @ weights
    exact = sigma_w**2 * (1 - (neuron / np.sqrt(2 * np.pi)) ** width) / 2

    assert abs(float(added[2])) > 1e-4
    assert float((q + added)[2]) == pytest.approx(exact, abs=3 * float(added[2]) ** 2)


def test_the_mean_length_of_uniform_weights_is_a_product_of_sinc() -> None:
    phi, sigma_w = gl.activations.PHI["sin"], 1.3
    x = np.tile([0.0, 0.0, np.sqrt(3)], 70)[:198]  # of mean square 1 and mean fourth power 3
    edge = np.sqrt(3 / 198) * sigma_w
    exact = sigma_w**2 * (1 - np.prod(np.sinc(2 * edge * x / np.pi))) / 2
    q, added = finite_width.mean_lengths(phi, sigma_w**2, sigma_w, 0.0, 198, 2, excess=-1.2)

    assert abs(float(added[1])) > 3e-4
    assert float((q + added)[1]) == pytest.approx(exact, abs=10 * float(added[1]) ** 2)


def test_what_is_left_behind_relu_is_the_exact_law_and_nothing_is_left_out() -> None:
    relu, width, depth = gl.activations.PHI["relu"], 32, 3
    chi, left, beyond = finite_width.left_of_gradient(relu, 1.0, 0.0, 0.0, width, depth)
    uniform = finite_width.left_of_gradient(relu, 1.0, 0.0, -1.2, width, depth)
    exact = (products.relu_log_mean(width) + np.log(0.5)) / 2

    np.testing.assert_allclose(chi, 0.5, rtol=1e-12)
    np.testing.assert_allclose(left, exact * np.arange(1, depth + 1), rtol=1e-6)
    assert float(jnp.max(beyond)) < 1e-12 < float(jnp.min(uniform[2]))


def test_lengths_that_vanish_do_so_as_those_of_their_linear_part() -> None:
    # gelu is h/2 near 0, and a linear layer of normal weights keeps the mean length exactly.
    gelu, sigma_w, depth, width = gl.activations.PHI["gelu"], 0.9, 130, 50
    q, added = finite_width.mean_lengths(gelu, 1e-12, sigma_w, 0.0, width, depth)
    short = finite_width.mean_lengths(gelu, 1e-12, sigma_w, 0.0, width, 8)[0]

    # Relative to gelu's slope 1/2, its curvature moves a length by less than its square root.
    np.testing.assert_allclose(short, 1e-12 * (sigma_w / 2) ** (2 * np.arange(8)), rtol=1e-6)
    assert (q > 0).all()
    assert float(jnp.max(jnp.abs(added / q))) < 1e-6
