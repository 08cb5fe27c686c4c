"""Backpropagation by hand is what JAX differentiates, of a network by its own layers."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradlab as gl
from tests.toys import quickly_compiled


@pytest.mark.parametrize("name", ["relu", "tanh", "linear"])
def test_it_has_the_loss_and_the_gradient_of_every_layer_that_jax_has(name: str) -> None:
    phi, keys = gl.activations.PHI[name], jax.random.split(jax.random.key(1), 3)
    made = (5, 12, phi, 1.3, 0.2)
    model = gl.ensembles.random(keys[0], *made, draw="gaussian", layer="preactivation")
    x, y = jax.random.normal(keys[1], (7, 9)), jax.random.randint(keys[2], (7,), 0, 4)
    hand = jax.jit(functools.partial(gl.backpropagation.by_matrices, phi, 4))
    found = hand(model, gl.training.Data(x, y))

    def logits(model: gl.chain.Chain, x: jax.Array) -> jax.Array:
        return model(jnp.pad(x, (0, 3)))[:4]

    by_jax = jax.value_and_grad(
        lambda model: gl.training.loss(logits, model, gl.training.Data(x, y))
    )
    loss, slopes = jax.jit(by_jax)(model)
    # Sums of 12, through 5 layers and back.
    np.testing.assert_allclose(found.loss, loss, rtol=1e-13)
    for own, other in zip(found.gradient, slopes.params, strict=True):
        np.testing.assert_allclose(own, other, atol=1e-13 * float(jnp.max(jnp.abs(other))))
    np.testing.assert_allclose(found.norms, gl.training.norms_by_layer(slopes), rtol=1e-13)


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_behind_a_read_out_it_has_them_too(name: str) -> None:
    phi, keys = gl.activations.PHI[name], jax.random.split(jax.random.key(3), 4)
    layers = gl.ensembles.gaussian(keys[0], 4, 9, phi, 1.4, 0.3)
    readout, x = jax.random.normal(keys[1], (5, 9)), jax.random.normal(keys[2], (6, 9))
    batch = gl.training.Data(x, jax.random.randint(keys[3], (6,), 0, 5))

    model = [layers, gl.chain.linear(readout[None])]

    def loss(model: list[gl.chain.Chain]) -> jax.Array:
        return gl.training.loss(gl.training.apply_model, model, batch)

    found = jax.jit(functools.partial(gl.backpropagation.of_readout, phi))(model, batch)
    value, slopes = jax.jit(jax.value_and_grad(loss))(model)
    assert 0 < found.rounding < 1e-9
    np.testing.assert_allclose(found.loss, value, atol=float(found.rounding))
    for own, by_jax in zip(*map(jax.tree.leaves, (found.gradient, slopes)), strict=True):
        np.testing.assert_allclose(own, by_jax, atol=float(found.rounding))
    norms = gl.training.norms_by_layer(slopes)
    np.testing.assert_allclose(found.norms, norms, atol=float(found.rounding))


@pytest.mark.parametrize(("skip", "factor"), [(1.0, 0.5), (0.5, 2.0)])
def test_beside_an_identity_it_has_them_too(skip: float, factor: float) -> None:
    phi, keys = gl.activations.PHI["tanh"], jax.random.split(jax.random.key(4), 3)
    model = gl.ensembles.gaussian(keys[0], 4, 9, phi, 1.4, 0.3)
    x, first = jax.random.normal(keys[1], (6, 9)), jnp.eye(5, 9)
    batch = gl.training.Data(x, jax.random.randint(keys[2], (6,), 0, 5))

    def loss(params: gl.ensembles.Affine) -> jax.Array:
        z = x
        for W, b in zip(*params, strict=True):
            z = skip * z + factor * jnp.tanh(z @ W.T + b[None])
        return gl.training.cross_entropy(z @ first.T, batch.y)

    hand = functools.partial(gl.backpropagation.of_readout, phi, skip=skip, factor=factor)
    found = jax.jit(hand)([model, gl.chain.linear(first[None])], batch)
    value, slopes = jax.jit(jax.value_and_grad(loss))(model.params)
    np.testing.assert_allclose(found.loss, value, atol=float(found.rounding))
    for own, by_jax in zip(found.gradient[0], slopes, strict=True):
        np.testing.assert_allclose(own, by_jax, atol=float(found.rounding))


NUM_STEPS, RATE = 5, 0.01

RULES: dict[str, tuple[optax.GradientTransformation, gl.backpropagation.Rule]] = {
    "descent": (optax.sgd(RATE), gl.backpropagation.Rule(RATE)),
    "Adam": (optax.adam(RATE), gl.backpropagation.adam(RATE)),
    "clipped Adam": (
        optax.chain(optax.clip_by_global_norm(0.1), optax.adam(RATE)),
        gl.backpropagation.adam(RATE)._replace(tau=0.1),
    ),
    "clipped": (
        optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(RATE)),
        gl.backpropagation.Rule(RATE, 0.1),
    ),
}


def share(
    optimizer: optax.GradientTransformation,
    rule: gl.backpropagation.Rule,
    *,
    num_steps: int = NUM_STEPS,
    of_data: Callable[[gl.training.Data], gl.training.Data] = lambda data: data,
    of_batches: Callable[[gl.training.Schedule], gl.training.Schedule] = lambda batches: batches,
) -> jax.Array:
    """How far a training is off its first steps by hand, in units of what is allowed."""
    phi, (data, _) = gl.activations.PHI["tanh"], gl.training.digits(float)
    made = 2, 64, phi, 1.3, 0.2
    model = gl.ensembles.random(jax.random.key(6), *made, draw="gaussian", layer="preactivation")
    batches = gl.training.schedule(jax.random.key(5), len(data.y), 7, num_steps)
    batches = gl.training.with_freak(batches, 0, 3.0)
    hand = functools.partial(gl.backpropagation.by_matrices, phi, 10)

    @jax.jit
    def ways(model: gl.chain.Chain) -> jax.Array:
        given = optimizer, of_data(data), of_batches(batches)
        ran = gl.training.train(gl.training.ten_logits, model, *given)
        return gl.backpropagation.first_steps(ran, hand, rule, data, batches)

    with quickly_compiled():
        seen, found, rounding = ways(model)
    assert seen.shape == (min(3, num_steps), 2 + 2)
    assert bool(jnp.all(rounding > 0))
    assert float(jnp.max(rounding[:, :-1])) < 1e-8
    return jnp.abs(seen - found) / rounding


@pytest.mark.parametrize("num_steps", [1, NUM_STEPS])
@pytest.mark.parametrize("rule", RULES)
def test_the_first_steps_of_a_training_are_those_by_hand(rule: str, num_steps: int) -> None:
    assert float(jnp.max(share(*RULES[rule], num_steps=num_steps))) < 1


def with_other(batches: gl.training.Schedule) -> gl.training.Schedule:
    return batches._replace(indices=batches.indices.at[2].set(batches.indices[1]))


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ("Adam", {"optimizer": optax.adam(RATE, b2=0.998)}),
        ("Adam", {"optimizer": optax.adam(RATE, b1=0.899)}),
        ("Adam", {"optimizer": optax.adam(1.001 * RATE)}),
        ("Adam", {"optimizer": optax.adam(RATE, eps=1e-6)}),
        ("Adam", {"optimizer": optax.adam(RATE, nesterov=True)}),
        ("Adam", {"optimizer": optax.adamw(RATE, weight_decay=1e-3)}),
        ("Adam", {"optimizer": optax.amsgrad(RATE)}),
        ("clipped Adam", {"optimizer": optax.adam(RATE)}),
        ("descent", {"optimizer": optax.sgd(RATE, momentum=0.01)}),
        ("descent", {"optimizer": optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(RATE))}),
        ("descent", {"of_batches": with_other}),
        ("descent", {"of_batches": lambda batches: batches._replace(gain=jnp.ones(NUM_STEPS))}),
        ("descent", {"of_data": lambda data: data._replace(y=jnp.roll(data.y, 1))}),
        ("descent", {"of_data": lambda data: data._replace(x=0.999 * data.x)}),
    ],
)
def test_what_is_wrong_with_a_training_is_far_beyond_its_rounding(
    rule: str, fault: dict[str, Any]
) -> None:
    optimizer, ought = RULES[rule]
    beyond = share(fault.pop("optimizer", optimizer), ought, **fault)
    assert float(jnp.max(beyond)) > 100


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

    found = jax.jit(functools.partial(gl.backpropagation.of_reader, design))(reader, batch)
    value, slopes = jax.jit(jax.value_and_grad(loss))(reader)
    assert 0 < found.rounding < 1e-9
    np.testing.assert_allclose(found.loss, value, atol=float(found.rounding))
    for own, by_jax in zip(*map(jax.tree.leaves, (found.gradient, slopes)), strict=True):
        np.testing.assert_allclose(own, by_jax, atol=float(found.rounding))
    norms = gl.training.norms_by_layer(slopes)
    np.testing.assert_allclose(found.norms, norms, atol=float(found.rounding))
