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
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import gradlab
from gradlab import measuring
from gradlab.calibration import wrong
from gradlab.calibration.wrong import Change, OfResult, Outermost
from gradlab.experiment.fault import given
from gradlab.models.chain import Chain

Takes = frozenset[str]

# What only looks at a model or a clip; and a room whose bounds are tolerances, not measurements.
LOOKING = ("chain.checked", "chain.widths", "clipping.compare", "clipping.explain")
BOUNDING = ("certificate",)


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
            {"grid.over_draws": OfResult(lambda draws: jax.tree.map(_twice, draws))},
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
    for room in measuring_rooms():
        for name, takes in _own_functions(getattr(gradlab, room)):
            if f"{room}.{name}" not in LOOKING:
                yield f"{room}.{name}", takes
    yield "chain.Chain.__call__", frozenset(("model", "x"))


def _own_functions(module: ModuleType) -> Iterator[tuple[str, Takes]]:
    """The public functions of a room, also those that it has from a smaller one, by name."""
    for name, function in inspect.getmembers(module, inspect.isfunction):
        is_own = function.__module__ == module.__name__ and not name.startswith("_")
        if is_own or name in getattr(module, "__all__", ()):
            yield name, frozenset(inspect.signature(function).parameters)


def measuring_rooms() -> list[str]:
    """The rooms that an experiment measures by, as `gl` has them, and that of the chain itself."""
    rooms = inspect.getmembers(measuring, inspect.ismodule)
    public = [name for name, room in rooms if getattr(gradlab, name, None) is room]
    return ["chain", *(name for name in public if name not in BOUNDING)]


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
    mixes = [name for name, takes in _own_functions(gradlab.mixing) if "key" in takes]
    sites = {f"ensembles.{way}": change for way, change in ways.items()}
    sites |= {f"mixing.{way}": changed for way in mixes}
    once = Outermost()  # what `_affines` draws by `unit_gaussian` is changed once
    return {site: OfResult(change, once) for site, change in sites.items()}


def biases_dropped() -> dict[str, Change]:
    """Every way in which biases come about, without them."""

    def affine(made: Any) -> Any:
        return made._replace(b=jnp.zeros_like(made.b))

    ways = {
        "ensembles._affines": affine,
        "ensembles.Affine": affine,
        "networks.lstm": lambda made: Chain(made.layer, affine(made.params)),
    }
    return {way: OfResult(change) for way, change in ways.items()}


def _each_twice(tree: Any) -> Any:
    """Each second matrix of a stack replaced by the one before it; a single one as it is."""
    is_matrix = isinstance(tree, jax.Array) and tree.ndim == 2
    return tree if is_matrix else jax.tree.map(_twice, tree)


def _twice(leaf: Array) -> Array:
    """Each second entry along the first axis replaced by the one before it."""
    return leaf[jnp.arange(len(leaf)) // 2 * 2]


def is_clip(takes: Takes) -> bool:
    """Whether what takes these clips a gradient."""
    return takes >= {"tau"} and bool(takes & {"grads", "leaves"})


MODEL = {"model", "x"}
LOSSES = ("training.loss", "training.cross_entropy")

# What is wrong, the functions that it can be planted in, and how.
TABLE: list[tuple[str, Callable[[str, Takes], bool], Change]] = [
    ("a layer more", lambda _, takes: takes >= MODEL, wrong.one_layer(wrong.applied_twice)),
    ("a layer less", lambda _, takes: takes >= MODEL, wrong.one_layer(wrong.left_out)),
    (
        "a Jacobian transposed",
        lambda _, takes: takes >= MODEL,
        wrong.of_each_layer(wrong.transposed),
    ),
    ("a derivative 1 % off", lambda _, takes: takes >= MODEL, wrong.of_each_layer(wrong.steeper)),
    ("a derivative 1 % off", lambda _, takes: "apply" in takes, given(apply=wrong.steeper)),
    (
        "the gradient of the wrong layer",
        lambda _, takes: takes >= MODEL | {"loss"} and "layer" not in takes,
        OfResult(wrong.of_the_layer_before),
    ),
    (
        "the gradient of the wrong layer",
        lambda target, _: target == "training.norms_by_layer",
        OfResult(wrong.of_the_layer_before),
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
    ("the loss halved", lambda target, _: target in LOSSES, OfResult(lambda loss: 0.5 * loss)),
    ("computed in another format", lambda _, takes: takes >= MODEL, wrong.in_another_format),
    ("computed in another format", lambda _, takes: is_clip(takes), wrong.in_another_format),
    (
        "clipped by the norm of the wrong leaves",
        lambda _, takes: is_clip(takes),
        wrong.clipped_by_wrong_leaves,
    ),
    (
        "the norm of the wrong leaves",
        lambda target, _: target == "clipping.norm",
        given(grads=wrong.wrong_leaves),
    ),
]
