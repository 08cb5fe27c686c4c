"""Products and singular values in as many bits as it takes: what the tests hold floats against."""

from typing import Any

import numpy as np
from flint import arb, arb_mat, ctx


def log_singular_values(matrices: Any, bits: Any = None, exponents: Any = None) -> Any:
    """`log sigma_i` of the product of given matrices, descending, right to the last bit.

    One-sided Jacobi on the exact product, with more bits than its singular values can differ by.
    The columns of the first matrix are first multiplied by two to the `exponents`, if given.
    """
    matrices = [np.asarray(m, float) for m in matrices]
    before = ctx.prec
    try:
        ctx.prec = bits or _enough_bits(matrices)
        return _jacobi(_product(matrices, exponents))
    finally:
        ctx.prec = before


def _enough_bits(matrices: Any) -> Any:
    """Twice the sum of the layers' log2 conditions, and some more."""
    return int(400 + 2.2 * sum(map(_log2_condition, matrices)) + 8 * len(matrices) ** 0.5)


def _log2_condition(m: Any) -> Any:
    s = np.linalg.svd(m, compute_uv=False)
    if s[-1] > 1e-12 * s[0]:
        return np.log2(s[0] / s[-1])
    if m.shape[0] != m.shape[1] or np.linalg.det(m) == 0:
        return 60 + 4 * np.log2(s[0] / min(abs(m[m != 0]), default=1))
    # The smallest singular value that the determinant allows: |det| / norm^(n - 1).
    return len(s) * np.log2(s[0]) - np.linalg.slogdet(m)[1] / np.log(2)


def _product(matrices: Any, exponents: Any) -> Any:
    product = arb_mat(matrices[0].tolist())
    if exponents is not None:
        n = len(exponents)
        powers = [
            [arb(2) ** int(exponents[i]) if i == j else 0 for j in range(n)] for i in range(n)
        ]
        product = product * arb_mat(powers)
    for m in matrices[1:]:
        product = (arb_mat(m.tolist()) * product).mid()
    return product


def _jacobi(product: Any) -> Any:
    rows, cols = product.nrows(), product.ncols()
    if rows < cols:
        product, rows, cols = product.transpose(), cols, rows
    columns = [[product[i, j] for i in range(rows)] for j in range(cols)]
    small = arb(2) ** (-ctx.prec // 3)
    for _ in range(60):
        columns.sort(key=lambda c: -_log(_dot(c, c)))
        worst = max(
            (_rotate(columns, p, q) for p in range(cols) for q in range(p + 1, cols)),
            default=arb(0),
        )
        if worst < small:
            return np.sort([_log(_dot(c, c)) / 2 for c in columns])[::-1]
    raise AssertionError("the reference did not converge")


def _rotate(columns: Any, p: Any, q: Any) -> Any:
    """Make two columns orthogonal; the squared cosine of their angle before."""
    a, b = _dot(columns[p], columns[p]), _dot(columns[q], columns[q])
    c = _dot(columns[p], columns[q])
    if a == 0 or b == 0 or c == 0:
        return arb(0)
    zeta = (b - a) / (2 * c)
    size = (abs(zeta) + (1 + zeta * zeta).sqrt()).mid()
    t = (1 / size if zeta > 0 else -1 / size).mid()
    cs = (1 / (1 + t * t).sqrt()).mid()
    pairs = list(zip(columns[p], columns[q], strict=True))
    columns[p] = [(cs * (x - t * y)).mid() for x, y in pairs]
    columns[q] = [(cs * (y + t * x)).mid() for x, y in pairs]
    return (c * c / (a * b)).mid()


def _dot(x: Any, y: Any) -> Any:
    return sum((s * t for s, t in zip(x, y, strict=True)), arb(0)).mid()


def _log(x: Any) -> Any:
    return float(x.log().mid()) if x > 0 else -np.inf
