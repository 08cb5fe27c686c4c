"""Planted faults that several experiments share."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import gradlab as gl
from gradlab.experiment import loading


def test_a_residual_chain_without_its_identity_is_the_plain_chain_of_the_same_weights() -> None:
    exp = loading.load(Path(__file__).parents[2] / "experiments" / "residual.py")
    drawn = jax.random.key(1), 2, 3, gl.activations.PHI["tanh"], 1.5, 0.5
    z, plain = jnp.ones(3), gl.ensembles.gaussian(*drawn)

    with gl.fault.no_identity()(exp):
        without = gl.ensembles.residual(*drawn, 0.5, draw="gaussian")(z)
    honest = gl.ensembles.residual(*drawn, 0.5)(z)

    np.testing.assert_array_equal(without, plain(z))
    assert not np.allclose(honest, without)
