"""The softmaxes of a program: of which value, over which axes, and what for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradlab.diagnosis.dependence import Reader, made_by
from gradlab.diagnosis.program import Step, inner_programs


@dataclass(frozen=True)
class Softmax:
    """A softmax: of which value, over which axes; of `attention`, of a `classifier`, or other.

    `layers` made its logits, `weighed` the states that it weighs.
    """

    value: int
    axes: tuple[int, ...]
    use: str
    layers: tuple[int, ...]
    weighed: tuple[int, ...]


def softmaxes_of(reader: Reader, place: dict[int, int]) -> Iterator[Softmax]:
    """The softmaxes in their order; `place` is the number of the layer that a step is."""
    for step in reader.program.steps:
        found = _softmax(reader, step)
        if found is not None:
            value, axes = found
            makers = reader.before[value] & reader.linear
            use, weighed = _use(reader, step.outputs[0])
            made = () if weighed is None else made_by(reader, weighed)
            yield Softmax(
                value,
                axes,
                use,
                tuple(place[i] for i in made_by(reader, value) if makers >> i & 1),
                tuple(place[i] for i in made),
            )


def _softmax(reader: Reader, step: Step) -> tuple[int, tuple[int, ...]] | None:
    """The value that a step takes the softmax of, or exp of less its maximum, with its axes."""
    if step.name in {"custom_jvp_call", "custom_vjp_call"}:
        for inner in inner_programs(step.params):
            axes = [eqn.params["axes"] for eqn in inner.eqns if eqn.primitive.name == "reduce_max"]
            names = {eqn.primitive.name for eqn in inner.eqns}
            stated = [v for v in step.reads if v in reader.before]
            if axes and "exp" in names and len(stated) == 1:
                return stated[0], tuple(axes[0])
        return None
    if step.name != "exp" or not step.reads or step.reads[0] not in reader.before:
        return None
    less = reader.step(step.reads[0])
    if less is None or less.name != "sub" or len(less.reads) != 2:
        return None
    value, peak = less.reads
    for _ in range(8):
        maker = reader.step(peak)
        if maker is None:
            return None
        if maker.name == "reduce_max":
            return value, tuple(maker.params["axes"])
        stated = [v for v in maker.reads if v in reader.before]
        if not stated:
            return None
        peak = stated[-1]
    return None


def _use(reader: Reader, value: int) -> tuple[str, int | None]:
    """What a softmax is for: it weighs states (attention), or its log is taken (classifier)."""
    front, seen, made = [value], set[int](), {value}
    while front and len(seen) < 24:
        for k in reader.users[front.pop(0)]:
            step = reader.program.steps[k]
            if k in seen:
                continue
            seen.add(k)
            if step.name == "dot_general":
                states = [v for v in step.reads if v not in made and v in reader.before]
                return "attention", next(iter(states), None)
            if step.name == "log":
                return "classifier", None
            front += step.outputs
            made.update(step.outputs)
    return "other", None
