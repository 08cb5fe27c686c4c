"""Normalised layers: limits that are published, and wide random layers."""

import math
from typing import Any

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


# ---- without a normaliser


@pytest.mark.parametrize(
    ("name", "gain"),
    [
        # Quadrature with mpmath at 20 digits; relu in closed form.
        ("relu", math.sqrt(2 * math.pi / (math.pi - 1))),
        ("gelu", 1.70092624336),
        ("silu", 1.78718722210),
        ("tanh", 1.59253741972),
        ("elu", 1.27084341785),
        ("selu", 1.0),
        ("logistic", 4.80131337204),
        ("softplus", 1.91912598011),
        ("softsign", 2.33753336311),
        ("leaky_relu", 1.70483162718),
    ],
)
def test_the_gain_gives_an_activation_variance_1(name: str, gain: float) -> None:
    assert float(normalisation.unit_gain(PHI[name])) == pytest.approx(gain, rel=1e-11)


def test_the_variance_of_a_skip_rises_by_alpha_squared_and_starts_anew_in_each_stage() -> None:
    found = normalisation.skip_variances(0.2, (3, 1, 2))

    np.testing.assert_allclose(found, [1, 1.04, 1.08, 1.12, 1.04, 1.04, 1.08], rtol=1e-15)


def test_what_a_block_does_to_the_squared_gradient_is_its_jacobians_mean_square() -> None:
    # One linear activation a branch: I + alpha W/beta, and (I + alpha V) W/beta in a first block.
    log, taken = normalisation.skip_gradient(LINEAR, 0.5, (2, 1), 1, 10**9)
    first, second, third = 1 + 0.25, 1 + 0.25 / 1.25, (1 + 0.25) / 1.5

    np.testing.assert_allclose(
        log, np.log([first * second * third, second * third, third, 1.0]), rtol=1e-14, atol=1e-15
    )
    assert float(jnp.max(jnp.abs(taken))) < 1e-7


def test_channels_of_linear_blocks_have_no_mean_and_add_their_variances() -> None:
    free, bare = (
        normalisation.channel_statistics(LINEAR, kind, 0.5, (2, 1), 1000)
        for kind in ("normaliser-free", "nothing")
    )

    np.testing.assert_allclose(free, [[1.25, 1.5, 1.25], [0.0] * 3, [1.0] * 3], atol=1e-14)
    np.testing.assert_allclose(bare, [[2.0, 4.0, 8.0], [0.0] * 3, [1.0, 2.0, 4.0]], atol=1e-14)


def test_relu_channels_behind_batch_norm_have_the_arc_cosine_kernels_mean() -> None:
    found = normalisation.channel_statistics(RELU, "batch norm", 0.2, (2, 2), 10**9)
    share = np.asarray([1, 2, 1, 2]) + 1  # the first block's shortcut is a layer too
    # Cho and Saul 2009: the kernel of two orthogonal inputs is 1/pi of that of one.
    expected: Any = [share * (1 - 1 / math.pi), share / math.pi, np.full(4, 1 - 1 / math.pi)]

    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_the_mean_that_a_width_leaves_bounds_that_of_wide_random_layers() -> None:
    width, num = 64, 400
    gain = float(normalisation.unit_gain(RELU))

    def squared_mean(key: jax.Array) -> jax.Array:
        key_W, key_x = jax.random.split(key)
        x = jax.random.normal(key_x, (2, width))
        W = gl.networks.standardised_rows(jax.random.normal(key_W, (width, width)))
        return jnp.mean(jnp.prod((gain * RELU(x)) @ W.T, axis=0))

    found = np.asarray(jax.lax.map(squared_mean, jax.random.split(jax.random.key(5), num)))
    bound = float(normalisation.channel_mean_left(RELU, 1e-9, (1,), 2, width)[0])
    error = found.std() / math.sqrt(num)
    # Of one layer it is the bound itself, to first order in 1/width.
    assert abs(found.mean() - bound) < 4 * error + bound * 8 / width


def test_an_unknown_kind_of_block_is_named() -> None:
    with pytest.raises(ValueError, match="kind is one of normaliser-free, batch norm, nothing"):
        normalisation.channel_statistics(LINEAR, "layer norm", 0.5, (2,), 8)
