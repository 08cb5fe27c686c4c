"""Each mutation does what its name says, reaches all weights once, and leaves laws alone."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl
from gradlab.calibration import mutations
from gradlab.experiment import fault
from gradlab.models.chain import Chain

DEPTH, WIDTH = 5, 3


@pytest.fixture
def model() -> Chain:
    return gl.ensembles.gaussian(jax.random.key(0), DEPTH, WIDTH, jnp.tanh, 1.2, 0.3)


@pytest.fixture
def x() -> jax.Array:
    return jnp.linspace(0.5, 1.5, WIDTH)


@contextlib.contextmanager
def planted(mutation: str, target: str) -> Iterator[None]:
    """The mutation of that name, in that function, while the block runs."""
    (made,) = (
        one.sites[target]
        for one in mutations.standard()
        if one.name == mutation and target in one.sites
    )
    experiment: Any = None  # no function of an experiment is touched
    with fault.change(target, made)(experiment):
        yield


def total(z: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(z))


def compiled(call: Callable[[], Any]) -> Any:
    """The result in one program, which compiles faster than each of its operations."""
    return jax.jit(call)()


def factor(J: jax.Array, change: Callable[[jax.Array], jax.Array]) -> jax.Array:
    return jnp.log(jnp.linalg.norm(jnp.linalg.multi_dot([change(A) for A in J[::-1]])))


def test_a_derivative_is_one_percent_off_and_the_states_are_not(model: Chain, x: jax.Array) -> None:
    honest = compiled(lambda: gl.jacobians.log_norms(model, x))
    with planted("a derivative 1 % off", "jacobians.log_norms"):
        wrong = compiled(lambda: gl.jacobians.log_norms(model, x))

    steps = np.arange(1, DEPTH + 1)
    np.testing.assert_allclose(wrong - honest, steps * np.log(1.01), rtol=1e-9)


def test_every_jacobian_is_transposed(model: Chain, x: jax.Array) -> None:
    J = gl.chain.jacobians(model, x)
    with planted("a Jacobian transposed", "jacobians.log_norms"):
        forwards = compiled(lambda: gl.jacobians.log_norms(model, x))[-1]
    with planted("a Jacobian transposed", "jacobians.weight_gradients"):
        backwards = compiled(lambda: gl.jacobians.weight_gradients(model, x, total)).b

    np.testing.assert_allclose(forwards, factor(J, jnp.transpose), rtol=1e-9)
    # b is within phi: dz/db is diagonal, phi' at each neuron, and drops out of the quotients.
    last, honest = (
        jax.grad(total)(model(x)),
        compiled(lambda: gl.jacobians.weight_gradients(model, x, total)).b,
    )
    slope = honest[-2] / (last @ J[-1])
    np.testing.assert_allclose(backwards[-1], honest[-1], rtol=1e-9)
    np.testing.assert_allclose(backwards[-2] / slope, last @ J[-1].T, rtol=1e-9)


@pytest.mark.parametrize(
    ("mutation", "layers"), [("a layer more", [0, 1, 2, 2, 3, 4]), ("a layer less", [0, 1, 3, 4])]
)
def test_the_layer_in_the_middle_is_applied_twice_or_left_out(
    model: Chain, x: jax.Array, mutation: str, layers: list[int]
) -> None:
    other = Chain(model.layer, jax.tree.map(lambda leaf: leaf[jnp.array(layers)], model.params))
    with planted(mutation, "jacobians.log_norms"):
        norms = compiled(lambda: gl.jacobians.log_norms(model, x))
    with planted(mutation, "chain.Chain.__call__"):
        output = model(x)

    assert norms.shape == (DEPTH,)
    np.testing.assert_allclose(
        norms[-1], compiled(lambda: gl.jacobians.log_norms(other, x))[-1], rtol=1e-9
    )
    np.testing.assert_allclose(output, other(x), rtol=1e-12)


def test_what_is_returned_has_the_structure_and_the_formats_of_the_honest_result(
    model: Chain, x: jax.Array
) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "chain.states": lambda: gl.chain.states(model, x),
        "chain_rule.products": lambda: gl.chain_rule.products(model, x),
        "jacobians.weight_gradients": lambda: gl.jacobians.weight_gradients(model, x, total),
        "jacobians.partial_products": lambda: gl.jacobians.partial_products([model], x),
    }
    for target, call in calls.items():
        like = jax.eval_shape(call)
        for mutation in [one for one in mutations.standard() if target in one.sites]:
            with planted(mutation.name, target):
                assert jax.eval_shape(lambda call=call: call()) == like, (target, mutation.name)


def test_a_format_is_computed_in_another_one(model: Chain, x: jax.Array) -> None:
    honest = compiled(lambda: gl.jacobians.log_norms(model, x))
    with planted("computed in another format", "jacobians.log_norms"):
        wrong = compiled(lambda: gl.jacobians.log_norms(model, x))

    assert wrong.dtype == honest.dtype
    assert 0 < np.max(np.abs(wrong - honest)) < 1e-5  # of float32

    one = jnp.full(3, 0.9)  # a layer that closes over numbers of the honest format
    with planted("computed in another format", "jacobians.log_norms"):
        closed = compiled(lambda: gl.jacobians.log_norms([model, lambda z: one * z], x))
    assert closed.dtype == honest.dtype


def test_a_gradient_is_read_one_layer_off_and_a_loss_is_halved(model: Chain, x: jax.Array) -> None:
    def gradients() -> list[jax.Array]:
        return jax.tree.leaves(gl.chain_rule.weight_gradients([model], x, total))

    honest = compiled(gradients)
    with planted("the gradient of the wrong layer", "chain_rule.weight_gradients"):
        shifted = compiled(gradients)
    with planted("the loss halved", "chain_rule.weight_gradients"):
        halved = compiled(gradients)

    for own, wrong, half in zip(honest, shifted, halved, strict=True):
        # Another program rounds otherwise, where a machine multiplies and adds at once.
        close = {"rtol": 0, "atol": 1e-12 * np.max(np.abs(own))}
        np.testing.assert_allclose(wrong[1:], own[:-1], **close)
        np.testing.assert_allclose(half, own / 2, **close)


def test_a_clip_takes_the_norm_of_one_leaf() -> None:
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    with planted("clipped by the norm of the wrong leaves", "clipping.formula"):
        wrong = gl.clipping.formula(grads, 1.0)

    np.testing.assert_allclose([wrong["a"][0], wrong["b"][0]], [1.0, 4 / 3])


WAYS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gaussian": lambda key: gl.ensembles.gaussian(key, 3, 2, jnp.tanh, 1.0, 1.0).params.W,
    "he": lambda key: (
        gl.ensembles.random(key, 3, 2, jnp.tanh, 1.0, 1.0, draw="he", layer="plain").params.W
    ),
    "residual": lambda key: (
        gl.ensembles.residual(key, 3, 2, jnp.tanh, 1.0, 1.0, 1.0).params.affine.W
    ),
    "batch norm": lambda key: gl.networks.batch_normalised(key, 3, 2, jnp.tanh, 1.0).params.W,
    "LSTM": lambda key: gl.networks.lstm(key, 3, 2, 1.0, 1.0).params.W,
    "he alone": lambda key: gl.ensembles.unit_he(key, (2, 2), float),
    "orthogonal alone": lambda key: gl.ensembles.unit_orthogonal(key, (2, 2), float),
    "scalar": lambda _: gl.ensembles.scalar(0.9, 3).params,
    "recurrent": lambda key: gl.recurrent.weights(key, "LSTM", 2, 1.0, 1.0, 0.0).W,
    "mixing": lambda key: gl.mixing.logits(key, 3, 2, 4.0, 0.3),
    "by hand": lambda key: gl.ensembles.Affine(jax.random.normal(key, (2, 2)), jnp.ones(2)).W,
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_are_scaled_once_however_they_come_about(way: str) -> None:
    honest = compiled(lambda: WAYS[way](jax.random.key(1)))
    with contextlib.ExitStack() as stack:
        experiment: Any = None
        for target, made in mutations.of_weights(lambda W: 3 * W).items():
            stack.enter_context(fault.change(target, made)(experiment))
        scaled = compiled(lambda: WAYS[way](jax.random.key(1)))

    np.testing.assert_allclose(scaled, 3 * honest, rtol=1e-12)


def test_no_mutation_touches_a_law_or_what_a_law_uses() -> None:
    sites = {target for mutation in mutations.standard() for target in mutation.sites}
    sites |= set(mutations.of_weights(lambda W: W))

    assert {target.partition(".")[0] for target in sites} == {
        *("ensembles", "networks", "grid", "chain", "chain_rule", "jacobians", "spectra"),
        *("clip_rules", "clipping", "mixing", "training"),
    }
