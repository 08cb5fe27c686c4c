"""Chains of drawn matrices, their singular values, and what rounding may do to these."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import hilbert

from gradlab.measuring import spectra
from gradlab.measuring.product_svd import thresholds
from gradlab.models import chain

WIDTH, DEPTH = 5, 40
# One shape for all drawn cases, so that each of these is compiled once a dtype.
SINGULAR_VALUES = jax.jit(spectra.singular_values, static_argnums=2)


def gaussian(rng: Any) -> Any:
    return rng.normal(size=(DEPTH, WIDTH, WIDTH)) / WIDTH**0.5


def tanh_jacobians(rng: Any, sigma_w: Any, depth: int = DEPTH, width: int = WIDTH) -> Any:
    x, J = rng.normal(size=width), []
    for W in sigma_w * rng.normal(size=(depth, width, width)) / width**0.5:
        h = W @ x
        x = np.tanh(h)
        J.append(W / np.cosh(h)[:, None] ** 2)
    return np.array(J)


def grades(rng: Any, decades: Any) -> Any:
    return 10.0 ** -np.linspace(0, decades, WIDTH)[rng.permutation(WIDTH)]


def reversal(rng: Any) -> Any:
    """A chain whose second half undoes what the first has done: 1e20 up, then 1e20 down."""
    steps = np.diag(10.0 ** np.linspace(0, -1, WIDTH)[rng.permutation(WIDTH)])
    return np.stack([steps] * (DEPTH // 2) + [steps[::-1, ::-1]] * (DEPTH // 2))


def permuted(rng: Any) -> Any:
    """Permutations whose rows are scaled by anything, so that directions overtake each other."""
    rows = np.stack([np.eye(WIDTH)[rng.permutation(WIDTH)] for _ in range(DEPTH)])
    return rows * 10.0 ** rng.uniform(-5, 5, (DEPTH, WIDTH, 1))


def blocks(rng: Any) -> Any:
    """Two blocks that do not meet, either of which may be the larger in any layer."""
    matrices, part = gaussian(rng), np.arange(WIDTH) < 2
    scale = 10.0 ** rng.uniform(-1, 1, (DEPTH, 2))
    return (
        matrices * (part[:, None] == part) * np.where(part, scale[:, :1], scale[:, 1:])[..., None]
    )


# Ensembles of which rounding may take no more than a few digits a layer: well conditioned once
# their rows are scaled, or of a structure that elimination does not touch.
ENSEMBLES = {
    "gaussian": gaussian,
    "saturated": lambda rng: tanh_jacobians(rng, 4.0),
    "residual": lambda rng: np.eye(WIDTH) + 0.3 * gaussian(rng),
    "orthogonal": lambda rng: 0.9 * np.linalg.qr(gaussian(rng))[0],
    "row graded": lambda rng: grades(rng, 14)[:, None] * gaussian(rng),
    "differently graded": lambda rng: np.stack(
        [grades(rng, 14)[:, None] * W for W in gaussian(rng)]
    ),
    "upper triangular": lambda rng: np.triu(gaussian(rng), 1) + np.diag(np.arange(1.0, WIDTH + 1)),
    "lower triangular": lambda rng: np.tril(gaussian(rng), -1) + np.diag(np.arange(1.0, WIDTH + 1)),
    "mixed scales": lambda rng: gaussian(rng) * 10.0 ** rng.uniform(-12, 12, (DEPTH, 1, 1)),
    "out of range": lambda rng: gaussian(rng) * 10.0 ** rng.uniform(-25, 25, (DEPTH, 1, 1)),
    "reversal": reversal,
    "permuted": permuted,
    "blocks": blocks,
    "shear": lambda _: np.stack([np.eye(WIDTH) + 2 * np.eye(WIDTH, k=1)] * DEPTH),
    "opposite shears": lambda _: np.stack(
        [np.eye(WIDTH) + 2 * np.eye(WIDTH, k=1 - 2 * (k % 2)) for k in range(DEPTH)]
    ),
}


# Ensembles of layers that are nearly singular in themselves.
NEARLY_SINGULAR = {
    "hilbert": lambda _: np.stack([hilbert(WIDTH)] * DEPTH),
    "vandermonde": lambda rng: np.stack([np.vander(rng.uniform(0.1, 1, WIDTH))] * DEPTH),
    "column graded": lambda rng: gaussian(rng) * grades(rng, 4),
    "graded on both sides": lambda rng: graded_on_both_sides(rng, 4),
    "columns graded differently": lambda rng: np.stack(
        [W * grades(rng, 10) for W in gaussian(rng)]
    ),
    "graded far on both sides": lambda rng: graded_on_both_sides(rng, 8),
    "random upper triangular": lambda rng: 3 * np.triu(gaussian(rng)),
    "random lower triangular": lambda rng: 3 * np.tril(gaussian(rng)),
}


def graded_on_both_sides(rng: Any, decades: Any) -> Any:
    rows, columns = 10.0 ** rng.uniform(-decades, decades, (2, DEPTH, WIDTH))
    return rows[:, :, None] * gaussian(rng) * columns[:, None, :]


def far_behind(rng: Any) -> Any:
    """Directions by turns up to 2^180 behind each other, by scales that layers do and undo."""
    scales = 2.0 ** rng.uniform(-90, 90, (DEPTH + 1, WIDTH))
    return scales[1:, :, None] * gaussian(rng) / scales[:-1, None, :]


def spectrum(matrices: Any, dtype: Any, depths: Any = (DEPTH,)) -> Any:
    matrices = jnp.asarray(matrices, dtype)
    model = chain.linear(matrices)
    return matrices, SINGULAR_VALUES(model, jnp.zeros(matrices.shape[-1], dtype), depths)


def rounding(matrices: Any, dtype: Any, log: Any) -> Any:
    """Each layer's rounding, magnified by how near to singular its scaled rows are, and ulps.

    In float64 all layers in working precision may lose their budget.
    """
    matrices = np.asarray(matrices, float)
    rows = matrices / np.abs(matrices).max(axis=2, keepdims=True)
    conditions = np.linalg.norm(rows, 2, axis=(1, 2)) / np.linalg.norm(rows, -2, axis=(1, 2))
    eps = float(jnp.finfo(dtype).eps)
    budget = thresholds.ERROR_BUDGET if dtype == jnp.float64 else 0
    return eps * (4 * WIDTH * conditions.sum() + 2 * np.abs(log)) + budget
