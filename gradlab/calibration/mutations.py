"""The standard set of mutations: what is wrong with a function that draws or measures.

A mutation is found by what a function takes, not by its name: whatever takes a `model` and an
input can be given a model with a layer more, whatever takes a `loss` half of it. So a new function
is mutated without a line. Laws are out of reach: no mutation touches `theory`, nor the table of
activations that it uses; where a derivative is wrong it is the layer's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike

import gradlab
from gradlab.experiment.fault import Function, given, then
from gradlab.models import chain
from gradlab.models.chain import Chain, Layer, Model

Change = Callable[[Function], Function]  # from a function to the wrong one in its place
Takes = frozenset[str]

# The rooms whose public functions measure; `checked` and `widths` only look at a model.
MEASURING = ("chain", "chain_rule", "jacobians", "spectra", "clipping", "training")
LOOKING = ("chain.checked", "chain.widths")


@dataclass(frozen=True)
class Mutation:
    """One thing that is wrong.

    Attributes:
        name: what is wrong, in words.
        sites: function, by its public name, to what makes the wrong one of it; all at once.
    """

    name: str
    sites: Mapping[str, Change]


def standard() -> list[Mutation]:
    """Every mutation, planted in one measuring function at a time; weights' scale aside."""
    drawn = [
        Mutation("a bias dropped", biases_dropped()),
        Mutation("each matrix used for two layers", of_weights(_each_twice)),
        Mutation(
            "each draw used twice",
            {"grid.over_draws": then(lambda draws: jax.tree.map(_twice, draws))},
        ),
    ]
    return drawn + [
        Mutation(name, {target: made})
        for name, takes, made in TABLE
        for target, parameters in functions()
        if takes(target, parameters)
    ]


def functions() -> Iterator[tuple[str, Takes]]:
    """Each public measuring function, as a fault names it, with the names of its parameters."""
    for room in MEASURING:
        module = getattr(gradlab, room)
        for name, function in inspect.getmembers(module, inspect.isfunction):
            target = f"{room}.{name}"
            is_own = function.__module__ == module.__name__ and not name.startswith("_")
            if is_own and target not in LOOKING:
                yield target, frozenset(inspect.signature(function).parameters)
    yield "chain.Chain.__call__", frozenset(("model", "x"))


# ---- how a wrong function is made


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
    return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)


def _has_structure_of(result: Any, like: Any) -> bool:
    structures: list[Any] = [jax.tree.structure(result), jax.tree.structure(like)]
    return bool(structures[0] == structures[1])


# ---- weights: what is drawn, and what an experiment puts into a layer by itself


def of_weights(changed: Callable[[Array], Array]) -> dict[str, Change]:
    """Every way in which weights come about, each with its weights changed."""

    def affine(made: Any) -> Any:
        return made._replace(W=changed(made.W))

    def scalar(made: Chain) -> Chain:
        return Chain(made.layer, changed(made.params))

    draws = [name for name in vars(gradlab.ensembles) if name.startswith("unit_")]
    ways: dict[str, Callable[[Any], Any]] = {
        "_affines": affine,
        "Affine": affine,
        "scalar": scalar,
        "scalar_residual": scalar,
        **dict.fromkeys(draws, changed),
    }
    once = Outermost()  # what `_affines` draws by `unit_gaussian` is changed once
    return {f"ensembles.{way}": once(then(change)) for way, change in ways.items()}


def biases_dropped() -> dict[str, Change]:
    """Every way in which biases come about, without them."""

    def affine(made: Any) -> Any:
        return made._replace(b=jnp.zeros_like(made.b))

    ways = {
        "ensembles._affines": affine,
        "ensembles.Affine": affine,
        "networks.lstm": lambda made: Chain(made.layer, affine(made.params)),
    }
    return {way: then(change) for way, change in ways.items()}


def _each_twice(tree: Any) -> Any:
    """Each second matrix of a stack replaced by the one before it; a single one as it is."""
    is_matrix = isinstance(tree, jax.Array) and tree.ndim == 2
    return tree if is_matrix else jax.tree.map(_twice, tree)


def _twice(leaf: Array) -> Array:
    """Each second entry along the first axis replaced by the one before it."""
    return leaf[jnp.arange(len(leaf)) // 2 * 2]


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
    return (
        value if callable(value) and not isinstance(value, Chain) else jax.tree.map(_other, value)
    )


def _other(leaf: Any) -> Any:
    dtype: DTypeLike = getattr(leaf, "dtype", jnp.int32)
    if not jnp.issubdtype(dtype, jnp.floating):
        return leaf
    return leaf.astype("float32" if dtype == jnp.float64 else "float64")


# ---- gradients and clipping


def _earlier(result: Any) -> Any:
    """What belongs to each layer, replaced by what belongs to the one before it."""
    if isinstance(result, tuple) and not hasattr(result, "_fields"):
        shapes = [jax.tree.map(jnp.shape, part) for part in result]
        return result[:1] + tuple(
            before if shapes[number] == shapes[number + 1] else own
            for number, (before, own) in enumerate(pairwise(result))
        )
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf[:1], leaf[:-1]]), result)


def _wrong_leaves(tree: Any) -> list[Array]:
    """The first leaf of a pytree alone; of a single one all entries but the first."""
    first, *others = jax.tree.leaves(tree)
    return [first] if others else [first.ravel()[1:]]


def clipped_by_wrong_leaves(honest: Function) -> Function:
    """A clip whose factor is that of the norm of one leaf."""
    del honest

    def wrong(grads: Any, tau: Any) -> Any:
        size = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in _wrong_leaves(grads)))
        factor = jnp.minimum(1, tau / size)
        return jax.tree.map(lambda leaf: (leaf * factor).astype(leaf.dtype), grads)

    return wrong


MODEL = {"model", "x"}
CLIPS = ("clipping.clip", "clipping.formula", "clipping.optax_clip")
LOSSES = ("training.loss", "training.cross_entropy")

# What is wrong, the functions that it can be planted in, and how.
TABLE: list[tuple[str, Callable[[str, Takes], bool], Change]] = [
    ("a layer more", lambda _, takes: takes >= MODEL, one_layer(applied_twice)),
    ("a layer less", lambda _, takes: takes >= MODEL, one_layer(left_out)),
    ("a Jacobian transposed", lambda _, takes: takes >= MODEL, of_each_layer(transposed)),
    ("a derivative 1 % off", lambda _, takes: takes >= MODEL, of_each_layer(steeper)),
    ("a derivative 1 % off", lambda _, takes: "apply" in takes, given(apply=steeper)),
    (
        "the gradient of the wrong layer",
        lambda _, takes: takes >= MODEL | {"loss"} and "layer" not in takes,
        then(_earlier),
    ),
    (
        "the gradient of the wrong layer",
        lambda target, _: target == "training.norms_by_layer",
        then(_earlier),
    ),
    (
        "the gradient of the wrong layer",
        lambda _, takes: takes >= {"loss", "layer"},
        given(layer=lambda layer: layer - 1 if layer > 1 else 2),
    ),
    (
        "the loss halved",
        lambda _, takes: takes >= MODEL | {"loss"},
        given(loss=lambda loss: lambda z: 0.5 * loss(z)),
    ),
    ("the loss halved", lambda target, _: target in LOSSES, then(lambda loss: 0.5 * loss)),
    ("computed in another format", lambda _, takes: takes >= MODEL, in_another_format),
    ("computed in another format", lambda target, _: target in CLIPS, in_another_format),
    (
        "clipped by the norm of the wrong leaves",
        lambda target, _: target in CLIPS,
        clipped_by_wrong_leaves,
    ),
    (
        "the norm of the wrong leaves",
        lambda target, _: target == "clipping.norm",
        given(grads=_wrong_leaves),
    ),
]
