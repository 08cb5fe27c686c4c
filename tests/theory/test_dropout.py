"""Dropout's fixed point against arbitrary precision, closed forms, and a drawn layer."""

import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from gradlab.models.activations import PHI
from gradlab.theory import dropout, meanfield

TANH, RELU = PHI["tanh"], PHI["relu"]


def relu_map(c: mp.mpf) -> mp.mpf:
    """Cho and Saul 2009, of He weights."""
    return (mp.sqrt(1 - c * c) + c * (mp.pi - mp.acos(c))) / mp.pi


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.999])
def test_relu_settles_where_keep_times_its_map_does(keep: float) -> None:
    """With weights of variance 2 keep/width lengths stay, and C is keep times that without."""
    found = dropout.apart_star(RELU, 1.0, math.sqrt(2 * keep), keep)

    root = mp.findroot(lambda c: keep * relu_map(c) - c, (0.0, 1 - 1e-9), solver="anderson")
    assert float(found) == pytest.approx(float(1 - root), rel=1e-9)
    slope = keep * (mp.pi - mp.acos(root)) / mp.pi
    scale = dropout.depth_scale(RELU, 1.0, found, math.sqrt(2 * keep))
    assert float(scale) == pytest.approx(float(-1 / mp.log(slope)), rel=1e-8)


def test_tanh_settles_where_an_independent_quadrature_does() -> None:
    sigma_w, sigma_b, keep = 1.5, 0.3, 0.8
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()

    def pair(q: float, c: float) -> float:
        u, v = np.meshgrid(nodes, nodes)
        second = c * u + math.sqrt(1 - c * c) * v
        values = np.tanh(math.sqrt(q) * u) * np.tanh(math.sqrt(q) * second)
        return float(weights @ values @ weights)

    q, c = 1.0, 0.5
    for _ in range(400):
        q = sigma_w**2 / keep * pair(q, 1.0) + sigma_b**2
    for _ in range(400):
        c = (sigma_w**2 * pair(q, c) + sigma_b**2) / q
    found = meanfield.q_star(TANH, sigma_w / math.sqrt(keep), sigma_b)

    # 1e-7: what Gauss-Hermite with 80 nodes leaves, the poles of tanh being near.
    assert float(found) == pytest.approx(q, rel=1e-7)
    assert float(dropout.apart_star(TANH, found, sigma_w, keep)) == pytest.approx(1 - c, rel=1e-7)


def test_a_fixed_point_stays_and_without_dropout_copies_do() -> None:
    q = meanfield.q_star(TANH, 1.4, 0.2)
    star = dropout.apart_star(TANH, q, 1.4 * math.sqrt(0.95), 0.95)

    stays = dropout.apart(TANH, q, star, 1.4 * math.sqrt(0.95), 0.95)
    assert float(stays) == pytest.approx(float(star), rel=1e-10)
    assert float(dropout.apart(TANH, q, 0.0, 1.4, 1.0)) == 0


def test_with_every_unit_kept_the_depth_scale_is_that_of_no_dropout() -> None:
    sigma_w = jnp.array([0.9, 1.2, 1.5, 2.5])  # in order and in chaos

    def both(sigma_w: jax.Array) -> tuple[jax.Array, jax.Array]:
        q = meanfield.q_star(TANH, sigma_w, 0.3)
        apart = dropout.apart_star(TANH, q, sigma_w, 1.0)
        scale = dropout.depth_scale(TANH, q, apart, sigma_w)
        return scale, meanfield.xi_c_at(TANH, q, sigma_w)

    scale, law = jax.jit(both)(sigma_w)
    np.testing.assert_allclose(scale, law, rtol=1e-9)


def test_a_drawn_layer_with_masks_has_the_product_and_the_square_of_the_law() -> None:
    sigma_w, keep, width, c = 1.2, 0.7, 40, 0.6
    key_W, key_u, key_m = jax.random.split(jax.random.key(5), 3)
    u = jax.random.normal(key_u, (2000, 2, width))
    h = jnp.stack([u[:, 0], c * u[:, 0] + math.sqrt(1 - c * c) * u[:, 1]], 1)
    x = jnp.tanh(h) * jax.random.bernoulli(key_m, keep, h.shape) / keep
    W = sigma_w * jax.random.normal(key_W, (2000, width, width)) / math.sqrt(width)
    z = jnp.einsum("dij,dpj->dpi", W, x)
    ratio = np.asarray(jnp.mean(z[:, 0] * z[:, 1], 1) / jnp.mean(z**2))

    q = 1.0  # of h; the law's own length only divides
    square = sigma_w**2 / keep * float(meanfield.V(TANH, q, 1.0, 0.0))
    law = 1 - float(dropout.apart(TANH, q, 1 - c, sigma_w, keep)) * q / square
    assert abs(ratio.mean() - law) < 5 * ratio.std() / 2000**0.5
