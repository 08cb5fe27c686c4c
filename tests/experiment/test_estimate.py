"""A claim gives the verdict that its numbers deserve, and fits agree with their closed forms."""

import math
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from gradlab.experiment import estimate
from gradlab.experiment.claim import Claim


def claim(measured: float, expected: float, tolerance: float = 0.0, relation: Any = "=") -> Claim:
    return Claim("a sentence", measured, expected, {"a cause": tolerance}, "a source", relation)


@pytest.mark.parametrize(
    ("measured", "expected", "tolerance", "relation", "holds"),
    [
        (1.0, 1.0, 0.0, "=", True),
        (1.25, 1.0, 0.25, "=", True),
        (1.26, 1.0, 0.25, "=", False),
        (0.74, 1.0, 0.25, "=", False),
        (1.26, 1.0, 0.25, "<=", False),
        (0.0, 1.0, 0.0, "<=", True),
        (0.74, 1.0, 0.25, ">=", False),
        (2.0, 1.0, 0.0, ">=", True),
        (math.inf, math.inf, 0.0, "=", True),
        (math.inf, -math.inf, 1.0, "=", False),
        (math.inf, 1.0, 1.0, "=", False),
        (-math.inf, 1.0, 0.0, "<=", True),
        (math.inf, 1.0, 0.0, "<=", False),
        (math.inf, 1.0, 0.0, ">=", True),
        (1.0, math.inf, 0.0, "<=", True),
        (math.nan, 1.0, 1.0, "=", False),
        (math.nan, math.nan, 1.0, "=", False),
        (math.nan, 1.0, 1.0, "<=", False),
        (1.0, math.nan, 1.0, ">=", False),
    ],
)
def test_a_claim_holds_exactly_where_its_relation_does(
    measured: float, expected: float, tolerance: float, relation: str, holds: bool
) -> None:
    assert claim(measured, expected, tolerance, relation).holds is holds


def test_causes_of_tolerance_add_up() -> None:
    two = Claim("s", 1.3, 1.0, {"rounding": 0.2, "sampling": 0.125}, "source")
    assert two.holds
    assert not Claim("s", 1.3, 1.0, {"rounding": 0.2}, "source").holds


@pytest.mark.parametrize("amount", [-1.0, math.nan])
def test_a_tolerance_that_is_no_size_is_refused(amount: float) -> None:
    with pytest.raises(ValueError, match="allowed: at least 0"):
        claim(1.0, 1.0, amount)


def test_a_record_is_strict_json_and_keeps_infinities_readable() -> None:
    record = claim(math.inf, -math.inf).record()
    assert (record["measured"], record["expected"]) == ("inf", "-inf")
    assert record["verdict"] == "fails"


def test_the_slope_and_its_error_agree_with_the_normal_equations() -> None:
    rng = np.random.default_rng(0)
    x = np.arange(50.0)
    y = 3.0 * x + rng.normal(size=50)
    design = np.stack([x, np.ones(50)], axis=1)
    solution, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    covariance = np.linalg.inv(design.T @ design) * residual / 48
    fit = estimate.slope(x, y)
    # Two ways to solve one well-conditioned least-squares problem: rounding of sums of 50 squares.
    assert fit.value == pytest.approx(solution[0], rel=1e-12)
    assert fit.error == pytest.approx(math.sqrt(covariance[0, 0]), rel=1e-10)


def test_the_mean_has_the_error_that_its_draws_show() -> None:
    draws = np.random.default_rng(0).normal(2.0, 3.0, size=(4000, 25))
    found = estimate.mean(draws)
    # 25 standard scores: their sum of squares is chi squared with 25 degrees of freedom.
    chi_squared = np.sum(((found.value - 2.0) / found.error) ** 2)
    assert 8.0 < chi_squared < 55.0  # the 1e-4 quantiles on both sides, roughly


def test_means_of_skewed_draws_are_beyond_what_is_allowed_as_often_as_is_stated() -> None:
    # The least of means of chi squared draws; Student's t of them is beyond 30 times as often.
    rng, num, stated = np.random.default_rng(1), 40_000, 1e-3
    errors = float(stats.norm.isf(stated / 2))
    draws = rng.chisquare(1, (100, num)) - 1
    value, error = estimate.mean(draws)
    side = np.sign(value)

    def beyond(skewness: Any) -> int:
        one = estimate.Sampling(error, 100, num_errors=errors, skewness=skewness)
        return int(np.sum(np.abs(value) > one.amount(1, side)))

    by_hall, by_student = beyond(estimate.skewness(draws)), beyond(0.0)
    # An Edgeworth expansion to 1/√num_draws leaves a relative error of a few times that.
    assert stats.binom.sf(by_hall - 1, num, 1.5 * stated) > 1e-3
    assert stats.binom.sf(by_student - 1, num, 4 * stated) < 1e-9
    assert stats.binom.cdf(by_hall, num, stated / 1.5) > 1e-3


def test_draws_that_are_not_skewed_have_students_t() -> None:
    rng = np.random.default_rng(2)
    found = estimate.skewness(rng.normal(size=(50, 4000)))
    assert 0.6 < np.mean(found == 0) < 0.76  # within a standard error: 0.68
    assert estimate.skewness(np.ones((5, 2))).tolist() == [0.0, 0.0]
    # Half of the draws at 0 and half at 1, and one in five at 1: (1 - 2p)/√(p (1 - p)).
    few = np.repeat([[0.0, 1.0]] * 100, [4, 1], axis=1).reshape(-1)
    assert estimate.skewness(few) == pytest.approx(1.5 - math.sqrt(6 / 500), rel=1e-12)
    student = estimate.Sampling(2.0, 20)
    assert student.amount(3, -1.0) == student.amount(3, 1.0) == estimate.num_errors(20, 3) * 2.0


def test_the_allowance_of_skewed_draws_is_halls_transformation_turned_round() -> None:
    skewness, num = 0.8, 60
    one = estimate.Sampling(1.0, num, skewness=skewness)
    for side in (-1.0, 1.0):
        t = side * one.amount(1, side)
        a = skewness / math.sqrt(num)
        transformed = t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6
        assert transformed == pytest.approx(side * estimate.num_errors(num), rel=1e-12)


def test_a_power_law_has_its_exponent_and_one_that_drifts_an_interval_with_it() -> None:
    x = np.array([8.0, 16.0, 32.0, 64.0])
    exact = estimate.exponent(x, np.log(3 * x**1.5)[:, None] * np.ones(3), 0.05)
    drifting = estimate.exponent(x, (np.log(x) + 1 / x)[:, None] * np.ones(3), 0.05)

    np.testing.assert_allclose(exact, 1.5, rtol=1e-12)
    # Half of its width is this very correction: without it the exponent would be the middle.
    of_correction = estimate.slope(np.log(x), 1 / x).value
    assert drifting.value == pytest.approx(1.0 + of_correction, rel=1e-12)
    assert (drifting.high - drifting.low) / 2 >= abs(of_correction)
    assert drifting.value < 1.0
    assert np.isnan(estimate.exponent(x, np.full((4, 1), -np.inf), 0.05)).all()
    assert np.isnan(estimate.exponent(x[:2], np.zeros((2, 4)), 0.05).low)


def test_an_exponent_leaves_its_interval_no_more_often_than_stated() -> None:
    x, rng = 2.0 ** np.arange(4, 9), np.random.default_rng(0)
    found = [
        estimate.exponent(x, np.log(x)[:, None] + rng.standard_normal((5, 3)), 0.1)
        for _ in range(400)
    ]
    missed = sum(not one.low <= 1.0 <= one.high for one in found)

    # The interval has room for a drift besides: at most the binomial's four standard deviations.
    assert missed <= 40 + 4 * np.sqrt(400 * 0.1 * 0.9)


def test_labelled_logs_have_an_exponent_for_each_of_their_rows() -> None:
    powers = xr.DataArray([0.5, -1.0], dims="way")
    width = xr.DataArray([4.0, 8.0, 32.0], dims="width", coords={"width": [4.0, 8.0, 32.0]})

    found = estimate.log_slopes(powers * np.log(width))
    xr.testing.assert_allclose(found, powers)
