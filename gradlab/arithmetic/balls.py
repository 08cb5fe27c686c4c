"""Products and singular values in ball arithmetic (Arb, by python-flint): bounds that are proved.

The only room that imports flint; nothing imports it before an enclosure is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from flint import arb, arb_mat, ctx, fmpq, fmpq_mat

Float64s = np.ndarray[Any, np.dtype[np.float64]]
Columns = list[list[Any]]

_MOST_BITS = 1_000_000
_MAX_SWEEPS = 60


def log_singular_values(
    matrices: Sequence[Float64s], tolerance: float
) -> tuple[Float64s, Float64s]:
    """Lower and upper bounds of `log sigma_i` of the product, `(n,)` each, descending."""
    regular = all(_is_regular(m) for m in matrices)
    before, unresolved = ctx.prec, -1
    try:
        ctx.prec = 256 + 4 * len(matrices)
        while True:
            lower, upper = _enclose(matrices)
            known = lower > -np.inf
            narrow = bool(np.all(upper[known] - lower[known] <= tolerance))
            num_unresolved = int(np.sum(~known))
            # A product without full rank keeps zeros that no precision resolves.
            done = num_unresolved == (0 if regular else unresolved)
            if (narrow and done) or 2 * ctx.prec > _MOST_BITS:
                return lower, upper
            unresolved = num_unresolved
            ctx.prec *= 2
    finally:
        ctx.prec = before


def _is_regular(matrix: Float64s) -> bool:
    """Whether a float matrix has full rank, decided exactly."""
    rows = [[fmpq(*float(entry).as_integer_ratio()) for entry in row] for row in matrix]
    return bool(fmpq_mat(rows).rank() == min(matrix.shape))


def _enclose(matrices: Sequence[Float64s]) -> tuple[Float64s, Float64s]:
    """The bounds that the present precision gives."""
    product = arb_mat(matrices[0].tolist())
    for matrix in matrices[1:]:
        product = arb_mat(matrix.tolist()) * product
    if product.nrows() < product.ncols():
        product = product.transpose()
    columns = _orthogonal(
        [[product[i, j] for i in range(product.nrows())] for j in range(product.ncols())]
    )
    squares = [_dot(column, column) for column in columns]
    known = [i for i, square in enumerate(squares) if square > 0]
    # Columns that may be zero change the others by no more than their norm (Weyl).
    rest = sum((square for square in squares if not square > 0), arb(0)).abs_upper().sqrt()
    angle = _angles([columns[i] for i in known], [squares[i] for i in known])
    lower, upper = [], []
    for square in squares:
        if square > 0:
            # Ostrowski: columns of unit length with Gram matrix I + F change a singular value by
            # a factor between the roots of 1 - |F| and 1 + |F|.
            length = square.sqrt()
            lower.append(_bound(length * (1 - angle).max(arb(0)).sqrt() - rest, -1))
            upper.append(_bound(length * (1 + angle).sqrt() + rest, 1))
        else:
            lower.append(-np.inf)
            upper.append(_bound(rest, 1))
    return np.sort(lower)[::-1], np.sort(upper)[::-1]


def _orthogonal(columns: Columns) -> Columns:
    """The columns after rotations that are exactly orthogonal: the same singular values."""
    small = arb(2) ** (-ctx.prec // 3)
    for _ in range(_MAX_SWEEPS):
        columns.sort(key=lambda column: -_size(column))
        met = [_rotate(columns, p, q) for p in range(len(columns)) for q in range(p)]
        if all(cosine < small for cosine in met):
            break
    return columns


def _size(column: list[Any]) -> float:
    """A logarithm of a column's length, for sorting."""
    square = _dot(column, column).mid()
    return float(square.log().mid()) if square > 0 else -np.inf


def _rotate(columns: Columns, p: int, q: int) -> Any:
    """Make two columns nearly orthogonal; the squared cosine of their angle before."""
    a, b, c = (_dot(columns[i], columns[j]).mid() for i, j in ((p, p), (q, q), (p, q)))
    if not (a > 0 and b > 0) or c == 0:
        return arb(0)
    zeta = ((b - a) / (2 * c)).mid()
    size = (abs(zeta) + (1 + zeta * zeta).sqrt()).mid()
    # Any exact tangent will do; the cosine that belongs to it is a ball.
    tangent = (1 / size if zeta > 0 else -1 / size).mid()
    cosine = 1 / (1 + tangent * tangent).sqrt()
    pairs = list(zip(columns[p], columns[q], strict=True))
    columns[p] = [cosine * (x - tangent * y) for x, y in pairs]
    columns[q] = [cosine * (y + tangent * x) for x, y in pairs]
    return (c * c / (a * b)).mid()


def _angles(columns: Columns, squares: list[Any]) -> Any:
    """An upper bound of `|V^T V - I|` (Frobenius) for the columns scaled to unit length."""
    total = arb(0)
    for i, one in enumerate(columns):
        for j in range(i):
            dot = _dot(one, columns[j])
            total += 2 * dot * dot / (squares[i] * squares[j])
    return total.abs_upper().sqrt().abs_upper()


def _dot(x: list[Any], y: list[Any]) -> Any:
    return sum((s * t for s, t in zip(x, y, strict=True)), arb(0))


def _bound(value: Any, side: int) -> float:
    """The logarithm as a float, rounded outwards; -inf for what may be zero, or is."""
    end = value.lower() if side < 0 else value.abs_upper()
    if not end > 0:
        return -np.inf
    log = end.log().lower() if side < 0 else end.log().upper()
    return float(np.nextafter(float(log.mid()), side * np.inf))
