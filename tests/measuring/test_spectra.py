from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma, polygamma

from gradlab.arithmetic import scaled
from gradlab.measuring import jacobians, spectra
from gradlab.measuring.product_svd import factorisation, factors, thresholds, trial
from gradlab.models import chain
from tests import arbitrary
from tests.measuring.product_svd.drawn import (
    DEPTH,
    ENSEMBLES,
    NEARLY_SINGULAR,
    SINGULAR_VALUES,
    WIDTH,
    far_behind,
    gaussian,
    rounding,
    spectrum,
    tanh_jacobians,
)

LOG_ABS_DET = jax.jit(jacobians.log_abs_det)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(ENSEMBLES)),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([jnp.float32, jnp.float64]),
)
def test_every_singular_value_is_right_to_its_own_last_digits(
    name: str, seed: int, dtype: Any
) -> None:
    matrices = ENSEMBLES[name](np.random.default_rng(seed))
    matrices, result = spectrum(matrices, dtype)
    exact = arbitrary.log_singular_values(matrices)
    assert not result.lost.any()
    assert (np.abs(result.log[0] - exact) <= rounding(matrices, dtype, exact)).all()


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(sorted(NEARLY_SINGULAR)), seed=st.integers(0, 2**32 - 1))
def test_layers_that_are_nearly_singular_cost_a_few_digits_and_not_all(
    name: str, seed: int
) -> None:
    matrices, result = spectrum(NEARLY_SINGULAR[name](np.random.default_rng(seed)), jnp.float64)
    exact = arbitrary.log_singular_values(matrices)
    assert not result.lost.any()
    # What layers in working precision may lose, and roundings of all layers, amplified by ratios
    # that rise, by up to 2^12 before the chain is gone through with more digits.
    bound = thresholds.ERROR_BUDGET + DEPTH * 2.2e-16 * (np.abs(exact) + 2**12)
    assert (np.abs(result.log[0] - exact) <= bound).all()


@pytest.mark.parametrize("seed", range(6, 10))
def test_a_direction_may_be_any_number_of_powers_of_two_behind_and_come_first_again(
    seed: int,
) -> None:
    matrices, result = spectrum(far_behind(np.random.default_rng(seed)), jnp.float64)
    exact = arbitrary.log_singular_values(matrices)
    # As for layers that are nearly singular.
    bound = thresholds.ERROR_BUDGET + DEPTH * 2.2e-16 * (np.abs(exact) + 2**12)
    assert (np.abs(result.log[0] - exact) <= bound).all()


@pytest.mark.parametrize("behind", [70, 200, 500])
def test_a_column_that_overtakes_one_far_ahead_of_it_takes_its_share_of_that_along(
    behind: int,
) -> None:
    """`diag(1, 2^-e)`, and a layer that takes both columns to the same size."""
    A = np.random.default_rng(0).normal(size=(2, 2))
    matrices = [np.diag([1, 2.0**-behind]), A * np.array([2.0 ** (-behind - 3), 1])]
    matrices, result = spectrum(matrices, jnp.float64, (2,))
    exact = arbitrary.log_singular_values(matrices)
    # Some roundings for each of two columns, magnified by the condition of A, and ulps.
    bound = 2.3e-16 * (20 * np.linalg.cond(A) + 2 * np.abs(exact))
    assert (np.abs(result.log[0] - exact) <= bound).all()


def test_layers_of_condition_1e14_lose_nothing_over_300_layers() -> None:
    rng = np.random.default_rng(0)
    matrices = tanh_jacobians(rng, 5.0, depth=300, width=8)
    assert np.median(np.linalg.cond(matrices)) > 1e6
    assert np.linalg.cond(matrices).max() > 1e14
    _, result = spectrum(matrices, jnp.float64, (300,))
    exact = arbitrary.log_singular_values(matrices)
    # The bar: rounding of 300 layers, and the ulp of logs of several thousand nats.
    assert np.abs(result.log[0] - exact).max() < 1e-10


def test_layers_that_each_lose_little_do_not_lose_much_together() -> None:
    """Four hundred times the same layer, which working precision wrongs by 1e-12 each time."""
    V = np.vander(np.random.default_rng(4).uniform(0.2, 1, WIDTH))
    matrices = np.stack([3 * V / np.linalg.norm(V)] * 400)
    x, now = jnp.zeros(WIDTH), factors.start(jnp.zeros(WIDTH))
    for J in matrices[:9]:
        found = trial.of_layer(chain.apply_linear, jnp.asarray(J), x, now)
        now = trial.accepted(now, found)
    assert thresholds.LAYER_BUDGET / 2 < found.error < thresholds.LAYER_BUDGET
    _, result = spectrum(matrices, jnp.float64, (400,))
    exact = arbitrary.log_singular_values(matrices)
    # What all layers in working precision may lose together, and ulps of some thousand nats.
    bound = thresholds.ERROR_BUDGET + 4.5e-16 * np.abs(exact)
    assert (np.abs(result.log[0] - exact) <= bound).all()


@pytest.mark.parametrize(
    ("triangle", "width", "depth"), [(np.tril, 8, 30), (np.triu, 16, 30), (np.triu, 16, 100)]
)
def test_directions_that_catch_up_with_others_do_not_bring_old_roundings_along(
    triangle: Any, width: int, depth: int
) -> None:
    """Random triangles, whose directions keep overtaking each other by many powers of ten."""
    rng = np.random.default_rng(2)
    matrices = jnp.asarray(triangle(3 * rng.normal(size=(depth, width, width)) / width**0.5))
    got = spectrum(matrices, jnp.float64, (depth,))[1].log[0]
    # Roundings of the diagonals and ulps of logs of some hundred nats, of all layers; with the
    # digits of a dtype or half as many more, 100 layers would be wrong by 1e-3 or 1e-4.
    assert np.abs(got - arbitrary.log_singular_values(matrices)).max() < depth * 2.2e-16 * 200


@pytest.mark.parametrize(
    ("width", "depth", "seed"), [(32, 40, 0), pytest.param(64, 50, 2, marks=pytest.mark.verify)]
)
def test_nothing_is_lost_in_wide_gaussian_chains(
    width: int, depth: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many pivots a layer has, and all in double words: a layer may lose little."""
    matrices = np.random.default_rng(seed).normal(size=(depth, width, width)) / width**0.5
    matrices, result = spectrum(matrices, jnp.float32, (depth,))
    exact = spectrum(matrices, jnp.float64, (depth,))[1].log
    monkeypatch.setattr(
        factorisation,
        "_level_needed",
        lambda _: jnp.asarray(thresholds.DOUBLED, jnp.int32),
    )
    run = jax.jit(lambda model: spectra.singular_values(model, jnp.ones(width, "f4"), (depth,)))
    doubled = run(chain.linear(matrices))
    for found in (result, doubled):
        assert not found.lost.any()
        # Float32 against float64: a rounding a layer beside a U of condition 1e4 at most.
        assert np.abs(found.log - exact).max() < 5e-4


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float64, 1e-13), (jnp.float32, 5e-5)])
def test_a_second_half_that_undoes_the_first_leaves_what_the_exact_product_does(
    dtype: Any, bound: Any
) -> None:
    """Forty Gaussian layers and their inverses, in the opposite order."""
    there = np.random.default_rng(0).normal(size=(40, WIDTH, WIDTH)) / WIDTH**0.5
    matrices, result = spectrum(np.concatenate([there, np.linalg.inv(there)[::-1]]), dtype, (80,))
    exact = arbitrary.log_singular_values(matrices)
    # Roundings of 80 layers; without more digits, some 1e-8 (float32: 1e-2).
    assert np.abs(result.log[0] - exact).max() < bound


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float64, 1e-13), (jnp.float32, 1e-5)])
def test_what_rounding_puts_beside_a_few_directions_does_not_come_back(
    dtype: Any, bound: Any
) -> None:
    """Three inputs to eight units, thirty layers and their inverses, which magnify by 1e20."""
    rng = np.random.default_rng(0)
    there = rng.normal(size=(30, 8, 8)) / 8**0.5
    matrices = jnp.asarray(np.concatenate([there, np.linalg.inv(there)[::-1]]), dtype)
    first = jnp.asarray(rng.normal(size=(8, 3)), dtype)
    got = SINGULAR_VALUES([*chain.linear([first]), chain.linear(matrices)], first[0], (61,))
    exact = arbitrary.log_singular_values([first, *matrices])[:3]
    # Some ulps of a few nats; without more digits for that, 0.4 in float64 too.
    assert np.abs(got.log[0] - exact).max() < bound


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "bar"),
    [(jnp.float64, 1e-10), pytest.param(jnp.float32, 1e-2, marks=pytest.mark.verify)],
)
def test_ten_thousand_tanh_layers_keep_all_their_singular_values(dtype: Any, bar: Any) -> None:
    rng = np.random.default_rng(0)
    matrices = jnp.asarray(tanh_jacobians(rng, 1.2, depth=10_000, width=8), dtype)
    _, result = spectrum(matrices, dtype, (10_000,))
    exact = arbitrary.log_singular_values(matrices, bits=60_000)
    # Rounding of 10^4 layers, magnified by directions that fall behind and catch up, and the ulp
    # of 17000 nats (4e-12, 2e-3).
    assert np.abs(result.log[0] - exact).max() < bar


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_logs_sum_to_the_log_determinant_at_every_depth(dtype: Any) -> None:
    matrices, result = spectrum(gaussian(np.random.default_rng(1)), dtype, tuple(range(1, 41)))
    expected = LOG_ABS_DET(chain.linear(matrices), jnp.zeros(WIDTH, dtype))
    # Rounding of 40 layers of condition up to 1e3.
    np.testing.assert_allclose(
        result.log.sum(axis=1), expected, rtol=0, atol=4e4 * scaled.eps(dtype)
    )


def test_the_depths_asked_for_are_those_of_the_shorter_products() -> None:
    matrices, result = spectrum(gaussian(np.random.default_rng(2)), jnp.float64, (1, 7, 40))
    for depth, log in zip((1, 7, 40), result.log, strict=True):
        exact = arbitrary.log_singular_values(matrices[:depth])
        assert (np.abs(log - exact) <= rounding(matrices, jnp.float64, exact)).all()


def test_every_singular_value_of_many_chains_at_once_is_that_of_each_alone() -> None:
    matrices = jnp.asarray(np.stack([ENSEMBLES[n](np.random.default_rng(0)) for n in ENSEMBLES]))

    def of_each(m: Any) -> Any:
        return spectra.log_singular_values(chain.linear(m), jnp.zeros(WIDTH), (DEPTH,))

    together = jax.jit(jax.vmap(of_each))(matrices)
    for log, m in zip(together, matrices, strict=True):
        # The same operations in other kernels: a few roundings a layer of condition up to 1e3.
        np.testing.assert_allclose(log, jax.jit(of_each)(m), rtol=1e-13, atol=1e-10)


@pytest.mark.parametrize("bad", [jnp.inf, jnp.nan])
def test_an_infinite_or_undefined_layer_is_seen_in_every_singular_value(bad: Any) -> None:
    layers = [chain.apply_linear, lambda _, z: z.at[0].multiply(bad)]
    model = [chain.Chain(f, jnp.eye(3)[None]) for f in layers]
    assert np.isnan(spectra.log_singular_values(model, jnp.ones(3), (2,))).all()


def test_singular_vectors_reassemble_the_product() -> None:
    rng = np.random.default_rng(6)
    for sizes in ([(4, 4)] * 3, [(6, 5), (3, 6), (7, 3)]):
        matrices = [jnp.asarray(rng.normal(size=size)) for size in sizes]
        model, x = chain.linear(matrices), jnp.zeros(sizes[0][1])
        side = jax.jit(spectra.singular_vectors)(model, x)
        product = np.linalg.multi_dot(matrices[::-1])
        values = scaled.unscale(side.singular_values).value
        rank = len(values)
        # A few roundings, normwise.
        close: dict[str, Any] = {"rtol": 0, "atol": 1e-13 * np.linalg.norm(product)}
        np.testing.assert_allclose(side.left * values[None, :] @ side.right.T, product, **close)
        np.testing.assert_allclose(side.left.T @ side.left, np.eye(rank), rtol=0, atol=1e-14)
        np.testing.assert_allclose(side.right.T @ side.right, np.eye(rank), rtol=0, atol=1e-14)


def test_lyapunov_exponents_of_gaussian_products_are_newmans() -> None:
    """Newman 1986: lambda_k = (log(2/N) + psi((N - k + 1)/2))/2, with independent increments."""
    depth, width = 20_000, 4
    matrices = jax.random.normal(jax.random.key(0), (depth, width, width)) / width**0.5
    run = jax.jit(lambda m: spectra.lyapunov_exponents(m, jnp.zeros(width), 0, 100))
    values, errors = run(chain.linear(matrices))
    halves = (width - np.arange(width)) / 2
    exact = (np.log(2 / width) + digamma(halves)) / 2
    deviation = np.sqrt(polygamma(1, halves) / 4 / depth)
    # Sampling: chi² of 4 exponents is below 23.5 with probability 1 - 1e-4.
    assert np.sum(((values - exact) / deviation) ** 2) < 23.5
    # 100 batches estimate a standard error to 7 %; four of those.
    np.testing.assert_allclose(errors, deviation, rtol=0.3)


def test_lyapunov_exponents_are_not_the_singular_values_of_the_finite_product() -> None:
    matrices, result = spectrum(gaussian(np.random.default_rng(7)), jnp.float64)
    forward = jax.jit(spectra.log_growth)(chain.linear(matrices), jnp.zeros(WIDTH)).sum(axis=0)
    difference = np.abs(forward - result.log[0])
    assert difference.max() > 0.05
    np.testing.assert_allclose(forward.sum(), result.log[0].sum(), atol=1e-10)  # log|det|, rounding


@pytest.mark.parametrize("depths", [(), (0, 3), (3, 2), (2, 2), (1, 41)])
def test_depths_that_are_not_there_are_refused(depths: Any) -> None:
    with pytest.raises(ValueError, match="depths must be ascending whole numbers from 1 to 40"):
        spectra.singular_values(chain.linear(jnp.ones((40, 2, 2))), jnp.zeros(2), depths)


def test_lyapunov_exponents_are_refused_where_they_make_no_sense() -> None:
    matrices = [jnp.ones((3, 2)), jnp.ones((2, 3))]
    with pytest.raises(ValueError, match="keeps its width"):
        spectra.lyapunov_exponents(chain.linear(matrices[:1]), jnp.zeros(2), 0, 2)
    with pytest.raises(ValueError, match="num_batches is 9; allowed are 2 to 3"):
        spectra.lyapunov_exponents(chain.linear(jnp.ones((4, 2, 2))), jnp.zeros(2), 1, 9)
