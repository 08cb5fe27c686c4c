"""First order in 1/width, against closed forms, known laws and products that are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl

finite_width, products = gl.theory.finite_width, gl.theory.products
PHI = gl.activations.PHI


def test_the_kurtosis_of_erf_is_its_closed_form() -> None:
    q = jnp.array([0.01, 0.3, 2.0, 30.0])

    # phi' is exp(-a h²) up to a factor, whose mean power p is (1 + 2 p a q)^(-1/2).
    a = -float(jnp.log(jax.grad(PHI["erf"])(1.0) / jax.grad(PHI["erf"])(0.0)))
    closed = (1 + 8 * a * q) ** -0.5 * (1 + 4 * a * q)
    np.testing.assert_allclose(finite_width.kurtosis(PHI["erf"], q), closed, rtol=1e-8)


def test_the_variance_is_that_of_relu_and_of_linear_layers() -> None:
    assert finite_width.plain_variance(2.0, 100) == pytest.approx(5 / 100)  # half of phi'² is 0
    width = 1000
    exact = products.linear_log_variance(width)
    assert finite_width.plain_variance(1.0, width) == pytest.approx(exact, rel=2 / width)
    assert finite_width.log_factor(1.0, 2 / width) == pytest.approx(
        products.linear_log_mean(width) / 2, rel=1 / width
    )


@pytest.mark.parametrize("factor", [None, 0.7])
def test_the_mean_log_of_one_layer_is_met_by_layers_that_are_drawn(factor: float | None) -> None:
    phi, width, sigma_w, num_draws = PHI["tanh"], 32, 2.0, 40_000
    q = sigma_w**2

    def drawn(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 3)
        W = sigma_w * gl.ensembles.unit_gaussian(keys[0], (width, width), float)
        D = jax.vmap(jax.grad(phi))(jnp.sqrt(q) * jax.random.normal(keys[1], (width,)))
        g = jax.random.normal(keys[2], (width,))
        back = W.T @ (D * g)
        back = back if factor is None else g + factor * back
        return jnp.log(jnp.linalg.norm(back) / jnp.linalg.norm(g))

    logs = jax.jit(jax.vmap(drawn))(jax.random.split(jax.random.key(0), num_draws))
    chi, kurtosis = gl.theory.meanfield.chi(phi, q, sigma_w), finite_width.kurtosis(phi, q)
    if factor is None:
        gain, variance = chi, finite_width.plain_variance(kurtosis, width)
    else:
        gain = gl.theory.residual.gradient_factor(phi, q, sigma_w, factor)
        variance = finite_width.residual_variance(kurtosis, 1 - 1 / gain, width)
    sampling = 4 * float(jnp.std(logs)) / num_draws**0.5
    second_order = float(variance) ** 2 / 2
    expected = finite_width.log_factor(gain, variance)

    assert float(variance) / 4 > sampling + second_order  # what is tested is seen
    assert abs(float(jnp.mean(logs) - expected)) < sampling + second_order
