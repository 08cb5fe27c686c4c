"""The global norm of a gradient, its direction, the share of each leaf, and all derivatives.

Values are taken in twice the digits (`arithmetic.norms`), derivatives in those of `wide`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from gradlab.arithmetic import norms, quick_norms
from gradlab.arithmetic.quick_norms import AxisName

Tree = Any  # a pytree of real floating arrays

ACCEPTED = ("float16", "bfloat16", "float32", "float64")


def leaves_of(grads: Tree) -> list[Array]:
    """The leaves of a gradient, as arrays.

    Raises:
        TypeError: a leaf has none of the four formats; a tracer's shape is no matter.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        dtype = jnp.asarray(leaf).dtype
        if dtype.name not in ACCEPTED:
            raise TypeError(
                f"gradient leaf '{jax.tree_util.keystr(path)}' has dtype {dtype}; "
                f"allowed: real floating point, one of {', '.join(ACCEPTED)}"
            )
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(grads)]


def norm(grads: Tree) -> Array:
    """The Euclidean norm over all entries of a pytree, less than one ulp low, `()` in `wide`.

    `inf` only where the true norm is above the largest float; its derivative at 0 is 0.
    """
    return _norm(leaves_of(grads))


def cosine(one: Tree, other: Tree) -> Array:
    """The cosine of the angle between two pytrees, `()`, to about 10 ulps; nan where one is 0."""
    # A tree of zeros has the unit vector 0 / 0, and so the cosine nan.
    parts = (leaves_of(tree) for tree in (one, other))
    return inner_product(*(norms.unit(leaves, norms.measure(leaves)) for leaves in parts))


def shares(grads: Tree) -> Tree:
    """The norm of each leaf over the global norm, `()` a leaf; their squares add up to 1.

    The share of a leaf is what clipping leaves as it is: a layer that got nothing gets nothing.
    """
    size = norms.measure(leaves_of(grads))

    def share(leaf: Array) -> Array:
        return norms.ratio(norms.measure(leaves_of(leaf)), size)

    return jax.tree.map(share, grads)


def inner_product(one: list[Array], other: list[Array]) -> Array:
    """The inner product of two lists of leaves, `()`."""
    pairs = zip(one, other, strict=True)
    products = (jnp.sum(part * tangent.astype(part.dtype)) for part, tangent in pairs)
    return sum(products, start=jnp.zeros((), norms.wide(one)))


# ---- derivatives


class Inverse(NamedTuple):
    """The number `powers[0] powers[1] mantissa`, each of them in range."""

    powers: tuple[Array, Array]
    mantissa: Array


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _inverse(axis_name: AxisName, dtype: Any, leaves: list[Array]) -> Inverse:
    """`1/|leaves|`, whose derivatives are made of itself: there is one of every order."""
    size = quick_norms.measure(leaves, dtype, axis_name)
    mantissa, exponent = quick_norms.quotient(jnp.ones((), dtype), size)
    return Inverse(quick_norms.powers(exponent, dtype), mantissa)


@_inverse.defjvp
def _inverse_jvp(
    axis_name: AxisName, dtype: Any, primals: Any, tangents: Any
) -> tuple[Inverse, Inverse]:
    (leaves,), (dleaves,) = primals, tangents
    inverse = _inverse(axis_name, dtype, leaves)
    one = jnp.ones((), dtype)
    growth = inner_product(_scaled(leaves, one, inverse), _scaled(dleaves, one, inverse))
    growth = growth if axis_name is None else lax.psum(growth, axis_name)
    none = jnp.zeros((), dtype)
    return inverse, Inverse((none, none), -inverse.mantissa * growth)


def _scaled(values: list[Array], tau: Array, inverse: Inverse) -> list[Array]:
    first, second = inverse.powers
    factor = tau * second * inverse.mantissa
    return [value.astype(tau.dtype) * first * factor for value in values]


def clipped_tangent(
    leaves: list[Array],
    tau: Array,
    dleaves: list[Array],
    dtau: Array,
    keep: Array,
    axis_name: AxisName = None,
) -> list[Array]:
    """The derivative of a clipped gradient: of the formula, or of the identity under `keep`."""
    # Where nothing is clipped the direction may not exist: there the formula is taken of ones.
    there = [jnp.where(keep, jnp.ones_like(leaf), leaf) for leaf in leaves]
    moved = [jnp.where(keep, jnp.zeros_like(dleaf), dleaf) for dleaf in dleaves]

    def clipped(leaves: list[Array], tau: Array) -> list[Array]:
        return _scaled(leaves, tau, _inverse(axis_name, tau.dtype, leaves))

    level = jnp.where(keep, 1, tau), jnp.where(keep, 0, dtau)
    _, slopes = jax.jvp(clipped, (there, level[0]), (moved, level[1]))
    return [
        jnp.where(keep, dleaf, slope.astype(leaf.dtype))
        for dleaf, slope, leaf in zip(dleaves, slopes, leaves, strict=True)
    ]


@jax.custom_jvp
def _norm(leaves: list[Array]) -> Array:
    return norms.rounded(norms.measure(leaves))


@_norm.defjvp
def _norm_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (leaves,), (dleaves,) = primals, tangents
    size = _norm(leaves)
    there = [jnp.where(size > 0, leaf, jnp.ones_like(leaf)) for leaf in leaves]
    unit = _scaled(there, jnp.ones_like(size), _inverse(None, size.dtype, there))
    return size, inner_product([jnp.where(size > 0, part, 0) for part in unit], dleaves)
