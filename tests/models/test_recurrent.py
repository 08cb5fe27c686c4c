"""Recurrent cells, against a reference library and against products that are known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl
from gradlab.errors import BadInput
from gradlab.models import recurrent

WIDTH, STEPS = 5, 7


def drawn(name: str, sigma_w: float = 1.0) -> tuple[recurrent.Weights, jax.Array]:
    key_weights, key_inputs = jax.random.split(jax.random.key(3))
    weights = recurrent.weights(key_weights, name, WIDTH, sigma_w, 0.7, 0.5)
    return weights, jax.random.normal(key_inputs, (STEPS, WIDTH))


def blocks(matrix: jax.Array, order: str, name: str) -> jax.Array:
    """The blocks of a matrix in the order in which Equinox has them."""
    ours = {"LSTM": "fiog", "GRU": "zrn"}[name]
    parts = dict(zip(ours, jnp.split(matrix, len(ours)), strict=True))
    return jnp.concatenate([parts[gate] for gate in order])


@pytest.mark.parametrize(("name", "order"), [("LSTM", "ifgo"), ("GRU", "rzn")])
def test_a_gated_cell_is_that_of_equinox(name: str, order: str) -> None:
    weights, inputs = drawn(name)
    made = {"LSTM": eqx.nn.LSTMCell, "GRU": eqx.nn.GRUCell}[name]
    cell = made(WIDTH, WIDTH, key=jax.random.key(0))
    cell = eqx.tree_at(
        lambda cell: (cell.weight_hh, cell.weight_ih, cell.bias),
        cell,
        tuple(blocks(part, order, name) for part in weights),
    )
    if name == "GRU":
        cell = eqx.tree_at(lambda cell: cell.bias_n, cell, jnp.zeros(WIDTH))
    h = jnp.zeros(WIDTH)
    state = (h, h) if name == "LSTM" else h
    for x in inputs:
        state = cell(x, state)
    ours = recurrent.unrolled(name, weights, inputs)(
        jnp.zeros(h.size * (2 if name == "LSTM" else 1))
    )

    np.testing.assert_allclose(
        ours, jnp.concatenate(state) if name == "LSTM" else state, rtol=1e-12
    )


def test_the_plain_chain_is_a_loop() -> None:
    weights, inputs = drawn("plain")
    h = np.zeros(WIDTH)
    for x in inputs:
        h = np.tanh(weights.W @ h + weights.U @ x)

    np.testing.assert_allclose(
        recurrent.unrolled("plain", weights, inputs)(jnp.zeros(WIDTH)), h, rtol=1e-13
    )


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_gates_that_read_the_input_alone_multiply_the_gradient_by_themselves(name: str) -> None:
    weights, inputs = drawn(name, sigma_w=0.0)
    gates = np.prod(1 / (1 + np.exp(-(np.asarray(inputs @ weights.U[:WIDTH].T) + 0.5))), axis=0)
    size = WIDTH * (2 if name == "LSTM" else 1)
    J = gl.jacobians.product(recurrent.unrolled(name, weights, inputs), jnp.zeros(size))

    np.testing.assert_allclose(np.diag(J)[-WIDTH:], gates, rtol=1e-12)


def test_an_unknown_cell_is_named() -> None:
    drawn = recurrent.weights(jax.random.key(0), "GRU", 2, 1.0, 1.0, 0.0)
    for make in (
        lambda: recurrent.weights(jax.random.key(0), "RNN", 2, 1.0, 1.0, 0.0),
        lambda: recurrent.unrolled("RNN", drawn, jnp.ones((3, 2))),
    ):
        with pytest.raises(BadInput, match="cell is 'RNN'; allowed: one of plain, LSTM, GRU"):
            make()


def test_a_neuron_is_one_number_run_on() -> None:
    model = recurrent.neuron(4.5, -1.8, 3)
    x = 0.5
    for _ in range(3):
        x = 4.5 / (1 + np.exp(-x)) - 1.8

    assert model.depth == 3
    np.testing.assert_allclose(model(jnp.full(1, 0.5)), [x], rtol=1e-14)
