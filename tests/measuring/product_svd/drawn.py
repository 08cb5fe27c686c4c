"""Chains of drawn matrices, their singular values, and what rounding may do to these."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.measuring import spectra
from gradlab.measuring.product_svd import thresholds
from gradlab.models import chain

WIDTH, DEPTH = 5, 40
# One shape for all drawn cases, so that each of these is compiled once a dtype.
SINGULAR_VALUES = jax.jit(spectra.singular_values, static_argnums=2)


def gaussian(rng: Any) -> Any:
    return rng.normal(size=(DEPTH, WIDTH, WIDTH)) / WIDTH**0.5


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
