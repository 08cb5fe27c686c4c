"""The tangent kernel against drawn networks, against its closed form, and where it cancels."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.models import ensembles
from gradlab.models.activations import PHI
from gradlab.theory import gauss, tangent_kernel

WIDTH, DEPTH, CORRELATION = 128, 3, 0.3


def drawn(key: jax.Array, phi: Any, sigma_w: float, sigma_b: float) -> jax.Array:
    """The sums over all parameters of both outputs' derivatives, `(2,)`: same and apart."""
    key_chain, key_row = jax.random.split(key)
    model = ensembles.gaussian(key_chain, DEPTH, WIDTH, phi, sigma_w, sigma_b)
    row = ensembles.unit_gaussian(key_row, (1, WIDTH), float)[0]
    x, turned = jnp.ones(WIDTH), (-1.0) ** jnp.arange(WIDTH)
    other = CORRELATION * x + (1 - CORRELATION**2) ** 0.5 * turned

    def slopes(x: jax.Array) -> Any:
        return jax.grad(lambda params: params[1] @ params[0](x))((model, row))

    def dot(a: Any, b: Any) -> Any:
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))

    first, second = slopes(x), slopes(other)
    return jnp.stack([dot(first, first), dot(first, second)])


@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_it_is_the_mean_kernel_of_drawn_networks(name: str) -> None:
    phi, draws = PHI[name], 48
    one = jax.jit(jax.vmap(partial(drawn, phi=phi, sigma_w=1.2, sigma_b=0.3)))
    kernels = one(jax.random.split(jax.random.key(0), draws))
    law = tangent_kernel.kernel(phi, CORRELATION, 1.2, 0.3, WIDTH, DEPTH)
    expected = np.stack([law.same[-1], law.same[-1] - law.gap[-1]])

    error = 5 * np.std(kernels, axis=0) / draws**0.5
    # Corrections are of the order of the depth over the width: Hanin and Nica 2020, theorem 1.
    assert np.all(np.abs(np.mean(kernels, axis=0) - expected) < error + DEPTH / WIDTH * expected)


def test_a_linear_network_has_it_in_closed_form() -> None:
    layers = np.arange(1, 6)
    law = tangent_kernel.kernel(PHI["linear"], 0.5, 1.0, 0.0, 10, 5)

    np.testing.assert_allclose(law.same, 10 * (layers + 1) + layers, rtol=1e-13)
    np.testing.assert_allclose(law.gap, 10 * 0.5 * (layers + 1), rtol=1e-13)


def test_a_rectifier_network_has_that_of_its_arc_cosine_kernels() -> None:
    def theta(c: float) -> float:  # Cho and Saul 2009, twice the averages, no bias's variance
        total, now = 10 * c + 1, c
        for layer in range(4):
            angle = np.arccos(now)
            now, slope = (
                (np.sin(angle) + (np.pi - angle) * now) / np.pi,
                (np.pi - angle) / np.pi,
            )
            row = 0.5 if layer == 3 else 1.0  # the output's row has half of the variance of He's
            total = 10 * now + row * slope * total + (layer < 3)
        return float(total)

    law = tangent_kernel.kernel(PHI["relu"], 0.2, 2**0.5, 0.0, 10, 4)

    assert float(law.same[-1]) == pytest.approx(theta(1.0), rel=1e-12)
    assert float(law.same[-1] - law.gap[-1]) == pytest.approx(theta(0.2), rel=1e-12)


@pytest.mark.parametrize("name", ["tanh", "relu", "erf", "sin"])
def test_the_gap_of_two_inputs_falls_far_below_rounding_without_noise(name: str) -> None:
    gap = tangent_kernel.kernel(PHI[name], 0.0, 0.5, 0.3, 64, 60).gap
    ratio = np.asarray(gap[1:] / gap[:-1])

    assert float(gap[-1]) < 1e-20
    assert float(ratio[-1]) < 0.5
    np.testing.assert_allclose(ratio[-2], ratio[-1], rtol=0.05)


@pytest.mark.parametrize("name", ["leaky_relu", "erf", "sin"])
def test_gaps_of_slopes_in_closed_form_are_those_by_quadrature(name: str) -> None:
    exact, rule = gauss.moments(PHI[name]), gauss.Quadrature(PHI[name])

    @jax.jit
    def gaps(q: jax.Array, epsilon: jax.Array) -> Any:
        return [(one.slope_gap(q, epsilon), one.gap(q, epsilon)) for one in (exact, rule)]

    closed, by_rule = gaps(jnp.asarray(1.3), jnp.asarray(0.3))
    np.testing.assert_allclose(closed, by_rule, rtol=1e-9)


def test_rates_are_eigenvalues_of_the_matrix_of_kernels() -> None:
    same, within, between, classes, each = 9.0, 5.0, 2.0, 4, 6
    label = np.repeat(np.arange(classes), each)
    matrix = np.where(label[:, None] == label, within, between) + (same - within) * np.eye(24)
    values = np.unique(np.round(np.linalg.eigvalsh(matrix / 24), 12))
    own, other = (
        tangent_kernel.Kernel(jnp.asarray(same), jnp.asarray(same - k)) for k in (5.0, 2.0)
    )

    rates = tangent_kernel.rates(own, other, classes, 24, 24)

    assert float(rates.largest) == pytest.approx(values[-1])
    assert float(rates.classes) == pytest.approx(values[-2])


@pytest.mark.parametrize(("name", "degree"), [("relu", 1.0), ("erf", 0.0)])
def test_evidence_is_the_outlook_in_logs(name: str, degree: float) -> None:
    phi, rate = PHI[name], jnp.array([0.0, 1e-3, 1e3])
    task = tangent_kernel.Problem(jnp.array([0.5, 0.0]), 10, 1000, 50, 200)
    found = tangent_kernel.outlook(phi, task, 1.2, 0.1, 10, 3, rate)
    learned, beyond, grown, deep = jnp.moveaxis(
        tangent_kernel.evidence(phi, task, 1.2, 0.1, 10, 3, rate), -1, 0
    )

    np.testing.assert_allclose(jnp.exp(learned[:, 1:]), found.learned[:, 1:], rtol=1e-13)
    np.testing.assert_allclose(learned[:, 0], np.log(2.0**-1022), rtol=1e-13)
    np.testing.assert_allclose(beyond, jnp.log(1 + found.edge), rtol=1e-12, atol=1e-15)
    # At q = 1e8, where the power is told, E erf² is still 1/√q below its bound.
    assert (jnp.abs(grown - degree * beyond) <= 1e-4 * beyond).all()
    np.testing.assert_allclose(jnp.exp(deep), np.array([[1], [2], [3]]) / 10 * np.ones(3))


def test_an_outlook_is_capped_at_the_longest_stable_step() -> None:
    task = tangent_kernel.Problem(jnp.array([0.5, 0.0]), 10, 1000, 50, 200)
    rate = jnp.array([1e-9, 2e-9, 1e3, 2e3])
    found = tangent_kernel.outlook(PHI["linear"], task, 1.0, 0.0, 10, 2, rate)
    same, gaps = 32.0, (15.0, 30.0)  # the closed form above, two layers
    largest = same - 0.1 * gaps[0] - 0.9 * gaps[1] + gaps[0] / 50
    classes = 0.1 * (gaps[1] - gaps[0]) + gaps[0] / 1000

    np.testing.assert_allclose(found.edge[1], rate / 10 * largest / 2, rtol=1e-12)
    np.testing.assert_allclose(found.learned[1, :2], 20 * rate[:2] * classes, rtol=1e-7)
    np.testing.assert_allclose(found.learned[1, 2:], 400 * classes / largest, rtol=1e-2)
