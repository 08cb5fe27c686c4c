"""One layer by hand, and what is exact of it at any width."""

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.measuring import one_layer
from gradlab.models.activations import PHI

WIDTH, LENGTHS = 6, jnp.array([0.5, 2.0])
CORRELATIONS, Q = jnp.array([1.0, 0.2, -1.0]), jnp.asarray(3.0)


def test_means_over_all_weights_and_states_are_those_of_infinite_width() -> None:
    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return one_layer.moved(key, PHI["linear"], 1.5, 0.4, WIDTH, LENGTHS, CORRELATIONS, Q)

    keys = jax.random.split(jax.random.key(2), 20_000)
    lengths, products = jax.jit(jax.vmap(one))(keys)

    for drawn, law in (
        (lengths, 2.25 * LENGTHS + 0.16),
        (products, 2.25 * CORRELATIONS * Q + 0.16),
    ):
        error = np.std(drawn, axis=0) / len(keys) ** 0.5
        assert np.all(np.abs(np.mean(drawn, axis=0) - law) < 5 * error)


def test_equal_and_opposite_states_are_the_ends_of_the_line() -> None:
    lengths, products = one_layer.moved(
        jax.random.key(0), PHI["tanh"], 1.5, 0.0, WIDTH, Q[None], CORRELATIONS, Q
    )

    np.testing.assert_allclose(products[0], lengths[0], rtol=1e-12)
    np.testing.assert_allclose(products[2], -lengths[0], rtol=1e-12)
    assert abs(float(products[1])) < float(lengths[0])
