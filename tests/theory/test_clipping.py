import itertools
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import optax
import pytest

from gradlab.models.activations import PHI
from gradlab.theory import clipping

KEY = jax.random.key(5)


@pytest.mark.parametrize("norm", [0.0, 1e-200, 0.3, 1.0, 7.0, 1e200])
def test_the_clipped_gradient_keeps_its_direction_and_caps_its_norm(norm: float) -> None:
    direction = jax.random.normal(KEY, (7,))
    g = norm * direction / jnp.linalg.norm(direction)
    after = clipping.clipped(g, 1.0)
    expected = g if norm <= 1 else g / norm
    np.testing.assert_allclose(after, expected, rtol=1e-14, atol=0)  # rounding
    assert float(clipping.norm_after(norm, 1.0)) == min(norm, 1.0)
    assert float(clipping.factor(norm, 1.0)) * norm == pytest.approx(min(norm, 1.0), rel=1e-15)


def test_clipping_twice_is_clipping_once() -> None:
    g = 50 * jax.random.normal(KEY, (9,))
    once = clipping.clipped(g, 2.0)
    np.testing.assert_allclose(clipping.clipped(once, 2.0), once, rtol=1e-15)  # rounding


def test_a_threshold_that_is_not_positive_is_named() -> None:
    for tau in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="tau is a positive threshold"):
            clipping.factor(1.0, tau)


def test_the_wall_has_its_closed_form() -> None:
    measured = float(clipping.wall_gradient(4.5, 0.5, 0.7, 50))
    assert measured == pytest.approx(11.48040437, abs=1e-8)  # digits given

    def loss(w: Any, b: Any) -> Any:
        x = jax.lax.fori_loop(0, 50, lambda _, x: w * jax.nn.sigmoid(x) + b, 0.5)
        return (jax.nn.sigmoid(x) - 0.7) ** 2

    for w in (1.0, 4.0, 4.5, 6.0):
        b = clipping.wall_offset(w, 0.5)
        gradient = jnp.stack(jax.jacfwd(loss, argnums=(0, 1))(w, b))
        # Rounding: x_0 = 0.5 is held to an ulp, which 50 layers of factor m amplify by m^50.
        slope = 0.2350037122 * w
        np.testing.assert_allclose(
            jnp.linalg.norm(gradient),
            clipping.wall_gradient(w, 0.5, 0.7, 50),
            rtol=1e-13 * max(1, slope**50),
        )


def test_the_wall_written_out_is_right_within_what_it_says_and_that_is_little() -> None:
    # Steep, shallow and slow: on the wall, off it, near the cusp at (4, -2), and negative.
    places = [(4.5, -2.3), (6.0, -1.0), (4.05, -2.03), (-3.0, 0.5)]
    with mp.workdps(60):
        for place in places:
            w, b, x = (mp.mpf(number) for number in (*place, 0.5))
            for _ in range(50):
                x = w / (1 + mp.exp(-x)) + b
            loss = (1 / (1 + mp.exp(-x)) - mp.mpf(0.7)) ** 2
            for exact, (found, off) in (
                (x, clipping.wall_state(*place, 0.5, 50)),
                (loss, clipping.wall_loss(*place, 0.5, 0.7, 50)),
            ):
                assert abs(mp.mpf(float(found)) - exact) <= float(off) < 1e-9


def test_where_the_wall_is_too_steep_to_tell_the_states_may_be_anywhere_that_they_can() -> None:
    w, b = 80.0, float(clipping.wall_offset(80.0, 0.5))
    _, apart = clipping.wall_state(w, b, 0.5, 50)
    loss, off = clipping.wall_loss(w, b, 0.5, 0.7, 50)

    assert w < float(apart) < math.inf
    assert float(loss) < 1 < float(off) < math.inf


def test_at_the_edge_of_the_wall_the_terms_are_counted() -> None:
    level = 1 / (1 + math.exp(-0.5))
    slope = level * (1 - level)
    at_edge = clipping.wall_gradient(1 / slope, 0.5, 0.7, 50)
    expected = 2 * abs(level - 0.7) * slope * math.sqrt(1 + level**2) * 50
    # 1/slope times the slope is 1 to an ulp, and (m^50 - 1)/(m - 1) has slope 1225 in m there.
    assert float(at_edge) == pytest.approx(expected, rel=1e-13)


def test_gamma_is_the_largest_slope() -> None:
    h = jnp.linspace(-6, 6, 24_001)
    for name, gamma in clipping.GAMMA.items():
        assert float(jnp.max(jnp.abs(PHI[name].dphi(h)))) == pytest.approx(gamma, rel=1e-15)
        assert clipping.vanishing_threshold(name) == 1 / gamma
    with pytest.raises(ValueError, match="gamma is known for linear, tanh"):
        clipping.vanishing_threshold("gelu")


def test_a_cell_that_remembers_cannot_pass_a_gradient() -> None:
    w = jnp.asarray([0.5, 1.0, 1.0001, 1.5, 3.0, 20.0])
    x, J = clipping.latch(w)
    assert bool((J[jnp.asarray([0, 2, 3, 4, 5])] < 1).all())
    np.testing.assert_array_equal(x[:2], [0, 0])
    with mp.workdps(40):
        for k in range(2, 6):
            exact = mp.findroot(lambda x, k=k: float(w[k]) * mp.tanh(x) - x, float(x[k]))
            # The root of a difference of slope J - 1: rounding over that.
            assert float(x[k]) == pytest.approx(float(exact), rel=1e-15 / float(1 - J[k]))
            slope = float(w[k]) * mp.sech(exact) ** 2
            assert float(J[k]) == pytest.approx(float(slope), rel=1e-11)


@pytest.mark.parametrize("wild", [1e2, 1e5, 1e9])
def test_clipping_lets_healthy_layers_fall_under_adams_epsilon(wild: float) -> None:
    healthy, tau, epsilon = 0.5, 1.0, 1e-8
    gradients = jnp.asarray([wild, healthy])
    clipped = clipping.clipped(gradients, tau)
    adam = optax.adam(1.0, eps=epsilon)
    state = adam.init(clipped)
    for _ in range(3):
        updates, state = adam.update(clipped, state)
    predicted = clipping.adam_fraction(healthy, jnp.linalg.norm(gradients), tau, epsilon)
    # optax forms 1 - b2^t with b2 = 0.999: a thousand units of rounding.
    assert float(-updates[1]) == pytest.approx(float(predicted), rel=1e-12)


@pytest.mark.parametrize(
    ("dtype", "digits"), [("float16", 10), ("bfloat16", 7), ("float32", 23), ("float64", 52)]
)
def test_how_far_a_result_is_below_the_formula_is_counted_in_whole_numbers(
    dtype: str, digits: int
) -> None:
    g = jnp.array([3.0, -4.0], dtype)
    one_ulp = jnp.array([2.0**-digits, 0.0], dtype)
    half = jnp.array([1.5, -2.0], dtype)

    assert clipping.ulps_below(g, jnp.array(2.5), half).tolist() == [0.0, 0.0]
    assert clipping.ulps_below(g, jnp.array(2.5), half - one_ulp).tolist() == [1.0, 0.0]
    assert clipping.ulps_below(g, jnp.array(2.5), -half).tolist()[0] == 3 / float(one_ulp[0])


def test_the_exact_clipped_value_is_a_root_that_no_float_has() -> None:
    g, tau = jnp.array([1.0, 1.0]), jnp.array(1.0)
    exact = Fraction(math.isqrt(2 << 400), 2 << 200)  # 1/sqrt(2)
    off = (exact - Fraction(0.7)) * 2**53

    assert clipping.ulps_below(g, tau, jnp.array([0.7, 0.7])).tolist() == [float(off)] * 2


def test_subnormal_numbers_count_and_what_is_not_finite_is_not_counted() -> None:
    tiny = 2.0**-1074
    g = jnp.array([3 * tiny, 4 * tiny])
    below = jax.vmap(clipping.ulps_below)(
        jnp.stack([g, jnp.array([jnp.inf, 1.0])]), jnp.array([5 * tiny, 1.0]), jnp.stack([g, g])
    )

    assert below[0].tolist() == [0.0, 0.0]
    assert jnp.isnan(below[1]).all()


# ---- Adam, descent on a quartic, ranks, units


@pytest.mark.parametrize("slope", [3e-8, 1e-8, 1e-10])
def test_the_bounds_on_adam_hold_of_adam_written_out(slope: float) -> None:
    error, epsilon, rate, steps = 1.0, 1e-8, 0.01, 60
    law = clipping.adam_left(error, slope, epsilon, rate, steps)
    left, first, second = error, 0.0, 0.0
    for t in range(1, steps + 1):
        first = 0.9 * first + 0.1 * slope * left
        second = 0.999 * second + 0.001 * (slope * left) ** 2
        moments = first / (1 - 0.9**t), np.sqrt(second / (1 - 0.999**t))
        left -= rate * moments[0] / (moments[1] + epsilon)
    assert float(law.low) > 0
    assert law.low - 1e-12 <= left <= law.high + 1e-12  # sixty steps of a few roundings
    assert law.low <= law.steady <= law.high


def test_a_tiny_slope_stalls_adam_and_its_bounds_meet() -> None:
    law = clipping.adam_left(1.0, 1e-12, 1e-8, 0.01, 300)
    # A step is the rate times slope/epsilon = 1e-4, to first order of what it changes.
    np.testing.assert_allclose([law.low, law.high], 1 - 300 * 0.01 * 1e-4, atol=1e-7)


@pytest.mark.parametrize("slope", [1.0, 2.0, 4.0])
def test_the_quartic_needs_the_smoothness_that_the_law_says(slope: float) -> None:
    x = np.linspace(0, 5 / slope, 100_001)
    needed = 12 * x**2 - slope * 4 * x**3
    # The grid misses the top by at most half a step: 12 times its square, where the slope is 0.
    assert clipping.quartic_smoothness(slope) == pytest.approx(needed.max(), abs=12 * x[1] ** 2)


@pytest.mark.parametrize("start", [2.0, 30.0])
def test_the_bounds_on_descent_hold_of_descent_written_out(start: float) -> None:
    x_0, end = start * np.array([1.0, 0.4, -0.2]), 0.1

    def num_steps(rate: float, tau: float) -> int:
        x: Any = x_0
        count = 0
        while (size := float(np.linalg.norm(4 * x**3))) > end:
            x, count = x - rate * min(1, tau / size) * 4 * x**3, count + 1
        return count

    least = clipping.quartic_fixed_steps(start, np.abs(x_0), end)
    assert all(num_steps(share / start**2, np.inf) >= least for share in (0.1, 0.3, 0.45))
    assert num_steps(0.1, 1.0) <= clipping.quartic_clipped_steps(start, 3, 0.1, 1.0, end)


@pytest.mark.parametrize("part", [0.25, 0.5, 0.9])
def test_the_last_of_all_orders_is_above_the_quantile_as_often_as_ranks_say(part: float) -> None:
    for n in range(1, 6):
        orders = np.array(list(itertools.permutations(range(n + 1))))
        before = np.sort(orders[:, :n], axis=1)[:, max(int(np.ceil(part * n)), 1) - 1]
        often = np.mean(orders[:, n] > before)
        assert clipping.quantile_fires(n, part) == pytest.approx(often, rel=2.0**-50)
    assert clipping.quantile_fires(0, part) == 0


def test_a_unit_is_held_against_its_own_weights() -> None:
    found = clipping.unit_factor(
        np.array([1.0, 4.0, 1.0, 0.0]), np.array([100.0, 100.0, 0.0, 1.0]), 0.02, 1e-3
    )
    np.testing.assert_allclose(found, [1, 0.5, 2e-5, 1], rtol=2.0**-50)


def test_every_rule_has_its_own_exact_value() -> None:
    leaves = [np.array([3e20, 4e20], np.float32), np.array([0.0], np.float32)]
    half = np.array([0.6, 0.8], np.float32)
    np.testing.assert_allclose(clipping.exact_rule("global norm", leaves, 1.0)[0], half)
    np.testing.assert_allclose(clipping.exact_rule("value", leaves, 1.0)[0], [1, 1])
    root = clipping.exact_rule("block rms", leaves, 1.0)[0]
    np.testing.assert_allclose(root, np.sqrt(2) * half, rtol=2.0**-23)
    limit = clipping.exact_rule("global norm", [np.array([np.inf, 1.0], np.float32)], 1.0)[0]
    np.testing.assert_array_equal(limit, [np.nan, 0])
    skipped = clipping.exact_rule("if finite", [np.array([np.inf, 1.0], np.float32)], 1.0)[0]
    np.testing.assert_array_equal(skipped, [0, 0])


def test_the_derivatives_of_a_clipped_sum_are_those_of_differences() -> None:
    x, h = np.array([3.0, 4.0]), 1e-5

    def total(x: np.ndarray) -> float:
        return float(2 * x.sum() / np.linalg.norm(x))

    gradient, bent = clipping.sum_derivatives(x, 2.0)
    steps = h * np.eye(2)
    numeric = [(total(x + d) - total(x - d)) / (2 * h) for d in steps]
    np.testing.assert_allclose(gradient, numeric, atol=1e-9)  # h² and rounding over h
    slopes = [
        (clipping.sum_derivatives(x + d, 2.0)[0] - clipping.sum_derivatives(x - d, 2.0)[0])
        / (2 * h)
        for d in steps
    ]
    np.testing.assert_allclose(bent, slopes, atol=1e-9)


def test_no_threshold_is_one_that_is_infinite() -> None:
    g = jnp.asarray([3.0, -4.0])
    assert float(clipping.factor(5.0, math.inf)) == float(clipping.factor(math.inf, math.inf)) == 1
    np.testing.assert_array_equal(clipping.clipped(g, math.inf), g)
    np.testing.assert_array_equal(clipping.clipped(jnp.zeros(0), 1.0), jnp.zeros(0))


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e160, 1.7e308])
@pytest.mark.parametrize("tau", [1e-300, 1.0, 1e300])
def test_neither_norm_nor_factor_need_be_in_range(size: float, tau: float) -> None:
    g = size * jnp.asarray([1.0, -1.0, 1.0, 0.0, 1.0])
    expected = g if 2 * mp.mpf(size) <= tau else tau / 2 * jnp.sign(g)
    np.testing.assert_array_equal(clipping.clipped(g, tau), expected)


def test_an_infinite_entry_takes_all_of_a_clipped_gradient() -> None:
    for entry, rest in ((math.inf, 0.0), (math.nan, math.nan)):
        after = clipping.clipped(jnp.asarray([entry, 1.0]), 1.0)
        np.testing.assert_array_equal(after, [math.nan, rest])
