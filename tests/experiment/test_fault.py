"""Planted faults that several experiments share."""

import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_a_room_that_is_imported_while_a_fault_is_planted_has_the_honest_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exp = loading.load(Path(__file__).parents[2] / "experiments" / "residual.py")
    monkeypatch.delitem(sys.modules, "gradlab.models.networks")
    with gl.fault.change("ensembles.Affine", lambda honest: lambda W, b: honest(2 * W, b))(exp):
        room = importlib.import_module("gradlab.models.networks")

    assert room.Affine is gl.ensembles.Affine
