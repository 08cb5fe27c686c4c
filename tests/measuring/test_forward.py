"""Partial products against exact ones: integer matrices, powers of two, and the ends of a range."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from gradlab.arithmetic import scaled
from gradlab.arithmetic.scaled import Scaled
from gradlab.measuring import forward
from gradlab.models import chain
from gradlab.models.chain import Chain


def products(W: Any, dtype: str = "float64") -> tuple[Scaled, Any]:
    """Every `P_k` of a linear chain, and the square of the norm that came with it."""
    x = jnp.ones(W.shape[-1], dtype)
    (segment,) = chain.checked(chain.linear(jnp.asarray(W, dtype)), x)
    walk = jax.jit(lambda x: forward.walk(segment, forward.start(x), lambda P, square: (P, square)))
    carry, (P, square) = walk(x)
    last = forward.matrix(carry)
    np.testing.assert_array_equal(last.mantissa, P.mantissa[-1])
    return P, Scaled(square, 2 * P.exponent[:, 0, 0])


def exact(s: Scaled) -> Any:
    """The entries of scaled matrices as fractions."""
    values = np.asarray(s.mantissa, float)
    powers = np.broadcast_to(np.asarray(s.exponent), values.shape)
    pairs = zip(values.ravel().tolist(), powers.ravel().tolist(), strict=True)
    return np.array([Fraction(m) * Fraction(2) ** e for m, e in pairs]).reshape(values.shape)


def test_the_empty_product_is_the_identity() -> None:
    carry = forward.start(jnp.asarray([3.0, 4.0]))
    assert (exact(forward.matrix(carry)) == np.eye(2, dtype=int)).all()
    np.testing.assert_array_equal(carry[0], [3.0, 4.0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shift", [-100, 0, 100])
def test_products_of_whole_numbers_times_powers_of_two_are_exact_in_any_range(
    dtype: str, shift: int
) -> None:
    # Four layers with entries up to 4 and width 3: at most 4^4 3^3 < 2^13, exact in any format.
    W = np.random.default_rng(0).integers(-4, 5, (4, 3, 3))
    P, square = products(np.ldexp(W.astype(float), shift), dtype)
    expected = np.eye(3, dtype=object).astype(int)
    for k, J in enumerate(W):
        expected = J @ expected
        scale = Fraction(2) ** (shift * (k + 1))
        assert (exact(P)[k] == expected * scale).all()
        norm = Fraction(int((expected**2).sum())) * scale**2
        # A sum of nine squares, each of at most 25 bits.
        rounding = Fraction(9 * float(jnp.finfo(dtype).eps))
        got = exact(Scaled(square.mantissa[k], square.exponent[k])).item()
        assert abs(got / norm - 1) <= rounding


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e150, 1e300])
@pytest.mark.parametrize("width", [2, forward.WIDE])
def test_the_norm_follows_a_product_out_of_the_range(size: float, width: int) -> None:
    depth = 30
    W = np.broadcast_to(np.eye(width) * size, (depth, width, width))
    _, square = products(W)
    logs = forward.log_root(square, jnp.float64)
    truth = [k * np.log(size) + np.log(width) / 2 for k in range(1, depth + 1)]
    # k roundings of the entries, and the log's own.
    np.testing.assert_allclose(logs, truth, rtol=4 * 2.3e-16, atol=depth * 2.3e-16)


@pytest.mark.parametrize("bad", [0.0, np.inf, np.nan])
def test_a_product_that_is_lost_is_told_and_not_masked(bad: float) -> None:
    def layer(k: Any, z: Any) -> Any:
        return jnp.where(k == 1, bad, 1.0) * z

    start = forward.start(jnp.ones(1))
    carry, square = forward.walk(Chain(layer, jnp.arange(3)), start, lambda _, square: square)
    expected = {0.0: 0.0, np.inf: np.inf}.get(bad, np.nan)
    np.testing.assert_array_equal(square, [1.0, expected, expected])
    np.testing.assert_array_equal(carry[1], [[expected]])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("width", [1, 5, forward.WIDE])
def test_squares_add_up_to_the_square_of_the_norm(dtype: str, width: int) -> None:
    P = jnp.asarray(np.random.default_rng(0).integers(-9, 10, (width, 3)), dtype)
    squares = forward.squares(P)
    assert squares.dtype == ("float64" if dtype == "float64" else "float32")
    # Whole numbers below 2^24.
    assert float(jnp.sum(squares)) == float((np.asarray(P, float) ** 2).sum())


def test_the_log_of_a_root_is_right_to_an_ulp_of_its_format() -> None:
    square = Scaled(jnp.asarray([1.0, 3.0, 1.5, 0.0]), jnp.asarray([0, 40, -(10**6), 0]))
    with mpmath.workdps(40):
        pairs = zip([1, 3, 1.5], [0, 40, -(10**6)], strict=True)
        truth = [float((mpmath.log(m) + e * mpmath.log(2)) / 2) for m, e in pairs]
    for dtype in ("float32", "float64"):
        got = forward.log_root(square, dtype)
        assert got.dtype == dtype
        np.testing.assert_allclose(got[:3], truth, rtol=2 * float(jnp.finfo(dtype).eps))
        assert float(got[3]) == -np.inf


def test_rescaling_adds_no_rounding() -> None:
    W = np.random.default_rng(1).normal(size=(3, 4, 4))
    P, _ = products(W)
    large, _ = products(np.ldexp(W, 200))
    assert (exact(large)[2] == exact(P)[2] * Fraction(2) ** 600).all()
    assert np.asarray(scaled.log_magnitude(P)).shape == (3, 4, 4)
