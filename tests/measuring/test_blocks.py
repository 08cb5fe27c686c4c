"""Norms block by block against closed forms, and against the same layers one step at a time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.measuring import blocks, forward, linearisation
from gradlab.models import activations, chain, ensembles
from gradlab.models.chain import Chain


def by_blocks(segment: Chain, x: Any) -> Any:
    return jax.jit(lambda s, x: blocks.log_norms(s, forward.start(x)))(segment, x)


def one_by_one(segment: Chain, x: Any) -> Any:
    return jax.jit(lambda s, x: blocks._step_by_step(s, forward.start(x)))(segment, x)


# One block, one that is filled up, two that are full, and several.
@pytest.mark.parametrize("depth", [1, 127, 129, 300])
@pytest.mark.parametrize("w", [-2.0, 2.0**-900])
def test_a_power_of_two_to_a_power_is_known_at_every_depth(depth: int, w: float) -> None:
    x = jnp.ones(3)
    model = chain.linear(jnp.broadcast_to(w * jnp.eye(3), (depth, 3, 3)))
    (z, P, exponent), logs = by_blocks(model, x)
    layers = np.arange(1, depth + 1)
    truth = layers * np.log(abs(w)) + np.log(3) / 2
    np.testing.assert_allclose(logs, truth, rtol=4 * 2.3e-16)  # the roundings of two logs
    expected = depth * int(np.log2(abs(w)))
    np.testing.assert_array_equal(np.ldexp(P, exponent - expected), np.sign(w) ** depth * np.eye(3))
    np.testing.assert_array_equal(z, np.ones(3) * w**depth)


@pytest.mark.parametrize("width", [1, linearisation.TINY, linearisation.TINY + 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_blocks_are_the_same_layers_one_by_one(width: int, dtype: str) -> None:
    depth, phi = 150, activations.PHI["tanh"]
    model = ensembles.gaussian(jax.random.key(0), depth, width, phi, 0.9, 0.1, dtype=dtype)
    x = jax.random.normal(jax.random.key(1), (width,), dtype)
    (z, P, exponent), logs = by_blocks(model, x)
    (other_z, other_P, other_exponent), others = one_by_one(model, x)
    # Sums of `width` terms in another order, once a layer; logs add up to some hundred.
    eps = float(jnp.finfo(dtype).eps)
    atol = depth * width * eps + 4 * eps * float(jnp.max(jnp.abs(others)))
    np.testing.assert_allclose(logs, others, rtol=0, atol=atol)
    np.testing.assert_allclose(z, other_z, rtol=0, atol=depth * width * eps)
    size = np.abs(np.asarray(other_P)).max()
    moved = np.ldexp(np.asarray(P), np.asarray(exponent - other_exponent))
    np.testing.assert_allclose(moved, other_P, rtol=0, atol=size * depth * width * eps)


def test_zero_and_nan_stay_from_the_layer_on_that_makes_them() -> None:
    W = np.broadcast_to(np.eye(2), (200, 2, 2)).copy()
    W[140] = 0
    logs = by_blocks(chain.linear(jnp.asarray(W)), jnp.ones(2))[1]
    np.testing.assert_array_equal(np.isfinite(logs), np.arange(200) < 140)
    assert (logs[140:] == -np.inf).all()

    def spoilt(k: Any, z: Any) -> Any:
        return jnp.where(k == 140, jnp.nan, 1.0) * z

    logs = by_blocks(Chain(spoilt, jnp.arange(200)), jnp.ones(2))[1]
    np.testing.assert_array_equal(np.isnan(logs), np.arange(200) >= 140)


def test_it_has_the_derivative_of_the_steps_for_what_a_layer_closes_over_too() -> None:
    W = jax.random.normal(jax.random.key(0), (130, 2, 2))

    def last(W: Any, gain: Any, norms: Any) -> Any:
        def layer(W: Any, z: Any) -> Any:
            return jnp.tanh(gain * (W @ z))

        return norms(Chain(layer, W), forward.start(jnp.asarray([0.3, -0.4])))[1][-1]

    slopes = [
        jax.jit(jax.grad(lambda W, gain, norms=norms: last(W, gain, norms), (0, 1)))(W, 0.7)
        for norms in (blocks.log_norms, blocks._step_by_step)
    ]
    for got, expected in zip(*map(jax.tree.leaves, slopes), strict=True):
        # The same steps, compiled apart: some roundings a layer.
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)
    assert abs(float(slopes[0][1])) > 1


def test_it_goes_through_vmap() -> None:
    W = jax.random.normal(jax.random.key(0), (3, 140, 2, 2))

    def norms(W: Any) -> Any:
        return blocks.log_norms(chain.linear(W), forward.start(jnp.ones(2)))[1]

    together = jax.jit(jax.vmap(norms))(W)
    alone = jnp.stack([jax.jit(norms)(one) for one in W])
    np.testing.assert_allclose(together, alone, rtol=0, atol=140 * 4 * 2.3e-16)
