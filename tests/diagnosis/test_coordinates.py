"""The coordinate check gives right parametrisations and wrong ones the verdict that theory does."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradlab as gl
from gradlab.errors import BadInput
from tests.diagnosis import sick

WIDTHS = [64, 128, 256, 512]


@pytest.fixture(autouse=True)
def single_precision() -> Any:
    with jax.enable_x64(False):
        yield


def mlp(width: int, key: Any, readout: float = 0.5) -> Any:
    """Two hidden layers of tanh; the readout's standard deviation is width^-readout."""
    model = eqx.nn.MLP(16, 10, width, 2, activation=jnp.tanh, use_bias=False, key=key)
    stds = 16**-0.5, width**-0.5, width**-readout
    keys = jax.random.split(key, 3)
    layers = [
        sick.drawn(k, layer, std) for k, layer, std in zip(keys, model.layers, stds, strict=True)
    ]
    return eqx.tree_at(lambda m: m.layers, model, tuple(layers))


# One example: the sum of several is aligned with each only in part, less so in a narrow layer.
BATCH = (
    np.random.default_rng(0).standard_normal((1, 16)).astype(np.float32),
    np.arange(1),
)


def rates(width: int) -> Any:
    """Adam of the maximal update: the first layer has the whole rate, the others 1/width of it."""

    def label(path: Any, _: Any) -> str:
        return "first" if jax.tree_util.keystr(path).startswith(".layers[0]") else "rest"

    rules = {"first": optax.adam(0.3), "rest": optax.adam(0.3 * 64 / width)}
    return optax.multi_transform(rules, lambda p: jax.tree_util.tree_map_with_path(label, p))


@pytest.fixture(scope="module")
def standard() -> gl.CoordinateCheck:
    with jax.enable_x64(False):
        return gl.coordinate_check(mlp, WIDTHS, optax.adam(0.3), BATCH, sick.classified, steps=3)


def test_the_standard_parametrisation_is_refused_although_saturated_it_looks_flat(
    standard: gl.CoordinateCheck,
) -> None:
    first, hidden, readout = standard.layers

    assert [first.verdict, hidden.verdict, readout.verdict] == ["stable", "grows", "grows"]
    # To the next half, as exponents come: at these widths what the first layer adds still counts.
    assert round(2 * hidden.change.value) == 2
    # The logits' change is a sum of powers 1 and 3/2 of the width.
    assert readout.change.high > 1.0
    assert readout.change.low < 1.5
    # At this rate, after three steps, the limit to which tanh can move has come near.
    assert readout.later.value < readout.change.value - 0.5
    assert standard.verdict.startswith(
        "grows: layers.1.weight, whose learning rate should go as wi"
    )
    assert "width^-1 " in standard.verdict


def test_the_table_fits_and_a_notebook_has_it(standard: gl.CoordinateCheck) -> None:
    lines = str(standard).splitlines()

    assert max(map(len, lines)) <= 100
    assert sum("grows" in line for line in lines) == 3
    assert standard._repr_html_().count("<tr>") == 4
    assert standard.slopes.keys() == {f"layers.{k}.weight" for k in range(3)}
    assert standard.log_changes.shape == (4, 4, 3)
    assert not standard.is_stable


def test_the_maximal_update_is_stable_with_an_optimizer_of_the_width() -> None:
    found = gl.coordinate_check(
        lambda width, key: mlp(width, key, 1.0), WIDTHS, rates, BATCH, sick.classified
    )

    assert found.is_stable, str(found)
    assert found.layers[2].start.low <= -0.5 <= found.layers[2].start.high
    assert found.verdict.startswith("stable")


def kernel_loss(model: Any, batch: Any) -> Any:
    return sick.cross_entropy(model(batch[0]), batch[1])


def linear(width: int, key: Any) -> Any:
    """One matrix that is given nothing to learn by, and one more."""
    params = [jax.random.normal(key, (16, width)), jnp.zeros((width, 10))]
    return params, lambda params, x: x @ params[0] @ params[1]


def test_a_readout_that_starts_at_zero_lets_nothing_below_it_move_at_the_first_step() -> None:
    def loss(model: Any, batch: Any) -> Any:
        return sick.cross_entropy(model(batch[0]), batch[1])

    found = gl.coordinate_check(linear, [16, 64, 256], optax.sgd(0.1), BATCH, loss, num_draws=2)

    assert [layer.verdict for layer in found.layers] == ["does not move", "grows"]
    assert found.verdict == "does not move: 0, which has no change at the first step"


@jax.custom_vjp
def backward_only(x: Any) -> Any:
    return x


backward_only.defvjp(lambda x: (x, None), lambda _, g: (g,))


@jax.custom_vjp
def squared_backwards(x: Any) -> Any:
    return x


squared_backwards.defvjp(lambda x: (x, None), lambda _, g: (g * g,))


def with_kernel(kernel: Any) -> Any:
    def make(width: int, key: Any) -> Any:
        params, _ = linear(width, key)
        return params, lambda params, x: kernel(x @ params[0]) @ params[1]

    return make


opaque = with_kernel(squared_backwards)


def test_a_kernel_with_a_reverse_rule_alone_has_the_slopes_of_what_it_stands_for() -> None:
    def drawn(kernel: Any) -> gl.CoordinateCheck:
        def make(width: int, key: Any) -> Any:
            (W, _), function = with_kernel(kernel)(width, key)
            return [W, jax.random.normal(key, (width, 10)) * width**-0.5], function

        return gl.coordinate_check(
            make, [16, 32, 64], optax.sgd(0.1), BATCH, kernel_loss, num_draws=2
        )

    plain, given = drawn(lambda x: x), drawn(backward_only)

    # One derivative along the step in two ways: a few roundings of a sum over the width each.
    np.testing.assert_allclose(given.log_changes, plain.log_changes, atol=64 * 1.2e-7)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"widths": [8, 16]}, "three or more"),
        ({"widths": 8}, "three or more"),
        ({"make": 3}, "make is a int"),
        ({"optimizer": 0.1}, "The optimizer is a float"),
        ({"loss": lambda _: 0.0}, "two arguments"),
        ({"steps": 0}, "steps is 0"),
        ({"num_draws": 0}, "num_draws is 0"),
        ({"make": lambda *_: (lambda x: x,)}, "without an array"),
        ({"make": lambda _, key: linear(4, key)}, "the same shapes"),
        ({"make": opaque}, "no linear program of JAX"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_a_sentence(
    changed: dict[str, Any], words: str
) -> None:
    given = {
        "make": linear,
        "widths": [4, 8, 16],
        "optimizer": optax.sgd(0.1),
        "batch": BATCH,
        "loss": lambda model, batch: jnp.mean(model(batch[0])),
    }
    with pytest.raises(BadInput, match=words):
        gl.coordinate_check(**given | changed)
