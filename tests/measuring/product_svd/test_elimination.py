from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flint import fmpq, fmpq_mat
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlab.arithmetic import doubled, scaled
from gradlab.arithmetic.doubled import Doubled
from gradlab.measuring.product_svd import complete_pivoting, elimination

DTYPES = [jnp.float32, jnp.float64]
OPERATIONS = {
    "product": (lambda x, y: doubled.product_of(x.high, y.high), lambda x, y: x[0] * y[0]),
    "add": (doubled.add, lambda x, y: sum(x) + sum(y)),
    "subtract": (doubled.subtract, lambda x, y: sum(x) - sum(y)),
    "multiply": (doubled.multiply, lambda x, y: sum(x) * sum(y)),
    "divide": (doubled.divide, lambda x, y: sum(x) / sum(y)),
}
COMPLETE = jax.jit(lambda J, L, log_2_d: complete_pivoting.eliminate(J, Doubled(L, 0 * L), log_2_d))
PARTIAL = jax.jit(elimination.partial_pivoting)


@jax.jit
def REFINED(J: Any, L: Any) -> Any:
    return elimination.refined(J, Doubled(L, 0 * L), elimination.partial_pivoting(J @ L))


def exact(*parts: Any) -> Any:
    return tuple(fmpq(*float(part).as_integer_ratio()) for part in parts)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(OPERATIONS)),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
)
def test_operations_on_pairs_have_half_as_many_digits_again(
    name: str, seed: int, dtype: Any
) -> None:
    rng = np.random.default_rng(seed)
    highs = jnp.asarray(rng.normal(size=2) * 10.0 ** rng.integers(-3, 4, 2), dtype)
    lows = highs * jnp.asarray(rng.uniform(-0.25, 0.25, 2), dtype) * scaled.eps(dtype)
    x, y = (Doubled(high, low) for high, low in zip(highs, lows, strict=True))
    operate, expected = OPERATIONS[name]
    got = jax.jit(operate)(x, y)
    truth = expected(exact(*x), exact(*y))
    # An operation's own error; a sum's is beside its terms.
    size = abs(exact(x.high)[0]) + abs(exact(y.high)[0]) if name in ("add", "subtract") else truth
    assert abs(sum(exact(*got)) - truth) <= exact(doubled.roundoff(dtype))[0] * abs(size)
    assert abs(got.low) <= abs(got.high) * scaled.eps(dtype)


def is_unit_lower(L: Any) -> Any:
    """Whether the rows of L can be sorted into a unit lower triangle with entries up to 1."""
    rows = [int(np.flatnonzero(row)[-1]) if row.any() else -1 for row in L]
    return sorted(rows) == list(range(len(L))) and abs(L).max() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 5, 5), (4, 6, 6), (7, 3, 3), (6, 6, 4)])
def test_both_factor_the_product_into_an_unordered_triangle_and_an_ordered_one(
    shape: Any, dtype: Any
) -> None:
    m, n, r = shape
    rng = np.random.default_rng(0)
    J, L = (jnp.asarray(rng.normal(size=s), dtype) for s in ((m, n), (n, r)))
    partial, complete, order = PARTIAL(J @ L), COMPLETE(J, L, jnp.zeros(r, dtype)), np.arange(r)
    assert complete.num_lost == 0
    found = [(partial.L, partial.R, order), (complete.L.high, complete.R, complete.order)]
    if m >= r:
        better, R = REFINED(J, L)
        found.append((better.high, R, order))
    for left, R, order in found:
        np.testing.assert_array_equal(R, np.triu(R))
        product = np.asarray(left, float) @ np.asarray(R, float)
        # A few roundings.
        np.testing.assert_allclose(
            product,
            (np.asarray(J, float) @ np.asarray(L, float))[:, order],
            rtol=0,
            atol=30 * scaled.eps(dtype),
        )
        if m == r:
            assert is_unit_lower(np.asarray(left))


def by_elimination(J: Any, L: Any, order: Any, found: Any) -> Any:
    """The exact R and L of `J L` with the pivots of a factor L, its rows in order, and these."""
    J, L = (fmpq_mat([list(exact(*row)) for row in np.asarray(part)]) for part in (J, L))
    A, n = J * L, L.ncols()
    rows = np.argsort([np.flatnonzero(row)[-1] for row in np.asarray(found.high)], stable=True)
    S = [[A[int(i), int(j)] for j in order] for i in rows]
    factors = [[fmpq(int(i == j)) for j in range(n)] for i in range(n)]
    for k in range(n):
        for i in range(k + 1, n):
            factors[i][k] = S[i][k] / S[k][k]
            S[i] = [a - factors[i][k] * b for a, b in zip(S[i], S[k], strict=True)]
    return S, factors, rows


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
    n=st.sampled_from([2, 5]),
    how=st.sampled_from(["complete", "refined"]),
)
def test_factors_are_right_to_rounding_for_nearly_singular_layers(
    seed: int, dtype: Any, n: Any, how: Any
) -> None:
    rng = np.random.default_rng(seed)
    U, V = np.linalg.qr(rng.normal(size=(2, n, n)))[0]
    # Refining ends where the square of the error of the factors found is a rounding.
    condition = 1e4 if how == "complete" else 50
    J = jnp.asarray((U * np.geomspace(1, 1 / condition, n)) @ V, dtype)
    L = jnp.asarray(np.tril(rng.uniform(-1, 1, (n, n)), -1) + np.eye(n), dtype)
    if how == "complete":
        found, found_R, order, _, num_lost = COMPLETE(J, L, jnp.zeros(n, dtype))
        assert num_lost == 0
    else:
        (found, found_R), order = REFINED(J, L), range(n)
    R, factors, rows = by_elimination(J, L, order, found)
    # Two roundings, and what the digits in between leave of the condition.
    few = exact(4 * scaled.eps(dtype))[0]
    for k in range(n):
        for j in range(n):
            size = max(abs(R[k][j]), abs(R[k][k])) if j >= k else 0
            assert abs(exact(found_R[k, j])[0] - (R[k][j] if j >= k else 0)) <= few * size
            assert abs(sum(exact(*(part[rows[k], j] for part in found))) - factors[k][j]) <= few


@pytest.mark.parametrize(("dtype", "decades"), [(jnp.float32, 2), (jnp.float64, 5)])
def test_refined_pivots_are_nearly_exact_whatever_the_scales_of_rows_and_columns(
    dtype: Any, decades: Any
) -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        rows, columns = 10.0 ** rng.uniform(-decades, decades, (2, 5))
        J = jnp.asarray(rows[:, None] * rng.normal(size=(5, 5)) * columns, dtype)
        L = jnp.asarray(np.tril(rng.uniform(-1, 1, (5, 5)), -1) + np.eye(5), dtype)
        found, found_R = REFINED(J, L)
        R, _, _ = by_elimination(J, L, range(5), found)
        # A residual's own roundings, beside the largest term of a row, magnified as those of the
        # pivots found are, which are wrong by up to 1e9 eps here (float32: 3e3).
        few = exact(64 * scaled.eps(dtype))[0]
        for k in range(5):
            assert abs(exact(found_R[k, k])[0] - R[k][k]) <= few * abs(R[k][k])


def test_pivots_follow_the_diagonal_beside_the_layer() -> None:
    J = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)))
    log_2_d = jnp.array([-3000.0, 10.0, -40.0, 800.0])
    done = COMPLETE(J, jnp.eye(4), log_2_d)
    np.testing.assert_array_equal(done.order, [3, 1, 2, 0])
    assert abs(done.L.high).max() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_rank_that_only_rounding_stands_in_for_is_lost_and_zeros_are_not(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    J = rng.normal(size=(5, 5))
    L = jnp.asarray(np.tril(rng.uniform(-1, 1, (5, 5)), -1) + np.eye(5), dtype)
    repeated, dead, both = J.copy(), J.copy(), J.copy()
    repeated[4] = J[0] - 2 * J[2]
    dead[3] = 0
    both[4], both[3] = J[0] - 2 * J[2], 0
    low_rank = rng.normal(size=(5, 2)) @ rng.normal(size=(2, 5))
    for layer, num_lost, num_pivots in (
        (J, 0, 5),
        (repeated, 1, 4),
        (dead, 0, 4),
        (both, 1, 3),
        (low_rank, 3, 2),
        (np.zeros((5, 5)), 0, 0),
    ):
        done = COMPLETE(jnp.asarray(layer, dtype), L, jnp.zeros(5, dtype))
        np.testing.assert_array_equal(np.diag(done.R) != 0, np.arange(5) < num_pivots)
        assert done.num_lost == num_lost


def test_columns_of_the_complement_take_the_rows_that_are_left() -> None:
    """Of five, two are directions and parallel: one pivot, one lost, and four without influence."""
    rng = np.random.default_rng(0)
    J, L = rng.normal(size=(5, 5)), rng.normal(size=(5, 5))
    L[:, 3] = 2 * L[:, 1]
    is_direction = np.array([0, 1, 0, 1, 0])
    log_2_d = jnp.where(is_direction == 1, jnp.array([0.0, -40, 0, -41, 0]), -jnp.inf)
    added = np.zeros((5, 5))
    added[:, 4] = rng.normal(size=5)
    L[:, 4] = 0
    done = jax.jit(complete_pivoting.eliminate)(
        jnp.asarray(J), Doubled(*(jnp.asarray(part) for part in (L, 0 * L))), log_2_d, 0, added
    )
    assert done.order[0] in (1, 3)
    assert sorted(done.order[1:4]) == [0, 2, 4]
    np.testing.assert_array_equal(np.diag(done.R) != 0, [1, 1, 1, 1, 0])
    assert done.num_lost == 1
    product = done.L.high @ done.R
    expected = (J @ L + added)[:, done.order]
    # A few roundings; the last column is what rounding is taken for.
    np.testing.assert_allclose(product[:, :4], expected[:, :4], rtol=0, atol=1e-14)
    assert is_unit_lower(np.asarray(done.L.high))


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_layer_that_is_not_finite_has_no_pivot_that_is(bad: Any) -> None:
    J = jnp.eye(3).at[1, 2].set(bad)
    assert np.isnan(np.diag(COMPLETE(J, jnp.eye(3), jnp.zeros(3)).R)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_nearer_to_parallel_than_the_digits_can_tell_are_lost_and_others_right(
    dtype: Any,
) -> None:
    """What is left of the second column is told by twice the digits of the dtype, and no more."""
    digits = 2 * int(jnp.finfo(dtype).nmant)
    for apart in range(4, digits + 12, 4):
        for seed in range(6):
            J = jnp.asarray(np.random.default_rng(seed).normal(size=(2, 2)), dtype)
            L = jnp.asarray([[1, 1], [0, 2.0**-apart]], dtype)
            found = COMPLETE(J, L, jnp.zeros(2, dtype))
            if found.num_lost == 0:
                assert apart <= digits
                det = np.prod(np.asarray(jnp.diagonal(found.R), float))
                # At worst the noise that a pivot has to be above, in its own units.
                exact = abs(np.linalg.det(np.asarray(J, float))) * 2.0**-apart
                assert abs(abs(det) / exact - 1) < 0.1
            else:
                assert apart >= digits - 12
