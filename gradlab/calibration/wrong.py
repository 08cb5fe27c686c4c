"""Wrong functions in the place of honest ones: of models, layers, formats, gradients, clips."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike

from gradlab.experiment.fault import Function, then
from gradlab.models import chain
from gradlab.models.chain import Chain, Layer, Model

Change = Callable[[Function], Function]  # from a function to the wrong one in its place


class OfResult:
    """From a function to the one that returns `changed(what it returns)`."""

    def __init__(self, changed: Function, once: Outermost | None = None) -> None:
        self.changed = changed
        self._change = once(then(changed)) if once else then(changed)

    def __call__(self, honest: Function) -> Function:
        """The wrong function, where it stands by itself."""
        return self._change(honest)


class Outermost:
    """Wrong functions that are honest where one of them calls another."""

    def __init__(self) -> None:
        self._is_inside = False

    def __call__(self, change: Change) -> Change:
        """The same wrong function, honest inside the others."""

        def made(honest: Function) -> Function:
            wrong = change(honest)

            def guarded(*args: Any, **kwargs: Any) -> Any:
                if self._is_inside:
                    return honest(*args, **kwargs)
                self._is_inside = True
                try:
                    return wrong(*args, **kwargs)
                finally:
                    self._is_inside = False

            return guarded

        return made


def of_model(changed: Callable[[list[Chain], Array], list[Chain]]) -> Change:
    """The function of a model and an input that is given another model, of as many layers.

    What it returns has the structure and the formats that the honest function's result has.
    """
    once = Outermost()  # the new model calls its own layers

    def made(honest: Function) -> Function:
        def wrong(model: Model, x: Array, *args: Any, **kwargs: Any) -> Any:
            like = jax.eval_shape(lambda: honest(model, x, *args, **kwargs))
            parts = changed(list(chain.segments(model)), x)
            other = parts[0] if isinstance(model, Chain) else parts
            return _alike(honest(other, x, *args, **kwargs), like)

        return wrong

    return once(made)


def of_each_layer(changed: Callable[[Layer], Layer]) -> Change:
    """The function of a model that is given the same with every layer's function changed."""
    return of_model(lambda parts, _: [Chain(changed(part.layer), part.params) for part in parts])


def _alike(result: Any, like: Any) -> Any:
    """The result without what a changed model adds to it, in the formats of the honest one."""
    if _has_structure_of(result, like):
        return jax.tree.map(lambda leaf, one: leaf.astype(one.dtype), result, like)
    if isinstance(result, tuple) and _has_structure_of(result[0], like):
        return _alike(result[0], like)  # the parameters of a layer, and its mark
    if isinstance(result, Chain):  # of other layers
        return Chain(like.layer, _alike(result.params, like.params))
    parts = [_alike(*pair) for pair in zip(result, like, strict=True)]
    return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)


def _has_structure_of(result: Any, like: Any) -> bool:
    structures: list[Any] = [jax.tree.structure(result), jax.tree.structure(like)]
    return bool(structures[0] == structures[1])


# ---- the layers of a model


def one_layer(changed: Callable[[Layer], Layer]) -> Change:
    """The function of a model that is given another in the place of the one in its middle.

    In the middle of the longest run of layers that keep their width.
    """

    def parts_with(parts: list[Chain], x: Array) -> list[Chain]:
        keeps, state = [], x
        for part in parts:
            output = jax.eval_shape(part, state)
            keeps.append(part.depth if output.shape == state.shape else 0)
            state = output
        if not any(keeps):
            return parts
        longest = keeps.index(max(keeps))
        return [
            _marked(part, changed(part.layer), x) if number == longest else part
            for number, part in enumerate(parts)
        ]

    return of_model(parts_with)


def _marked(part: Chain, other: Layer, x: Array) -> Chain:
    """The chain with another layer in its middle: a mark beside each layer's parameters."""
    marks = jnp.zeros(part.depth, x.dtype).at[part.depth // 2].set(1)

    def layer(marked: Any, z: Array) -> Array:
        params, mark = marked
        return jnp.where(mark > 0, other(params, z), part.layer(params, z))

    return Chain(layer, (part.params, marks))


def applied_twice(layer: Layer) -> Layer:
    """The layer, and again the same."""
    return lambda params, z: layer(params, layer(params, z))


def left_out(layer: Layer) -> Layer:
    """The identity in the place of a layer."""
    del layer
    return lambda _, z: z


def steeper(function: Function) -> Function:
    """The function with all its derivatives 1 % too large."""

    def slope(primals: Any, tangents: Any) -> tuple[Any, Any]:
        output, moved = _jvp(function, primals, tangents)
        return output, jax.tree.map(lambda leaf: (1.01 * leaf).astype(leaf.dtype), moved)

    return _with_jvp(function, slope)


def transposed(layer: Layer) -> Layer:
    """The layer with its Jacobian transposed, where it is square."""

    def slope(primals: Any, tangents: Any) -> tuple[Any, Any]:
        (params, z), (dparams, dz) = primals, tangents
        output, moved = _jvp(lambda params: layer(params, z), (params,), (dparams,))
        if isinstance(dz, SymbolicZero):
            return output, moved
        if output.shape != z.shape:
            return _jvp(layer, primals, tangents)
        return output, moved + jax.vjp(lambda z: layer(params, z), z)[1](dz)[0]

    return _with_jvp(layer, slope)


def _with_jvp(function: Function, slope: Callable[[Any, Any], tuple[Any, Any]]) -> Function:
    """The function with another derivative."""
    wrong = jax.custom_jvp(function)
    wrong.defjvp(slope, symbolic_zeros=True)
    return wrong


def _jvp(function: Function, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """`jax.jvp` along those leaves alone that move: 0 times an infinite slope would be nan."""
    leaves, tree = jax.tree.flatten(primals)
    slopes = jax.tree.leaves(tangents)
    moved = [place for place, one in enumerate(slopes) if not isinstance(one, SymbolicZero)]

    def of_moved(*values: Array) -> Any:
        filled = dict(enumerate(leaves)) | dict(zip(moved, values, strict=True))
        return function(*jax.tree.unflatten(tree, filled.values()))

    if not moved:
        output = of_moved()
        return output, jax.tree.map(jnp.zeros_like, output)
    return jax.jvp(of_moved, [leaves[at] for at in moved], [slopes[at] for at in moved])


# ---- formats


def in_another_format(honest: Function) -> Function:
    """The function of arrays that computes in another format and returns the honest one's."""

    def wrong(first: Any, *args: Any, **kwargs: Any) -> Any:
        like = jax.eval_shape(lambda: honest(first, *args, **kwargs))
        return _alike(honest(*map(_cast, (first, *args)), **kwargs), like)

    return wrong


def _cast(value: Any) -> Any:
    """Float arrays in another format: in float32 what is in float64, in float64 what is not."""
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(map(_cast, value))
    cast = jax.tree.map(_other, value)
    if isinstance(cast, Chain):
        return Chain(_following(cast.layer, 1), cast.params)
    return _following(cast, 0) if callable(cast) else cast


def _following(function: Function, which: int) -> Function:
    """The function whose result has the format of one of its arguments, whatever it closes over."""

    def follows(*args: Any) -> Any:
        dtype = jax.tree.leaves(args[which])[0].dtype
        return jax.tree.map(lambda leaf: leaf.astype(dtype), function(*args))

    return follows


def _other(leaf: Any) -> Any:
    dtype: DTypeLike = getattr(leaf, "dtype", jnp.int32)
    if not jnp.issubdtype(dtype, jnp.floating):
        return leaf
    return leaf.astype("float32" if dtype == jnp.float64 else "float64")


# ---- gradients and clipping


def of_the_layer_before(result: Any) -> Any:
    """What belongs to each layer, replaced by what belongs to the one before it."""
    if isinstance(result, tuple) and not hasattr(result, "_fields"):
        shapes = [jax.tree.map(jnp.shape, part) for part in result]
        return result[:1] + tuple(
            before if shapes[number] == shapes[number + 1] else own
            for number, (before, own) in enumerate(pairwise(result))
        )
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf[:1], leaf[:-1]]), result)


def wrong_leaves(tree: Any) -> list[Array]:
    """The first leaf of a pytree alone; of a single one all entries but the first."""
    first, *others = jax.tree.leaves(tree)
    return [first] if others else [first.ravel()[1:]]


def clipped_by_wrong_leaves(honest: Function) -> Function:
    """A clip whose factor is that of the norm of one leaf."""
    del honest

    def wrong(grads: Any, tau: Any, *others: Any) -> Any:
        del others  # the name of an axis of shards
        size = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in wrong_leaves(grads)))
        factor = jnp.minimum(1, tau / size)
        return jax.tree.map(lambda leaf: (leaf * factor).astype(leaf.dtype), grads)

    return wrong
