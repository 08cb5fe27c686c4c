"""Mixing matrices, against closed forms of two by two and of equal entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.models import mixing


def test_two_streams_end_at_the_doubly_stochastic_matrix_of_the_same_cross_ratio() -> None:
    logits = jnp.array([[0.3, -1.1], [0.4, 2.0]])
    root = np.exp((0.3 + 2.0 + 1.1 - 0.4) / 2)  # √(ad/bc), which no sweep changes
    p = root / (1 + root)

    np.testing.assert_allclose(mixing.sinkhorn(logits, 300), [[p, 1 - p], [1 - p, p]], rtol=1e-13)


@pytest.mark.parametrize("num_sweeps", [1, 3, 20])
def test_rows_are_exact_and_columns_are_not(num_sweeps: int) -> None:
    drawn = mixing.logits(jax.random.key(0), 5, 4, 4.0, 0.3)
    M = mixing.sinkhorn(drawn, num_sweeps)
    column = np.abs(np.asarray(jnp.sum(M, axis=-2)) - 1.0).max()

    np.testing.assert_allclose(jnp.sum(M, axis=-1), 1, rtol=1e-14)
    assert column > 1e-3
    assert column < 3


def test_layers_share_what_they_should() -> None:
    drawn = mixing.logits(jax.random.key(0), 4000, 2, 3.0, 0.5)

    np.testing.assert_allclose(jnp.std(drawn, axis=0), 0.5, rtol=0.06)
    alike = mixing.logits(jax.random.key(0), 2, 2, 3.0, 0.0)
    np.testing.assert_array_equal(alike[0], alike[1])
