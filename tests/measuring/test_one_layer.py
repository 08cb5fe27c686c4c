"""One layer by hand, and what is exact of it at any width."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.measuring import one_layer
from gradlab.models import chain, ensembles
from gradlab.models.activations import PHI

WIDTH, LENGTHS = 6, jnp.array([0.5, 2.0])
CORRELATIONS, Q = jnp.array([1.0, 0.2, -1.0]), jnp.asarray(3.0)


def moved(
    key: jax.Array, phi: str, sigma_w: float, sigma_b: float, num_states: int = 1
) -> tuple[jax.Array, jax.Array]:
    made = key, PHI[phi], sigma_w, sigma_b, WIDTH, LENGTHS, CORRELATIONS, Q, num_states
    return one_layer.moved(*made)[:2]


def over_draws(num_draws: int, *made: Any) -> tuple[np.ndarray, ...]:
    keys = jax.random.split(jax.random.key(2), num_draws)
    return tuple(map(np.asarray, jax.jit(jax.vmap(lambda key: moved(key, *made)))(keys)))


def test_means_over_all_weights_and_states_are_those_of_infinite_width() -> None:
    lengths, products = over_draws(20_000, "linear", 1.5, 0.4)

    for drawn, law in (
        (lengths, 2.25 * LENGTHS + 0.16),
        (products, 2.25 * CORRELATIONS * Q + 0.16),
    ):
        error = np.std(drawn, axis=0) / len(drawn) ** 0.5
        assert np.all(np.abs(np.mean(drawn, axis=0) - law) < 5 * error)


def test_equal_and_opposite_states_are_the_ends_of_the_line() -> None:
    _, products = moved(jax.random.key(0), "tanh", 1.5, 0.0)

    assert float(products[0]) > abs(float(products[1]))
    np.testing.assert_allclose(products[2], -products[0], rtol=1e-12)


def test_many_states_through_one_matrix_tell_its_size_better() -> None:
    """With more states than neurons the square is that of the matrix, but for its states' own."""
    many, few = (over_draws(4000, "linear", 1.0, 0.0, count)[0][:, 1] / 2 for count in (64, 1))

    # |W|²/n is chi squared of n² degrees, over n²; a state adds twice the mean of squared
    # singular values' squares, 2, over n: exact, and of 4000 draws a variance within 10 %.
    law = 2 / WIDTH**2 + 2 * (2 + 1 / WIDTH) / WIDTH / 64
    assert float(np.var(many)) == pytest.approx(law, rel=0.1)
    assert float(np.var(few)) > 4 * law


def test_a_state_is_off_by_roundings_alone_and_by_more_where_one_is_moved() -> None:
    phi, key = PHI["tanh"], jax.random.key(4)
    model = ensembles.random(key, 4, 7, phi, 1.3, 0.2, draw="gaussian", layer="preactivation")
    states = chain.states(model, jnp.linspace(-1, 1, 7))
    off, rounding = one_layer.step_error(model.params, phi, states)
    assert 0 <= off <= rounding < 1e-13
    moved = states.at[2, 3].add(1e-9)
    found = one_layer.step_error(model.params, phi, moved)[0]
    by_next = jnp.max(jnp.abs(model.params.W[2, :, 3] * phi.dphi(states[2, 3])))
    np.testing.assert_allclose(found, 1e-9 * jnp.maximum(1, by_next), rtol=1e-5)
