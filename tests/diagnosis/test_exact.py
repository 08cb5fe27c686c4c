"""All singular values of an audited model's Jacobian, against those that it was made of."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl
from gradlab.errors import BadInput

DEPTH, WIDTH = 60, 4
# A layer each: the product's span 1e-18 to 1e72, out of float32's range at both ends.
VALUES = np.array([16.0, 2.0, 1.0, 0.5])


@pytest.fixture(autouse=True)
def single_precision() -> Any:
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


def rotated(depth: int = DEPTH) -> list[Any]:
    """Matrices Q_k diag(values) Q_{k-1}^T, the first one a rotation alone."""
    draw = np.random.default_rng(0)
    turns = [np.linalg.qr(draw.standard_normal((WIDTH, WIDTH)))[0] for _ in range(depth + 1)]
    pairs = zip(turns[1:], turns[:-1], strict=True)
    made = [turns[0].T, *((after * VALUES @ before.T).T for after, before in pairs)]
    return [jnp.asarray(W, jnp.float32) for W in made]


def function(weights: list[Any], x: Any) -> Any:
    for W in weights:
        x = x @ W
    return x


def summed(model: Any, batch: Any) -> Any:
    # A loss that float32 holds.
    return jnp.sum(jnp.tanh(model(batch)))


def test_all_values_are_given_at_a_depth_that_no_float_holds() -> None:
    batch = jnp.asarray(np.random.default_rng(1).standard_normal((3, WIDTH)) * 1e-30, jnp.float32)
    found = gl.audit((rotated(), function), batch, summed).singular_values(2, example=2)
    shallow = gl.audit((rotated(8), function), batch, summed).singular_values(2)

    # The matrices as stored are rotated to a few roundings of an entry; condition 32 a layer.
    stored = DEPTH * WIDTH * 32 * 1.2e-7
    np.testing.assert_allclose(found.log, DEPTH * np.log(VALUES), atol=found.bound + stored)
    assert found.widths == (WIDTH,) * (DEPTH + 1)
    # Where a float holds them, what is matrix-free is within its own bound of the exact ones.
    top = shallow.top
    error = top.bounds / top.values + stored
    assert np.all(np.abs(np.log(top.values) - shallow.log[:2]) <= error)
    assert "exact: a product of 8 parts" in str(shallow)
    assert max(map(len, str(shallow).splitlines())) <= 100


def test_an_example_that_others_have_a_part_in_has_no_jacobian_of_its_own() -> None:
    def normed(weights: list[Any], x: Any) -> Any:
        x = x @ weights[0]
        return ((x - x.mean(0)) / (x.std(0) + 1e-3)) @ weights[1]

    batch = jnp.asarray(np.random.default_rng(1).standard_normal((3, WIDTH)), jnp.float32)
    audit = gl.audit((rotated(1), normed), batch, summed)
    with pytest.raises(BadInput, match="other examples of the batch"):
        audit.singular_values()
    with pytest.raises(BadInput, match="The example is 3; allowed: 0 to 2"):
        audit.singular_values(example=3)


def test_states_that_are_too_wide_are_refused() -> None:
    wide = [jnp.ones((2, 600)), jnp.ones((600, 2)) / 600, jnp.ones((2, 2))]
    with pytest.raises(BadInput, match="has 600 numbers an example"):
        gl.audit((wide, function), jnp.ones((1, 2)), summed).singular_values()
    assert math.isfinite(gl.audit((wide, function), jnp.ones((1, 2)), summed).loss)
