"""Proved bounds hold numbers that are known in closed form, and are as narrow as was asked."""

import math
from collections.abc import Iterator

import mpmath
import numpy as np
import pytest

from gradlab.arithmetic import balls

TOLERANCE = 1e-12


def check(matrices: list[np.ndarray], logs: list[mpmath.mpf], tolerance: float = TOLERANCE) -> None:
    """Both bounds, to the last bit, around logs that are known to 60 digits, descending."""
    lower, upper = balls.log_singular_values(matrices, tolerance)
    known = [log for log in logs if log > -mpmath.inf]
    assert len(lower) == len(upper) == len(logs)
    for low, log, high in zip(lower, known, upper, strict=False):
        assert mpmath.mpf(low) <= log <= mpmath.mpf(high)
        # Rounding outwards to a float adds an ulp on each side.
        assert high - low <= tolerance + 2 * np.spacing(abs(high))
    np.testing.assert_array_equal(lower[len(known) :], -np.inf)


@pytest.fixture(autouse=True)
def sixty_digits() -> Iterator[None]:
    with mpmath.workdps(60):
        yield


@pytest.mark.parametrize("depth", [1, 2, 9])
def test_diagonal_matrices_multiply_entry_by_entry(depth: int) -> None:
    entries = np.array([1e200, -3.0, 0.1, 1e-250])
    logs = sorted((depth * mpmath.log(abs(mpmath.mpf(e))) for e in entries), reverse=True)
    check([np.diag(entries)] * depth, logs)


@pytest.mark.parametrize("depth", [1, 7, 60])
def test_a_shear_to_a_power_has_a_closed_form(depth: int) -> None:
    # [[1, n], [0, 1]] has the singular values (√(n² + 4) ± n)/2, whose logs are ± asinh(n/2).
    log = mpmath.asinh(mpmath.mpf(depth) / 2)
    check([np.array([[1.0, 1.0], [0.0, 1.0]])] * depth, [log, -log])


@pytest.mark.parametrize("shape", [(3, 1), (1, 3)])
def test_a_vector_has_its_length(shape: tuple[int, int]) -> None:
    x = np.array([3.0, -4.0, 12.0]).reshape(shape)
    check([x], [mpmath.log(13)])


def test_a_widening_and_a_narrowing_layer_are_a_number() -> None:
    check([np.array([[2.0], [1.0]]), np.array([[1.0, 3.0]])], [mpmath.log(5)])


def test_a_singular_product_keeps_its_zero_and_the_others_their_digits() -> None:
    # The outer product (1, 2)ᵀ (3, 4) twice: 11 times itself, of norm √5 √25.
    matrix = np.outer([1.0, 2.0], [3.0, 4.0])
    check([matrix, matrix], [mpmath.log(11) + mpmath.log(5 * mpmath.sqrt(5)), -mpmath.inf])
    check([np.zeros((2, 2))], [-mpmath.inf] * 2)


def test_the_determinant_of_a_random_product_is_between_the_bounds() -> None:
    matrices = list(np.random.default_rng(0).integers(-9, 10, (12, 4, 4)).astype(float))
    lower, upper = balls.log_singular_values(matrices, TOLERANCE)
    determinant = mpmath.mpf(1)
    for matrix in matrices:
        determinant *= abs(mpmath.det(mpmath.matrix(matrix.tolist())))
    log = mpmath.log(determinant)
    assert math.fsum(lower) - 1e-12 <= log <= math.fsum(upper) + 1e-12  # the sums' own rounding
    assert math.fsum(upper - lower) <= 4 * (TOLERANCE + 2 * np.spacing(100.0))
