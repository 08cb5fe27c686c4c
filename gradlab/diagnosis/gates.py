"""The gates of a program: a logistic function of a state that multiplies another state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gradlab.diagnosis.dependence import ELEMENTWISE, RESHAPING, Reader, made_by

# From a pre-activation to the product that it is a piece of there are a few operations.
_FAR = 16


@dataclass(frozen=True)
class Gate:
    """A gate: the value that the logistic function takes.

    Attributes:
        value: its number; `layers` made it, and `biases` are parameters added on the way.
        piece: which part of a product it is, where several gates share one matrix.
    """

    value: int
    layers: tuple[int, ...]
    biases: tuple[int, ...]
    piece: tuple[Any, ...]


def gates_of(reader: Reader, place: dict[int, int], first: int) -> Iterator[Gate]:
    """The gates in their order; `place` is the number of the layer that a step is.

    `x sigmoid(x)` is an activation, and no gate.
    """
    for step in reader.program.steps:
        if step.name != "logistic" or not step.reads or step.reads[0] not in reader.before:
            continue
        value = step.reads[0]
        layers = tuple(place[k] for k in made_by(reader, value))
        if layers and _multiplies(reader, value, step.outputs[0]):
            piece, biases = _way(reader, value)
            yield Gate(value, layers, tuple(sorted(b - first for b in biases)), piece)


def _multiplies(reader: Reader, value: int, opened: int) -> bool:
    """Whether a gate multiplies a state other than the one that it is a function of."""
    own = reader.plain(value)
    for k in reader.users[opened]:
        step = reader.program.steps[k]
        others = [v for v in step.reads if v != opened and v in reader.before]
        if step.name == "mul" and any(reader.plain(v) != own for v in others):
            return True
    return False


def _way(reader: Reader, value: int) -> tuple[tuple[Any, ...], set[int]]:
    """Which piece of a product a value is, and the parameters added on the way to it."""
    front, biases, piece = [value], set[int](), tuple[Any, ...]()
    for _ in range(_FAR):
        if not front:
            break
        value = front.pop()
        step = reader.step(value)
        if step is None or reader.linear >> reader.maker[value] & 1:
            continue
        if step.name == "split":
            piece = piece or ("split", step.outputs.index(value))
        elif step.name in {"slice", "index"}:
            piece = piece or (step.name, str(step.params.get("start_indices")))
        elif step.name not in {*ELEMENTWISE, *RESHAPING}:
            continue
        for v in step.reads:
            if v in reader.before:
                front.append(v)
            else:
                biases |= reader.roots.get(v, frozenset())
    return piece, biases
