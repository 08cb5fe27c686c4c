"""The activations that stand on a classifier's logits, where no activation belongs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradlab.diagnosis.dependence import RESHAPING, Reader
from gradlab.diagnosis.layers import Layer, activation, is_followed
from gradlab.diagnosis.program import Step, inner_programs
from gradlab.diagnosis.softmaxes import Softmax

# What a rectifier is made of. A loss's own operations are others: exp, log, a difference.
_RECTIFYING = {
    *("max", "min", "clamp", "select_n", "gt", "ge", "lt", "le", "mul", "abs"),
    *("convert_element_type", "copy", "broadcast_in_dim", "jit", "pjit"),
}


@dataclass(frozen=True)
class Rectified:
    """Logits behind an activation: the layer, and the layer with that activation as its phi."""

    layer: int
    activated: Layer


def rectified_of(
    reader: Reader, layers: Sequence[Layer], softmaxes: Sequence[Softmax]
) -> Iterator[Rectified]:
    """The last layers whose outputs are rectified and then read by a softmax or a sigmoid."""
    read = {reader.plain(softmax.value) for softmax in softmaxes if softmax.use == "classifier"}
    for k, layer in enumerate(layers):
        if is_followed(reader, layer):
            continue
        rectified = activation(reader, layer, is_rectifying)
        value = rectified.activated
        if value is not None and (reader.plain(value) in read or _is_squashed(reader, value)):
            yield Rectified(k, rectified)


def is_rectifying(step: Step) -> bool:
    """Whether a step may be a part of relu or its like, and of no loss."""
    if step.name != "custom_jvp_call":
        return step.name in _RECTIFYING
    return all(
        eqn.primitive.name in _RECTIFYING
        for inner in inner_programs(step.params)
        for eqn in inner.eqns
    )


def _is_squashed(reader: Reader, value: int) -> bool:
    """Whether a value, or its negative, goes into a sigmoid or its logarithm."""
    front = [value]
    for _ in range(8):
        if not front:
            return False
        for step in (reader.program.steps[k] for k in reader.users[front.pop()]):
            if step.name == "logistic" or (step.name == "custom_jvp_call" and _has_exp(step)):
                return True
            if step.name in {"neg", *RESHAPING}:
                front += step.outputs
    return False


def _has_exp(step: Step) -> bool:
    names = {eqn.primitive.name for inner in inner_programs(step.params) for eqn in inner.eqns}
    return bool(names & {"exp", "log1p", "logistic"})
