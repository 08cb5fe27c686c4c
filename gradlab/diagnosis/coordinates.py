"""The coordinate check: the power of the width in what a step changes of each layer's output.

`print(gl.coordinate_check(make, widths, optimizer, batch, loss))`. Yang, Hu and others 2022 (Tensor
Programs V, arXiv:2203.03466, appendix on implementation) look at curves; here each layer has the
exponent of the width in its change, with an interval and a verdict.

The verdict is that of the first step, to first order in its rate. At a finite rate, and more so
after several steps, a network that saturates moves no farther the wider it is: it passes with a
parametrisation that is wrong. What the given rate does stands beside.
"""

from __future__ import annotations

import html
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.diagnosis import anatomy as anatomies
from gradlab.diagnosis import door, laws
from gradlab.diagnosis.anatomy import Anatomy
from gradlab.diagnosis.program import evaluate
from gradlab.errors import BadInput
from gradlab.experiment.estimate import Exponent, exponent
from gradlab.measuring import coordinates

Make = Callable[[int, Any], Any]  # from a width and a key to a model

STABLE = 0.25
"""Scales that are powers of √width give exponents that are multiples of 1/2 (Yang and Hu 2021,
abc-parametrisations): below half of the first of them an exponent is 0."""


@dataclass(frozen=True)
class OverWidth:
    """A layer over the width.

    Attributes:
        name: the path of its weight.
        start: the exponent of the width in its pre-activation's root mean square, at the start.
        change: the same of its change in the first step, to first order in the rate.
        later: the same of its change at the given rate, after all steps.
        is_output: whether it is the last: its pre-activations are the logits.
    """

    name: str
    start: Exponent
    change: Exponent
    later: Exponent
    is_output: bool

    @property
    def verdict(self) -> str:
        """What its start and its change do with the width."""
        start, change = _power(self.start), _power(self.change)
        if start == "grows" or (start == "shrinks" and not self.is_output):
            return f"{start} at the start"
        return change

    @property
    def is_stable(self) -> bool:
        """Whether its change is of one size at all widths."""
        return self.verdict == "stable"


def _power(found: Exponent) -> str:
    if math.isnan(found.value):
        return "does not move"
    if found.low > STABLE:
        return "grows"
    if found.high < -STABLE:
        return "shrinks"
    return "stable" if found.low >= -STABLE and found.high <= STABLE else "not decided"


class CoordinateCheck:
    """What `gl.coordinate_check` found. Printed, it is a table; a notebook shows it.

    Attributes:
        widths: from the smallest on.
        layers: each with its exponents and verdict, in the order of the program.
        log_changes: what `change` is fitted to, `(num_widths, num_draws, num_layers)`.
        steps: after how many steps `later` is.
    """

    def __init__(
        self,
        widths: Sequence[int],
        names: Sequence[str],
        output: str,
        logs: np.ndarray,
        steps: int,
    ) -> None:
        chance = laws.FALSE_ALARMS / len(names)
        self.widths, self.steps = tuple(widths), steps
        self.log_changes = logs[:, :, 1]
        self.layers = [
            OverWidth(
                name,
                exponent(widths, logs[:, :, 0, k], chance),
                exponent(widths, logs[:, :, 1, k], chance),
                exponent(widths, logs[:, :, 2, k], chance),
                name == output,
            )
            for k, name in enumerate(names)
        ]

    @property
    def slopes(self) -> dict[str, float]:
        """The exponent of the width in each layer's change, by its name."""
        return {layer.name: layer.change.value for layer in self.layers}

    @property
    def is_stable(self) -> bool:
        """Whether every layer's change is of one size at all widths."""
        return all(layer.is_stable for layer in self.layers)

    @property
    def verdict(self) -> str:
        """A sentence: stable, or the first layer that is not, and what its rate needs."""
        off = [layer for layer in self.layers if not layer.is_stable]
        if not off:
            return "stable: one step changes every layer by as much at all widths"
        decided = [layer for layer in off if layer.verdict != "not decided"]
        first = (decided or off)[0]
        return f"{first.verdict}: {first.name}, {_advice(first)}"

    def __str__(self) -> str:
        return "\n".join(_text(self))

    def __repr__(self) -> str:
        return f"<coordinate check of {len(self.layers)} layers: {self.verdict}>"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in _head(self.steps))
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(layer)) + "</tr>"
            for layer in self.layers
        )
        title, note = html.escape(self.verdict), html.escape(" ".join(_note(self)))
        return f"<h3>{title}</h3><p>{note}</p><table><tr>{head}</tr>{body}</table>"


def coordinate_check(
    make: Make,
    widths: Sequence[int],
    optimizer: Any,
    batch: Any,
    loss: door.Loss,
    *,
    steps: int = 1,
    num_draws: int = 4,
    key: Any = None,
) -> CoordinateCheck:
    """The exponent of the width in what one step changes, layer by layer, with its verdict.

    Args:
        make: `make(width, key)` is a model, as `gl.audit` takes it, with the same layers always.
        widths: three or more.
        optimizer: an optax transformation, or a function of the width that gives one.
        batch: as the loss takes it, the same at each width.
        loss: `loss(model, batch)`, as for `gl.audit`.
        steps: after how many steps of the given rate the column beside the verdict is.
        num_draws: models that are drawn at each width.
        key: what they are drawn from; `jax.random.key(0)` if it is not given.

    Raises:
        BadInput: for fewer widths, models of different depth, or what is no optimiser.
    """
    sizes = _checked(make, widths, steps, num_draws)
    keys = jax.random.split(jax.random.key(0) if key is None else key, num_draws)
    found = [_of_width(make, width, keys, optimizer, batch, loss, steps) for width in sizes]
    for width, one in zip(sizes[1:], found[1:], strict=True):
        _check_alike(sizes[0], found[0], width, one)
    logs = np.stack([one.logs for one in found])
    return CoordinateCheck(sizes, found[0].names, found[0].output, logs, steps)


class _OfWidth(NamedTuple):
    """The layers' names, that of the last, parameters' shapes, and `(num_draws, 3, num_layers)`."""

    names: tuple[str, ...]
    output: str
    shapes: tuple[tuple[int, ...], ...]
    logs: np.ndarray


def _of_width(
    make: Make,
    width: int,
    keys: Any,
    optimizer: Any,
    batch: Any,
    loss: door.Loss,
    steps: int,
) -> _OfWidth:
    models = [make(width, key) for key in keys]
    door.check(models[0], loss)
    subjects = [door.opened(model) for model in models]
    if not subjects[0].params:
        raise BadInput(
            f"make({width}, key) gives a {type(models[0]).__name__} without an array of floating "
            "point numbers; allowed: a model with parameters"
        )
    leaves, treedef = jax.tree_util.tree_flatten(batch)
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    anatomy = anatomies.of_loss(subjects[0], arrays, treedef, loss)
    if not anatomy.layers:
        raise BadInput(
            f"The loss of make({width}, key) multiplies no state by a weight; "
            "allowed: a model with a layer that does"
        )
    run = jax.jit(partial(_moves, anatomy, _transformation(optimizer, width), steps, arrays))
    logs = [np.asarray(jnp.stack(run(one.tree(one.params), one.rest))) for one in subjects]
    return _OfWidth(
        tuple(_uses(anatomy)),
        anatomy.layers[-1].name,
        tuple(param.shape for param in subjects[0].params),
        np.stack(logs).astype(float),
    )


def _uses(anatomy: Anatomy) -> dict[str, list[int]]:
    """The pre-activations that each weight makes, by its name: several where it is used again."""
    uses = defaultdict(list)
    for layer in anatomy.layers:
        uses[layer.name].append(layer.pre)
    return uses


def _moves(
    anatomy: Anatomy, optimizer: Any, steps: int, arrays: list[Any], tree: Any, rest: Sequence[Any]
) -> coordinates.Moves:
    program, uses = anatomy.program, _uses(anatomy)
    watched = {number for numbers in uses.values() for number in numbers}

    def run(tree: Any) -> tuple[Any, dict[int, Any]]:
        seen: dict[int, Any] = {}

        def at(number: int, value: Any) -> Any:
            if number in watched:
                seen[number] = value
            return value

        params = jax.tree_util.tree_leaves(tree)
        value = evaluate(program, [*program.constants, *params, *rest, *arrays], at)
        return jnp.asarray(value), seen

    def states(tree: Any) -> list[list[Any]]:
        seen = run(tree)[1]
        return [[seen[number] for number in numbers] for numbers in uses.values()]

    return coordinates.moves(states, lambda tree: run(tree)[0], tree, optimizer, steps)


# ---- the door


def _checked(make: Any, widths: Any, steps: int, num_draws: int) -> list[int]:
    if not callable(make):
        raise BadInput(
            f"make is a {type(make).__name__}; allowed: a function make(width, key) of a model"
        )
    try:
        sizes = sorted({int(width) for width in widths})
    except (TypeError, ValueError):
        sizes = []
    if len(sizes) < 3 or sizes[0] < 1:
        raise BadInput(f"widths is {widths}; allowed: three or more different positive integers")
    for name, value in (("steps", steps), ("num_draws", num_draws)):
        if value < 1:
            raise BadInput(f"{name} is {value}; allowed: at least 1")
    return sizes


def _transformation(optimizer: Any, width: int) -> Any:
    made = optimizer(width) if callable(optimizer) else optimizer
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise BadInput(
            f"The optimizer is a {type(made).__name__}; "
            "allowed: an optax transformation, or a function of the width that gives one"
        )
    return made


def _check_alike(width: int, first: _OfWidth, other_width: int, other: _OfWidth) -> None:
    if first.names != other.names:
        raise BadInput(
            f"make({width}, key) has the layers {', '.join(first.names)}, make({other_width}, key) "
            f"{', '.join(other.names)}; allowed: the same layers at each width"
        )
    if first.shapes == other.shapes:
        raise BadInput(
            f"make({width}, key) and make({other_width}, key) have parameters of the same shapes; "
            "allowed: a model that is as wide as it is told to be"
        )


# ---- what is shown


def _advice(layer: OverWidth) -> str:
    """What the layer needs, to the next half of an exponent."""
    if layer.verdict == "not decided":
        return "of which more widths or draws may tell"
    if layer.verdict == "does not move":
        return "which has no change at the first step"
    at_start = layer.verdict.endswith("start")
    power = layer.start if at_start else layer.change
    half = round(-2 * power.value) / 2
    what = "weights' standard deviation" if at_start else "learning rate"
    return f"whose {what} should go as width^{half:g} times what it does"


def _head(steps: int) -> tuple[str, ...]:
    after = "after 1 step" if steps == 1 else f"after {steps} steps"
    return "layer", "size at start", "change", "verdict", after


_MOST_ALIKE = 4
_WIDTHS = (34, 15, 15, 21, 15)


def _cells(layer: OverWidth) -> tuple[str, ...]:
    start, change, later = map(_number, (layer.start, layer.change, layer.later))
    name = f"{layer.name} (output)" if layer.is_output else layer.name
    return name, start, change, layer.verdict, later


def _number(found: Exponent) -> str:
    if math.isnan(found.value):
        return "none"
    return f"{found.value:.2f} ± {(found.high - found.low) / 2:.2f}"


def _note(check: CoordinateCheck) -> Iterator[str]:
    yield f"Exponents of the width, {check.widths[0]} to {check.widths[-1]}."
    yield "The change is that of the first step, to first order in its rate."


def _text(check: CoordinateCheck) -> Iterator[str]:
    yield check.verdict
    yield " ".join(_note(check))
    yield ""
    yield _line(_head(check.steps))
    yield _line(tuple("-" * (width - 1) for width in _WIDTHS))
    groups: dict[tuple[str, str], list[OverWidth]] = defaultdict(list)
    for layer in check.layers:
        groups[anatomies.starred(layer.name), layer.verdict].append(layer)
    for alike in groups.values():
        few = len(alike) <= _MOST_ALIKE
        shown = alike if few else [max(alike, key=lambda layer: abs(layer.change.value))]
        yield from map(_line, map(_cells, shown))
        if not few:
            yield f"  and {len(alike) - 1} alike, whose change has an exponent nearer to 0"


def _line(cells: Sequence[str]) -> str:
    return "".join(
        (cell if len(cell) < width else "…" + cell[-(width - 2) :]).ljust(width)
        for cell, width in zip(cells, _WIDTHS, strict=True)
    ).rstrip()
