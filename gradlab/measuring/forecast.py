"""From numbers known beforehand to the probability of each outcome, and how good that is.

A softmax regression (multinomial logit: Cox 1958; McFadden 1974), fitted by Newton's method. Pure
and traceable; outcomes are counted from 0.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

# Damped steps of a convex problem with a prior: far more than it takes from any start seen.
_NUM_STEPS = 50


class Rule(NamedTuple):
    """A fitted rule: its weights, and how well the cases that it was fitted to know them.

    Attributes:
        weights: `(num_outcomes, 1 + num_features)`, the constant first, of features less `mean`.
        covariance: of all weights in a row, from the curvature at the fit.
        mean: `(num_features,)` of the features.
    """

    weights: Array
    covariance: Array
    mean: Array


class Reliability(NamedTuple):
    """Forecasts of one kind beside what happened, `(num_outcomes, num_bins)`.

    Attributes:
        forecast: mean probability of the outcome in the cases of a bin; nan where it has none.
        observed: the share of them in which it came about.
        error: the standard error of their difference if the rule is right: of the outcomes, and of
            its weights, which are known from finitely many cases.
        number: of the cases.
    """

    forecast: Array
    observed: Array
    error: Array
    number: Array


class Contest(NamedTuple):
    """How well rules forecast, the plain guess of how often each outcome came about coming last.

    Attributes:
        weights: those of the first rule.
        probability: `(..., num_outcomes)` that it gives.
        brier: `(num_rules + 1, ...)`.
        reliability: of the first rule.
    """

    weights: Array
    probability: Array
    brier: Array
    reliability: Reliability


def fit(features: Array, outcome: Array, num_outcomes: int, prior: ArrayLike) -> Rule:
    """The rule that makes the outcomes likeliest, with weights that are N(0, prior²) beforehand.

    Args:
        features: `(num_cases, num_features)`, of order 1 or logarithms.
        outcome: `(num_cases,)` what came about in each.
        num_outcomes: how many outcomes there are.
        prior: standard deviation of a weight; without one, outcomes that features part without
            error would drive the weights to infinity.
    """
    mean = jnp.mean(features, axis=0)
    x = _with_constant(features - mean[None])
    is_outcome = jax.nn.one_hot(outcome, num_outcomes, dtype=x.dtype)
    shape = (num_outcomes, x.shape[1])
    certain = jnp.eye(shape[0] * shape[1], dtype=x.dtype) / prior**2

    def curvature(weights: Array) -> Array:  # of -log likelihood - log prior
        p = jax.nn.softmax(x @ weights.T, axis=1)
        spread = p[:, :, None] * (jnp.eye(num_outcomes, dtype=x.dtype)[None] - p[:, None])
        return jnp.einsum("ckl,ci,cj->kilj", spread, x, x).reshape(certain.shape) + certain

    def step(weights: Array, _: None) -> tuple[Array, None]:
        off = jax.nn.softmax(x @ weights.T, axis=1) - is_outcome
        slope = (off.T @ x + weights / prior**2).ravel()
        move = jnp.linalg.solve(curvature(weights), slope)
        # Shorter while far away, where the curvature is not that of the way ahead.
        shorter = 1 + jnp.sqrt(jnp.maximum(move @ slope, 0.0))
        return weights - (move / shorter).reshape(shape), None

    weights, _ = jax.lax.scan(step, jnp.zeros(shape, x.dtype), None, _NUM_STEPS)
    return Rule(weights, jnp.linalg.inv(curvature(weights)), mean)


def probabilities(rule: Rule, features: Array) -> Array:
    """The probability of each outcome in each case, `(num_cases, num_outcomes)`."""
    x = _with_constant(features - rule.mean[None])
    return jax.nn.softmax(x @ rule.weights.T, axis=1)


def contest(
    features: Array,
    fixing: Array,
    outcome: Array,
    num_outcomes: int,
    prior: ArrayLike,
    num_bins: int,
) -> Contest:
    """Rules on several sets of features, and a guess, all fitted to what came about elsewhere.

    Args:
        features: `(num_rules, ..., num_features)`, the same in both kinds of cases, which `...` is.
        fixing: `(...)` outcomes that the rules are fitted to, and the guess.
        outcome: those that are forecast.
        num_outcomes: how many there are.
        prior: as of `fit`.
        num_bins: as of `reliability`, of the first rule.
    """
    cases = features.shape[1:-1]
    features = features.reshape(len(features), fixing.size, -1)
    fixing, outcome = fixing.ravel(), outcome.ravel()
    rules = jax.vmap(lambda x: fit(x, fixing, num_outcomes, prior))(features)
    made = jax.vmap(probabilities)(rules, features)
    guess = jnp.mean(jax.nn.one_hot(fixing, num_outcomes, dtype=made.dtype), axis=0)
    every = jnp.concatenate([made, jnp.broadcast_to(guess, made[:1].shape)])
    first = jax.tree.map(lambda part: part[0], rules)
    reliable = reliability(first, features[0], outcome, num_bins)
    scores = jax.vmap(brier, (0, None))(every, outcome).reshape(-1, *cases)
    return Contest(first.weights, made[0].reshape(*cases, num_outcomes), scores, reliable)


def brier(probability: Array, outcome: Array) -> Array:
    """The squared distance of each forecast from what happened, `(num_cases,)`: Brier 1950.

    0 is right and sure, 2 wrong and sure.
    """
    happened = jax.nn.one_hot(outcome, probability.shape[1], dtype=probability.dtype)
    return jnp.sum(jnp.square(probability - happened), axis=1)


def reliability(rule: Rule, features: Array, outcome: Array, num_bins: int) -> Reliability:
    """What happened where the rule forecast a probability of one of `num_bins` equal intervals."""
    probability = probabilities(rule, features)
    happened = jax.nn.one_hot(outcome, probability.shape[1], dtype=probability.dtype)
    bins = jnp.minimum(jnp.floor(probability * num_bins).astype(int), num_bins - 1)
    member = jax.nn.one_hot(bins, num_bins, dtype=probability.dtype)
    number = jnp.sum(member, axis=0)

    def share(values: Array) -> Array:
        return jnp.sum(member * values[..., None], axis=0) / number

    def mean_forecast(flat: Array) -> Array:  # in the bins as they are
        weights = flat.reshape(rule.weights.shape)
        return share(probabilities(rule._replace(weights=weights), features))

    slopes = jax.jacfwd(mean_forecast)(rule.weights.ravel())
    of_weights = jnp.einsum("kbi,ij,kbj->kb", slopes, rule.covariance, slopes)
    of_outcomes = share(probability * (1 - probability)) / number
    error = jnp.sqrt(of_weights + of_outcomes)
    return Reliability(share(probability), share(happened), error, number)


def _with_constant(features: Array) -> Array:
    return jnp.concatenate([jnp.ones((len(features), 1), features.dtype), features], axis=1)
