"""A transformer's block by hand: a model's states are off it by rounding, within its bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl
from gradlab.models.transformer import Design

DEPTH, WIDTH, NUM_TOKENS = 4, 12, 5
DESIGNS = gl.transformer.DESIGNS | {
    "alone": Design(skip=0.0),
    "all of it": Design(before=1.0, gain=0.7, skip=0.5, branch=1.5, inside=1.0, after=1.0),
}

WAYS = (
    (gl.one_block.attention_errors, gl.transformer.attend),
    (gl.one_block.block_errors, gl.transformer.block),
)


def weights(dtype: str = "float64") -> gl.transformer.Weights:
    drawn = gl.transformer.weights(jax.random.key(3), DEPTH, WIDTH, 1.5)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), drawn)


def states(layer: gl.chain.Layer, design: Design, dtype: str = "float64") -> jax.Array:
    params = gl.transformer.encoder(weights(dtype), design).params
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    x = jax.random.normal(jax.random.key(4), (NUM_TOKENS * WIDTH,)).astype(dtype)
    return gl.chain.states(gl.chain.Chain(layer, params), x)


@pytest.mark.parametrize("name", DESIGNS)
def test_states_are_off_by_rounding_within_its_bound(name: str) -> None:
    design = DESIGNS[name]
    for errors, layer in WAYS:
        off, rounding = np.asarray(errors(weights(), design, states(layer, design))).T

        assert np.all(off <= rounding)
        assert np.all(rounding < 1e-7)


@pytest.mark.parametrize("name", DESIGNS)
def test_float32_is_off_float64_by_no_more_than_half_of_its_bound(name: str) -> None:
    """The bound is that of two ways; float64's own rounding is nothing beside float32's."""
    design = DESIGNS[name]
    same = jax.tree.map(lambda leaf: leaf.astype("float64"), weights("float32"))
    for errors, layer in WAYS:
        z = states(layer, design, "float32")
        rounding = np.asarray(errors(weights("float32"), design, z))[:, 1]
        off = np.asarray(errors(same, design, z.astype("float64")))[:, 0]

        assert np.all(off > 0)
        assert np.all(off <= rounding / 2)


@pytest.mark.parametrize("part", gl.transformer.Weights._fields)
def test_a_matrix_that_is_1_percent_off_is_seen_in_its_layer_alone(part: str) -> None:
    design, drawn = DESIGNS["Pre"], weights()
    other = getattr(drawn, part).at[2].multiply(1.01)
    z = states(gl.transformer.block, design)
    found = gl.one_block.block_errors(drawn._replace(**{part: other}), design, z)

    off, rounding = np.asarray(found).T
    np.testing.assert_array_equal(off > rounding, [False, False, True, False])
    assert off[2] > 1e-4


def test_states_in_another_order_are_seen() -> None:
    z = states(gl.transformer.attend, DESIGNS["Post"])
    off, rounding = gl.one_block.attention_errors(weights(), DESIGNS["Post"], jnp.roll(z, 1, 0)).T

    assert jnp.all(off > rounding)
