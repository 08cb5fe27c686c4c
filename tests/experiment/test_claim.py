"""A claim over an array is about its worst entry, judged by that entry's own tolerance."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from scipy import stats

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


@pytest.mark.parametrize("number", [4, 5, 8])
def test_draws_that_were_used_twice_say_nothing(number: int) -> None:
    draws = np.random.default_rng(0).normal(size=(number, 3))
    for rows, holds in (
        (draws, True),
        (draws[np.arange(number) // 2 * 2], False),
        (np.where(np.arange(number)[:, None] < number - 2, 0.1, draws), True),  # most are alike
        (np.zeros((number, 3)), True),  # as are all
    ):
        named = xr.DataArray(rows, dims=("draw", "place"))
        assert gl.claim.mean("s", named, named.mean("draw"), "source").holds is holds


def test_few_draws_fail_no_more_often_than_many() -> None:
    rng = np.random.default_rng(1)
    draws = xr.DataArray(rng.normal(size=(3, 20_000)), dims=("draw", "w"))
    few = gl.claim.mean("s", draws, 0.0, "x")
    allowed = gl.claim.mean("s", draws.isel(w=[0]), 0.0, "x").tolerance["sampling"]

    # A t of two degrees of freedom goes beyond 125 standard errors as a normal goes beyond 4.
    assert allowed > 100 * float(draws[:, 0].std(ddof=1)) / 3**0.5
    share = abs(few.measured) / few.tolerance["sampling"]
    assert share < 1.5  # of 20,000 at most one or two go beyond


def test_weights_are_judged_by_their_moments_each_kind_by_its_own_law() -> None:
    rng, edge = np.random.default_rng(3), np.sqrt(3 / 4)
    drawn = np.stack([rng.normal(size=(20, 8, 8, 8)), rng.uniform(-edge, edge, (20, 8, 8, 8))], 1)
    kinds = ["normal", "uniform"]
    laws = {"variance": line([1, 0.25], "kind", kinds), "excess": line([0, -1.2], "kind", kinds)}

    def claim(entries: Any, **said: Any) -> gl.Claim:
        moments = jax.vmap(jax.vmap(gl.ensembles.realised))(jnp.asarray(entries) / 8**0.5)
        named = xr.DataArray(moments, {"kind": kinds}, dims=("draw", "kind", "moment"))
        return gl.claim.weights(named, "made up", **laws | said)

    assert claim(drawn).holds
    assert not claim(drawn, excess=0.0).holds
    assert claim(drawn + 0.1).at.endswith("moment = mean")
    assert claim(drawn[:, :, np.arange(8) // 2]).at.endswith("moment = neighbours")
    # The mean square is as it was.
    uneven = np.sqrt(1 + 0.3 * np.array([1, -1, 1, -1, 1, -1, 1, -1]))[:, None, None]
    assert claim(drawn * uneven).at.endswith("moment = layers apart")
    symmetric = np.tril(drawn) + np.tril(drawn, -1).swapaxes(-1, -2)
    assert claim(symmetric).at.endswith("moment = mirrored")
    row_twice = drawn[..., np.array([0, 1, 2, 3, 4, 5, 6, 2]), :]
    assert claim(row_twice).at.endswith("moment = mirrored")
    assert not any(claim(wrong).holds for wrong in (1.1 * drawn, drawn + 0.1))
    assert not claim(drawn[:1]).holds  # the spread of one draw is not known


def test_no_two_draws_of_continuous_weights_have_the_same_moments() -> None:
    rng = np.random.default_rng(5)
    normal, signs = rng.normal(size=(20, 8, 8, 8)), rng.choice([-1.0, 1.0], (20, 2, 2, 2))

    def claim(entries: Any, order: Any = ..., **said: Any) -> gl.Claim:
        moments = jax.vmap(gl.ensembles.realised)(jnp.asarray(entries) / entries.shape[-1] ** 0.5)
        named = xr.DataArray(moments[order], dims=("draw", "moment"))
        return gl.claim.weights(named, "made up", **said)

    again = np.minimum(np.arange(20), 18)  # the last but one used for the last

    assert claim(normal).holds
    assert not claim(normal, again).holds
    # Of 256 stacks of signs chance draws some twice.
    assert claim(signs, again, excess=-2).holds
    assert claim(0 * normal, variance=0).holds


ONE_IN_15_800 = math.erfc(4 / math.sqrt(2))


@pytest.mark.parametrize(("num_draws", "num_entries"), [(math.inf, 1), (20, 1), (5, 300)])
def test_an_allowed_deviation_is_the_quantile_that_entries_share(
    num_draws: float, num_entries: int
) -> None:
    amount = gl.estimate.Sampling(0.5, num_draws).amount(num_entries)
    beyond = stats.t(num_draws - 1) if num_draws < math.inf else stats.norm
    either_side = 2 * num_entries * beyond.cdf(-amount / 0.5)

    np.testing.assert_allclose(either_side, ONE_IN_15_800, rtol=1e-9)


def test_a_claim_states_the_chance_of_all_its_samplings_whatever_the_entries() -> None:
    noise: dict[str, Any] = {
        "a": gl.estimate.Sampling(line([0.1, 0.2])),
        "b": gl.estimate.Sampling(1.0),
    }
    alone = gl.claim.everywhere("s", line([0.0, 0.0]), 0.0, "x", rounding=1.0)
    both = gl.claim.everywhere("s", line([0.0, 0.0]), 0.0, "x", rounding=1.0, **noise)
    bound = gl.claim.at_most("s", line([0.0, 0.0]), 0.0, "x", chance=0.01, **noise)

    assert alone.chance == 0.0
    np.testing.assert_allclose(both.chance, 2 * ONE_IN_15_800)
    np.testing.assert_allclose(bound.chance, 0.01 + ONE_IN_15_800)
    assert both.record()["chance"] == both.chance
    assert gl.claim.always("s", line([True]), "x", chance=0.3).chance == 0.3
    assert gl.claim.equal("s", 1.0, 1.0, "x", chance=0.3).chance == 0.3


def test_entries_left_out_do_not_widen_what_the_others_are_allowed() -> None:
    error, some = line([0.1] * 50), line([True] * 2 + [False] * 48)
    few = gl.claim.everywhere(
        "s", error, 0.0, "x", where=some, noise=gl.estimate.Sampling(error, 8)
    )
    alone = gl.estimate.Sampling(0.1, 8).amount(2)

    assert few.tolerance["noise"] == alone


@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_true_claims_over_many_entries_fail_no_more_often_than_stated(shared: float) -> None:
    """4,000 claims of 40 means of 6 draws; a part of each draw may be common to all entries."""
    rng = np.random.default_rng(2)
    common, own = rng.normal(size=(6, 4_000, 1)), rng.normal(size=(6, 4_000, 40))
    draws = math.sqrt(shared) * common + math.sqrt(1 - shared) * own
    value, error = gl.estimate.mean(draws)
    noise = gl.estimate.Sampling(error, 6, num_errors=2.0)
    failed = int((np.abs(value) > noise.amount(40)).any(-1).sum())

    # Of independent entries nearly as often as stated: then the bound is no wider than it must be.
    assert stats.binomtest(failed, 4_000, noise.chance, alternative="greater").pvalue > 1e-3
    assert shared or stats.binomtest(failed, 4_000, noise.chance, alternative="less").pvalue > 1e-3


def test_a_first_depth_has_its_sampling_capped_and_its_chance_kept() -> None:
    noise = gl.estimate.Sampling(line([0.5, math.inf]))
    found = gl.claim.first_depth(
        "s", line([3.0, 9.0]), line([4.0, 500.0]), "x", deepest=100, fluctuation=noise
    )

    assert found.holds
    assert math.isfinite(found.tolerance["fluctuation"])
    np.testing.assert_allclose(found.chance, ONE_IN_15_800)


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
        (lambda: gl.Claim("s", 1.0, 1.0, {}, "x", chance=1.0), "chance 1.0"),
        (lambda: gl.Claim("s", 1.0, 1.0, {}, "x", chance=math.nan), "chance nan"),
    ],
)
def test_a_claim_of_wrong_parts_is_refused_in_a_sentence(made: Any, said: str) -> None:
    with pytest.raises(gl.BadInput, match=said) as refused:
        made()
    assert "claim 's'" in str(refused.value)
    assert "allowed: " in str(refused.value)


def test_a_gain_is_judged_by_its_mean_and_its_chance_by_students_t() -> None:
    gained = xr.DataArray([[0.5, 1.0, 1.5], [1.0, 2.0, 3.0]], dims=("trick", "run"))
    judged = gl.claim.gain("it helps", gained, "here", over="run")
    # The pooled variance of the rows is 1/2 (mean of 1/6 and 2/3 by n, over n - 1 = 2).
    error = np.sqrt(np.mean([1 / 6, 2 / 3]) / 2)
    chance = sum(stats.t.sf(won / error, 4) for won in (1.0, 2.0))
    assert judged.holds
    assert judged.chance == pytest.approx(chance, rel=1e-12)
    assert not gl.claim.gain("it helps", -gained, "here", over="run").holds
    twice = xr.concat([gained, gained], "run")  # a spread that cannot be known
    assert not gl.claim.gain("it helps", twice, "here", over="run").holds
    assert not gl.claim.gain("it helps", 0 * gained, "here", over="run").holds


def test_what_a_guess_may_gain_is_the_expectation_and_the_spread_of_chi_squared() -> None:
    causes = gl.claim.guessing(10, 8, 5)
    assert causes["labels_of_a_batch"] == pytest.approx(9 / 16)
    assert set(causes) == {"labels_of_a_batch", "sampling"}


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_mean_over_a_draw_that_is_not_finite_fails(bad: float) -> None:
    draws = xr.DataArray([[1.0, 2.0], [1.1, bad], [0.9, 2.1]], dims=("draw", "w"))
    assert not gl.claim.mean("s", draws, line([1.0, 2.0]), "here", more=0.1).holds
    assert gl.claim.mean("s", draws[:, :1], line([1.0]), "here", more=0.1).holds


def test_what_is_nan_fails_though_what_is_allowed_is_nan_with_it() -> None:
    length = xr.DataArray([1.0, np.nan], dims="layer")
    found = gl.claim.at_most("no layer is longer", 0.5 * length, length, "here", rounding=length)
    assert not found.holds
    assert found.tolerance == {"rounding": 0.0}
    with pytest.raises(gl.BadInput, match="allowed: at least 0"):
        gl.claim.at_most("no layer is longer", xr.DataArray(1.0), 2.0, "here", rounding=np.nan)
