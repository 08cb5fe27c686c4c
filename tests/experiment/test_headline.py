"""Headline numbers: plain floats with their interval, whatever they are, and nothing hidden."""

import math

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from gradlab.errors import BadInput
from gradlab.experiment import headline
from gradlab.experiment.headline import Headline, recorded


def test_a_mean_has_two_standard_errors_on_either_side() -> None:
    draws = xr.DataArray(np.random.default_rng(0).normal(3.0, 1.0, 50), dims="draw")
    number = headline.mean("length", draws, "m", law=3.0)
    assert number.value == pytest.approx(float(draws.mean()), rel=1e-15)
    error = stats.sem(draws.values)
    assert [number.low, number.high] == pytest.approx(
        [number.value - 2 * error, number.value + 2 * error], rel=1e-14
    )
    assert number.words().startswith(f"{number.value:.4g} m (")
    assert "law 3)" in number.words()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 0.0, 1e308])
def test_what_is_not_finite_is_told_and_comes_back(value: float) -> None:
    number = Headline("x", value)
    assert recorded(number.record()).record() == number.record()
    assert not number.has_interval
    alone = headline.mean("x", [value])
    assert alone.value == pytest.approx(value, nan_ok=True)
    assert math.isnan(alone.low)
    assert math.isnan(headline.mean("x", [-math.inf, 1.0]).low)


def test_an_array_is_no_headline_number() -> None:
    with pytest.raises(BadInput, match=r"'x' has a law of shape \(2,\); allowed: one number"):
        Headline("x", 1.0, law=np.zeros(2))  # type: ignore[arg-type]
