"""What a program is made of: layers with weights, activations, residual sums, norms, softmaxes.

Read off the program itself, so that no framework is known by name. A *layer* is a product of a
weight with a state. Its *pre-activation* is that product with its bias. A *residual sum* adds to a
state what layers have made of that same state.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from gradlab.diagnosis import door
from gradlab.diagnosis.dependence import RESHAPING, Reader
from gradlab.diagnosis.gates import Gate, gates_of
from gradlab.diagnosis.layers import Layer, fed_by, is_followed, layers_of
from gradlab.diagnosis.outputs import Rectified, rectified_of
from gradlab.diagnosis.program import Constant, Loop, Program, inner_programs, traced
from gradlab.diagnosis.skips import Gap, gaps_of
from gradlab.diagnosis.softmaxes import Softmax, softmaxes_of
from gradlab.diagnosis.sums import Residual, Shift, residuals_of, shifts_of


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
    gates: tuple[Gate, ...]
    shifts: tuple[Shift, ...]
    gaps: tuple[Gap, ...]
    loops: tuple[Loop, ...]
    rectified: tuple[Rectified, ...]
    reached: frozenset[int]
    embedded: frozenset[int] = field(default_factory=frozenset)
    frozen: frozenset[int] = field(default_factory=frozenset)


def starred(name: str) -> str:
    """The name of a role: numbers in a path are stars.

    So is that which Flax puts behind the name of a block, `encoderblock_3`. Behind a class,
    `Dense_1`, and inside a block that has a number, `conv_1`, it tells one role from another.
    """
    *modules, leaf = re.sub(r"(?<![A-Za-z0-9_])\d+(?![A-Za-z0-9_])", "*", name).split(".")
    words = [re.sub(r"(?<=_)\d+$", "*", word) for word in modules]
    if modules and ("*" in "".join(words[:-1]) or re.match(r"[A-Z]|.*/", modules[-1])):
        words[-1] = modules[-1]
    return ".".join([*words, leaf])


def read(program: Program, names: Sequence[str], first_param: int, data: set[int]) -> Anatomy:
    """The anatomy of a program whose parameters are the inputs from `first_param` on."""
    reader = Reader(program, first_param, len(names), data)
    layers = [
        layer if is_followed(reader, layer) else replace(layer, phi=(), activated=None)
        for layer in layers_of(reader, names, first_param)
    ]
    place = {layer.step: k for k, layer in enumerate(layers)}
    by_pre = {layer.pre: k for k, layer in enumerate(layers)}
    by_pre |= {layer.activated: k for k, layer in enumerate(layers) if layer.activated}
    links = tuple(
        (source, k)
        for k, layer in enumerate(layers)
        if (source := fed_by(reader, layer.state, by_pre)) is not None
    )
    residuals = tuple(residuals_of(reader, place))
    softmaxes = tuple(softmaxes_of(reader, place))
    roles = [starred(layer.name) for layer in layers]
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
        softmaxes,
        tuple(gates_of(reader, place, first_param)),
        tuple(shifts_of(reader, first_param)),
        tuple(gaps_of(reader, layers, roles, residuals)),
        tuple(loop for loop in program.loops if _reads_states(reader, loop)),
        tuple(rectified_of(reader, layers, softmaxes)),
        frozenset(p - first_param for p in reader.params if p in used),
        frozenset(embedded),
        frozenset(p - first_param for p in reader.params if _is_frozen(reader, p)),
    )


def _reads_states(reader: Reader, loop: Loop) -> bool:
    """Whether a loop is one over time: what it takes step by step depends on the batch."""
    sliced = loop.inputs[loop.params["num_consts"] + loop.params["num_carry"] :]
    return any(isinstance(v, int) and v in reader.before for v in sliced)


def _is_frozen(reader: Reader, value: int) -> bool:
    """Whether a parameter's gradient is stopped before anything is made of it."""
    users = [reader.program.steps[k] for k in reader.users[value]]
    return bool(users) and all(
        step.name == "stop_gradient"
        or (step.name in RESHAPING and _is_frozen(reader, step.outputs[0]))
        for step in users
    )


def of_loss(subject: door.Subject, arrays: list[Any], treedef: Any, loss: door.Loss) -> Anatomy:
    """The anatomy of a loss of a subject and of a batch, whose leaves are `arrays`."""

    def value(params: Any, rest: Any, leaves: Any) -> Any:
        batch = jax.tree_util.tree_unflatten(treedef, leaves)
        return door.scalar_loss(loss, subject.build(params, rest), batch)

    program = traced(value, list(subject.params), list(subject.rest), arrays, num_data=len(arrays))
    first = len(program.constants)
    start = first + len(subject.params) + len(subject.rest)
    data = set(range(start, program.num_inputs))
    if not any(v in data for step in program.steps for v in step.reads):
        data |= set(range(first))  # the batch came by the loss's closure
    return read(program, subject.names, first, data)


def with_program(anatomy: Anatomy, program: Program) -> Anatomy:
    """The same parts of a program some of whose operations do something else."""
    made = {step.outputs: step for step in program.steps}

    def renewed(layer: Layer) -> Layer:
        return replace(layer, phi=tuple(made[step.outputs] for step in layer.phi))

    return replace(
        anatomy,
        program=program,
        layers=tuple(map(renewed, anatomy.layers)),
        rectified=tuple(replace(r, activated=renewed(r.activated)) for r in anatomy.rectified),
    )


def function(layer: Layer) -> Callable[[Any], Any] | None:
    """The activation of a layer as a function, elementwise, or None."""
    activated = layer.activated
    if activated is None:
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
        return values[activated]

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
