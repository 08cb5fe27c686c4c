"""A claim over an array is about its worst entry, judged by that entry's own tolerance."""

import math
from typing import Any

import numpy as np
import pytest
import xarray as xr

import gradlab as gl


def line(values: Any, dim: str = "w", at: Any = None) -> xr.DataArray:
    return xr.DataArray(np.asarray(values), dims=dim, coords=None if at is None else {dim: at})


def test_the_worst_entry_is_the_one_farthest_beyond_its_own_tolerance() -> None:
    found = gl.claim.everywhere(
        "s",
        line([1.0, 2.5, 4.0], at=[0.1, 0.2, 0.3]),
        line([0.0, 2.0, 3.5], at=[0.1, 0.2, 0.3]),
        "source",
        rounding_of_w=line([2.0, 0.1, 1.0], at=[0.1, 0.2, 0.3]),
        sampling=0.1,
    )

    assert (found.measured, found.expected, found.at) == (2.5, 2.0, "w = 0.2")
    assert found.tolerance == {"rounding of w": 0.1, "sampling": 0.1}
    assert not found.holds


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_the_worst_and_fails(bad: float) -> None:
    found = gl.claim.everywhere("s", line([5.0, bad]), 0.0, "source", rounding=1e300)

    assert not found.holds
    assert found.at == "w = 1"


def test_infinities_that_are_expected_hold() -> None:
    assert gl.claim.equal("s", line([-math.inf, 3.0]), line([-math.inf, 3.0]), "source").holds
    assert not gl.claim.equal("s", line([-math.inf, 3.0]), line([math.inf, 3.0]), "source").holds


def test_where_nothing_is_allowed_the_smallest_difference_fails() -> None:
    found = gl.claim.equal("s", line([1.0, np.nextafter(1.0, 2.0)]), 1.0, "source")

    assert not found.holds
    assert found.at == "w = 1"


def test_a_mask_leaves_entries_out_and_an_empty_one_is_refused() -> None:
    assert gl.claim.everywhere("s", line([1.0, 9.0]), 1.0, "x", where=line([True, False])).holds
    with pytest.raises(ValueError, match="about no entry"):
        gl.claim.everywhere("s", line([1.0]), 1.0, "x", where=line([False]))


def test_bounds_are_one_sided() -> None:
    assert gl.claim.at_most("s", line([1.0, -9.0]), 1.0, "x").holds
    assert not gl.claim.at_most("s", line([1.0, 1.1]), 1.0, "x").holds
    assert gl.claim.at_least("s", line([1.0, 9.0]), 1.0, "x").holds
    assert not gl.claim.at_least("s", line([1.0, 0.8]), 1.0, "x", rounding=0.1).holds


def test_the_worst_of_two_axes_is_named() -> None:
    measured = xr.DataArray(
        [[0.0, 0.0], [0.0, 7.0]], dims=("kind", "w"), coords={"kind": ["a", "b"]}
    )

    assert gl.claim.everywhere("s", measured, 0.0, "x", rounding=1.0).at == "kind = b, w = 1"


def test_a_mean_is_judged_by_its_own_standard_error() -> None:
    draws = xr.DataArray(np.random.default_rng(0).normal(2.0, 0.5, (400, 3)), dims=("draw", "w"))
    right = gl.claim.mean("s", draws, 2.0, "x")
    wrong = gl.claim.mean("s", draws, 2.2, "x")

    assert right.holds
    assert not wrong.holds
    assert math.isclose(right.tolerance["sampling"], 4 * 0.5 / 20, rel_tol=0.2)


def test_few_draws_fail_no_more_often_than_many() -> None:
    rng = np.random.default_rng(1)
    draws = xr.DataArray(rng.normal(size=(3, 20_000)), dims=("draw", "w"))
    few = gl.claim.mean("s", draws, 0.0, "x")
    allowed = gl.claim.mean("s", draws.isel(w=[0]), 0.0, "x").tolerance["sampling"]

    # A t of two degrees of freedom goes beyond 125 standard errors as a normal goes beyond 4.
    assert allowed > 100 * float(draws[:, 0].std(ddof=1)) / 3**0.5
    share = abs(few.measured) / few.tolerance["sampling"]
    assert share < 1.5  # of 20,000 at most one or two go beyond


def test_a_slope_of_each_row() -> None:
    x = np.arange(5.0)
    rows = xr.DataArray(np.stack([2 * x, -x + 3]), dims=("w", "layer"))

    assert gl.claim.slope("s", x, rows, line([2.0, -1.0]), "x", rounding=1e-12).holds
    assert not gl.claim.slope("s", x, rows, line([2.0, -1.1]), "x", rounding=1e-12).holds


def test_a_first_depth_beyond_the_last_layer_counts_as_one_below_it() -> None:
    measured, predicted = line([3.0, math.inf]), line([4.0, 500.0])

    assert gl.claim.first_depth("s", measured, predicted, "x", deepest=100, rounding=1.0).holds
    assert not gl.claim.first_depth("s", measured, predicted, "x", deepest=600, rounding=1.0).holds


def test_always_is_the_share_of_which_it_is_true() -> None:
    assert gl.claim.always("s", line([True, True]), "x").holds
    assert gl.claim.always("s", line([True, False]), "x").measured == 0.5


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: gl.Claim("s", 1.0, 1.0, {}, "x", "=="), "relation '=='"),  # type: ignore[arg-type]
        (lambda: gl.Claim("s", 1.0, 1.0, 0.1, "x"), "tolerance 0.1"),  # type: ignore[arg-type]
        (lambda: gl.Claim("s", np.ones(3), 1.0, {}, "x"), "shape \\(3,\\)"),  # type: ignore[arg-type]
        (lambda: gl.Claim("s", 1.0, 1.0, {"rounding": -1.0}, "x"), "at least 0"),
    ],
)
def test_a_claim_of_wrong_parts_is_refused_in_a_sentence(made: Any, said: str) -> None:
    with pytest.raises(gl.BadInput, match=said) as refused:
        made()
    assert "claim 's'" in str(refused.value)
    assert "allowed: " in str(refused.value)
