"""Networks of many depths in one program, each held against itself alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradlab.measuring import training, trials
from gradlab.models import ensembles
from gradlab.models.activations import PHI
from gradlab.models.chain import Chain

BUDGET = trials.Budget(deepest=5, width=8, num_classes=3, batch_size=4, num_steps=6)
PHIS = [PHI["tanh"], PHI["relu"]]


@pytest.fixture(scope="module")
def data() -> training.Data:
    key_x, key_y = jax.random.split(jax.random.key(3))
    x = jax.random.normal(key_x, (20, BUDGET.width))
    return training.Data(x, jax.random.randint(key_y, (20,), 0, 3))


def alone(key: jax.Array, kind: int, depth: int, data: training.Data) -> jax.Array:
    """The same network as a chain of just its layers."""
    key_chain, key_readout, key_batches = jax.random.split(key, 3)
    model = ensembles.gaussian(key_chain, BUDGET.deepest, BUDGET.width, PHIS[kind], 1.3, 0.2)
    first = Chain(model.layer, jax.tree.map(lambda leaf: leaf[:depth], model.params))
    readout = ensembles.unit_gaussian(key_readout, (3, BUDGET.width), float)
    batches = training.schedule(key_batches, 20, BUDGET.batch_size, BUDGET.num_steps)
    start = (first, readout)
    descent = optax.sgd(0.1)
    return training.train(lambda p, x: p[1] @ p[0](x), start, descent, data, batches).loss


def test_each_network_is_trained_as_if_alone(data: training.Data) -> None:
    kind, depth = jnp.array([0, 1, 1]), jnp.array([5, 2, 4])
    scales = (jnp.full(3, value) for value in (1.3, 0.2, 0.1))
    key = jax.random.key(7)

    found, moments = jax.jit(
        lambda key: trials.losses(key, trials.Candidate(kind, depth, *scales), PHIS, data, BUDGET)
    )(key)

    keys = jax.random.split(key, 3)
    expected = [alone(keys[i], int(kind[i]), int(depth[i]), data) for i in range(3)]
    np.testing.assert_allclose(found, jnp.stack(expected), rtol=1e-12)
    assert float(jnp.min(jnp.abs(found[:, -1] - found[:, 0]))) > 1e-4
    drawn = [ensembles.gaussian(jax.random.split(k, 3)[0], 5, 8, PHIS[0], 1.3, 0.2) for k in keys]
    expected = [ensembles.realised(model.params.W) for model in drawn]
    np.testing.assert_allclose(moments, jnp.stack(expected), rtol=1e-12)


@pytest.mark.parametrize("wrong", [False, True])
def test_the_first_steps_of_each_are_those_by_hand(wrong: bool, data: training.Data) -> None:
    kind, depth = jnp.array([0, 1, 1]), jnp.array([5, 2, 4])
    scales = (jnp.full(3, value) for value in (1.3, 0.2, 0.1))
    # One that is differentiated as it ought not to be: tanh with the slope of the logistic.
    slope = PHI["logistic"].dphi if wrong else PHIS[0].dphi
    phis = [dataclasses.replace(PHIS[0], dphi=slope), PHIS[1]]
    networks = trials.Candidate(kind, depth, *scales)

    seen, hand, rounding = jnp.moveaxis(
        trials.first_steps(jax.random.key(7), networks, phis, data, BUDGET), -3, 0
    )

    assert seen.shape == (3, 3, BUDGET.deepest + 3)
    share = jnp.max(jnp.abs(seen - hand) / rounding, axis=(1, 2))
    np.testing.assert_array_equal(share < 1, [not wrong, True, True])
    np.testing.assert_array_equal(seen[1, :, 2:5], 0)  # layers that are not there
    assert float(jnp.max(rounding)) < 1e-9


def test_a_grid_has_every_combination_in_each_draw() -> None:
    made = trials.grid(2, 2, jnp.array([1.0, 1.5]), (3, 5, 7), jnp.array([0.1]), 0.2)

    assert made.kind.shape == (2, 2, 2, 3, 1)
    for draw in range(2):
        one = [jnp.ravel(part[draw]) for part in made]
        assert len({tuple(map(float, row)) for row in zip(*one, strict=True)}) == 12
    assert float(made.depth[0, 1, 0, 2, 0]) == 7
    plain = trials.plain_numbers(made)[0, 1, 1, 2, 0]
    np.testing.assert_allclose(plain, [1, 2.25, np.log(7), np.log(0.1)], rtol=1e-12)


def test_fates_are_told_by_the_loss_of_guessing() -> None:
    guess = np.log(10)
    loss = jnp.array([0.0, 0.49 * guess, guess, 2.01 * guess, jnp.inf, jnp.nan])

    names = [trials.OUTCOMES[i] for i in trials.fates(loss, 10)]

    assert names == ["learns"] * 2 + ["stalls"] + ["diverges"] * 3
