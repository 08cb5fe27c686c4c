"""Normalised layers: limits that are published, and wide random layers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl
from gradlab.models.activations import PHI
from gradlab.theory import normalisation

RELU, TANH, LINEAR = PHI["relu"], PHI["tanh"], PHI["linear"]


@pytest.mark.parametrize("batch_size", [4, 5, 16, 64])
def test_the_identity_has_the_factor_of_the_paper(batch_size: int) -> None:
    factor = normalisation.batch_norm_factor(LINEAR, batch_size)

    np.testing.assert_allclose(factor, (batch_size - 2) / (batch_size - 3), rtol=1e-13)


def test_relu_tends_to_the_limit_of_the_paper() -> None:
    np.testing.assert_allclose(
        normalisation.batch_norm_factor(RELU, 1e9), math.pi / (math.pi - 1), rtol=1e-8
    )


@pytest.mark.parametrize(("phi", "batch_size"), [(TANH, 8), (RELU, 3), (LINEAR, 2)])
def test_where_no_law_is_known_it_is_nan(phi: gl.activations.Activation, batch_size: int) -> None:
    assert math.isnan(float(normalisation.batch_norm_factor(phi, batch_size)))


def grown(name: str, width: int, batch_size: int, key: jax.Array) -> jax.Array:
    """log |gradient|² over eight layers, after ten of which the batch has settled."""
    key_chain, key_batch, key_back = jax.random.split(key, 3)
    model = gl.networks.NETWORKS[name](key_chain, 20, width, gl.networks.Made(0.6, 0.0, 0.0))
    z = gl.networks.states(name, jax.random.normal(key_batch, (batch_size, width)))[0]
    back = jax.random.normal(key_back, z.shape)
    norms = gl.jacobians.log_gradient_norms(model, z, lambda z: back @ z)
    return 2 * (norms[-10] - norms[-2])


@pytest.mark.parametrize(("name", "batch_size"), [("batch norm", 8), ("layer norm", 1)])
def test_wide_layers_follow_the_law(name: str, batch_size: int) -> None:
    width, num_draws = 256, 40
    one = jax.jit(lambda key: grown(name, width, batch_size, key))
    draws = jnp.stack([one(key) for key in jax.random.split(jax.random.key(5), num_draws)])
    law = {
        "batch norm": normalisation.batch_norm_factor(RELU, batch_size),
        "layer norm": normalisation.layer_norm_factor(RELU),
    }[name]
    sampling = 4 * float(draws.std(ddof=1)) / math.sqrt(num_draws)
    # The log is below the log of the mean by half its variance, which 8 layers of draws show.
    finite_width = float(draws.var(ddof=1)) / 2 + 8 / width

    assert abs(float(draws.mean()) - 8 * math.log(float(law))) < sampling + finite_width
