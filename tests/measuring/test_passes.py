"""Networks written out have the outputs and the derivatives of those that JAX differentiates."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl
from tests.toys import quickly_compiled

NAMES = list(gl.networks.NETWORKS)
MADE = gl.networks.Made(1.3, 0.4, 1.5)


@pytest.fixture(autouse=True)
def programs_that_run_once() -> Iterator[None]:
    with quickly_compiled():
        yield


def drawn(name: str, depth: int) -> tuple[gl.chain.Chain, jax.Array, jax.Array]:
    """A network with biases, and what a batch of inputs is to it, `(batch_size, width)`."""
    keys = jax.random.split(jax.random.key(2), 3)
    model = gl.networks.NETWORKS[name](keys[0], depth, 8, MADE)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(keys[1], leaf.shape), model.params
    )
    x = jax.random.normal(keys[2], (6, 8))
    return gl.chain.Chain(model.layer, params), x, gl.networks.states(name, x)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_written_out_has_the_loss_and_the_gradients_of_its_chain(name: str) -> None:
    model, x, states = drawn(name, 4)
    readout = jax.random.normal(jax.random.key(3), (5, 16 if name == "LSTM" else 8))
    batch = gl.training.Data(x, jnp.array([0, 1, 4, 2, 2, 3]))

    def loss(model: gl.chain.Chain, readout: jax.Array) -> jax.Array:
        ends = jax.vmap(model)(states).reshape(6, -1)
        return gl.training.cross_entropy(ends @ readout.T, batch.y)

    found = jax.jit(partial(gl.passes.of_network, name))(model.params, readout, batch)
    value, slopes = jax.jit(jax.value_and_grad(loss, (0, 1)))(model, readout)
    assert 0 < found.rounding < 1e-9
    np.testing.assert_allclose(found.loss, value, rtol=0, atol=float(found.rounding))
    pairs = zip(*map(jax.tree.leaves, (found.gradient, slopes)), strict=True)
    for own, by_jax in pairs:
        np.testing.assert_allclose(own, by_jax, rtol=0, atol=float(found.rounding))
    norms = gl.training.norms_by_layer(slopes)
    np.testing.assert_allclose(found.norms, norms, rtol=0, atol=float(found.rounding))


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_pulled_back_as_jacobians_have_it(name: str) -> None:
    model, x, states = drawn(name, 5)
    inputs = x if name == "batch norm" else x[:1]
    v = jax.random.normal(jax.random.key(4), states[0].shape)
    found = jax.jit(partial(gl.passes.pulled_back, name))(model.params, inputs, v)
    logs = jax.jit(
        lambda model: gl.jacobians.log_gradient_norms(model, states[0], lambda z: v @ z)
    )(model)
    assert 0 < found.rounding < 1e-9
    np.testing.assert_allclose(found.logs, logs, rtol=0, atol=float(found.rounding))


def tanh_network() -> tuple[list[jax.Array], gl.training.Data]:
    """Three matrices, the last a read-out, and a batch."""
    keys = jax.random.split(jax.random.key(5), 4)
    shapes = (7, 5), (7, 7), (4, 7)
    W = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False)]
    return W, gl.training.Data(jax.random.normal(keys[3], (3, 5)), jnp.array([0, 3, 3]))


def tanh_states(W: Any, x: jax.Array) -> list[jax.Array]:
    """What leaves each layer."""
    first = jnp.tanh(x @ W[0].T)
    second = jnp.tanh(first @ W[1].T)
    return [first, second, second @ W[2].T]


def test_a_tanh_network_written_out_has_the_loss_and_the_gradients_of_jax() -> None:
    W, batch = tanh_network()

    def loss(W: list[jax.Array]) -> jax.Array:
        return gl.training.cross_entropy(tanh_states(W, batch.x)[-1], batch.y)

    found = gl.passes.of_tanh(W, batch)
    value, slopes = jax.value_and_grad(loss)(W)
    assert 0 < found.rounding < 1e-9
    np.testing.assert_allclose(found.loss, value, rtol=0, atol=float(found.rounding))
    for own, by_jax, norm in zip(found.gradient, slopes, found.norms, strict=True):
        np.testing.assert_allclose(own, by_jax, rtol=0, atol=float(found.rounding))
        np.testing.assert_allclose(norm, jnp.linalg.norm(by_jax), atol=float(found.rounding))


@pytest.mark.parametrize("is_sign", [0, 1])
def test_its_states_are_moved_as_by_an_optimiser(is_sign: int) -> None:
    W, batch = tanh_network()
    rates = jnp.array([0.01, 0.0, 0.03])
    found, rounding = gl.passes.tanh_moves(W, batch, is_sign, rates, 3)
    expected = gl.coordinates.moves(
        lambda W: tanh_states(W, batch.x),
        lambda W: gl.training.cross_entropy(tanh_states(W, batch.x)[-1], batch.y),
        W,
        gl.coordinates.by_layer(jnp.array(is_sign), rates),
        3,
    )
    assert 0 < np.max(rounding) < 1e-9
    for own, other, allowed in zip(found, expected, rounding, strict=True):
        assert np.all(
            (own == other) | (np.abs(own - other) <= allowed)
        )  # -inf of what does not move


def test_its_losses_are_those_of_a_training() -> None:
    W, data = tanh_network()
    rates, steps = jnp.array([0.1, 0.2, 0.3]), jnp.array([[0, 1], [2, 1], [0, 2]])
    run = gl.training.train(
        lambda W, x: tanh_states(W, x)[-1],
        *(W, gl.coordinates.by_layer(jnp.array(1), rates), data),
        gl.training.Schedule(steps, jnp.ones(3)),
    )
    batches = [gl.training.Data(data.x[step], data.y[step]) for step in steps]
    found, losses = gl.passes.tanh_steps(W, batches, 1, rates)
    assert np.all(np.abs(losses[:, 0] - run.loss) <= losses[:, 1])
    for own, other in zip(found, run.params, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-13, atol=1e-13)


# A layer of each kind; `make verify` has the networks that differ in their weights alone.
KINDS = ("plain", "Xavier", "batch norm", "ReZero", "LSTM")


@pytest.mark.parametrize(
    ("name", "tau"),
    [
        *(
            pytest.param(name, 0.1, marks=[pytest.mark.verify] * (name not in KINDS))
            for name in NAMES
        ),
        ("plain", np.inf),
    ],
)
def test_what_arrives_and_the_first_steps_are_as_written_out(name: str, tau: float) -> None:
    one = gl.by_name.ByName(name, MADE, 3, 12, 6, 2, 0.05, tau)
    key = jax.random.key(7)

    @jax.jit
    def arriving(key: jax.Array) -> tuple[Any, ...]:
        probe = gl.by_name.probe(key, one)
        logs, free = (
            gl.by_name.log_arriving(case, probe) for case in (one, one._replace(tau=jnp.inf))
        )
        return logs, free, gl.by_name.arriving_written_out(one, probe)

    @jax.jit
    def held(key: jax.Array) -> jax.Array:
        return gl.by_name.first_steps_by_hand(key, gl.by_name.descent(key, one), one)

    logs, free, hand = arriving(key)
    np.testing.assert_allclose(free, hand.logs, rtol=0, atol=float(hand.rounding))
    np.testing.assert_allclose(jnp.diff(logs), jnp.diff(free), rtol=0, atol=1e-14)

    seen, expected, rounding = held(key)
    assert seen.shape == (2, 3 + 4)
    assert np.all((seen == expected) | (np.abs(seen - expected) <= rounding))
    # Behind ReZero's factor of 0 no weight moves at first: the log of that is infinite.
    assert np.array_equal(np.isinf(rounding), np.isinf(expected))
    assert 0 < np.max(rounding, where=np.isfinite(rounding), initial=0) < 1e-8


def test_a_wide_network_moves_as_written_out() -> None:
    settings = jnp.array([[1.0, 0.5, 1e-3, 1e-3, 1e-3], [0.0, 1.0, 1.0, 0.0, 0.0]])
    task = gl.wide.ManySettings(16, settings, batch_size=3, num_steps=2)
    key = jax.random.key(8)
    logs, entries = jax.jit(lambda key: gl.wide.moves_in_all(key, task))(key)
    hand, rounding = jax.jit(lambda key: gl.wide.moves_by_hand(key, task))(key)
    assert entries.shape == (3, 6)
    seen = jnp.stack(logs, 1)[..., :3]
    assert np.all((seen == hand) | (np.abs(seen - hand) <= rounding))
    assert not np.isinf(rounding[0]).any()
    assert np.isinf(rounding[1, 2]).all()  # at the rate 1 tanh may be 1 to the last digit

    W, data = gl.wide.matrices(jax.random.key(9), 16, 0.5), gl.wide.unit_digits()
    batches = gl.training.schedule(jax.random.key(10), data.y.size, 4, 3)
    seen = gl.wide.losses_of_signs(W, settings[0], data, batches)[:2]
    loss, off = gl.wide.first_losses_by_hand(W, settings[0], data, batches).T
    assert np.all(np.abs(seen - loss) <= off)
