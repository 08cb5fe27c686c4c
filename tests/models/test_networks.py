"""The tricks' networks against their definitions, in numpy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.errors import BadInput
from gradlab.models import chain, networks
from gradlab.models.activations import PHI

KEY, WIDTH, BATCH = jax.random.key(3), 6, 5
MADE = networks.Made(sigma_w=0.7, factor=0.3, forget_bias=2.0)


def logistic(h: Any) -> Any:
    return 1 / (1 + np.exp(-h))


def test_batch_normalisation_is_its_definition_over_a_batch() -> None:
    model = networks.batch_normalised(KEY, 1, WIDTH, PHI["tanh"], 1.3)
    x = np.asarray(jax.random.normal(KEY, (BATCH, WIDTH)))
    h = x @ np.asarray(model.params.W[0]).T
    expected = np.tanh((h - h.mean(0)) / h.std(0))

    np.testing.assert_allclose(model(jnp.ravel(x)).reshape(BATCH, WIDTH), expected, rtol=1e-12)


def test_a_batch_does_not_know_the_size_of_the_weights() -> None:
    x = jax.random.normal(KEY, (BATCH * WIDTH,))
    small, large = (
        networks.batch_normalised(KEY, 3, WIDTH, PHI["relu"], sigma_w)(x) for sigma_w in (0.1, 8.0)
    )

    np.testing.assert_allclose(small, large, rtol=1e-11, atol=1e-12)


def test_an_lstm_is_its_gates_one_by_one() -> None:
    model = networks.lstm(KEY, 1, WIDTH, 0.9, 1.5)
    h, c = np.asarray(jax.random.normal(KEY, (2, WIDTH)))
    rows = np.asarray(model.params.W[0]) @ h
    forget, enter, leave, candidate = rows.reshape(4, WIDTH)
    memory = logistic(forget + 1.5) * c + logistic(enter) * np.tanh(candidate)
    expected = np.concatenate([logistic(leave) * np.tanh(memory), memory])

    np.testing.assert_allclose(model(jnp.concatenate([h, c])), expected, rtol=1e-12)


def test_a_memory_whose_gates_have_no_weights_keeps_the_logistic_of_the_bias() -> None:
    model = networks.lstm(KEY, 4, WIDTH, 0.0, 1.5)
    J = jax.jacfwd(model)(jax.random.normal(KEY, (2 * WIDTH,)))

    np.testing.assert_allclose(J[WIDTH:, WIDTH:], logistic(1.5) ** 4 * np.eye(WIDTH), atol=1e-15)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_is_a_chain_of_states(name: str) -> None:
    model = networks.NETWORKS[name](KEY, 3, WIDTH, MADE)
    batch = jax.random.normal(KEY, (BATCH, WIDTH))
    starts = networks.states(name, batch)
    ends = jax.vmap(model)(starts)

    assert model.depth == 3
    assert ends.shape == starts.shape
    assert starts.size == batch.size * (2 if name == "LSTM" else 1)
    assert np.isfinite(ends).all()


def test_rezero_starts_as_the_identity() -> None:
    x = jax.random.normal(KEY, (WIDTH,))

    np.testing.assert_array_equal(networks.NETWORKS["ReZero"](KEY, 9, WIDTH, MADE)(x), x)


def test_a_perceptron_goes_through_its_sizes_and_ends_in_a_linear_layer() -> None:
    sizes = (6, 4, 4, 4, 5, 3)
    phi = PHI["tanh"]
    found = networks.perceptron(jax.random.key(0), sizes, phi, 1.0, 0.1)
    x = jnp.ones(6)

    assert [segment.depth for segment in found] == [1, 2, 1, 1]
    assert chain.widths(found, x) == (6, 4, 4, 5, 3)
    *_, readout = found
    z = jnp.linspace(-1, 1, 5)
    assert jnp.allclose(readout(2 * z) - readout(z), readout(z) - readout(0 * z))


# ---- without a normaliser


def test_standardised_rows_have_mean_0_and_length_1_and_keep_their_direction() -> None:
    W = jax.random.normal(KEY, (2, WIDTH, BATCH)) + 3.0
    rows = np.asarray(networks.standardised_rows(W))
    expected = np.asarray(W) - np.asarray(W).mean(-1, keepdims=True)
    expected /= np.sqrt(BATCH) * np.asarray(W).std(-1, keepdims=True)

    np.testing.assert_allclose(rows, expected, rtol=1e-12)
    np.testing.assert_allclose(rows.mean(-1), 0, atol=1e-15)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, rtol=1e-14)


@pytest.mark.parametrize("kind", ["batch norm", "nothing", "normaliser-free"])
@pytest.mark.parametrize("is_first", [0.0, 1.0])
def test_a_block_is_its_shortcut_and_its_branch(kind: str, is_first: float) -> None:
    W = jax.random.normal(KEY, (3, WIDTH, WIDTH))
    Z = np.asarray(jax.random.normal(jax.random.key(4), (BATCH, WIDTH)))
    params = W, jnp.asarray(1.7), jnp.asarray(is_first)
    found, branch = networks.skip_block(PHI["tanh"], kind, 1.5, 0.3)(params, jnp.asarray(Z))

    def activated(h: Any) -> Any:
        centred = (h - h.mean(0)) / h.std(0)
        return 1.5 * np.tanh(centred if kind == "batch norm" else h)

    x = activated(Z / 1.7 if kind == "normaliser-free" else Z)
    first, second, skip = np.asarray(W)
    expected = activated(x @ first.T) @ second.T

    np.testing.assert_allclose(branch, expected, rtol=1e-11)
    np.testing.assert_allclose(found, (x @ skip.T if is_first else Z) + 0.3 * expected, rtol=1e-11)


def test_an_unknown_kind_of_block_is_named() -> None:
    with pytest.raises(BadInput, match="kind is 'layer norm'; allowed: one of normaliser-free"):
        networks.skip_block(PHI["relu"], "layer norm", 1.0, 1.0)
