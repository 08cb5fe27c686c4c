"""Streams that break: a block without the sum that its alike have, a sum of a detached state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradlab.diagnosis.dependence import PRODUCTS, RESHAPING, Reader
from gradlab.diagnosis.layers import Layer
from gradlab.diagnosis.program import Program, Step
from gradlab.diagnosis.sums import Residual

_SUMS = {"add", "add_any"}
# From a product to the sum that it is added in there are a few operations: a norm, a dropout.
_FAR = 48


@dataclass(frozen=True)
class Gap:
    """A block without a residual sum: what its last layer makes, and the stream not added.

    Attributes:
        layer: the number of the last layer.
        end: the value that its alike add.
        stream: the value that would be added to it.
    """

    layer: int
    end: int
    stream: int


def gaps_of(
    reader: Reader, layers: Sequence[Layer], roles: Sequence[str], residuals: Sequence[Residual]
) -> Iterator[Gap]:
    """The gaps, in the order of their layers; layers of one of the `roles` are alike.

    The first and the last of alike blocks may end in another way than those between them.
    """
    ends = {i for residual in residuals for i in residual.last}
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for k, layer in enumerate(layers):
        shape = reader.program.types[layer.product].shape
        groups[roles[k], layer.fan_in, layer.fan_out, shape].append(k)
    for members in groups.values():
        ways = [way for k in members if k in ends and (way := _way(reader, layers[k]))]
        without = [k for k in members if k not in ends and not _way(reader, layers[k])]
        if not ways or not _is_exception(len(without), len(members)):
            continue
        usual = max(ways, key=ways.count)
        for k in without:
            end, stream = _followed(reader, layers[k], usual), _stream(reader, layers[k], residuals)
            is_inner = k not in (members[0], members[-1])
            if is_inner and end is not None and stream is not None:
                kinds = [reader.program.types[v] for v in (end, stream)]
                if kinds[0].shape == kinds[1].shape:
                    yield Gap(k, end, stream)


def _is_exception(num: int, num_all: int) -> bool:
    """Whether so few of them are no pattern: one, or fewer than a third."""
    return num_all >= 3 and (num == 1 or 0 < 3 * num < num_all)


def _way(reader: Reader, layer: Layer) -> tuple[str, ...]:
    """The names of the steps from a layer's product to a sum with a state that it is not in, or ().

    The last name is the sum's. What stands between are no products.
    """
    front: list[tuple[int, tuple[str, ...]]] = [(layer.product, ())]
    seen = set[int]()
    while front and len(seen) < _FAR:
        value, names = front.pop(0)
        for k in reader.users[value]:
            step = reader.program.steps[k]
            if k in seen or step.name in PRODUCTS:
                continue
            seen.add(k)
            others = [v for v in step.reads if v in reader.before and v != value]
            if step.name in _SUMS and any(not reader.before[v] >> layer.step & 1 for v in others):
                return (*names, step.name)
            front += [(output, (*names, step.name)) for output in step.outputs]
    return ()


def _followed(reader: Reader, layer: Layer, way: tuple[str, ...]) -> int | None:
    """The value at the end of such a way from a layer, the sum left out; None where it has none."""
    value = layer.product
    for name in way[:-1]:
        found = [k for k in reader.users[value] if reader.program.steps[k].name == name]
        if not found:
            return None
        value = reader.program.steps[found[0]].outputs[0]
    return value


def _stream(reader: Reader, layer: Layer, residuals: Sequence[Residual]) -> int | None:
    """The total of the last residual sum in front of a layer."""
    behind = reader.before[layer.product]
    totals = [r.total for r in residuals if behind >> reader.maker[r.total] & 1]
    return max(totals, key=lambda value: reader.maker[value], default=None)


def stopped_by(program: Program, residual: Residual) -> Step | None:
    """The step that stops the gradient of a residual sum's stream, or None."""
    makers = {v: step for step in program.steps for v in step.outputs}
    value = residual.stream
    while (step := makers.get(value)) is not None and step.name in RESHAPING and step.reads:
        if step.name == "stop_gradient":
            return step
        value = step.reads[0]
    return None


def is_filled(program: Program, gap: Gap) -> bool:
    """Whether the stream has been added by now."""
    return any(gap.end in step.outputs and gap.stream in step.reads for step in program.steps)
