"""A callable as a layer: a function of its arrays and of a state.

Callables of one structure become one function, so that a run of alike modules is one loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Literal

Layer = Callable[[Any, Array], Array]


def taken_apart(element: Callable[[Array], Array], is_meant: bool) -> tuple[Layer, Any]:
    """The function of a callable, and its arrays with a leading axis of one.

    A leaf of no size stands for the arrays of a callable that has none.

    Args:
        element: a module that is a pytree, or any function.
        is_meant: whether whoever gave it knows what stands before and behind it.
    """
    leaves, treedef = jax.tree_util.tree_flatten(element)
    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    if not arrays:
        return _Closure(element), jnp.zeros((1, 0))
    static = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
    is_meant = is_meant or isinstance(element, jax.tree_util.Partial)
    return _Module(treedef, static, is_meant), [jnp.asarray(leaf)[None] for leaf in arrays]


def is_constant(leaf: Any) -> bool:
    """Whether a leaf is one that is not differentiated: of bools, ints or keys."""
    kinds = (jnp.bool_, jnp.integer, jax.dtypes.prng_key)
    return any(jnp.issubdtype(leaf.dtype, kind) for kind in kinds)


def bare(layer: Layer, params: Any, state: Any) -> str | None:
    """The class of a module with weights whose output is affine in the state, or None."""
    if not isinstance(layer, _Module) or layer.is_meant:
        return None
    if all(map(is_constant, jax.tree_util.tree_leaves(params))):
        return None
    return layer.kind if _is_affine(layer, params, state) else None


class _Module:
    """A layer function made of a callable's structure: equal structures are equal functions.

    `is_meant` says that whoever gave it knows what stands before and behind it.
    """

    def __init__(self, treedef: Any, static: tuple[Any, ...], is_meant: bool) -> None:
        self.treedef = treedef
        self.static = static
        self.is_meant = is_meant

    def __call__(self, params: Any, z: Array) -> Array:
        arrays = iter(params)
        leaves = [next(arrays) if leaf is None else leaf for leaf in self.static]
        module: Callable[[Array], Array] = jax.tree_util.tree_unflatten(self.treedef, leaves)
        return module(z)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Module) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def kind(self) -> str:
        """The name of the callable's class."""
        return str(self.treedef.node_data()[0].__name__)

    @property
    def _key(self) -> tuple[Any, ...]:
        return self.treedef, self.static, self.is_meant


class _Closure:
    """A layer function that has no parameters of its own."""

    def __init__(self, function: Callable[[Array], Array]) -> None:
        self.function = function

    def __call__(self, params: Any, z: Array) -> Array:
        del params
        return self.function(z)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _is_affine(layer: Layer, params: Any, state: Any) -> bool:
    """Whether the program of a layer's derivative has no use for the state."""

    def pushed(params: Any, z: Array, tangent: Array) -> Array:
        return jax.jvp(partial(layer, params), (z,), (tangent,))[1]

    try:
        program = jax.make_jaxpr(pushed)(params, state, state).jaxpr
    except TypeError:  # it has no forward derivative, but a rule of its own
        return False
    needed = set(program.outvars)
    for equation in reversed(program.eqns):
        if needed & set(equation.outvars):
            needed |= {atom for atom in equation.invars if not isinstance(atom, Literal)}
    return program.invars[-2] not in needed
