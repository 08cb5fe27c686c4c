"""The layers of a program: a weight times a state, its bias, and the activation behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradlab.diagnosis.dependence import ELEMENTWISE, RESHAPING, Reader, bits
from gradlab.diagnosis.program import Constant, Step, inner_programs


@dataclass(frozen=True)
class Layer:
    """A weight times a state.

    Attributes:
        name: of its weight, with the slice where weights are stacked.
        param: the number of the parameter, and `index` the slice of it, or None.
        weight, state: the values that are multiplied.
        product, pre: the value that results, and the same with its bias.
        biases: parameters added on the way.
        factors: values, or constants, that multiply it on the way; a divisor has `True` beside it.
        fan_in: the number of terms of a sum.
        out_axes: the weight's axes that are the layer's units.
        step: the number of the product among the program's steps.
        phi: the activation behind it; `activated` is its value.
    """

    name: str
    param: int
    index: int | None
    weight: int
    state: int
    product: int
    pre: int
    biases: tuple[int, ...]
    fan_in: int
    fan_out: int
    out_axes: tuple[int, ...]
    step: int
    factors: tuple[tuple[int | Constant, bool], ...] = ()
    phi: tuple[Step, ...] = ()
    activated: int | None = None


def is_followed(reader: Reader, layer: Layer) -> bool:
    """Whether another layer stands behind this one; what else does is the loss."""
    later = reader.linear >> (layer.step + 1) << (layer.step + 1)
    steps = reader.program.steps
    return any(reader.before[steps[k].outputs[0]] >> layer.step & 1 for k in bits(later))


def layers_of(reader: Reader, names: Sequence[str], first: int) -> Iterator[Layer]:
    """The layers in the order of their products; `first` is the number of the first parameter."""
    for k, step in enumerate(reader.program.steps):
        if not reader.linear >> k & 1:
            continue
        weight = reader.weight_of(step)
        assert weight is not None
        state = next(v for v in step.reads if v != weight)
        param, index = _source(reader, weight)
        fan_in, out_axes = _fans(step, step.inputs.index(weight), reader.program.types[weight])
        pre, biases, factors = _pre_activation(reader, step.outputs[0])
        phi, activated = _activation(reader, pre)
        shape = reader.program.types[weight].shape
        yield Layer(
            name=slice_name(names[param - first], index),
            param=param - first,
            index=index,
            weight=weight,
            state=state,
            product=step.outputs[0],
            pre=pre,
            biases=tuple(b - first for b in biases),
            fan_in=fan_in,
            fan_out=math.prod(shape[axis] for axis in out_axes),
            out_axes=out_axes,
            step=k,
            factors=factors,
            phi=phi,
            activated=activated,
        )


def _source(reader: Reader, weight: int) -> tuple[int, int | None]:
    """The parameter that a weight is made of (the largest, of several), and its slice."""
    index, value = None, weight
    while (step := reader.step(value)) is not None:
        start = _start(step, reader.program.types)
        index = start if start is not None else index
        made_of = [v for v in step.reads if reader.roots.get(v)]
        if not made_of:
            break
        value = max(made_of, key=reader.size)
    roots = reader.roots.get(value, reader.roots[weight])
    return max(roots, key=reader.size), index


def _start(step: Step, types: Sequence[Any]) -> int | None:
    """The number of the slice that a step takes of the first axis, or None."""
    if step.name == "index":
        return int(step.params["index"])
    if step.name == "slice" and step.reads:
        whole, low = types[step.reads[0]].shape, step.params["start_indices"]
        high = step.params["limit_indices"]
        if len(whole) > 2 and high[0] - low[0] == 1 and whole[0] > 1:
            return int(low[0])
    return None


def slice_name(name: str, index: int | None) -> str:
    """A slice stands before the last word of a path: `blocks.weight` gives `blocks.3.weight`."""
    if index is None:
        return name
    head, dot, tail = name.rpartition(".")
    return f"{head}{dot}{index}.{tail}"


def _fans(step: Step, side: int, weight: Any) -> tuple[int, tuple[int, ...]]:
    """The number of terms of each sum, and the weight's axes that are units."""
    if step.name == "dot_general":
        contract, batch = step.params["dimension_numbers"]
        summed = tuple(contract[side])
        left = (a for a in range(len(weight.shape)) if a not in summed and a not in batch[side])
        return math.prod(weight.shape[a] for a in summed), tuple(left)
    spec = step.params["dimension_numbers"].rhs_spec
    others = (axis for axis in range(len(weight.shape)) if axis != spec[0])
    return math.prod(weight.shape[a] for a in others), (spec[0],)


Multiplied = tuple[tuple[int | Constant, bool], ...]


def _pre_activation(reader: Reader, value: int) -> tuple[int, tuple[int, ...], Multiplied]:
    """The product with what is added to it, and scales it, that no state has a part in."""
    biases: list[int] = []
    factors: list[tuple[int | Constant, bool]] = []
    while len(reader.users[value]) == 1:
        step = reader.program.steps[reader.users[value][0]]
        others = [v for v in step.reads if v != value]
        if any(v in reader.before for v in others):
            break
        if step.name in {"add", "sub", "add_any"}:
            biases += [root for v in others for root in reader.roots.get(v, ())]
        elif step.name == "mul" or (step.name == "div" and step.inputs[0] == value):
            factors += [(one, step.name == "div") for one in step.inputs if one != value]
        elif step.name not in RESHAPING:
            break
        if reader.size(step.outputs[0]) != reader.size(value):
            break
        value = step.outputs[0]
    return value, tuple(biases), tuple(factors)


def activation(reader: Reader, layer: Layer, fits: Callable[[Step], bool]) -> Layer:
    """The layer with an activation made of such steps alone."""
    phi, activated = _activation(reader, layer.pre, fits)
    return replace(layer, phi=phi, activated=activated)


def _activation(
    reader: Reader, pre: int, fits: Callable[[Step], bool] | None = None
) -> tuple[tuple[Step, ...], int | None]:
    """The steps from a pre-activation to its activation, elementwise and of it alone."""
    inside = {pre}
    steps: list[Step] = []
    shape = reader.program.types[pre].shape
    for k in _later(reader, pre):
        step = reader.program.steps[k]
        is_part = _is_elementwise(step) and (fits is None or fits(step))
        if not is_part or reader.program.types[step.outputs[0]].shape != shape:
            continue
        numbers = [_filled(reader, v) for v in step.reads if v not in inside]
        if all(made is not None for made in numbers):
            inside.update(step.outputs)
            steps += [*(made for made in numbers if made is not None), step]
    used = [v for v in inside if any(reader.program.steps[k] not in steps for k in reader.users[v])]
    if len(used) != 1 or used[0] == pre:
        return (), None
    (activated,) = used
    wanted: set[int] = {activated}
    kept: list[Step] = []
    for step in reversed(steps):
        if wanted & set(step.outputs):
            wanted |= set(step.reads)
            kept.append(step)
    return tuple(reversed(kept)), activated


def _later(reader: Reader, value: int) -> Iterator[int]:
    """The elementwise steps that follow from a value, in order; a few dozen at most."""
    seen: set[int] = set()
    front = list(reader.users[value])
    while front and len(seen) < 64:
        k = min(front)
        front = [other for other in front if other != k]
        if k in seen:
            continue
        seen.add(k)
        yield k
        if _is_elementwise(reader.program.steps[k]):
            front += reader.users[reader.program.steps[k].outputs[0]]


def _filled(reader: Reader, value: int) -> Step | None:
    """The step that fills an array with one literal number, or None: the 0 of an elu's `where`."""
    step = reader.step(value)
    return step if step is not None and step.name == "broadcast_in_dim" and not step.reads else None


def _is_elementwise(step: Step) -> bool:
    if step.name != "custom_jvp_call":
        return step.name in ELEMENTWISE
    return all(
        eqn.primitive.name in {*ELEMENTWISE, "jit", "pjit", "broadcast_in_dim"}
        for inner in inner_programs(step.params)
        for eqn in inner.eqns
    )


def fed_by(reader: Reader, state: int, by_pre: dict[int, int]) -> int | None:
    """The layer whose activation, reshaped at most, is this state."""
    value = state
    while value not in by_pre:
        step = reader.step(value)
        if step is None or step.name not in RESHAPING or not step.reads:
            return None
        value = step.reads[0]
    return by_pre[value]
