"""The door: a model as users have it becomes named arrays and a function of them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.errors import BadInput
from gradlab.models.chain import Chain, params_at

Loss = Callable[[Any, Any], Any]

_STORED = {"value", "raw_value"}  # where Flax keeps an array below its name


@dataclass(frozen=True)
class Subject:
    """A model taken apart.

    Attributes:
        names: of each parameter, by its path: `blocks.3.proj.weight`.
        params: the arrays that are differentiated, in the order of `names`.
        rest: arrays that are not: ints, bools, keys, running statistics.
        build: `build(params, rest)` is the model again.
        structure: equal for models that share one program.
        tree: `tree(params)` is what the model holds of parameters, as an optimiser takes it.
    """

    names: tuple[str, ...]
    params: tuple[Array, ...]
    rest: tuple[Any, ...]
    build: Callable[[Sequence[Any], Sequence[Any]], Any]
    structure: Hashable
    tree: Callable[[Sequence[Any]], Any]


class Layers(tuple[Any, ...]):
    """A sequence of callables as one: each is given what the one before returned."""

    def __call__(self, x: Any) -> Any:
        """The output of the last layer."""
        for layer in self:
            x = layer(x)
        return x


def opened(model: Any) -> Subject:
    """The subject of an audit, whatever holds it."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(model, nnx.Module):
        return _of_flax(nnx, model)
    if isinstance(model, Chain):
        return _of_tree(_unrolled(model))
    if isinstance(model, tuple) and len(model) == 2 and _is_plain_function(model[1]):
        params, function = model
        return _of_tree(params, partial(partial, function), ("function", function))
    if isinstance(model, list | tuple) and model and all(map(callable, model)):
        _refuse_lost_activations(model)
        return _of_tree(Layers(model) if _is_static(model) else list(model), Layers, "layers")
    return _of_tree(model)


def scalar_loss(loss: Loss, model: Any, batch: Any) -> Array:
    """The loss of a model on a batch; what else the function returns is dropped."""
    value = loss(model, batch)
    if isinstance(value, tuple) and value:
        value = value[0]
    try:
        value = jnp.asarray(value)
    except (TypeError, ValueError):
        raise BadInput(
            f"The loss returns a {type(value).__name__}; it must return one real number, "
            "loss(model, batch)."
        ) from None
    if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
        raise BadInput(
            f"The loss returns {value.dtype} of shape {value.shape}; it must return one real "
            "number, loss(model, batch)."
        )
    return value


def check(model: Any, loss: Any) -> None:
    """Raise unless there is something to audit and a loss of two arguments."""
    if not callable(loss):
        raise BadInput(
            f"The loss is a {type(loss).__name__}; it must be a function loss(model, batch)."
        )
    try:
        inspect.signature(loss).bind(model, None)
    except TypeError:
        raise BadInput(
            "The loss does not take two arguments; it must be a function loss(model, batch)."
        ) from None
    except ValueError:  # a builtin without a signature
        return


def differentiated(leaf: Any) -> bool:
    """Whether a leaf is an array of real floating point numbers."""
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)


def num_complex(subject: Subject) -> int:
    """How many arrays of a model are complex, which are not differentiated."""
    kinds = (getattr(leaf, "dtype", np.dtype(bool)) for leaf in subject.rest)
    return sum(jnp.issubdtype(kind, jnp.complexfloating) for kind in kinds)


def path_name(path: tuple[Any, ...]) -> str:
    """A path in a pytree in words: `blocks.3.proj.weight`."""
    words = [_word(key) for key in path]
    if len(words) > 1 and words[-1] in _STORED:
        words.pop()
    return ".".join(words) or "params"


def _word(key: Any) -> str:
    for field in ("name", "key", "idx"):
        if hasattr(key, field):
            return str(getattr(key, field)).strip(".")
    return str(key).strip(".")


def _of_tree(
    tree: Any, finish: Callable[[Any], Any] = lambda tree: tree, kind: Hashable = "tree"
) -> Subject:
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [leaf for _, leaf in paths]
    place = [_kind(leaf) for leaf in leaves]
    static = tuple(None if kind else leaf for kind, leaf in zip(place, leaves, strict=True))

    def build(params: Sequence[Any], rest: Sequence[Any]) -> Any:
        arrays = {"param": iter(params), "rest": iter(rest)}
        filled = [
            next(arrays[kind]) if kind else leaf for kind, leaf in zip(place, static, strict=True)
        ]
        return finish(jax.tree_util.tree_unflatten(treedef, filled))

    def of_params(params: Sequence[Any]) -> Any:
        given = iter(params)
        filled = [next(given) if kind == "param" else None for kind in place]
        return jax.tree_util.tree_unflatten(treedef, filled)

    pairs = list(zip(place, paths, strict=True))
    return Subject(
        tuple(path_name(path) for kind, (path, _) in pairs if kind == "param"),
        tuple(jnp.asarray(leaf) for kind, (_, leaf) in pairs if kind == "param"),
        tuple(leaf for kind, (_, leaf) in pairs if kind == "rest"),
        build,
        (kind, treedef, tuple(place), _hashable(static)),
        of_params,
    )


def _of_flax(nnx: Any, model: Any) -> Subject:
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    others, treedef_of_others = jax.tree_util.tree_flatten(rest)

    def build(params: Sequence[Any], rest: Sequence[Any]) -> Any:
        return nnx.merge(
            graph,
            jax.tree_util.tree_unflatten(treedef, list(params)),
            jax.tree_util.tree_unflatten(treedef_of_others, list(rest)),
        )

    return Subject(
        tuple(path_name(path) for path, _ in paths),
        tuple(jnp.asarray(leaf) for _, leaf in paths),
        tuple(others),
        build,
        ("flax", graph, treedef, treedef_of_others),
        lambda params: jax.tree_util.tree_unflatten(treedef, list(params)),
    )


def _kind(leaf: Any) -> str:
    if differentiated(leaf):
        return "param"
    return "rest" if isinstance(leaf, jax.Array | np.ndarray) else ""


def _hashable(static: tuple[Any, ...]) -> Hashable:
    try:
        hash(static)
    except TypeError:
        return tuple(map(id, static))
    return static


def _unrolled(chain: Chain) -> Any:
    """The chain as a list of its layers, numbered as a list is."""
    layers = [params_at(chain.params, k) for k in range(chain.depth)]
    return _Unrolled(chain.layer, layers)


class _Unrolled:
    """A chain layer by layer: a pytree whose leaves stand below the number of their layer."""

    def __init__(self, layer: Any, layers: list[Any]) -> None:
        self.layer, self.layers = layer, layers

    def __call__(self, x: Any) -> Any:
        for params in self.layers:
            x = self.layer(params, x)
        return x


jax.tree_util.register_pytree_with_keys(
    _Unrolled,
    lambda chain: ([(jax.tree_util.GetAttrKey("layers"), chain.layers)], chain.layer),
    lambda layer, children: _Unrolled(layer, *children),
)


def _is_plain_function(value: Any) -> bool:
    """Whether a value is code alone, with no arrays of its own."""
    if not callable(value) or isinstance(value, type):
        return False
    return not any(map(differentiated, jax.tree_util.tree_leaves(value)))


def _is_static(model: Sequence[Any]) -> bool:
    return not any(map(differentiated, jax.tree_util.tree_leaves(list(model))))


def _refuse_lost_activations(layers: Sequence[Any]) -> None:
    """Refuse the bare matrices of an MLP, whose activations stand outside its list of layers."""
    kinds = {type(layer).__name__ for layer in layers}
    if len(layers) > 1 and kinds <= {"Linear", "Conv", "Conv1d", "Conv2d", "Dense"}:
        raise BadInput(
            f"A list of {len(layers)} layers of kind {', '.join(sorted(kinds))} has no activation "
            "between them, as mlp.layers of an MLP has lost its own; give the module itself: "
            "gl.audit(mlp, batch, loss)."
        )
