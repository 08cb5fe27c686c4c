"""The sums of a program: of a state with what layers made of it, and of a state with parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradlab.diagnosis.dependence import ELEMENTWISE, RESHAPING, Reader, bits, last
from gradlab.diagnosis.program import Step, inner_programs


@dataclass(frozen=True)
class Residual:
    """A residual sum: `total = stream + branch`; `layers` are the branch's, `last` its last ones.

    `normed` says whether the stream came through a norm since the sum before it.
    """

    stream: int
    branch: int
    total: int
    layers: tuple[int, ...]
    last: tuple[int, ...]
    before: int | None
    normed: bool


@dataclass(frozen=True)
class Shift:
    """A sum of a state and of parameters: the values that are added, and the parameters in one."""

    state: int
    added: int
    params: tuple[int, ...]


def shifts_of(reader: Reader, first: int) -> Iterator[Shift]:
    """The shifts of floats in front of other layers, but those that a gate reads, in their order.

    A classifier's bias may be the classes' frequencies; a gate has a law of its own. A softplus
    that is no activation makes a size, which its bias sets: a selective scan's step of 1e-3 to 1e-1
    (Gu and Dao 2023), or a standard deviation.
    """
    steps = reader.program.steps
    read = {v for k in bits(reader.linear) for v in steps[k].reads if v in reader.before}
    wanted = 0
    for value in read:
        wanted |= reader.before[value]
    of_gates = 0
    for step in steps:
        if step.reads and (step.name == "logistic" or _makes_a_size(reader, step)):
            of_gates |= _alone(reader, step.reads[0])
    for k in bits(wanted & ~of_gates):
        step = steps[k]
        state = [v for v in step.reads if v in reader.before and v not in reader.noise]
        added = [v for v in step.reads if v not in reader.before and reader.roots.get(v)]
        if step.name in {"add", "add_any"} and len(state) == len(added) == 1:
            params = tuple(sorted(p - first for p in reader.roots[added[0]]))
            yield Shift(state[0], added[0], params)


def _makes_a_size(reader: Reader, step: Step) -> bool:
    """Whether a step is softplus, and no weight is multiplied by what it makes alone."""
    inner = {eqn.primitive.name for one in inner_programs(step.params) for eqn in one.eqns}
    if step.name != "custom_jvp_call" or not {"exp", "log1p"} <= inner:
        return False
    (made,) = step.outputs
    return not any(reader.linear >> k & 1 for k in reader.users[made])


def _alone(reader: Reader, value: int) -> int:
    """The elementwise steps, as bits, from a value back to the product that it was made of."""
    found, front = 0, [value]
    while front:
        made = reader.maker.get(front.pop())
        if made is None or reader.linear >> made & 1 or found >> made & 1:
            continue
        step = reader.program.steps[made]
        if step.name in {*ELEMENTWISE, *RESHAPING, "split"}:
            found |= 1 << made
            front += [v for v in step.reads if v in reader.before]
    return found


def residuals_of(reader: Reader, place: dict[int, int]) -> Iterator[Residual]:
    """The residual sums in their order; `place` is the number of the layer that a step is."""
    totals: dict[int, int] = {}  # the step of a sum, to its total
    for k, step in enumerate(reader.program.steps):
        if step.name not in {"add", "add_any"} or len(set(step.reads)) != 2:
            continue
        if any(v not in reader.before for v in step.reads):
            continue
        split = _split(reader, *step.reads)
        if split is None:
            continue
        stream, branch = split
        inside = reader.before[branch] & ~reader.before[stream] & reader.linear
        layers = tuple(place[i] for i in bits(inside))
        before = max((i for i in bits(reader.before[stream]) if i in totals), default=None)
        between = reader.before[stream] & ~(
            reader.before[totals[before]] if before is not None else 0
        )
        yield Residual(
            stream=stream,
            branch=branch,
            total=step.outputs[0],
            layers=layers,
            last=tuple(place[i] for i in last(reader, branch, inside)),
            before=None if before is None or between & reader.linear else totals[before],
            normed=before is not None
            and not between & reader.linear
            and any(reader.program.steps[i].name in {"rsqrt", "sqrt"} for i in bits(between)),
        )
        totals[k] = step.outputs[0]


def _split(reader: Reader, one: int, other: int) -> tuple[int, int] | None:
    """(stream, branch) of a sum of two states, or None where it is not a residual one."""
    for stream, branch in ((one, other), (other, one)):
        source = reader.plain(stream)
        made = reader.maker.get(source)
        if made is None:
            within = source in _inputs_behind(reader, branch)
        else:
            within = bool(reader.before[branch] >> made & 1)
        new = reader.before[branch] & ~reader.before[stream] & reader.linear
        if within and new and not reader.before[stream] & ~reader.before[branch] & reader.linear:
            return stream, branch
    return None


def _inputs_behind(reader: Reader, value: int) -> set[int]:
    """The program's inputs that a state depends on."""
    return {
        v
        for k in bits(reader.before.get(value, 0))
        for v in reader.program.steps[k].reads
        if v not in reader.maker
    }
