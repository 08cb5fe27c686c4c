"""Moves of what a model computes, against closed forms of one step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradlab.measuring import coordinates


def test_a_sign_step_on_one_sample_moves_each_unit_by_the_rate_times_the_norm() -> None:
    """Yang, Hu and others 2022: |dh| = eta |x|_1, exactly, whatever the width."""
    x = np.random.default_rng(0).standard_normal(7)
    W = np.random.default_rng(1).standard_normal((5, 7))
    found = coordinates.moves(
        lambda W: [W @ x], lambda W: jnp.sum((W @ x) ** 2), jnp.asarray(W), optax.sign_sgd(0.01)
    )

    size = np.log(0.01 * np.abs(x).sum())
    np.testing.assert_allclose([found.first[0], found.later[0]], [size, size], rtol=1e-12)
    np.testing.assert_allclose(found.start[0], np.log(np.sqrt(np.mean((W @ x) ** 2))), rtol=1e-12)


def test_first_order_forgets_what_the_rate_does_and_several_steps_do_not() -> None:
    """tanh of a weight: a step of rate r moves it by tanh(w - r g) - tanh(w), r g phi' at first."""
    w, rate = jnp.asarray(0.3), 4.0

    def loss(w: jax.Array) -> jax.Array:
        return 2.0 * w

    found = coordinates.moves(lambda w: [jnp.tanh(w)], loss, w, optax.sgd(rate), num_steps=3)

    expected = np.log(rate * 2.0 / np.cosh(0.3) ** 2)
    later = np.log(np.abs(np.tanh(0.3 - 3 * rate * 2.0) - np.tanh(0.3)))
    np.testing.assert_allclose([found.first[0], found.later[0]], [expected, later], rtol=1e-12)


def test_what_does_not_move_has_the_log_of_zero() -> None:
    found = coordinates.moves(lambda w: [w, [w, 0 * w]], jnp.sum, jnp.ones(3), optax.sgd(0.0))

    assert np.isneginf(np.asarray(found.first)).all()
    np.testing.assert_allclose(found.start, [0.0, np.log(0.5) / 2], atol=1e-15)


def test_each_leaf_goes_by_its_own_rate_down_its_gradient_or_the_sign_of_it() -> None:
    params = [jnp.asarray([1.0, -2.0]), jnp.asarray([[3.0]])]
    by_gradient: list[Any] = [[-0.1, 0.2], [[-6.0]]]
    by_sign: list[Any] = [[-0.1, 0.1], [[-2.0]]]
    for is_sign, expected in ((0.0, by_gradient), (1.0, by_sign)):
        optimizer = coordinates.by_layer(jnp.asarray(is_sign), jnp.asarray([0.1, 2.0]))
        updates: Any = optimizer.update(params, optimizer.init(params), params)[0]
        for update, value in zip(updates, expected, strict=True):
            np.testing.assert_allclose(update, value, rtol=1e-12)
