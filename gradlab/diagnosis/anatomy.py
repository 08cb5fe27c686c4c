"""What a program is made of: layers with weights, activations, residual sums, norms, softmaxes.

Read off the program itself, so that no framework is known by name. A *layer* is a product of a
weight with a state. Its *pre-activation* is that product with its bias. A *residual sum* adds to a
state what layers have made of that same state.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp

from gradlab.diagnosis.program import Constant, Program, Step, inner_programs

_RESHAPING = {
    *("transpose", "reshape", "squeeze", "expand_dims", "convert_element_type", "copy", "copy_p"),
    *("name", "broadcast_in_dim", "optimization_barrier", "reduce_precision", "stop_gradient"),
    *("sharding_constraint", "index", "slice", "rev"),
}
_ELEMENTWISE = {
    *("add", "add_any", "sub", "mul", "div", "neg", "max", "min", "exp", "exp2", "log", "log1p"),
    *("expm1", "tanh", "logistic", "erf", "erfc", "erf_inv", "sin", "cos", "tan", "sqrt", "rsqrt"),
    *("integer_pow", "pow", "square", "abs", "sign", "select_n", "clamp", "ge", "gt", "le", "lt"),
    *("eq", "ne", "and", "or", "not", "is_finite", "convert_element_type", "cbrt", "name", "copy"),
    *("custom_jvp_call", "stop_gradient", "asinh", "atan", "sinh", "cosh", "log_softplus"),
}
_PRODUCTS = {"dot_general", "conv_general_dilated"}


@dataclass(frozen=True)
class Layer:
    """A weight times a state.

    Attributes:
        name: of its weight, with the slice where weights are stacked.
        param: the number of the parameter, and `index` the slice of it, or None.
        weight, state: the values that are multiplied.
        product, pre: the value that results, and the same with its bias.
        biases: parameters added on the way.
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
    phi: tuple[Step, ...] = ()
    activated: int | None = None


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
class Softmax:
    """A softmax: of which value, over which axes; of `attention`, of a `classifier`, or other."""

    value: int
    axes: tuple[int, ...]
    use: str
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Anatomy:
    """All parts of a program; `links` are pairs of layers with nothing between but phi."""

    program: Program
    names: tuple[str, ...]
    first_param: int
    layers: tuple[Layer, ...]
    links: tuple[tuple[int, int], ...]
    residuals: tuple[Residual, ...]
    softmaxes: tuple[Softmax, ...]
    reached: frozenset[int]
    embedded: frozenset[int] = field(default_factory=frozenset)


def starred(name: str) -> str:
    """The name of a role: numbers in a path are stars."""
    return re.sub(r"(?<![A-Za-z0-9_])\d+(?![A-Za-z0-9_])", "*", name)


class _Reader:
    """What each value of a program depends on."""

    def __init__(self, program: Program, first_param: int, num_params: int, data: set[int]) -> None:
        self.program = program
        self.params = range(first_param, first_param + num_params)
        self.maker: dict[int, int] = {}
        self.users: dict[int, list[int]] = defaultdict(list)
        self.roots: dict[int, frozenset[int]] = {p: frozenset([p]) for p in self.params}
        self.before: dict[int, int] = dict.fromkeys(data, 0)  # steps behind a value, as bits
        self.linear = 0  # the products of a weight and a state, as bits
        for k, step in enumerate(program.steps):
            self._read(k, step)

    def _read(self, k: int, step: Step) -> None:
        for value in step.reads:
            self.users[value].append(k)
        stated = [value for value in step.reads if value in self.before]
        roots = frozenset().union(*(self.roots.get(v, frozenset()) for v in step.reads))
        for output in step.outputs:
            self.maker[output] = k
            if stated:
                bits = 1 << k
                for value in stated:
                    bits |= self.before[value]
                self.before[output] = bits
            elif roots:
                self.roots[output] = roots
        if step.name in _PRODUCTS and len(stated) == 1 and self.weight_of(step) is not None:
            self.linear |= 1 << k

    def weight_of(self, step: Step) -> int | None:
        """The weight among the two operands of a product, or None."""
        weights = [v for v in step.reads if v not in self.before and self.roots.get(v)]
        return weights[0] if len(weights) == 1 else None

    def step(self, value: int) -> Step | None:
        made = self.maker.get(value)
        return None if made is None else self.program.steps[made]

    def size(self, value: int) -> int:
        return math.prod(self.program.types[value].shape)

    def plain(self, value: int) -> int:
        """What a state is but for its shape, and for factors that no state has a part in."""
        while (step := self.step(value)) is not None:
            stated = [v for v in step.reads if v in self.before]
            scaled = step.name in {"mul", "div"} and len(stated) == 1
            if not (scaled or step.name in _RESHAPING) or not stated:
                break
            value = stated[0]
        return value


def read(program: Program, names: Sequence[str], first_param: int, data: set[int]) -> Anatomy:
    """The anatomy of a program whose parameters are the inputs from `first_param` on."""
    reader = _Reader(program, first_param, len(names), data)
    layers = [
        layer if _is_followed(reader, layer) else replace(layer, phi=(), activated=None)
        for layer in _layers(reader, names, first_param)
    ]
    place = {layer.step: k for k, layer in enumerate(layers)}
    by_pre = {layer.pre: k for k, layer in enumerate(layers)}
    by_pre |= {layer.activated: k for k, layer in enumerate(layers) if layer.activated}
    links = tuple(
        (source, k)
        for k, layer in enumerate(layers)
        if (source := _fed_by(reader, layer.state, by_pre)) is not None
    )
    residuals = tuple(_residuals(reader, place))
    used = {v for step in program.steps for v in step.reads}
    embedded = {
        root - first_param
        for step in program.steps
        if step.name == "gather" and step.reads
        for root in reader.roots.get(step.reads[0], ())
    }
    return Anatomy(
        program,
        tuple(names),
        first_param,
        tuple(layers),
        links,
        residuals,
        tuple(_softmaxes(reader, place)),
        frozenset(p - first_param for p in reader.params if p in used),
        frozenset(embedded),
    )


# ---- layers


def _is_followed(reader: _Reader, layer: Layer) -> bool:
    """Whether another layer stands behind this one; what else does is the loss."""
    later = reader.linear >> (layer.step + 1) << (layer.step + 1)
    steps = reader.program.steps
    return any(reader.before[steps[k].outputs[0]] >> layer.step & 1 for k in _bits(later))


def _layers(reader: _Reader, names: Sequence[str], first: int) -> Iterator[Layer]:
    for k, step in enumerate(reader.program.steps):
        if not reader.linear >> k & 1:
            continue
        weight = reader.weight_of(step)
        assert weight is not None
        state = next(v for v in step.reads if v != weight)
        param, index = _source(reader, weight)
        fan_in, out_axes = _fans(step, step.inputs.index(weight), reader.program.types[weight])
        pre, biases = _pre_activation(reader, step.outputs[0])
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
            phi=phi,
            activated=activated,
        )


def _source(reader: _Reader, weight: int) -> tuple[int, int | None]:
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


def _pre_activation(reader: _Reader, value: int) -> tuple[int, tuple[int, ...]]:
    """The product with what is added to it, and scales it, that no state has a part in."""
    biases: list[int] = []
    while len(reader.users[value]) == 1:
        step = reader.program.steps[reader.users[value][0]]
        others = [v for v in step.reads if v != value]
        if any(v in reader.before for v in others):
            break
        if step.name in {"add", "sub", "add_any"}:
            biases += [root for v in others for root in reader.roots.get(v, ())]
        elif step.name not in {"mul", *_RESHAPING}:
            break
        if reader.size(step.outputs[0]) != reader.size(value):
            break
        value = step.outputs[0]
    return value, tuple(biases)


def _activation(reader: _Reader, pre: int) -> tuple[tuple[Step, ...], int | None]:
    """The steps from a pre-activation to its activation, elementwise and of it alone."""
    inside, steps = {pre}, []
    shape = reader.program.types[pre].shape
    for k in _later(reader, pre):
        step = reader.program.steps[k]
        if not _is_elementwise(step) or reader.program.types[step.outputs[0]].shape != shape:
            continue
        if all(v in inside or _is_number(reader, v) for v in step.reads):
            inside.update(step.outputs)
            steps.append(step)
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


def _later(reader: _Reader, value: int) -> Iterator[int]:
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


def _is_number(reader: _Reader, value: int) -> bool:
    """Whether a value is neither state nor weight and has no entries that differ: a constant."""
    return value not in reader.before and not reader.roots.get(value) and reader.size(value) == 1


def _is_elementwise(step: Step) -> bool:
    if step.name != "custom_jvp_call":
        return step.name in _ELEMENTWISE
    return all(
        eqn.primitive.name in {*_ELEMENTWISE, "jit", "pjit", "broadcast_in_dim"}
        for inner in inner_programs(step.params)
        for eqn in inner.eqns
    )


def _fed_by(reader: _Reader, state: int, by_pre: dict[int, int]) -> int | None:
    """The layer whose activation, reshaped at most, is this state."""
    value = state
    while value not in by_pre:
        step = reader.step(value)
        if step is None or step.name not in _RESHAPING or not step.reads:
            return None
        value = step.reads[0]
    return by_pre[value]


# ---- residual sums


def _residuals(reader: _Reader, place: dict[int, int]) -> Iterator[Residual]:
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
        layers = tuple(place[i] for i in _bits(inside))
        before = max((i for i in _bits(reader.before[stream]) if i in totals), default=None)
        between = reader.before[stream] & ~(
            reader.before[totals[before]] if before is not None else 0
        )
        yield Residual(
            stream=stream,
            branch=branch,
            total=step.outputs[0],
            layers=layers,
            last=tuple(place[i] for i in _last(reader, branch, inside)),
            before=None if before is None or between & reader.linear else totals[before],
            normed=before is not None
            and not between & reader.linear
            and any(reader.program.steps[i].name in {"rsqrt", "sqrt"} for i in _bits(between)),
        )
        totals[k] = step.outputs[0]


def _split(reader: _Reader, one: int, other: int) -> tuple[int, int] | None:
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


def _inputs_behind(reader: _Reader, value: int) -> set[int]:
    """The program's inputs that a state depends on."""
    return {
        v
        for k in _bits(reader.before.get(value, 0))
        for v in reader.program.steps[k].reads
        if v not in reader.maker
    }


def _last(reader: _Reader, branch: int, inside: int) -> list[int]:
    """The branch's layers that no other layer of it follows."""
    found, seen, front = [], set(), [branch]
    while front:
        made = reader.maker.get(front.pop())
        if made is None or made in seen:
            continue
        seen.add(made)
        if inside >> made & 1:
            found.append(made)
        elif reader.before[reader.program.steps[made].outputs[0]] & inside:
            front += [v for v in reader.program.steps[made].reads if v in reader.before]
    return sorted(found)


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


# ---- softmaxes


def _softmaxes(reader: _Reader, place: dict[int, int]) -> Iterator[Softmax]:
    for step in reader.program.steps:
        found = _softmax(reader, step)
        if found is not None:
            value, axes = found
            makers = reader.before[value] & reader.linear
            yield Softmax(
                value,
                axes,
                _use(reader, step.outputs[0]),
                tuple(place[i] for i in _nearest(reader, value) if makers >> i & 1),
            )


def _softmax(reader: _Reader, step: Step) -> tuple[int, tuple[int, ...]] | None:
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


def _use(reader: _Reader, value: int) -> str:
    """What a softmax is for: it weighs states (attention), or its log is taken (classifier)."""
    front, seen = [value], set[int]()
    while front and len(seen) < 24:
        for k in reader.users[front.pop(0)]:
            step = reader.program.steps[k]
            if k in seen:
                continue
            seen.add(k)
            if step.name == "dot_general":
                return "attention"
            if step.name == "log":
                return "classifier"
            front += step.outputs
    return "other"


def _nearest(reader: _Reader, value: int) -> list[int]:
    """The layers that a state was made by, with no other layer between."""
    return _last(reader, value, reader.linear)


def function(layer: Layer) -> Callable[[Any], Any] | None:
    """The activation of a layer as a function, elementwise, or None."""
    if layer.activated is None:
        return None

    def phi(h: Any) -> Any:
        values = {layer.pre: h}
        for step in layer.phi:
            made = step.run(
                *(
                    one.value if isinstance(one, Constant) else values.get(one, jnp.zeros(()))
                    for one in step.inputs
                )
            )
            values.update(zip(step.outputs, made, strict=True))
        return values[layer.activated]  # type: ignore[index]

    return phi


def phi_signature(layer: Layer, program: Program) -> Hashable:
    """Equal for layers whose pre-activations go through the same steps in the same shape."""
    numbers = {layer.pre: 0}
    rows = []
    for step in layer.phi:
        inputs = [
            numbers.get(one, -1) if isinstance(one, int) else str(one.value) for one in step.inputs
        ]
        for output in step.outputs:
            numbers[output] = len(numbers)
        rows.append((step.name, tuple(inputs), str(step.params.get("y", ""))))
    kind = program.types[layer.pre]
    inner = tuple(str(one) for step in layer.phi for one in inner_programs(step.params))
    return tuple(rows), inner, kind.shape, str(kind.dtype), layer.fan_out, layer.activated is None
