"""The gradient by lag is that of the loop, and its exponent and window are the closed forms."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import gradlab as gl
from gradlab.diagnosis import laws
from gradlab.diagnosis.lag import exponent

WIDTH, STEPS = 4, 64
DRAW = np.random.default_rng(0)
ORTHOGONAL = np.linalg.qr(DRAW.standard_normal((WIDTH, WIDTH)))[0]
INPUTS = DRAW.standard_normal((STEPS, WIDTH))
V = DRAW.standard_normal(WIDTH)


def linear(matrix: Any, dtype: Any = float) -> Any:
    """The linear RNN h' = W h + x, whose gradient by lag is `v W^k`."""
    W, x = jnp.asarray(matrix, dtype), jnp.asarray(INPUTS, dtype)
    v = jnp.asarray(V, dtype)
    return gl.lag(lambda h, x: (W @ h + x, h), jnp.zeros(WIDTH, dtype), x, lambda h: v @ h)


@pytest.mark.parametrize("rho", [0.01, 0.9, 1.0, 1.3])
def test_an_orthogonal_step_has_its_closed_form_in_any_range(rho: float) -> None:
    found = linear(rho * ORTHOGONAL, jnp.float32)
    expected = math.log(np.linalg.norm(V)) + math.log(rho) * np.arange(STEPS + 1)
    # W is rounded, and each of the products; in logs these add up.
    rounding = (np.arange(STEPS + 1) + 1) * 4 * 2.0**-24 * WIDTH
    assert np.all(np.abs(found.log_norms - expected) <= rounding + np.abs(expected) * 2.0**-23)
    assert found.interval[0] <= math.log(rho) <= found.interval[1]
    for share in (0.5, 0.9):
        # Of a geometric series 1 - rho^K is in the first K terms.
        steps = math.ceil(math.log1p(-share) / math.log(rho)) if rho < 1 else math.inf
        assert found.window(share) == steps


def test_any_matrix_gives_the_norms_of_its_powers_and_its_largest_eigenvalue() -> None:
    W = DRAW.standard_normal((WIDTH, WIDTH)) / 2
    found = linear(W)
    rows = [np.linalg.norm(V @ np.linalg.matrix_power(W, k)) for k in range(STEPS + 1)]
    # Powers are summed in another order: some ulps a step, times the condition of the eigenvectors.
    np.testing.assert_allclose(found.log_norms, np.log(rows), atol=1e-11)
    rho = np.abs(np.linalg.eigvals(W)).max()
    assert found.interval[0] <= math.log(rho) <= found.interval[1]


def test_an_lstm_of_equinox_with_a_count_and_a_key_beside_its_state() -> None:
    cell: Any = eqx.nn.LSTMCell(WIDTH, 3, key=jax.random.key(0))
    start = (jnp.zeros(3), jnp.zeros(3)), jnp.zeros((), int), jax.random.key(1)

    def step(carry: Any, x: Any) -> Any:
        state, count, key = carry
        key, key_noise = jax.random.split(key)
        x = x + 0.1 * jax.random.normal(key_noise, x.shape) * (count > 5)
        return (cell(x, state), count + 1, key), state[0]

    def loss(carry: Any) -> Any:
        return jnp.sum(jnp.sin(carry[0][0])) + jnp.sum(carry[0][1])

    def loop(added: Any) -> Any:
        """A zero is added to each state; the derivative by it is the gradient that arrives."""

        def both(carry: Any, at: Any) -> Any:
            state, *others = carry
            x, zero = at
            state = jax.tree.map(lambda h, z: h + z, state, zero)
            return step((state, *others), x)

        zeros = jax.tree.map(lambda leaf: leaf[:-1], added)
        state, *others = jax.lax.scan(both, start, (INPUTS, zeros))[0]
        return loss((jax.tree.map(lambda h, z: h + z[-1], state, added), *others))

    gradient = jax.grad(loop)((jnp.zeros((STEPS + 1, 3)),) * 2)
    expected = np.log(np.linalg.norm(np.concatenate(gradient, axis=1), axis=1))[::-1]
    found = gl.lag(step, start, jnp.asarray(INPUTS), loss)

    np.testing.assert_allclose(found.log_norms, expected, atol=1e-11)  # some ulps, 64 steps
    assert found.interval[1] < 0
    assert "the gradient vanishes by lag; 99 % of it is in the last" in str(found)


def test_a_gradient_that_is_lost_has_its_window_and_one_that_is_not_known_none() -> None:
    def at(bad: float) -> Any:
        factor = jnp.where(jnp.arange(STEPS) == STEPS - 5, bad, 0.9)
        return gl.lag(lambda h, a: (jnp.sqrt(a) * h, None), jnp.ones(1), factor, lambda h: h[0])

    lost, unknown = at(0.0), at(-1.0)
    assert lost.exponent == -math.inf
    assert lost.window(1 - 1e-9) == 5
    assert math.isnan(unknown.exponent)
    assert math.isnan(unknown.window(0.5))


def test_the_interval_holds_the_exponent_as_often_as_it_says() -> None:
    draw, num, confidence = np.random.default_rng(3), 2000, 0.9
    held = 0
    for _ in range(num):
        steps = draw.exponential(size=400) - 1.2  # a mean of -0.2 nats, skewed
        low, high = exponent(np.concatenate([[0.0], np.cumsum(steps)]), confidence, 0.0)[1]
        held += low <= -0.2 <= high
    # Means of 14 exponential numbers are not yet normal: t loses less than 1 % (Edgeworth, skewness
    # 2/√200); five standard errors of the count.
    error = 5 * math.sqrt(confidence * (1 - confidence) / num)
    assert held / num == pytest.approx(confidence, abs=0.01 + error)


@pytest.mark.parametrize("degrees", [1, 2, 5, 13, 40])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_students_quantile_is_that_of_scipy(degrees: int, confidence: float) -> None:
    expected = stats.t.ppf((1 + confidence) / 2, degrees)
    assert laws.student(confidence, degrees) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("inputs", "carry", "says"),
    [
        (jnp.ones((8, 2)), jnp.ones(2), r"first axes of \[8\] steps; .* at least 16"),
        ((jnp.ones(20), jnp.ones(21)), jnp.ones(2), r"first axes of \[20, 21\]"),
        (jnp.ones(20), jnp.ones(2, int), "no real floating point number"),
        (jnp.ones(20).at[7].set(jnp.inf), jnp.ones(2), "Input 7 holds a number that is not finite"),
    ],
)
def test_a_loop_that_has_no_gradient_by_lag_is_refused(inputs: Any, carry: Any, says: str) -> None:
    with pytest.raises(gl.BadInput, match=says):
        gl.lag(lambda c, _: (c, None), carry, inputs, jnp.sum)
    with pytest.raises(gl.BadInput, match=r"The share is 1\.5"):
        linear(ORTHOGONAL).window(1.5)
