import math
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from gradlab.theory import products

KEY = jax.random.key(3)


def z_scores(samples: Any, mean: Any, variance: Any) -> Any:
    """Of the mean and of the variance of independent samples."""
    num = len(samples)
    excess = (samples - mean) ** 2
    return (
        (samples.mean() - mean) / math.sqrt(variance / num),
        (excess.mean() - variance) / (excess.std() / math.sqrt(num)),
    )


# ---- Newman


def test_the_exponents_of_gaussian_products_are_newmans() -> None:
    assert float(products.lyapunov_exponents(2, 1 / 2)[0]) == pytest.approx(-0.2886078, abs=5e-8)
    assert float(products.lyapunov_exponents(8, 1 / 8)[0]) == pytest.approx(-0.0650883, abs=5e-8)
    # The sum is the mean log|det|, each of whose factors is a chi variable: E log|det| of one
    # 1 x 1 matrix of variance s² is log s + (psi(½) + log 2)/2.
    assert float(products.lyapunov_exponents(1, 4.0)[0]) == pytest.approx(
        math.log(2) - (math.log(2) + 0.5772156649015329) / 2, abs=1e-14
    )


def test_the_exponents_and_their_variances_are_those_of_a_qr_iteration() -> None:
    width, num = 3, 20_000

    def step(Q: Any, G: Any) -> Any:
        Q, R = jnp.linalg.qr(G @ Q)
        return Q, jnp.log(jnp.abs(jnp.diagonal(R)))

    G = jax.random.normal(KEY, (num, width, width)) * 0.7
    increments = np.asarray(jax.jit(lambda G: jax.lax.scan(step, jnp.eye(width), G)[1])(G))
    means = np.asarray(products.lyapunov_exponents(width, 0.49))
    variances = np.asarray(products.lyapunov_variances(width))
    for k in range(width):
        scores = z_scores(increments[:, k], means[k], variances[k])
        assert max(map(abs, scores)) < 4  # standard errors of sampling
    assert abs(np.corrcoef(increments.T)[0, 1]) < 4 / math.sqrt(num)


# ---- Hanin and Nica


def test_the_relu_laws_have_the_values_given() -> None:
    assert products.relu_log_mean(16) == pytest.approx(-0.1763973, abs=5e-8)
    assert products.relu_log_variance(16) == pytest.approx(0.4195934, abs=5e-8)
    # Large widths: the next terms are of the order of 1/width².
    assert products.relu_log_mean(1000) == pytest.approx(-5 / 2000, rel=0.01)
    assert products.relu_log_variance(1000) == pytest.approx(5 / 1000, rel=0.01)


@pytest.mark.parametrize("width", [2, 5])
def test_one_relu_layer_has_the_mean_and_the_variance_predicted(width: int) -> None:
    num = 100_000
    key_G, key_v = jax.random.split(KEY)
    W = jax.random.normal(key_G, (num, width, width)) * math.sqrt(2 / width)
    v = jax.random.normal(key_v, (num, width))
    v = v / jnp.linalg.norm(v, axis=1, keepdims=True)
    x = jnp.ones((num, width))
    h, g = jnp.einsum("nij,nj->ni", W, x), jnp.einsum("nij,nj->ni", W, v)
    square = np.asarray(jnp.sum(jnp.where(h > 0, g, 0.0) ** 2, axis=1))
    # Whatever v is: who is active depends on the sign of each (W x)_i, and (W v)_i² does not.
    alive = square[square > 0]
    dead = 1 - len(alive) / num
    probability = products.relu_death(width)
    assert abs(dead - probability) < 4 * math.sqrt(probability / num)
    logs = np.log(alive)
    scores = z_scores(logs, products.relu_log_mean(width), products.relu_log_variance(width))
    assert max(map(abs, scores)) < 4  # standard errors of sampling
    for power, moment in (
        (1, 1.0),
        (2, products.relu_fourth_moment([width])),
    ):
        values = square**power
        assert abs(values.mean() - moment) < 4 * values.std() / math.sqrt(num)


def test_one_linear_layer_has_the_mean_and_the_variance_predicted() -> None:
    width, num = 4, 100_000
    g = jax.random.normal(KEY, (num, width)) / math.sqrt(width)  # W v for any unit v
    square = np.asarray(jnp.sum(g * g, axis=1))
    scores = z_scores(
        np.log(square), products.linear_log_mean(width), products.linear_log_variance(width)
    )
    assert max(map(abs, scores)) < 4  # standard errors of sampling
    fourth = square**2
    error = fourth.std() / math.sqrt(num)
    assert abs(fourth.mean() - products.linear_fourth_moment([width])) < 4 * error


@pytest.mark.verify
@pytest.mark.parametrize("law", ["relu", "linear", "first exponent"])
def test_over_many_seeds_the_scores_of_a_law_are_those_of_chance(law: str) -> None:
    """Each seed's mean is exactly right on average: its z-scores have mean 0 and mean square 1."""
    width, num, num_seeds = 5, 4000, 400
    logs, mean, variance = {
        "relu": (
            lambda g: jnp.log(jnp.sum(jnp.maximum(g * math.sqrt(2), 0) ** 2, axis=1)),
            products.relu_log_mean(width),
            products.relu_log_variance(width),
        ),
        "linear": (
            lambda g: jnp.log(jnp.sum(g * g, axis=1)),
            products.linear_log_mean(width),
            products.linear_log_variance(width),
        ),
        "first exponent": (
            lambda g: jnp.log(jnp.sum(g * g, axis=1)) / 2,
            float(products.lyapunov_exponents(width, 1 / width)[0]),
            float(products.lyapunov_variances(width)[0]),
        ),
    }[law]

    def score(key: jax.Array) -> jax.Array:
        samples = logs(jax.random.normal(key, (num, width)) / math.sqrt(width))
        alive = jnp.isfinite(samples)  # a layer of relu may be dead: the law is of the others
        excess = jnp.sum(jnp.where(alive, samples - mean, 0)) / jnp.sum(alive)
        return excess / jnp.sqrt(variance / jnp.sum(alive))

    scores = np.asarray(jax.jit(lambda keys: jax.lax.map(score, keys))(seeds(num_seeds)))
    # Standard errors of the mean and of the mean square (chi squared) of normal numbers, four.
    assert abs(scores.mean()) < 4 / math.sqrt(num_seeds)
    assert abs(np.mean(scores**2) - 1) < 4 * math.sqrt(2 / num_seeds)


def seeds(num: int) -> jax.Array:
    return jax.vmap(jax.random.key)(jnp.arange(num))


def test_moments_multiply_over_layers() -> None:
    assert products.relu_fourth_moment([5, 10]) == pytest.approx(2 * 1.5)
    assert products.linear_fourth_moment([2, 4]) == pytest.approx(2 * 1.5)


def test_the_width_needed_keeps_the_typical_gradient_within_the_deviation() -> None:
    width = products.width_needed(50, 0.5)
    # log|gradient| is half of log|Jv|²; 2 %: the next order in 1/width.
    variance = 50 * products.relu_log_variance(round(width)) / 4
    assert math.sqrt(variance) == pytest.approx(0.5, rel=0.02)


def test_bad_widths_and_deviations_are_named() -> None:
    with pytest.raises(ValueError, match="A width is at least 1, not 0"):
        products.relu_log_mean(0)
    with pytest.raises(ValueError, match="deviation is positive, not 0"):
        products.width_needed(10, 0.0)


# ---- beside an identity, and rectifiers


def test_the_log_mean_of_one_number_is_a_gaussian_integral() -> None:
    with mpmath.workdps(25):
        half = mpmath.mpf("0.5")
        exact = mpmath.quad(
            lambda g: mpmath.log((1 + half * g) ** 2) * mpmath.npdf(g), [-12, -4, -2, 0, 4, 12]
        )

    assert float(products.identity_plus_log_mean(1, 0.5)) == pytest.approx(float(exact), rel=1e-12)


def test_a_rectifier_of_slope_one_keeps_what_a_linear_layer_does() -> None:
    assert float(products.rectifier_deviation(16, 1.0)) == pytest.approx(0.25, rel=1e-15)
    # He's over 0.01 for 3 x 3 convolutions of 512 channels.
    assert float(products.rectifier_deviation(9 * 512, 0.0)) / 0.01 == pytest.approx(
        2.08333333, 1e-8
    )


@pytest.mark.parametrize(("width", "s"), [(1, 0.5), (4, 0.3), (4, 0.1), (7, 2.0), (3, 0.0065)])
def test_the_log_mean_beside_an_identity_is_that_of_a_noncentral_chi_squared(
    width: int, s: float
) -> None:
    with mpmath.workdps(30):
        mean = 1 / (2 * mpmath.mpf(s) ** 2)
        reach = int(12 * mpmath.sqrt(mean)) + 60
        near = range(max(0, int(mean) - reach), int(mean) + reach)
        chances = [mpmath.exp(k * mpmath.log(mean) - mean - mpmath.loggamma(k + 1)) for k in near]
        logs = [mpmath.digamma(mpmath.mpf(width) / 2 + k) for k in near]
        exact = mpmath.log(1 / mean) + mpmath.fdot(chances, logs)
        # Each exponent is a difference of numbers of the size mean log mean, rounded four times.
        size = float(4 * (mean * (1 + abs(mpmath.log(mean))) + 4) * (1 + abs(mpmath.log(mean))))

    found = float(products.identity_plus_log_mean(width, s))
    assert found == pytest.approx(float(exact), abs=size * np.finfo(float).eps)


def test_a_sum_that_would_not_end_is_not_known() -> None:
    found = products.identity_plus_log_mean(4, jnp.array([0.005, 0.3]))
    assert np.isnan(found).tolist() == [True, False]


# ---- masked products


def test_masked_exponents_have_the_values_of_an_independent_sum() -> None:
    # n = 64, sigma² = 2/n, p = 1/2; summed over the binomial distribution with mpmath.
    expected = [-0.02005430, -0.03674056, -0.05401461, -0.07192039]
    expected += [-0.09050708, -0.10983003, -0.12995185, -0.15094383]
    found = products.masked_exponents(64, 2 / 64, 0.5)

    np.testing.assert_allclose(found[:8], expected, atol=5e-9)
    # The first is half of what one vector loses in a relu layer, and so is its variance a fourth.
    assert float(found[0]) == pytest.approx(products.relu_log_mean(64) / 2, rel=1e-12)
    variance = float(products.masked_variances(64, 0.5)[0])
    assert variance == pytest.approx(products.relu_log_variance(64) / 4, rel=1e-12)


def test_masks_that_keep_every_row_leave_newmans_law() -> None:
    np.testing.assert_allclose(
        products.masked_exponents(9, 0.3, 1.0), products.lyapunov_exponents(9, 0.3), rtol=1e-13
    )
    np.testing.assert_allclose(
        products.masked_variances(9, 1.0), products.lyapunov_variances(9), rtol=1e-13
    )
    assert not np.any(products.masked_loss(9, 1.0))


def test_masked_laws_are_those_of_a_qr_iteration() -> None:
    width, num, kept = 12, 20_000, 0.9

    def step(Q: Any, drawn: Any) -> Any:
        G, gate = drawn
        Q, R = jnp.linalg.qr((gate[:, None] * G) @ Q)
        return Q, jnp.log(jnp.abs(jnp.diagonal(R)))

    key_G, key_gate = jax.random.split(KEY)
    G = jax.random.normal(key_G, (num, width, width)) * 0.4
    gates = jax.random.bernoulli(key_gate, kept, (num, width)).astype(float)
    start = jnp.eye(width)[:, :3]
    increments = np.asarray(jax.jit(lambda *d: jax.lax.scan(step, start, d)[1])(G, gates))
    means = np.asarray(products.masked_exponents(width, 0.16, kept))
    variances = np.asarray(products.masked_variances(width, kept))
    assert num * float(products.masked_loss(width, kept)[2]) < 1e-3  # the rank is 3 all along
    for k in range(3):
        assert max(map(abs, z_scores(increments[:, k], means[k], variances[k]))) < 4


def test_masked_laws_are_those_of_relu_layers_whose_state_leads() -> None:
    width, num = 40, 6000

    def step(carry: Any, key: Any) -> Any:
        Q, z = carry
        h = jax.random.normal(key, (width, width)) @ jnp.concatenate([z[:, None], Q], axis=1)
        h = jnp.where(h[:, :1] > 0, h, 0.0)
        Q, R = jnp.linalg.qr(h[:, 1:])
        return (Q, h[:, 0] / jnp.linalg.norm(h[:, 0])), jnp.log(jnp.abs(jnp.diagonal(R)))

    start = jnp.eye(width)[:, :3]
    keys = jax.random.split(KEY, num)
    run = jax.jit(lambda keys: jax.lax.scan(step, (start, start[:, 0]), keys)[1])
    increments = np.asarray(run(keys))
    means = np.asarray(products.masked_exponents(width, 1.0, 0.5))
    variances = np.asarray(products.masked_variances(width, 0.5))
    for k in range(3):
        assert max(map(abs, z_scores(increments[:, k], means[k], variances[k]))) < 4


def test_a_direction_is_lost_where_fewer_rows_are_left() -> None:
    loss = products.masked_loss(3, 0.25)

    np.testing.assert_allclose(loss, [27 / 64, 54 / 64, 63 / 64], rtol=1e-14)
