"""A loss as a straight line of operations: calls opened, short loops unrolled, no dead code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# Calls without a derivative rule of their own, which may be opened.
_OPENED = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}

# A loop over parameters is a model's depth, any other is time; longer ones stay closed.
_MOST_STEPS_OF_DEPTH, _MOST_STEPS_OF_TIME = 12_000, 1_500


@dataclass(frozen=True)
class Constant:
    """A literal number in a program."""

    value: Any


@dataclass(frozen=True)
class Step:
    """One operation: `run(*inputs)` gives its outputs, a list.

    `inputs` are numbers of values, or constants; `outputs` are numbers of values.
    """

    name: str
    inputs: tuple[int | Constant, ...]
    outputs: tuple[int, ...]
    run: Callable[..., Sequence[Any]]
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def reads(self) -> tuple[int, ...]:
        """The numbers of the values that it takes."""
        return tuple(value for value in self.inputs if isinstance(value, int))


@dataclass(frozen=True)
class Loop:
    """A `scan` as it was before it was opened.

    Attributes:
        params: of the operation.
        inputs, outputs: what it takes, constants, carries and slices in turn, and what it makes.
        inside: the numbers of the values that its opened steps make; none where it stayed closed.
    """

    params: dict[str, Any]
    inputs: tuple[int | Constant, ...]
    outputs: tuple[int | Constant, ...]
    inside: range


@dataclass(frozen=True)
class Program:
    """A program of one scalar output.

    Attributes:
        steps: in the order in which they run.
        types: of every value, with `.shape` and `.dtype`.
        num_inputs: values 0 to num_inputs - 1 go in.
        output: the number of the value that comes out, or a constant.
        constants: arrays that were captured, the first inputs.
        closed: loops that were not opened, as `name of length`.
        loops: all loops, opened or not.
    """

    steps: tuple[Step, ...]
    types: tuple[Any, ...]
    num_inputs: int
    output: int | Constant
    constants: tuple[Any, ...]
    closed: tuple[str, ...]
    loops: tuple[Loop, ...] = ()


@dataclass(frozen=True)
class Body:
    """The steps of one turn of a loop, and its outputs."""

    steps: tuple[Step, ...]
    types: tuple[Any, ...]
    num_inputs: int
    outputs: tuple[int | Constant, ...]


def body_of(loop: Loop) -> Body:
    """The body of a loop, opened."""
    return _Writer().body(loop.params["jaxpr"])


At = Callable[[int, Any], Any]


def evaluate(program: Program, inputs: Sequence[Any], at: At = lambda _, value: value) -> Any:
    """The output; `at(number, value)` is asked for what each value is replaced by."""
    values: dict[int, Any] = {k: at(k, value) for k, value in enumerate(inputs)}
    for step in program.steps:
        outputs = step.run(*(_read(values, one) for one in step.inputs))
        for number, value in zip(step.outputs, outputs, strict=True):
            values[number] = at(number, value)
    return _read(values, program.output)


def _read(values: dict[int, Any], one: int | Constant) -> Any:
    return one.value if isinstance(one, Constant) else values[one]


def traced(function: Callable[..., Array], *arguments: Any, num_data: int = 0) -> Program:
    """The program of a function of flat arrays, the last `num_data` of which are a batch's."""
    return _Writer().program(jax.make_jaxpr(function)(*arguments), num_data)


class _Writer:
    """Writes the steps of a jaxpr, opened, and numbers its values."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.types: list[Any] = []
        self.closed: list[str] = []
        self.loops: list[Loop] = []
        self.of_data = set[int]()  # values that depend on the batch

    def program(self, closed: ClosedJaxpr, num_data: int) -> Program:
        inputs = [self._new(v.aval) for v in (*closed.jaxpr.constvars, *closed.jaxpr.invars)]
        self.of_data.update(inputs[len(inputs) - num_data :])
        # A captured number is a literal, as the slope of an activation.
        given: list[int | Constant] = [*inputs]
        for k, constant in enumerate(closed.consts):
            if not jnp.ndim(constant) and jnp.issubdtype(constant.dtype, jnp.inexact):
                given[k] = Constant(constant)
        (output,) = self._write(closed.jaxpr, given)
        steps = tuple(_needed(self.steps, output))
        return Program(
            steps,
            tuple(self.types),
            len(inputs),
            output,
            tuple(closed.consts),
            tuple(self.closed),
            tuple(self.loops),
        )

    def body(self, closed: ClosedJaxpr) -> Body:
        """The body of a loop; its inputs are the values from 0 on."""
        inputs = [self._new(v.aval) for v in closed.jaxpr.invars]
        outputs = self._call(closed, inputs)
        return Body(tuple(self.steps), tuple(self.types), len(inputs), tuple(outputs))

    def _new(self, aval: Any) -> int:
        self.types.append(aval)
        return len(self.types) - 1

    def _write(self, jaxpr: Jaxpr, inputs: Sequence[int | Constant]) -> list[int | Constant]:
        env: dict[Any, int | Constant] = dict(
            zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True)
        )

        def read(atom: Any) -> int | Constant:
            return Constant(atom.val) if isinstance(atom, Literal) else env[atom]

        for eqn in jaxpr.eqns:
            given = [read(atom) for atom in eqn.invars]
            made = self._equation(eqn, given)
            env.update(zip(eqn.outvars, made, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: Any, given: list[int | Constant]) -> Sequence[int | Constant]:
        name = eqn.primitive.name
        if name in _OPENED:
            return self._call(eqn.params.get("jaxpr") or eqn.params["call_jaxpr"], given)
        if name == "scan":
            if self._may_open(eqn, given):
                start = len(self.types)
                made = self._loop(eqn.params, given)
                self._note(eqn, given, made, range(start, len(self.types)))
                return made
            self.closed.append(f"a loop of {eqn.params['length']} steps")
        if name == "convert_element_type" and isinstance(given[0], Constant):
            return [Constant(jnp.asarray(given[0].value, eqn.outvars[0].aval.dtype))]
        outputs = tuple(self._new(v.aval) for v in eqn.outvars)
        self._mark(given, outputs)
        self.steps.append(Step(name, tuple(given), outputs, _runner(eqn), eqn.params))
        if name == "scan":
            self._note(eqn, given, outputs, range(0))
        return outputs

    def _mark(self, given: Sequence[int | Constant], outputs: Sequence[int]) -> None:
        """What is made of the batch depends on it."""
        if any(isinstance(one, int) and one in self.of_data for one in given):
            self.of_data.update(outputs)

    def _note(self, eqn: Any, given: Sequence[Any], made: Sequence[Any], inside: range) -> None:
        self.loops.append(Loop(eqn.params, tuple(given), tuple(made), inside))

    def _call(self, inner: Any, given: Sequence[int | Constant]) -> list[int | Constant]:
        if isinstance(inner, Jaxpr):
            return self._write(inner, given)
        return self._write(inner.jaxpr, [*map(Constant, inner.consts), *given])

    def _may_open(self, eqn: Any, given: list[int | Constant]) -> bool:
        p = eqn.params
        num_steps = p["length"] * _num_steps(p["jaxpr"].jaxpr)
        sliced = given[p["num_consts"] + p["num_carry"] :]
        matrices = [v for v in sliced if isinstance(v, int) and v in self.weights(sliced)]
        return num_steps <= (_MOST_STEPS_OF_DEPTH if matrices else _MOST_STEPS_OF_TIME)

    def weights(self, values: Sequence[int | Constant]) -> set[int]:
        """Those of some values that look like stacked weights: floats of three axes or more."""
        return {
            v
            for v in values
            if isinstance(v, int)
            and v not in self.of_data
            and len(self.types[v].shape) >= 3
            and jnp.issubdtype(self.types[v].dtype, jnp.floating)
        }

    def _loop(self, p: dict[str, Any], given: list[int | Constant]) -> list[int | Constant]:
        num_consts, num_carry, length = p["num_consts"], p["num_carry"], p["length"]
        constants, carry = given[:num_consts], given[num_consts : num_consts + num_carry]
        sliced, rows = given[num_consts + num_carry :], []
        turns = range(length)
        for k in reversed(turns) if p["reverse"] else turns:
            parts = [self._slice(value, k) for value in sliced]
            made = self._call(p["jaxpr"], [*constants, *carry, *parts])
            carry = made[:num_carry]
            rows.append(made[num_carry:])
        ordered = rows[::-1] if p["reverse"] else rows
        return [*carry, *(self._stack(list(column)) for column in zip(*ordered, strict=True))]

    def _slice(self, value: int | Constant, k: int) -> int | Constant:
        if isinstance(value, Constant):
            return Constant(value.value[k])
        kind = self.types[value]
        output = self._new(kind.update(shape=kind.shape[1:]))
        self._mark((value,), (output,))
        self.steps.append(Step("index", (value,), (output,), lambda x: [x[k]], {"index": k}))
        return output

    def _stack(self, values: list[int | Constant]) -> int:
        first = values[0]
        kind = self.types[first] if isinstance(first, int) else jax.typeof(first.value)
        output = self._new(kind.update(shape=(len(values), *kind.shape)))
        self._mark(values, (output,))
        self.steps.append(Step("stack", tuple(values), (output,), lambda *x: [jnp.stack(x)]))
        return output


def _runner(eqn: Any) -> Callable[..., Sequence[Any]]:
    def run(*values: Any) -> Sequence[Any]:
        params = eqn.primitive.get_bind_params(eqn.params)
        made = eqn.primitive.bind(*values, **params)
        return made if eqn.primitive.multiple_results else [made]

    return run


def _needed(steps: list[Step], output: int | Constant) -> Iterator[Step]:
    """The steps that the output depends on, in order."""
    wanted = {output} if isinstance(output, int) else set()
    kept = []
    for step in reversed(steps):
        if wanted & set(step.outputs):
            wanted |= set(step.reads)
            kept.append(step)
    return reversed(kept)


def inner_programs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The jaxprs among an operation's parameters."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one


def _num_steps(jaxpr: Jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        inner = sum(map(_num_steps, inner_programs(eqn.params)))
        total += max(1, inner) * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
    return total
