"""A fitted rule against its own equations, Brier's score by hand, and reliability by counting."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.measuring import forecast
from gradlab.measuring.forecast import Rule

NUM, PRIOR = 600, 3.0


@partial(jax.jit, static_argnums=2)
def fitted(features: jax.Array, outcome: jax.Array, num_outcomes: int) -> Rule:
    return forecast.fit(features, outcome, num_outcomes, PRIOR)


@pytest.fixture(scope="module")
def cases() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features, the outcomes that a known rule draws, and its probabilities."""
    key_x, key_y = jax.random.split(jax.random.key(1))
    features = 2 * jax.random.normal(key_x, (NUM, 2))
    weights = jnp.array([[0.0, 0.0, 0.0], [0.5, 1.0, -1.0], [-0.5, 0.3, 1.5]])
    true = forecast.probabilities(Rule(weights, jnp.eye(9), jnp.zeros(2)), features)
    return features, jax.random.categorical(key_y, jnp.log(true)), true


@pytest.fixture(scope="module")
def rule(cases: tuple[jax.Array, jax.Array, jax.Array]) -> Rule:
    return fitted(cases[0], cases[1], 3)


def test_the_fit_solves_its_score_equations(cases: tuple[jax.Array, ...], rule: Rule) -> None:
    features, outcome, _ = cases
    off = np.eye(3)[np.asarray(outcome)] - forecast.probabilities(rule, features)
    x = np.c_[np.ones(NUM), features - rule.mean[None]]

    np.testing.assert_allclose(off.T @ x, rule.weights / PRIOR**2, atol=1e-9)


def test_the_fit_finds_the_rule_within_its_own_error(
    cases: tuple[jax.Array, ...], rule: Rule
) -> None:
    features, _, true = cases
    reliable = forecast.reliability(rule, features, cases[1], 1)
    made = forecast.probabilities(rule, features)

    assert float(jnp.mean(jnp.abs(made - true))) < 0.03  # errors of weights: 1/√600 and less
    np.testing.assert_allclose(reliable.forecast[:, 0], np.mean(made, axis=0), rtol=1e-12)


def test_outcomes_that_features_part_without_error_leave_finite_weights() -> None:
    features = jnp.linspace(-1.0, 1.0, 20)[:, None]
    rule = fitted(features, (features[:, 0] > 0).astype(int), 2)

    assert bool(jnp.all(jnp.isfinite(rule.weights)))
    assert float(forecast.probabilities(rule, features)[-1, 1]) > 0.9


def test_brier_is_the_squared_distance() -> None:
    given = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.3, 0.2]])
    score = forecast.brier(given, jnp.array([0, 0, 1]))

    np.testing.assert_allclose(score, [0.0, 2.0, 0.25 + 0.49 + 0.04], rtol=1e-12)


def test_reliability_counts_and_knows_its_error(cases: tuple[jax.Array, ...], rule: Rule) -> None:
    features, outcome, *_ = cases
    made, found = (
        forecast.probabilities(rule, features),
        forecast.reliability(rule, features, outcome, 4),
    )
    inside = (made[:, 1] >= 0.25) & (made[:, 1] < 0.5)
    num = int(inside.sum())

    assert float(found.number[1, 1]) == num
    assert float(found.observed[1, 1]) == pytest.approx(float(jnp.mean(outcome[inside] == 1)))
    assert float(found.forecast[1, 1]) == pytest.approx(float(jnp.mean(made[inside, 1])))
    alone = float(jnp.sqrt(jnp.sum((made * (1 - made))[inside, 1]))) / num
    assert alone < float(found.error[1, 1]) < 1.5 * alone
