"""Backpropagation by hand is what JAX differentiates, of a network by its own layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl


@pytest.mark.parametrize("name", ["relu", "tanh", "linear"])
def test_it_has_the_loss_and_the_gradient_of_every_layer_that_jax_has(name: str) -> None:
    phi, keys = gl.activations.PHI[name], jax.random.split(jax.random.key(1), 3)
    made = (5, 12, phi, 1.3, 0.2)
    model = gl.ensembles.random(keys[0], *made, draw="gaussian", layer="preactivation")
    x, y = jax.random.normal(keys[1], (7, 9)), jax.random.randint(keys[2], (7,), 0, 4)
    found = gl.backpropagation.by_matrices(model.params, phi, gl.training.Data(x, y), 4)

    def logits(model: gl.chain.Chain, x: jax.Array) -> jax.Array:
        return model(jnp.pad(x, (0, 3)))[:4]

    loss, slopes = jax.value_and_grad(
        lambda model: gl.training.loss(logits, model, gl.training.Data(x, y))
    )(model)
    # Sums of 12, through 5 layers and back.
    np.testing.assert_allclose(found.loss, loss, rtol=1e-13)
    for own, by_jax in zip(found.gradient, slopes.params, strict=True):
        np.testing.assert_allclose(own, by_jax, atol=1e-13 * float(jnp.max(jnp.abs(by_jax))))
    np.testing.assert_allclose(found.norms, gl.training.norms_by_layer(slopes), rtol=1e-13)


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_behind_a_read_out_it_has_them_too(name: str) -> None:
    phi, keys = gl.activations.PHI[name], jax.random.split(jax.random.key(3), 4)
    model = gl.ensembles.gaussian(keys[0], 4, 9, phi, 1.4, 0.3)
    readout, x = jax.random.normal(keys[1], (5, 9)), jax.random.normal(keys[2], (6, 9))
    batch = gl.training.Data(x, jax.random.randint(keys[3], (6,), 0, 5))

    def loss(model: gl.chain.Chain, readout: jax.Array) -> jax.Array:
        return gl.training.cross_entropy(jax.vmap(model)(x) @ readout.T, batch.y)

    found = gl.backpropagation.of_readout(model.params, readout, phi, batch)
    value, slopes = jax.value_and_grad(loss, (0, 1))(model, readout)
    assert 0 < found.rounding < 1e-9
    np.testing.assert_allclose(found.loss, value, atol=float(found.rounding))
    for own, by_jax in zip(*map(jax.tree.leaves, (found.gradient, slopes)), strict=True):
        np.testing.assert_allclose(own, by_jax, atol=float(found.rounding))
    norms = gl.training.norms_by_layer(slopes)
    np.testing.assert_allclose(found.norms, norms, atol=float(found.rounding))


@pytest.mark.parametrize(("skip", "factor"), [(1.0, 0.5), (0.5, 2.0)])
def test_beside_an_identity_it_has_them_too(skip: float, factor: float) -> None:
    phi, keys = gl.activations.PHI["tanh"], jax.random.split(jax.random.key(4), 3)
    params = gl.ensembles.gaussian(keys[0], 4, 9, phi, 1.4, 0.3).params
    x, first = jax.random.normal(keys[1], (6, 9)), jnp.eye(5, 9)
    batch = gl.training.Data(x, jax.random.randint(keys[2], (6,), 0, 5))

    def loss(params: gl.ensembles.Affine) -> jax.Array:
        z = x
        for W, b in zip(*params, strict=True):
            z = skip * z + factor * jnp.tanh(z @ W.T + b[None])
        return gl.training.cross_entropy(z @ first.T, batch.y)

    found = gl.backpropagation.of_readout(params, first, phi, batch, skip, factor)
    value, slopes = jax.value_and_grad(loss)(params)
    np.testing.assert_allclose(found.loss, value, atol=float(found.rounding))
    for own, by_jax in zip(found.gradient[0], slopes, strict=True):
        np.testing.assert_allclose(own, by_jax, atol=float(found.rounding))


def test_the_first_batch_is_that_of_the_first_step() -> None:
    data, _ = gl.training.digits(float)
    batches = gl.training.schedule(jax.random.key(5), len(data.y), 7, 3)
    batches = gl.training.with_freak(batches, 0, 3.0)

    found = gl.backpropagation.first_batch(data, batches)
    np.testing.assert_array_equal(found.x, 3 * data.x[batches.indices[0]])
    np.testing.assert_array_equal(found.y, data.y[batches.indices[0]])


@pytest.mark.parametrize("name", ["Post", "Pre"])
def test_a_reader_written_out_has_the_loss_and_the_gradients_of_its_blocks(name: str) -> None:
    design = gl.transformer.DESIGNS[name]._replace(skip=1.5, gain=jnp.array([1.0, 0.5, 0.3]))
    keys = jax.random.split(jax.random.key(2), 3)
    reader = gl.transformer.reader(keys[0], 3, 12, 5, 64, 7, sigma_q=2.0)
    x, y = jax.random.normal(keys[1], (6, 64)), jax.random.randint(keys[2], (6,), 0, 7)
    batch = gl.training.Data(x, y)

    def loss(reader: gl.transformer.ImageReader) -> jax.Array:
        apply = functools.partial(gl.transformer.classify, design)
        return gl.training.loss(apply, reader, batch)

    found = gl.backpropagation.of_reader(reader, design, batch)
    value, slopes = jax.value_and_grad(loss)(reader)
    assert 0 < found.rounding < 1e-9
    np.testing.assert_allclose(found.loss, value, atol=float(found.rounding))
    for own, by_jax in zip(*map(jax.tree.leaves, (found.gradient, slopes)), strict=True):
        np.testing.assert_allclose(own, by_jax, atol=float(found.rounding))
    norms = gl.training.norms_by_layer(slopes)
    np.testing.assert_allclose(found.norms, norms, atol=float(found.rounding))
